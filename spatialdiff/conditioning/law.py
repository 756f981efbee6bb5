r"""The prior covariance between observations and targets, of one field or of several channels.

``Cov(x_c(s), x_c'(s')) = Σ_q B_q[c, c'] k_q(s, s') + N[c, c'] 1{one place}``: a kernel is the case of one
channel and one term. The nugget ``N`` belongs to a place of the field: two channels observed there share it,
and so does a target there; a second observation of the same channel at the same coordinates has a nugget of
its own, since otherwise two values would contradict each other.
"""

from __future__ import annotations

import math

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.conditioning.pairs import between_lists
from spatialdiff.conditioning.stationary import lagged, split_nugget
from spatialdiff.covariance.checks import check_stationary
from spatialdiff.domains import Domain, Grid, MaskedGrid
from spatialdiff.kernels import Coregionalization, at_pairs

# coordinates that differ by less, relative to the largest, are those of one place
_SAME_PLACE = 1e-9


class Law:
    """Prior covariances of a kernel or a `Coregionalization`, without gradients, float64.

    Args:
        kernel: the kernel.
        torus: a grid whose periodic axes distances wrap around; None in the plane.

    Attributes:
        channels: number of channels, None for a kernel.
        nugget: ``N``, ``(C, C)``.
        terms: pairs of ``B_q`` ``(C, C)`` and the continuous kernel ``k_q``.
    """

    def __init__(self, kernel: Kernel | Coregionalization, torus: Grid | None = None) -> None:
        self.kernel, self.torus = kernel, torus
        if isinstance(kernel, Coregionalization):
            pairs = [(matrix.detach(), part) for matrix, part in kernel.terms]
            self.channels: int | None = kernel.channels
        elif isinstance(kernel, Kernel):
            pairs, self.channels = [(torch.ones(1, 1, dtype=torch.float64), kernel)], None
        else:
            raise TypeError(
                f"kernel must be a gpytorch kernel or a Coregionalization, got {type(kernel).__name__}"
            )
        self.nugget = torch.zeros_like(pairs[0][0])
        self.terms: list[tuple[Tensor, Kernel]] = []
        for matrix, part in pairs:
            smooth, nugget = split_nugget(part)
            if torus is not None:
                check_stationary(part, torus, "a periodic axis")
            self.nugget = self.nugget + nugget * matrix
            if smooth is not None:
                self.terms.append((matrix, smooth))

    @property
    def count(self) -> int:
        """Number of channels, 1 for a kernel."""
        return self.nugget.shape[0]

    def _at(self, part: Kernel, first: Tensor, second: Tensor) -> Tensor:
        if self.torus is None:
            return at_pairs(part, first, second).double()
        return lagged(part, self.torus, first - second)

    def _lists(self, part: Kernel, rows: Tensor, columns: Tensor) -> Tensor:
        if self.torus is None:
            return between_lists(part, rows, columns)
        return lagged(part, self.torus, rows.unsqueeze(-2) - columns.unsqueeze(-3))

    def wrap(self, sites: Tensor) -> Tensor:
        """``sites`` moved by whole periods to where the torus has its cells."""
        if self.torus is None:
            return sites
        extent = torch.tensor(self.torus.extent, dtype=torch.float64)
        moved = sites - extent * torch.floor(sites / extent + _SAME_PLACE)
        return torch.where(torch.tensor(self.torus.periodic), moved, sites)

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Continuous part at coordinates ``(..., d)`` that broadcast, ``(..., C, C)``."""
        shape = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
        total = torch.zeros(*shape, self.count, self.count, dtype=torch.float64)
        with torch.no_grad():
            for matrix, part in self.terms:
                total += self._at(part, first, second)[..., None, None] * matrix
        return total

    def observed(self, sites: Tensor, place: Tensor, channel: Tensor) -> Tensor:
        """Covariance of observations, each at ``sites[place]`` of ``channel``, ``(m, m)``."""
        total = torch.zeros(len(place), len(place), dtype=torch.float64)
        with torch.no_grad():
            for matrix, part in self.terms:
                values = self._lists(part, sites, sites)
                values = values if len(place) == len(sites) else values[place[:, None], place[None]]
                total += values * matrix[channel[:, None], channel[None]]
        same = place[:, None] == place[None]
        return total + same * self.nugget[channel[:, None], channel[None]]

    def cross(self, targets: Tensor, twin: Tensor, sites: Tensor, place: Tensor, channel: Tensor) -> Tensor:
        """Covariance of all channels at ``targets`` ``(t, d)`` with observations, ``(t, C, m)``; ``twin`` is
        the place that a target is on, or -1."""
        total: Tensor | None = None
        with torch.no_grad():
            for matrix, part in self.terms:
                values = self._lists(part, targets, sites)
                values = values if len(place) == len(sites) else values[:, place]
                # one channel has B = 1
                each = (
                    values.unsqueeze(1) if self.channels is None else values.unsqueeze(1) * matrix[:, channel]
                )
                total = each if total is None else total + each
        if total is None:
            total = torch.zeros(len(targets), self.count, len(place), dtype=torch.float64)
        if bool((self.nugget != 0).any()):
            on = (twin >= 0).nonzero().squeeze(-1)
            same = twin[on, None] == place[None]
            total[on] += same.unsqueeze(1) * self.nugget[:, channel]
        return total

    def variance(self, targets: Tensor) -> Tensor:
        """Covariance of the channels at each target, ``(t, C, C)``."""
        return self.between(targets, targets) + self.nugget


def torus_of(domain: Domain) -> Grid | None:
    """The grid of ``domain`` where it has a periodic axis."""
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    return grid if isinstance(grid, Grid) and any(grid.periodic) else None


def same_torus(first: Grid, second: Grid | None) -> bool:
    """Whether distances are the same on both, whatever their cells."""
    if second is None or first.periodic != second.periodic:
        return False
    pairs = zip(first.extent, second.extent, first.periodic, strict=True)
    return all(math.isclose(a, b, rel_tol=1e-12) for a, b, wraps in pairs if wraps)


def twins(targets: Tensor, sites: Tensor) -> Tensor:
    """The first of ``sites`` at the coordinates of each target, up to rounding, -1 where there is none,
    ``(t,)``.
    """
    from scipy.spatial import cKDTree

    n = len(sites)
    unique, group = torch.unique(sites, dim=0, return_inverse=True)
    first = torch.full((len(unique),), n).scatter_reduce(0, group, torch.arange(n), "amin")
    near = _SAME_PLACE * float(sites.abs().max().clamp(min=1e-300))
    _, found = cKDTree(unique.numpy()).query(targets.numpy(), distance_upper_bound=near)
    index = torch.as_tensor(found)
    return torch.where(index < len(unique), first[index.clamp(max=len(unique) - 1)], -1)
