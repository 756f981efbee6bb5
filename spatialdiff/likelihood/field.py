r"""The velocity of the probability flow and its divergence.

The velocity `v(u, t) = a(t) u + w(t) ⊗ D(u, t) + …` is linear in the posterior mean, with

    w = dα/dt - α (dσ/dt)/σ,   trace of the linear part  n (dσ/dt)/σ            (scalar laws, bridges too)
    w = a - ½ QΣ⁻¹φ,                                     n tr(E + ½ QΣ⁻¹)       (any K, SDE E u + a ⊗ D)

so that only `∇·(w ⊗ D)` has to be estimated, by `E εᵀ (∂D/∂u) (w ⊗ ε)` with signs ε on the sites of the
data alone (Hutchinson's estimator on all variables would pick up the large blocks between them). With a
Gaussian model of the data `D = m + r`: the trace of m is known per mode, `Σ_k gain_k qᵀw`, and only r is left
to chance (Grathwohl et al. 2019, arXiv 1810.01367).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.likelihood.draws import repeat
from spatialdiff.objectives.gaussian_terms import GaussianTerms
from spatialdiff.objectives.sde_terms import state_gradient
from spatialdiff.processes.marginals import weighted_mean
from spatialdiff.processes.rotating_frame import dynamics
from spatialdiff.processes.scalar import ScalarLaw

#: states per evaluation of the exact divergence
CHUNK = 512


class FlowField:
    """Velocity `(B, K*C, *grid)` and divergence `(B,)` of the probability flow of a denoiser.

    Args:
        denoiser: the posterior mean. terms: of its Gaussian model, or None.
        probe: independent signs `(B, C, *grid)` for Hutchinson's estimator; None for the exact divergence.
        condition: keyword arguments for the network.
    """

    def __init__(
        self,
        denoiser: PosteriorMean,
        terms: GaussianTerms | None,
        probe: Tensor | None,
        condition: dict[str, Any],
    ) -> None:
        self.denoiser, self.law, self.terms = denoiser, denoiser.law, terms
        self.probe, self.condition = probe, condition
        self.size = self.law.covariance.domain.size * denoiser.channels

    def __call__(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """At states `u`, all at time `t` `()`."""
        with torch.no_grad():
            weight = self.weight(t)
            trace = self.linear_trace(t)
            if self.terms is not None:
                trace = trace + self.model_trace(t, weight)
        if self.probe is None:
            divergence = self.exact(u, t, weight)
            with torch.no_grad():
                data = self.denoiser(u, t, **self.condition)
        else:
            with torch.enable_grad():
                state = u.detach().requires_grad_(True)
                data = self.denoiser(state, t, **self.condition)
                divergence = self.directional(state, data, t, weight, self.probe)
        with torch.no_grad():
            return self.law.velocity(u, data.detach(), t), divergence + trace

    def directional(self, state: Tensor, data: Tensor, t: Tensor, weight: Tensor, probe: Tensor) -> Tensor:
        """`εᵀ (∂r/∂u) (w ⊗ ε)` per state, `r = D` without a model."""
        rest = data
        # where only the model depends on the state by autograd, the network's own part would be lost
        if self.terms is not None and data.requires_grad:
            rest = data - self.terms.model.posterior_mean(state, self.law, t)
        gradient = state_gradient(rest, probe, state)
        return (gradient * self.law.mix(weight[..., None], probe)).double().flatten(1).sum(1)

    def exact(self, u: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        """The divergence by one probe for each value of a field."""
        count, shape = len(u), (self.denoiser.channels, *u.shape[2:])
        values = shape[0] * u[0, 0].numel()
        total = torch.zeros(count, dtype=torch.float64, device=u.device)
        step = max(1, CHUNK // count)
        for first in range(0, values, step):
            index = torch.arange(first, min(first + step, values), device=u.device)
            probe = torch.zeros(len(index), 1, values, dtype=u.dtype, device=u.device)
            probe.scatter_(2, index[:, None, None], 1.0)
            probe = probe.expand(-1, count, -1).reshape(-1, *shape)
            given = {name: repeat(v, len(index), count) for name, v in self.condition.items()}
            with torch.enable_grad():
                state = repeat(u.detach(), len(index), count).requires_grad_(True)
                data = self.denoiser(state, t, **given)
                pieces = self.directional(state, data, t, weight, probe)
            total += pieces.reshape(len(index), count).sum(0)
        return total

    def weight(self, t: Tensor) -> Tensor:
        """w `([modes], K)`: the derivative of the velocity by the posterior mean."""
        law = self.law
        if isinstance(law, ScalarLaw):
            return (law.alpha_rate(t) - law.alpha(t) * law.sigma_rate(t) / law.sigma(t))[..., None]
        _, spread, pull = dynamics(law, t)
        score = spread @ law.precision(t) @ law.marginal(t)[0][..., None]
        return (pull - 0.5 * score)[..., 0]

    def linear_trace(self, t: Tensor) -> Tensor:
        """The trace of the velocity at a fixed posterior mean."""
        law = self.law
        if isinstance(law, ScalarLaw):
            return self.size * weighted_mean(law.sigma_rate(t) / law.sigma(t), law.basis)
        drift, spread, _ = dynamics(law, t)
        matrix = drift + 0.5 * spread @ law.precision(t)
        return self.size * weighted_mean(matrix.diagonal(dim1=-2, dim2=-1).sum(-1), law.basis)

    def model_trace(self, t: Tensor, weight: Tensor) -> Tensor:
        """`Σ_k gain_k qᵀw`, the trace of `w ⊗ m`."""
        assert self.terms is not None
        terms = self.terms
        moments = terms.model.moments(self.law, t)
        along = terms.model.per_mode((self.law.statistic(t) * weight).sum(-1), terms.basis, self.law)
        return terms.total((moments.gain * along).expand(1, *terms.rho.shape))[0]
