r"""A time change that is learned: a monotone network of positive weights, with its derivative in closed form.

.. math:: B(t) = \sum_i b_i F_i(t), \qquad b_i = b\,\mathrm{softmax}_i(\omega) > 0, \qquad
          F_0(t) = t/T, \quad F_i(t) = \frac{S(a_i t - c_i) - S(-c_i)}{S(a_i T - c_i) - S(-c_i)},

S the logistic function and :math:`a_i > 0`: a layer of sigmoids and a linear unit, as the monotone network of
variational diffusion models (Kingma et al. 2021, arXiv 2107.00630, appendix H). β = dB/dt is a positive
mixture of bumps on a positive floor, and mixtures of logistic densities approximate every density on [0, T].
Differences do not cancel:
:math:`S(y) - S(x) = S(y)\,S(-x)\,(1 - e^{-(y-x)})`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from spatialdiff.processes.schedules import BetaSchedule, LinearBeta, positive

#: safeguarded Newton steps; half of the bracket is the least that one gains
STEPS = 60


class LearnedBeta(BetaSchedule):
    """β(t) > 0 as a monotone network whose every parameter is trained; ``total`` is B(T), learned as well.

    Args:
        total: B(T) at the start. horizon: T.
        units: sigmoids of the network.
        start: the schedule whose β(t)/B(T) the network starts next to; linear from 0.1 to 20 in proportion
            by default, as VP's.

    Raises:
        ValueError: a total or horizon that is not positive, no units, a ``start`` with another horizon.
    """

    def __init__(
        self,
        total: float = 10.05,
        horizon: float = 1.0,
        *,
        units: int = 16,
        start: BetaSchedule | None = None,
    ) -> None:
        super().__init__(horizon)
        if int(units) != units or units < 1:
            raise ValueError(f"units={units!r}; the network needs a whole number of sigmoids from 1 on")
        shape = LinearBeta(0.1, 20.0, self.horizon) if start is None else start
        if shape.horizon != self.horizon:
            raise ValueError(f"start has horizon {shape.horizon:g} and the schedule {self.horizon:g}")
        share, centres = start_of(shape, int(units))
        width = self.horizon / units
        slopes = torch.full((units,), 3.0 / width, dtype=torch.float64)
        self.log_total = nn.Parameter(torch.tensor(math.log(positive("total", total)), dtype=torch.float64))
        self.log_weights = nn.Parameter(share.log())
        self.log_slopes = nn.Parameter(slopes.log())
        self.centres = nn.Parameter(centres)

    @property
    def total(self) -> Tensor:
        return self.log_total.double().exp()

    def _units(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b_0 ``()``, b_i, a_i and the centres c_i/a_i ``(units,)``, float64."""
        weights = self.total * torch.softmax(self.log_weights.double(), dim=0)
        return weights[0], weights[1:], self.log_slopes.double().exp(), self.centres.double()

    def _log_scale(self, slopes: Tensor, centres: Tensor) -> Tensor:
        """``log(S(a T - c) - S(-c))``."""
        end = logsigmoid(slopes * (self.horizon - centres)) + logsigmoid(slopes * centres)
        return end + torch.log(-torch.expm1(-slopes * self.horizon))

    def _times(self, t: Tensor) -> Tensor:
        return t.to(device=self.log_total.device, dtype=torch.float64)

    def rate(self, t: Tensor) -> Tensor:
        floor, weights, slopes, centres = self._units()
        z = slopes * (self._times(t)[..., None] - centres)
        bumps = torch.exp(logsigmoid(z) + logsigmoid(-z) - self._log_scale(slopes, centres))
        return floor / self.horizon + (weights * slopes * bumps).sum(-1)

    def integral(self, t: Tensor) -> Tensor:
        return self.between(torch.zeros_like(t), t)

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        floor, weights, slopes, centres = self._units()
        early, late = self._times(s), self._times(t)
        length = (late - early)[..., None]
        before, after = slopes * (early[..., None] - centres), slopes * (late[..., None] - centres)
        level = torch.exp(logsigmoid(after) + logsigmoid(-before) - self._log_scale(slopes, centres))
        gained = (weights * level * -torch.expm1(-slopes * length)).sum(-1)
        return floor * (late - early) / self.horizon + gained

    def time_of_integral(self, b: Tensor) -> Tensor:
        """t with B(t) = ``b``; its first derivatives, in b and in the parameters, are those of the root.

        Raises ``ValueError`` for ``b`` outside ``[0, B(T)]`` by more than rounding.
        """
        level = self._times(b)
        with torch.no_grad():
            total = float(self.total)
            if level.numel() and not bool(((level >= -1e-9 * total) & (level <= (1 + 1e-9) * total)).all()):
                raise ValueError(
                    f"B(t) = {float(level.min()):g} … {float(level.max()):g} was asked for; this schedule "
                    f"reaches from 0 to {total:g}"
                )
            root = self._solve(level.clamp(0.0, total))
            slope = self.rate(root)
        # the implicit function theorem: dt = (db - ∂B/∂θ dθ)/β
        return (root + (level - self.integral(root)) / slope).clamp(0.0, self.horizon)

    def _solve(self, level: Tensor) -> Tensor:
        low, high = torch.zeros_like(level), torch.full_like(level, self.horizon)
        t = 0.5 * (low + high)
        for _ in range(STEPS):
            excess = self.integral(t) - level
            low, high = torch.where(excess < 0, t, low), torch.where(excess > 0, t, high)
            newton = t - excess / self.rate(t)
            inside = (newton >= low) & (newton <= high)
            following = torch.where(inside, newton, 0.5 * (low + high))
            if bool(((following - t).abs() <= 1e-16 * self.horizon + 2e-16 * t).all()):
                break
            t = following
        return t

    def __repr__(self) -> str:
        units = len(self.centres)
        return f"LearnedBeta(total={float(self.total.detach()):g}, horizon={self.horizon:g}, units={units})"


def start_of(schedule: BetaSchedule, units: int) -> tuple[Tensor, Tensor]:
    """Shares of B(T) ``(1 + units,)``, the linear unit's first, and the centres of the others ``(units,)``.

    Each unit carries what the schedule gains on its part of [0, T] above its smallest rate.
    """
    with torch.no_grad():
        edges = torch.linspace(0.0, schedule.horizon, units + 1, dtype=torch.float64)
        gains = schedule.between(edges[:-1], edges[1:]).double()
        smallest = float(
            schedule.rate(torch.linspace(0, 1, 201, dtype=torch.float64) * schedule.horizon).min()
        )
        # a floor under every share, so that no unit starts without a gradient
        floor = max(smallest * schedule.horizon, 1e-3 * float(gains.sum()))
        rest = (gains - floor / units).clamp(min=1e-3 * float(gains.sum()) / units)
        share = torch.cat([torch.tensor([floor], dtype=torch.float64), rest])
    return share / share.sum(), 0.5 * (edges[:-1] + edges[1:])
