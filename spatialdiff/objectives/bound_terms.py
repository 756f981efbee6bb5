r"""The terms of the evidence bound, in the arrangement in which all but the score error is closed.

    log p(x) ≥ - KL(q(u_{t1}|x) ‖ π) - ½ ∫ E‖x - D(u_t, t)‖²_{Γ⁻¹} dI + E log p(x | u_{t0})

for every linear process and any number of variables: with `s_θ` the score that the posterior mean D implies,
`E‖s_θ - ∇log q(u_t|x)‖²_{βG⊗Γ} dt = E‖x - D‖²_{Γ⁻¹} (φᵀΣ⁻¹ βG Σ⁻¹φ) dt`, and the bracket is `-dI/dt`
(docs/theory, "Likelihood"; Kingma et al. 2021, arXiv 2107.00630, eq. 17 for K = 1 and white noise).

Where a Gaussian model of the data is known, `‖x - D‖² = ‖x - m‖² + (‖x - D‖² - ‖x - m‖²)`: the integral of
the first is closed (`gaussian_terms`), and only the second is left to Monte Carlo; it vanishes where `D = m`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.objectives.gaussian_terms import GaussianTerms, information, log_det
from spatialdiff.processes import Law, NoiseProcess
from spatialdiff.processes.marginals import weighted_mean

PRIORS = ("stationary", "noise", "gaussian")
DECODERS = ("gaussian", "network", "state")


def draw_state(
    law: Law, x: Tensor, t: Tensor, generator: torch.Generator | None = None, white: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`u = φ ⊗ x + o + (L ⊗ I) η` and `η`, `(B, K*C, *grid)` each, of data `(B, C, *grid)`, times `(B,)`."""
    noise = law.draw(len(x), x.shape[1], white=white, generator=generator, dtype=x.dtype, device=x.device)
    return law.mean(x, t) + law.mix(law.root(t), noise), noise


def inner(law: Law, first: Tensor, second: Tensor) -> Tensor:
    """`firstᵀ Γ⁻¹ second` per field `(B,)`, float64."""
    return (first.double() * law.covariance.solve(second.double())).flatten(1).sum(1)


def weighted_error(
    law: Law, weight: Tensor, x: Tensor, mean: Tensor, model_mean: Tensor | None = None
) -> Tensor:
    """`‖x - D‖²_{Γ⁻¹}`, less `‖x - m‖²_{Γ⁻¹}` where `m` is given, `(B,)`, times a weight `(*t, [modes])`.

    The difference is formed as `rᵀΓ⁻¹(r - 2(x - m))`, `r = D - m`: exactly zero where `D = m`.
    """
    x, mean = x.double(), mean.double()
    if model_mean is None:
        error = x - mean
        return inner(law, law.scale(weight, error), error)
    residual = mean - model_mean
    return inner(law, law.scale(weight, residual), residual - 2.0 * (x - model_mean))


def resolve_prior(law: Law, prior: str | None, terms: GaussianTerms | None) -> str:
    """The name of the prior π, by default the stationary law where there is one, else `"noise"`.

    Raises:
        ValueError: an unknown name, a stationary law or a Gaussian model that does not exist.
    """
    stationary = law.stationary if isinstance(law, NoiseProcess) else None
    if prior is None:
        return "noise" if stationary is None else "stationary"
    if prior not in PRIORS:
        raise ValueError(f"unknown prior {prior!r}; the choices are {', '.join(PRIORS)}")
    if prior == "stationary" and stationary is None:
        raise ValueError(
            f"{type(law).__name__} has no stationary law; use prior='noise' or, with a fitted law, 'gaussian'"
        )
    if prior == "gaussian" and terms is None:
        raise ValueError("prior='gaussian' needs the fitted law of the data: build the denoiser with data=")
    return prior


