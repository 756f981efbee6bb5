r"""Signal and noise over time: a scalar process is a pair (α_t, σ_t) of decreasing signal-to-noise ratio.

.. math:: u_t \mid u_s \sim N(\Phi u_s, \Sigma\,\Gamma), \qquad \Phi = \alpha_t/\alpha_s, \quad
          \Sigma = \sigma_t^2 - \Phi^2 \sigma_s^2,

the law of :math:`du = f u\,dt + g\,\Gamma^{1/2} dW` with :math:`f = \dot\alpha/\alpha` and
:math:`g^2 = d\sigma^2/dt - 2 f \sigma^2`. Each path writes Σ(s, t) in a form that does not cancel.
All is float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from spatialdiff.covariance.basis import Basis
from spatialdiff.processes.schedules import BetaSchedule, positive


def relative_expm1(z: Tensor) -> Tensor:
    """(e^z - 1)/z, which is 1 at z = 0, accurate for every z and differentiable."""
    zero = z == 0
    safe = torch.where(zero, torch.ones_like(z), z)
    return torch.where(zero, 1.0 + 0.5 * z, torch.expm1(safe) / safe)


class SignalPath(nn.Module, ABC):
    """α_t and σ_t² on ``[0, horizon]``, from (1, 0) at t = 0.

    A module, as its β schedule is. Coefficients have the shape of ``t``; those of a path that differs from
    mode to mode of a ``basis`` are ``(*t, *basis.modes)``, its ``log_snr`` their mean over the modes.
    """

    #: the basis of the modes, for a path that differs from mode to mode
    basis: Basis | None = None

    #: the last time at which f and g are finite enough for an SDE solver
    sde_limit: float

    def __init__(self, horizon: float) -> None:
        super().__init__()
        self.horizon = positive("horizon", horizon)
        self.sde_limit = self.horizon

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """α_t."""

    @abstractmethod
    def variance(self, t: Tensor) -> Tensor:
        """σ_t²."""

    @abstractmethod
    def alpha_rate(self, t: Tensor) -> Tensor:
        """dα_t/dt."""

    @abstractmethod
    def sigma_rate(self, t: Tensor) -> Tensor:
        """dσ_t/dt."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(α_t²/σ_t²)."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of ``log_snr``."""

    @abstractmethod
    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Φ(s, t) and Σ(s, t), ``s <= t``."""

    @abstractmethod
    def drift_rate(self, t: Tensor) -> Tensor:
        """f(t) = α̇_t/α_t, the coefficient of the linear drift."""

    @abstractmethod
    def rate(self, t: Tensor) -> Tensor:
        """g(t)², the squared diffusion (β(t) for VP, VE, Brownian motion and Ornstein–Uhlenbeck)."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """∫₀ᵗ g², the time change B(t)."""


class LinearPath(SignalPath):
    r"""``du = -θ β u dt + √β Γ^{1/2} dW``: Φ = e^{-θb}, Σ = (1 - e^{-2θb})/(2θ), b = B(t) - B(s).

    θ = 1/2 is VP, θ = 0 Brownian motion and VE, any other θ > 0 an Ornstein–Uhlenbeck process.
    """

    def __init__(self, beta: BetaSchedule, theta: float) -> None:
        super().__init__(beta.horizon)
        self.beta = beta
        self.theta = float(theta)

    @property
    def total(self) -> Tensor:
        """B(T)."""
        return self.beta.total

    def _moments(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(-self.theta * b), b * relative_expm1(-2.0 * self.theta * b)

    def alpha(self, t: Tensor) -> Tensor:
        return self._moments(self.beta.integral(t))[0]

    def variance(self, t: Tensor) -> Tensor:
        return self._moments(self.beta.integral(t))[1]

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -self.theta * self.beta.rate(t) * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        # dσ²/dt = β (1 - 2θσ²) = β α²
        alpha, variance = self._moments(self.beta.integral(t))
        return 0.5 * self.beta.rate(t) * alpha**2 / variance.sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        b = self.beta.integral(t)
        return -2.0 * self.theta * b - torch.log(self._moments(b)[1])

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # σ²/α² = (e^{2θB} - 1)/(2θ), so 2θB = log(1 + 2θ e^{-λ}), a softplus
        if self.theta == 0.0:
            b = torch.exp(-log_snr)
        else:
            shifted = math.log(2.0 * self.theta) - log_snr
            b = torch.logaddexp(shifted, torch.zeros_like(shifted)) / (2.0 * self.theta)
        return self.beta.time_of_integral(b.clamp(max=self.total.to(b.device)))

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._moments(self.beta.between(s, t))

    def drift_rate(self, t: Tensor) -> Tensor:
        return -self.theta * self.beta.rate(t)

    def rate(self, t: Tensor) -> Tensor:
        return self.beta.rate(t)

    def integral(self, t: Tensor) -> Tensor:
        return self.beta.integral(t)

    def __repr__(self) -> str:
        return f"LinearPath({self.beta!r}, theta={self.theta:g})"


class CosinePath(SignalPath):
    r"""α = cos(πt/2), σ = sin(πt/2) on [0, 1]: variance preserving, with β = π tan(πt/2).

    The plain cosine of Nichol & Dhariwal 2021 (arXiv 2102.09672, equation 17) without their offset, since the
    closed forms here need none at t = 0. Σ(s, t) = sin(π(t-s)/2) sin(π(t+s)/2)/cos²(πs/2). At t = 1, α = 0
    and the SDE is singular.
    """

    def __init__(self) -> None:
        super().__init__(1.0)
        # as much signal left (α = 0.005) as VP has at its own end
        self.sde_limit = 2.0 / math.pi * math.acos(5e-3)

    def _cos(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1.0 - t))

    def alpha(self, t: Tensor) -> Tensor:
        return self._cos(t)

    def variance(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t) ** 2

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * torch.sin(0.5 * math.pi * t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self._cos(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2.0 * (torch.log(self._cos(t)) - torch.log(torch.sin(0.5 * math.pi * t)))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-0.5 * log_snr)) * (2.0 / math.pi)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        cos_s = self._cos(s)
        at_end = cos_s == 0  # then s = t = 1
        safe = torch.where(at_end, torch.ones_like(cos_s), cos_s)
        half = 0.5 * math.pi
        sigma = torch.sin(half * (t - s)) * torch.sin(half * (t + s)).clamp(min=0.0) / safe**2
        return torch.where(at_end, torch.ones_like(cos_s), self._cos(t) / safe), sigma

    def drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.rate(t)

    def rate(self, t: Tensor) -> Tensor:
        return math.pi * torch.sin(0.5 * math.pi * t) / self._cos(t)

    def integral(self, t: Tensor) -> Tensor:
        return -2.0 * torch.log(self._cos(t))

    def __repr__(self) -> str:
        return "CosinePath()"


class RectifiedPath(SignalPath):
    r"""α = 1 - t, σ = t on [0, 1]: straight lines from data to noise (Liu et al. 2022, arXiv 2209.03003).

    f = -1/(1-t), g² = 2t/(1-t), Σ(s, t) = (t-s)(s+t-2st)/(1-s)². At t = 1, α = 0 and the SDE is singular.
    """

    def __init__(self) -> None:
        super().__init__(1.0)
        self.sde_limit = 1.0 - 5e-3

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def variance(self, t: Tensor) -> Tensor:
        return t**2

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2.0 * (torch.log1p(-t) - torch.log(t))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        left = 1.0 - s
        at_end = left == 0  # then s = t = 1
        safe = torch.where(at_end, torch.ones_like(left), left)
        sigma = (t - s) * (s * (1.0 - t) + t * (1.0 - s)) / safe**2
        return torch.where(at_end, torch.ones_like(left), (1.0 - t) / safe), sigma

    def drift_rate(self, t: Tensor) -> Tensor:
        return -1.0 / (1.0 - t)

    def rate(self, t: Tensor) -> Tensor:
        return 2.0 * t / (1.0 - t)

    def integral(self, t: Tensor) -> Tensor:
        return -2.0 * (torch.log1p(-t) + t)

    def __repr__(self) -> str:
        return "RectifiedPath()"
