r"""How errors of a posterior mean are weighted; every choice has the same optimum, `E[x | u_t]`.

The loss per value of a field is `w ‖x - D‖²/n`, `I = α²/σ²` the information of the state (`processes.law`):

| weighting      | w                                                                               |
|----------------|---------------------------------------------------------------------------------|
| `"network"`    | none: `(F - target)²`, the network's output; unit variance under `edm`, `wiener` |
| `"uniform"`    | 1                                                                                      |
| `"snr"`        | `I`: a noise prediction's (Ho et al. 2020, arXiv 2006.11239, eq. 14)                   |
| `"min_snr"`    | `min(I, 5)` (Hang et al. 2023, arXiv 2303.09556, eq. 8)                                |
| `"edm"`        | `(I + 1/ρ)`, ρ the pixels' variance over Γ's (Karras et al. 2022, arXiv 2206.00364)    |
| `"likelihood"` | `½ |dI|` over the probability of the time: with `norm="whitened"` the integral in the  |
|                | evidence bound, whatever the distribution of the times (theory, "Likelihood")          |

The norm is `‖e‖² = Σ e²` for `norm="coloured"` and `eᵀΓ⁻¹e`, that of the whitened fields, for `"whitened"`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.denoiser import Denoiser
from spatialdiff.objectives.gaussian_terms import information
from spatialdiff.processes import Law

WEIGHTINGS = ("network", "uniform", "snr", "min_snr", "edm", "likelihood")
NORMS = ("coloured", "whitened")
#: γ of min-SNR
SNR_LIMIT = 5.0


def check_weighting(weighting: str) -> str:
    """The name, or `ValueError` listing the known ones."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {weighting!r}; the choices are {', '.join(WEIGHTINGS)}")
    return weighting


def check_norm(norm: str) -> str:
    """The name, or `ValueError` listing the known ones."""
    if norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; the choices are {', '.join(NORMS)}")
    return norm


def loss_weight(
    weighting: str, denoiser: Denoiser, law: Law, t: Tensor, norm: str, importance: Tensor | None
) -> Tensor:
    """w `(*t, [modes])`, float64; `importance` is `|dI|` over the probability, for `"likelihood"`."""
    level = information(law, t)
    if weighting == "uniform":
        return torch.ones_like(level)
    if weighting == "snr":
        return level
    if weighting == "min_snr":
        return level.clamp(max=SNR_LIMIT)
    if weighting == "likelihood":
        if importance is None:
            raise ValueError(
                "weighting='likelihood' needs the density of the times: leave t= to the objective, or give a "
                "TimeDistribution or a Proposal"
            )
        return 0.5 * importance
    gamma = law.covariance.variance().detach().double().mean()
    model = denoiser.gaussian
    covariance = None if model is None else model.data_covariance
    pixels = torch.ones_like(gamma) if covariance is None else covariance.variance().detach().double().mean()
    # so that a model of independent pixels has a loss of 1 at every level
    return (level + gamma / pixels) / (gamma if norm == "coloured" else 1.0)


def weighted_losses(
    denoiser: Denoiser,
    weighting: str,
    x: Tensor,
    noise: Tensor,
    u: Tensor,
    t: Tensor,
    *,
    norm: str = "coloured",
    importance: Tensor | None = None,
    **condition: Any,
) -> Tensor:
    """The losses of states `u = φ ⊗ x + (L ⊗ I) η + o` at times `t`, `(B,)`, per value of a field."""
    output = denoiser.predict(u, t, **condition)
    if weighting == "network":
        return (output - denoiser.target(x, noise, t, **condition)).square().flatten(1).mean(1)
    error = denoiser.decode(output, u, t, **condition) - x
    law = denoiser.conditional_law(**condition)
    scaled = error
    if weighting != "uniform":
        scaled = law.scale(loss_weight(weighting, denoiser, law, t, norm, importance), error)
    if norm == "coloured":
        return (error * scaled).flatten(1).mean(1)
    # not quad_form, whose channels depend on Γ: one product for all of a field
    return (scaled * denoiser.covariance.solve(error)).flatten(1).sum(1) / x[0].numel()


def weighted_loss(
    denoiser: Denoiser,
    weighting: str,
    x: Tensor,
    noise: Tensor,
    u: Tensor,
    t: Tensor,
    *,
    norm: str = "coloured",
    importance: Tensor | None = None,
    **condition: Any,
) -> Tensor:
    """The mean of `weighted_losses`, a scalar."""
    losses = weighted_losses(
        denoiser, weighting, x, noise, u, t, norm=norm, importance=importance, **condition
    )
    return losses.mean()


def check_batch(x: Tensor, denoiser: Denoiser, name: str = "x") -> None:
    """Raise `ValueError` unless `x` is a finite batch `(B, C, *grid)` of the denoiser's fields, with `B >=
    1`.
    """
    grid = tuple(denoiser.covariance.domain.shape)
    needed = f"(batch, {denoiser.channels}, {', '.join(map(str, grid))})"
    if x.ndim != 2 + len(grid) or tuple(x.shape[2:]) != grid:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; needed {needed}")
    if x.shape[1] != denoiser.channels:
        raise ValueError(
            f"{name} has {x.shape[1]} channel(s) and the denoiser {denoiser.channels}: needed {needed}; "
            f"give channels= to the "
            "covariance or to the Denoiser"
        )
    if x.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch, shape {tuple(x.shape)}")
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        bad = ~finite
        fields = bad.flatten(1).any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"{name} holds {int(bad.sum())} values that are not finite, in field(s) {fields[:5]} of the "
            f"batch; remove or fill "
            "them before training"
        )


def times_given(x: Tensor, t: Tensor | float) -> Tensor:
    """`t` as float64 times `(B,)`; raises `ValueError` for another shape."""
    times = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    if times.ndim > 1 or (times.ndim == 1 and len(times) != len(x)):
        raise ValueError(
            f"times of shape {tuple(times.shape)} for a batch of {len(x)}: give one time, or one per field"
        )
    return times.expand(len(x))
