r"""Symmetric splitting for processes with a stationary law N(0, S ⊗ Γ).

The reverse SDE, per time elapsed backward, is the process itself run backward in its stationary law and what
the score has beyond that law,

    du = [S Fᵀ S⁻¹ u] dt̄ + (Q^{1/2} ⊗ R) dW   +   Q (Γ∇log q + S⁻¹ u) dt̄,

since `-F - Q S⁻¹ = S Fᵀ S⁻¹`. The first is solved exactly, `u_m | u_t ~ N(J u_t, (S - J Φ S) ⊗ Γ)` with
`J = S Φᵀ S⁻¹`, Φ from m to t; the second by one Euler step (order 1 in law) or midpoint step (order 2) with
the coefficients of the middle m:

    exact half step t → m,      u += |s - t| Q_m (Γ∇log q_m(u) + S⁻¹ u),      exact half step m → s

(Dockhorn, Vahdat, Kreis 2022, arXiv 2112.07068, section 3.3: SSCS, for CLD, whose Euler step is the first.)
One network call a step for order 1, two for order 2; two draws of noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.sampling.base import Noise, Solver, noise_root


class Splitting(Solver):
    """Half step of the linear part, step of the score, half step of the linear part; `order` 1 or 2 in law.

    Raises ``ValueError`` for a law without a stationary one: bridges, VE, Brownian motion and signal paths.
    """

    order = 1

    def __init__(
        self, denoiser: PosteriorMean, noise: Noise, condition: Mapping[str, Any], *, order: int = 1
    ) -> None:
        super().__init__(denoiser, noise, condition)
        if order not in (1, 2):
            raise ValueError(f"order={order}; the splitting has orders 1 and 2")
        self.order = order
        stationary = self.law.stationary if isinstance(self.law, NoiseProcess) else None
        if stationary is None or not isinstance(self.law, NoiseProcess):
            raise ValueError(
                f"solver='splitting' needs a noise process with a stationary law (VP, OrnsteinUhlenbeck, "
                f"CLD, ALDA, MALDA, LinearDiffusion.from_stationary); {type(self.law).__name__} has none. "
                "Use 'exponential', 'euler_maruyama' or 'ancestral'"
            )
        self.process = self.law
        self.stationary = stationary

    def step(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        middle = 0.5 * (t + s)
        u = self.linear(u, t, middle)
        elapsed = (t - s).abs()
        rate = elapsed * self.process.diffusion_matrix(middle)
        push = self.correction(u, middle)
        if self.order == 2:
            push = self.correction(u + self.mix(0.5 * rate, push), middle)
        return self.linear(u + self.mix(rate, push), middle, s)

    def linear(self, u: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The stationary process backward from t to s, exactly."""
        law = self.stationary.to(u.device)
        phi, sigma = self.process.transition(s, t)
        gain = torch.linalg.solve(law, phi @ law).mT
        kept = torch.eye(law.shape[-1], dtype=law.dtype, device=law.device) - gain @ phi
        # Joseph's form of S - J Φ S: a sum of positive semi-definite terms
        variance = kept @ law @ kept.mT + gain @ sigma @ gain.mT
        return self.mix(gain, u) + self.mix(noise_root(variance), self.noise())

    def correction(self, u: Tensor, t: Tensor) -> Tensor:
        """`Γ∇log q_t(u) + S⁻¹ u`."""
        law = self.stationary.to(u.device)
        score = self.law.gamma_score(u, t, self.data(u, t))
        return score + self.mix(torch.linalg.inv(law), u)
