"""A grid of which some cells carry no value: Γ cut to the others, exactly."""

from __future__ import annotations

import importlib
import pathlib

import h5py
import iris_sample_data
import pytest
import torch
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance import DenseCovariance, EmbeddingError, WhiteCovariance
from spatialdiff.covariance.dense import kernel_matrix
from spatialdiff.covariance.grids.cut_inverse import inverse_entries, mixed_eigenvalues, mixed_multiply
from spatialdiff.covariance.grids.masked import MaskedCovariance
from spatialdiff.domains import Points
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, at_pairs

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

HOLES = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 0]]).bool()

OCEAN_LOG_DET = -16787.201317073945
B = [[1.0, 0.4], [0.4, 2.0]]


class TestCirculant(CovarianceCase):
    grid = sd.Grid((4, 5), spacing=(1.0, 0.8)).masked(HOLES)
    invertible_root = False
    inner = "circulant"

    def build(self, kernel):
        return MaskedCovariance(kernel, self.grid, self.channels, inner=self.inner, tolerance=1e-13)

    def test_whiten_inverts_color(self, gamma):
        with pytest.raises(ValueError, match="vecchia"):
            gamma.whiten(self.fields(gamma))

    def test_ignores_and_hides_masked_cells(self, gamma):
        x = self.fields(gamma, 3)
        dirty = torch.where(self.grid.valid, x, float("nan"))
        for name in ("matmul", "solve", "quad_form", "log_prob"):
            torch.testing.assert_close(getattr(gamma, name)(dirty), getattr(gamma, name)(x), rtol=0, atol=0)
        for result in (gamma.matmul(x), gamma.solve(x), gamma.sample((3,))):
            assert (result[..., ~self.grid.valid] == 0).all()


class _Whitens:
    """The noise of masked cells is lost, so that it comes back as 0."""

    def test_whiten_inverts_color(self, gamma):
        z = self.fields(gamma, 2)
        expected = self.grid.fill(z, 0.0)
        torch.testing.assert_close(gamma.whiten(gamma.color(z)), expected, rtol=0, atol=1e-10)

    def test_batch_of_hyperparameters(self):
        self.invertible_root = False
        super().test_batch_of_hyperparameters()


class TestDense(_Whitens, TestCirculant):
    inner = "dense"
    invertible_root = True
    channels = B


class TestTorus(TestCirculant):
    grid = sd.Grid((4, 5), spacing=(1.0, 0.8), periodic=True).masked(HOLES)
    inner = "torus"
    channels = 2

    def kernel(self):
        return Matern(1.5, 0.6, 1.7) + Nugget(0.2)

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=15)


class TestCylinder(TestTorus):
    """Longitude wraps around, latitude does not."""

    grid = sd.Grid((4, 5), spacing=(1.0, 0.8), periodic=(False, True)).masked(HOLES)
    inner = "circulant"
    channels = None


class TestVolume(TestCirculant):
    grid = sd.Grid((3, 2, 3)).masked(torch.arange(18).reshape(3, 2, 3) % 5 != 1)

    def kernel(self):
        return Exponential((1.4, 1.0, 2.0), 1.3)


class TestWhite(_Whitens, CovarianceCase):
    grid = sd.Grid((4, 5)).masked(HOLES)

    def kernel(self):
        return Nugget(1.3)

    def build(self, kernel):
        return WhiteCovariance(self.grid, kernel, self.channels)


class TestDenseStructure(_Whitens, CovarianceCase):
    """`DenseCovariance` itself takes masked grids, periodic ones too."""

    grid = sd.Grid((4, 5), periodic=(True, False)).masked(HOLES)

    def kernel(self):
        return Matern(0.5, 0.8, 1.7) + Nugget(0.2)

    def build(self, kernel):
        return DenseCovariance(kernel, self.grid, self.channels)

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=30)


# ---- the approximate inverse
@pytest.mark.parametrize("periodic", [False, True, (False, True), (True, False)])
def test_entries_of_the_inverse(periodic):
    """Sums over reflections are what products with unit vectors give, and the product is one with ``G⁻¹``."""
    grid = sd.Grid((4, 5), spacing=(1.0, 0.8), periodic=periodic)
    kernel = (Matern(1.5, 0.9, 1.7) + Nugget(0.1)).requires_grad_(False)
    values = mixed_eigenvalues(kernel, grid)
    eye = torch.eye(20, dtype=torch.float64).reshape(20, 4, 5)
    product = mixed_multiply(eye, grid, 1 / values).reshape(20, 20)
    cells = torch.tensor([0, 3, 7, 12, 19])
    torch.testing.assert_close(inverse_entries(1 / values, grid, cells), product[cells[:, None], cells])
    near = mixed_multiply(eye, grid, values).reshape(20, 20)
    torch.testing.assert_close(near @ product, eye.reshape(20, 20), rtol=0, atol=1e-10)
    # the closest of its kind keeps the trace
    exact = kernel_matrix(kernel, grid)
    torch.testing.assert_close(near.trace(), exact.trace())
    if periodic is True:
        torch.testing.assert_close(near, exact)


