r"""Bridge mixtures: the posterior mean of the endpoint by regression on bridges.

    min  E_t E ‖target(x_τ, t) - F(X_t, t)‖²,      X_t ~ N(c_0 x_0 + c_τ x_τ, v_b Γ),   (x_0, x_τ) ~ Π

The mixture of the bridges over Π is then the diffusion with drift `αβ X + β a(t,τ)(E[X_τ | X_t] - a(t,τ)
X)/v(t,τ)`, which carries the law of `x_0` to the data (Peluchetti, arXiv 2312.14589). Γ cancels in the drift:
training needs draws from `N(0, Γ)` and nothing else. Where `x_0` given `x_τ` is Gaussian it is integrated
out, and a state is drawn in one go from its law given the data. All of it holds for K variables per site
(`LinearBridge`), with the network the posterior mean of the data variable still.

The relative entropy of the bridges, up to a time `s < τ`, to the diffusion with `D_θ` in its drift is

    ½ ∫_0^s κ(t) E ‖D_θ(u_t, t) - x_τ‖²_{Γ⁻¹} dt,     κ = (wJ)ᵀ Q wJ,  for one variable β (a/v)²

(Girsanov; `path_rate` of a bridge), an upper bound on `KL(u_s ‖ model at s)`. It grows like `½ n log I(s)`,
as the bridges, unlike the model, know where they end; what of it depends on θ stays finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.denoisers.denoiser import Denoiser
from spatialdiff.objectives.times import TimeDistribution, time_distribution
from spatialdiff.objectives.weighting import (
    check_batch,
    check_norm,
    check_weighting,
    times_given,
    weighted_loss,
)
from spatialdiff.processes import Coupling, Law, Pinned, started_law

FORMS = ("endpoint", "drift", "path_kl")


class BridgeMixture(nn.Module):
    r"""`E_t E ‖target - F‖²` over bridges; called on a batch `(B, C, *grid)`, or on pairs, it returns a
    scalar.

    Args:
        denoiser: a `Denoiser` for a bridge.
        coupling: how the start is drawn: `"fixed"`, `"independent"`, `"paired"` or a `Coupling`; may be left
            out where the denoiser is bound to one already.
        form: `"endpoint"` regresses the endpoint in the metric of `weighting`; `"drift"` the drift of the
            mixture, that is `(β a/v)² ‖x_τ - D‖²`, which gives all the weight to the end of the bridge;
            `"path_kl"` estimates the bound on the relative entropy above, in nats per value of a field, over
            the times that `times` covers, whatever their distribution there (least noisy with `"log_snr"`).
        times: how times are drawn: `"fitted"` (where the modes of the denoiser's `data` emerge), `"edm"`,
            `"log_snr"`, `"uniform"`, or a `TimeDistribution`.
        weighting: `"network"`, `"uniform"`, `"snr"`, `"min_snr"` or `"edm"`, for `form="endpoint"`.
        norm: of the error of the endpoint, `"coloured"` or `"whitened"`.
        condition_on_start: with pairs, whether the network is shown the start, as the keyword argument
            `start`.

    Raises:
        TypeError: the denoiser is for a noise process.
        ValueError: unknown names, a coupling that contradicts the denoiser's; when called, a batch of another
            shape or with values that are not finite, pairs where none are used or none where they are.
        RuntimeError: no coupling, neither here nor in the denoiser.

    Source: Peluchetti, arXiv 2312.14589.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        coupling: Coupling | str | None = None,
        *,
        form: str = "endpoint",
        times: TimeDistribution | str = "edm",
        weighting: str = "network",
        norm: str = "coloured",
        condition_on_start: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser.process, Pinned):
            raise TypeError(f"{type(denoiser.process).__name__} is not a bridge: train it with sd.Denoising")
        if form not in FORMS:
            raise ValueError(f"unknown form {form!r}; the choices are {', '.join(FORMS)}")
        if coupling is not None:
            denoiser.bind(coupling, condition_on_start=condition_on_start)
        denoiser.law  # noqa: B018  raises, saying what to do, where no coupling is bound
        self.denoiser = denoiser
        self.form = form
        self.times = time_distribution(times, denoiser)
        self.weighting = check_weighting(weighting)
        self.norm = check_norm(norm)

    def forward(
        self,
        x1: Tensor | tuple[Tensor, Tensor],
        x0: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        white: Tensor | None = None,
        t: Tensor | None = None,
        **condition: Any,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            x1: data `(B, C, *grid)`, or the pair `(x1, x0)`.
            x0: the starts, with coupling `"paired"`.
            generator: source of the times and of the noise.
            white: the white noise z of η = R z, in place of a draw.
            t: the times `(B,)`, in place of a draw.
            **condition: keyword arguments for the network.
        """
        if not isinstance(x1, Tensor):
            x1, x0 = x1
        check_batch(x1, self.denoiser, "x1")
        given = self.law_given(x1, x0)
        if self.denoiser.condition_on_start:
            condition["start"] = x0
        t = self.times.draw(given, len(x1), generator=generator) if t is None else times_given(x1, t)
        noise = given.draw(
            len(x1), x1.shape[1], white=white, generator=generator, dtype=x1.dtype, device=x1.device
        )
        state = given.mean(x1, t) + given.mix(given.root(t), noise)
        if self.form == "endpoint":
            return weighted_loss(
                self.denoiser, self.weighting, x1, noise, state, t, norm=self.norm, **condition
            )
        data = self.denoiser(state, t, **condition)
        if self.form == "drift":
            return (given.reverse_drift(state, data, t) - given.reverse_drift(state, x1, t)).square().mean()
        bridge, error = self.denoiser.process, data - x1
        assert isinstance(bridge, Pinned)
        # the density of t is that of log I times the rate of log I
        weight = 0.5 * bridge.path_rate(t) / path_density(self.times, given, t)
        squared = (given.scale(weight, error) * self.denoiser.covariance.solve(error)).flatten(1).sum(1)
        return squared.mean() / x1[0].numel()

    def law_given(self, x1: Tensor, x0: Tensor | None) -> Law:
        """The law of the state given the data, and the start where it comes with the data."""
        coupling, bridge = self.denoiser.coupling, self.denoiser.process
        assert coupling is not None
        assert isinstance(bridge, Pinned)
        if not coupling.needs_initial:
            if x0 is not None:
                raise ValueError(f"{coupling!r} draws x0 itself; pass x0 with coupling='paired' only")
            return self.denoiser.law
        if x0 is None:
            raise ValueError("coupling='paired' needs x0 for every x1: pass (x1, x0)")
        check_batch(x0, self.denoiser, "x0")
        if x0.shape != x1.shape:
            raise ValueError(f"x0 has shape {tuple(x0.shape)} and x1 {tuple(x1.shape)}; pairs must match")
        return started_law(bridge, x0)


def path_density(times: TimeDistribution, law: Law, t: Tensor) -> Tensor:
    """The density of the times `t` that `times` draws, `(*t)` and an axis for each mode of the law."""
    density = times.density(law, t) * law.log_snr_rate(t).abs()
    modes = 0 if law.basis is None else len(law.basis.modes)
    return density.detach().reshape((*density.shape, *[1] * modes))
