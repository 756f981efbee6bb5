r"""Statistics of fields at every scale: power per ring of wavenumber, semivariance per lag.

Each is a mean of squares of linear functions of a field, so under a Gaussian law about a multiple of
:math:`\chi^2`, and has one value per field and channel. Cells without a value are left out of the pairs of
a lag, and are 0 (the mean) in the transform, whose power is then that of the field times the mask: no
estimate of the spectrum, but the same statistic for the data and for fields drawn from the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis, CosineBasis, FourierBasis
from spatialdiff.covariance.spheres.harmonics import Harmonics
from spatialdiff.domains import Domain, Graph, Grid, MaskedGrid, Sphere
from spatialdiff.fitting.nonparametric.smoothing import bin_index

RINGS, LAGS = 12, 10
# pairs of sites are counted for so many sites; of more, these are drawn
_SITES = 1200


@dataclass(frozen=True)
class Scale:
    """What one statistic is of: ``kind`` is "mean", "spectrum" or "variogram"; ``place`` the wavenumber
    (cycles per unit length, or the degree on a sphere) or the distance."""

    kind: str
    place: float
    direction: str = ""

    def __str__(self) -> str:
        if self.kind == "mean":
            return "the mean over the domain"
        if self.kind == "variogram":
            return f"distance {self.place:.3g}{self.direction}"
        return f"{self.direction or 'wavenumber'} {self.place:.3g}"


class Scales:
    """The statistics of fields on a domain.

    Args:
        domain: a grid (whole or masked), a sphere, or any domain whose sites have coordinates; of a graph
            the mean over the domain only.
        seed: of the sites that pairs are counted for where there are many.
    """

    def __init__(self, domain: Domain, seed: int = 0) -> None:
        self.domain = domain
        grid = domain.grid if isinstance(domain, MaskedGrid) else domain
        self.scales = [Scale("mean", 0.0)]
        self.basis: Basis | None = None
        self.harmonics: Harmonics | None = None
        if isinstance(grid, Grid) and grid.size > 3:
            self._rings(grid)
        elif isinstance(grid, Sphere):
            self._degrees(grid)
        self.steps: list[tuple[int, int]] = []
        self.pairs: list[Tensor] = []
        if isinstance(grid, Grid):
            self._steps(grid)
        elif not isinstance(grid, Graph):
            self._pairs(seed)

    def _rings(self, grid: Grid) -> None:
        basis: Basis = FourierBasis(grid) if all(grid.periodic) else CosineBasis(grid)
        wavenumber = basis.wavenumbers.reshape(-1)
        other = wavenumber > 0.0
        octaves = math.log2(float(wavenumber.max() / wavenumber[other].min()))
        index, number = bin_index(wavenumber[other], max(octaves, 1e-9) / RINGS)
        weight = basis.weights.reshape(-1)[other]
        averaging = torch.zeros(len(wavenumber), number, dtype=torch.float64)
        averaging[other.nonzero().squeeze(-1), index] = weight
        averaging /= averaging.sum(dim=0)
        self.basis, self.averaging = basis, averaging
        self.scales += [Scale("spectrum", float(wavenumber @ averaging[:, i])) for i in range(number)]

    def _degrees(self, sphere: Sphere) -> None:
        rows, columns = sphere.shape
        exact = 2 * rows - 1 if sphere.grid == "gauss_legendre" else rows - 1
        lmax = min(exact, columns - 1) // 2
        if lmax < 1:
            return
        self.harmonics = Harmonics(sphere, lmax)
        degrees = torch.arange(1, lmax + 1, dtype=torch.float64)
        index, number = bin_index(degrees, max(math.log2(max(lmax, 2)), 1.0) / RINGS)
        self.averaging = torch.zeros(lmax + 1, number, dtype=torch.float64)
        self.averaging[degrees.long(), index] = 2.0 * degrees + 1.0
        self.averaging /= self.averaging.sum(dim=0)
        places = torch.arange(lmax + 1, dtype=torch.float64) @ self.averaging
        self.scales += [Scale("spectrum", float(p), "degree") for p in places]

    def _steps(self, grid: Grid) -> None:
        for axis, size in enumerate(grid.shape):
            if size < 2:
                continue
            last = max(1, size // 2)
            spaced = torch.logspace(0.0, math.log10(last), LAGS, dtype=torch.float64)
            for lag in sorted({round(value) for value in spaced.tolist()}):
                self.steps.append((axis, lag))
                along = f" along axis {axis}" if grid.ndim > 1 else ""
                self.scales.append(Scale("variogram", lag * grid.spacing[axis], along))

    def _pairs(self, seed: int) -> None:
        sites = self.domain.sites()
        chosen = torch.arange(len(sites))
        if len(sites) > _SITES:
            chosen = torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed))[:_SITES]
        first, second = torch.triu_indices(len(chosen), len(chosen), 1)
        distance = torch.cdist(sites[chosen], sites[chosen])[first, second]
        apart = distance > 0.0
        first, second, distance = chosen[first[apart]], chosen[second[apart]], distance[apart]
        if len(distance) < 2 * LAGS:
            return
        # the first lag holds some hundred pairs; equal widths beyond, up to half the extent
        far = 0.5 * float(distance.max())
        near = float(distance.kthvalue(min(30 * LAGS, len(distance) // 2)).values)
        edges = torch.linspace(min(near, far / LAGS), far, LAGS, dtype=torch.float64)
        bins = torch.bucketize(distance, edges)
        for number in range(LAGS):
            inside = bins == number
            if int(inside.sum()) >= 10:
                self.pairs.append(torch.stack((first[inside], second[inside])))
                self.scales.append(Scale("variogram", float(distance[inside].mean())))

    def __call__(self, fields: Tensor, observed: Tensor | None = None) -> Tensor:
        """Statistics ``(N, C, scales)`` of centred fields ``(N, C, *shape)``, NaN where there is no pair.

        Args:
            fields: about their mean; 0 where not observed.
            observed: bool of the same shape, where not all sites of the domain are.
        """
        domain = self.domain
        valid = domain.valid.expand(fields.shape) if isinstance(domain, MaskedGrid) else None
        seen = observed if valid is None else valid if observed is None else observed & valid
        x = fields if seen is None else torch.where(seen, fields, 0.0)
        flat = domain.flatten(x)
        number = flat.shape[-1] if seen is None else domain.flatten(seen).sum(-1).clamp(min=1)
        area = None
        if isinstance(domain, Sphere) and observed is None:
            area = domain.flatten(domain.weights)
        mean = flat.sum(-1) / number if area is None else (flat * area).sum(-1) / area.sum()
        found = [mean.square().unsqueeze(-1)]
        if self.basis is not None:
            power = self.basis.analyze(x).abs().square().flatten(2)
            found.append(power @ self.averaging)
        if self.harmonics is not None:
            found.append(self.harmonics.power(x) @ self.averaging)
        found += [self._step(x, seen, axis, lag) for axis, lag in self.steps]
        flags = None if seen is None else domain.flatten(seen)
        found += [_pair_mean(flat, flags, pair) for pair in self.pairs]
        return torch.cat(found, dim=-1)

    def _step(self, x: Tensor, seen: Tensor | None, axis: int, lag: int) -> Tensor:
        grid = self.domain.grid if isinstance(self.domain, MaskedGrid) else self.domain
        assert isinstance(grid, Grid)
        place = x.ndim - grid.ndim + axis

        def both(values: Tensor) -> tuple[Tensor, Tensor]:
            if grid.periodic[axis]:
                return values, values.roll(-lag, place)
            size = grid.shape[axis]
            return values.narrow(place, 0, size - lag), values.narrow(place, lag, size - lag)

        first, second = both(x)
        squares = 0.5 * (second - first).square()
        if seen is None:
            return squares.flatten(2).mean(-1, keepdim=True)
        one, other = both(seen)
        together = one & other
        return ((squares * together).flatten(2).sum(-1) / together.flatten(2).sum(-1)).unsqueeze(-1)


def _pair_mean(flat: Tensor, seen: Tensor | None, pair: Tensor) -> Tensor:
    squares = 0.5 * (flat[..., pair[0]] - flat[..., pair[1]]).square()
    if seen is None:
        return squares.mean(-1, keepdim=True)
    together = seen[..., pair[0]] & seen[..., pair[1]]
    return ((squares * together).sum(-1) / together.sum(-1)).unsqueeze(-1)
