"""Separable and Gneiting kernels: against their definitions, quadrature and finite differences."""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import F64, SITES, check_batch, check_gradients, matrix, sites, smallest_eigenvalue

import spatialdiff as sd
from spatialdiff.covariance import CirculantCovariance, DenseCovariance
from spatialdiff.kernels import (
    Anisotropic,
    Cauchy,
    DampedCosine,
    Exponential,
    Gaussian,
    Gneiting,
    Matern,
    Nugget,
    Periodic,
    PoweredExponential,
    Separable,
    Wave,
    at_lags,
    terms,
)
from spatialdiff.kernels.fourier import cosine_transform


# ---- separable
def test_separable_is_the_product():
    h = sites(7, 3)
    space, time = Matern(1.5, (0.8, 1.3), 2.0), Exponential(2.0)
    kernel = Separable(space, time)
    torch.testing.assert_close(kernel.at_lags(h), space.at_lags(h[:, :2]) * time.at_lags(h[:, 2:]))
    torch.testing.assert_close(
        kernel.spectral_density(h), space.spectral_density(h[:, :2]) * time.spectral_density(h[:, 2:])
    )
    assert kernel.factors == [((0, 1), space), ((2,), time)]
    assert kernel.variance.item() == pytest.approx(2.0)
    assert kernel.reflection_symmetric
    first = Separable(time, space, axes=((0,), (1, 2)))
    torch.testing.assert_close(first.at_lags(h[:, [2, 0, 1]]), kernel.at_lags(h))
    three = Separable(Matern(0.5), Gaussian(), Cauchy(), axes=((2,), (0,), (1,)))
    expected = Matern(0.5).at_lags(h[:, 2:]) * Gaussian().at_lags(h[:, :1]) * Cauchy().at_lags(h[:, 1:2])
    torch.testing.assert_close(three.at_lags(h), expected)


def test_separable_on_a_grid_by_kronecker_and_circulant():
    kernel = Separable(Anisotropic(Matern(1.5, 1.5), 0.4, ratios=2.0), Exponential(2.0), axes=((0, 1), (2,)))
    kernel.requires_grad_(False)
    assert not kernel.reflection_symmetric
    grid = sd.Grid((5, 4, 6))
    dense = DenseCovariance(kernel, grid).to_dense()
    torch.testing.assert_close(CirculantCovariance(kernel, grid).to_dense(), dense, rtol=0, atol=1e-12)
    kronecker = sd.covariance(kernel, grid, method="kronecker")
    torch.testing.assert_close(kronecker.to_dense(), dense, rtol=0, atol=1e-12)


def test_terms_of_a_separable_sum():
    kernel = Separable(Matern(1.5) + Nugget(0.2), Exponential(2.0) + Nugget(0.3))
    expanded = terms(kernel)
    h = torch.cat(
        [
            torch.zeros(1, 3, dtype=F64),
            torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=F64),
            sites(3, 3),
        ]
    )
    total = sum(torch.stack([at_lags(factor, h) for factor in term]).prod(0) for term in expanded[:3])
    torch.testing.assert_close(total[1:], kernel.at_lags(h)[1:])
    assert len(expanded) == 4
    assert kernel.nugget.item() == pytest.approx(0.06)
    with pytest.raises(ValueError, match=r"the factor of axes \(0, 1\) has a nugget"):
        kernel.spectral_density(h)


def test_separable_refuses():
    with pytest.raises(ValueError, match="at least two"):
        Separable(Matern())
    with pytest.raises(ValueError, match="give axes"):
        Separable(Matern(), Matern(), Matern())
    with pytest.raises(ValueError, match="exactly one group"):
        Separable(Matern(), Matern(), axes=((0, 1), (1,)))
    with pytest.raises(ValueError, match="exactly one group"):
        Separable(Matern(), Matern(), axes=((0,), (2,)))
    with pytest.raises(TypeError, match="needs a kernel"):
        Separable(Matern(), 2.0)
    with pytest.raises(ValueError, match="stationary"):
        Separable(Matern(), gpytorch.kernels.LinearKernel())
    with pytest.raises(ValueError, match="3 in all, but the sites have 2"):
        Separable(Matern(), Matern()).at_lags(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="Wave"):
        Separable(Matern(), Wave(), axes=((0,), (1, 2, 3, 4))).at_lags(torch.zeros(1, 5))


