r"""Denoising: the posterior mean by regression on noised data.

    min  E_t E_{x, η} ‖target(x, η, t) - F(u_t, t)‖²,      u_t = α_t x + σ_t η,   η ~ N(0, Γ)

(Song et al. 2021, arXiv 2011.13456, eq. 7, and Vincent 2011.) Γ enters through the draw of η, and through the
metric only where `weighting="whitened"` asks for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.denoisers.denoiser import Denoiser
from spatialdiff.objectives.times import TimeDistribution, time_distribution
from spatialdiff.objectives.weighting import check_batch, check_weighting, weighted_loss
from spatialdiff.processes import Bridge, expand


class Denoising(nn.Module):
    r"""`E_t E_{x, η} ‖target - F‖²`; called on a batch `(B, C, *grid)` it returns a scalar.

    Args:
        denoiser: a `Denoiser` for a noise process.
        times: how times are drawn: `"fitted"` (where the modes of the denoiser's `data` emerge), `"edm"`,
            `"log_snr"`, `"uniform"`, or a `TimeDistribution`.
        weighting: `"network"`, `"data"` or `"whitened"`.

    Raises:
        TypeError: the denoiser is for a bridge.
        ValueError: unknown names; when called, a batch of another shape or with values that are not finite.

    Source: Song et al. 2021, arXiv 2011.13456, eq. 7; Karras et al. 2022, arXiv 2206.00364, eq. 8.
    """

    def __init__(
        self, denoiser: Denoiser, *, times: TimeDistribution | str = "edm", weighting: str = "network"
    ) -> None:
        super().__init__()
        if isinstance(denoiser.process, Bridge):
            raise TypeError(f"{type(denoiser.process).__name__} is a bridge: train it with sd.BridgeMixture")
        self.denoiser = denoiser
        self.times = time_distribution(times, denoiser)
        self.weighting = check_weighting(weighting)

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
        t = self.times.draw(law, len(x), generator=generator) if t is None else self.denoiser.times(x, t)
        noise = law.draw(len(x), x.shape[1], white=white, generator=generator, dtype=x.dtype, device=x.device)
        u = law.mean(x, t) + expand(law.sigma(t), x) * noise
        return weighted_loss(self.denoiser, self.weighting, x, noise, u, t, **condition)
