r"""Log-densities by the probability flow: the exact change of variables.

    du/dt = v(u, t),        log p(u_{t0}) = log π(u_{t1}) + ∫_{t0}^{t1} ∇·v(u_t, t) dt

(Chen et al. 2018, arXiv 1806.07366; Song et al. 2021, arXiv 2011.13456, eq. 39). Integrated in
`log |t - end|`, in which the flow is smooth from the data to the noise, by the 8th-order method of Dormand
and Prince to a stated tolerance. `log π` has `log det Γ` and `uᵀΓ⁻¹u` in it.

At the data end there are two ways to begin, at a time t0 > 0:

- `start="data"` (K = 1): at the data themselves, `u_{t0} = α x + o`; what the flow does before t0 is left
  out, or, with a fitted Gaussian model, done exactly for that model, `x - μ → √(1 + 1/(ρI)) (x - μ)`;
- `start="noised"`: at a draw of `q(u_{t0}|x)`,
  `log p(x) ≥ E[log p(u_{t0}) + log p(x|u_{t0}) - log q(u_{t0}|x)]`, a bound on the marginal density of the
  data whatever K: the auxiliary variables are averaged over. For Gaussian data and the exact decoder every
  draw is exact, by Bayes' rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.likelihood.densities import noise_log_density, prior_log_density
from spatialdiff.likelihood.draws import check_fields, repeat, sites
from spatialdiff.likelihood.field import FlowField
from spatialdiff.likelihood.integration import integrate
from spatialdiff.likelihood.result import Likelihood
from spatialdiff.objectives.bound_terms import (
    closed_decoder,
    decoder_excess,
    draw_state,
    model_mean,
    resolve_decoder,
    resolve_prior,
)
from spatialdiff.objectives.gaussian_terms import GaussianTerms
from spatialdiff.objectives.interval import interval_of
from spatialdiff.objectives.sde_terms import signs
from spatialdiff.processes import Law

DIVERGENCES = ("hutchinson", "exact")
STARTS = ("data", "noised")


def probability_flow(
    denoiser: PosteriorMean,
    x: Tensor,
    *,
    divergence: str = "hutchinson",
    samples: int | None = None,
    start: str | None = None,
    t0: float | None = None,
    t1: float | None = None,
    prior: str | None = None,
    control: bool = True,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    generator: torch.Generator | None = None,
    **condition: Any,
) -> Likelihood:
    r"""Log-density of each field under the probability flow, nats, with its standard error.

    Args:
        denoiser: the posterior mean: a `Denoiser`, or an oracle.
        x: fields, `(B, C, *grid)`.
        divergence: `"hutchinson"`, or `"exact"`: one evaluation for each value of a field, for small ones.
        samples: repetitions with another probe, and for `start="noised"` another state; at least 2 where
            anything is random, which is the default 4's; else 1.
        start: `"data"` (the default for K = 1) or `"noised"` (for K > 1): see the module.
        t0: where the flow begins, by default where σ/α = 0.002; t1: where it ends, by default the noise
            end.
        prior: `"stationary"`, `"noise"` or `"gaussian"`, as for `evidence_bound`.
        control: whether the trace of the fitted Gaussian model is taken out of Hutchinson's estimator, and
            the model used before t0.
        rtol, atol: tolerances of the integrator, on states and on nats per site.
        generator: of the draws. condition: for the network.

    Raises:
        ValueError: unknown names, `start="data"` with auxiliary variables, too few samples, other fields.
        RuntimeError: a law without a probability flow, or an integration that fails.
    """
    law = denoiser.law
    check_fields(denoiser, x)
    if divergence not in DIVERGENCES:
        raise ValueError(f"unknown divergence {divergence!r}; the choices are {', '.join(DIVERGENCES)}")
    start = ("data" if law.variables == 1 else "noised") if start is None else start
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}; the choices are {', '.join(STARTS)}")
    if start == "data" and law.variables > 1:
        raise ValueError(
            f"start='data' needs one variable per site, and this process has {law.variables}: the others are "
            "not observed; use start='noised', which averages over them"
        )
    if not law.deterministic_flow:
        raise RuntimeError(f"{type(law).__name__} has no probability flow: its start is a point")
    random = divergence == "hutchinson" or start == "noised"
    count = (4 if random else 1) if samples is None else samples
    if count < (2 if random else 1):
        raise ValueError(f"samples={count}; a standard error needs at least 2")

    model = getattr(denoiser, "gaussian", None)
    terms = GaussianTerms(model, law, denoiser.channels) if isinstance(model, GaussianModel) else None
    chosen = resolve_prior(law, prior, terms)
    interval = interval_of(law, t0, t1)
    device = law.covariance.device
    near, far = (torch.tensor(t, dtype=torch.float64, device=device) for t in (interval.t0, interval.t1))
    fields = repeat(x, count, len(x))
    given = {name: repeat(value, count, len(x)) for name, value in condition.items()}
    with torch.no_grad():
        if start == "data":
            state, first = carried(law, fields, near, terms if control else None)
        else:
            state, first = noised(denoiser, fields, near, terms, generator, given)
        probe = signs(fields, generator) if divergence == "hutchinson" else None
        flow = FlowField(denoiser, terms if control else None, probe, given)
        last, growth, calls = integrate(flow, state, near, far, rtol, atol)
        end = prior_log_density(law, chosen, last, far, terms)
        parts = {"start": first, "divergence": growth, "prior": end}
        shaped = {name: value.reshape(count, len(x)) for name, value in parts.items()}
        total = torch.stack(list(shaped.values())).sum(0)
        spread = total.std(0) / count**0.5 if count > 1 else torch.zeros_like(total[0])
    averaged = {name: value.mean(0) for name, value in shaped.items()}
    each = (1 if divergence == "hutchinson" else 1 + x[0].numel()) * count
    return Likelihood(total.mean(0), spread, sites(denoiser), averaged, calls * each)


def carried(law: Law, x: Tensor, t: Tensor, terms: GaussianTerms | None) -> tuple[Tensor, Tensor]:
    """`u_{t0}` that the flow takes the data to, and the log-determinant of that map, `(B,)`."""
    alpha = law.marginal(t)[0][..., 0]
    size = law.covariance.domain.size * x.shape[1]
    if law.basis is None:
        growth = (size * alpha.log()).expand(len(x))
    else:
        weights = law.basis.weights.to(alpha)
        growth = (size * (alpha.log() * weights).sum() / weights.sum()).expand(len(x))
    if terms is not None:
        strength = terms.rho * terms.per_mode(t)
        # modes in which the data have no variance stay where they are
        wider = torch.where(strength > 0.0, 1.0 / torch.where(strength > 0.0, strength, 1.0), 0.0)
        centred = terms.model.centre(x.double())
        x = terms.model.shift(terms.basis.multiply(centred, (1.0 + wider).sqrt())).to(x)
        growth = growth + 0.5 * terms.total(wider.log1p().expand(1, *terms.rho.shape))
    return law.mean(x, t), growth


def noised(
    denoiser: PosteriorMean,
    x: Tensor,
    t: Tensor,
    terms: GaussianTerms | None,
    generator: torch.Generator | None,
    condition: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """A draw of `q(u_{t0}|x)` and `log p(x|u_{t0}) - log q(u_{t0}|x)`, `(B,)`."""
    law = denoiser.law
    u, noise = draw_state(law, x, t, generator)
    entropy = noise_log_density(law, law.mix(law.root(t), noise), law.root(t))
    times = t.expand(len(x))
    decoder = resolve_decoder(None, terms)
    value = closed_decoder(law, decoder, x, t, terms)
    if terms is None:
        value = value - decoder_excess(law, x, denoiser(u, times, **condition), None, times, None)
    else:
        # of this draw, not its mean
        model = model_mean(terms, u, times)
        assert model is not None
        error = x.double() - model
        scaled = terms.basis.multiply(error, terms.decoder_precision(times))
        of_draw = 0.5 * (error * law.covariance.solve(scaled)).flatten(1).sum(1)
        value = value + terms.decoder_error(x, t) - of_draw
    return u, value - entropy