def prior_divergence(law: Law, prior: str, x: Tensor, t: Tensor, terms: GaussianTerms | None) -> Tensor:
    r"""`KL(q(u_t|x) ‖ π)` per field `(B,)`, nats, closed; `log det Γ` cancels in it.

    With `"stationary"`, `π = N(0, S ⊗ Γ)`:
    `½[n(tr S⁻¹Σ - K + log det S - log det Σ) + (φᵀS⁻¹φ) xᵀΓ⁻¹x]`; with `"noise"`, `π = N(o, Σ ⊗ Γ)`:
    `½ I xᵀΓ⁻¹x`; with `"gaussian"` the marginal of the fitted model (`GaussianTerms.prior`).
    """
    if prior == "gaussian":
        assert terms is not None
        return terms.prior(x, t)
    if prior == "noise":
        field = x.double()
        return 0.5 * inner(law, law.scale(information(law, t), field), field)
    assert isinstance(law, NoiseProcess)
    target = law.stationary
    assert target is not None
    phi, sigma = law.marginal(t)
    root = torch.linalg.cholesky(target)
    ratio = torch.linalg.solve_triangular(root, law.root(t), upper=False)
    excess = ratio.square().sum((-2, -1)) - law.variables
    excess = excess - 2.0 * ratio.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    pull = torch.linalg.solve_triangular(root.expand(sigma.shape), phi[..., None], upper=False)
    field = x.double()
    quadratic = inner(law, law.scale(pull.square().sum((-2, -1)), field), field)
    size = law.covariance.domain.size * x.shape[1]
    return 0.5 * (size * weighted_mean(excess, law.basis) + quadratic)


def resolve_decoder(decoder: str | None, terms: GaussianTerms | None) -> str:
    """The name of the decoder, by default the exact posterior of the fitted model, else `"network"`.

    Raises:
        ValueError: an unknown name, or `"gaussian"` without a fitted model.
    """
    if decoder is None:
        return "network" if terms is None else "gaussian"
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}; the choices are {', '.join(DECODERS)}")
    if decoder == "gaussian" and terms is None:
        raise ValueError("decoder='gaussian' needs the fitted law of the data: build the denoiser with data=")
    return decoder


def decoder_constant(law: Law, t: Tensor, channels: int, terms: GaussianTerms | None) -> Tensor:
    """`-½ log det(2πV)`, scalar: V the posterior covariance of the fitted model, else `Γ/I`."""
    if terms is not None:
        return terms.decoder_constant(t)
    size = law.covariance.domain.size * channels
    level = law.log_snr(t)
    return -0.5 * (size * (math.log(2.0 * math.pi) - level) + log_det(law.covariance, channels))


def closed_decoder(law: Law, decoder: str, x: Tensor, t: Tensor, terms: GaussianTerms | None) -> Tensor:
    """What is closed of `E log p(x | u_t)`, `(B,)`: all of it for `"gaussian"` and `"state"`.

    `"state"` is `N(y/α, Γ/I)`, the data read off the statistic of the state: `-½ log det(2πΓ/I) - n/2`. Of
    `"network"`, `N(D, V)` or `N(D, Γ/I)`, it is the constant and, with a fitted model, the part of `m`.
    """
    if decoder == "state":
        constant = decoder_constant(law, t, x.shape[1], None)
        return (constant - 0.5 * law.covariance.domain.size * x.shape[1]).expand(len(x))
    if terms is not None:
        return terms.decoder(x, t)
    return decoder_constant(law, t, x.shape[1], None).expand(len(x))


def decoder_excess(
    law: Law, x: Tensor, mean: Tensor, model_mean: Tensor | None, t: Tensor, terms: GaussianTerms | None
) -> Tensor:
    """What is left of the decoder `"network"`, `(B,)`: `½‖x - D‖²_{V⁻¹}`, less that of `m` with a model."""
    if terms is None or model_mean is None:
        return 0.5 * weighted_error(law, law.information(t), x, mean)
    residual = mean.double() - model_mean
    error = residual - 2.0 * (x.double() - model_mean)
    scaled = terms.basis.multiply(residual, terms.decoder_precision(t))
    return 0.5 * inner(law, scaled, error)


def model_mean(terms: GaussianTerms | None, u: Tensor, t: Tensor) -> Tensor | None:
    """`m(u, t)` in float64, or None without a model."""
    return None if terms is None else terms.model.posterior_mean(u.double(), terms.law, t)
