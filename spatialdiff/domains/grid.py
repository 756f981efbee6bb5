"""Regular grids.

A grid has sites ``x_i = (i_1 h_1, …, i_d h_d)`` with ``0 ≤ i_a < n_a``, spacing ``h_a`` and extent ``n_a
h_a`` along axis ``a``. On a periodic axis the site ``n_a`` is the site ``0`` again, so that the extent is
the period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spatialdiff.domains.base import Domain

if TYPE_CHECKING:
    from spatialdiff.domains.masked import MaskedGrid


def _per_axis(value: Any, ndim: int, name: str) -> tuple[Any, ...]:
    values = (
        tuple(value)
        if isinstance(value, Sequence | Tensor) and not isinstance(value, str)
        else (value,) * ndim
    )
    if len(values) != ndim:
        raise ValueError(
            f"Grid: {name} has {len(values)} entries for {ndim} axes; give one value or one per axis (got "
            f"{value!r})."
        )
    return values


@dataclass(frozen=True, init=False)
class Grid(Domain):
    """A regular grid in one, two or three dimensions.

    Args:
        shape: number of sites per axis, ``(n_1, …, n_d)``, or one int.
        spacing: distance between neighbouring sites, one value or one per axis, in the length unit of the
            kernel.
        periodic: whether an axis wraps around, one bool or one per axis.

    Raises:
        ValueError: no axis or more than three, a size below 1, a spacing that is not positive and finite, a
            wrong number of values.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    periodic: tuple[bool, ...]

    def __init__(
        self,
        shape: int | Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        periodic: bool | Sequence[bool] = False,
    ) -> None:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if not 1 <= len(sizes) <= 3:
            raise ValueError(f"Grid: shape must have 1, 2 or 3 axes, got {len(sizes)} ({sizes}).")
        if any(int(n) != n or n < 1 for n in sizes):
            raise ValueError(
                f"Grid: every axis needs a whole number of sites, at least 1; got shape {sizes}."
            )
        spacings = _per_axis(spacing, len(sizes), "spacing")
        if not all(math.isfinite(h) and h > 0 for h in spacings):
            raise ValueError(f"Grid: spacing must be positive and finite, got {tuple(spacings)}.")
        wraps = _per_axis(periodic, len(sizes), "periodic")
        object.__setattr__(self, "shape", tuple(int(n) for n in sizes))
        object.__setattr__(self, "spacing", tuple(float(h) for h in spacings))
        object.__setattr__(self, "periodic", tuple(bool(p) for p in wraps))

    @property
    def dimension(self) -> int:
        return len(self.shape)

    @property
    def extent(self) -> tuple[float, ...]:
        """Length ``n_a h_a`` covered by the cells of each axis; the period of a periodic axis."""
        return tuple(n * h for n, h in zip(self.shape, self.spacing, strict=True))

    @property
    def cell_volume(self) -> float:
        """Volume ``∏ h_a`` of one cell."""
        return math.prod(self.spacing)

    def coordinates(self) -> Tensor:
        """Coordinates of the sites, float64, shape ``(*shape, d)``."""
        axes = [
            torch.arange(n, dtype=torch.float64) * h for n, h in zip(self.shape, self.spacing, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    def masked(self, mask: Tensor) -> MaskedGrid:
        """This grid with only the cells where ``mask`` (bool, shape ``shape``) is True."""
        from spatialdiff.domains.masked import MaskedGrid

        return MaskedGrid(self, mask)
