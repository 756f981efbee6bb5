r"""Heun for the probability flow, along the angle between data and noise: order 2.

With `ρ = √(α² + σ²)`, `θ = atan2(σ, α)` and `v = (u - o)/ρ = x cos θ + η sin θ`, the flow of a law with K = 1
is

    dv/dθ = w(v, θ) = η̂ cos θ - D sin θ,      D = E[x | v],   η̂ = (v - D cos θ)/sin θ,

from `θ = π/2` (noise) to `θ = 0` (data), regular at both ends; in the time of a process it is singular where
`σ ~ √t`, in `σ/α` where there is no signal. One step is

    ṽ = v_t + (θ_s - θ_t) w_t,      v_s = v_t + (θ_s - θ_t)(w_t + w_s(ṽ))/2

(Heun as in Karras et al. 2022, arXiv 2206.00364, algorithm 1; the angle as in Lu & Song 2024, arXiv
2410.11081, section 3.)

For K > 1 the same of the statistic `y = α x + σ η̄`, `α = cos θ`, `σ = sin θ`: in the frame of the exact flow
M of data with the covariance of the noise (`processes.flow`, ρ = 1) what is left is `w` again,

    ũ = M u_t + W w_t,      u_s = M u_t + W (w_t + w_s(ũ))/2,      W = -∫ d(M(τ → s) φ)/sin θ

(offsets left out). Exact for every K where the data have the covariance of the noise, for then `w = 0`. Two
network calls a step, one in the last.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spatialdiff.sampling.base import Solver
from spatialdiff.sampling.path_flow import PathFlow


class Heun(PathFlow, Solver):
    """`v_s = v_t + (θ_s - θ_t)(w_t + w_s)/2`; order 2 in the largest step of `θ`."""

    order = 2
    deterministic = True
    frame = "angle"

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if self.law.variables > 1:
            return self.framed_step(u, t, s)
        scale = self.law.scale
        (radius, angle), (radius_s, angle_s) = self.polar(t), self.polar(s)
        turn = angle_s - angle
        v = scale(1.0 / radius, u - self.offset(t, u))
        first = self.slope(u, t)
        predicted = scale(radius_s, v + scale(turn, first)) + self.offset(s, u)
        v = v + scale(0.5 * turn, first + self.slope(predicted, s))
        return scale(radius_s, v) + self.offset(s, u)

    def framed_step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The step for K > 1."""
        found = self.flow_between(t, s)
        moved = self.mix(found.M, u - self.offset(t, u)) + self.offset(s, u)
        first = self.slope(u, t)
        # W of the flow belongs to r √(1 + I) = -w
        second = self.slope(moved - self.spread(found.W, first), s)
        return moved - self.spread(0.5 * found.W, first + second)

    def path(self, times: Tensor, u: Tensor) -> Iterator[Tensor]:
        # one variable has the angle instead of the flow
        return super().path(times, u) if self.law.variables > 1 else Solver.path(self, times, u)

    def ratios(self) -> Tensor:
        return torch.ones((), dtype=torch.float64)

    def polar(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`ρ` and `θ` at `t`."""
        # the radius is that of the state, which the statistic of a law may scale; the angle is that of both
        signal, noise = self.law.marginal(t)
        radius = torch.hypot(signal[..., 0], noise[..., 0, 0].sqrt())
        return radius, torch.atan2(self.law.sigma(t), self.law.alpha(t))

    def slope(self, u: Tensor, t: Tensor) -> Tensor:
        """`w = η̂ cos θ - D sin θ` at the state `u`."""
        x = self.data(u, t)
        angle = self.polar(t)[1]
        return self.law.scale(angle.cos(), self.law.noise(u, t, x)) - self.law.scale(angle.sin(), x)
