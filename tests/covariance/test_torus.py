"""What only the torus promises: the folded spectral density, relative accuracy, and refusals."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import SpatialWarning, TorusCovariance
from spatialdiff.covariance.periodic import stationary_at
from spatialdiff.domains import Points
from spatialdiff.kernels import (
    Cauchy,
    Exponential,
    Gaussian,
    GeneralizedCauchy,
    Matern,
    Nugget,
    RationalQuadratic,
    Wave,
)


def folded(kernel, grid, folds):
    """``Σ_j S(ω_k + 2πj/h)/h^d``, the DFT of the covariance summed over images (Poisson), on the full
    spectrum.
    """
    axes = []
    for n, h in zip(grid.shape, grid.spacing, strict=True):
        k = torch.arange(n, dtype=torch.float64)
        j = torch.arange(-folds, folds + 1, dtype=torch.float64)
        axes.append((2 * torch.pi * (k[:, None] + n * j) / (n * h)).flatten())
    omega = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    density = kernel.spectral_density(omega) / grid.cell_volume
    parts = [v for n in grid.shape for v in (n, 2 * folds + 1)]
    return density.reshape(parts).sum(list(range(1, 2 * grid.ndim, 2)))


@pytest.mark.parametrize(
    ("kernel", "folds", "tolerance"),
    [
        (Gaussian(1.3, 2.0), 4, 1e-12),
        (Matern(2.5, (1.5, 1.1)), 30, 1e-8),
        (Matern(2.5, 2.0) * Gaussian(1.5), 8, 1e-8),
        (Matern(1.5, 1.5) + Gaussian(2.0, 0.4), 60, 1e-5),
        # whose sum over images would need millions of them
        (RationalQuadratic(1.2, 1.1, 1.7), 4, 1e-10),
        (Cauchy(2.5, 1.5, 1.7), 4, 1e-10),
    ],
)
def test_eigenvalues_are_the_folded_spectral_density(kernel, folds, tolerance):
    """Up to the factor that keeps the variance, for each additive term."""
    grid = sd.Grid((9, 6), spacing=(0.8, 1.0), periodic=True)
    gamma = TorusCovariance(kernel, grid).requires_grad_(False)
    parts = kernel.kernels if isinstance(kernel, gpytorch.kernels.AdditiveKernel) else [kernel]
    expected = sum(
        (values := folded(part, grid, folds).detach()) * (part.variance.detach() / values.mean())
        for part in parts
    )
    torch.testing.assert_close(
        gamma.eigenvalues(), expected[:, : 6 // 2 + 1], rtol=tolerance * 10, atol=tolerance
    )


@pytest.mark.parametrize(
    "kernel",
    [
        Matern(0.5, 0.7, 2.0),
        Matern(0.3, 0.7, 2.0),
        Matern(1.5, 0.7, 2.0),
        Matern(7.3, 0.7, 2.0),
        Gaussian(1.1, 2.0),
        RationalQuadratic(8.0, 0.9, 1.4),
        Cauchy(17.0, 1.9, 1.4),
        Matern(torch.tensor([0.8, 2.2]), 0.8, trainable_nu=True, batch_shape=(2,)),
        RationalQuadratic(torch.tensor([7.0, 9.0]), torch.tensor([[0.9], [1.2]]), batch_shape=(2,)),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "grid", [sd.Grid(8, 0.6, True), sd.Grid((1, 5), 1.0, True), sd.Grid((3, 4, 2), 0.9, True)]
)
@pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")
def test_closed_form_agrees_with_the_sum_over_images(kernel, grid):
    kernel = kernel.requires_grad_(False)
    row, factors = stationary_at(kernel, grid, [torch.arange(n) for n in grid.shape])
    gamma = TorusCovariance(kernel, grid)
    values = gamma.eigenvalues()
    expected = torch.fft.rfftn(row, dim=tuple(range(-grid.ndim, 0))).real
    # images stop where a shell adds 1e-12, which for heavy tails leaves a few times that
    heavy = isinstance(kernel, RationalQuadratic | Cauchy)
    torch.testing.assert_close(
        values, expected, rtol=0, atol=(2e-11 if heavy else 2e-12) * float(values.max())
    )
    assert gamma.report.variance_factor == pytest.approx(factors, abs=1e-10 if heavy else 1e-11)


def test_first_row_is_the_scaled_periodised_covariance():
    grid = sd.Grid(6, periodic=True)
    gamma = TorusCovariance(Exponential(3.0, 2.0), grid).requires_grad_(False)
    h, images = torch.arange(6.0, dtype=torch.float64), torch.arange(-200, 201, dtype=torch.float64)
    rho = torch.exp(-(h[:, None] + 6 * images).abs() / 3).sum(1)
    torch.testing.assert_close(gamma.to_dense()[0], 2 * rho / rho[0], rtol=1e-12, atol=0)
    assert gamma.report.variance_factor[0] == pytest.approx(1 / rho[0].item(), rel=1e-12)
    # Σ_m exp(-6|m|/3) = coth(1)
    assert rho[0].item() == pytest.approx(
        1 / torch.tanh(torch.tensor(1.0, dtype=torch.float64)).item(), rel=1e-12
    )


def test_small_eigenvalues_keep_their_relative_accuracy():
    """Down to 1e-30 of the largest, where an FFT leaves rounding errors of either sign."""
    grid = sd.Grid(32, periodic=True)
    gamma = TorusCovariance(Gaussian(3.0), grid).requires_grad_(False)
    expected = folded(Gaussian(3.0).requires_grad_(False), grid, 6)[:17]
    values = gamma.eigenvalues()
    assert values[-1] / values[0] < 1e-18
    torch.testing.assert_close(
        values,
        expected / expected.new_tensor(gamma.report.variance_factor[0]).reciprocal(),
        rtol=1e-12,
        atol=0,
    )


def test_singular_covariance_samples_but_does_not_invert():
    gamma = TorusCovariance(Gaussian(8.0), sd.Grid((32, 32), periodic=True)).requires_grad_(False)
    assert torch.isfinite(gamma.sample((2,))).all()
    for operation in (gamma.solve, gamma.whiten, gamma.log_prob):
        with pytest.raises(ValueError, match="add a Nugget"):
            operation(torch.zeros(32, 32))
    with pytest.raises(ValueError, match="add a Nugget"):
        gamma.log_det()


def test_large_torus_needs_no_sum_over_images():
    """A length scale of the whole torus: the sum over images would need thousands of them."""
    grid = sd.Grid((128, 128), periodic=True)
    gamma = TorusCovariance(Exponential(128.0, 1.5), grid).requires_grad_(False)
    assert gamma.variance().mean().item() == pytest.approx(1.5, rel=1e-12)
    assert (gamma.eigenvalues() > 0).all()


def test_refuses():
    with pytest.raises(ValueError, match="periodic on every axis"):
        TorusCovariance(Matern(), sd.Grid((4, 4), periodic=(True, False)))
    with pytest.raises(ValueError, match="not stationary"):
        TorusCovariance(gpytorch.kernels.LinearKernel(), sd.Grid(8, periodic=True))
    slow = TorusCovariance(gpytorch.kernels.RQKernel(alpha=0.1).double(), sd.Grid(4, 0.5, periodic=True))
    with pytest.raises(ValueError, match="does not converge"):
        slow.sample()
    slow = TorusCovariance(GeneralizedCauchy(1.0, 1.0, 0.7), sd.Grid(4, 0.5, periodic=True))
    with pytest.raises(ValueError, match="decays too slowly"):
        slow.sample()
    with pytest.raises(ValueError, match="decays too slowly"):
        TorusCovariance(Wave(0.7), sd.Grid((4, 4), 0.5, periodic=True)).sample()
    with pytest.raises(ValueError, match="alpha above 1"):
        TorusCovariance(RationalQuadratic(1.0, 0.7), sd.Grid((4, 4), 0.5, periodic=True)).sample()
    with pytest.raises(ValueError, match="beta above 1"):
        TorusCovariance(Cauchy(0.9, 0.7), sd.Grid(4, 0.5, periodic=True)).sample()
    with pytest.raises(TypeError, match="needs a Grid, got Points"):
        TorusCovariance(Matern(), Points(torch.rand(3, 2)))
    grid = sd.Grid((4, 4), periodic=True)
    with pytest.raises(ValueError, match="needs shape"):
        TorusCovariance.from_spectrum(grid, torch.ones(4, 4))
    with pytest.raises(ValueError, match="even"):
        TorusCovariance.from_spectrum(grid, torch.arange(12.0).reshape(4, 3))
    with pytest.raises(ValueError, match="non-negative"):
        TorusCovariance.from_spectrum(grid, -torch.ones(4, 3))
    with pytest.raises(ValueError, match="channels=2"):
        TorusCovariance.from_spectrum(grid, torch.ones(2, 4, 3), channels=3)
    with pytest.warns(SpatialWarning, match="below the grid spacing 1 on axis 0"):
        TorusCovariance(Matern(1.5, (0.5, 2.0)), grid)
    with pytest.warns(SpatialWarning, match="beyond the extent 4 of axis 1") as record:
        TorusCovariance(Matern(1.5, (2.0, 5.0)), grid)
    assert record[0].filename == __file__
    with pytest.raises(ValueError, match="3 length scales, the grid has 2"):
        TorusCovariance(Matern(1.5, (1.0, 2.0, 3.0)), grid)


def test_nugget_adds_to_every_eigenvalue():
    grid = sd.Grid((5, 4), periodic=True)
    plain = TorusCovariance(Matern(1.5, 1.2), grid).eigenvalues()
    noisy = TorusCovariance(Matern(1.5, 1.2) + Nugget(0.3), grid).eigenvalues()
    torch.testing.assert_close(noisy - plain, torch.full_like(plain, 0.3))


def test_quad_form_takes_one_transform(monkeypatch):
    """Parseval: as many transforms as it takes to analyse the fields, and none back."""
    grid = sd.Grid((6, 8), periodic=True)
    gamma = TorusCovariance(Matern(1.5, 2.0), grid, 2).requires_grad_(False)
    x = torch.randn(3, 2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (x * gamma.solve(x)).sum((-3, -2, -1))
    monkeypatch.setattr(gamma.basis, "synthesize", None)
    torch.testing.assert_close(gamma.quad_form(x), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gamma.quad_form(x.float()).double(), expected, rtol=1e-5, atol=0)


def test_gradient_in_the_smoothness():
    """``ν`` is a parameter like the others."""
    grid = sd.Grid((5, 4), periodic=True)
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def log_prob(nu):
        kernel = Matern(nu, 1.1, trainable_nu=True)
        return TorusCovariance(kernel, grid).log_prob(x), kernel.raw_nu

    value, raw = log_prob(1.3)
    value.backward()
    step = 1e-5
    numeric = (log_prob(1.3 * math.exp(step))[0] - log_prob(1.3 * math.exp(-step))[0]).item() / (2 * step)
    assert raw.grad.item() == pytest.approx(numeric, rel=1e-6)