# ---- Gneiting
def direct(space, tau, alpha, beta, delta, h, u):
    """Gneiting (2002), equation 14, by plain arithmetic."""
    s = (abs(u) / tau) ** (2 * alpha)
    psi = (1 + s) ** beta
    d = h.shape[-1]
    inside = space.at_lags((h / math.sqrt(psi))[None]).item()
    return psi ** (-d / 2) * inside * (1 + s) ** (-delta)


@pytest.mark.parametrize("time_axis", [-1, 0, 1])
def test_gneiting_is_its_formula(time_axis):
    kernel = Gneiting(Matern(1.5, 0.8, 1.7), 1.4, 0.6, 0.7, 0.3, time_axis=time_axis)
    for x in sites(6, 3, 1):
        time = time_axis % 3
        h = x[[a for a in range(3) if a != time]]
        expected = direct(Matern(1.5, 0.8, 1.7), 1.4, 0.6, 0.7, 0.3, h, x[time].item())
        assert kernel.at_lags(x[None]).item() == pytest.approx(expected, rel=1e-13)


def test_gneiting_without_interaction_is_separable():
    h = sites(6, 3)
    kernel = Gneiting(Exponential(0.8, 1.7), 1.4, 0.6, 0.0, 0.9)
    time = (1 + (h[:, 2] / 1.4).square().pow(0.6)).pow(-0.9)
    torch.testing.assert_close(kernel.at_lags(h), Exponential(0.8, 1.7).at_lags(h[:, :2]) * time)
    assert "raw_beta" not in dict(kernel.named_parameters())


