r"""The time at which the law of a bridge reaches a level of log-SNR.

:math:`\lambda(t) = \log I(t)` is a power of t at the start and of ``τ - t`` at the end, so that it is nearly
linear in :math:`\ell = \log t/(\tau - t)`. A table over ℓ brackets the root, and Newton steps in ℓ solve it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spatialdiff.processes.pinned_law import PinnedLaw

#: the table covers |ℓ| up to this; levels beyond are extrapolated as powers of t or τ - t
WIDEST = 18.0
NODES = 401
NEWTON = 6
#: levels met this closely are left as they are
CLOSE = 1e-11


class BridgeLevels:
    """λ(t) of a pinned law and its inverse.

    Raises ``RuntimeError`` where λ is not monotone.
    """

    def __init__(self, law: PinnedLaw) -> None:
        self.law = law
        self.state = law.state_key()
        device = law.covariance.device
        self.nodes = torch.linspace(-WIDEST, WIDEST, NODES, dtype=torch.float64, device=device)
        with torch.no_grad():
            self.levels = law.log_snr(self.place(self.nodes))
        # rounding where a start that knows of the data tells no more for a while
        slack = 1e-9 * (1.0 + self.levels[1:].abs())
        if bool((self.levels.diff() < -slack).any()):
            raise RuntimeError(
                "the signal-to-noise ratio of this bridge is not monotone; name the time grid by times "
                "instead of log-SNR"
            )
        self.levels = self.levels.cummax(0).values

    def place(self, node: Tensor) -> Tensor:
        """``t = τ/(1 + e^{-ℓ})``."""
        return self.law.horizon * torch.sigmoid(node)

    def stale(self) -> bool:
        """Whether the law has changed since."""
        return self.state != self.law.state_key()

    def time(self, level: Tensor) -> Tensor:
        """The times of the levels, clamped to what the law reaches; shape of ``level``."""
        level = level.to(self.nodes.device)
        flat = level.reshape(-1).detach()
        index = torch.searchsorted(self.levels, flat.contiguous()).clamp(1, NODES - 1)
        low, high = self.levels[index - 1], self.levels[index]
        first, last = self.nodes[index - 1], self.nodes[index]
        share = torch.where(high > low, (flat - low) / torch.where(high > low, high - low, 1.0), 0.0)
        node = (first + share * (last - first)).clamp(-600.0, 40.0)
        inside = (share >= 0.0) & (share <= 1.0)
        with torch.no_grad():
            for _ in range(NEWTON):
                t = self.place(torch.where(inside, node, 0.0))
                missing = flat - self.law.log_snr(t)
                if float(torch.where(inside, missing, 0.0).abs().max()) < CLOSE:
                    break
                slope = self.law.log_snr_rate(t) * t * (1.0 - t / self.law.horizon)
                better = node + missing / slope
                better = torch.maximum(torch.minimum(better, last), first)
                node = torch.where(inside & (slope > 0), better, node)
        found = self.place(node)
        start = float(self.law.log_snr(0.0))
        found = torch.where((flat <= start) | (flat == -torch.inf), 0.0, found)
        return torch.where(flat == torch.inf, self.law.horizon, found).reshape(level.shape)
