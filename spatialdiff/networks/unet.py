"""A compact U-Net for fields on a grid: residual blocks at each resolution, halved `depth` times and doubled
back.

    state (B, channels, *grid), time (B,)  →  (B, out_channels, *grid)

The output layer is zero at initialisation, so that an untrained network predicts zero everywhere: under the
Wiener preconditioning the denoiser then starts as the exact Gaussian posterior mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatialdiff.networks.blocks import (
    CONVOLUTIONS,
    Convolution,
    ResidualBlock,
    SelfAttention,
    group_norm,
    zero_,
)
from spatialdiff.networks.embedding import TimeEmbedding

if TYPE_CHECKING:
    from spatialdiff.domains import Grid, MaskedGrid


class UNet(nn.Module):
    """U-Net on a 1-, 2- or 3-dimensional grid, called as `network(state, t, **condition)`.

    Ronneberger et al., "U-Net" (2015), with the residual blocks, time embedding and coarse attention of Ho et
    al., "Denoising Diffusion Probabilistic Models" (2020), appendix B.

    Args:
        channels: channels of the state, `K * C`.
        grid: the grid, for its shape and its periodic axes: a periodic axis is padded around the circle, any
            other with zeros. An int is a number of dimensions, none periodic. Fields of any size that
            `2**depth` divides are accepted.
        width: channels at the finest resolution; a multiple of 4.
        depth: how often the resolution is halved.
        multipliers: channels at each of the `depth + 1` resolutions as multiples of `width`; by default 1, 2,
            2, …
        blocks: residual blocks per resolution, on the way down and on the way up.
        attention: whether every site of the coarsest grid attends to every other.
        condition_channels: channels in total of the fields passed by keyword (e.g. `start=`), which are
            concatenated to the state in alphabetical order of their names.
        out_channels: channels of the output; by default those of the state.
        embedding: width of the time embedding; by default `4 * width`.

    Raises:
        ValueError: a grid that `2**depth` does not divide, or input that does not have the shapes above.
    """

    def __init__(
        self,
        channels: int,
        grid: Grid | MaskedGrid | int,
        *,
        width: int = 32,
        depth: int = 2,
        multipliers: Sequence[int] | None = None,
        blocks: int = 1,
        attention: bool = True,
        condition_channels: int = 0,
        out_channels: int | None = None,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        periodic = (False,) * grid if isinstance(grid, int) else tuple(grid.periodic)
        if len(periodic) not in CONVOLUTIONS:
            raise ValueError(f"a U-Net needs a grid of 1, 2 or 3 dimensions, not {len(periodic)}")
        multipliers = tuple(multipliers) if multipliers is not None else (1,) + (2,) * depth
        if len(multipliers) != depth + 1:
            raise ValueError(
                f"depth={depth} needs {depth + 1} multipliers, one per resolution; got {multipliers}"
            )
        for name, value, least in (("channels", channels, 1), ("blocks", blocks, 1), ("depth", depth, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if width < 4 or width % 4:
            raise ValueError(f"width must be a positive multiple of 4, got {width}")
        self.channels = channels
        self.condition_channels = condition_channels
        self.out_channels = channels if out_channels is None else out_channels
        self.depth = depth
        self.periodic = periodic
        if not isinstance(grid, int):
            self._check_divisible(grid.shape)

        sizes = [width * m for m in multipliers]
        embedding = 4 * width if embedding is None else embedding
        kind: type[nn.Module] = CONVOLUTIONS[len(periodic)]
        self.embed = TimeEmbedding(embedding)
        self.stem = Convolution(channels + condition_channels, sizes[0], periodic)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level in range(depth):
            fine, coarse = sizes[level], sizes[level + 1]
            self.down.append(
                nn.ModuleList(ResidualBlock(fine, fine, embedding, periodic) for _ in range(blocks))
            )
            self.shrink.append(kind(fine, coarse, 2, stride=2))
            # the channels are changed on the coarse grid, where it costs least
            self.grow.append(kind(coarse, fine, 1))
            self.up.append(
                nn.ModuleList(
                    ResidualBlock(fine if i else 2 * fine, fine, embedding, periodic) for i in range(blocks)
                )
            )
        self.before = ResidualBlock(sizes[-1], sizes[-1], embedding, periodic)
        self.attention: nn.Module = (
            SelfAttention(sizes[-1], max(1, sizes[-1] // 32)) if attention else nn.Identity()
        )
        self.after = ResidualBlock(sizes[-1], sizes[-1], embedding, periodic)
        self.norm = group_norm(sizes[0])
        self.head = Convolution(sizes[0], self.out_channels, periodic)
        zero_(self.head)

    def _check_divisible(self, shape: Sequence[int]) -> None:
        factor = 2**self.depth
        if any(n % factor for n in shape):
            deepest = min((n & -n).bit_length() - 1 for n in shape)
            raise ValueError(
                f"the grid {tuple(shape)} cannot be halved {self.depth} times: a U-Net of depth {self.depth} "
                f"needs every axis to be a "
                f"multiple of {factor}. Crop or pad the fields, or use depth={deepest} or less"
            )

    def _input(self, state: Tensor, condition: dict[str, Tensor]) -> Tensor:
        ndim = len(self.periodic)
        if state.ndim != ndim + 2 or state.shape[1] != self.channels:
            axes = ", ".join(f"n{i + 1}" for i in range(ndim))
            raise ValueError(
                f"the state must have shape (B, {self.channels}, {axes}), got {tuple(state.shape)}"
            )
        self._check_divisible(state.shape[2:])
        fields = [condition[name] for name in sorted(condition)]
        for name in sorted(condition):
            if condition[name].shape[2:] != state.shape[2:] or len(condition[name]) != len(state):
                raise ValueError(
                    f"the condition {name!r} must have shape ({len(state)}, c, "
                    f"{', '.join(map(str, state.shape[2:]))}) like the state, "
                    f"got {tuple(condition[name].shape)}"
                )
        given = sum(field.shape[1] for field in fields)
        if given != self.condition_channels:
            raise ValueError(
                f"the network was built with condition_channels={self.condition_channels} and is given "
                f"{given} "
                f"({', '.join(sorted(condition)) or 'no condition'})"
            )
        return torch.cat((state, *fields), dim=1) if fields else state

    def forward(self, state: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """Map a state `(B, channels, *grid)` at times `t`, `(B,)` or one for all, to `(B, out_channels,
        *grid)`."""
        x = self._input(state, condition)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        embedding = F.silu(self.embed(t.expand(len(x)) if t.ndim == 0 else t))
        x = self.stem(x)
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, embedding)
            skips.append(x)
            x = shrink(x)
        x = self.after(self.attention(self.before(x, embedding)), embedding)
        for blocks, grow, skip in zip(reversed(self.up), reversed(self.grow), reversed(skips), strict=True):
            x = torch.cat((F.interpolate(grow(x), scale_factor=2, mode="nearest"), skip), dim=1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, embedding)
        y: Tensor = self.head(F.silu(self.norm(x)))
        return y
