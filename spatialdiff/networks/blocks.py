"""Building blocks of a convolutional network on a grid: padding per axis, residual block with FiLM,
self-attention.

Residual block, with e the time embedding: y = x' + conv(SiLU((1 + s(e)) · norm(h) + b(e))), h =
conv(SiLU(norm(x))).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def wrap(x: Tensor, width: int, periodic: Sequence[bool]) -> Tensor:
    """Extend the periodic ones of the trailing `len(periodic)` axes of `x` around the circle by `width` on
    either side."""
    if not any(periodic):
        return x
    amounts = [width if flag else 0 for flag in reversed(periodic)]  # torch counts padding from the last axis
    return F.pad(x, list(itertools.chain.from_iterable((a, a) for a in amounts)), mode="circular")


def zero_(module: nn.Module) -> None:
    """Set all parameters of `module` to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """Group normalisation with at most 8 groups of at least 4 channels each, where the channels allow it."""
    groups = next(g for g in range(8, 0, -1) if channels % g == 0 and (channels // g >= 4 or g == 1))
    return nn.GroupNorm(groups, channels, affine=affine)


class Convolution(nn.Module):
    """Convolution with 3 sites per axis that keeps the grid's shape: around the circle on periodic axes,
    zeros beyond the others."""

    def __init__(self, inputs: int, outputs: int, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.periodic = tuple(bool(flag) for flag in periodic)
        # the convolution pads with zeros faster than a separate pass over memory would
        zeros: tuple[int, ...] = tuple(0 if flag else 1 for flag in self.periodic)
        kind: type[nn.Module] = CONVOLUTIONS[len(self.periodic)]
        self.convolution = kind(inputs, outputs, 3, padding=zeros)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.convolution(wrap(x, 1, self.periodic))
        return result


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, `(B, inputs, *grid)` → `(B, outputs, *grid)`; the identity at
    initialisation.

    He et al., "Identity Mappings in Deep Residual Networks" (2016), pre-activation; the time enters by FiLM
    (Perez et al. 2018).
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, periodic: Sequence[bool]) -> None:
        super().__init__()
        point: type[nn.Module] = CONVOLUTIONS[len(periodic)]
        self.norm_in = group_norm(inputs)
        self.convolution_in = Convolution(inputs, outputs, periodic)
        self.norm_out = group_norm(outputs, affine=False)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.convolution_out = Convolution(outputs, outputs, periodic)
        self.shortcut: nn.Module = point(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        zero_(self.convolution_out)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.convolution_in(F.silu(self.norm_in(x)))
        scale, shift = self.film(embedding).reshape(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        h = F.silu(self.norm_out(h) * (1 + scale) + shift)
        y: Tensor = self.shortcut(x) + self.convolution_out(h)
        return y


class SelfAttention(nn.Module):
    """Every site attends to every other, so that structure as wide as the domain is seen; the identity at
    initialisation."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.project_in = nn.Linear(channels, 3 * channels)
        self.project_out = nn.Linear(channels, channels)
        zero_(self.project_out)

    def forward(self, x: Tensor) -> Tensor:
        sites = self.norm(x).flatten(2).transpose(1, 2)  # (B, sites, channels)
        q, k, v = self.project_in(sites).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y: Tensor = x + self.project_out(mixed).transpose(1, 2).reshape(x.shape)
        return y
