"""Products with and determinants of block-Toeplitz matrices."""

from __future__ import annotations

import pytest
import torch
from covariance_case import pairwise

import spatialdiff as sd
from spatialdiff.covariance.grids import circulant as circulant_module
from spatialdiff.covariance.grids.circulant import CirculantCovariance
from spatialdiff.covariance.grids.toeplitz import toeplitz_log_det
from spatialdiff.kernels import Anisotropic, Exponential, Gaussian, Matern, Nugget

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")


@pytest.mark.parametrize("n", [1, 2, 3, 40])
def test_durbin(n):
    kernel = Matern(1.5, torch.tensor([[3.0], [6.0]]), batch_shape=(2,)) + Nugget(
        torch.tensor([0.1, 0.2]), batch_shape=(2,)
    )
    row = kernel.at_lags(torch.arange(n, dtype=torch.float64)[:, None]).detach().requires_grad_()
    i = torch.arange(n)
    exact = torch.logdet(row[:, (i[:, None] - i).abs()])
    found = toeplitz_log_det(row)
    torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)
    weight = torch.tensor([1.0, -2.0])
    ours, theirs = (torch.autograd.grad((v * weight).sum(), row)[0] for v in (found, exact))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_durbin_refuses_what_is_not_positive_definite():
    row = torch.tensor([1.0, 0.9, -0.9], dtype=torch.float64)
    with pytest.raises(ValueError, match="site 2 of 3"):
        toeplitz_log_det(row)
    with pytest.raises(ValueError, match="Nugget"):
        toeplitz_log_det(Gaussian(50.0).at_lags(torch.arange(100, dtype=torch.float64)[:, None]).detach())


def exactly(kernel, grid):
    value = torch.logdet(pairwise(kernel, grid))
    return value.item(), torch.autograd.grad(value, list(kernel.parameters()))


@pytest.mark.parametrize(
    ("route", "kernel", "grid"),
    [
        ("line", Matern(1.5, 6.0) + Nugget(0.1), sd.Grid(150)),
        ("blocks", Matern(1.5, 3.0) + Nugget(0.1), sd.Grid((12, 13))),
        ("blocks", Matern(1.5, 3.0), sd.Grid((5, 6, 5))),
        ("blocks", Anisotropic(Matern(1.5, 2.0), angles=0.5, ratios=0.5), sd.Grid((9, 8))),
    ],
)
def test_exact_log_det(monkeypatch, route, kernel, grid):
    if route == "line":
        monkeypatch.setattr(circulant_module, "BLOCK_SITES", 10)
    gamma = CirculantCovariance(kernel, grid)
    value, gradients = exactly(kernel, grid)
    assert gamma._log_det_route == route
    found = gamma.log_det()
    assert found.item() == pytest.approx(value, abs=1e-8)
    assert gamma.log_det_standard_error().item() == 0.0
    for ours, theirs in zip(torch.autograd.grad(found, list(kernel.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert "exact" in gamma.report.log_det


@pytest.mark.parametrize(
    ("kernel", "grid"),
    [
        (Exponential(4.0), sd.Grid((24, 20))),
        (Matern(1.5, 5.0) + Nugget(0.01), sd.Grid((24, 20))),
        (Matern(2.5, 3.0), sd.Grid(400)),
        (Matern(1.5, 3.0), sd.Grid((8, 7, 9))),
    ],
    ids=str,
)
def test_stochastic_log_det(monkeypatch, kernel, grid):
    value, gradients = exactly(kernel, grid)
    monkeypatch.setattr(circulant_module, "BLOCK_SITES", 10)
    monkeypatch.setattr(circulant_module, "LINE_SITES", 10)
    gamma = CirculantCovariance(kernel, grid, log_det_tolerance=2e-3)
    found = gamma.log_det()
    error = gamma.log_det_standard_error().item()
    assert 0 < error <= 2e-3 * grid.size
    # a tenth of the tolerance is the quadrature's
    assert abs(found.item() - value) < 5 * error + 2e-4 * grid.size
    assert "stochastic" in gamma.report.log_det
    for ours, theirs in zip(torch.autograd.grad(found, list(kernel.parameters())), gradients, strict=True):
        assert ours.sum().item() == pytest.approx(theirs.sum().item(), abs=0.02 * grid.size)


def test_stochastic_log_det_of_a_batch(monkeypatch):
    monkeypatch.setattr(circulant_module, "BLOCK_SITES", 10)
    kernel = Matern(1.5, torch.tensor([[2.0], [5.0]]), batch_shape=(2,)).requires_grad_(False)
    grid = sd.Grid((16, 18))
    gamma = CirculantCovariance(kernel, grid, channels=2, log_det_tolerance=5e-3)
    exact = 2 * torch.logdet(pairwise(kernel, grid))
    error = gamma.log_det_standard_error()
    assert error.shape == gamma.log_det().shape == (2,)
    assert bool(((gamma.log_det() - exact).abs() < 5 * error + 2 * 5e-4 * grid.size).all())


def test_log_det_that_misses_its_tolerance_is_an_error(monkeypatch):
    monkeypatch.setattr(circulant_module, "BLOCK_SITES", 10)
    gamma = CirculantCovariance(Exponential(4.0), sd.Grid((24, 20)), log_det_tolerance=1e-7)
    with pytest.raises(RuntimeError, match="log_det_tolerance"):
        gamma.log_det()


@pytest.mark.parametrize(
    "kernel",
    [Exponential(4.0), Exponential(60.0), Matern(1.5, 8.0), Matern(2.5, 3.0), Gaussian(3.0) + Nugget(0.01)],
    ids=str,
)
@pytest.mark.parametrize("shape", [(300,), (24, 20), (8, 9, 7)], ids=str)
def test_solve_reaches_its_residual(kernel, shape):
    kernel.requires_grad_(False)
    gamma = CirculantCovariance(kernel, sd.Grid(shape), max_iterations=150)
    b = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    residual = (gamma.matmul(gamma.solve(b)) - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    assert residual.max().item() < 1e-9
