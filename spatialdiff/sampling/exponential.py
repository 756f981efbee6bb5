r"""Steps of the probability flow with the data's mean, or its extrapolation, fixed: DDIM and DPM-Solver++.

    u_s = o_s + M (u_t - o_t) + (φ_s - M φ_t) ⊗ D̃,        M = M(t → s) of `processes.flow` for ρ = 0

    DDIM, order 1            D̃ = D(u_t, t)
    exponential, order 2     D̃ = D_t + ½ (λ_s - λ_t)/(λ_t - λ_last) (D_t - D_last),       λ the log-SNR

For K = 1, M = σ_s/σ_t: Song, Meng, Ermon 2021 (arXiv 2010.02502, eq. 12 with η = 0), and the multistep method
of Lu et al. 2022 (arXiv 2211.01095, algorithm 2). For K > 1, M is the exact flow of a fixed endpoint. The
coefficients do not depend on Γ. A first step, or one from where no signal is left (λ = -∞), has order 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.sampling.base import Noise, Solver
from spatialdiff.sampling.path_flow import PathFlow


class DDIM(PathFlow, Solver):
    """`u_s = o_s + M (u_t - o_t) + (φ_s - M φ_t) ⊗ D`; order 1."""

    order = 1
    deterministic = True

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        found = self.flow_between(t, s)
        moved = self.mix(found.M, u - self.offset(t, u)) + self.spread(found.W, self.endpoint(u, t, s))
        return moved + self.offset(s, u)

    def endpoint(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """What stands for the data over the step."""
        return self.data(u, t)


class Exponential(DDIM):
    """DDIM with the posterior mean extrapolated linearly in log-SNR; `order=2`, or 1: `DDIM`."""

    order = 2

    def __init__(
        self, denoiser: PosteriorMean, noise: Noise, condition: Mapping[str, Any], *, order: int = 2
    ) -> None:
        super().__init__(denoiser, noise, condition)
        if order not in (1, 2):
            raise ValueError(f"order={order}; the exponential solver has orders 1 and 2")
        self.order = order
        self.last: tuple[Tensor, Tensor] | None = None

    def endpoint(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        data = self.data(u, t)
        if self.order == 1:
            return data
        level = self.law.log_snr(t)
        last, self.last = self.last, (data, level)
        slope = None if last is None else extrapolation(last[1], level, self.law.log_snr(s))
        if last is None or slope is None:
            return data
        return data + slope.to(data) * (data - last[0])

    def path(self, times: Tensor, u: Tensor) -> Any:
        self.last = None
        return super().path(times, u)


def extrapolation(last: Tensor, level: Tensor, target: Tensor) -> Tensor | None:
    """`½ (λ_s - λ_t)/(λ_t - λ_last)`, to the middle of the step; None where a level is infinite."""
    if not bool(torch.isfinite(target) & torch.isfinite(level) & torch.isfinite(last)):
        return None
    return 0.5 * (target - level) / (level - last)
