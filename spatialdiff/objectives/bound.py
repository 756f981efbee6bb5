r"""An evidence bound set up for one denoiser: its closed terms, and one Monte-Carlo draw of what is left.

    bound = - prior - (closed diffusion + E[diffusion draws]) + (closed decoder - E[decoder draws])

(`bound_terms`). One diffusion draw is one evaluation of the denoiser at a random time, divided by the density
of that time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.objectives.bound_terms import (
    closed_decoder,
    decoder_excess,
    draw_state,
    model_mean,
    prior_divergence,
    resolve_decoder,
    resolve_prior,
    weighted_error,
)
from spatialdiff.objectives.gaussian_terms import GaussianTerms
from spatialdiff.objectives.interval import Interval, interval_of, measure
from spatialdiff.objectives.proposals import Proposal
from spatialdiff.objectives.sde_terms import (
    check_conditioning,
    denoising_integrand,
    draw_given_start,
    given_data,
    implicit_integrand,
    mutual_information,
    signs,
)
from spatialdiff.processes import NoiseProcess

FORMS = ("denoising", "implicit")


def default_proposal(form: str) -> str:
    """`"analytic"` for the score error; `"log_snr"` for the implicit form, which is noisy at every level."""
    return "log_snr" if form == "implicit" else "analytic"


@dataclass(frozen=True)
class Draw:
    """One draw for each field, `(B,)` each: the level `λ`, its density, the integrand over the density."""

    levels: Tensor
    density: Tensor
    value: Tensor


class Bound:
    """The bound of a denoiser on fields of its channels, between the times of `interval`.

    Args:
        denoiser: the posterior mean. interval: where the integral runs. proposal: density of its times.
        prior, decoder: by name, or None for the defaults (`bound_terms`).
        form: `"denoising"`, or `"implicit"`, in which the data do not appear beside the state.
        conditioning: `"hybrid"`, or `"full"`: the auxiliary start is drawn and kept in view, for K > 1.
        control: whether the closed part of the fitted Gaussian model is taken out of the Monte Carlo.
    """

    def __init__(
        self,
        denoiser: PosteriorMean,
        proposal: Proposal,
        *,
        t0: float | None = None,
        t1: float | None = None,
        prior: str | None = None,
        decoder: str | None = None,
        form: str = "denoising",
        conditioning: str = "hybrid",
        control: bool = True,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; the choices are {', '.join(FORMS)}")
        law = denoiser.law
        self.denoiser, self.law, self.proposal = denoiser, law, proposal
        self.form, self.conditioning = form, check_conditioning(conditioning)
        if not isinstance(law, NoiseProcess) and (form, conditioning) != ("denoising", "hybrid"):
            raise ValueError(
                f"form={form!r} with conditioning={conditioning!r} needs a noise process, not a "
                f"{type(law).__name__}; use form='denoising' and conditioning='hybrid'"
            )
        self.interval: Interval = interval_of(law, t0, t1)
        model = getattr(denoiser, "gaussian", None)
        self.terms = (
            GaussianTerms(model, law, denoiser.channels) if isinstance(model, GaussianModel) else None
        )
        self.prior = resolve_prior(law, prior, self.terms)
        self.decoder = resolve_decoder(decoder, self.terms)
        # the control variate belongs to the integrand of the denoising form
        self.control = control and (form, conditioning) == ("denoising", "hybrid") and self.terms is not None

    def at(self, time: float) -> Tensor:
        """A time as the law wants it, ``()`` float64."""
        return torch.tensor(time, dtype=torch.float64, device=self.law.covariance.device)

    def closed(self, x: Tensor) -> dict[str, Tensor]:
        """The closed parts of the terms `prior`, `diffusion` and `decoder`, `(B,)` each, with their signs."""
        t0, t1 = self.at(self.interval.t0), self.at(self.interval.t1)
        diffusion = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if self.control:
            assert self.terms is not None
            diffusion = -self.terms.diffusion(x, t0, t1)
        # the implicit form has no conditional score in it, and so the same value under either conditioning
        if self.conditioning == "full" and self.form == "denoising":
            law = self.law
            assert isinstance(law, NoiseProcess)
            gained = [mutual_information(law, t, x.shape[1]) for t in (t0, t1)]
            diffusion = diffusion + gained[0] - gained[1]
        return {
            "prior": -prior_divergence(self.law, self.prior, x, t1, self.terms),
            "diffusion": diffusion,
            "decoder": closed_decoder(self.law, self.decoder, x, t0, self.decoder_terms),
        }

    @property
    def decoder_terms(self) -> GaussianTerms | None:
        return None if self.decoder == "state" else self.terms

    def mean_and_model(self, u: Tensor, t: Tensor, **condition: Any) -> tuple[Tensor, Tensor | None]:
        mean = self.denoiser(u, t, **condition)
        return mean, model_mean(self.terms, u, t) if self.control else None

    def diffusion_draw(
        self, x: Tensor, p: Tensor, generator: torch.Generator | None = None, **condition: Any
    ) -> Draw:
        """One unbiased draw of what is left of `½ ∫ E‖x - D‖² dI`, at the quantiles `p` `(B,)`."""
        law = self.law
        levels, density = self.proposal.quantile(law, self.interval, p)
        with torch.no_grad():
            t = law.time_of_log_snr(levels)
        if self.form == "denoising" and self.conditioning == "hybrid":
            u, _ = draw_state(law, x, t, generator)
            mean, model = self.mean_and_model(u, t, **condition)
            value = 0.5 * weighted_error(law, measure(law, t, density), x, mean, model)
            return Draw(levels, density, value)
        value = self.by_score(x, t, generator, **condition)
        with torch.no_grad():
            speed = law.log_snr_rate(t).abs() * density
        return Draw(levels, density, value / speed)

    def by_score(self, x: Tensor, t: Tensor, generator: torch.Generator | None, **condition: Any) -> Tensor:
        """The integrand per unit time in the form of the SDE."""
        law = self.law
        assert isinstance(law, NoiseProcess)
        if self.conditioning == "full":
            u, pulled = draw_given_start(law, x, t, generator)
        else:
            u, noise = draw_state(law, x, t, generator)
            pulled = given_data(law, noise, t)
        if self.form == "denoising":
            return denoising_integrand(law, u, t, self.denoiser(u, t, **condition), pulled)
        learning = torch.is_grad_enabled()
        probe = signs(x, generator)
        with torch.enable_grad():
            # the state itself may depend on parameters of the process
            state = u if u.requires_grad else u.detach().requires_grad_(True)
            mean = self.denoiser(state, t, **condition)
            value = implicit_integrand(law, state, t, mean, probe, create_graph=learning)
        return value if learning else value.detach()

    def decoder_draw(self, x: Tensor, generator: torch.Generator | None = None, **condition: Any) -> Tensor:
        """One draw of what is left of the decoder `"network"`, `(B,)`, to be subtracted."""
        t = self.at(self.interval.t0).expand(len(x))
        u, _ = draw_state(self.law, x, t, generator)
        mean = self.denoiser(u, t, **condition)
        terms = self.decoder_terms
        return decoder_excess(self.law, x, mean, model_mean(terms, u, t), t, terms)
