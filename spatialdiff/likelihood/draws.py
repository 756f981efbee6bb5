"""Draws for every field of a batch: stratified in pairs, so that their standard error is unbiased."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.base import PosteriorMean


def sites(denoiser: PosteriorMean) -> int:
    """Values of a field: sites times channels."""
    return denoiser.covariance.domain.size * denoiser.channels


def check_fields(denoiser: PosteriorMean, x: Tensor) -> None:
    """Raise `ValueError` unless `x` is a finite batch `(B, C, *grid)` of the denoiser's fields."""
    needed = (denoiser.channels, *denoiser.covariance.domain.shape)
    if x.ndim != 1 + len(needed) or tuple(x.shape[1:]) != needed or len(x) == 0:
        raise ValueError(f"fields of shape {tuple(x.shape)}; needed (B, {', '.join(map(str, needed))})")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"the fields hold {int((~torch.isfinite(x)).sum())} values that are not finite")


def stratified(
    draw: Any,
    x: Tensor,
    samples: int,
    rounds: int,
    generator: torch.Generator | None,
    condition: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Mean of `samples` draws for each field and the variance of that mean, `(B,)` each.

    `draw(fields, p)` takes quantiles `p`; two are drawn in each of `samples/2` parts of (0, 1), whose mean
    difference squared over 4 is the variance of a part's mean.
    """
    count, parts = len(x), samples // 2
    values = []
    for first in range(0, samples, rounds):
        index = torch.arange(first, min(first + rounds, samples), device=x.device)
        part = (index // 2).repeat_interleave(count).double()
        uniform = torch.rand(len(part), generator=generator, dtype=torch.float64, device=x.device)
        p = (part + uniform) / parts
        given = {name: repeat(value, len(index), count) for name, value in condition.items()}
        values.append(draw(repeat(x, len(index), count), p, **given).reshape(len(index), count))
    pairs = torch.cat(values).reshape(parts, 2, count)
    variance = (pairs[:, 0] - pairs[:, 1]).square().sum(0) / (4.0 * parts**2)
    return pairs.mean((0, 1)), variance


def repeat(value: Any, times: int, count: int) -> Any:
    """A tensor of one entry per field, `times` times over; anything else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
        return value
    return value.repeat(times, *[1] * (value.ndim - 1))