def test_gneiting_spectral_density_in_closed_form():
    """``α = β = 1`` and a Gaussian: a Gaussian in ``u`` is left."""
    ell, tau = 0.7, 2.0
    kernel = Gneiting(Gaussian(ell, 1.3), tau, 1.0, 1.0)
    omega = torch.randn(30, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    omega[0, 2] = 0.0
    square = ell**2 * omega[:, :2].square().sum(-1)
    c = square / (2 * tau**2)
    expected = (
        1.3
        * 2
        * math.pi
        * ell**2
        * torch.exp(-square / 2)
        * (math.pi / c).sqrt()
        * torch.exp(-(omega[:, 2] ** 2) / (4 * c))
    )
    torch.testing.assert_close(kernel.spectral_density(omega), expected, rtol=1e-10, atol=1e-13)
    assert torch.isinf(kernel.spectral_density(torch.zeros(1, 3, dtype=F64)))


@pytest.mark.parametrize("omega", [(0.6, 0.4), (0.6, 2.5), (2.0, 0.0), (0.0, 1.0)])
def test_gneiting_spectral_density_by_quadrature(omega):
    """In one dimension of space, which is transformed by Gauss–Legendre panels of the kernel itself; the
    transform over time has tests of its own.
    """
    kernel = Gneiting(Matern(1.5, 0.8, 1.7), 1.4, 0.8, 0.7, 1.2).requires_grad_(False)
    x, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
    edges = torch.linspace(0, 30, 121, dtype=F64)
    h = ((edges[1:] + edges[:-1]) / 2)[:, None] + x * 0.125
    h, weight = h.reshape(-1), (weight * 0.125).repeat(120)

    def over_space(u):
        stretch = (1 + (u / 1.4).pow(1.6)).pow(0.35).unsqueeze(-1)
        lags = torch.stack(torch.broadcast_tensors(h * stretch, u.unsqueeze(-1)), -1)
        return 2 * (kernel.at_lags(lags) * torch.cos(omega[0] * h * stretch) * weight * stretch).sum(-1)

    # where the transform in space has all but vanished, its quadrature is noise
    expected = 2 * cosine_transform(
        lambda u: (
            torch.where(omega[0] * u < 1e3, over_space(u.clamp_max(1e4)), 0.0) if omega[0] else over_space(u)
        ),
        torch.tensor(omega[1], dtype=F64),
        1.4,
    )
    got = kernel.spectral_density(torch.tensor([omega], dtype=F64)).item()
    assert got == pytest.approx(expected.item(), rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    space=st.sampled_from(
        [Matern(0.5), Matern(2.5, (0.5, 1.4)), Gaussian(), PoweredExponential(0.7), Cauchy(1.3)]
    ),
    tau=st.floats(0.1, 10),
    alpha=st.floats(0.05, 1),
    beta=st.floats(0, 1),
    delta=st.floats(0, 3),
    seed=st.integers(0, 1000),
)
def test_gneiting_positive_definite(space, tau, alpha, beta, delta, seed):
    kernel = Gneiting(space, tau, alpha, beta, delta)
    assert smallest_eigenvalue(kernel, sites(25, 3, seed)) > -1e-13


def test_positive_definiteness_would_be_seen_to_fail():
    """The same formula with α = 2, which is no covariance."""

    class Invalid(Gneiting):
        @property
        def alpha(self):
            return torch.tensor(2.0, dtype=F64)

    assert smallest_eigenvalue(Invalid(Gaussian(), 1.0, 1.0, 1.0, 0.5), sites(60, 2, scale=2.0)) < -1e-6


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_gneiting_gradients(alpha):
    kernel = Gneiting(Matern(1.5, 0.8, 1.7), 1.4, alpha, 0.7, 0.3)
    check_gradients(kernel, lambda k: matrix(k, SITES))
    omega = torch.tensor([[0.5, 0.3, 0.7], [0.0, 1.0, 0.0]], dtype=F64)
    check_gradients(kernel, lambda k: k.spectral_density(omega), second=False)


def test_separable_gradients():
    kernel = Separable(Anisotropic(Matern(1.5), 0.3, ratios=2.0), Gaussian(0.7, 1.2))
    check_gradients(kernel, lambda k: matrix(k, SITES))
    check_gradients(kernel, lambda k: k.spectral_density(SITES))


def test_batches():
    values = torch.tensor([0.5, 0.8, 0.3], dtype=F64)
    ell = torch.tensor([[0.5], [1.0], [2.0]], dtype=F64)
    batched = Gneiting(
        Matern(1.5, ell, batch_shape=(3,)), 2 * values, values, values, values, batch_shape=(3,)
    )
    single = [Gneiting(Matern(1.5, ell[i]), 2 * v, v, v, v) for i, v in enumerate(values)]
    h = sites(6, 3).reshape(2, 3, 3)
    for function in (
        lambda k: k.at_lags(h),
        lambda k: k.variance,
        lambda k: k.effective_duration(2),
    ):
        check_batch(batched, single, function)
    # the nodes depend on the mean time scale
    check_batch(batched, single, lambda k: k.spectral_density(h), rtol=1e-11)
    outside = Gneiting(Matern(1.5), 2 * values, values, values, batch_shape=(3,))
    check_batch(outside, [Gneiting(Matern(1.5), 2 * v, v, v) for v in values], lambda k: k.at_lags(h))
    product = Separable(Matern(1.5, ell, batch_shape=(3,)), Exponential(2.0))
    parts = [Separable(Matern(1.5, e), Exponential(2.0)) for e in ell]
    for function in (
        lambda k: k.at_lags(h),
        lambda k: k.spectral_density(h),
        lambda k: k.variance,
        lambda k: k.nugget,
    ):
        check_batch(product, parts, function)


def test_effective_ranges():
    kernel = Gneiting(Matern(1.5, 0.8, 1.7), 1.4, 0.6, 0.7, 0.3)
    lag = torch.zeros(1, 3, dtype=F64)
    lag[0, 2] = kernel.effective_duration(2)
    assert (kernel.at_lags(lag) / kernel.variance).item() == pytest.approx(0.05)
    lag = torch.zeros(1, 3, dtype=F64)
    lag[0, 0] = kernel.effective_range
    assert (kernel.at_lags(lag) / kernel.variance).item() == pytest.approx(0.05)
    assert Gneiting(Matern(), beta=0.0).effective_duration(2).item() == math.inf


def test_gneiting_refuses():
    with pytest.raises(TypeError, match="isotropic family"):
        Gneiting(Matern() + Nugget())
    for space in (Wave(), DampedCosine(), Nugget(), Periodic()):
        with pytest.raises(ValueError, match="positive definite in every dimension"):
            Gneiting(space)
    for bad in (
        {"alpha": 1.2},
        {"alpha": 0.0},
        {"beta": -0.1},
        {"beta": 1.01},
        {"timescale": 0.0},
        {"delta": -1.0},
    ):
        with pytest.raises(ValueError, match=f"Gneiting: {next(iter(bad))} must be"):
            Gneiting(Matern(), **bad)
    with pytest.raises(ValueError, match="one of time"):
        Gneiting(Matern()).at_lags(torch.zeros(1, 1))
    with pytest.raises(ValueError, match="time_axis 3"):
        Gneiting(Matern(), time_axis=3).at_lags(torch.zeros(1, 3))
