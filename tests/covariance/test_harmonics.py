"""Spherical harmonics: orthonormal, stable near the poles; fields with the spectrum that was prescribed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance.spheres.harmonics import Harmonics
from spatialdiff.covariance.spheres.legendre import associated_legendre, first_index, legendre_polynomials
from spatialdiff.covariance.spheres.sphere import SphereCovariance
from spatialdiff.covariance.spheres.spherical_spectrum import HarmonicCovariance
from spatialdiff.domains.sphere import Sphere
from spatialdiff.kernels import Matern
from spatialdiff.kernels.spherical_families import SphericalExponential

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")


def series(spectrum, sphere):
    """``Σ (2l+1)/(4π) C_l P_l(cos γ)`` for all pairs of entries."""
    sites = sphere.coordinates().reshape(-1, 3) / sphere.radius
    degree = torch.arange(spectrum.shape[-1], dtype=torch.float64)
    polynomials = legendre_polynomials(len(degree) - 1, (sites @ sites.T).clamp(-1, 1))
    return torch.einsum("...l,lij->...ij", spectrum * (2 * degree + 1) / (4 * math.pi), polynomials)


class TestHarmonic(CovarianceCase):
    """A rough kernel, cut off at a degree beyond what the grid resolves: orders coincide on it."""

    grid = Sphere((3, 4), poles=False)
    invertible_root = False
    has_log_det = True

    def kernel(self):
        return SphericalExponential(0.8, 1.7)

    def build(self, kernel):
        return HarmonicCovariance(kernel, self.grid, self.channels, lmax=11)

    def spatial(self, kernel):
        return series(kernel.legendre_coefficients(11), self.grid)

    def test_whiten_inverts_color(self, gamma):
        with pytest.raises(ValueError, match=r"whiten: .*has no inverse.*SphereCovariance"):
            gamma.whiten(self.fields(gamma))


class TestHarmonicChannels(TestHarmonic):
    grid = Sphere((4, 3), "gauss_legendre", radius=2.0)
    channels = 2


def test_associated_legendre():
    """Against scipy up to degree 8, and the addition theorem near a pole up to degree 720."""
    x = torch.tensor([0.3, -0.2, 0.0, 1.0, 0.9999], dtype=torch.float64)
    table = associated_legendre(8, x, (1 - x * x).sqrt())
    for m in range(9):
        for degree in range(m, 9):
            rise = degree - m
            row = first_index(8, m) + rise // 2 + ((8 - m) // 2 + 1 if rise % 2 else 0)
            ratio = math.factorial(degree - m) / math.factorial(degree + m)
            expected = math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio) * (-1) ** m
            expected = expected * scipy.special.lpmv(m, degree, x.numpy())
            assert np.abs(table[row].numpy() - expected).max() < 1e-13
    lmax = 720
    latitude = torch.tensor([89.99, 89.5, 88.0, 45.0, 0.0], dtype=torch.float64).deg2rad()
    table = associated_legendre(lmax, latitude.sin(), latitude.cos())
    total = torch.zeros(lmax + 1, len(latitude), dtype=torch.float64)
    for m in range(lmax + 1):
        rows = table[first_index(lmax, m) : first_index(lmax, m + 1)].square() * (2 if m else 1)
        total[m::2] += rows[: (lmax - m) // 2 + 1]
        total[m + 1 :: 2] += rows[(lmax - m) // 2 + 1 :]
    degree = torch.arange(lmax + 1, dtype=torch.float64)[:, None]
    ratio = total * 4 * math.pi / (2 * degree + 1)
    # the derivative of P_l at 1 is l(l+1)/2, and the sine of the latitude is rounded
    tolerance = lmax**2 * torch.finfo(torch.float64).eps
    torch.testing.assert_close(ratio, torch.ones_like(total), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("sphere", "lmax"),
    [
        (Sphere((9, 17), "gauss_legendre", radius=3.0), 8),
        (Sphere((8, 16), "gauss_legendre"), 7),
        (Sphere((17, 18)), 8),
        (Sphere((18, 17), poles=False), 8),
        (Sphere((2, 3)), 0),
    ],
)
def test_harmonics_are_orthonormal(sphere, lmax):
    basis = Harmonics(sphere, lmax)
    count = (lmax + 1) ** 2
    unit = torch.eye(count, dtype=torch.float64).reshape(count, lmax + 1, lmax + 1)
    functions = basis.synthesis(unit)
    weighted = functions * sphere.weights / sphere.radius**2
    gram = weighted.flatten(1) @ functions.flatten(1).T
    torch.testing.assert_close(gram, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.analysis(functions), unit, rtol=0, atol=1e-12)
    torch.testing.assert_close(functions[0], torch.full_like(functions[0], 0.5 / math.sqrt(math.pi)))


def test_a_known_harmonic():
    sphere = Sphere((7, 12), poles=False)
    coefficients = torch.zeros(3, 3, dtype=torch.float64)
    coefficients[0, 1] = 1.0  # the sine of order 1 and degree 1
    x = sphere.coordinates()[..., 1] * math.sqrt(3 / (4 * math.pi))
    torch.testing.assert_close(Harmonics(sphere, 2).synthesis(coefficients), x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "sphere", [Sphere((5, 6)), Sphere((4, 3)), Sphere((1, 1), poles=False), Sphere((6, 5))]
)
def test_every_pair_of_sites(sphere):
    """Degrees up to 13 on grids that resolve 2: nothing is lost, at the poles either."""
    spectrum = 1 / (1.0 + torch.arange(14, dtype=torch.float64)) ** 2
    gamma = SphereCovariance.from_spectrum(sphere, spectrum).double()
    expected = series(spectrum, sphere)
    m = gamma.factor_shape.numel()
    root = gamma.color(torch.eye(m, dtype=torch.float64).reshape(m, *gamma.factor_shape)).flatten(1).T
    torch.testing.assert_close(root @ root.T, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gamma.to_dense(), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gamma.variance().flatten(), expected.diagonal(), rtol=0, atol=1e-13)
    assert gamma.report.exact


def test_spectrum_of_samples():
    """``Σ_m |a_lm|²`` of N fields is ``C_l χ²`` with ``N (2l+1)`` degrees of freedom, ``l = 0`` included."""
    lmax, count = 24, 200
    spectrum = 3.0 / (1.0 + torch.arange(lmax + 1, dtype=torch.float64)) ** 2.5
    sphere = Sphere((25, 49), "gauss_legendre")
    gamma = HarmonicCovariance(spectrum, sphere).double()
    x = gamma.sample((count,), generator=torch.Generator().manual_seed(6))
    found = gamma.harmonics.power(x).mean(0)
    freedom = count * (2 * torch.arange(lmax + 1, dtype=torch.float64) + 1)
    assert ((found / spectrum - 1) / (2 / freedom).sqrt()).abs().max().item() < 4.5


def test_spectrum_of_an_exact_kernel_field():
    """Samples of `SphereCovariance` have the kernel's coefficients, where the grid resolves them."""
    kernel = SphericalExponential(0.5, 2.0).requires_grad_(False)
    sphere, count, lmax = Sphere((80, 160), "gauss_legendre"), 200, 12
    x = SphereCovariance(kernel, sphere).double().sample((count,), generator=torch.Generator().manual_seed(8))
    found = Harmonics(sphere, lmax).power(x).mean(0)
    spectrum = kernel.legendre_coefficients(lmax)
    freedom = count * (2 * torch.arange(lmax + 1, dtype=torch.float64) + 1)
    # degrees above 147 alias into these by quadrature: some 1e-3 of each
    assert ((found / spectrum - 1).abs() < 4.5 * (2 / freedom).sqrt() + 3e-3).all()


