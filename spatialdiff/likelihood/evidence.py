r"""Evidence bounds on log p(x), with their standard errors.

    log p(x) ≥ - KL(q(u_{t1}|x) ‖ π) - ½ ∫ E‖x - D(u_t, t)‖²_{Γ⁻¹} dI + E log p(x | u_{t0})

The arrangement `"closed"` estimates nothing but the score error: the prior and the entropies are analytic,
and where the denoiser has a fitted Gaussian model so is that model's part of the integral and the decoder.
The arrangement `"paper"` leaves all of it to Monte Carlo (`paper`). Both are the same number in expectation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.likelihood.draws import check_fields, sites, stratified
from spatialdiff.likelihood.paper import paper_draws
from spatialdiff.likelihood.result import Likelihood
from spatialdiff.objectives.bound import Bound, default_proposal
from spatialdiff.objectives.proposals import Proposal, as_proposal

ARRANGEMENTS = ("closed", "paper")


def evidence_bound(
    denoiser: PosteriorMean,
    x: Tensor,
    *,
    samples: int = 32,
    decoder_samples: int = 4,
    t0: float | None = None,
    t1: float | None = None,
    decoder: str | None = None,
    prior: str | None = None,
    arrangement: str = "closed",
    form: str = "denoising",
    conditioning: str = "hybrid",
    control: bool = True,
    proposal: Proposal | str | None = None,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Likelihood:
    r"""A lower bound of log p(x) for each field, nats, with its standard error and its terms.

    For K > 1 it bounds the marginal density of the data: the auxiliary variables are integrated out
    (`conditioning="hybrid"`), or drawn, `log p(x) ≥ E_{q(v_0)}[log p(x, v_0) - log q(v_0)]` (`"full"`; the
    same number in expectation, of more variance).

    Args:
        denoiser: the posterior mean: a `Denoiser`, or an oracle.
        x: fields, `(B, C, *grid)`.
        samples: denoiser evaluations per field for the integral; even: two in each of `samples/2` parts of
            equal probability, which gives an unbiased standard error of stratified draws.
        decoder_samples: further evaluations per field for `decoder="network"`, even.
        t0: where the decoder takes over, by default where σ/α = 0.002; t1: the noise end, by default the
            law's own.
        decoder: p(x|u_{t0}): `"gaussian"` (exact posterior of the fitted law; closed), `"network"`
            (`N(D, V)`, V that posterior's covariance, or `Γ/I` without a fitted law) or `"state"`
            (`N(y/α, Γ/I)`; closed). By default the first where the denoiser has a fitted law, else the
            second.
        prior: `"stationary"`, `"noise"` (`N(o, Σ ⊗ Γ)`) or `"gaussian"` (the fitted marginal at t1). By
            default the stationary law of the process where it has one, else `"noise"`.
        arrangement: `"closed"` or `"paper"`. form: of the integrand, `"denoising"` or `"implicit"`.
        control: whether the fitted Gaussian model is a control variate.
        proposal: density of the times: `"analytic"`, `"log_snr"`, `"time"`, `"learned"`, or a `Proposal`; by
            default the first, and the second for the implicit form and the paper's arrangement, which are
            noisy at every level.
        batch_size: states per evaluation. generator: of the draws. condition: for the network.

    Raises:
        ValueError: unknown names, odd or too few samples, times out of order, fields of another shape.

    Sources: docs/theory, "Likelihood"; Singhal et al. 2023, arXiv 2302.07261; Kingma et al. 2021,
    arXiv 2107.00630, eq. 17.
    """
    if arrangement not in ARRANGEMENTS:
        raise ValueError(f"unknown arrangement {arrangement!r}; the choices are {', '.join(ARRANGEMENTS)}")
    for name, count in (("samples", samples), ("decoder_samples", decoder_samples)):
        if count < 2 or count % 2:
            raise ValueError(f"{name}={count}; needed an even number, at least 2")
    check_fields(denoiser, x)
    bound = Bound(
        denoiser,
        as_proposal(
            proposal, denoiser, default="log_snr" if arrangement == "paper" else default_proposal(form)
        ),
        t0=t0,
        t1=t1,
        prior=prior,
        decoder=decoder,
        form=form,
        conditioning=conditioning,
        control=control,
    )
    rounds = max(1, batch_size // max(len(x), 1))

    def diffusion(fields: Tensor, p: Tensor, **given: Any) -> Tensor:
        draw = bound.diffusion_draw(fields, p, generator, **given)
        bound.proposal.observe(bound.law, bound.interval, draw.levels, draw.value * draw.density)
        return draw.value

    with torch.no_grad():
        if arrangement == "paper":
            return paper_draws(bound, x, samples, decoder_samples, rounds, generator, condition)
        closed = bound.closed(x)
        value, variance = stratified(diffusion, x, samples, rounds, generator, condition)
        terms = {**closed, "diffusion": closed["diffusion"] - value}
        if bound.decoder == "network":

            def decoding(fields: Tensor, p: Tensor, **given: Any) -> Tensor:
                return bound.decoder_draw(fields, generator, **given)

            rest, more = stratified(decoding, x, decoder_samples, rounds, generator, condition)
            terms["decoder"] = terms["decoder"] - rest
            variance = variance + more
    total: Tensor = terms["prior"] + terms["diffusion"] + terms["decoder"]
    evaluations = samples + (decoder_samples if bound.decoder == "network" else 0)
    return Likelihood(total, variance.sqrt(), sites(denoiser), terms, evaluations)
