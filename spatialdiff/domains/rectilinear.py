"""A grid with unevenly spaced axes: sites ``(x_{1,i_1}, …, x_{d,i_d})``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.domains.base import Domain


class RectilinearGrid(Domain):
    """The product of one to three sets of increasing coordinates, such as depths or Gaussian latitudes.

    Args:
        axes: increasing coordinates per axis, in the length unit of the kernel.

    Raises:
        ValueError: no axis or more than three; an axis that is empty, not finite or not increasing.
    """

    def __init__(self, axes: Sequence[Tensor | Sequence[float]]) -> None:
        given = tuple(torch.as_tensor(axis, dtype=torch.float64).detach().cpu().clone() for axis in axes)
        if not 1 <= len(given) <= 3:
            raise ValueError(f"RectilinearGrid: needs 1, 2 or 3 axes, got {len(given)}.")
        for number, axis in enumerate(given):
            if axis.dim() != 1 or len(axis) == 0:
                raise ValueError(
                    f"RectilinearGrid: axis {number} needs a vector of coordinates, got shape "
                    f"{tuple(axis.shape)}."
                )
            if not bool(torch.isfinite(axis).all()) or bool((axis.diff() <= 0).any()):
                raise ValueError(
                    f"RectilinearGrid: coordinates of axis {number} must be finite and increase strictly; "
                    "sort them and remove repeated ones."
                )
        self.axes = given
        self.shape = tuple(len(axis) for axis in given)
        self.periodic = (False,) * len(given)

    @property
    def dimension(self) -> int:
        return len(self.axes)

    def coordinates(self) -> Tensor:
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), dim=-1)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RectilinearGrid)
            and self.shape == other.shape
            and all(torch.equal(a, b) for a, b in zip(self.axes, other.axes, strict=True))
        )

    def __hash__(self) -> int:
        return hash((type(self), *(tuple(axis.tolist()) for axis in self.axes)))

    def __repr__(self) -> str:
        spans = ", ".join(f"{len(a)} in [{float(a[0]):g}, {float(a[-1]):g}]" for a in self.axes)
        return f"RectilinearGrid({spans})"
