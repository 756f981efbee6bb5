r"""The exact Gaussian step: no discretisation error on the fitted Gaussian part of the data.

Split the posterior mean `D = m + r` into that of the fitted `N(μ, C)` and the rest. Per mode, with `P = α² c
+ σ² γ`, the flow of the first part is solved exactly, and with the residual extended over the step

    u_s - o_s = α_s μ + M (u_t - o_t - α_t μ) + κ r,      M = √(P_s / P_t),      ρ = α_t σ_s / (α_s σ_t)

    "endpoint":  κ = α_s (1 - ρ²) / (1 + (α_t / α_s) M)       r ∝ the share of noise, σ² γ / P, along the step
    "plain":     κ = α_s (1 - ρ)                              DDIM's coefficient in every mode

(docs/theory, "Gaussian oracles". The endpoint form there is `(α_s - α_t M) P_t / (σ_t² γ)`, which is this
without its cancellation.) With `r = 0` one step of any length is exact. Otherwise the order is 1; `order=2`
extrapolates `r P / (σ² γ)` linearly in `log(σ/α)` from the step before, as the multistep DPM-Solver++ does
for `D` (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

`gaussian_sde` does the same for the stochastic step: `u_s = A u_t + b D + √(V + b² W/γ) η`, with `W = c σ² γ
/ P` the variance of the data given the state, so that `r = 0` is exact in law; it needs no probability flow
and so serves bridges from a fixed point. Order 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel, Moments
from spatialdiff.denoisers.resolve import data_law
from spatialdiff.sampling.base import Noise, Solver


class FittedSolver(Solver):
    """A solver that knows the Gaussian part of the data: from the denoiser, or given as `data`."""

    def __init__(
        self, denoiser: PosteriorMean, noise: Noise, condition: Mapping[str, Any], *, data: Any = None
    ) -> None:
        super().__init__(denoiser, noise, condition)
        model = getattr(denoiser, "gaussian", None)
        if data is not None:
            mean, covariance = data_law(data)
            model = GaussianModel(self.law.covariance, covariance, mean)
        if model is None:
            raise ValueError(
                "the Gaussian solvers need the fitted Gaussian law of the data: pass data= the result of "
                "sd.fit (or a pair "
                "(mean, Covariance)) to sd.sample, or give it to the Denoiser"
            )
        self.model: GaussianModel = model

    def start(self) -> Tensor:
        """The exact marginal of the fitted data at the start, `N(α μ + o, α² C + σ² Γ)`."""
        t = torch.as_tensor(self.start_time, dtype=torch.float64)
        noise = self.noise()
        moments = self.moments(t, noise)
        u = moments.basis.multiply(noise, (moments.state / moments.gamma).sqrt().to(noise))
        return u + self.centre(t, u)

    def moments(self, t: Tensor, u: Tensor) -> Moments:
        return self.model.moments(self.law, t.to(u.device))

    def centre(self, t: Tensor, u: Tensor) -> Tensor:
        """`α_t μ + o_t`."""
        return self.law.alpha(t).to(u) * self.model.shift(torch.zeros_like(u)) + self.offset(t, u)


class Gaussian(FittedSolver):
    """`u_s - o_s = α_s μ + M (u_t - o_t - α_t μ) + κ r`; order 1 or 2, exact for Gaussian data."""

    deterministic = True

    def __init__(
        self,
        denoiser: PosteriorMean,
        noise: Noise,
        condition: Mapping[str, Any],
        *,
        data: Any = None,
        order: int = 1,
        residual: str = "endpoint",
    ) -> None:
        super().__init__(denoiser, noise, condition, data=data)
        if order not in (1, 2):
            raise ValueError(f"order={order}; the Gaussian solver has orders 1 and 2")
        if residual not in ("endpoint", "plain"):
            raise ValueError(f"residual={residual!r}; the choices are 'endpoint' and 'plain'")
        if order == 2 and residual == "plain":
            raise ValueError(
                "order=2 needs residual='endpoint': the plain coefficient is itself only first order"
            )
        self.order = order
        self.residual = residual
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        now, then = self.moments(t, u), self.moments(s, u)
        growth = (then.state / now.state).sqrt()
        alpha_t, alpha_s = now.phi, then.phi
        ratio = alpha_t * then.noise_variance.sqrt() / (alpha_s * now.noise_variance.sqrt())
        if self.residual == "endpoint":
            weight = alpha_s * (1.0 - ratio.square()) / (1.0 + alpha_t / alpha_s * growth)
        else:
            weight = alpha_s * (1.0 - ratio)
        centred = u - self.centre(t, u)
        multiply = now.basis.multiply
        r = self.data(u, t) - self.model.shift(multiply(centred, now.gain.to(u)))
        moved = multiply(centred, growth.to(u)) + multiply(self.extrapolate(r, t, s, now), weight.to(u))
        return moved + self.centre(s, u)

    def finish(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.step(u, t, s)

    def extrapolate(self, r: Tensor, t: Tensor, s: Tensor, now: Moments) -> Tensor:
        """`r` at `t`, or for order 2 its mean over the step in the variable `r P / (σ² γ)`, linear in
        `log(σ/α)`.
        """
        if self.order == 1:
            return r
        level, target = self.law.log_snr(t), self.law.log_snr(s)
        share = now.state / (now.noise_variance * now.gamma)
        last, self.last = self.last, (r, level, share)
        if last is None or not bool(torch.isfinite(target)) or not bool(torch.isfinite(last[1])):
            return r
        slope = 0.5 * (target - level) / (level - last[1])
        return (1.0 + slope).to(r) * r - now.basis.multiply(last[0], (slope * last[2] / share).to(r))


class GaussianSDE(FittedSolver):
    """`u_s = A u_t + b D + √(V + b² W/γ) η`; order 1 in law, exact for Gaussian data."""

    order = 1

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        a, b, v = self.law.step(t, s)
        moments = self.moments(t, u)
        spread = (v + b.square() * moments.posterior / moments.gamma).sqrt()
        fresh = moments.basis.multiply(self.noise(), spread.to(u))
        return a.to(u) * u + b.to(u) * self.data(u, t) + fresh

    def finish(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.step(u, t, s)
