r"""The evidence bound as an objective: it trains the network, the noise process and Γ together.

    min  E_x[ KL(q(u_{t1}|x) ‖ π) + ½ ∫ E‖x - D(u_t, t)‖²_{Γ⁻¹} dI - E log p(x | u_{t0}) ] / n

nats per value of a field. All three terms are differentiable in the network, in the process (learned Q, D, S,
β: through φ, Σ, I and dI/dt at fixed times) and in the parameters of Γ; a denoising loss is not a bound in
the last two, and would shrink them to nothing (Singhal et al. 2023, arXiv 2302.07261, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.denoisers.denoiser import Denoiser
from spatialdiff.objectives.bound import FORMS, Bound, default_proposal
from spatialdiff.objectives.proposals import Proposal, as_proposal
from spatialdiff.objectives.weighting import check_batch


class EvidenceBound(nn.Module):
    r"""Negative evidence bound, nats per site and channel; called on a batch `(B, C, *grid)` it is a scalar.

    One time and one network evaluation per field, the times stratified over the batch.

    Args:
        denoiser: a `Denoiser` for a noise process, or for a bridge whose law given the data is closed.
        form: `"denoising"`, or `"implicit"` (Hutchinson's estimator; equal in expectation, of more variance).
        proposal: of the times: `"analytic"` (under the denoiser's fitted law, or `N(0, Γ)`; the default of
            the denoising form), `"learned"` (adapted to the losses, saved with the module), `"log_snr"` (the
            default of the implicit form, whose integrand is noisy everywhere), `"time"`, or a `Proposal`.
        t0: where the decoder takes over; by default where σ/α = 0.002.
        prior: `"stationary"`, `"noise"` (`N(o, Σ ⊗ Γ)`) or `"gaussian"` (the fitted marginal).
        decoder: `"gaussian"` (exact posterior of the fitted law; closed), `"state"` (`N(y/α, Γ/I)`; closed)
            or `"network"` (`N(D, ·)`; one more evaluation per field). By default `"gaussian"` where the
            denoiser has a fitted law, else `"state"`.
        conditioning: `"hybrid"`, or `"full"`: the auxiliary start is drawn and kept in view.

    Raises:
        ValueError: unknown names, times out of order, a bridge of pairs; when called, a batch of another
            shape or with values that are not finite.

    Sources: docs/theory, "Likelihood"; Singhal et al. 2023, arXiv 2302.07261, eq. 9 and 10; Kingma et al.
    2021, arXiv 2107.00630.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        form: str = "denoising",
        proposal: Proposal | str | None = None,
        *,
        t0: float | None = None,
        prior: str | None = None,
        decoder: str | None = None,
        conditioning: str = "hybrid",
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; the choices are {', '.join(FORMS)}")
        self.denoiser = denoiser
        self.form = form
        self.proposal = as_proposal(proposal, denoiser, default=default_proposal(form))
        self.options: dict[str, Any] = {
            "t0": t0,
            "prior": prior,
            "decoder": decoder,
            "conditioning": conditioning,
        }
        self.bound()  # raises here, not in the first step

    def bound(self) -> Bound:
        """The bound under the present parameters of the process."""
        options = dict(self.options)
        if options["decoder"] is None and self.denoiser.gaussian is None:
            options["decoder"] = "state"
        return Bound(self.denoiser, self.proposal, form=self.form, **options)

    def forward(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        **condition: Any,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            x: data, `(B, C, *grid)`.
            generator: source of the times and of the noise.
            **condition: keyword arguments for the network.
        """
        check_batch(x, self.denoiser)
        bound = self.bound()
        count = len(x)
        p = torch.rand(1, generator=generator, dtype=torch.float64, device=x.device)
        p = (p + torch.arange(count, dtype=torch.float64, device=x.device) / count).remainder(1.0)
        draw = bound.diffusion_draw(x, p, generator, **condition)
        if self.training:
            # the integrand per unit of log I, not the importance-weighted value
            self.proposal.observe(bound.law, bound.interval, draw.levels, draw.value * draw.density)
        value: Tensor = sum(bound.closed(x).values(), start=-draw.value)
        if bound.decoder == "network":
            value = value - bound.decoder_draw(x, generator, **condition)
        return -value.mean() / (bound.law.covariance.domain.size * x.shape[1])
