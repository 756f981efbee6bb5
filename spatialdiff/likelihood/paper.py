r"""The evidence bound as the multivariate-diffusion paper arranges it, for comparison.

    log p(x) ≥ E[ log p(x|u_{t0}) - log q(u_{t0}|x) + log π(u_{t1})
                  + ∫ ( ½‖∇log q‖²_{βG⊗Γ} - ½‖s - ∇log q‖²_{βG⊗Γ} + n tr F ) dt ]          (denoising)
    log p(x) ≥ E[ …  + ∫ ( -½‖s‖²_{βG⊗Γ} - ∇·((βG⊗Γ) s) + n tr F ) dt ]                       (implicit)

with every term by Monte Carlo: one state at t0, one at t1 and one inside for each draw (Singhal et al. 2023,
arXiv 2302.07261, eq. 9 and 10, with the correction at t0 of its appendix). The expectation is that of the
closed arrangement; `½ tr(Σ⁻¹βG) + tr F = ½ d/dt log det Σ` is what it leaves to chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spatialdiff.likelihood.densities import noise_log_density
from spatialdiff.likelihood.draws import sites, stratified
from spatialdiff.likelihood.result import Likelihood
from spatialdiff.objectives.bound import Bound
from spatialdiff.objectives.bound_terms import (
    closed_decoder,
    decoder_constant,
    decoder_excess,
    draw_state,
    model_mean,
)
from spatialdiff.objectives.sde_terms import (
    denoising_integrand,
    divergence_rate,
    energy,
    given_data,
    implicit_integrand,
    signs,
    trace_rate,
)
from spatialdiff.processes import NoiseProcess

if TYPE_CHECKING:
    from collections.abc import Callable


def paper_draws(
    bound: Bound,
    x: Tensor,
    samples: int,
    decoder_samples: int,
    rounds: int,
    generator: torch.Generator | None,
    condition: dict[str, Any],
) -> Likelihood:
    """The bound with all its terms drawn; arguments as in `evidence_bound`.

    Raises:
        ValueError: a bridge, a prior other than the stationary law or the noise, `conditioning="full"`.
    """
    law = bound.law
    if not isinstance(law, NoiseProcess) or bound.prior == "gaussian" or bound.conditioning == "full":
        raise ValueError(
            "arrangement='paper' is that of a noise process with prior='stationary' or 'noise' and "
            f"conditioning='hybrid'; got {type(law).__name__}, {bound.prior!r}, {bound.conditioning!r}"
        )
    arrangement = PaperArrangement(bound, law, generator)
    parts: dict[str, tuple[Callable[..., Tensor], int]] = {
        "prior": (arrangement.prior, samples),
        "diffusion": (arrangement.integral, samples),
        "decoder": (arrangement.decoder, decoder_samples if bound.decoder == "network" else samples),
    }
    terms, variance = {}, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for name, (draw, count) in parts.items():
        terms[name], spread = stratified(draw, x, count, rounds, generator, condition)
        variance = variance + spread
    total: Tensor = terms["prior"] + terms["diffusion"] + terms["decoder"]
    evaluations = samples + (decoder_samples if bound.decoder == "network" else 0)
    return Likelihood(total, variance.sqrt(), sites(bound.denoiser), terms, evaluations)


class PaperArrangement:
    """One draw of each term for a batch of fields, `(B,)` each."""

    def __init__(self, bound: Bound, process: NoiseProcess, generator: torch.Generator | None) -> None:
        self.bound, self.process, self.generator = bound, process, generator
        self.channels = bound.denoiser.channels

    def prior(self, x: Tensor, p: Tensor, **condition: Any) -> Tensor:
        """`log π(u_{t1})`."""
        process = self.process
        t = self.bound.at(self.bound.interval.t1)
        u, _ = draw_state(process, x, t.expand(len(x)), self.generator)
        if self.bound.prior == "noise":
            return noise_log_density(process, u, process.root(t))
        assert process.stationary is not None
        return noise_log_density(process, u, torch.linalg.cholesky(process.stationary))

    def decoder(self, x: Tensor, p: Tensor, **condition: Any) -> Tensor:
        """`log p(x|u_{t0}) - log q(u_{t0}|x)`."""
        bound, process = self.bound, self.process
        t = bound.at(bound.interval.t0)
        times = t.expand(len(x))
        u, noise = draw_state(process, x, times, self.generator)
        entropy = noise_log_density(process, process.mix(process.root(times), noise), process.root(t))
        terms = bound.decoder_terms
        if bound.decoder == "network":
            mean = bound.denoiser(u, times, **condition)
            # the whole error, not its difference to the model's
            model = model_mean(terms, u, times)
            value = closed_decoder(process, bound.decoder, x, t, terms)
            if terms is not None:
                assert model is not None
                value = value + terms.decoder_error(x, t) - self.model_error(x, model, t)
            return value - decoder_excess(process, x, mean, model, times, terms) - entropy
        constant = decoder_constant(process, t, self.channels, terms)
        if terms is not None:
            model = model_mean(terms, u, times)
            assert model is not None
            return constant - self.model_error(x, model, t) - entropy
        read = process.scale(1.0 / process.alpha(times), process.reduce(u.double(), times))
        error = read - x.double()
        scaled = process.scale(process.information(times), error)
        return constant - 0.5 * (error * process.covariance.solve(scaled)).flatten(1).sum(1) - entropy

    def model_error(self, x: Tensor, model: Tensor, t: Tensor) -> Tensor:
        """`½‖x - m‖²_{V⁻¹}`."""
        terms = self.bound.decoder_terms
        assert terms is not None
        error = x.double() - model
        scaled = terms.basis.multiply(error, terms.decoder_precision(t))
        return 0.5 * (error * self.process.covariance.solve(scaled)).flatten(1).sum(1)

    def integral(self, x: Tensor, p: Tensor, **condition: Any) -> Tensor:
        """The integrand at one time over the density of that time."""
        bound, process = self.bound, self.process
        levels, density = bound.proposal.quantile(process, bound.interval, p)
        t = process.time_of_log_snr(levels)
        u, noise = draw_state(process, x, t, self.generator)
        drift = divergence_rate(process, t, self.channels)
        if bound.form == "denoising":
            pulled = given_data(process, noise, t)
            mean = bound.denoiser(u, t, **condition)
            value = 0.5 * energy(process, pulled, t) - denoising_integrand(process, u, t, mean, pulled)
        else:
            with torch.enable_grad():
                state = u.detach().requires_grad_(True)
                mean = bound.denoiser(state, t, **condition)
                probe = signs(x, self.generator)
                value = implicit_integrand(process, state, t, mean, probe, create_graph=False).detach()
            value = 0.5 * trace_rate(process, t, self.channels) - value
        return (value + drift) / (process.log_snr_rate(t).abs() * density)
