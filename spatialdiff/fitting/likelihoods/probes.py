"""Fields that are observed at the same sites, and the random probes that their determinant is estimated from.

Probes are vectors of independent signs, the same at every θ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.fitting.likelihoods.dense import _groups
from spatialdiff.fitting.likelihoods.near_inverse import NearInverse
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters

# of the Lanczos vectors of the probes that are taken together, and how many of them are reckoned with
_MEMORY = 2e9
_STEPS = 64


@dataclass(frozen=True)
class ProbedGroup:
    """Fields with values at the same sites, all vectors as rows ``(·, n)`` in the order of ``near``.

    ``rows`` are the sites, ``root`` a root of the second moment ``Σ e eᵀ``, ``sums`` ``Σ e`` of each channel,
    ``design`` the columns of the mean, ``number`` how many vectors there are and ``counts`` of each channel.
    """

    near: NearInverse
    rows: Tensor
    root: Tensor
    sums: Tensor
    design: Tensor
    number: int
    counts: Tensor
    seed: int

    def probes(self, number: int) -> Iterator[Tensor]:
        """``number`` probes, as many at a time as there is memory for their Lanczos vectors."""
        n = len(self.rows)
        size = max(1, int(_MEMORY / (8 * n * _STEPS)))
        generator = torch.Generator().manual_seed(self.seed)
        left = number
        while left > 0:
            signs = torch.randint(0, 2, (min(size, left), n), generator=generator, dtype=torch.int8)
            yield 2.0 * signs.double() - 1.0
            left -= size


def make_groups(
    model: KernelParameters, data: Observations, sites: Tensor, neighbors: int, seed: int
) -> Iterator[ProbedGroup]:
    """One group per pattern of observed sites, of the domain's ``sites`` ``(n, d)``."""
    n = len(sites)
    design = torch.zeros(n, 0, dtype=torch.float64) if data.design is None else data.design
    found = _groups(data.flat(), data.flat_observed(), data.total - data.count)
    for place, group in enumerate(found):
        rows = torch.arange(n) if group.rows is None else group.rows
        near = NearInverse(model, sites[rows], neighbors)
        ordered = rows[near.order]
        yield ProbedGroup(
            near=near,
            rows=ordered,
            root=group.root.T[:, near.order].contiguous(),
            sums=group.sums.T[:, near.order].contiguous(),
            design=design[ordered].T.contiguous(),
            number=group.number,
            counts=group.counts,
            seed=seed * 100_003 + place,
        )
