"""Kernels on the sphere: Legendre coefficients against closed forms and scipy, random sites, finite
differences.
"""

from __future__ import annotations

import math

import gpytorch
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import F64, check_batch, check_gradients, matrix, smallest_eigenvalue

from spatialdiff.kernels import (
    Askey,
    Chordal,
    Exponential,
    Gaussian,
    LegendreMatern,
    LegendreSeries,
    Matern,
    Nugget,
    Spherical,
    SphericalAskey,
    SphericalCompact,
    SphericalExponential,
    SphericalKernel,
    SphericalMultiquadric,
    SphericalPoweredExponential,
    SphericalSinePower,
    at_pairs,
    great_circle_angle,
    legendre_coefficients,
)
from spatialdiff.kernels.legendre_series import legendre_rows, legendre_sum, legendre_transform

FAMILIES = [
    SphericalExponential(0.7, 2.0),
    SphericalExponential(5.0),
    SphericalPoweredExponential(0.6, 0.7),
    SphericalCompact(0.9, 1.5),
    SphericalCompact(4.0),
    SphericalAskey(2.5, 1.2),
    SphericalSinePower(1.3, 0.7),
    SphericalMultiquadric(0.8, 0.5),
    SphericalMultiquadric(0.7, 1.3, 3.0),
    Chordal(Matern(0.5, 0.4, 1.2)),
    Chordal(Matern(1.5, 0.1)),
    Chordal(Gaussian(2.0) * Exponential(1.5), radius=3.0),
    Chordal(Spherical(0.8)),
    LegendreMatern(1.5, 0.3, 1.3, lmax=40),
    LegendreSeries([1.0, 0.5, 0.0, 0.2]),
]
NAMES = [repr(kernel) for kernel in FAMILIES]