# ---- a coast
@pytest.fixture(scope="module")
def ocean():
    """Sea cells of tropical sea surface temperature, 18 latitudes by 432 longitudes (iris-sample-data)."""
    with h5py.File(pathlib.Path(iris_sample_data.path) / "ostia_monthly.nc") as file:
        first = torch.from_numpy(file["surface_temperature"][0])
    grid = sd.Grid((18, 432), spacing=(5 / 9, 5 / 6), periodic=(False, True))
    return grid.masked(first.abs() < 1e10)


@pytest.fixture(scope="module")
def ocean_gamma(ocean):
    kernel = (Matern(1.5, 5.0, 2.0) + Nugget(0.02)).requires_grad_(False)
    return MaskedCovariance(kernel, ocean)


def test_ocean(ocean, ocean_gamma, monkeypatch):
    """5721 of 7776 cells: products, solves and draws on the real land mask."""
    assert ocean.size == 5721
    gamma, kernel = ocean_gamma, ocean_gamma.kernel
    assert gamma.report.exact
    assert "74%" in gamma.report.reason
    x = gamma.double().sample((2,), generator=torch.Generator().manual_seed(0))
    assert (x[:, ~ocean.valid] == 0).all()
    b = gamma.matmul(x)
    # a thin slice of the matrix, of cells on both sides of the date line among others
    rows = torch.arange(0, ocean.size, 97)
    position = ocean.sites()
    around = torch.tensor([[0.0, 360.0 * m] for m in (-1, 0, 1)], dtype=torch.float64)
    smooth, nugget = kernel.kernels
    images = at_pairs(smooth, position[rows, None, None] + around, position[None, :, None]).sum(-1)
    scale = smooth.variance / at_pairs(smooth, around, torch.zeros(1, 2, dtype=torch.float64)).sum()
    exact = scale * images + at_pairs(nugget, position[rows, None], position[None])
    torch.testing.assert_close(ocean.flatten(b)[:, rows], ocean.flatten(x) @ exact.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(gamma.solve(b), x, rtol=0, atol=1e-6)
    monkeypatch.setattr(gamma, "max_iterations", 10)
    with pytest.raises(RuntimeError, match="10 iterations"):
        gamma.solve(b)


# ---- determinants of many cells
MASKED = importlib.import_module("spatialdiff.covariance.grids.masked")
CUT = importlib.import_module("spatialdiff.covariance.grids.cut_inverse")


@pytest.mark.parametrize("near", [True, False], ids=["near", "lanczos"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_stochastic_log_det(ocean, near, batch, monkeypatch):
    """Value and gradient within their standard errors of Cholesky's, on a piece of the coast."""
    domain = sd.Grid((18, 60), spacing=(5 / 9, 5 / 6)).masked(ocean.valid[:, 240:300])
    ell = torch.tensor([[3.0], [4.0]]) if batch else 3.0
    kernel = Matern(1.5, ell, 2.0, batch_shape=batch) + Nugget(0.1, batch_shape=batch)
    gamma = MaskedCovariance(kernel, domain, inner="circulant", log_det_tolerance=4e-3)
    exact = gamma.log_det()
    wanted = torch.autograd.grad(exact.sum(), list(kernel.parameters()))
    assert torch.equal(gamma.log_det_standard_error(), torch.zeros(batch, dtype=torch.float64))
    monkeypatch.setattr(MASKED, "LOG_DET_SITES", 0)
    monkeypatch.setattr(MASKED, "MOST_CELLS", 4096 if near else 0)
    value, error = gamma.log_det(), gamma.log_det_standard_error()
    assert error.shape == batch
    assert (error > 0).all()
    assert (error <= 4e-3 * domain.size).all()
    assert ((value - exact).abs() < 5 * error + 4e-4 * domain.size).all()
    assert "Lanczos" in str(gamma.report)
    found = torch.autograd.grad(value.sum(), list(kernel.parameters()))
    for ours, dense in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, dense, rtol=0.1, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(gamma.log_det(), value)
    with pytest.raises(RuntimeError, match="asked for"):
        MaskedCovariance(kernel, domain, inner="circulant", log_det_tolerance=1e-6).log_det()


def test_ocean_log_det(ocean, ocean_gamma):
    """More precise than asked for at the first few draws, since the matrix nearby is near."""
    error = ocean_gamma.log_det_standard_error().item()
    assert error < 1e-3 * ocean.size
    # from a dense Cholesky factor of the 5721 cells, computed once
    assert abs(ocean_gamma.log_det().item() - OCEAN_LOG_DET) < 5 * error


def test_torus_is_its_own_neighbour(monkeypatch):
    """On a torus the matrix nearby is Γ itself: one step solves, and determinants have no error."""
    domain = sd.Grid((9, 8), periodic=True).masked(torch.arange(72).reshape(9, 8) % 7 != 2)
    kernel = (Matern(1.5, 1.2, 1.7) + Nugget(0.1)).requires_grad_(False)
    gamma = MaskedCovariance(kernel, domain, inner="torus")
    exact = gamma.log_det()
    x = torch.randn(9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gamma._precondition(gamma.matmul(x)), domain.fill(x, 0.0), rtol=0, atol=1e-10)
    monkeypatch.setattr(MASKED, "LOG_DET_SITES", 0)
    torch.testing.assert_close(gamma.log_det(), exact, rtol=1e-11, atol=0)
    assert gamma.log_det_standard_error().item() < 1e-10


def test_determinants_are_computed_once(ocean_gamma, monkeypatch):
    value = ocean_gamma.log_det()
    monkeypatch.setattr(ocean_gamma, "_stochastic_log_det", None)
    assert torch.equal(ocean_gamma.log_det(), value)


def test_choice():
    kernel = Matern(1.5, 2.0) + Nugget(0.1)
    few = sd.Grid((10, 10)).masked(torch.ones(10, 10, dtype=torch.bool))
    assert MaskedCovariance(kernel, few).inner.method == "dense"
    mask = torch.ones(40, 30, dtype=torch.bool)
    mask[0, 0] = False
    assert MaskedCovariance(kernel, sd.Grid((40, 30)).masked(mask)).inner.method == "circulant"
    assert MaskedCovariance(kernel, sd.Grid((40, 30), periodic=True).masked(mask)).inner.method == "torus"


def test_clipped_embedding_stays_consistent():
    """With eigenvalues clipped on request the determinant is that of what is sampled."""
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.3
    domain = sd.Grid((12, 12), spacing=1 / 12).masked(mask)
    kernel = Gaussian(0.35).requires_grad_(False) + Nugget(1e-3).requires_grad_(False)
    options = {"on_negative": "clip", "max_growth": 1.0, "embedding": "plain"}
    gamma = MaskedCovariance(kernel, domain, inner="circulant", **options)
    assert not gamma.report.exact
    kept = domain.flatten(torch.arange(144).reshape(12, 12))
    dense = gamma.to_dense()[kept[:, None], kept]
    torch.testing.assert_close(gamma.log_det(), torch.logdet(dense), rtol=0, atol=1e-7)
    assert (dense - kernel_matrix(kernel, domain)).abs().max() > 1e-6


def test_refuses():
    grid = sd.Grid((4, 5))
    with pytest.raises(ValueError, match="hides every cell"):
        grid.masked(torch.zeros(4, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="MaskedGrid"):
        MaskedCovariance(Matern(), grid)
    with pytest.raises(TypeError, match="MaskedGrid"):
        MaskedCovariance(Matern(), Points(torch.rand(4, 2)))
    domain = grid.masked(HOLES)
    with pytest.raises(ValueError, match="inner must be"):
        MaskedCovariance(Matern(), domain, inner="fft")
    with pytest.raises(ValueError, match="periodic on every axis"):
        MaskedCovariance(Matern(), domain, inner="torus")
    with pytest.raises(EmbeddingError, match="not a covariance"):
        MaskedCovariance(Gaussian(60.0), domain, inner="circulant", max_growth=1.0, embedding="plain")


def test_many_masked_cells(monkeypatch):
    """Where not all masked cells are kept, the nearest ones still make a preconditioner worth having."""
    monkeypatch.setattr(CUT, "MOST_CELLS", 0)
    inside = torch.cartesian_prod(torch.arange(40.0), torch.arange(40.0)).sub(19.5).norm(dim=-1) < 15
    domain = sd.Grid((40, 40)).masked(inside.reshape(40, 40))
    kernel = (Matern(1.5, 6.0) + Nugget(0.01)).requires_grad_(False)
    b = torch.randn(2, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    iterations = []
    for kept in (0, 200, 2000):
        monkeypatch.setattr(CUT, "NEAREST", kept)
        gamma = MaskedCovariance(kernel, domain, inner="circulant")
        calls, product = [], gamma._matmul
        monkeypatch.setattr(
            gamma, "_matmul", lambda x, calls=calls, product=product: calls.append(0) or product(x)
        )
        solved = gamma.solve(b)
        iterations.append(len(calls))
        exact = DenseCovariance(kernel, domain).solve(b)
        torch.testing.assert_close(solved, exact, rtol=0, atol=1e-7 * exact.abs().max().item())
    assert iterations[0] > 1.5 * iterations[1] >= 1.5 * iterations[2], iterations
