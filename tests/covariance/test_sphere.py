"""Isotropic fields on the sphere: every pair of sites, poles, kernels of the chord and of the angle."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance.compositions import composite
from spatialdiff.covariance.spheres.sphere import SphereCovariance, at_separation
from spatialdiff.domains.sphere import Sphere
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget
from spatialdiff.kernels.spherical_families import SphericalExponential

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

B = [[1.0, 0.3], [0.3, 0.5]]


class TestEquiangular(CovarianceCase):
    grid = Sphere((5, 6), poles=False)

    def kernel(self):
        return Matern(nu=1.5, lengthscale=0.8, variance=1.7) + Nugget(0.2)

    def build(self, kernel):
        return SphereCovariance(kernel, self.grid, self.channels)


class TestGaussLegendre(TestEquiangular):
    grid = Sphere((4, 5), "gauss_legendre", radius=2.0)

    def kernel(self):
        return Exponential(1.1, 1.4)


class TestChannels(TestEquiangular):
    grid = Sphere((3, 4), poles=False)
    channels = B


class TestOneLatitude(TestEquiangular):
    grid = Sphere((1, 7), poles=False)
    channels = 2


class TestAngle(TestEquiangular):
    """A kernel of the great-circle angle, alone and in a sum with one of the chord."""

    grid = Sphere((4, 5), "gauss_legendre", radius=3.0)

    def kernel(self):
        return SphericalExponential(0.8, 1.3) + Matern(1.5, 2.0, 0.4)


def sites_of(sphere):
    """Indices of the different sites among the entries of a field, each pole once."""
    rows, columns = sphere.shape
    return torch.tensor([0, *range(columns, (rows - 1) * columns), rows * columns - 1])


@pytest.mark.parametrize("shape", [(5, 6), (4, 3), (2, 5), (7, 1)])
def test_poles_are_one_site_each(shape):
    sphere = Sphere(shape)
    kernel = (Matern(1.5, 0.7, 1.7) + Nugget(0.2)).requires_grad_(False)
    gamma = SphereCovariance(kernel, sphere, channels=2).double()
    matrix = pairwise(kernel, sphere)
    index = sites_of(sphere)
    once = matrix[index[:, None], index]
    assert len(once) == sphere.size
    torch.testing.assert_close(
        gamma.to_dense(), torch.kron(torch.eye(2).double(), matrix), rtol=0, atol=1e-12
    )
    x = gamma.sample((3,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(x[..., [0, -1], :], x[..., [0, -1], :1].expand(3, 2, 2, shape[1]))
    m = gamma.factor_shape.numel()
    root = gamma.color(torch.eye(m, dtype=torch.float64).reshape(m, *gamma.factor_shape)).flatten(1).T
    torch.testing.assert_close(root @ root.T, gamma.to_dense(), rtol=0, atol=1e-12)
    law = torch.distributions.MultivariateNormal(torch.zeros(len(once), dtype=torch.float64), once)
    values = law.log_prob(x.flatten(-2)[..., index]).sum(-1)
    torch.testing.assert_close(gamma.log_prob(x), values, rtol=1e-10, atol=0)
    assert gamma.log_det().item() == pytest.approx(2 * torch.logdet(once).item(), abs=1e-10)
    torch.testing.assert_close(gamma.matmul(gamma.solve(x)), x, rtol=0, atol=1e-11)


def test_poles_refuse_what_has_no_meaning():
    gamma = SphereCovariance(Matern(1.5, 0.7), Sphere((5, 6))).requires_grad_(False)
    with pytest.raises(ValueError, match=r"poles=False.*Gauss-Legendre"):
        gamma.whiten(torch.zeros(5, 6))
    for operation in (gamma.solve, gamma.quad_form, gamma.log_prob):
        with pytest.raises(
            ValueError, match=r"values along a pole differ by up to .* are one site.*poles=False"
        ):
            operation(torch.randn(5, 6, dtype=torch.float64))
    operation(torch.ones(5, 6))


@pytest.mark.parametrize("grid", ["equiangular", "gauss_legendre"])
@pytest.mark.parametrize("kernel", [Exponential(0.3, 2.0), Matern(2.5, 0.3, 2.0), Gaussian(0.4, 2.0)])
def test_variance_at_the_pole_and_at_the_equator(grid, kernel):
    """Of the root that samples go through, at every latitude, sites close together at the pole included."""
    sphere = Sphere((61, 120), grid)
    gamma = SphereCovariance(kernel, sphere).requires_grad_(False)
    rows = torch.zeros(sphere.shape[0], dtype=torch.float64)
    # R is block-circulant: the first longitude of each row of the field against all of the white noise
    field = torch.zeros(sphere.shape[0], *sphere.shape, dtype=torch.float64)
    field[range(len(field)), range(len(field)), 0] = 1
    root = gamma._factor("root") * ~gamma.void_.unsqueeze(-1)
    adjoint = gamma._by_order(field, lambda columns: root.mT @ columns)
    rows = adjoint.square().sum((-1, -2))
    assert (rows - 2.0).abs().max().item() < 1e-12
    assert gamma.report.error_bound <= 2e-11
    assert gamma.report.exact


def test_statistics_of_a_large_field():
    """Mean square over a row, at a pole and at the equator, within what Γ itself implies."""
    sphere, count = Sphere((181, 360)), 400
    kernel = Matern(1.5, 0.2).requires_grad_(False)
    x = SphereCovariance(kernel, sphere).sample((count,), generator=torch.Generator().manual_seed(5)).double()
    for row in (0, 1, 45, 90, 180):
        longitude = sphere.longitudes
        chord = 2 * sphere.cosines[row] * (longitude / 2).sin().abs()
        rho = kernel.at_lags(torch.stack([chord, 0 * chord, 0 * chord], -1))
        spread = (2 * rho.square().mean().item() / count) ** 0.5
        assert abs(x[:, row].square().mean().item() - 1) < 5 * spread


def test_gradients_in_pieces(monkeypatch):
    """A Γ that is built chunk by chunk, each computed again in the backward pass, has the same gradient."""
    gradients = []
    for chunk in (10**6, 7):
        monkeypatch.setattr(sys.modules[SphereCovariance.__module__], "_CHUNK", chunk)
        kernel = Matern(1.5, 0.7)
        gamma = SphereCovariance(kernel, Sphere((6, 5), poles=False))
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        gamma.log_prob(x).backward()
        gradients.append(kernel.raw_lengthscale.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert gradients[0].abs().item() > 0.1


def test_separation():
    """Central angle and chord, at the antipode too, where an arc cosine would lose half of the digits."""
    seen = []

    class Angle(Matern):
        def at_angles(self, theta):
            seen.append(theta)
            return theta

    angle = torch.tensor([0.0, 1e-9, 1.0, math.pi - 1e-9, math.pi], dtype=torch.float64)
    half = angle / 2
    cosine2 = ((math.pi - angle) / 2).sin().square()
    torch.testing.assert_close(
        at_separation(Angle(), half.sin().square(), cosine2, 1.0), angle, rtol=1e-15, atol=0
    )
    kernel = Exponential(1.0).requires_grad_(False)
    value = at_separation(kernel, half.sin().square(), cosine2, 3.0)
    torch.testing.assert_close(value, torch.exp(-6 * half.sin()), rtol=1e-14, atol=0)


def test_refuses():
    sphere = Sphere((5, 6), poles=False)
    with pytest.raises(TypeError, match="needs a Sphere, got Grid"):
        SphereCovariance(Matern(), sd.Grid(4))
    with pytest.raises(ValueError, match="not isotropic"):
        SphereCovariance(Matern(1.5, (1.0, 1.0, 0.5)), sphere)
    with pytest.raises(ValueError, match="3 axes"):
        SphereCovariance(Matern(1.5, (1.0, 0.5)), sphere)
    with pytest.raises(TypeError, match="needs a kernel"):
        SphereCovariance(torch.eye(30), sphere)


def test_singular_to_working_precision():
    gamma = SphereCovariance(Gaussian(0.9), Sphere((13, 24), poles=False)).requires_grad_(False)
    assert torch.isfinite(gamma.sample((2,))).all()
    assert 0 < gamma.report.error_bound <= 1e-11
    for operation in (
        gamma.log_det,
        lambda: gamma.solve(torch.ones(13, 24)),
        lambda: gamma.whiten(torch.ones(13, 24)),
    ):
        with pytest.raises(ValueError, match=r"singular to working precision.*Nugget"):
            operation()


def test_length_scales_are_in_units_of_the_radius():
    with pytest.warns(UserWarning, match="below the spacing"):
        SphereCovariance(Matern(1.5, 0.5), Sphere((19, 36), radius=6371.0))
    with pytest.warns(UserWarning, match="beyond the diameter"):
        SphereCovariance(Matern(1.5, 500.0), Sphere((19, 36)))


NUGGET, SMOOTH = Nugget(0.5), Matern(1.5, 0.7, 1.7)


@pytest.mark.parametrize(
    "build",
    [
        lambda s: sd.covariance(NUGGET, s, channels=2),
        lambda s: sd.white(s, channels=torch.tensor([[1.0, 0.4], [0.4, 2.0]])),
        lambda s: sd.covariance(SMOOTH, s, channels=2) + sd.white(s, variance=0.1),
        lambda s: sd.covariance(SMOOTH, s, channels=2).scaled(
            torch.linspace(0.5, 2.0, 5)[:, None].expand(5, 6)
        ),
    ],
)
def test_white_noise_and_compositions_have_a_pole_once(build):
    sphere = Sphere((5, 6))
    gamma = build(sphere).double().requires_grad_(False)
    matrix, index = gamma.to_dense(), sites_of(sphere)
    index = torch.cat([index, 30 + index])
    once = matrix[index[:, None], index]
    x = gamma.sample((3,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x[..., [0, -1], :], x[..., [0, -1], :1].expand(3, 2, 2, 6), rtol=0, atol=1e-12)
    m = gamma.factor_shape.numel()
    root = gamma.color(torch.eye(m, dtype=torch.float64).reshape(m, *gamma.factor_shape)).flatten(1).T
    torch.testing.assert_close(root @ root.T, matrix, rtol=0, atol=1e-12)
    law = torch.distributions.MultivariateNormal(torch.zeros(len(once), dtype=torch.float64), once)
    torch.testing.assert_close(gamma.log_prob(x), law.log_prob(x.flatten(1)[:, index]), rtol=1e-10, atol=0)
    torch.testing.assert_close(gamma.log_det(), torch.logdet(once))
    torch.testing.assert_close(gamma.matmul(gamma.solve(x)), x, rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="along a pole differ"):
        gamma.solve(torch.randn(2, 5, 6, dtype=torch.float64))


def test_compositions_by_iteration_have_a_pole_once(monkeypatch):
    sphere = Sphere((5, 6))
    gamma = (sd.covariance(SMOOTH, sphere) + sd.white(sphere, variance=0.1)).double().requires_grad_(False)
    x = gamma.sample((3,), generator=torch.Generator().manual_seed(0))
    exact, solved = gamma.log_det(), gamma.solve(x)
    monkeypatch.setattr(composite, "DENSE_ENTRIES", 1)
    torch.testing.assert_close(gamma.solve(x), solved, rtol=0, atol=1e-5)
    assert abs(gamma.log_det() - exact) < 5 * gamma.log_det_standard_error() + 1e-9


def test_gaussian_oracle_with_poles():
    sphere = Sphere((5, 6))
    data = sd.covariance(Matern(1.5, 1.0), sphere).double().requires_grad_(False)
    process = sd.VP(sd.covariance(SMOOTH, sphere).double().requires_grad_(False))
    oracle = sd.oracles.GaussianDenoiser(process, data)
    t = torch.tensor([0.4], dtype=torch.float64)
    u = data.sample((1, 1), generator=torch.Generator().manual_seed(0))
    phi, sigma = process.marginal(t)
    index = sites_of(sphere)
    c, g = (v.to_dense()[index[:, None], index] for v in (data, process.covariance))
    phi, sigma = phi.squeeze(), sigma.squeeze()
    expected = phi * c @ torch.linalg.solve(phi**2 * c + sigma * g, u.flatten()[index])
    found = oracle(u, t)
    torch.testing.assert_close(found.flatten()[index], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found[..., [0, -1], :], found[..., [0, -1], :1].expand(1, 1, 2, 6))
    assert oracle.gaussian.noise_range()[0] > 1e-3
