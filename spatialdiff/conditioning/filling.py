r"""Missing cells of gridded fields, filled by kriging and by conditional simulation, up to a million cells.

With observed cells ``o``, ``A = K_oo + N`` and the drift ``Fβ``, the kriged field is

``x̂ = F β̂ + K_·o A⁻¹ (y - F_o β̂)``, ``β̂ = (F_oᵀA⁻¹F_o)⁻¹ F_oᵀA⁻¹y``,

and ``x_s + x̂(y - x_s,o - e)`` with an unconditional draw ``x_s`` and errors ``e ~ N(0, N)`` is a draw of the
field given the data (Matheron; Journel & Huijbregts 1978; Chilès & Delfiner 2012, section 7.3). Products with
``K`` and draws ``x_s`` go through FFTs on the whole grid; ``A⁻¹`` is by conjugate gradients, preconditioned
with the sparse factor of Vecchia's approximation of ``A``: some 15 iterations whatever the pattern of gaps,
random cells or half of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.near_inverse import WrappedInverse
from spatialdiff.conditioning.stationary import split_nugget
from spatialdiff.covariance import Covariance, covariance
from spatialdiff.covariance.checks import check_stationary
from spatialdiff.covariance.numerics.conjugate import conjugate_gradients
from spatialdiff.covariance.periodic import stationary_at
from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.domains import Grid, Points
from spatialdiff.kernels import Nugget, Sum

Drift = str | Tensor | None

# observed cells times all cells up to which the kriging variance is computed exactly
_EXACT = 20_000_000
_NEIGHBORS = 25
# values of the draws that are made at once
_BUFFER = 2**23


@dataclass(frozen=True)
class Filled:
    """Fields without gaps.

    Attributes:
        mean: the kriged fields, shape of the input, float64; with ``noise=0`` equal to the data where there
            are any.
        variance: kriging variance, shape of the input, or None where it is not known.
        variance_from: "exact", or "simulation" (the variance of ``n`` draws, relative standard error
            ``√(2/(n-1))``), or "" without one.
        samples: draws of the fields given the data, ``(n, *shape of the input)``, or None.
    """

    mean: Tensor
    variance: Tensor | None
    variance_from: str
    samples: Tensor | None


def fill(
    fields: Tensor,
    kernel: gpytorch.kernels.Kernel,
    grid: Grid,
    *,
    missing: str | Tensor = "nan",
    drift: Drift = "constant",
    noise: float | Tensor = 0.0,
    n: int | None = None,
    variance: bool = True,
    generator: torch.Generator | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 200,
) -> Filled:
    """Fill the missing cells of fields; see the module for the equations.

    Args:
        fields: ``(..., *grid.shape)``; every field may have gaps of its own.
        kernel: any stationary kernel; its nugget belongs to the field.
        grid: the grid, periodic or not.
        missing: "nan", or a bool tensor that broadcasts to ``fields``, True where a value is missing (what
            the field holds there is ignored).
        drift: None (the mean is 0), "constant", "linear" (1 and the coordinates; not on periodic axes), or
            the drift functions ``(*grid.shape, q)``.
        noise: variance of measurement errors, one number or a field of them, squared units. With errors the
            result is the field without them, at observed cells too.
        n: number of conditional simulations.
        variance: whether to give the kriging variance: exact where observed cells times cells are at most
            20,000,000, elsewhere from the draws if there are two or more.
        generator: of the draws.
        tolerance: relative residual ``‖A a - b‖/‖b‖`` of the conjugate gradients.
        max_iterations: of the conjugate gradients.

    Raises:
        ValueError: fields of another shape, no missing pattern to speak of (all cells missing), infinite
            values, fewer observed cells than drift functions, a covariance that is singular to working
            precision.
        RuntimeError: the conjugate gradients do not reach the tolerance.

    Source: Chilès & Delfiner 2012, Geostatistics, 2nd ed., sections 3.4 and 7.3.
    """
    fields = torch.as_tensor(fields).detach()
    shape = tuple(grid.shape)
    if fields.dim() < grid.ndim or tuple(fields.shape[fields.dim() - grid.ndim :]) != shape:
        raise ValueError(f"fill: fields need shape (..., {shape}), got {tuple(fields.shape)}.")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
        raise ValueError(f"fill: n must be a whole number from 1 or None, got {n!r}.")
    check_stationary(kernel, grid, "fill")
    split_nugget(kernel)
    values = fields.to(torch.float64)
    gaps = _gaps(values, missing).reshape(-1, *shape)
    flat = torch.where(gaps, 0.0, values.reshape(-1, *shape))
    design = _design(drift, grid)
    errors = torch.as_tensor(noise, dtype=torch.float64).expand(shape)
    if bool((errors < 0).any()) or not bool(torch.isfinite(errors).all()):
        raise ValueError("fill: noise must be finite and not negative; it is a variance.")

    mean, spread = torch.empty_like(flat), torch.empty_like(flat)
    samples = torch.empty(n or 0, *flat.shape, dtype=torch.float64)
    gamma = covariance(kernel, grid, method="torus" if all(grid.periodic) else "circulant").double()
    exact = True
    with torch.no_grad():
        patterns, member = torch.unique(gaps.flatten(1), dim=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            which = (member == number).nonzero().squeeze(-1)
            system = _System(kernel, grid, gamma, ~pattern, errors, design, tolerance, max_iterations)
            mean[which] = system.krige(flat[which])
            small = variance and system.cells * grid.size <= _EXACT
            exact = exact and small
            if small:
                spread[which] = system.variance()
            for begin in range(0, n or 0, step := max(1, _BUFFER // (grid.size * len(which)))):
                count = min(step, (n or 0) - begin)
                samples[begin : begin + count, which] = system.simulate(flat[which], count, generator)
            if not small and variance and n is not None and n > 1:
                spread[which] = samples[:, which].var(0)
    known = variance and (exact or (n is not None and n > 1))
    return Filled(
        mean.reshape(fields.shape),
        spread.reshape(fields.shape) if known else None,
        ("exact" if exact else "simulation") if known else "",
        None if n is None else samples.reshape(n, *fields.shape),
    )


def _gaps(values: Tensor, missing: str | Tensor) -> Tensor:
    if isinstance(missing, str):
        if missing != "nan":
            raise ValueError(f'fill: missing must be "nan" or a bool tensor, got {missing!r}.')
        gaps = torch.isnan(values)
    else:
        if missing.dtype != torch.bool:
            raise TypeError(
                f"fill: missing must be bool, True where a value is missing, got {missing.dtype}."
            )
        gaps = missing.expand(values.shape)
    bad = int((~torch.isfinite(values) & ~gaps).sum())
    if bad:
        raise ValueError(f"fill: {bad} values that are not missing are NaN or infinite; mark or remove them.")
    return gaps


def _design(drift: Drift, grid: Grid) -> Tensor:
    """Drift functions ``(q, *grid.shape)``."""
    one = torch.ones(1, *grid.shape, dtype=torch.float64)
    if drift is None:
        return one[:0]
    if isinstance(drift, Tensor):
        if tuple(drift.shape[:-1]) != grid.shape:
            raise ValueError(
                f"fill: drift functions need shape {(*grid.shape, 'q')}, got {tuple(drift.shape)}."
            )
        return drift.detach().to(torch.float64).movedim(-1, 0)
    if drift == "constant":
        return one
    if drift == "linear":
        if any(grid.periodic):
            raise ValueError('fill: drift="linear" does not close on a periodic axis; use "constant".')
        x = grid.coordinates().movedim(-1, 0)
        half = torch.tensor(grid.extent, dtype=torch.float64).reshape(-1, *(1,) * grid.ndim) / 2
        return torch.cat([one, x / half - 1])
    raise ValueError(f'fill: drift must be None, "constant", "linear" or functions, got {drift!r}.')


class _System:
    """One pattern of gaps: solves with ``A``, kriging and simulation. ``observed`` is a flat mask."""

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
