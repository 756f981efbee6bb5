r"""The exact Gaussian step of the SDE: no error in law on the fitted Gaussian part of the data.

    u_s = A u_t + b ⊗ D̃ + (V + ω b bᵀ)^{1/2} η,        ω = W/γ = ρ/(1 + ρI)  per mode

with `(A, b, V)` the step given the data and `ω` the data's variance given the state, in units of γ: for
Gaussian data, `D = m`, the law of `u_s` is exact whatever the step. It needs no probability flow, and so
serves bridges from a fixed point, and every K.

`D̃ = m + r̃`, with the residual `r = D - m` as it is (`order=1`), or with `(1 + ρI) r` extrapolated in log-SNR
(`order=2`). Where the data are Gaussian and the fitted Gaussian is not theirs, the covariance of the law has
the residual's order: the extrapolated residual carries the noise of the last step, the true one that of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.sampling.base import Noise, noise_root
from spatialdiff.sampling.fitted import FittedSolver


class GaussianSDE(FittedSolver):
    """`u_s = A u_t + b ⊗ D̃ + (V + ω b bᵀ)^{1/2} η`; order 1 in law, or 2; exact for Gaussian data."""

    order = 1

    def __init__(
        self,
        denoiser: PosteriorMean,
        noise: Noise,
        condition: Mapping[str, Any],
        *,
        data: Any = None,
        order: int = 1,
    ) -> None:
        super().__init__(denoiser, noise, condition, data=data)
        if order not in (1, 2):
            raise ValueError(f"order={order}; the Gaussian SDE solver has residuals of order 1 and 2")
        self.residual_order = order

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        keep, pull, variance = self.law.posterior(t, s)
        data = self.data(u, t)
        if self.residual_order == 2:
            mean = self.gaussian_mean(u, t)
            data = mean + self.extrapolate(data - mean, t, s)
        known = (self.ratio / self.load(t))[..., None, None]
        b = self.per_mode(pull, 1)[..., None]
        total = self.per_mode(variance, 2) + known * b @ b.mT
        fresh = self.mix_modes(noise_root(total), self.noise())
        return self.mix(keep, u) + self.spread(pull, data) + fresh

    def finish(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.step(u, t, s)

    def path(self, times: Tensor, u: Tensor) -> Iterator[Tensor]:
        self.last = None
        return super().path(times, u)
