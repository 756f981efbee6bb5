r"""Densities of Gaussian states, for any number of variables.

    log N(u; 0, S ⊗ Γ) = -½ [ tr S⁻¹ (uᵀΓ⁻¹u) + n log det S + K log det Γ + nK log 2π ]

and, with the fitted law N(μ, C) of the data, `log N(u; φ ⊗ μ + o, Σ ⊗ Γ + φφᵀ ⊗ C)` by the Sherman–Morrison
formula: it differs from the first by `-½ Σ_k log(1 + ρI) + ½ Σ_k (φᵀΣ⁻¹(u - φμ - o))² ρ/(γ(1 + ρI))`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.objectives.gaussian_terms import GaussianTerms, log_det
from spatialdiff.processes import Law, NoiseProcess
from spatialdiff.processes.marginals import weighted_mean


def noise_log_density(law: Law, u: Tensor, root: Tensor) -> Tensor:
    """`log N(u; 0, L Lᵀ ⊗ Γ)` per state `(B,)`, float64; L `([modes], K, K)`, u `(B, K*C, *grid)`."""
    eye = torch.eye(law.variables, dtype=torch.float64, device=u.device)
    white = law.mix(torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False), u.double())
    apart = white.reshape(len(u), law.variables, -1, *u.shape[2:])
    quadratic = (apart * law.covariance.solve(apart)).flatten(1).sum(1)
    determinant = 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    channels = u.shape[1] // law.variables
    size = law.covariance.domain.size * channels
    constant = size * (weighted_mean(determinant, law.basis) + law.variables * math.log(2.0 * math.pi))
    return -0.5 * (quadratic + constant + law.variables * log_det(law.covariance, channels))


def prior_log_density(law: Law, prior: str, u: Tensor, t: Tensor, terms: GaussianTerms | None) -> Tensor:
    """`log π(u)` per state `(B,)` at time `t` `()`, for the priors of `objectives.bound_terms`."""
    if prior == "stationary":
        assert isinstance(law, NoiseProcess)
        assert law.stationary is not None
        return noise_log_density(law, u, torch.linalg.cholesky(law.stationary))
    u = u.double()
    if prior == "noise":
        return noise_log_density(law, u - law.offset(t), law.root(t))
    assert terms is not None
    model = terms.model
    channels = u.shape[1] // law.variables
    mean = torch.zeros(1, channels, *u.shape[2:], dtype=torch.float64, device=u.device)
    centred = u - law.mean(model.shift(mean), t)
    level, rho = terms.per_mode(t), terms.rho
    # φᵀΣ⁻¹(u - φμ - o) = (α/σ²) (y - αμ)
    pull = model.per_mode(law.alpha(t) / law.variance(t), terms.basis, law)
    told = terms.basis.analyze(model.centre_state(u, law, t)) * pull
    more = told.abs().square() * rho / (terms.gamma * (1.0 + rho * level))
    spread = (rho * level).log1p().expand(1, *rho.shape)
    return noise_log_density(law, centred, law.root(t)) + 0.5 * terms.total(more) - 0.5 * terms.total(spread)