def on_sphere(n, seed=0, radius=1.0):
    x = torch.randn(n, 3, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return radius * x / x.norm(dim=-1, keepdim=True)


# ---- angles and series
def test_angle():
    x = on_sphere(30, radius=6371.0)
    theta = great_circle_angle(x[:, None], x[None])
    torch.testing.assert_close(theta.cos(), (x @ x.T) / 6371.0**2, rtol=0, atol=1e-12)
    assert (theta.diagonal() == 0).all()
    for small in (1e-3, 1e-9, 1e-14):
        pair = torch.tensor([[1.0, 0.0, 0.0], [math.cos(small), math.sin(small), 0.0]], dtype=F64)
        assert great_circle_angle(pair[:1], pair[1:]).item() == pytest.approx(small, rel=1e-12)
        assert great_circle_angle(-pair[:1], pair[1:]).item() == pytest.approx(math.pi - small, rel=1e-15)


def test_legendre_polynomials_keep_their_accuracy():
    theta = torch.tensor([0.0, 1e-8, 1e-4, 0.01, 1.0, 2.0, 3.1, math.pi - 1e-6], dtype=F64)
    rows = torch.cat([p for _, p in legendre_rows(theta, 700)])
    assert rows.shape == (701, len(theta))
    degree = np.arange(701)[:, None]
    near, far = theta.numpy()[:4], theta.numpy()[4:]
    # 1 - P_l near 0 by the Bessel form; elsewhere scipy
    np.testing.assert_allclose(
        rows[:, 4:].numpy(), scipy.special.eval_legendre(degree, np.cos(far)), atol=1e-10
    )
    x = (degree + 0.5) * near
    hilb = np.sqrt(np.where(near > 0, near / np.where(near > 0, np.sin(near), 1.0), 1.0)) * scipy.special.j0(
        x
    )
    np.testing.assert_allclose(rows[:, :4].numpy(), hilb, atol=2e-5)


def test_transform_of_the_polynomials():
    """``P_k`` has one coefficient, ``4π/(2k+1)``; and the sum is the inverse of the transform."""
    for k in (0, 1, 17, 300):
        got = legendre_transform(lambda t, k=k: torch.cat([p for _, p in legendre_rows(t, k)])[-1], 320)
        expected = torch.zeros(321, dtype=F64)
        expected[k] = 4 * math.pi / (2 * k + 1)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    a = torch.randn(2, 30, dtype=F64, generator=torch.Generator().manual_seed(0))
    degree = torch.arange(30, dtype=F64)
    back = legendre_transform(lambda t: legendre_sum(a, t), 29) * (2 * degree + 1) / (4 * math.pi)
    torch.testing.assert_close(back, a)


def test_series_is_differentiable_twice():
    theta = torch.tensor([0.0, 0.4, 3.0], dtype=F64)
    a = torch.randn(2, 9, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: legendre_sum(v.square(), theta), a)
    assert torch.autograd.gradgradcheck(lambda v: legendre_sum(v.square(), theta), a)


# ---- families
@pytest.mark.parametrize("kernel", FAMILIES, ids=NAMES)
def test_coefficients_by_quadrature(kernel):
    coefficients = kernel.legendre_coefficients(60)
    assert (coefficients >= 0).all()
    breaks = [b for b in kernel._breaks() if b < math.pi] or None
    for degree in (0, 1, 2, 7, 24):

        def integrand(theta, degree=degree):
            value = kernel.at_angles(torch.tensor([theta], dtype=F64)).item()
            return value * scipy.special.eval_legendre(degree, math.cos(theta)) * math.sin(theta)

        value = (
            2
            * math.pi
            * scipy.integrate.quad(integrand, 0, math.pi, limit=300, epsabs=1e-11, points=breaks)[0]
        )
        assert coefficients[degree].item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("kernel", FAMILIES, ids=NAMES)
def test_series_sums_to_the_kernel(kernel):
    """Away from 0, where the coefficients of a rough kernel have little to say; and the variance from
    below.
    """
    lmax = 600
    coefficients = kernel.legendre_coefficients(lmax)
    shares = coefficients * (2 * torch.arange(lmax + 1, dtype=F64) + 1) / (4 * math.pi)
    theta = torch.linspace(0.5, math.pi - 0.2, 40, dtype=F64)
    torch.testing.assert_close(legendre_sum(shares, theta), kernel.at_angles(theta), rtol=0, atol=3e-4)
    assert kernel.variance.item() * (1 - 0.05) < shares.sum().item() < kernel.variance.item() * (1 + 1e-12)


@pytest.mark.parametrize("kernel", FAMILIES, ids=NAMES)
def test_at_sites(kernel):
    x = on_sphere(12, 3, radius=2.0)
    values = matrix(kernel, x)
    torch.testing.assert_close(values, kernel.at_angles(great_circle_angle(x[:, None], x[None])))
    torch.testing.assert_close(values.diagonal(), kernel.variance.expand(12))
    torch.testing.assert_close(kernel(x).to_dense(), values)
    assert not kernel.is_stationary
    reach = kernel.effective_range
    if torch.isfinite(reach):
        ratio = kernel.at_angles(reach.reshape(1)) / kernel.variance
        assert ratio.item() == pytest.approx(0.05, abs=1e-9)
    else:
        assert (kernel.at_angles(torch.linspace(0, math.pi, 50, dtype=F64)) > 0.05 * kernel.variance).all()


def test_multiquadric_in_closed_form():
    degree = torch.arange(40, dtype=F64)
    delta = 0.8
    half = 4 * math.pi / (2 * degree + 1) * (1 - delta) * delta**degree
    torch.testing.assert_close(
        SphericalMultiquadric(delta, 0.5).legendre_coefficients(39), half, rtol=1e-9, atol=1e-14
    )
    poisson = 4 * math.pi * (1 - delta) ** 2 / (1 + delta) * delta**degree
    torch.testing.assert_close(
        SphericalMultiquadric(delta, 1.5).legendre_coefficients(39), poisson, rtol=1e-9, atol=1e-14
    )


def test_powered_exponential_and_sine_power_at_their_bounds():
    torch.testing.assert_close(
        SphericalPoweredExponential(1.0, 0.7).legendre_coefficients(50),
        SphericalExponential(0.7).legendre_coefficients(50),
        rtol=1e-10,
        atol=1e-14,
    )
    coefficients = SphericalSinePower(2.0).legendre_coefficients(5)
    expected = torch.tensor([2 * math.pi, 2 * math.pi / 3, 0, 0, 0, 0], dtype=F64)
    torch.testing.assert_close(coefficients, expected)


def test_legendre_matern():
    """Proportional to the spectrum of the SPDE, with the variance asked for; near the plane's for a short
    range.
    """
    kernel = LegendreMatern(1.5, 0.02, 1.7, lmax=3000)
    degree = torch.arange(3001, dtype=F64)
    spectrum = (2 * 1.5 / 0.02**2 + degree * (degree + 1)).pow(-2.5)
    ratio = kernel.legendre_coefficients(3000) / spectrum
    torch.testing.assert_close(ratio, ratio[:1].expand(3001))
    assert kernel.variance.item() == pytest.approx(1.7)
    assert kernel.at_angles(torch.zeros(1, dtype=F64)).item() == pytest.approx(1.7)
    theta = torch.tensor([0.005, 0.02, 0.05], dtype=F64)
    plane = Matern(1.5, 0.02, 1.7).at_lags(theta[:, None])
    torch.testing.assert_close(kernel.at_angles(theta), plane, rtol=2e-3, atol=0)
    padded = LegendreMatern(1.5, 0.5, lmax=10).legendre_coefficients(15)
    assert (padded[11:] == 0).all()
    assert (padded[:11] > 0).all()


@pytest.mark.parametrize(("nu", "angle", "lmax"), [(0.5, 0.5, 50), (1.5, 0.1, 100), (3.0, 0.3, 5)])
def test_share_beyond_the_highest_degree(nu, angle, lmax):
    kept = LegendreMatern(nu, angle, lmax=lmax)._shares().sum()
    degree = torch.arange(2_000_001, dtype=F64)
    every = ((2 * degree + 1) * (1 + degree * (degree + 1) * angle**2 / (2 * nu)).pow(-nu - 1)).sum()
    omitted = LegendreMatern(nu, angle, lmax=lmax).omitted.item()
    assert omitted == pytest.approx((1 - kept / every).item(), rel=2e-3)


def test_series_has_the_spectrum():
    spectrum = torch.tensor([1.0, 0.5, 0.2], dtype=F64)
    kernel = LegendreSeries(spectrum)
    torch.testing.assert_close(
        kernel.legendre_coefficients(4), torch.tensor([1.0, 0.5, 0.2, 0, 0], dtype=F64)
    )
    torch.testing.assert_close(kernel.legendre_coefficients(1), spectrum[:2])
    assert LegendreSeries(spectrum, 3.0).variance.item() == pytest.approx(3.0)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    angle=st.floats(0.02, 10),
    unit=st.floats(0.02, 0.98),
    seed=st.integers(0, 1000),
    which=st.sampled_from(
        ["exponential", "powered", "compact", "askey", "sine", "multiquadric", "chordal", "matern"]
    ),
)
def test_positive_definite(data, angle, unit, seed, which):
    kernel = {
        "exponential": lambda: SphericalExponential(angle),
        "powered": lambda: SphericalPoweredExponential(unit, angle),
        "compact": lambda: SphericalCompact(angle),
        "askey": lambda: SphericalAskey(2 + 3 * unit, angle),
        "sine": lambda: SphericalSinePower(2 * unit),
        "multiquadric": lambda: SphericalMultiquadric(unit, angle),
        "chordal": lambda: Chordal(
            data.draw(st.sampled_from([Matern(1.5, angle), Gaussian(angle), Spherical(angle)]))
        ),
        "matern": lambda: LegendreMatern(unit + 0.1, angle, lmax=20),
    }[which]()
    assert smallest_eigenvalue(kernel, on_sphere(25, seed)) > -1e-12
    assert (kernel.legendre_coefficients(40) >= 0).all()


