r"""Denoising: the posterior mean by regression on noised data.

    min  E_t E_{x, η} w(t) ‖x - D(u_t, t)‖²,      u_t = φ_t ⊗ x + (L_t ⊗ I) η,   η ~ N(0, I ⊗ Γ)

(Song et al. 2021, arXiv 2011.13456, eq. 7, and Vincent 2011.) Γ enters through the draw of η, and through the
metric only where `norm="whitened"` or `weighting="likelihood"` asks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.denoisers.denoiser import Denoiser
from spatialdiff.objectives.bound_terms import draw_state
from spatialdiff.objectives.interval import interval_of, measure
from spatialdiff.objectives.proposals import PROPOSALS, Proposal, as_proposal
from spatialdiff.objectives.sde_terms import check_conditioning, draw_given_start
from spatialdiff.objectives.times import TimeDistribution, time_distribution
from spatialdiff.objectives.weighting import (
    check_batch,
    check_norm,
    check_weighting,
    times_given,
    weighted_losses,
)
from spatialdiff.processes import Law, NoiseProcess, Pinned


class Denoising(nn.Module):
    r"""`E_t E_{x, η} w ‖x - D‖²`; called on a batch `(B, C, *grid)` it returns a scalar.

    Args:
        denoiser: a `Denoiser` for a noise process.
        times: how times are drawn: `"fitted"` (where the modes of the denoiser's `data` emerge), `"edm"`,
            `"log_snr"`, `"uniform"`, or a `TimeDistribution`. A `Proposal`, `"analytic"` or `"learned"`,
            importance-samples: the objective is then the integral over `log I`, whatever the proposal.
        weighting: `"network"`, `"uniform"`, `"snr"`, `"min_snr"`, `"edm"` or `"likelihood"` (`weighting`).
        norm: of the error of the data, `"coloured"` or `"whitened"`; for `"network"` it has no meaning.
        conditioning: `"hybrid"` (the auxiliary start integrated out), or `"full"`: it is drawn, and the noise
            regressed is that given it. The optimum is the same; the two differ for predictions of noise.

    Raises:
        TypeError: the denoiser is for a bridge.
        ValueError: unknown names; when called, a batch of another shape or with values that are not finite.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 7; Karras et al. 2022, arXiv 2206.00364, eq. 8; Dockhorn
    et al. 2022, arXiv 2112.07068, for `"hybrid"`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        times: TimeDistribution | Proposal | str = "edm",
        weighting: str = "network",
        norm: str = "coloured",
        conditioning: str = "hybrid",
    ) -> None:
        super().__init__()
        if isinstance(denoiser.process, Pinned):
            raise TypeError(f"{type(denoiser.process).__name__} is a bridge: train it with sd.BridgeMixture")
        if denoiser.process.learned_parameters():
            raise ValueError(
                f"{type(denoiser.process).__name__} learns parameters of its own, and denoising losses of "
                "different processes cannot be compared: train it with sd.EvidenceBound"
            )
        self.denoiser = denoiser
        self.times: TimeDistribution | Proposal
        if isinstance(times, Proposal) or times in PROPOSALS[:2]:
            self.times = as_proposal(times, denoiser)
        else:
            self.times = time_distribution(times, denoiser)
        self.weighting = check_weighting(weighting)
        self.norm = check_norm(norm)
        self.conditioning = check_conditioning(conditioning)

    def forward(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        white: Tensor | None = None,
        t: Tensor | None = None,
        **condition: Any,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            x: data, `(B, C, *grid)`.
            generator: source of the times and of the noise.
            white: the white noise z of η = R z, in place of a draw.
            t: the times `(B,)`, in place of a draw.
            **condition: keyword arguments for the network.
        """
        check_batch(x, self.denoiser)
        law = self.denoiser.law
        if t is not None:
            return self.losses(law, x, times_given(x, t), None, generator, white, condition).mean()
        if isinstance(self.times, Proposal):
            return self.importance_sampled(law, self.times, x, generator, white, condition)
        t = self.times.draw(law, len(x), generator=generator)
        importance = None
        if self.weighting == "likelihood":
            importance = measure(law, t, self.times.density(law, t))
        return self.losses(law, x, t, importance, generator, white, condition).mean()

    def importance_sampled(
        self,
        law: Law,
        proposal: Proposal,
        x: Tensor,
        generator: torch.Generator | None,
        white: Tensor | None,
        condition: dict[str, Any],
    ) -> Tensor:
        """The mean over a uniform `log I`, or for `"likelihood"` the integral, at times of the proposal."""
        interval = interval_of(law)
        count = len(x)
        p = torch.rand(1, generator=generator, dtype=torch.float64, device=x.device)
        p = (p + torch.arange(count, dtype=torch.float64, device=x.device) / count).remainder(1.0)
        levels, density = proposal.quantile(law, interval, p)
        with torch.no_grad():
            t = law.time_of_log_snr(levels)
        # the likelihood weighting divides by the density itself
        likelihood = self.weighting == "likelihood"
        importance = measure(law, t, density) if likelihood else None
        losses = self.losses(law, x, t, importance, generator, white, condition)
        if not likelihood:
            losses = losses / (density * (interval.high - interval.low)).to(losses)
        if self.training:
            proposal.observe(law, interval, levels, losses * density.to(losses))
        return losses.mean()

    def losses(
        self,
        law: Law,
        x: Tensor,
        t: Tensor,
        importance: Tensor | None,
        generator: torch.Generator | None,
        white: Tensor | None,
        condition: dict[str, Any],
    ) -> Tensor:
        """The losses `(B,)` at given times."""
        if self.conditioning == "full":
            if not isinstance(law, NoiseProcess):
                raise ValueError(f"conditioning='full' needs a noise process, not a {type(law).__name__}")
            if white is not None:
                raise ValueError("white= is the noise of conditioning='hybrid'; use generator= with 'full'")
            u, pulled = draw_given_start(law, x, t, generator)
            # the noise that the state has given data and start, in the units of the hybrid law's
            noise = law.mix(law.root(t).mT, pulled)
        else:
            u, noise = draw_state(law, x, t, generator, white)
        return weighted_losses(
            self.denoiser,
            self.weighting,
            x,
            noise,
            u,
            t,
            norm=self.norm,
            importance=importance,
            **condition,
        )
