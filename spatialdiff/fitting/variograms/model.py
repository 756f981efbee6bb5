r"""The variogram of a kernel at the lags of an empirical one: ``γ(h; θ) = k(0) - k(h)``.

On a grid the model's value for a bin is the mean of ``γ(h; θ)`` over exactly the pairs that are in it, so
that
``E γ̂ = γ(θ)`` whatever the anisotropy, the width of the bins and the periods (where ``k`` is the periodised
kernel). Elsewhere it is ``γ`` at the mean distance of the pairs, along the direction; a kernel that depends
on the direction is averaged over directions where the variogram is of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.variograms.empirical import Variogram
from spatialdiff.fitting.variograms.lattice import LagTable
from spatialdiff.kernels import Chordal, Coregionalization, SphericalKernel, at_lags, at_pairs
from spatialdiff.kernels.lags import is_isotropic

_DIRECTIONS = 24
# parts of a bin of a grid at which an isotropic kernel is evaluated
_NODES = 32


class Semivariance(nn.Module):
    """``γ`` of a kernel ``(..., 1, 1)`` or a coregionalisation ``(..., C, C)`` at differences ``(..., d)``
    or at great-circle distances on a sphere.
    """

    def __init__(self, kernel: Kernel | Coregionalization) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, lags: Tensor, radius: float | None) -> Tensor:
        with gpytorch.settings.trace_mode(True):
            if radius is not None:
                return self._on_sphere(lags, radius)
            flat = lags.reshape(-1, lags.shape[-1])
            values = self._at(torch.cat([torch.zeros_like(flat[:1]), flat]))
            return (values[0] - values[1:]).reshape(*lags.shape[:-1], *values.shape[1:])

    def _at(self, lags: Tensor) -> Tensor:
        if isinstance(self.kernel, Coregionalization):
            return self.kernel.cross(lags)
        return at_lags(self.kernel, lags)[..., None, None]

    def _on_sphere(self, distance: Tensor, radius: float) -> Tensor:
        angle = distance / radius
        pole = torch.tensor([radius, 0.0, 0.0], dtype=torch.float64)
        sites = radius * torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], dim=-1)
        if isinstance(self.kernel, Coregionalization):
            return self.kernel.cross_pairs(pole, pole) - self.kernel.cross_pairs(pole, sites)
        at = (at_pairs(self.kernel, pole, x)[..., None, None] for x in (pole, sites))
        origin, values = at
        return origin - values


class Periodised(nn.Module):
    """``γ`` of the periodised kernel at whole-number lags per axis, 0 first, ``(*lags, C', C')``."""

    def __init__(self, kernel: Kernel | Coregionalization, grid: Grid) -> None:
        super().__init__()
        self.kernel, self.grid = kernel, grid

    def forward(self, indices: Sequence[Tensor]) -> Tensor:
        with gpytorch.settings.trace_mode(True):
            if not isinstance(self.kernel, Coregionalization):
                return self._of(self.kernel, indices)[..., None, None]
            terms = [b * self._of(k, indices)[..., None, None] for b, k in self.kernel.terms]
            return torch.stack(terms).sum(0)

    def _of(self, kernel: Kernel, indices: Sequence[Tensor]) -> Tensor:
        # the first of the indices is 0 on every axis
        values = stationary_at(kernel, self.grid, list(indices))[0]
        return values[(0,) * self.grid.ndim] - values


class VariogramModel:
    """``θ → γ(θ)`` in the shape ``(b, C', C')`` of a variogram's bins (``C' = 1`` unless the kernel is a
    `Coregionalization`; ``(b, C, C')`` where the channels' patterns of missing values differ).

    Raises:
        ValueError: a kernel that is not stationary (nor isotropic on the sphere), or of another dimension
            than the sites; a coregionalisation of another number of channels, or without cross-variograms.
    """

    def __init__(self, model: KernelParameters, variogram: Variogram) -> None:
        self.model, self.variogram = model, variogram
        self.number = len(variogram.edges) - 1
        kernel, domain = model.kernel, variogram.domain
        self.joint = isinstance(kernel, Coregionalization)
        self.radius = float(domain.sites()[0].norm()) if variogram.metric == "great_circle" else None
        _check(kernel, variogram)
        self._module: nn.Module = Semivariance(kernel)
        self._indices: list[Tensor] | None = None
        self.table = variogram.table if self.radius is None else None
        if self.radius is not None:
            self.lags = variogram.lags.nan_to_num()
            return
        grid = domain.grid if isinstance(domain, MaskedGrid) else domain
        isotropic = self._isotropic(domain.dimension)
        if variogram.table is None or not isinstance(grid, Grid):
            self.lags = self._mean_lags(isotropic)
            return
        table = variogram.table
        if any(grid.periodic):
            steps = (table.lags / torch.tensor(grid.spacing, dtype=torch.float64)).round().long()
            if all(reflection_symmetric(k) for k in _kernels(kernel)):
                steps = steps.abs()
            self._indices = [torch.unique(torch.cat([steps.new_zeros(1), column])) for column in steps.T]
            # 0 first
            self._indices = [torch.cat([i[i == 0], i[i != 0]]) for i in self._indices]
            places = zip(steps.T, self._indices, strict=True)
            self._places = [(column[:, None] == i).long().argmax(dim=1) for column, i in places]
            self._module = Periodised(kernel, grid)
            self.lags = table.lags
            return
        if isotropic:
            table = by_distance(table, torch.diff(variogram.edges))
        self.table, self.lags = table, table.lags

    def __call__(self, theta: Tensor) -> Tensor:
        raw = {f"kernel.{path}": value for path, value in self.model.raw_values(theta).items()}
        if self._indices is not None:
            values = torch.func.functional_call(self._module, raw, (self._indices,))
            return self._averaged(values[tuple(self._places)])
        values = torch.func.functional_call(self._module, raw, (self.lags, self.radius))
        if self.radius is not None or self.table is None:
            # (b, C, C) or (b,) mean distances: those of each pair of channels on the diagonal of the model
            return self._of_channels(values)
        return self._averaged(values)

    def _averaged(self, values: Tensor) -> Tensor:
        """``(m, C', C')`` at the lags of the table → the shape of the variogram's ``gamma``."""
        table, gamma = self.table, self.variogram.gamma
        assert table is not None
        size = values.shape[-1]
        rows = table.weights.shape[0]
        flat = values.reshape(len(values), size * size)
        means = torch.stack([table.average(flat[:, c], self.number) for c in range(size * size)], dim=-1)
        # (rows, b, size²); a row of weights for every pair a ≤ b of channels, or one for all
        means = means.reshape(rows, self.number, size, size)
        if gamma.ndim == 1:
            return means[0, :, 0, 0]
        channels = gamma.shape[1]
        if gamma.ndim == 2:
            picked = [means[c if rows > 1 else 0, :, 0, 0] for c in range(channels)]
            return torch.stack(picked, dim=-1)
        where = _pair_numbers(channels) if rows > 1 else torch.zeros(channels, channels, dtype=torch.long)
        columns = torch.arange(channels) if size > 1 else torch.zeros(channels, dtype=torch.long)
        return means[
            where[:, :, None], torch.arange(self.number), columns[:, None, None], columns[None, :, None]
        ].movedim(-1, 0)

    def _mean_lags(self, isotropic: bool) -> Tensor:
        """``(..., k, d)``: mean distances along the direction, along the first axis, or along all."""
        variogram, d = self.variogram, self.variogram.domain.dimension
        if variogram.direction is not None:
            along = variogram.direction[None]
        elif isotropic:
            along = torch.eye(d, dtype=torch.float64)[:1]
        else:
            along = directions(d)
        return variogram.lags.nan_to_num()[..., None, None] * along

    def _of_channels(self, values: Tensor) -> Tensor:
        """Values at mean distances ``(*gamma.shape, [k,] C', C')`` → the shape of ``gamma``."""
        if self.radius is None:
            values = values.mean(dim=-3)
        if not self.joint:
            return values[..., 0, 0]
        channels = torch.arange(self.variogram.channels)
        return values[:, channels[:, None], channels, channels[:, None], channels]

    def _isotropic(self, d: int) -> bool:
        """Whether ``k`` depends on the distance alone, also for other values of its parameters."""
        if d == 1:
            return True
        free = len(self.model.free)
        theta = self.model.start() + 0.1 * torch.arange(free, dtype=torch.float64)
        low, high = (
            torch.tensor(side, dtype=torch.float64)
            for side in zip(*(p.theta_bounds for p in self.model.free), strict=True)
        )
        raw = {
            f"kernel.{path}": value for path, value in self.model.raw_values(theta.clamp(low, high)).items()
        }
        reach = self.variogram.lags.nan_to_num().max()
        lengths = reach * torch.tensor([0.05, 0.2, 0.5, 1.0], dtype=torch.float64)
        towards = directions(d) if d <= 3 else torch.cat([torch.eye(d), torch.full((1, d), d**-0.5)]).double()
        lags = lengths[:, None, None] * towards
        with torch.no_grad():
            values = torch.func.functional_call(Semivariance(self.model.kernel), raw, (lags, None))
        return is_isotropic(values.movedim((-2, -1), (0, 1)))