def test_truncation_is_reported():
    kernel = Matern(1.5, 0.5, 1.7).requires_grad_(False)
    sphere = Sphere((6, 8))
    errors = []
    for lmax in (10, 40, 160):
        gamma = HarmonicCovariance(kernel, sphere, lmax=lmax)
        error = (gamma.to_dense() - pairwise(kernel, sphere)).abs().max().item()
        assert not gamma.report.exact
        assert error == pytest.approx(gamma.report.error_bound, rel=1e-3)
        errors.append(error)
    assert errors[0] > 50 * errors[2]


def test_learned_spectrum():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64))
    gamma = HarmonicCovariance(parameter, Sphere((3, 4)))
    gamma.variance()[0, 0].backward()
    expected = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64) / (4 * math.pi)
    torch.testing.assert_close(parameter.grad, expected)


def test_refuses():
    sphere = Sphere((6, 8), poles=False)
    low = HarmonicCovariance(torch.ones(3, dtype=torch.float64), sphere)
    for operation in (low.log_det, lambda: low.solve(torch.ones(6, 8))):
        with pytest.raises(ValueError, match=r"singular: 9 harmonics .* on 48 sites"):
            operation()
    for bad in (torch.tensor([1.0, -1.0]), torch.tensor([math.nan]), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="finite and non-negative"):
            HarmonicCovariance(bad, sphere)
    with pytest.raises(ValueError, match="0 at every degree"):
        HarmonicCovariance(torch.zeros(4), sphere)
    with pytest.raises(ValueError, match="give lmax"):
        HarmonicCovariance(Matern(), sphere)
    with pytest.raises(ValueError, match="its own length"):
        HarmonicCovariance(torch.ones(3), sphere, lmax=2)
    with pytest.raises(ValueError, match="coefficients up to degree 2"):
        Harmonics(sphere, 3).analysis(torch.ones(6, 8))
    with pytest.raises(ValueError, match="whole number"):
        Harmonics(sphere, -1)


def test_a_spectrum_per_channel():
    sphere = Sphere((5, 8))
    spectra = torch.tensor([[1.0, 0.5, 0.2], [0.3, 0.0, 2.0]], dtype=torch.float64)
    gamma = sd.covariance(spectrum=spectra, domain=sphere, method="sphere").double()
    expected = torch.block_diag(*series(spectra, sphere))
    torch.testing.assert_close(gamma.to_dense(), expected, rtol=0, atol=1e-12)
    m = gamma.factor_shape.numel()
    root = gamma.color(torch.eye(m, dtype=torch.float64).reshape(m, *gamma.factor_shape)).flatten(1).T
    torch.testing.assert_close(root @ root.T, expected, rtol=0, atol=1e-12)
    assert sd.covariance(spectrum=spectra, domain=sphere, channels=2, method="sphere").sample(3).shape == (
        3,
        2,
        5,
        8,
    )
    for channels in (3, torch.eye(2)):
        with pytest.raises(ValueError, match="independent channels along; leave channels out"):
            sd.covariance(spectrum=spectra, domain=sphere, channels=channels, method="sphere")
    with pytest.raises(ValueError, match="one Parameter each"):
        sd.covariance(spectrum=torch.nn.Parameter(spectra), domain=sphere, method="sphere")
    with pytest.raises(TypeError, match="must be a tensor, got list"):
        sd.covariance(spectrum=[1.0, 2.0], domain=sphere, method="sphere")