def test_invalid_functions_are_found_out():
    """Matérn 5/2 of the angle; and it is not positive definite at sites either."""

    class OfTheAngle(SphericalKernel):
        def correlation(self, theta):
            return Gaussian(1.5).correlation(theta / 1.5)

    with pytest.raises(ValueError, match="not positive definite on the sphere"):
        OfTheAngle().legendre_coefficients(40)
    ring = torch.linspace(0, 2 * math.pi, 41, dtype=F64)[:-1]
    x = torch.stack([ring.cos(), ring.sin(), torch.zeros_like(ring)], -1)
    assert smallest_eigenvalue(OfTheAngle(), x) < -1e-4


SMALL = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]], dtype=F64)


@pytest.mark.parametrize(
    "kernel",
    [
        SphericalExponential(0.7, 2.0),
        SphericalPoweredExponential(0.6, 0.7),
        SphericalCompact(1.5),
        SphericalAskey(3.0, 1.5),
        SphericalSinePower(1.3),
        SphericalMultiquadric(0.7, 1.3),
        Chordal(Matern(1.5, 0.6)),
        LegendreMatern(1.2, 0.6, lmax=8),
        LegendreSeries([1.0, 0.4]),
    ],
    ids=lambda k: type(k).__name__,
)
def test_gradients(kernel):
    check_gradients(kernel, lambda k: matrix(k, SMALL))
    check_gradients(kernel, lambda k: k.legendre_coefficients(6), second=False)


def test_batches():
    c, v = torch.tensor([0.4, 0.9, 2.0], dtype=F64), torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    theta = torch.linspace(0, 3, 6, dtype=F64).reshape(2, 3)
    pairs = [
        (
            SphericalExponential(c, v, batch_shape=(3,)),
            [SphericalExponential(a, b) for a, b in zip(c, v, strict=True)],
        ),
        (
            SphericalCompact(c, v, batch_shape=(3,)),
            [SphericalCompact(a, b) for a, b in zip(c, v, strict=True)],
        ),
        (
            SphericalMultiquadric(c / 3, c, v, batch_shape=(3,)),
            [SphericalMultiquadric(a / 3, a, b) for a, b in zip(c, v, strict=True)],
        ),
        (
            SphericalSinePower(c, v, batch_shape=(3,)),
            [SphericalSinePower(a, b) for a, b in zip(c, v, strict=True)],
        ),
        (
            Chordal(Matern(1.5, c[:, None], v, batch_shape=(3,))),
            [Chordal(Matern(1.5, a, b)) for a, b in zip(c, v, strict=True)],
        ),
        (
            LegendreMatern(c, c, v, lmax=9, batch_shape=(3,)),
            [LegendreMatern(a, a, b, lmax=9) for a, b in zip(c, v, strict=True)],
        ),
    ]
    for batched, single in pairs:
        for function in (
            lambda k: k.at_angles(theta),
            lambda k: k.variance,
            lambda k: matrix(k, on_sphere(4)),
            lambda k: k.effective_range,
        ):
            check_batch(batched, single, function)
        apart = torch.stack([k.legendre_coefficients(12) for k in single])
        torch.testing.assert_close(batched.legendre_coefficients(12), apart, rtol=1e-9, atol=1e-12)


