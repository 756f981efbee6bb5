"""The cosine basis and the covariance closest to a kernel in it."""

from __future__ import annotations

import pytest
import scipy.fft
import torch
from covariance_case import pairwise

import spatialdiff as sd
from spatialdiff.covariance import CosineBasis, CosineCovariance, FourierBasis
from spatialdiff.covariance.numerics.dct import MATRIX_LIMIT, dct, idct
from spatialdiff.kernels import Matern


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, MATRIX_LIMIT, MATRIX_LIMIT + 1, 2 * MATRIX_LIMIT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dct_agrees_with_scipy(n, dtype):
    x = torch.randn(2, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    expected = torch.from_numpy(scipy.fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho"))
    atol = 40 * torch.finfo(dtype).eps
    torch.testing.assert_close(dct(x.to(dtype), 2).double(), expected, rtol=0, atol=atol)
    torch.testing.assert_close(idct(expected.to(dtype), 2).double(), x, rtol=0, atol=atol)


@pytest.mark.parametrize("n", [6, 2 * MATRIX_LIMIT + 1])
def test_dct_is_orthogonal_and_differentiable(n):
    x = torch.randn(n, dtype=torch.float64, requires_grad=True)
    c = dct(x, 1)
    assert c.square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-12)
    weight = torch.randn(n, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weight * c).sum(), x)
    torch.testing.assert_close(gradient, idct(weight, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "basis",
    [
        FourierBasis(sd.Grid((4, 5), 0.5, True)),
        FourierBasis(sd.Grid((3, 6), 1.0, True)),
        CosineBasis(sd.Grid((4, 5), 0.5)),
    ],
)
def test_bases(basis):
    grid = basis.grid
    x = torch.randn(2, *grid.shape, dtype=torch.float64)
    c = basis.analyze(x)
    assert c.shape == (2, *basis.modes)
    torch.testing.assert_close(basis.synthesize(c), x)
    torch.testing.assert_close((basis.weights * c.abs().square()).sum((-2, -1)), x.square().sum((-2, -1)))
    assert basis.weights.sum().item() == grid.size
    assert basis == type(basis)(grid)
    assert hash(basis) == hash(type(basis)(grid))
    assert basis != CosineBasis(sd.Grid((9, 9)))
    k = basis.wavenumbers
    assert k.shape == basis.modes
    step = 1 / grid.extent[1] if isinstance(basis, FourierBasis) else 0.5 / grid.extent[1]
    assert k[0, 1].item() == pytest.approx(step)
    m = torch.rand(basis.modes, dtype=torch.float64)
    torch.testing.assert_close(basis.multiply(x, m), basis.synthesize(m * c))


def test_closest_in_frobenius_norm():
    """No other covariance diagonal in the cosine basis is nearer, and the trace is kept."""
    grid = sd.Grid((5, 4))
    kernel = Matern(1.5, 1.5).requires_grad_(False)
    gamma = CosineCovariance(kernel, grid)
    target = pairwise(kernel, grid)
    assert gamma.eigenvalues().sum().item() == pytest.approx(target.trace().item(), rel=1e-12)
    best = (gamma.to_dense() - target).norm()
    report = gamma.report
    assert not report.exact
    assert report.relative_error == pytest.approx((best / target.norm()).item(), rel=1e-9)
    assert report.error_bound == pytest.approx((gamma.to_dense() - target).abs().max().item(), rel=1e-9)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        nudge = 1 + 0.05 * torch.randn(grid.shape, generator=g, dtype=torch.float64)
        other = CosineCovariance.from_spectrum(grid, gamma.eigenvalues() * nudge)
        assert (other.to_dense() - target).norm() > best


def test_does_not_wrap_around():
    """Opposite ends of a line are as independent as the kernel says, unlike on a torus."""
    kernel = Matern(1.5, 3.0).requires_grad_(False)
    ends = sd.covariance(kernel, sd.Grid(32), method="cosine").to_dense()[0, -1]
    torus = sd.covariance(kernel, sd.Grid(32, periodic=True)).to_dense()[0, -1]
    assert ends.abs().item() < 0.05
    assert torus.item() > 0.8


def test_large_grid_reports_without_dense_error():
    gamma = CosineCovariance(Matern(1.5, 8.0), sd.Grid((100, 60))).requires_grad_(False)
    assert gamma.report.error_bound is None
    assert gamma.sample().shape == (100, 60)


def test_refuses():
    grid = sd.Grid((3, 4))
    with pytest.raises(ValueError, match="kernel or a spectrum"):
        CosineCovariance(None, grid)
    with pytest.raises(ValueError, match="needs shape"):
        CosineCovariance.from_spectrum(grid, torch.ones(4, 3))
    with pytest.raises(ValueError, match="finite and non-negative"):
        CosineCovariance.from_spectrum(grid, torch.full((3, 4), float("nan")))
