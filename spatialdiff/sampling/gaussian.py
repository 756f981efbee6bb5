r"""The exact Gaussian step: no discretisation error on the fitted Gaussian part of the data.

Split the posterior mean `D = m + r` into that of the fitted `N(μ, C)` and the rest. Per mode, with `ρ = c/γ`
and the marginal covariance `P = ρ φφᵀ + Σ` of the K variables, the flow of the first part is solved exactly,
and with the residual extended over the step (`processes.flow`)

    u_s - o_s = φ_s μ + M (u_t - o_t - φ_t μ) + W r,       M = M(t → s);   for K = 1 √(P_s / P_t)

    "endpoint":  W = (1 + ρI_t)(φ_s - M φ_t)       r ∝ 1/(1 + ρI), the share of noise, along the step
    "plain":     W = φ_s - M₀ φ_t                  DDIM's coefficient (ρ = 0) in every mode

(docs/theory, "Gaussian oracles".) With `r = 0` one step of any length is exact. Otherwise the order is 1;
`order=2` extrapolates `(1 + ρI) r` linearly in log-SNR from the step before, as the multistep DPM-Solver++
does for `D` (Lu et al. 2022, arXiv 2211.01095, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.processes.flow import FlowStep, flow_step
from spatialdiff.sampling.base import Noise
from spatialdiff.sampling.fitted import FittedSolver
from spatialdiff.sampling.path_flow import PathFlow


class Gaussian(PathFlow, FittedSolver):
    """`u_s - o_s = φ_s μ + M (u_t - o_t - φ_t μ) + W r`; order 1 or 2, exact for Gaussian data."""

    order = 1
    deterministic = True
    flows_to_the_end = True

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
        self.order = self.residual_order = order
        self.residual = residual

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        found = self.coefficients(t, s)
        r = self.extrapolate(self.data(u, t) - self.gaussian_mean(u, t), t, s)
        moved = self.mix_modes(found.M, u - self.centre(t, u)) + self.mix_modes(found.W[..., None], r)
        return moved + self.centre(s, u)

    def finish(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.step(u, t, s)

    def coefficients(self, t: Tensor, s: Tensor) -> FlowStep:
        """M and W per mode."""
        found = self.flow_between(t, s)
        if self.residual == "endpoint":
            return found
        plain = flow_step(self.law, t, s, 0.0 * self.ratio)
        return FlowStep(found.M, plain.W)

    def ratios(self) -> Tensor:
        return self.ratio

    def path(self, times: Tensor, u: Tensor) -> Iterator[Tensor]:
        self.last = None
        return super().path(times, u)
