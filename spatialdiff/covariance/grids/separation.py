r"""Kernels that are products over groups of axes: ``k(x, x') = σ² ∏_b k_b(x_b, x'_b)``, plus a nugget.

``x_b`` are the coordinates of block ``b``, a group of axes of a grid. A Gaussian is a product over single
axes, ``exp(-½ Σ_a h_a²/ℓ_a²) = ∏_a exp(-½ h_a²/ℓ_a²)``, and so is a `Periodic` kernel on a grid that does
not wrap around; a `Separable` kernel says itself which axes its factors take; any other kernel couples the
axes that it depends on. On a line every kernel is a product.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.covariance.checks import check_stationary
from spatialdiff.covariance.periodic import difference_table, periodised, stationary_at
from spatialdiff.domains import Grid, RectilinearGrid
from spatialdiff.kernels import Gaussian, Nugget, Periodic, at_pairs


@dataclass(frozen=True)
class _Piece:
    """A factor that depends on ``axes`` only; ``pairs`` takes coordinates of all axes."""

    axes: tuple[int, ...]
    pairs: Callable[[Tensor, Tensor], Tensor]
    kernel: Kernel | None


@dataclass(frozen=True)
class Block:
    """Axes that belong together, and the product of the factors on them."""

    axes: tuple[int, ...]
    pieces: tuple[_Piece, ...]

    def pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``k_b`` of broadcast coordinates ``(..., d)`` → ``(*batch, ...)``."""
        values = torch.ones(torch.broadcast_shapes(x1.shape, x2.shape)[:-1], dtype=x1.dtype, device=x1.device)
        for piece in self.pieces:
            values = values * piece.pairs(x1, x2)
        return values


class Separation:
    """``Γ = σ² ⊗_b Γ_b + s² I`` of a kernel on a grid.

    Args:
        kernel: the kernel.
        domain: a `Grid` or a `RectilinearGrid`.

    Raises:
        ValueError: a kernel that is not separable.
    """

    def __init__(self, kernel: Kernel, domain: Grid | RectilinearGrid) -> None:
        self.domain = domain
        every = tuple(range(domain.ndim))
        expanded = _expand(kernel)
        smooth = [term for term in expanded if not _is_nugget(term)]
        self._nuggets = [term for term in expanded if _is_nugget(term)]
        self._scales: list[Callable[[], Tensor]] = []
        self._wraps = isinstance(domain, Grid) and any(domain.periodic)
        if not smooth:
            raise ValueError('KroneckerCovariance: a Nugget alone is white noise; use method="white".')
        if domain.ndim == 1:
            pieces, self._nuggets = [_Piece((0,), lambda x1, x2: at_pairs(kernel, x1, x2), kernel)], []
        elif len(smooth) > 1:
            raise ValueError(
                f"KroneckerCovariance: {kernel!r} is a sum of {len(smooth)} terms, which is not separable "
                "even where each term is (only a Nugget may be added). Put a sum inside one factor of a "
                'separable kernel, or use method="circulant" or "dense".'
            )
        else:
            pieces = [piece for factor in smooth[0] for piece in self._pieces(factor, every)]
        self.blocks = _merge(pieces, domain.ndim)
        if len(self.blocks) == 1 and domain.ndim > 1:
            names = sorted({type(p.kernel).__name__ for p in pieces if len(p.axes) > 1})
            raise ValueError(
                f"KroneckerCovariance: {kernel!r} is not separable: {', '.join(names) or 'its factors'} "
                f"couples all {domain.ndim} axes of {domain}, so that Γ is no Kronecker product. Separable "
                "are Gaussian and (unless the grid wraps around) Periodic, kernels on separate axes "
                "(Separable, active_dims) and their products; use "
                'method="circulant" or "dense" for this one.'
            )

    def _pieces(self, kernel: Kernel, axes: tuple[int, ...]) -> list[_Piece]:
        ndim = self.domain.ndim
        if hasattr(kernel, "check_dimension"):
            kernel.check_dimension(len(axes))
        if kernel.active_dims is not None and not isinstance(kernel, gpytorch.kernels.ProductKernel):
            # gpytorch itself picks these columns out of all coordinates
            chosen = tuple(axes[int(i)] for i in kernel.active_dims)
            return [_Piece(chosen, lambda x1, x2: at_pairs(kernel, x1[..., axes], x2[..., axes]), kernel)]
        if isinstance(kernel, gpytorch.kernels.ProductKernel):
            return [piece for part in kernel.kernels for piece in self._pieces(part, axes)]
        if isinstance(kernel, gpytorch.kernels.ScaleKernel) and not isinstance(
            kernel.base_kernel, gpytorch.kernels.AdditiveKernel
        ):
            self._scales.append(lambda: kernel.outputscale)
            return self._pieces(kernel.base_kernel, axes)
        factors = getattr(kernel, "factors", None)
        if factors is not None:
            return [
                piece
                for inner, part in factors
                for piece in self._pieces(part, tuple(axes[i] for i in inner))
            ]
        if type(kernel) is Gaussian or type(kernel) is gpytorch.kernels.RBFKernel:
            if isinstance(kernel, Gaussian):
                self._scales.append(lambda: kernel.variance)
            return [_gaussian(kernel, position, axis) for position, axis in enumerate(axes)]
        if type(kernel) is Periodic and not self._wraps:
            self._scales.append(lambda: kernel.variance)
            return [_periodic(kernel, position, axis) for position, axis in enumerate(axes)]
        if len(axes) == ndim:
            return [_Piece(axes, lambda x1, x2: at_pairs(kernel, x1, x2), kernel)]
        return [_Piece(axes, lambda x1, x2: at_pairs(kernel, x1[..., axes], x2[..., axes]), kernel)]

    @property
    def has_nugget(self) -> bool:
        return bool(self._nuggets)

    # ---- values, with the kernel's present parameters
    def variance(self, device: torch.device | None = None) -> Tensor:
        """The scalar ``σ²`` that stands outside all blocks, ``(*batch,)`` float64."""
        total = torch.ones((), dtype=torch.float64, device=device)
        for scale in self._scales:
            total = total * scale().to(total)
        return total

    def nugget(self, device: torch.device | None = None) -> Tensor | None:
        """``s²``, ``(*batch,)`` float64; None without one."""
        if not self._nuggets:
            return None
        total = torch.zeros((), dtype=torch.float64, device=device)
        origin = torch.zeros(1, self.domain.ndim, dtype=torch.float64, device=device)
        for term in self._nuggets:
            value = torch.ones((), dtype=torch.float64, device=device)
            for factor in term:
                value = value * at_pairs(factor, origin, origin)[..., 0]
            total = total + value
        return total

    def matrix(self, number: int, device: torch.device | None = None) -> Tensor:
        """``Γ_b``, ``(*batch, n_b, n_b)`` float64; the first one is scaled by ``σ²``."""
        block = self.blocks[number]
        values = self._block_matrix(block, device)
        if number == 0 and self._scales:
            values = values * self.variance(device)[..., None, None]
        return values

    def _block_matrix(self, block: Block, device: torch.device | None) -> Tensor:
        ndim, axes = self.domain.ndim, list(block.axes)
        if isinstance(self.domain, Grid) and any(self.domain.periodic[a] for a in axes):
            grid = self._subgrid(self.domain, block.axes)
            for piece in block.pieces:
                if piece.kernel is not None and (
                    piece.kernel.active_dims is None or not piece.kernel.is_stationary
                ):
                    check_stationary(piece.kernel, self._subgrid(self.domain, piece.axes), "a periodic axis")
            only = block.pieces[0]
            if len(block.pieces) == 1 and only.axes == block.axes and hasattr(only.kernel, "at_lags"):
                own = only.kernel
                return difference_table(lambda indices: stationary_at(own, grid, indices, device)[0], grid)

            def at_lags(h: Tensor) -> Tensor:
                full = h.new_zeros(*h.shape[:-1], ndim)
                full[..., axes] = h
                return block.pairs(full, torch.zeros_like(full))

            return difference_table(
                lambda indices: periodised(at_lags, grid, indices, device, name="a separable kernel")[0], grid
            )
        lines = [self._line(a).to(device) if a in axes else torch.zeros(1).double() for a in range(ndim)]
        sites = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).reshape(-1, ndim).to(device)
        return block.pairs(sites[:, None], sites[None])

    @staticmethod
    def _subgrid(grid: Grid, axes: tuple[int, ...]) -> Grid:
        return Grid(
            [grid.shape[a] for a in axes], [grid.spacing[a] for a in axes], [grid.periodic[a] for a in axes]
        )

    def _line(self, axis: int) -> Tensor:
        if isinstance(self.domain, RectilinearGrid):
            return self.domain.axes[axis]
        return torch.arange(self.domain.shape[axis], dtype=torch.float64) * self.domain.spacing[axis]


