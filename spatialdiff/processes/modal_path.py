r"""Signal paths with a coefficient for each mode, and the time at which their mean log-SNR reaches a level.

.. math:: \lambda(t) = \frac1n \sum_k \log\frac{\alpha_k^2(t)}{\sigma_k^2(t)}

falls with t. A table over log t brackets a level, Newton steps kept inside of it find its time, and a
last one carries the gradient (implicit function theorem). Modes that are alike are counted, not repeated.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis
from spatialdiff.processes.paths import SignalPath

#: shortest time that a level of log-SNR is looked for at, relative to the horizon
SHORTEST = 1e-12
STEPS = 80
NODES = 256


class ModalPath(SignalPath):
    """A path with coefficients ``(*t, *modes)``; ``table`` holds numbers of the modes, ``(…, *modes)``."""

    basis: Basis
    table: Tensor

    def __init__(self, horizon: float, basis: Basis, table: Tensor) -> None:
        super().__init__(horizon)
        self.basis = basis
        self.register_buffer("table", table.double(), persistent=False)
        self._alike: tuple[Tensor, Tensor] | None = None
        self._scale: tuple[Tensor, Tensor] | None = None

    def spread(self, t: Tensor) -> Tensor:
        """``(*t)`` with axes for the modes behind."""
        return t.reshape((*t.shape, *[1] * len(self.basis.modes))).to(self.table.device)

    def _each(self, value: Tensor) -> Tensor:
        """The same in every mode."""
        return value.expand(*value.shape[: value.ndim - len(self.basis.modes)], *self.basis.modes)

    @abstractmethod
    def levels(self, t: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """log(α²/σ²) and its derivative in t, for ``table`` ``(…, U)`` of modes: ``(*t, U)`` each."""

    def _mean_levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table, weights = self._groups
        level, slope = self.levels(t.to(table.device)[..., None], table)
        return level @ weights, slope @ weights

    @property
    def _groups(self) -> tuple[Tensor, Tensor]:
        """Modes that are alike are counted: the table ``(…, U)`` of those that differ, and their shares."""
        if self._alike is None or self._alike[0].device != self.table.device:
            flat = self.table.flatten(-len(self.basis.modes))
            scale = flat.abs().amax().clamp(min=1e-300)
            columns = flat.reshape(-1, flat.shape[-1])
            # the same eigenvalue comes out of sums in another order
            _, inverse = torch.unique((columns / scale * 1e13).round(), dim=1, return_inverse=True)
            shares = torch.zeros(int(inverse.max()) + 1, dtype=torch.float64, device=flat.device)
            weights = self.basis.weights.to(flat).flatten()
            shares.index_add_(0, inverse, weights / weights.sum())
            place = torch.empty_like(shares, dtype=torch.long)
            place[inverse] = torch.arange(len(inverse), device=flat.device)
            self._alike = flat[..., place], shares
        return self._alike

    def log_snr(self, t: Tensor) -> Tensor:
        """The mean of log(α_k²/σ_k²) over the modes, ``(*t)``."""
        return self._mean_levels(t)[0]

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Newton steps in log t from a table, safeguarded; the last one carries the gradient of the level."""
        level = log_snr.to(self.table.device)
        with torch.no_grad():
            places, heights = self._scale_of_levels()
            index = torch.searchsorted(-heights, -level.contiguous()).clamp(1, NODES - 1)
            low, high = places[index - 1], places[index]
            share = ((heights[index - 1] - level) / (heights[index - 1] - heights[index])).clamp(0.0, 1.0)
            place = low + torch.where(torch.isfinite(share), share, 0.5) * (high - low)
            for _ in range(STEPS):
                t = place.exp()
                height, slope = self._mean_levels(t)
                excess = height - level
                low, high = torch.where(excess > 0, place, low), torch.where(excess < 0, place, high)
                newton = place - excess / (t * slope)
                inside = (newton > low) & (newton < high)
                following = torch.where(inside, newton, 0.5 * (low + high))
                moved = torch.where(excess == 0, 0.0, (following - place).abs())
                place = torch.where(excess == 0, place, following)
                if bool((moved <= 1e-14 * (1.0 + place.abs())).all()):
                    break
            t = place.exp().clamp(max=self.horizon)
        height, slope = self._mean_levels(t)
        refined = t + (level - height) / slope.detach()
        refined = torch.where(torch.isfinite(refined), refined, t)
        return torch.where(level <= heights[-1], self.horizon, refined)

    def _scale_of_levels(self) -> tuple[Tensor, Tensor]:
        """log t ``(NODES,)`` and the levels there; kept where nothing is learned."""
        if (
            self._scale is None
            or self._scale[0].device != self.table.device
            or any(True for _ in self.parameters())
        ):
            ends = math.log(SHORTEST * self.horizon), math.log(self.horizon)
            places = torch.linspace(*ends, NODES, dtype=torch.float64, device=self.table.device)
            times = places.exp().clamp(max=self.horizon)
            self._scale = places, torch.cat([self._mean_levels(part)[0] for part in times.split(16)])
        return self._scale

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_alike": None, "_scale": None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModalPath:
        # the numbers of the modes stay in float64 where the module is cast, and follow its device
        kept = self.table
        super()._apply(fn, recurse)
        self.table = kept.to(self.table.device)
        return self
