"""Kriging of one pattern of gaps on a grid: products by FFT, conjugate gradients near Vecchia's inverse.

See `spatialdiff.conditioning.filling` for the equations.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.near_inverse import WrappedInverse
from spatialdiff.covariance import Covariance
from spatialdiff.covariance.numerics.conjugate import conjugate_gradients
from spatialdiff.covariance.periodic import stationary_at
from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.domains import Grid, Points
from spatialdiff.kernels import Nugget, Sum

_NEIGHBORS = 25


class GridSystem:
    """One pattern of gaps: solves with ``A``, kriging, simulation, variance.

    Args:
        kernel: a stationary kernel.
        grid: the grid.
        gamma: its covariance on the whole grid.
        observed: flat bool mask of the observed cells.
        errors: variance of the measurement error of each cell, ``grid.shape``.
        design: drift functions ``(q, *grid.shape)``.
        tolerance, max_iterations: of the conjugate gradients.

    Raises:
        ValueError: too few observed cells for the drift, drift functions that are linearly dependent there, a
            covariance that is singular to working precision.
        RuntimeError: the conjugate gradients do not reach the tolerance.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        grid: Grid,
        gamma: Covariance,
        observed: Tensor,
        errors: Tensor,
        design: Tensor,
        tolerance: float,
        max_iterations: int,
    ) -> None:
        self.kernel, self.grid, self.gamma = kernel, grid, gamma
        self.index = observed.nonzero().squeeze(-1)
        self.cells = len(self.index)
        self.errors = errors.reshape(-1)[self.index]
        self.exact = self.errors == 0
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.design = design.flatten(1)
        if self.cells <= len(design):
            raise ValueError(
                f"fill: a field has {self.cells} observed cells, too few for {len(design)} drift functions "
                "and a residual; use a simpler drift, or leave the field out."
            )
        try:
            self.near = self._near(float(self.errors.mean()))
        except ValueError as error:
            raise ValueError(
                f"fill: the covariance of neighbouring cells is singular to working precision: {kernel!r} is "
                f"smoother than the spacing {grid.spacing} resolves and nothing stands for measurement "
                "error. Give noise=, such as 1e-6 of the variance, or add a Nugget to the kernel."
            ) from error
        self._prepare_drift()

    def _near(self, noise: float) -> VecchiaCovariance | WrappedInverse:
        """An approximate ``A⁻¹``."""
        if any(self.grid.periodic):
            return WrappedInverse(self.kernel, self.grid, self.index, noise=noise, neighbors=_NEIGHBORS)
        sites = self.grid.coordinates().reshape(-1, self.grid.ndim)[self.index]
        noisy = Sum(self.kernel, Nugget(noise)) if noise > 0 else self.kernel
        near = VecchiaCovariance(noisy, Points(sites), neighbors=_NEIGHBORS)
        near.log_det()  # raises here where A is not positive definite
        return near

    # ---- A and its inverse, on values (..., cells)
    def _spread(self, values: Tensor) -> Tensor:
        full = values.new_zeros(*values.shape[:-1], self.grid.size)
        full[..., self.index] = values
        return full.reshape(*values.shape[:-1], *self.grid.shape)

    def _to_all(self, values: Tensor) -> Tensor:
        """``K_·o a``, flat."""
        return self.gamma.matmul(self._spread(values)).flatten(-self.grid.ndim)

    def _multiply(self, values: Tensor) -> Tensor:
        return self._to_all(values)[..., self.index] + self.errors * values

    def _solve(self, b: Tensor) -> Tensor:
        try:
            return conjugate_gradients(
                self._multiply,
                b,
                self.near.solve,
                ndim=1,
                tolerance=self.tolerance,
                max_iterations=self.max_iterations,
            )
        except RuntimeError as error:
            raise RuntimeError(
                f"fill: conjugate gradients did not reach a relative residual of {self.tolerance:g} in "
                f"{self.max_iterations} iterations on {self.cells} observed cells: {self.kernel!r} is very "
                "smooth for the spacing and the data have little or no noise. Give noise= (or a larger one), "
                "add a Nugget to the kernel, or a larger tolerance or max_iterations."
            ) from error

    def _prepare_drift(self) -> None:
        f = self.design[:, self.index]
        if not len(f):
            return
        scale = f.norm(dim=-1, keepdim=True)
        self.design, f = self.design / scale, f / scale
        self._solved = self._solve(f)
        gram = f @ self._solved.mT
        values = torch.linalg.eigvalsh((gram + gram.mT) / 2)
        if float(values[0]) <= 1e-12 * float(values[-1]):
            raise ValueError(
                f"fill: the {len(f)} drift functions are linearly dependent on the observed cells; leave "
                "some out."
            )
        self._gram = torch.linalg.cholesky((gram + gram.mT) / 2)

    # ---- results: fields (b, *grid.shape)
    def _predict(self, values: Tensor) -> Tensor:
        """The kriged fields, flat, of data ``(..., cells)``."""
        weights = self._solve(values)
        if not len(self.design):
            return self._to_all(weights)
        beta = torch.cholesky_solve((values @ self._solved.mT).unsqueeze(-1), self._gram).squeeze(-1)
        return self._to_all(weights - beta @ self._solved) + beta @ self.design

    def _honour(self, result: Tensor, values: Tensor) -> Tensor:
        # conjugate gradients honour the data to their tolerance, this does exactly
        kept = self.index[self.exact]
        result[..., kept] = values[..., self.exact].expand(*result.shape[:-1], len(kept))
        return result

    def krige(self, fields: Tensor) -> Tensor:
        values = fields.flatten(1)[:, self.index]
        return self._honour(self._predict(values), values).reshape(fields.shape)

    def simulate(self, fields: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        values = fields.flatten(1)[:, self.index]
        prior = self.gamma.sample((n, len(fields)), generator=generator).flatten(2)
        drawn = torch.randn(n, *values.shape, generator=generator, dtype=torch.float64)
        rest = values - prior[..., self.index] - self.errors.sqrt() * drawn
        draws = prior + self._predict(rest)
        return self._honour(draws, values).reshape(n, *fields.shape)

    def variance(self) -> Tensor:
        """The kriging variance by a dense factor, one for all fields of the pattern."""
        table = stationary_at(self.kernel, self.grid, [torch.arange(-n + 1, n) for n in self.grid.shape])[0]
        axes = torch.meshgrid(*(torch.arange(n) for n in self.grid.shape), indexing="ij")
        cells = torch.stack(axes, -1).reshape(-1, self.grid.ndim)
        last = torch.tensor(self.grid.shape) - 1
        rows = [table[tuple((cells - cells[i] + last).unbind(-1))] for i in self.index.tolist()]
        cross = torch.stack(rows).to(torch.float64)
        matrix = cross[:, self.index] + torch.diag(self.errors)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if int(info) != 0:
            raise ValueError(
                f"fill: the covariance of {self.cells} observed cells is singular to working precision; give "
                "noise= or add a Nugget to the kernel."
            )
        white = torch.linalg.solve_triangular(factor, cross, upper=False)
        own = float(self.gamma.variance().reshape(-1)[0])
        result = own - white.square().sum(0)
        if len(self.design):
            f = torch.linalg.solve_triangular(factor, self.design[:, self.index].mT, upper=False)
            rest = self.design.mT - white.mT @ f
            r = torch.linalg.qr(f)[1]
            result = result + torch.linalg.solve_triangular(r.mT, rest.mT, upper=False).square().sum(0)
        result = result.clamp_min(0.0)
        result[self.index[self.exact]] = 0.0
        field: Tensor = result.reshape(self.grid.shape)
        return field
