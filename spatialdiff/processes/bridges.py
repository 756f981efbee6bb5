r"""Bridges: the reference process pinned at both ends, noise on the way from ``x_0`` to the data ``x_τ``.

For the reference :math:`dX = -\theta\beta X\,dt + \sqrt\beta\,\Gamma^{1/2}dW` with

.. math:: a(s,t) = e^{-\theta (B(t)-B(s))}, \qquad v(s,t) = \frac{1 - e^{-2\theta (B(t)-B(s))}}{2\theta}
          \quad (B(t)-B(s) \text{ where } \theta = 0),

the bridge is :math:`X_t \sim N(c_0 x_0 + c_\tau x_\tau, v_b\,\Gamma)` with

.. math:: c_0 = \frac{a(0,t)\,v(t,\tau)}{v(0,\tau)}, \qquad
          c_\tau = \frac{v(0,t)\,a(t,\tau)}{v(0,\tau)}, \qquad v_b = \frac{v(0,t)\,v(t,\tau)}{v(0,\tau)}.

Mixing bridges over a coupling of the two ends gives a diffusion whose drift needs only the posterior mean
:math:`E[X_\tau \mid X_t]`: Γ cancels (Peluchetti, arXiv 2312.14589, the theorem on diffusion mixtures).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.processes.base import Dynamics, Times, expand
from spatialdiff.processes.paths import LinearPath
from spatialdiff.processes.schedules import BetaSchedule, ConstantBeta


class Pinned(Dynamics, ABC):
    """A process conditioned on its end, in one variable (``Bridge``) or in several (``LinearBridge``)."""

    @abstractmethod
    def path_rate(self, t: Times) -> Tensor:
        """κ(t) ``(*t, [modes])``: a data end off by e costs ``½ κ eᵀ Γ⁻¹ e`` per time of relative entropy.

        ``(w J)ᵀ Q (w J)`` for the drift ``Q w (J x_τ - …)``; for one variable ``β (a/v)²``. Infinite at the
        end, where it raises ``ValueError``.
        """


class Bridge(Pinned):
    """The bridge of the reference ``dX = -rate β X dt + √β Γ^{1/2} dW`` over ``[0, horizon]``.

    Args:
        gamma: the spatial covariance Γ.
        rate: θ of the reversion -θ X (theory's α is -θ; 0 is Brownian motion; negative values repel).
        schedule: β(t), whose horizon is the bridge's. Large β is a noisy bridge; β → 0 the straight line
            between the ends.
    """

    def __init__(self, gamma: Covariance, schedule: BetaSchedule, rate: float) -> None:
        super().__init__(gamma, schedule.horizon)
        if not math.isfinite(rate):
            raise ValueError(
                f"rate was {rate!r}; it must be finite (0.5 is the Ornstein–Uhlenbeck process of VP)"
            )
        self.schedule = schedule
        self.rate = float(rate)
        self.path = LinearPath(schedule, self.rate)

    def reference(self, s: Times, t: Times) -> tuple[Tensor, Tensor]:
        """The scalars a(s, t) and v(s, t) of the unpinned reference, ``s <= t``."""
        return self.path.transition(*self.ordered(s, t, ("s", "t")))

    def transition(self, s: Times, t: Times) -> tuple[Tensor, Tensor]:
        """a and v of the reference as matrices, ``(*t, 1, 1)`` each: ``X_t | X_s ~ N(a X_s, v Γ)``."""
        phi, sigma = self.reference(s, t)
        return phi[..., None, None], sigma[..., None, None]

    def coefficients(self, t: Times) -> tuple[Tensor, Tensor, Tensor]:
        """``(c_0, c_τ, v_b)`` of ``X_t | x_0, x_τ ~ N(c_0 x_0 + c_τ x_τ, v_b Γ)``, shaped as ``t``."""
        return self.posterior(0.0, t)

    def coefficient_rates(self, t: Times) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives in t of ``coefficients``."""
        t = self.times(t)
        beta = self.schedule.rate(t)
        a_0, v_0 = self.reference(0.0, t)
        a_1, v_1 = self.reference(t, self.horizon)
        total = self.reference(0.0, self.horizon)[1].to(t.device)
        # d v(0,t)/dt = β a(0,t)², d v(t,τ)/dt = -β a(t,τ)²
        rate_0 = -beta * a_0 * (self.rate * v_1 + a_1**2)
        rate_1 = beta * a_1 * (self.rate * v_0 + a_0**2)
        return rate_0 / total, rate_1 / total, beta * (a_0**2 * v_1 - v_0 * a_1**2) / total

    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        """The bridge step: scalars ``(A, b, V)`` of ``X_s | X_t, x_τ ~ N(A X_t + b x_τ, V Γ)``, ``t <= s``.

        At ``s = horizon`` they are exactly ``(0, 1, 0)``. What came before ``X_t`` does not matter (Markov).
        """
        t, s = self.ordered(t, s, ("t", "s"))
        a_step, v_step = self.path.transition(t, s)
        a_rest, v_rest = self.path.transition(s, torch.full_like(s, self.horizon))
        total = self.path.transition(t, torch.full_like(t, self.horizon))[1]
        pinned = total == 0  # t = s = horizon: already there
        total = torch.where(pinned, torch.ones_like(total), total)
        arrived = s >= self.horizon
        keep = a_step * v_rest / total
        pull = torch.where(arrived, torch.ones_like(s), v_step * a_rest / total)
        return keep, pull, v_step * v_rest / total

    def diffusion(self, t: Times) -> Tensor:
        """g(t) = √β(t)."""
        return self.schedule.rate(self.times(t)).sqrt()

    def _adjustment(self, t: Times) -> tuple[Tensor, Tensor]:
        t = self.times(t)
        a, v = self.reference(t, self.horizon)
        if bool((v <= 0).any()):
            raise ValueError(
                f"the drift of a bridge is singular at its end t = {self.horizon:g}; "
                "take the last step with the bridge solver (posterior), which returns the data exactly"
            )
        return a, self.schedule.rate(t) * a / v

    def path_rate(self, t: Times) -> Tensor:
        _, gain = self._adjustment(t)
        return gain.square() / self.schedule.rate(self.times(t))

    def drift_adjustment(self, x_t: Tensor, x1: Tensor, t: Times) -> Tensor:
        """β a(t,τ) (x_τ - a(t,τ) X_t)/v(t,τ), which is β Γ∇ log p(x_τ | X_t): what pulls towards the data."""
        a, gain = self._adjustment(t)
        return expand(gain, x_t) * (x1 - expand(a, x_t) * x_t)

    def drift_target(self, x_t: Tensor, x1: Tensor, t: Times) -> Tensor:
        """The full drift of the bridge, ``-rate β X_t + β a (x_τ - a X_t)/v``, a and v from t to the end.

        With ``E[x_τ | X_t]`` for ``x1`` it is the drift of the bridge mixture; Γ does not appear.
        Raises ``ValueError`` at the end, where it is singular.
        """
        pull = self.drift_adjustment(x_t, x1, t)
        return pull + expand(self.path.drift_rate(self.times(t)), x_t) * x_t

    def perturb(
        self,
        x0: Tensor,
        x1: Tensor,
        t: Times,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``X_t = c_0 x_0 + c_τ x_τ + √v_b η``; return ``(X_t, η)``, η ~ N(0, Γ), both shaped as ``x1``.

        Args:
            x0, x1: the two ends, ``(B, C, *grid)`` each; t: times, scalar or ``(B,)``.
            white: the white noise z of η = R z, see ``draw``; drawn with ``generator`` where absent.
        """
        self._check_ends(x0, x1)
        noise = self.draw(
            x1.shape[0], x1.shape[1], white=white, generator=generator, dtype=x1.dtype, device=x1.device
        )
        c_0, c_1, v = self.coefficients(t)
        state = expand(c_0, x1) * x0 + expand(c_1, x1) * x1 + expand(v.sqrt(), x1) * noise
        return state, noise

    def simulate(
        self,
        x0: Tensor,
        x1: Tensor,
        times: Tensor | Sequence[float],
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Exact paths from ``x0`` to ``x1`` at increasing ``times`` ``(T,)``: shape ``(T, B, C, *grid)``."""
        self._check_ends(x0, x1)
        grid = self.increasing(times)
        states = []
        state, before = x0, grid.new_zeros(())
        for i, now in enumerate(grid):
            keep, pull, v = self.posterior(before, now)
            noise = self.draw(
                x1.shape[0],
                x1.shape[1],
                white=None if white is None else white[i],
                generator=generator,
                dtype=x1.dtype,
                device=x1.device,
            )
            state = expand(keep, x1) * state + expand(pull, x1) * x1 + expand(v.sqrt(), x1) * noise
            states.append(state)
            before = now
        return torch.stack(states)

    def _check_ends(self, x0: Tensor, x1: Tensor) -> None:
        self.check_field(x0, "x0")
        self.check_field(x1, "x1")
        if x0.shape != x1.shape:
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)} and x1 {tuple(x1.shape)}; the two ends must match"
            )

    def extra_repr(self) -> str:
        return f"schedule={self.schedule!r}, rate={self.rate:g}"


