r"""Time changes: the rate β(t) at which a process runs, its integral and the inverse of the integral.

A linear noise process :math:`du = \beta(t) A u\,dt + \sqrt{\beta(t)}\,\Gamma^{1/2} dW` sees
time only through

.. math:: B(t) = \int_0^t \beta(r)\,dr, \qquad t \in [0, T],

so a schedule is the three functions :math:`\beta`, :math:`B` and :math:`B^{-1}`,
in float64 and differentiable in ``t``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


def positive(name: str, value: float) -> float:
    """Return ``value`` as a float; raise ``ValueError`` naming it unless it is positive and finite."""
    number = float(value)
    if not (math.isfinite(number) and number > 0.0):
        raise ValueError(f"{name} was {value!r}; it must be a positive, finite number")
    return number


def as_times(t: Tensor | float, horizon: float, name: str = "t") -> Tensor:
    """Return ``t`` as a float64 tensor inside ``[0, horizon]``.

    Round-off of one part in 10⁹ of the horizon is clamped; anything further out raises ``ValueError``.
    """
    times = torch.as_tensor(t, dtype=torch.float64)
    slack = 1e-9 * horizon
    inside = (times >= -slack) & (times <= horizon + slack)
    if not bool(inside.all()):
        worst = times[~inside].flatten()[0].item()
        raise ValueError(f"{name} contains {worst!r}; times of this process lie in [0, {horizon:g}]")
    return times.clamp(0.0, horizon)


class BetaSchedule(nn.Module, ABC):
    """A rate β(t) ≥ 0 on ``[0, horizon]``; ``integral`` is B(t) and ``time_of_integral`` its inverse.

    A module, so that what a schedule learns is a parameter of the process that runs by it.
    """

    def __init__(self, horizon: float) -> None:
        super().__init__()
        self.horizon = positive("horizon", horizon)

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """β(t), shape of ``t``."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """B(t), shape of ``t``."""

    @abstractmethod
    def time_of_integral(self, b: Tensor) -> Tensor:
        """The time t at which B(t) = ``b``, shape of ``b``."""

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        """B(t) - B(s); families override it where the difference of the integrals would cancel."""
        return self.integral(t) - self.integral(s)

    @property
    def total(self) -> Tensor:
        """B(T), a float64 scalar."""
        return self.integral(torch.tensor(self.horizon, dtype=torch.float64))


class ConstantBeta(BetaSchedule):
    """β(t) = ``beta``, so B(t) = β t."""

    def __init__(self, beta: float = 1.0, horizon: float = 1.0) -> None:
        super().__init__(horizon)
        self.beta = positive("beta", beta)

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.beta, dtype=torch.float64)

    def integral(self, t: Tensor) -> Tensor:
        return self.beta * t

    def time_of_integral(self, b: Tensor) -> Tensor:
        return b / self.beta

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        return self.beta * (t - s)

    def __repr__(self) -> str:
        return f"ConstantBeta(beta={self.beta:g}, horizon={self.horizon:g})"


class LinearBeta(BetaSchedule):
    r"""β(t) = β_min + (β_max - β_min) t/T (Song et al. 2021, arXiv 2011.13456, equation 32)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, horizon: float = 1.0) -> None:
        super().__init__(horizon)
        self.beta_min = positive("beta_min", beta_min)
        self.beta_max = positive("beta_max", beta_max)

    @property
    def _slope(self) -> float:
        return (self.beta_max - self.beta_min) / self.horizon

    def rate(self, t: Tensor) -> Tensor:
        return self.beta_min + self._slope * t

    def integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * self._slope * t)

    def time_of_integral(self, b: Tensor) -> Tensor:
        # the root of β_min t + slope t²/2 = b in the form that does not cancel for small b
        return 2.0 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * self._slope * b))

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        return (t - s) * (self.beta_min + 0.5 * self._slope * (s + t))

    def __repr__(self) -> str:
        return f"LinearBeta({self.beta_min:g}, {self.beta_max:g}, horizon={self.horizon:g})"


