r"""The time at which a law reaches a level of log-SNR, where no closed form is known.

A table of :math:`\lambda(t) = \log I(t)` over the logarithm of time brackets the root; Newton steps in
:math:`\log t`, bisections where they would leave the bracket, then solve :math:`\lambda(t) = \lambda` to
rounding: λ may be flat for a moment, where the noise of a rotating process acts across the signal. A last
step carries the gradient of the level (implicit function theorem).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spatialdiff.processes.law import Law

#: shortest time in the table, relative to the horizon; levels beyond are extrapolated as powers of t
SHORTEST = 1e-9
NODES = 400
STEPS = 60
#: a Newton step in log t below which the root is found; the step itself is still made
SETTLED = 1e-12


class LevelTable:
    """λ(t) of a law whose data are at time 0, and its inverse."""

    def __init__(self, law: Law, state: Sequence[Tensor]) -> None:
        self.law = law
        self.state = [value.detach().clone() for value in state]
        device = law.covariance.device
        fractions = torch.logspace(
            torch.log10(torch.tensor(SHORTEST)).item(), 0.0, NODES, dtype=torch.float64, device=device
        )
        self.times = law.horizon * fractions
        with torch.no_grad():
            self.levels = law.log_snr(self.times)

    def stale(self, state: Sequence[Tensor]) -> bool:
        """Whether what the law is made of has changed since."""
        return not same_values(self.state, state)

    def time(self, level: Tensor) -> Tensor:
        """The times of the levels, clamped to what the law reaches; shape of ``level``."""
        level = level.to(self.times.device)
        given = level.reshape(-1)
        # the ends have times without a search: no data left, and the data themselves
        flat = torch.where(given == torch.inf, self.levels[0], given).clamp(min=self.levels[-1])
        # λ falls with t; searchsorted wants it to rise
        index = torch.searchsorted(-self.levels, -flat.detach().contiguous()).clamp(1, NODES - 1)
        high, low = self.levels[index - 1], self.levels[index]
        first, last = self.times[index - 1].log(), self.times[index].log()
        share = (high - flat.detach()) / torch.where(high > low, high - low, 1.0)
        # beyond the short end of the table λ is a power of t and is followed without a bracket
        log_time = first + share * (last - first)
        last = torch.where(share < 0.0, first, last)
        first = torch.where(share < 0.0, -700.0, first)
        with torch.no_grad():
            for _ in range(STEPS):
                better, above = self._newton(log_time, flat)
                # λ falls with t: where it is above the level the root is later
                first, last = torch.where(above, log_time, first), torch.where(above, last, log_time)
                # at the root rounding may put the step on an end of the bracket: no reason to bisect
                outside = ~((better > first) & (better < last)) & ~((better - log_time).abs() < SETTLED)
                moved = torch.where(outside, 0.5 * (first + last), better)
                settled = bool(((moved - log_time).abs() < SETTLED).all())
                log_time = moved
                if settled:
                    break
        if torch.is_grad_enabled() and (flat.requires_grad or self.law.log_snr(self.times[:1]).requires_grad):
            log_time = self._newton(log_time, flat)[0]
        found = torch.where(given == torch.inf, 0.0, log_time.exp())
        return found.clamp(max=self.law.horizon).reshape(level.shape)

    def _newton(self, log_time: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The Newton step from ``log t``, and whether λ there is above the level."""
        t = log_time.exp().clamp(max=self.law.horizon)
        slope = t * self.law.log_snr_rate(t)
        excess = self.law.log_snr(t) - level
        return log_time - excess / slope, excess > 0


def same_values(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Whether two sequences of tensors hold the same."""
    return len(before) == len(now) and all(
        a.device == b.device and torch.equal(a, b) for a, b in zip(before, now, strict=True)
    )
