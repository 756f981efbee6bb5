"""Scattered sites ``x_1, …, x_n`` in ``R^d``."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from spatialdiff.domains.base import Domain


def as_sites(coordinates: Tensor, name: str) -> Tensor:
    """Coordinates ``(n, d)`` as a float64 copy on the CPU; raises on anything that is not a set of sites."""
    sites = torch.as_tensor(coordinates)
    if sites.is_complex() or sites.dtype == torch.bool:
        raise TypeError(f"{name}: coordinates must be real numbers, got {sites.dtype}.")
    if sites.dim() == 1:
        sites = sites.unsqueeze(-1)
    if sites.dim() != 2 or sites.shape[0] == 0 or sites.shape[1] == 0:
        raise ValueError(
            f"{name}: needs coordinates of shape (n, d) or (n,) with at least one site, got "
            f"{tuple(torch.as_tensor(coordinates).shape)}."
        )
    sites = sites.detach().to(device="cpu", dtype=torch.float64).clone()
    bad = (~torch.isfinite(sites)).any(-1)
    if bool(bad.any()):
        raise ValueError(
            f"{name}: {int(bad.sum())} of {len(sites)} sites have NaN or infinite coordinates, the first at "
            f"index {int(bad.nonzero()[0])}; remove them."
        )
    return sites


class Points(Domain):
    """Scattered sites; a field has shape ``(n,)``.

    Args:
        coordinates: ``(n, d)``, or ``(n,)`` on a line, in the length unit of the kernel.

    Raises:
        ValueError: no site, or coordinates that are NaN or infinite.
    """

    def __init__(self, coordinates: Tensor) -> None:
        self._sites = as_sites(coordinates, "Points")
        self.shape, self.periodic = (len(self._sites),), (False,)
        self._digest = hashlib.sha256(self._sites.numpy().tobytes()).hexdigest()

    @property
    def dimension(self) -> int:
        return self._sites.shape[1]

    def coordinates(self) -> Tensor:
        return self._sites.clone()

    def duplicates(self) -> Tensor:
        """Pairs ``i < j`` of sites with equal coordinates, each site with the first of its kind, shape
        ``(p, 2)``.
        """
        _, group = torch.unique(self._sites, dim=0, return_inverse=True)
        index = torch.arange(len(group))
        first = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce(0, group, index, "amin")
        later = index != first[group]
        return torch.stack([first[group][later], index[later]], dim=-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Points) and torch.equal(self._sites, other._sites)

    def __hash__(self) -> int:
        return hash((type(self), self._digest))

    def __repr__(self) -> str:
        return f"Points({self.shape[0]} sites in {self.dimension} dimensions)"
