r"""Bases in which Γ is diagonal: ``x = Σ_k c_k φ_k``, ``Γ φ_k = γ_k φ_k``, functions of Γ are
multiplications of ``c``.

Fourier (periodic grids): ``c = F x/√n``, the half spectrum of a real transform; mode ``k`` stands for itself
and its conjugate. Cosine (any grid): the orthonormal DCT-II ``φ_k(x) = √((2-δ_{k0})/n) cos(π k (x + ½)/n)``
per axis, the eigenvectors of every covariance that is the reflection of a periodic one at the half-sample
boundaries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from spatialdiff.covariance.numerics.dct import dct, idct
from spatialdiff.domains import Domain, Grid


class Basis(ABC):
    """An orthonormal basis of the fields on a domain.

    Attributes:
        modes: shape of the modal axes; `analyze` maps ``(..., *grid.shape)`` to ``(..., *modes)``.
        orthonormal: whether white coefficients make white noise on the sites, so that it is diagonal too.
    """

    orthonormal: bool = True

    modes: torch.Size
    grid: Domain

    def __init__(self, grid: Domain) -> None:
        self.grid = grid

    @abstractmethod
    def analyze(self, x: Tensor) -> Tensor:
        """Field ``(..., *grid.shape)`` → coefficients ``(..., *modes)``."""

    @abstractmethod
    def synthesize(self, c: Tensor) -> Tensor:
        """Coefficients ``(..., *modes)`` → field ``(..., *grid.shape)``."""

    def multiply(self, x: Tensor, m: Tensor) -> Tensor:
        """``Σ_k m_k c_k φ_k``; ``m`` is real and broadcasts against ``(..., *modes)``."""
        return self.synthesize(m * self.analyze(x))

    @property
    def weights(self) -> Tensor:
        """How many orthonormal modes each stored coefficient stands for, float64, shape ``modes``; the sum
        is ``n``.
        """
        return torch.ones(self.modes, dtype=torch.float64)

    @property
    def wavenumbers(self) -> Tensor:
        """``|k|`` in cycles per unit length, float64, shape ``modes``; raises where modes have none."""
        squares = torch.zeros((), dtype=torch.float64)
        for axis, f in enumerate(self._axis_frequencies()):
            squares = squares + f.square().reshape(-1, *(1,) * (self.grid.ndim - 1 - axis))
        return squares.sqrt()

    def _axis_frequencies(self) -> list[Tensor]:
        raise ValueError(
            f"{type(self).__name__}: its modes have no wavenumbers; use the torus or cosine structure."
        )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Basis) and self.grid == other.grid

    def __hash__(self) -> int:
        return hash((type(self), self.grid))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.grid})"


class FourierBasis(Basis):
    """Half spectrum of the real discrete Fourier transform, orthonormal; for grids whose axes are all
    periodic.
    """

    grid: Grid

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.modes = torch.Size((*grid.shape[:-1], grid.shape[-1] // 2 + 1))
        self._axes = tuple(range(-grid.ndim, 0))

    def analyze(self, x: Tensor) -> Tensor:
        result: Tensor = torch.fft.rfftn(x, dim=self._axes, norm="ortho")
        return result

    def synthesize(self, c: Tensor) -> Tensor:
        result: Tensor = torch.fft.irfftn(c, s=self.grid.shape, dim=self._axes, norm="ortho")
        return result

    @property
    def weights(self) -> Tensor:
        last = self.grid.shape[-1]
        weights = torch.full((self.modes[-1],), 2.0, dtype=torch.float64)
        weights[0] = 1.0
        if last % 2 == 0:
            weights[-1] = 1.0
        return weights.expand(self.modes).clone()

    def _axis_frequencies(self) -> list[Tensor]:
        *first, last = zip(self.grid.shape, self.grid.spacing, strict=True)
        full = [torch.fft.fftfreq(n, h, dtype=torch.float64) for n, h in first]
        return [*full, torch.fft.rfftfreq(last[0], last[1], dtype=torch.float64)]


class SiteBasis(Basis):
    """The sites themselves: the basis of white noise on any domain."""

    def __init__(self, grid: Domain) -> None:
        super().__init__(grid)
        self.modes = torch.Size(grid.shape)

    def analyze(self, x: Tensor) -> Tensor:
        return x

    def synthesize(self, c: Tensor) -> Tensor:
        return c


class CosineBasis(Basis):
    """Orthonormal DCT-II on any grid; mode ``k`` of an axis has ``k/(2 n h)`` cycles per unit length."""

    grid: Grid

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.modes = torch.Size(grid.shape)

    def analyze(self, x: Tensor) -> Tensor:
        return dct(x, self.grid.ndim)

    def synthesize(self, c: Tensor) -> Tensor:
        return idct(c, self.grid.ndim)

    def _axis_frequencies(self) -> list[Tensor]:
        return [
            torch.arange(n, dtype=torch.float64) / (2 * n * h)
            for n, h in zip(self.grid.shape, self.grid.spacing, strict=True)
        ]


class FactorBasis(Basis):
    """Columns of an invertible factor ``F``: ``Γ = F diag(γ) Fᵀ`` and ``C = F diag(c) Fᵀ`` for two dense
    covariances.

    Not orthonormal, and not needed to be: every ratio of the two, such as ``C (C + Γ)⁻¹ = F c/(c + γ) F⁻¹``,
    is a `multiply`.

    Args:
        grid: the grid.
        factor: ``F``, shape ``(N, N)``, float64.
        inverse: ``F⁻¹``.
        channels: None where ``N = n``, or the number of channels where ``N = C n``; modes keep the shape of
            the grid.
    """

    orthonormal = False

    def __init__(self, grid: Domain, factor: Tensor, inverse: Tensor, channels: int | None = None) -> None:
        super().__init__(grid)
        self.modes = torch.Size(grid.shape)
        self.factor, self.inverse, self.channels = factor, inverse, channels
        self._event = grid.shape if channels is None else (channels, *grid.shape)

    def _map(self, matrix: Tensor, x: Tensor) -> Tensor:
        size = math.prod(self._event)
        flat = x.reshape(*x.shape[: x.dim() - len(self._event)], size)
        return (flat @ matrix.to(x).T).reshape(x.shape)

    def analyze(self, x: Tensor) -> Tensor:
        return self._map(self.inverse, x)

    def synthesize(self, c: Tensor) -> Tensor:
        return self._map(self.factor, c)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


PencilBasis = FactorBasis


class ChannelBasis(Basis):
    """A spatial basis after a change of channels: ``x = (F ⊗ I) x'`` with an invertible ``(C, C)`` factor
    ``F``.
    """

    orthonormal = False

    def __init__(self, spatial: Basis, factor: Tensor) -> None:
        super().__init__(spatial.grid)
        self.spatial, self.factor = spatial, factor
        self.inverse = torch.linalg.inv(factor)
        self.modes = spatial.modes

    def _rotate(self, matrix: Tensor, x: Tensor) -> Tensor:
        flat = x.flatten(-self.grid.ndim)
        return (matrix.to(device=x.device, dtype=x.dtype) @ flat).reshape(x.shape)

    def analyze(self, x: Tensor) -> Tensor:
        return self.spatial.analyze(self._rotate(self.inverse, x))

    def synthesize(self, c: Tensor) -> Tensor:
        return self._rotate(self.factor, self.spatial.synthesize(c))

    @property
    def weights(self) -> Tensor:
        return self.spatial.weights

    @property
    def wavenumbers(self) -> Tensor:
        return self.spatial.wavenumbers

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ChannelBasis)
            and self.spatial == other.spatial
            and torch.equal(self.factor, other.factor)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.spatial))