def by_distance(table: LagTable, widths: Tensor) -> LagTable:
    """The lags of a table along the first axis, those of one distance as one: all that an isotropic kernel
    sees. Where a bin holds more than 32 distances, those in one of 32 parts of it are one, at their mean
    (which moves ``γ`` by the square of a 32nd of a bin, times a 24th of its curvature).
    """
    distance = table.lags.norm(dim=1)
    width = widths[table.bins]
    exact = (distance / distance.max() * 1e9).round().long()
    # one whole number per bin and distance; a distance has no more than 10 digits
    beyond = 2 * 10**9
    different = torch.unique(table.bins * beyond + exact)
    many = (torch.bincount(different // beyond, minlength=len(widths)) > _NODES)[table.bins]
    part = torch.where(many, (distance / width * _NODES).ceil().long(), exact)
    nodes, place = torch.unique(table.bins * beyond + part, return_inverse=True)
    number = len(nodes)
    share = table.weights.mean(dim=0)
    weights = table.weights.new_zeros(len(table.weights), number).index_add(1, place, table.weights)
    size = share.new_zeros(number).index_add(0, place, share)
    at = share.new_zeros(number).index_add(0, place, share * distance) / size.clamp_min(1e-300)
    lags = torch.zeros(number, table.lags.shape[1], dtype=torch.float64)
    lags[:, 0] = at
    return LagTable(lags, nodes // beyond, weights)


def directions(d: int) -> Tensor:
    """Unit vectors ``(k, d)`` spread evenly over half of all directions, ``h`` and ``-h`` being one."""
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if d == 2:
        angle = torch.arange(_DIRECTIONS, dtype=torch.float64) * (math.pi / _DIRECTIONS)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)
    if d == 3:
        number = 8 * _DIRECTIONS
        height = (torch.arange(number, dtype=torch.float64) + 0.5) / number
        turn = torch.arange(number, dtype=torch.float64) * (math.pi * (3.0 - math.sqrt(5.0)))
        across = (1.0 - height.square()).sqrt()
        return torch.stack([across * turn.cos(), across * turn.sin(), height], dim=-1)
    raise ValueError(
        f"a kernel that depends on the direction needs directional variograms in {d} dimensions: give "
        "variogram(..., direction=...)"
    )


def _kernels(kernel: Kernel | Coregionalization) -> list[Kernel]:
    """The kernels of a coregionalisation, or the one there is."""
    return list(kernel.kernels) if isinstance(kernel, Coregionalization) else [kernel]


def _pair_numbers(channels: int) -> Tensor:
    numbers = torch.empty(channels, channels, dtype=torch.long)
    number = 0
    for a in range(channels):
        for b in range(a, channels):
            numbers[a, b] = numbers[b, a] = number
            number += 1
    return numbers


def _check(kernel: Kernel | Coregionalization, variogram: Variogram) -> None:
    parts = [p for p in kernel.modules() if isinstance(p, SphericalKernel | Chordal)]
    great_circle = variogram.metric == "great_circle"
    if parts and not great_circle:
        raise ValueError(
            f"{type(parts[0]).__name__} is a kernel on the sphere: give variogram(..., metric='great_circle')"
        )
    if not (parts and great_circle) and not kernel.is_stationary:
        raise ValueError(
            f"{type(kernel).__name__} is not stationary: its semivariance is no function of the lag; use "
            "method='exact' or 'vecchia'"
        )
    if isinstance(kernel, Coregionalization):
        if not variogram.cross or variogram.channels != kernel.channels:
            raise ValueError(
                f"a Coregionalization of {kernel.channels} channels is fitted to the cross-variograms of as "
                f"many: give variogram(..., cross=True) of fields with {kernel.channels} channels"
            )
    elif variogram.cross and variogram.channels > 1:
        raise ValueError(
            "cross-variograms are fitted by a Coregionalization: give one, or variogram(..., "
            "cross=False) for one kernel of all channels"
        )
    for part in _kernels(kernel):
        check = getattr(part, "check_dimension", None)
        if check is not None:
            check(variogram.domain.dimension)
