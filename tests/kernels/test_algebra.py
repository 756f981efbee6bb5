"""Sums and products: spectral densities by quadrature, ranges, numbers, batches, gradients."""

from __future__ import annotations

import itertools
import math

import gpytorch
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import F64, SITES, check_batch, check_gradients, matrix, sites, smallest_eigenvalue

from spatialdiff.kernels import (
    Anisotropic,
    Askey,
    Cauchy,
    Cubic,
    DampedCosine,
    Exponential,
    Gaussian,
    GeneralizedCauchy,
    Gneiting,
    Matern,
    Nonstationary,
    Nugget,
    PoweredExponential,
    Product,
    RationalQuadratic,
    Separable,
    Spherical,
    Wave,
)
from spatialdiff.kernels.fourier import radial_transform

OMEGA = torch.tensor([[0.0, 0.0], [0.7, -0.4], [1.5, 2.0]], dtype=F64)


def by_trapezoid(kernel, omega, reach=30.0, nodes=601):
    """In two dimensions; exact to rounding for what is smooth and has decayed at ``reach``."""
    u = torch.linspace(-reach, reach, nodes, dtype=F64)
    h = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1)
    values = kernel.at_lags(h).detach()
    return torch.stack([(values * torch.cos(h @ w)).sum() for w in omega]) * (u[1] - u[0]) ** 2


@pytest.mark.parametrize(
    "kernel",
    [
        RationalQuadratic(1.5, 1.1, 2.0) * Gaussian((1.5, 1.0)),
        Cauchy(0.4, 1.2) * Gaussian(2.0),
        Anisotropic(Gaussian(1.5), 0.4, ratios=2.0) * RationalQuadratic(0.8, (1.2, 2.0)),
        Anisotropic(Gaussian(1.5), 0.4, ratios=2.0) * Anisotropic(Gaussian(1.0, 1.4), -0.7, ratios=0.6),
        Anisotropic(Cauchy(3.0) * Gaussian(2.0) + Nugget(0.1), 0.4, ratios=2.0),
        PoweredExponential(2.0, 1.3) * GeneralizedCauchy(2.0, 0.5),
    ],
    ids=repr,
)
def test_density_of_smooth_products(kernel):
    torch.testing.assert_close(
        kernel.spectral_density(OMEGA).detach(), by_trapezoid(kernel, OMEGA), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "reach"),
    [
        (Matern(0.5, 0.9, 1.4) * PoweredExponential(0.8, 2.0), 40.0),
        (Matern(2.5, 0.9) * GeneralizedCauchy(0.7, 0.4), 40.0),
        (PoweredExponential(1.4, 0.7) * Cauchy(0.3), 40.0),
        (Askey(4.0, 3.0) * GeneralizedCauchy(1.5, 0.5, 0.8), 3.0),
        (Spherical(3.0) * Cubic(2.0) * Gaussian(1.5), 2.0),
        (Spherical(3.0) * Wave(0.5), 3.0),
    ],
    ids=lambda v: repr(v) if isinstance(v, Product) else "",
)
def test_density_of_isotropic_products(kernel, reach, d):
    """Scipy's quadrature in pieces of the radial integral."""
    kernel = kernel.requires_grad_(False)

    def value(r, w):
        rho = kernel.at_lags(torch.tensor([[r] + [0.0] * (d - 1)], dtype=F64)).item()
        shape = {1: np.cos(w * r), 2: scipy.special.j0(w * r), 3: np.sinc(w * r / np.pi)}[d]
        return rho * shape * r ** (d - 1)

    area = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    for w in (0.0, 3.0):
        pieces = [0.0, 1e-6, 1e-3, 0.1, *np.linspace(0.5, reach, max(2, int(reach)))]
        total = sum(
            scipy.integrate.quad(value, a, b, args=(w,), epsabs=1e-12, limit=100)[0]
            for a, b in itertools.pairwise(pieces)
        )
        omega = torch.zeros(1, d, dtype=F64)
        omega[0, -1] = w
        assert kernel.spectral_density(omega).item() == pytest.approx(area * total, rel=2e-7, abs=1e-10)


