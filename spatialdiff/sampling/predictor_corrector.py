r"""A stochastic step, then Langevin steps at the new time that bring the state back to its law.

    corrector:   u += -ε (u - φ ⊗ D - o) + √(2ε) (L ⊗ R) z,        L Lᵀ = Σ_s

(Song et al. 2021, arXiv 2011.13456, algorithms 2–5): Langevin dynamics preconditioned by `Σ_s ⊗ Γ`, for which
`(Σ ⊗ Γ)∇log q = φ ⊗ D + o - u` needs no solve, and whose rates, `Σ P⁻¹` for Gaussian data of marginal
covariance P, lie between 0 and 1 in every mode of Γ: one ε serves all of them, and is stable below 2.

Step size: `ε = min(largest, ½ strength Δλ / correctors)`, Δλ the step of log-SNR. Langevin time per e-folding
of the noise level is then the same whatever the number of steps, and the bias of a Langevin step of size ε,
which is O(ε), vanishes with the steps: order 1 in law.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.sampling.ancestral import Ancestral
from spatialdiff.sampling.base import Noise, Solver
from spatialdiff.sampling.euler_maruyama import EulerMaruyama

PREDICTORS: dict[str, type[Solver]] = {"ancestral": Ancestral, "euler_maruyama": EulerMaruyama}


class PredictorCorrector(Solver):
    """`predictor` to s, then `correctors` Langevin steps there; order 1 in law, 1 + `correctors` calls."""

    order = 1

    def __init__(
        self,
        denoiser: PosteriorMean,
        noise: Noise,
        condition: Mapping[str, Any],
        *,
        predictor: str = "ancestral",
        correctors: int = 1,
        strength: float = 0.5,
        largest: float = 0.25,
    ) -> None:
        super().__init__(denoiser, noise, condition)
        if not self.law.closed_form:
            raise ValueError(
                "a corrector needs the score of the state, and the law of a bridge between pairs given the "
                "data alone has no closed form; use solver='bridge', or a denoiser with "
                "condition_on_start=True"
            )
        if predictor not in PREDICTORS:
            raise ValueError(f"predictor={predictor!r}; the choices are {', '.join(PREDICTORS)}")
        if correctors < 1:
            raise ValueError(f"correctors={correctors}; needed at least 1 (0 is the predictor alone)")
        if not (strength > 0.0 and 0.0 < largest < 2.0):
            raise ValueError(
                f"strength={strength:g}, largest={largest:g}; needed strength > 0 and 0 < largest < 2, "
                "beyond which Langevin steps are unstable"
            )
        self.predictor = PREDICTORS[predictor](denoiser, noise, condition)
        self.correctors, self.strength, self.largest = correctors, strength, largest

    @property
    def start_time(self) -> float:
        return self.predictor.start_time

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        u = self.predictor.step(u, t, s)
        size = self.size(t, s)
        root = (2.0 * size).sqrt() * self.law.root(s)
        for _ in range(self.correctors):
            pull = self.law.mean(self.data(u, s), s) - u
            u = u + size.to(u) * pull + self.mix(root, self.noise())
        return u

    def size(self, t: Tensor, s: Tensor) -> Tensor:
        """ε of one corrector step."""
        rise = self.law.log_snr(s) - self.law.log_snr(t)
        wanted = 0.5 * self.strength * rise / self.correctors
        return torch.where(torch.isfinite(rise), wanted, self.largest).clamp(0.0, self.largest)
