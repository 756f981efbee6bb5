r"""In which metric a posterior mean is fitted; every choice has the same optimum, `E[x | u_t]`.

| name         | loss per entry                                                       |
|--------------|----------------------------------------------------------------------|
| `"network"`  | `(F - target)²`: what the network predicts, of unit variance under `edm`, `wiener` |
| `"data"`     | `(x - D)²`                                                           |
| `"whitened"` | `(x - D)ᵀ Γ^{-1} (x - D) / n`, which is `"data"` for the whitened fields |
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.denoisers.denoiser import Denoiser

WEIGHTINGS = ("network", "data", "whitened")


def check_weighting(weighting: str) -> str:
    """The name, or `ValueError` listing the known ones."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"unknown weighting {weighting!r}; the choices are {', '.join(WEIGHTINGS)}")
    return weighting


def weighted_loss(
    denoiser: Denoiser, weighting: str, x: Tensor, noise: Tensor, u: Tensor, t: Tensor, **condition: Tensor
) -> Tensor:
    """The mean loss at states `u = α x + σ η + o` and times `t`, a scalar."""
    output = denoiser.predict(u, t, **condition)
    if weighting == "network":
        return (output - denoiser.target(x, noise, t, **condition)).square().mean()
    error = denoiser.decode(output, u, t, **condition) - x
    if weighting == "data":
        return error.square().mean()
    return denoiser.covariance.quad_form(error).sum() / x.numel()


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
