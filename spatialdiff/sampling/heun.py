r"""Heun for the probability flow, along the angle between data and noise: order 2.

With `ρ = √(α² + σ²)`, `θ = atan2(σ, α)` and `v = (u - o)/ρ = x cos θ + η sin θ`, the flow of every law is

    dv/dθ = w(v, θ) = η̂ cos θ - D sin θ,      D = E[x | v],   η̂ = (v - D cos θ)/sin θ,

from `θ = π/2` (noise) to `θ = 0` (data), regular at both ends; in the time of a process it is singular where
`σ ~ √t`, in `σ/α` where
there is no signal. One step is

    ṽ = v_t + (θ_s - θ_t) w_t,      v_s = v_t + (θ_s - θ_t)(w_t + w_s(ṽ))/2

(Heun as in Karras et al. 2022, arXiv 2206.00364, algorithm 1; the angle as in Lu & Song 2024, arXiv
2410.11081, section 3.) Exact where the data have the covariance of the noise, for then `w = 0`. Two network
calls a step, one in the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.sampling.base import Solver


class Heun(Solver):
    """`v_s = v_t + (θ_s - θ_t)(w_t + w_s)/2`; order 2 in the largest step of `θ`."""

    order = 2
    deterministic = True

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        (radius, angle), (radius_s, angle_s) = self.polar(t), self.polar(s)
        v = (u - self.offset(t, u)) / radius.to(u)
        turn = (angle_s - angle).to(u)
        first = self.slope(u, t, angle)
        predicted = radius_s.to(u) * (v + turn * first) + self.offset(s, u)
        v = v + 0.5 * turn * (first + self.slope(predicted, s, angle_s))
        return radius_s.to(u) * v + self.offset(s, u)

    def polar(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`ρ` and `θ` at `t`."""
        alpha, sigma = self.law.alpha(t), self.law.sigma(t)
        return torch.hypot(alpha, sigma), torch.atan2(sigma, alpha)

    def slope(self, u: Tensor, t: Tensor, angle: Tensor) -> Tensor:
        """`w = η̂ cos θ - D sin θ` at the state `u`."""
        x = self.data(u, t)
        return angle.cos().to(u) * self.law.noise(u, t, x) - angle.sin().to(u) * x
