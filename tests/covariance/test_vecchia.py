"""Vecchia's approximation against dense conditionals written from the definition, and against dense Γ."""

from __future__ import annotations

import torch
from covariance_case import CovarianceCase, pairwise
from torch import Tensor

from spatialdiff.covariance.triangular import choose_engine
from spatialdiff.covariance.vecchia import VecchiaCovariance
from spatialdiff.domains import Domain, Grid, MaskedGrid, Points, RectilinearGrid
from spatialdiff.kernels import Gaussian, Matern, Nugget

ENGINES = ["torch", *(["numba"] if choose_engine("auto") == "numba" else [])]


def scattered(n: int, d: int = 2, seed: int = 5, extent: float = 4.0) -> Points:
    return Points(
        extent * torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def vecchia_dense(covariance: Tensor, order: list[int], sets: list[list[int]]) -> Tensor:
    """``Γ = ((I - B)ᵀ D⁻¹ (I - B))⁻¹`` with ``b_i = k_iN K_NN⁻¹``, ``d_i = k_ii - b_i k_Ni``, from the
    definition; ``sets[k]`` are the sites on which site ``order[k]`` is conditioned.
    """
    n = covariance.shape[-1]
    rows, scales = [], []
    for site, given in zip(order, sets, strict=True):
        index = torch.tensor(given, dtype=torch.long)
        cross = covariance[..., site, index]
        weights = torch.linalg.solve(covariance[..., index[:, None], index], cross.unsqueeze(-1)).squeeze(-1)
        row = torch.zeros(*covariance.shape[:-2], n, dtype=torch.float64)
        row = row.index_add(-1, index, -weights)
        row = row.index_add(-1, torch.tensor([site]), torch.ones_like(row[..., :1]))
        rows.append(row)
        scales.append(covariance[..., site, site] - (weights * cross).sum(-1))
    unit, d = torch.stack(rows, -2), torch.stack(scales, -1)
    return torch.linalg.inv(unit.mT @ (unit / d.unsqueeze(-1))).contiguous()


def brute_sets(domain: Domain, order: list[int], m: int) -> list[list[int]]:
    sites = domain.coordinates().reshape(-1, domain.dimension)
    sets = []
    for k, site in enumerate(order):
        before = sorted(order[:k], key=lambda j, s=site: float((sites[j] - sites[s]).norm()))
        sets.append(before[:m])
    return sets


class VecchiaCase(CovarianceCase):
    engine = "auto"
    neighbors = 6

    def build(self, kernel):
        return VecchiaCovariance(
            kernel,
            self.grid,
            self.channels,
            neighbors=self.neighbors,
            ordering=self.order(),
            engine=self.engine,
        )

    def order(self) -> Tensor:
        return torch.randperm(self.grid.size, generator=torch.Generator().manual_seed(2))

    def spatial(self, kernel):
        covariance = pairwise(kernel, self.grid)
        order = self.order().tolist()
        return vecchia_dense(covariance, order, brute_sets(self.grid, order, self.neighbors))


class TestPlain(VecchiaCase):
    grid = scattered(24)
    engine = "torch"


if "numba" in ENGINES:

    class TestClosedForm(VecchiaCase):
        """The fused loop: kernel, factor and row in one."""

        grid = scattered(24)
        engine = "numba"

    class TestPacked(VecchiaCase):
        """A kernel without a fused loop: blocks from torch, factors compiled."""

        grid = scattered(23)
        engine = "numba"

        def kernel(self):
            first = Matern(nu=2.5, lengthscale=1.1, variance=0.7)
            return first + Gaussian(lengthscale=0.6, variance=1.0) + Nugget(0.2)

        def batched_kernel(self):
            batch = (3,)
            first = Matern(nu=2.5, lengthscale=torch.tensor([[0.9], [1.1], [1.3]]), batch_shape=batch)
            second = Gaussian(lengthscale=0.6, variance=torch.tensor([1.0, 0.5, 2.0]), batch_shape=batch)
            return first + second + Nugget(torch.tensor([0.2, 0.3, 0.1]), batch_shape=batch)


class TestChannels(VecchiaCase):
    grid = scattered(14, d=3)
    channels = [[1.0, 0.4], [0.4, 2.0]]  # noqa: RUF012


class TestRectilinear(VecchiaCase):
    grid = RectilinearGrid([[0.0, 0.31, 0.97, 1.2], [0.0, 0.53, 1.13, 1.9, 2.6]])
    channels = 2


class TestAllNeighbours(VecchiaCase):
    """As many neighbours as there are sites before: Γ itself."""

    grid = Grid((4, 5), spacing=(1.0, 0.7))
    neighbors = 40

    def spatial(self, kernel):
        return pairwise(kernel, self.grid)


MASK = torch.ones(4, 6, dtype=torch.bool)
MASK[1:3, 2:4] = False
MASK[0, 5] = False


class TestMasked(VecchiaCase):
    grid = MaskedGrid(Grid((4, 6)), MASK)
    neighbors = 40

    def spatial(self, kernel):
        return pairwise(kernel, self.grid)