class BrownianBridge(Bridge):
    """The bridge of ``dX = √β Γ^{1/2} dW``: c_τ = B(t)/B(τ), c_0 = 1 - c_τ, v_b = B(τ) c_0 c_τ.

    β = 1 on ``[0, horizon]``, or the given ``schedule`` (with its own horizon). As β → 0 the bridge becomes
    the straight line between the ends, the interpolant of flow matching, with a coloured source where x_0 is
    coloured.
    """

    def __init__(
        self, gamma: Covariance, horizon: float = 1.0, *, schedule: BetaSchedule | None = None
    ) -> None:
        super().__init__(gamma, ConstantBeta(1.0, horizon) if schedule is None else schedule, rate=0.0)


class OrnsteinUhlenbeckBridge(Bridge):
    """The bridge of ``dX = -rate β X dt + √β Γ^{1/2} dW``, β as for ``BrownianBridge``.

    ``rate`` 0.5 is theory's α = -1/2, whose stationary law is N(0, Γ).
    """

    def __init__(
        self,
        gamma: Covariance,
        horizon: float = 1.0,
        rate: float = 0.5,
        *,
        schedule: BetaSchedule | None = None,
    ) -> None:
        super().__init__(gamma, ConstantBeta(1.0, horizon) if schedule is None else schedule, rate=rate)