def test_density_of_an_anisotropic_product_by_quadrature():
    """The same stretched axes in both factors, in three dimensions, against the isotropic product."""
    omega = sites(4, 3) - 1
    kernel = Matern(0.7, (0.5, 1.0, 2.0)) * PoweredExponential(0.8, (1.0, 2.0, 4.0), 1.4)
    plain = Matern(0.7) * PoweredExponential(0.8, 2.0, 1.4)
    stretch = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    torch.testing.assert_close(
        kernel.spectral_density(omega), plain.spectral_density(omega * stretch), rtol=1e-10, atol=0
    )
    angles = (0.3, 0.2, -1.0)
    turned = Anisotropic(
        Matern(0.7) * PoweredExponential(0.8, 2.0, 1.4), angles, lengthscales=(0.5, 1.0, 2.0)
    )
    product = Anisotropic(Matern(0.7), angles, lengthscales=(0.5, 1.0, 2.0)) * Anisotropic(
        PoweredExponential(0.8, 2.0, 1.4), angles, lengthscales=(0.5, 1.0, 2.0)
    )
    torch.testing.assert_close(
        product.spectral_density(omega), turned.spectral_density(omega), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kernel", [Matern(0.5), Matern(2.5), Gaussian(), Cauchy(4.5)], ids=repr)
def test_radial_transform_of_known_pairs(kernel, d):
    w = torch.tensor([0.0, 1e-3, 0.05, 0.6, 2.0, 8.0], dtype=F64)
    omega = torch.zeros(len(w), d, dtype=F64)
    omega[:, 0] = w
    expected = kernel.spectral_density(omega).detach()
    got = radial_transform(kernel.requires_grad_(False).correlation, w, d)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13 * expected[0].item())


def test_infinite_density_at_zero():
    omega = torch.zeros(1, 2, dtype=F64)
    assert (Cauchy(0.5) * RationalQuadratic(0.3)).spectral_density(omega).item() == math.inf
    assert math.isfinite((Cauchy(2.5) * RationalQuadratic(0.3)).spectral_density(omega).item())
    assert (GeneralizedCauchy(0.5, 0.5) * PoweredExponential(1.0)).spectral_density(omega).item() < math.inf


def test_density_of_a_product_refuses():
    omega = torch.zeros(1, 2, dtype=F64)
    with pytest.raises(ValueError, match="same anisotropy"):
        (PoweredExponential(0.8) * Gaussian((1.0, 2.0))).spectral_density(omega)
    with pytest.raises(ValueError, match="DampedCosine, which oscillates"):
        (Gaussian() * DampedCosine(1.5)).spectral_density(omega)
    with pytest.raises(TypeError, match="got RBFKernel"):
        (Gaussian() * gpytorch.kernels.RBFKernel()).spectral_density(omega)
    with pytest.raises(TypeError, match="got Gneiting"):
        (Gaussian() * Gneiting(Matern())).spectral_density(omega)
    with pytest.raises(ValueError, match="at most two"):
        (Matern() * Exponential() * Matern(2.5)).spectral_density(omega[:, :1])
    with pytest.raises(ValueError, match="1, 2 and 3 dimensions, got 4"):
        (PoweredExponential(0.8) * Gaussian()).spectral_density(torch.zeros(1, 4, dtype=F64))


def test_density_gradients():
    omega = OMEGA[1:]
    for kernel in (
        RationalQuadratic(1.5, 1.1, 2.0) * Gaussian((1.5, 1.0)),
        Anisotropic(Gaussian(1.5), 0.4, ratios=2.0) * Cauchy(1.3),
        PoweredExponential(0.8, 0.9) * Matern(1.5, 1.3),
        Askey(4.0, 3.0) * Gaussian(1.2, 1.3),
    ):
        check_gradients(kernel, lambda k: k.spectral_density(omega), second=False)