class GeometricBeta(BetaSchedule):
    r"""The time change of VE: B(t) = σ²(t) - σ²(0) with σ(t) = σ_min (σ_max/σ_min)^{t/T}.

    Song et al. 2021, arXiv 2011.13456, equation 30; β = dσ²/dt.
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, horizon: float = 1.0) -> None:
        super().__init__(horizon)
        self.sigma_min = positive("sigma_min", sigma_min)
        self.sigma_max = positive("sigma_max", sigma_max)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"sigma_max was {sigma_max!r} and sigma_min {sigma_min!r}; sigma_max must be the larger"
            )

    @property
    def _growth(self) -> float:
        return 2.0 * math.log(self.sigma_max / self.sigma_min) / self.horizon

    def rate(self, t: Tensor) -> Tensor:
        return self.sigma_min**2 * self._growth * torch.exp(self._growth * t)

    def integral(self, t: Tensor) -> Tensor:
        return self.sigma_min**2 * torch.expm1(self._growth * t)

    def time_of_integral(self, b: Tensor) -> Tensor:
        return torch.log1p(b / self.sigma_min**2) / self._growth

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        return self.sigma_min**2 * torch.exp(self._growth * s) * torch.expm1(self._growth * (t - s))

    def __repr__(self) -> str:
        return f"GeometricBeta({self.sigma_min:g}, {self.sigma_max:g}, horizon={self.horizon:g})"


class CosineBeta(BetaSchedule):
    r"""The cosine schedule: ``e^{-B/2} = cos θ(t)/cos θ_0``, θ linear in t, with an end at a finite B.

    ``θ_0 = πs/(2(1+s))``, s = ``offset`` (Nichol & Dhariwal 2021, arXiv 2102.09672, equation 17); θ(T) is
    where ``e^{-B/2}``, the signal left in VP, is ``end``. ``β = 2 θ' tan θ``.
    """

    def __init__(self, offset: float = 0.008, end: float = 5e-3, horizon: float = 1.0) -> None:
        super().__init__(horizon)
        self.offset = positive("offset", offset)
        self.end = positive("end", end)
        if self.end >= 1.0:
            raise ValueError(f"end was {end!r}; it is the share of the signal left at the horizon, below 1")
        self._first = 0.5 * math.pi * self.offset / (1.0 + self.offset)
        self._speed = (math.acos(self.end * math.cos(self._first)) - self._first) / self.horizon

    def _angle(self, t: Tensor) -> Tensor:
        return self._first + self._speed * t

    def rate(self, t: Tensor) -> Tensor:
        return 2.0 * self._speed * torch.tan(self._angle(t))

    def integral(self, t: Tensor) -> Tensor:
        return self.between(torch.zeros_like(t), t)

    def time_of_integral(self, b: Tensor) -> Tensor:
        # sin(θ - θ_0) = (sin²θ - sin²θ_0)/sin(θ + θ_0), whose numerator is cos²θ_0 (1 - e^{-b})
        sine, cosine = math.sin(self._first), math.cos(self._first)
        here = cosine * torch.exp(-0.5 * b)
        gained = -(cosine**2) * torch.expm1(-b)
        there = torch.sqrt(sine**2 + gained)
        ahead = torch.atan2(gained / (there * cosine + here * sine), here * cosine + there * sine)
        return ahead / self._speed

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        # cos θ_t/cos θ_s = cos d - tan θ_s sin d
        d = self._speed * (t - s)
        lost = 2.0 * torch.sin(0.5 * d) ** 2 + torch.tan(self._angle(s)) * torch.sin(d)
        return -2.0 * torch.log1p(-lost)

    def __repr__(self) -> str:
        return f"CosineBeta(offset={self.offset:g}, end={self.end:g}, horizon={self.horizon:g})"


class ReversedBeta(BetaSchedule):
    """β(T - t) of another schedule: the same process with time run backward."""

    def __init__(self, schedule: BetaSchedule) -> None:
        super().__init__(schedule.horizon)
        self.schedule = schedule

    def rate(self, t: Tensor) -> Tensor:
        return self.schedule.rate(self.horizon - t)

    def integral(self, t: Tensor) -> Tensor:
        return self.between(torch.zeros_like(t), t)

    def time_of_integral(self, b: Tensor) -> Tensor:
        total = self.schedule.integral(torch.full_like(b, self.horizon))
        return self.horizon - self.schedule.time_of_integral(total - b)

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        return self.schedule.between(self.horizon - t, self.horizon - s)

    def __repr__(self) -> str:
        return f"ReversedBeta({self.schedule!r})"
