r"""Stationary Γ on a small grid, by the reflections of the grid: a fraction of the work of a dense matrix.

A stationary covariance on a grid does not change when the grid is turned about its centre, and for kernels
of ``|h_a|`` not when it is reflected in any axis [Cantoni & Butler 1976]. Γ is then block diagonal in the
parts of a field that are even or odd under each reflection: with ``e_i = (x_i + x_{n-1-i})/√2``, ``o_i = (x_i
- x_{n-1-i})/√2``,

``Cov(e_i, e_j) = k(i-j) + k(i+j-n+1)``, ``Cov(o_i, o_j) = k(i-j) - k(i+j-n+1)``, ``Cov(e_i, o_j) = 0``,

and the same in every axis: ``2^d`` blocks of ``n/2^d`` sites, ``4^{-d}`` of the flops of a dense Cholesky
factorisation and ``2^{-d}`` of those of a product. ``R = Uᵀ blockdiag(L)`` with the orthogonal ``U`` that
splits and Cholesky factors ``L`` is square: it colours, whitens, solves and has a determinant, exactly.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.checks import check_lengthscale, check_stationary
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Grid

_HALF = math.sqrt(0.5)


class ReflectionCovariance(Covariance):
    """Γ_s as ``2^d`` blocks (2 for kernels without reflection symmetry), each with a Cholesky factor:
    ``O(n³/4^d)`` once, ``O(n²/2^d)`` per field.

    Args:
        kernel: any stationary gpytorch kernel; on periodic axes it is periodised as in `TorusCovariance`.
        domain: the grid.
        channels: see `Covariance`.

    Raises:
        ValueError: a kernel that is not stationary; Γ is not positive definite (at the first use that needs
            a factor).
        TypeError: a domain that is not a `Grid`.
    """

    method = "reflection"

    def __init__(self, kernel: gpytorch.kernels.Kernel, domain: Grid, channels: Channels = None) -> None:
        if not isinstance(domain, Grid):
            raise TypeError(f"ReflectionCovariance needs a Grid, got {type(domain).__name__}.")
        super().__init__(domain, channels, kernel)
        check_stationary(kernel, domain, "ReflectionCovariance")
        check_lengthscale(kernel, domain)
        self.split = Split(domain.shape if reflection_symmetric(kernel) else (domain.size,))

    def _compute_blocks(self) -> Tensor:
        assert self.kernel is not None
        assert isinstance(self.domain, Grid)
        return reflection_blocks(self.kernel, self.domain, self.device)

    def _compute_cholesky(self) -> Tensor:
        return block_cholesky(self._factor("blocks"))

    def _apply_blocks(self, x: Tensor, factor: Tensor) -> Tensor:
        """``factor`` ``(*batch, p, b, b)`` on blocks ``(..., *batch, p, b)``."""
        if factor.dim() == 3:
            rows = x.reshape(-1, *x.shape[-2:]).transpose(0, 1)
            return (rows @ factor.mT).transpose(0, 1).reshape(x.shape)
        return (factor @ x.unsqueeze(-1)).squeeze(-1)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: x.dim() - self.domain.ndim], *self.split.shape)

    def _color(self, z: Tensor) -> Tensor:
        blocks = self._apply_blocks(self.split.blocks(self._flat(z)), self._factor("cholesky", z.dtype))
        return self.split.backward(self.split.halves(blocks)).reshape(z.shape)

    def _whiten(self, x: Tensor) -> Tensor:
        blocks = self.split.blocks(self.split.forward(self._flat(x)))
        solved = torch.linalg.solve_triangular(
            self._factor("cholesky", x.dtype), blocks.unsqueeze(-1), upper=False
        )
        return self.split.halves(solved.squeeze(-1)).reshape(x.shape)

    def _matmul(self, x: Tensor) -> Tensor:
        blocks = self.split.blocks(self.split.forward(self._flat(x)))
        product = self._apply_blocks(blocks, self._factor("blocks", x.dtype))
        return self.split.backward(self.split.halves(product)).reshape(x.shape)

    def _solve(self, x: Tensor) -> Tensor:
        blocks = self.split.blocks(self.split.forward(self._flat(x)))
        factor = self._factor("cholesky", x.dtype)
        solved = torch.cholesky_solve(blocks.unsqueeze(-1), factor.expand(*blocks.shape[:-1], -1, -1))
        return self.split.backward(self.split.halves(solved.squeeze(-1))).reshape(x.shape)

    def _log_det(self) -> Tensor:
        return 2 * self._factor("cholesky").diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))

    def _variance(self) -> Tensor:
        assert self.kernel is not None
        assert isinstance(self.domain, Grid)
        origin, _ = stationary_at(self.kernel, self.domain, [torch.arange(1)] * self.domain.ndim, self.device)
        return origin

    def _report(self) -> CovarianceReport:
        return CovarianceReport(
            self.method,
            exact=True,
            error_bound=0.0,
            reason=f"every pair of sites in {len(self.split.patterns)} blocks that the reflections of the "
            "grid separate, Cholesky in float64",
        )


class Split:
    """The orthogonal map of a field to its even and odd parts in every axis of ``shape``."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.patterns = list(itertools.product((0, 1), repeat=len(shape)))
        self.sizes = [
            tuple((n + 1) // 2 if p == 0 else n // 2 for n, p in zip(shape, pattern, strict=True))
            for pattern in self.patterns
        ]
        self.size = max(math.prod(s) for s in self.sizes)
        self.even = all(n % 2 == 0 for n in shape)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., *shape)`` → the same shape, even part first in every axis."""
        for axis, n in zip(range(-len(self.shape), 0), self.shape, strict=True):
            low, high = x.narrow(axis, 0, n // 2), x.narrow(axis, n - n // 2, n // 2).flip(axis)
            middle = [x.narrow(axis, n // 2, 1)] if n % 2 else []
            x = torch.cat([(low + high) * _HALF, *middle, (low - high) * _HALF], dim=axis)
        return x

    def backward(self, y: Tensor) -> Tensor:
        """Inverse and transpose of `forward`."""
        for axis, n in zip(range(-len(self.shape), 0), self.shape, strict=True):
            even, odd = y.narrow(axis, 0, n // 2), y.narrow(axis, n - n // 2, n // 2)
            middle = [y.narrow(axis, n // 2, 1)] if n % 2 else []
            y = torch.cat([(even + odd) * _HALF, *middle, ((even - odd) * _HALF).flip(axis)], dim=axis)
        return y

    def _slices(self, pattern: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(
            slice(0, (n + 1) // 2) if p == 0 else slice((n + 1) // 2, n)
            for n, p in zip(self.shape, pattern, strict=True)
        )

    def blocks(self, y: Tensor) -> Tensor:
        """``(..., *shape)`` → ``(..., p, b)``, zeros where a block is smaller."""
        lead = y.shape[: y.dim() - len(self.shape)]
        if self.even:
            d = len(self.shape)
            y = y.reshape(*lead, *(s for n in self.shape for s in (2, n // 2)))
            start = len(lead)
            order = [*range(start), *range(start, start + 2 * d, 2), *range(start + 1, start + 2 * d, 2)]
            return y.permute(order).reshape(*lead, len(self.patterns), self.size)
        parts = []
        for pattern in self.patterns:
            index: Any = (..., *self._slices(pattern))
            part = y[index].reshape(*lead, -1)
            parts.append(torch.nn.functional.pad(part, (0, self.size - part.shape[-1])))
        return torch.stack(parts, -2)

    def halves(self, blocks: Tensor) -> Tensor:
        """Inverse of `blocks`."""
        lead = blocks.shape[:-2]
        d = len(self.shape)
        if self.even:
            y = blocks.reshape(*lead, *(2,) * d, *(n // 2 for n in self.shape))
            start = len(lead)
            order = [*range(start), *(start + a + s for a in range(d) for s in (0, d))]
            return y.permute(order).reshape(*lead, *self.shape)
        parts = {
            pattern: blocks[..., i, : math.prod(s)].reshape(*lead, *s)
            for i, (pattern, s) in enumerate(zip(self.patterns, self.sizes, strict=True))
        }
        for axis in range(d - 1, -1, -1):
            heads = {pattern[:axis] for pattern in parts}
            parts = {head: torch.cat([parts[(*head, 0)], parts[(*head, 1)]], dim=axis - d) for head in heads}
        return parts[()]


def _gathers(n: int, parity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lags ``|i-j|`` and ``n-1-i-j``, and the weights of a middle site."""
    count = (n + 1) // 2 if parity == 0 else n // 2
    i = torch.arange(count)
    weight = torch.ones(count, dtype=torch.float64)
    if n % 2 and parity == 0:
        weight[-1] = _HALF
    return (i[:, None] - i).abs(), n - 1 - i[:, None] - i, weight[:, None] * weight


