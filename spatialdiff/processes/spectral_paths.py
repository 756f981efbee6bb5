r"""Signal paths that differ from mode to mode of a basis: ``u_k(t) | x ~ N(α_k(t) x_k, σ_k²(t) γ_k)``.

*The stochastic heat equation*: :math:`\alpha_k = e^{-\theta_k B}`,
:math:`\sigma_k^2 = (1 - e^{-2\theta_k B})/(2\theta_k)`, :math:`\theta_k = \kappa\lambda_k + \theta`.

*Heat dissipation*, also blurring diffusion (Rissanen et al. 2022, arXiv 2206.13397; Hoogeboom & Salimans
2023, arXiv 2209.05557, equations 11 to 16): a scalar path (a, σ) whose signal the heat equation blurs,

.. math:: \alpha_k = a\,d_k, \qquad d_k = (1-m)\,e^{-\lambda_k\tau(t)} + m, \qquad \sigma_k = \sigma,

and with r = d_k(t)/d_k(s), :math:`\Sigma_k(s,t) = \Sigma(s,t) + \Phi(s,t)^2 \sigma_s^2 (1 - r^2)`.

*Frequency-dependent variance preservation*: :math:`\alpha_k^2 + \sigma_k^2 = 1`,
:math:`\alpha_k = e^{-B_k/2}`, :math:`B_k(t) = \sum_j w_{jk} B_j(t)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spatialdiff.covariance.basis import Basis
from spatialdiff.processes.modal_path import ModalPath
from spatialdiff.processes.paths import SignalPath, relative_expm1
from spatialdiff.processes.schedules import BetaSchedule, positive

#: nodes of the quadrature of g²
QUADRATURE = 96


class SineBlur(BetaSchedule):
    """The heat time ``τ(t) = ½ w² sin⁴(πt/2T)``: blur of width w at the horizon, in units of length.

    Hoogeboom & Salimans 2023, arXiv 2209.05557, section 4.
    """

    def __init__(self, width: float, horizon: float = 1.0) -> None:
        super().__init__(horizon)
        self.width = positive("width", width)

    def _sine(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi / self.horizon * t)

    def rate(self, t: Tensor) -> Tensor:
        cosine = torch.sin(0.5 * math.pi / self.horizon * (self.horizon - t))
        return self.width**2 * self._sine(t) ** 3 * cosine * (math.pi / self.horizon)

    def integral(self, t: Tensor) -> Tensor:
        return 0.5 * self.width**2 * self._sine(t) ** 4

    def time_of_integral(self, b: Tensor) -> Tensor:
        # asin(s) as atan2, exact towards the horizon
        square = torch.sqrt(2.0 * b) / self.width
        return torch.atan2(square.sqrt(), (1.0 - square).clamp(min=0.0).sqrt()) * (
            2.0 * self.horizon / math.pi
        )

    def between(self, s: Tensor, t: Tensor) -> Tensor:
        gained = self._sine(t + s) * self._sine(t - s)  # sin² t - sin² s
        return 0.5 * self.width**2 * gained * (self._sine(t) ** 2 + self._sine(s) ** 2)

    def __repr__(self) -> str:
        return f"SineBlur({self.width:g}, horizon={self.horizon:g})"


class HeatPath(ModalPath):
    """Signal and noise of ``path``, the signal blurred by the heat equation for the time τ(t) of ``blur``.

    Args:
        path: the scalar path (a, σ). blur: τ(t) as a schedule, with the horizon of the path.
        eigenvalues: λ_k of -Δ, shape ``basis.modes``. basis: of the modes.
        floor: m in [0, 1), the share of the signal that is not blurred.

    Raises:
        ValueError: horizons that differ, a floor out of range.
    """

    def __init__(
        self, path: SignalPath, blur: BetaSchedule, eigenvalues: Tensor, basis: Basis, floor: float = 0.0
    ) -> None:
        if path.horizon != blur.horizon:
            raise ValueError(f"the path has horizon {path.horizon:g} and the blur {blur.horizon:g}")
        if path.basis is not None:
            raise ValueError(f"{path!r} differs from mode to mode already; blur a scalar path")
        if not 0.0 <= floor < 1.0:
            raise ValueError(f"floor={floor!r}; the share of the signal that is not blurred is in [0, 1)")
        super().__init__(path.horizon, basis, eigenvalues)
        self.path, self.blur, self.floor = path, blur, float(floor)
        self.sde_limit = path.sde_limit

    def _gone(self, t: Tensor) -> Tensor:
        """``(1 - m) e^{-λτ}``."""
        return (1.0 - self.floor) * torch.exp(-self.table * self.blur.integral(self.spread(t)))

    def _fade(self, t: Tensor) -> Tensor:
        """``-d'/d``."""
        rate = self.table * self.blur.rate(self.spread(t))
        if self.floor == 0.0:
            return rate
        gone = self._gone(t)
        return rate * gone / (gone + self.floor)

    def alpha(self, t: Tensor) -> Tensor:
        return self.path.alpha(self.spread(t)) * (self._gone(t) + self.floor)

    def variance(self, t: Tensor) -> Tensor:
        return self._each(self.path.variance(self.spread(t)))

    def alpha_rate(self, t: Tensor) -> Tensor:
        wide = self.spread(t)
        gone = self._gone(t)
        falling = self.table * self.blur.rate(wide) * gone
        return self.path.alpha_rate(wide) * (gone + self.floor) - self.path.alpha(wide) * falling

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self._each(self.path.sigma_rate(self.spread(t)))

    def levels(self, t: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        path = self.path
        plain = 2.0 * (path.alpha_rate(t) / path.alpha(t) - path.sigma_rate(t) / path.variance(t).sqrt())
        heat, rate = table * self.blur.integral(t), table * self.blur.rate(t)
        if self.floor == 0.0:
            return path.log_snr(t) - 2.0 * heat, plain - 2.0 * rate
        gone = (1.0 - self.floor) * torch.exp(-heat)
        kept = gone + self.floor
        return path.log_snr(t) + 2.0 * torch.log(kept), plain - 2.0 * rate * gone / kept

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        early, late = self.spread(s), self.spread(t)
        phi, sigma = self.path.transition(early, late)
        length = self.table * self.blur.between(early, late)
        if self.floor == 0.0:
            ratio, lost = torch.exp(-length), -torch.expm1(-2.0 * length)
        else:
            before, after = self._gone(s) + self.floor, self._gone(t) + self.floor
            ratio = after / before
            lost = -self._gone(s) * torch.expm1(-length) * (before + after) / before.square()
        return phi * ratio, sigma + phi.square() * self.path.variance(early) * lost

    def drift_rate(self, t: Tensor) -> Tensor:
        return self.path.drift_rate(self.spread(t)) - self._fade(t)

    def rate(self, t: Tensor) -> Tensor:
        return self.path.rate(self.spread(t)) + 2.0 * self.variance(t) * self._fade(t)

    def integral(self, t: Tensor) -> Tensor:
        """∫₀ᵗ g²: that of the path in closed form, and what blurring adds by Gauss–Legendre quadrature."""
        from scipy.special import roots_legendre

        nodes, weights = (torch.from_numpy(v).to(t) for v in roots_legendre(QUADRATURE))
        added = torch.zeros((), dtype=torch.float64, device=self.table.device)
        for node, weight in zip(nodes, weights, strict=True):
            at = 0.5 * (1.0 + node) * t
            added = added + weight * self.spread(t) * self.variance(at) * self._fade(at)
        return self.path.integral(self.spread(t)) + added

    def __repr__(self) -> str:
        return f"HeatPath({self.path!r}, {self.blur!r}, floor={self.floor:g})"


class FrequencyPath(ModalPath):
    """``α_k = e^{-B_k/2}``, ``σ_k² = 1 - e^{-B_k}``, ``B_k = Σ_j w_jk B_j``: VP with a schedule per mode.

    Args:
        schedules: B_j, of one horizon. weights: w_jk ≥ 0, ``(J, *modes)``. basis: of the modes.

    Raises:
        ValueError: horizons or numbers that differ, negative weights, a mode without noise.
    """

    def __init__(self, schedules: Sequence[BetaSchedule], weights: Tensor, basis: Basis) -> None:
        if len(schedules) == 0 or tuple(weights.shape) != (len(schedules), *basis.modes):
            raise ValueError(
                f"weights have shape {tuple(weights.shape)}; {len(schedules)} schedules on modes "
                f"{tuple(basis.modes)} need {(len(schedules), *basis.modes)}"
            )
        if len({schedule.horizon for schedule in schedules}) > 1:
            raise ValueError(f"schedules of different horizons: {[s.horizon for s in schedules]}")
        if not bool(torch.isfinite(weights).all()) or float(weights.min()) < 0.0:
            raise ValueError("a weight of a schedule is negative or not finite; noise only accumulates")
        if float(weights.sum(0).min()) == 0.0:
            raise ValueError("all schedules have weight 0 in some mode, which would never get any noise")
        super().__init__(schedules[0].horizon, basis, weights)
        self.schedules = nn.ModuleList(schedules)

    def _sum(self, of: Callable[[BetaSchedule], Tensor], table: Tensor | None = None) -> Tensor:
        weights = self.table if table is None else table
        parts = [w * of(s) for w, s in zip(weights, self.schedules, strict=True)]  # type: ignore[arg-type]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def integral(self, t: Tensor) -> Tensor:
        wide = self.spread(t)
        return self._sum(lambda schedule: schedule.integral(wide))

    def rate(self, t: Tensor) -> Tensor:
        wide = self.spread(t)
        return self._sum(lambda schedule: schedule.rate(wide))

    def _moments(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(-0.5 * b), b * relative_expm1(-b)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))

    def variance(self, t: Tensor) -> Tensor:
        return self._moments(self.integral(t))[1]

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.rate(t) * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        alpha, variance = self._moments(self.integral(t))
        return 0.5 * self.rate(t) * alpha.square() / variance.sqrt()

    def levels(self, t: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        b = self._sum(lambda schedule: schedule.integral(t), table)
        rate = self._sum(lambda schedule: schedule.rate(t), table)
        kept = -torch.expm1(-b)
        return -b - torch.log(kept), -rate / kept

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        early, late = self.spread(s), self.spread(t)
        return self._moments(self._sum(lambda schedule: schedule.between(early, late)))

    def drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.rate(t)

    def __repr__(self) -> str:
        return f"FrequencyPath({list(self.schedules)!r})"


class DecayPath(ModalPath):
    """``du_k = -θ_k β u_k dt + √(β γ_k) dW_k``: ``α = e^{-θb}``, ``σ² = (1 - e^{-2θb})/(2θ)``, b = B(t).

    Args:
        beta: β. decay: θ_k ≥ 0, shape ``basis.modes``. basis: of the modes.
    """

    def __init__(self, beta: BetaSchedule, decay: Tensor, basis: Basis) -> None:
        super().__init__(beta.horizon, basis, decay)
        self.beta = beta

    def _moments(self, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.exp(-self.table * b), b * relative_expm1(-2.0 * self.table * b)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.table * self.beta.integral(self.spread(t)))

    def variance(self, t: Tensor) -> Tensor:
        return self._moments(self.beta.integral(self.spread(t)))[1]

    def alpha_rate(self, t: Tensor) -> Tensor:
        return self.drift_rate(t) * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        alpha, variance = self._moments(self.beta.integral(self.spread(t)))
        return 0.5 * self.beta.rate(self.spread(t)) * alpha.square() / variance.sqrt()

    def levels(self, t: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        b = self.beta.integral(t)
        variance = b * relative_expm1(-2.0 * table * b)
        # 2θσ² + α² = 1
        return -2.0 * table * b - torch.log(variance), -self.beta.rate(t) / variance

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return self._moments(self.beta.between(self.spread(s), self.spread(t)))

    def drift_rate(self, t: Tensor) -> Tensor:
        return -self.table * self.beta.rate(self.spread(t))

    def rate(self, t: Tensor) -> Tensor:
        return self._each(self.beta.rate(self.spread(t)))

    def integral(self, t: Tensor) -> Tensor:
        return self._each(self.beta.integral(self.spread(t)))

    def __repr__(self) -> str:
        return f"DecayPath({self.beta!r})"
