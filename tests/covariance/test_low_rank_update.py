"""``Γ_0 + F Fᵀ`` through the shared case: with an invertible root, without one, masked, and on a sphere."""

from __future__ import annotations

import pytest
import torch
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance import (
    CirculantCovariance,
    CosineCovariance,
    DenseCovariance,
    MaskedCovariance,
    SphereCovariance,
)
from spatialdiff.covariance.compositions.low_rank_update import LowRankUpdate
from spatialdiff.kernels import Exponential

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

F64 = torch.float64


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(5))


class Update(CovarianceCase):
    batches = False
    factors = rows(3, 4, 5)

    def base(self, kernel):
        return DenseCovariance(kernel, self.grid)

    def build(self, kernel):
        return LowRankUpdate(self.base(kernel), self.factors)

    def dense(self, kernel):
        flat = self.factors.flatten(1)
        if hasattr(self.grid, "valid"):
            flat = self.grid.fill(self.factors, 0.0).flatten(1)
        return super().dense(kernel) + flat.T @ flat


class TestOnDense(Update):
    pass


class TestOnChannels(Update):
    channels = 2
    grid = sd.Grid((3, 4))
    factors = rows(4, 2, 3, 4)

    def base(self, kernel):
        return DenseCovariance(kernel, self.grid, 2)


class TestOnCirculant(Update):
    invertible_root = False

    def base(self, kernel):
        return CirculantCovariance(kernel, self.grid)

    def test_eigenvalues(self, gamma):
        with pytest.raises(ValueError, match="basis"):
            gamma.eigenvalues()


class TestOnMasked(Update):
    grid = sd.Grid((4, 5)).masked(torch.arange(20).reshape(4, 5) % 7 != 3)

    def base(self, kernel):
        return MaskedCovariance(kernel, self.grid)


def test_more_rows_than_values_are_compressed():
    grid = sd.Grid((2, 3))
    factors = rows(20, 2, 3)
    gamma = LowRankUpdate(DenseCovariance(Exponential(1.0), grid), factors)
    assert gamma.rank == 6
    flat = factors.flatten(1)
    expected = pairwise(Exponential(1.0), grid) + flat.T @ flat
    torch.testing.assert_close(gamma.to_dense(), expected.detach(), rtol=1e-10, atol=1e-10)


def test_on_a_spectrum_every_operation_agrees_with_the_matrix():
    grid = sd.Grid((6, 5))
    spectrum = 1.0 / (1.0 + torch.arange(30, dtype=F64).reshape(6, 5))
    gamma = LowRankUpdate(CosineCovariance.from_spectrum(grid, spectrum), rows(4, 6, 5)).double()
    matrix, x = gamma.to_dense(), rows(30).reshape(6, 5)
    torch.testing.assert_close(gamma.solve(x).flatten(), torch.linalg.solve(matrix, x.flatten()))
    torch.testing.assert_close(gamma.log_det(), torch.logdet(matrix))
    torch.testing.assert_close(gamma.whiten(gamma.color(x)), x)
    torch.testing.assert_close(gamma.whiten(x).square().sum(), gamma.quad_form(x))


@pytest.mark.parametrize("poles", [True, False])
def test_on_a_sphere_a_pole_counts_once(poles):
    sphere = sd.Sphere((5, 6), poles=poles)
    base = SphereCovariance(Exponential(0.8), sphere).double().requires_grad_(False)
    factors = rows(2, 5, 6)
    if poles:
        factors[:, [0, -1]] = factors[:, [0, -1], :1]
    gamma = LowRankUpdate(base, factors).double()
    single = torch.ones(5, 6, dtype=torch.bool)
    if poles:
        single[[0, -1], 1:] = False
    kept = single.flatten().nonzero().squeeze(-1)
    matrix = gamma.to_dense()[kept[:, None], kept]
    x = factors[0] + 1.0
    expected = x.flatten()[kept] @ torch.linalg.solve(matrix, x.flatten()[kept])
    torch.testing.assert_close(gamma.quad_form(x), expected)
    torch.testing.assert_close(gamma.log_det(), torch.logdet(matrix))
    m = gamma.factor_shape.numel()
    root = gamma.color(torch.eye(m, dtype=F64).reshape(m, *gamma.factor_shape)).flatten(1).T
    torch.testing.assert_close(root @ root.T, gamma.to_dense())


def test_refuses_what_is_no_update():
    grid = sd.Grid((3, 4))
    base = DenseCovariance(Exponential(1.0), grid)
    with pytest.raises(TypeError, match="needs a covariance"):
        LowRankUpdate(Exponential(1.0), rows(2, 3, 4))
    with pytest.raises(ValueError, match="shape"):
        LowRankUpdate(base, rows(3, 4))
    with pytest.raises(ValueError, match="NaN"):
        LowRankUpdate(base, torch.full((2, 3, 4), torch.nan))