def reflection_blocks(
    kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None = None
) -> Tensor:
    """The blocks of Γ, ``(*batch, p, b, b)`` float64, filled up with ones on the diagonal."""
    if not reflection_symmetric(kernel):
        return _turned_blocks(kernel, grid, device)
    table, _ = stationary_at(kernel, grid, [torch.arange(n) for n in grid.shape], device)
    return table_blocks(table, grid.shape)


def table_blocks(table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The blocks of the matrix ``c(|i - j|)``, from ``c`` at lags ``0 … n-1`` per axis, ``(*batch,
    *shape)``.
    """
    split, d = Split(shape), len(shape)
    lead = table.shape[: table.dim() - d]
    found = []
    for pattern, sizes in zip(split.patterns, split.sizes, strict=True):
        block = table
        for axis, (n, p) in enumerate(zip(shape, pattern, strict=True)):
            near, far, weight = (v.reshape(-1).to(table.device) for v in _gathers(n, p))
            direct, mirrored = (block.index_select(axis - d, lag) for lag in (near, far))
            view = (-1, *(1,) * (d - 1 - axis))
            block = (direct - mirrored if p else direct + mirrored) * weight.reshape(view)
        size = math.prod(sizes)
        block = block.reshape(*lead, *(s for s in sizes for _ in (0, 1)))
        start = len(lead)
        order = [*range(start), *range(start, start + 2 * d, 2), *range(start + 1, start + 2 * d, 2)]
        found.append(_padded(block.permute(order).reshape(*lead, size, size), split.size))
    return torch.stack(found, -3)


def _turned_blocks(kernel: gpytorch.kernels.Kernel, grid: Grid, device: torch.device | None) -> Tensor:
    table, _ = stationary_at(kernel, grid, [torch.arange(-n + 1, n) for n in grid.shape], device)
    axes = torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij")
    sites = torch.stack(axes, -1).reshape(-1, grid.ndim)
    split = Split((grid.size,))
    found = []
    for parity in (0, 1):
        count = (grid.size + 1) // 2 if parity == 0 else grid.size // 2
        half, other = sites[:count], sites.flip(0)[:count]
        weight = _gathers(grid.size, parity)[2].to(table.device)
        shift = torch.tensor(grid.shape) - 1
        lags: list[Any] = [
            (..., *(half[:, None] - to + shift).to(table.device).unbind(-1)) for to in (half, other)
        ]
        near, far = (table[lag] for lag in lags)
        found.append(_padded((near - far if parity else near + far) * weight, split.size))
    return torch.stack(found, -3)


def _padded(block: Tensor, size: int) -> Tensor:
    missing = size - block.shape[-1]
    if missing == 0:
        return block
    ones = torch.cat([block.new_zeros(block.shape[-1]), block.new_ones(missing)])
    return torch.nn.functional.pad(block, (0, missing, 0, missing)) + torch.diag(ones)


def block_cholesky(blocks: Tensor) -> Tensor:
    """Cholesky factors of the blocks.

    Raises:
        ValueError: Γ is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(blocks)
    if bool((info != 0).any()) or not bool(torch.isfinite(factor.detach()).all()):
        smallest = float(torch.linalg.eigvalsh(blocks.detach()).min())
        raise ValueError(
            f"Γ is not positive definite: smallest eigenvalue {smallest:.3g}, largest diagonal entry "
            f"{float(blocks.detach().diagonal(dim1=-2, dim2=-1).max()):.3g}. Add a Nugget to the kernel, or "
            "use a rougher or shorter one."
        )
    result: Tensor = factor
    return result