def test_batches():
    ell, variance = torch.tensor([[0.5], [1.0], [2.0]], dtype=F64), torch.tensor([1.0, 2.0, 0.5], dtype=F64)

    def family(kind, i=None, *shape):
        if i is None:
            return kind(*shape, ell, variance, batch_shape=(3,))
        return kind(*shape, ell[i], variance[i])

    makers = [
        lambda i: family(Matern, i, 1.5) + Nugget(0.1),
        lambda i: family(Matern, i, 1.5) * Gaussian(2.0),
        lambda i: family(RationalQuadratic, i, 0.8) * family(Gaussian, i) + family(Matern, i, 0.5),
        lambda i: family(PoweredExponential, i, 0.8) * family(Matern, i, 1.5),
        lambda i: family(Askey, i, 3.0) * Gaussian(2.0),
        lambda i: Gaussian(2.0) * family(Cauchy, i, 0.8),
    ]
    h = sites(6, 2).reshape(2, 3, 2)
    for make in makers:
        batched, single = make(None), [make(i) for i in range(3)]
        assert batched.batch_shape == (3,)
        for function in (
            lambda k: k.at_lags(h),
            lambda k: matrix(k, SITES[:, :2]),
            lambda k: k.variance,
            lambda k: k.nugget.expand(k.batch_shape),
            lambda k: k.effective_range,
        ):
            check_batch(batched, single, function)
        densities = torch.stack([k.spectral_density(h) for k in single])
        torch.testing.assert_close(batched.spectral_density(h), densities, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "kernel",
    [
        Matern(1.5, 2.0) + Gaussian(1.0, 3.0),
        Matern(1.5, 2.0) * Gaussian(1.0, 3.0),
        Exponential(2.0) + Nugget(0.5),
        Spherical(2.0) + 0.01 * Exponential(1.0),
        Exponential(1.0) + Exponential(100.0, 0.06),
    ],
    ids=repr,
)
def test_effective_range(kernel):
    """The correlation is 0.05 there, and below from there on."""
    reach = kernel.effective_range.item()
    r = torch.tensor([[reach]], dtype=F64)
    assert (kernel.at_lags(r) / kernel.variance).item() == pytest.approx(0.05, rel=1e-9)
    beyond = reach * torch.linspace(1.001, 20, 500, dtype=F64)[:, None]
    assert (kernel.at_lags(beyond) < 0.05 * kernel.variance).all()


def test_effective_range_needs_a_distance():
    for kernel in (Matern(1.5, (1.0, 2.0)) + Nugget(), Anisotropic(Matern(), 0.1, ratios=2.0) + Gaussian()):
        with pytest.raises(ValueError, match="one length scale"):
            kernel.effective_range  # noqa: B018


def test_numbers():
    x = sites(5, 2)
    for kernel in (
        Matern(1.5, 0.7, 1.3),
        Matern(1.5) + Nugget(0.2),
        Matern(1.5) * Gaussian(2.0) * (Exponential() + Nugget(0.3)),
        Anisotropic(Matern(), 0.3, ratios=2.0),
        Nonstationary(Matern(), 0.7),
    ):
        for double in (2.0 * kernel, kernel * 2, 4 * kernel * 0.5):
            torch.testing.assert_close(matrix(double, x), 2 * matrix(kernel, x))
        before = matrix(kernel, x)
        for parameter in double.parameters():
            parameter.data.add_(0.3)
        torch.testing.assert_close(matrix(kernel, x), before)
    space_time = 3 * Separable(Matern(1.5), Exponential())
    assert space_time.variance.item() == pytest.approx(3.0)
    with pytest.raises(ValueError, match="positive number, got -1"):
        -1.0 * Matern()
    with pytest.raises(TypeError, match="ScaleKernel"):
        2.0 * (Matern() + gpytorch.kernels.RBFKernel())


def test_dimension_of_a_composite():
    kernel = Matern() + Spherical() * Gaussian()
    assert kernel.max_dimension == 3
    with pytest.raises(ValueError, match="Spherical is positive definite in at most 3 dimensions"):
        kernel.check_dimension(4)
    with pytest.raises(ValueError, match="Spherical is positive definite"):
        kernel.at_lags(torch.zeros(1, 4))


@settings(max_examples=30, deadline=None)
@given(
    first=st.sampled_from([Matern(0.5), Spherical(2.0), Wave(0.7), PoweredExponential(0.6)]),
    second=st.sampled_from(
        [Gaussian(0.8), Cauchy(0.4), Anisotropic(Matern(2.5), (0.4, 1.0, 0.2), ratios=(3.0, 0.4))]
    ),
    third=st.sampled_from([Nugget(0.1), Exponential(3.0)]),
    seed=st.integers(0, 1000),
)
def test_positive_definite(first, second, third, seed):
    assert smallest_eigenvalue(first * second + third, sites(25, 3, seed)) > -1e-13
    assert smallest_eigenvalue((first + third) * second, sites(25, 3, seed)) > -1e-13


def test_gradients():
    kernel = Matern(1.5, 0.8) * Gaussian(1.2, 1.4) + RationalQuadratic(0.9) + Nugget(0.2)
    check_gradients(kernel, lambda k: matrix(k, SITES))
