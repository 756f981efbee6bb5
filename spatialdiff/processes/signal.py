r"""Noise processes with one variable per site, given by their signal and noise over time.

.. math:: du = f(t)\,u\,dt + g(t)\,\Gamma^{1/2} dW, \qquad u_0 = x,
          \qquad u_t \mid x \sim N(\alpha_t x, \sigma_t^2\,\Gamma).

α and σ may differ from mode to mode of a basis in which Γ is diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.processes.base import Times
from spatialdiff.processes.marginals import weighted_mean
from spatialdiff.processes.modes import check_basis
from spatialdiff.processes.named_paths import EDMPath, SubVPPath
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.paths import CosinePath, LinearPath, RectifiedPath, SignalPath
from spatialdiff.processes.scalar import ScalarLaw
from spatialdiff.processes.schedules import BetaSchedule, ConstantBeta, GeometricBeta, LinearBeta, positive


class SignalProcess(ScalarLaw, NoiseProcess):
    r"""The process of a signal path (α_t, σ_t) with spatial covariance Γ (``gamma``).

    ``schedule`` is the path: ``schedule.rate(t)`` is g², ``schedule.integral(t)`` its integral (β and B(t)
    for the processes with a β schedule). Where the path differs from mode to mode it names the ``basis`` of
    the modes; Γ must be diagonal in it, else ``ValueError``.
    """

    def __init__(self, gamma: Covariance, schedule: SignalPath) -> None:
        super().__init__(gamma, schedule.horizon)
        self.schedule = schedule
        basis: Basis | None = getattr(schedule, "basis", None)
        if basis is not None:
            self.basis = check_basis(gamma, basis, type(self).__name__)

    def alpha(self, t: Times) -> Tensor:
        return self.schedule.alpha(self.times(t))

    def variance(self, t: Times) -> Tensor:
        return self.schedule.variance(self.times(t))

    def alpha_rate(self, t: Times) -> Tensor:
        return self.schedule.alpha_rate(self.times(t))

    def sigma_rate(self, t: Times) -> Tensor:
        return self.schedule.sigma_rate(self.times(t))

    def log_snr(self, t: Times) -> Tensor:
        return self.schedule.log_snr(self.times(t))

    def log_snr_rate(self, t: Times) -> Tensor:
        # 2α̇/α - 2σ̇/σ = -g²/σ²
        times = self.times(t)
        return -weighted_mean(self.schedule.rate(times) / self.schedule.variance(times), self.basis)

    def time_of_log_snr(self, log_snr: Times) -> Tensor:
        level = torch.as_tensor(log_snr, dtype=torch.float64)
        return self.schedule.time_of_log_snr(level).clamp(0.0, self.horizon)

    def transition(self, s: Times, t: Times) -> tuple[Tensor, Tensor]:
        phi, sigma = self.schedule.transition(*self.ordered(s, t, ("s", "t")))
        return phi[..., None, None], sigma[..., None, None]

    def step(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        s, t = self.ordered(s, t, ("s", "t"))
        phi, sigma = self.schedule.transition(s, t)
        total, before = self.schedule.variance(t), self.schedule.variance(s)
        # with q = Σ(s,t)/Σ_t: A = Φ Σ_s/Σ_t, b = α_s q, V = Σ_s q, and no difference is taken
        same = (s == t).reshape((*s.shape, *[1] * (total.ndim - s.ndim)))
        safe = torch.where(total == 0, torch.ones_like(total), total)
        ratio = torch.where(same, torch.zeros_like(total), sigma / safe)
        keep = torch.where(same, torch.ones_like(total), phi * before / safe)
        return keep, self.schedule.alpha(s) * ratio, before * ratio

    @property
    def stationary(self) -> Tensor | None:
        """``1/(2θ)`` for Ornstein–Uhlenbeck processes (1 for VP); None for the others."""
        path = self.schedule
        if isinstance(path, LinearPath) and path.theta > 0.0:
            return torch.full((1, 1), 0.5 / path.theta, dtype=torch.float64, device=self.covariance.device)
        return None

    @property
    def sde_start_time(self) -> float:
        return self.schedule.sde_limit

    def _inside_sde(self, t: Times) -> Tensor:
        times = self.times(t)
        if self.schedule.sde_limit < self.horizon and bool((times >= self.horizon).any()):
            raise ValueError(
                f"the SDE of {type(self).__name__} is singular at t = {self.horizon:g}, where alpha is 0; "
                f"start an SDE solver at sde_start_time = {self.sde_start_time:.4f}, "
                "or use posterior steps or the velocity"
            )
        return times

    def drift_matrix(self, t: Times) -> Tensor:
        return self.schedule.drift_rate(self._inside_sde(t))[..., None, None]

    def diffusion_matrix(self, t: Times) -> Tensor:
        return self.schedule.rate(self._inside_sde(t))[..., None, None]

    def diffusion(self, t: Times) -> Tensor:
        return self.schedule.rate(self._inside_sde(t)).sqrt()


class VP(SignalProcess):
    """Variance preserving: ``du = -β/2 u dt + √β Γ^{1/2} dW``, β linear; stationary law N(0, Γ).

    Song et al. 2021, arXiv 2011.13456, equation 11. ``schedule`` replaces the linear β.
    """

    def __init__(
        self,
        gamma: Covariance,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        *,
        schedule: BetaSchedule | None = None,
    ) -> None:
        beta = LinearBeta(beta_min, beta_max) if schedule is None else schedule
        super().__init__(gamma, LinearPath(beta, theta=0.5))


class VE(SignalProcess):
    """Variance exploding: α = 1, σ_t² = σ²(t) - σ²(0) with σ(t) = σ_min (σ_max/σ_min)^t.

    Song et al. 2021, arXiv 2011.13456, equation 9: Brownian motion under B(t) = σ²(t) - σ²(0). Standard
    deviations are in units of Γ's: with Γ of unit variance they are those of the noise at one site.
    """

    def __init__(self, gamma: Covariance, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__(gamma, LinearPath(GeometricBeta(sigma_min, sigma_max), theta=0.0))


class SubVP(SignalProcess):
    """Less noise than VP with the same signal: α = e^{-B/2}, σ = 1 - e^{-B}, β linear; see ``SubVPPath``.

    Song et al. 2021, arXiv 2011.13456, equation 27. ``schedule`` replaces the linear β.
    """

    def __init__(
        self,
        gamma: Covariance,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        *,
        schedule: BetaSchedule | None = None,
    ) -> None:
        super().__init__(gamma, SubVPPath(LinearBeta(beta_min, beta_max) if schedule is None else schedule))


class EDM(SignalProcess):
    """α = 1, σ = t on [0, sigma_max]: time is the noise level (Karras et al. 2022, arXiv 2206.00364).

    Standard deviations are in units of Γ's, and of the data's: the start has no trace of data of unit
    variance at the default.
    """

    def __init__(self, gamma: Covariance, sigma_max: float = 80.0) -> None:
        super().__init__(gamma, EDMPath(sigma_max))


class Cosine(SignalProcess):
    """α = cos(πt/2), σ = sin(πt/2) on [0, 1]; see ``CosinePath`` for the source and the end at t = 1."""

    def __init__(self, gamma: Covariance) -> None:
        super().__init__(gamma, CosinePath())


class Rectified(SignalProcess):
    """α = 1 - t, σ = t on [0, 1], velocity target η - x; see ``RectifiedPath`` for the source."""

    def __init__(self, gamma: Covariance) -> None:
        super().__init__(gamma, RectifiedPath())

    def velocity_weights(self, t: Times) -> tuple[Tensor, Tensor]:
        times = self.times(t)
        return -torch.ones_like(times), torch.ones_like(times)


class BrownianMotion(SignalProcess):
    """``du = √β Γ^{1/2} dW`` on ``[0, horizon]``, β = 1 or the given ``schedule``: α = 1, σ² = B(t).

    The data do not fade (α = 1): the start ``N(0, B(T) Γ)`` is close to the law of u_T only where B(T) Γ is
    large against the covariance of the data; else pass the data's own law, ``start(..., data=(mean,
    covariance))``.
    """

    def __init__(
        self, gamma: Covariance, horizon: float = 1.0, *, schedule: BetaSchedule | None = None
    ) -> None:
        beta = ConstantBeta(1.0, horizon) if schedule is None else schedule
        super().__init__(gamma, LinearPath(beta, theta=0.0))


class OrnsteinUhlenbeck(SignalProcess):
    """``du = -rate β u dt + √β Γ^{1/2} dW``: stationary law N(0, Γ/(2 rate)), β = 1 by default.

    ``rate`` is θ > 0 of the reversion -θ u (theory's α is -θ): 0.5 has the stationary law N(0, Γ). The
    default horizon leaves α_T = e^{-5}, as VP does.
    """

    def __init__(
        self,
        gamma: Covariance,
        rate: float = 0.5,
        horizon: float = 10.0,
        *,
        schedule: BetaSchedule | None = None,
    ) -> None:
        beta = ConstantBeta(1.0, horizon) if schedule is None else schedule
        super().__init__(gamma, LinearPath(beta, theta=positive("rate", rate)))
