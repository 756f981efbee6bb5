r"""An approximate inverse of the covariance of some cells of a grid that wraps around, to precondition with.

Vecchia's approximation ``A⁻¹ ≈ WᵀW`` as in `VecchiaCovariance`, with neighbours and covariances around the
periodic axes: neighbours are nearest in the coordinates ``L/2π (cos, sin)(2πx/L)`` of such an axis, and
covariances are read from the table of the periodised kernel at all lags of the grid.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.periodic import stationary_at
from spatialdiff.covariance.points.conditionals import conditional_rows
from spatialdiff.covariance.points.metric import neighbour_metric
from spatialdiff.covariance.points.neighbours import previous_neighbours
from spatialdiff.covariance.points.ordering import order_sites
from spatialdiff.covariance.points.triangular import SparsePattern, choose_engine
from spatialdiff.domains import Grid


class WrappedInverse:
    """``A⁻¹ ≈ WᵀW`` of the cells ``index`` of ``grid``, ``A = K + noise · 1``.

    Args:
        kernel: a stationary kernel.
        grid: the grid.
        index: flat indices of the cells, ``(c,)``.
        noise: variance of the measurement errors.
        neighbors: number of neighbours of each cell.

    Raises:
        ValueError: ``A`` is not positive definite to working precision.
    """

    def __init__(
        self, kernel: gpytorch.kernels.Kernel, grid: Grid, index: Tensor, *, noise: float, neighbors: int
    ) -> None:
        axes = torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij")
        cells = torch.stack(axes, -1).reshape(-1, grid.ndim)[index]
        sites = cells.double() * torch.tensor(grid.spacing, dtype=torch.float64)
        scale = neighbour_metric(kernel, sites).diagonal()
        engine = choose_engine("auto")
        self.order = order_sites("maximin", sites * scale, engine)
        columns = []
        for axis, (wraps, length) in enumerate(zip(grid.periodic, grid.extent, strict=True)):
            x = sites[:, axis]
            if wraps:
                angle = 2 * math.pi / length * x
                wrapped = torch.stack([angle.cos(), angle.sin()], -1) * length / (2 * math.pi)
                columns.append(wrapped * scale[axis])
            else:
                columns.append(x[:, None] * scale[axis])
        neighbours = previous_neighbours(torch.cat(columns, -1)[self.order], neighbors)
        table, _ = stationary_at(kernel, grid, [torch.arange(-n + 1, n) for n in grid.shape])
        last = torch.tensor(grid.shape) - 1

        def covariance(x1: Tensor, x2: Tensor, different: Tensor) -> Tensor:
            lag = (x1 - x2).long() + last
            return table[tuple(lag.unbind(-1))].double() + noise * (~different).double()

        self.pattern = SparsePattern(neighbours, engine)
        self.rows = conditional_rows(covariance, cells[self.order].double(), self.pattern).unsqueeze(0)

    def solve(self, values: Tensor) -> Tensor:
        """``WᵀW b`` of ``(..., c)``."""
        x = values[..., self.order].reshape(-1, len(self.order)).mT.unsqueeze(0)
        for operation in ("product", "product_transposed"):
            x = self.pattern.apply(operation, self.rows, x)
        result = torch.empty_like(values)
        result[..., self.order] = x[0].mT.reshape(values.shape)
        return result
