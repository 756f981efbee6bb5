"""A grid of which only some cells carry a value: sea but not land, a catchment, a scan with gaps."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from spatialdiff.domains.base import Domain
from spatialdiff.domains.grid import Grid


class MaskedGrid(Domain):
    """A regular grid and the cells of it that are valid.

    Fields keep the shape of the grid. In every result the masked cells are 0; in every input they are
    ignored, NaN included. Covariances, densities and determinants are those of the valid cells.

    Args:
        grid: the grid.
        mask: True where a cell is valid, bool, shape ``grid.shape``.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: a mask of another shape, or without a valid cell.
    """

    def __init__(self, grid: Grid, mask: Tensor) -> None:
        mask = torch.as_tensor(mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"MaskedGrid: the mask must be bool (True: valid), got {mask.dtype}.")
        if tuple(mask.shape) != grid.shape:
            raise ValueError(f"MaskedGrid: the mask needs shape {grid.shape}, got {tuple(mask.shape)}.")
        if not bool(mask.any()):
            raise ValueError(
                f"MaskedGrid: the mask of {grid} hides every cell; True means valid, so invert it if it "
                "marks the cells to leave out."
            )
        self.grid = grid
        self.valid = mask.detach().cpu().clone()
        self.shape, self.periodic = grid.shape, grid.periodic
        self._index = self.valid.reshape(-1).nonzero().squeeze(-1)
        self._digest = hashlib.sha256(self.valid.numpy().tobytes()).hexdigest()

    @property
    def size(self) -> int:
        return int(self.valid.sum())

    @property
    def dimension(self) -> int:
        return self.grid.dimension

    def coordinates(self) -> Tensor:
        return self.grid.coordinates()

    def flatten(self, x: Tensor) -> Tensor:
        """Field ``(..., *shape)`` → its values at the valid cells, row by row, ``(..., n)``."""
        return super().flatten(x).index_select(-1, self._index.to(x.device))

    def unflatten(self, values: Tensor) -> Tensor:
        """Values at the valid cells ``(..., n)`` → field ``(..., *shape)`` that is 0 elsewhere."""
        field = values.new_zeros(*values.shape[:-1], self.grid.size)
        return super().unflatten(field.index_copy(-1, self._index.to(values.device), values))

    def fill(self, x: Tensor, value: float = float("nan")) -> Tensor:
        """A field with ``value`` in its masked cells, for pictures and files."""
        return torch.where(self.valid.to(x.device), x, value)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, MaskedGrid) and self.grid == other.grid and torch.equal(self.valid, other.valid)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.grid, self._digest))

    def __repr__(self) -> str:
        return f"MaskedGrid({self.grid}, {self.size} of {self.grid.size} cells valid)"
