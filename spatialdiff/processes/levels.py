r"""The time at which a law reaches a level of log-SNR, where no closed form is known.

A table of :math:`\lambda(t) = \log I(t)` over the logarithm of time brackets the root; Newton steps in
:math:`\log t`, kept inside the bracket, then solve :math:`\lambda(t) = \lambda` to rounding. The last step
carries the gradient of the level (implicit function theorem).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.processes.marginals import weighted_mean

if TYPE_CHECKING:
    from spatialdiff.processes.law import Law

#: shortest time in the table, relative to the horizon; levels beyond are extrapolated as powers of t
SHORTEST = 1e-9
NODES = 400
NEWTON = 4


class LevelTable:
    """λ(t) of a law whose data are at time 0, and its inverse."""

    def __init__(self, law: Law) -> None:
        self.law = law
        self.state = [(value, value._version) for value in law.matrices()]  # type: ignore[attr-defined]
        device = law.covariance.device
        fractions = torch.logspace(
            torch.log10(torch.tensor(SHORTEST)).item(), 0.0, NODES, dtype=torch.float64, device=device
        )
        self.times = law.horizon * fractions
        with torch.no_grad():
            self.levels = law.log_snr(self.times)

    def stale(self, matrices: Sequence[Tensor]) -> bool:
        """Whether the matrices have changed since, or may at any step."""
        return any(value.requires_grad for value in matrices) or any(
            before is not now or version != now._version
            for (before, version), now in zip(self.state, matrices, strict=True)
        )

    def time(self, level: Tensor) -> Tensor:
        """The times of the levels, clamped to what the law reaches; shape of ``level``."""
        level = level.to(self.times.device)
        flat = level.reshape(-1)
        # λ falls with t; searchsorted wants it to rise
        index = torch.searchsorted(-self.levels, -flat.detach().contiguous()).clamp(1, NODES - 1)
        high, low = self.levels[index - 1], self.levels[index]
        first, last = self.times[index - 1].log(), self.times[index].log()
        share = (high - flat.detach()) / (high - low)
        log_time = first + share * (last - first)
        for i in range(NEWTON):
            with torch.set_grad_enabled(i == NEWTON - 1 and torch.is_grad_enabled()):
                log_time = self._newton(log_time.detach(), flat, first, last, share)
        found = torch.where(flat == torch.inf, 0.0, log_time.exp())
        return found.clamp(max=self.law.horizon).reshape(level.shape)

    def _newton(self, log_time: Tensor, level: Tensor, first: Tensor, last: Tensor, share: Tensor) -> Tensor:
        t = log_time.exp().clamp(max=self.law.horizon)
        slope = t * weighted_mean(self.law.information_rate(t) / self.law.information(t), self.law.basis)
        better = log_time + (level - self.law.log_snr(t)) / slope
        # inside the table the bracket is certain; beyond its short end λ is a power of t and is followed
        inside = torch.maximum(torch.minimum(better, last), first)
        return torch.where(share < 0.0, better.clamp(min=-700.0), inside)