def _expand(kernel: Kernel) -> list[list[Kernel]]:
    """A sum of products; unlike `terms`, a separable kernel stays in one piece."""
    if isinstance(kernel, gpytorch.kernels.AdditiveKernel):
        return [term for part in kernel.kernels for term in _expand(part)]
    if isinstance(kernel, gpytorch.kernels.ProductKernel):
        choices = itertools.product(*(_expand(part) for part in kernel.kernels))
        return [[factor for part in choice for factor in part] for choice in choices]
    return [[kernel]]


def _is_nugget(term: list[Kernel]) -> bool:
    return any(isinstance(factor, Nugget) for factor in term)


def _gaussian(kernel: Kernel, position: int, axis: int) -> _Piece:
    def pairs(x1: Tensor, x2: Tensor) -> Tensor:
        ell = kernel.lengthscale.to(x1)
        ell = ell[..., 0, position if ell.shape[-1] > 1 else 0]
        square = (x1[..., axis] - x2[..., axis]).square()
        return torch.exp(-0.5 * square / ell.square().reshape(*ell.shape, *(1,) * square.dim()))

    return _Piece((axis,), pairs, None)


def _periodic(kernel: Periodic, position: int, axis: int) -> _Piece:
    def pairs(x1: Tensor, x2: Tensor) -> Tensor:
        difference = x1[..., axis] - x2[..., axis]
        period, ell = (
            value[..., 0, position if value.shape[-1] > 1 else 0]
            for value in (kernel.period.to(x1), kernel.lengthscale.to(x1))
        )
        ones = (1,) * difference.dim()
        angle = torch.pi * difference / period.reshape(*period.shape, *ones)
        return torch.exp(-2 * (torch.sin(angle) / ell.reshape(*ell.shape, *ones)).square())

    return _Piece((axis,), pairs, None)


def _merge(pieces: list[_Piece], ndim: int) -> list[Block]:
    """Blocks of axes that some piece couples, ordered by their first axis; an axis that no piece depends on
    is a block of its own, with ``k_b = 1``.
    """
    label = list(range(ndim))
    for piece in pieces:
        joined = {label[a] for a in piece.axes}
        label = [min(joined) if v in joined else v for v in label]
    return [
        Block(
            tuple(a for a in range(ndim) if label[a] == first),
            tuple(p for p in pieces if label[p.axes[0]] == first),
        )
        for first in sorted(set(label))
    ]