def test_sums_products_and_nuggets():
    total = SphericalExponential(0.7, 2.0) + Chordal(Matern(1.5, 0.3)) + Nugget(0.2)
    apart = legendre_coefficients(SphericalExponential(0.7, 2.0), 30) + legendre_coefficients(
        Chordal(Matern(1.5, 0.3)), 30
    )
    torch.testing.assert_close(legendre_coefficients(total, 30), apart)
    x = on_sphere(5)
    assert at_pairs(total, x, x)[0].item() == pytest.approx(3.2)
    assert total.variance.item() == pytest.approx(3.2)
    product = SphericalExponential(0.7, 2.0) * SphericalExponential(0.35)
    torch.testing.assert_close(
        legendre_coefficients(product, 30),
        legendre_coefficients(SphericalExponential(0.7 / 3, 2.0), 30),
        rtol=1e-9,
        atol=1e-13,
    )
    assert (legendre_coefficients(product * Nugget(0.3), 4) == 0).all()
    assert Chordal(Matern() + Nugget(0.3)).nugget.item() == pytest.approx(0.3)
    torch.testing.assert_close(
        Chordal(Matern(1.5, 0.3) + Nugget(0.3)).legendre_coefficients(9),
        Chordal(Matern(1.5, 0.3)).legendre_coefficients(9),
    )
    with pytest.raises(TypeError, match="wrap a kernel of R³ in Chordal"):
        legendre_coefficients(SphericalExponential() + Matern(), 4)


def test_variance_is_set():
    kernel = Chordal(Matern(1.5, 0.3, 2.0))
    kernel.variance = 5.0
    assert kernel.kernel.variance.item() == pytest.approx(5.0)
    kernel = SphericalExponential(0.4)
    kernel.angle = 0.6
    assert kernel.angle.item() == pytest.approx(0.6)


@pytest.mark.parametrize("length", [1e-3, 0.03125, 0.3, 10.0, 1e3])
@pytest.mark.parametrize("family", [Gaussian, Exponential, Spherical])
def test_isotropy_is_judged_at_every_scale(family, length):
    """Where all values but the nearest underflow, too."""
    kernel = family(length)
    assert Chordal(kernel).kernel is kernel
    if length <= 1:
        with pytest.raises(ValueError, match="not isotropic"):
            Chordal(family((length, 2 * length, length)))


def test_refuses():
    for bad in (
        lambda: SphericalPoweredExponential(1.2),
        lambda: SphericalSinePower(2.1),
        lambda: SphericalMultiquadric(1.0),
        lambda: SphericalMultiquadric(0.5, 0.0),
        lambda: SphericalAskey(1.9),
        lambda: SphericalExponential(0.0),
        lambda: SphericalExponential(1.0, -1.0),
        lambda: LegendreMatern(-1.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            bad()
    with pytest.raises(ValueError, match="lmax must be a whole number"):
        LegendreMatern(lmax=-1)
    with pytest.raises(ValueError, match="lmax must be a whole number"):
        SphericalExponential().legendre_coefficients(1.5)
    with pytest.raises(ValueError, match="every c_l must be finite and not negative"):
        LegendreSeries([1.0, -0.1])
    with pytest.raises(ValueError, match="needs sites in R³, got 2"):
        SphericalExponential().at_pairs(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="between 1 and 2"):
        SphericalExponential().at_pairs(torch.eye(3), 2 * torch.eye(3))
    with pytest.raises(ValueError, match="between 0 and 0"):
        SphericalExponential().at_pairs(torch.zeros(1, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="not isotropic"):
        Chordal(Matern(1.5, (1.0, 2.0, 1.0)))
    with pytest.raises(ValueError, match="Askey is positive definite"):
        Chordal(Askey(1.5))
    with pytest.raises(ValueError, match="stationary"):
        Chordal(gpytorch.kernels.LinearKernel())
    with pytest.raises(ValueError, match="sphere, whose sites have 3"):
        SphericalExponential().check_dimension(2)
