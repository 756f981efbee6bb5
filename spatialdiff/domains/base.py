"""What every domain says: the axes of a field, and where its sites are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor


class Domain(ABC):
    """A finite set of sites ``x_1, …, x_n`` and the shape of a field on them.

    Attributes:
        shape: axes of a field, which come last in every tensor of fields.
        periodic: whether an axis wraps around, one bool per axis.
    """

    shape: tuple[int, ...]
    periodic: tuple[bool, ...]

    @property
    def ndim(self) -> int:
        """Number of axes of a field."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of sites that carry a value."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Number ``d`` of coordinates of a site."""

    @abstractmethod
    def coordinates(self) -> Tensor:
        """Coordinates of the sites, float64, shape ``(*shape, d)``."""

    def sites(self) -> Tensor:
        """Coordinates of the sites that carry a value, in a list, float64, shape ``(n, d)``."""
        return self.flatten(self.coordinates().movedim(-1, 0)).T.contiguous()

    def flatten(self, x: Tensor) -> Tensor:
        """Field ``(..., *shape)`` → its values at `sites`, ``(..., n)``."""
        return x.reshape(*x.shape[: x.dim() - self.ndim], math.prod(self.shape))

    def unflatten(self, values: Tensor) -> Tensor:
        """Values at `sites` ``(..., n)`` → field ``(..., *shape)``."""
        return values.reshape(*values.shape[:-1], *self.shape)
