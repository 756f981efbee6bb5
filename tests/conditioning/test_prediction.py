"""Kriging on every domain, periodic axes, blocks, and predictions in chunks."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch

import spatialdiff as sd
from spatialdiff.conditioning import Kriging, KrigingWarning, prediction
from spatialdiff.conditioning.pairs import between_lists
from spatialdiff.conditioning.stationary import split_nugget
from spatialdiff.covariance.dense import kernel_matrix
from spatialdiff.kernels import Chordal, Coregionalization, Exponential, Gaussian, Matern, Nugget, at_pairs

F64 = torch.float64
G = torch.Generator().manual_seed(0)
POINTS = torch.rand(14, 2, generator=G, dtype=F64) * 4.0
VALUES = torch.randn(14, generator=G, dtype=F64)
KERNEL = Matern(nu=1.5, lengthscale=1.2, variance=1.4)
ROUGH = Exponential(1.3, variance=1.1) + Nugget(0.3)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KrigingWarning)
        yield


def simple(matrix, seen, values):
    """Mean and covariance of the rest of a field given ``values`` at ``seen`` of its sites."""
    rest = ~seen
    gain = torch.linalg.solve(matrix[seen][:, seen], matrix[seen][:, rest]).T
    return gain @ values, matrix[rest][:, rest] - gain @ matrix[seen][:, rest]


@pytest.mark.parametrize("kernel", [KERNEL, ROUGH], ids=["smooth", "nugget"])
@pytest.mark.parametrize("periodic", [True, (True, False)], ids=["torus", "cylinder"])
def test_distances_wrap_around_periodic_axes(kernel, periodic):
    """Whether the observations, the targets or both are on the torus."""
    grid = sd.Grid((6, 5), spacing=1.0, periodic=periodic)
    matrix = kernel_matrix(kernel, grid).detach()
    seen = torch.rand(30, generator=torch.Generator().manual_seed(3)) > 0.5
    values = torch.randn(int(seen.sum()), generator=torch.Generator().manual_seed(4), dtype=F64)
    mean, exact = simple(matrix, seen, values)
    # the same places, one period further
    shift = torch.tensor([6.0, 5.0 if periodic is True else 0.0], dtype=F64)
    cases = {
        "points to torus": Kriging(kernel, grid.sites()[seen] - shift, values, drift=0.0),
        "torus to torus": Kriging(kernel, grid.masked(seen.reshape(6, 5)), _filled(grid, seen, values), 0.0),
    }
    for k in cases.values():
        found = k.predict(grid)
        torch.testing.assert_close(found.mean.flatten()[seen], values, rtol=0.0, atol=0.0)
        torch.testing.assert_close(found.mean.flatten()[~seen], mean, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found.variance.flatten()[~seen], exact.diagonal(), rtol=1e-9, atol=1e-10)
        covariance = k.covariance(grid).double()
        white = torch.eye(covariance.factor_shape.numel(), dtype=F64)
        root = covariance.color(white).flatten(1)[:, ~seen]
        for gamma in (root.T @ root, covariance.to_dense()[~seen][:, ~seen]):
            torch.testing.assert_close(gamma, exact, rtol=0.0, atol=1e-9)
    torus = cases["torus to torus"]
    at = torus.covariance(grid.sites()[~seen] + shift).double()
    torch.testing.assert_close(at.to_dense(), exact, rtol=0.0, atol=1e-9)
    root = at.color(torch.eye(at.factor_shape.numel(), dtype=F64))
    torch.testing.assert_close(root.T @ root, exact, rtol=0.0, atol=1e-9)


def _filled(grid, seen, values):
    field = torch.zeros(grid.size, dtype=F64)
    field[seen] = values
    return field.reshape(grid.shape)


def test_what_does_not_wrap_around_says_so():
    grid = sd.Grid((6, 5), spacing=1.0, periodic=True)
    with pytest.raises(ValueError, match="does not close"):
        Kriging(KERNEL, POINTS, VALUES, "linear").predict(grid)
    with pytest.raises(ValueError, match="wrap around"):
        Kriging(KERNEL, POINTS, VALUES, method="local").predict(grid)
    with pytest.raises(ValueError, match="the targets on"):
        Kriging(KERNEL, grid, torch.randn(6, 5, generator=G)).predict(sd.Grid((8, 5), 1.0, periodic=True))


@pytest.mark.parametrize(
    "domain",
    [
        sd.Sphere((7, 12)),
        sd.Sphere((6, 12), poles=False),
        sd.Mesh.sphere(1),
    ],
    ids=["poles", "no poles", "mesh"],
)
def test_on_curved_domains_by_the_closed_form(domain):
    kernel = Chordal(Exponential(0.7, variance=1.3)) if isinstance(domain, sd.Sphere) else Exponential(0.7)
    sites = domain.sites()
    seen = torch.zeros(len(sites), dtype=torch.bool)
    # not at the poles, where a site is written many times
    inner = torch.randperm(len(sites) - 24, generator=torch.Generator().manual_seed(5))[:15] + 12
    seen[inner] = True
    values = torch.randn(15, generator=torch.Generator().manual_seed(6), dtype=F64)
    mean, exact = simple(at_pairs(kernel, sites[:, None], sites[None]).detach(), seen, values)
    k = Kriging(kernel, sites[seen], values, drift=0.0)
    found = k.predict(domain)
    assert found.mean.shape == domain.shape
    torch.testing.assert_close(domain.flatten(found.mean)[~seen], mean, rtol=1e-9, atol=1e-10)
    variance = domain.flatten(found.variance)
    torch.testing.assert_close(variance[~seen], exact.diagonal(), rtol=1e-9, atol=1e-10)
    assert float(variance[seen].abs().max()) == 0.0
    covariance = k.covariance(domain).double()
    white = torch.eye(covariance.factor_shape.numel(), dtype=F64)
    root = domain.flatten(covariance.color(white))[:, ~seen]
    torch.testing.assert_close(root.T @ root, exact, rtol=0.0, atol=1e-9)
    ones = domain.unflatten(torch.eye(len(sites), dtype=F64)[~seen])
    applied = domain.flatten(covariance.matmul(ones))[:, ~seen]
    torch.testing.assert_close(applied, exact, rtol=0.0, atol=1e-9)


def test_a_pole_is_one_observation():
    sphere, kernel = sd.Sphere((5, 6)), Chordal(Exponential(0.7))
    field = torch.randn(5, 6, generator=torch.Generator().manual_seed(8), dtype=F64)
    field[0], field[-1] = 0.4, -0.3
    k = Kriging(kernel, sphere, field)
    assert len(k.place) == 3 * 6 + 2
    torch.testing.assert_close(k.predict(sphere).mean, field, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("drift", ["constant", "linear", "quadratic", lambda s: s[:, :1].sin()])
def test_chunks_are_the_whole(monkeypatch, drift):
    k = Kriging(ROUGH, POINTS, torch.stack((VALUES, VALUES.cos())), drift, noise=0.1)
    targets = torch.rand(57, 2, generator=torch.Generator().manual_seed(1), dtype=F64) * 4.0
    whole, blocks = k.predict(targets), k.predict(targets, block=0.3)
    drawn = k.simulate(2, sd.Points(targets), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(prediction, "_ENTRIES", 14 * 16 * 10)
    monkeypatch.setattr("spatialdiff.conditioning.conditional._HELD", 0)
    for before, after in ((whole, k.predict(targets)), (blocks, k.predict(targets, block=0.3))):
        torch.testing.assert_close(after.mean, before.mean)
        torch.testing.assert_close(after.variance, before.variance)
    again = k.simulate(2, sd.Points(targets), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(again, drawn)


@pytest.mark.parametrize("drift", ["constant", "quadratic", lambda s: s.square()])
def test_a_block_is_the_average_of_its_points(drift):
    """Mean and variance of an average of many points, from their joint kriging covariance."""
    k = Kriging(KERNEL, POINTS, VALUES, drift, noise=0.05)
    fine = (torch.arange(40, dtype=F64) + 0.5) / 40.0 - 0.5
    shifts = torch.cartesian_prod(0.8 * fine, 0.5 * fine)
    centre = torch.tensor([[1.7, 2.1]], dtype=F64)
    average = k.predict(centre + shifts)
    found = k.predict(centre, block=(0.8, 0.5), nodes=6)
    # the midpoint rule's error
    torch.testing.assert_close(found.mean[0], average.mean.mean(), rtol=0.0, atol=1e-4)
    points = centre + shifts[::7]
    joint = k.covariance(points).to_dense()
    torch.testing.assert_close(found.variance[0], joint.mean(), rtol=0.05, atol=0.0)
    assert float(found.variance[0]) < float(average.variance.mean())


def test_a_block_of_a_nugget_alone_is_its_mean():
    found = Kriging(Nugget(0.5), POINTS, VALUES).predict(POINTS[:3], block=0.2)
    torch.testing.assert_close(found.mean, VALUES.mean().expand(3))
    torch.testing.assert_close(found.variance, torch.full((3,), 0.5 / 14, dtype=F64))


def test_blocks_of_channels_are_those_of_each():
    kernel = Coregionalization([([[1.0, 0.0], [0.0, 2.0]], KERNEL)])
    both = Kriging(kernel, POINTS, torch.stack((VALUES, VALUES.sin()))).predict(POINTS[:4], block=0.5)
    alone = Kriging(KERNEL, POINTS, VALUES.sin()).predict(POINTS[:4], block=0.5)
    torch.testing.assert_close(both.mean[1], alone.mean)
    torch.testing.assert_close(both.variance[1], 2.0 * alone.variance)


def test_data_are_returned_bit_by_bit():
    k = Kriging(ROUGH, POINTS, torch.stack((VALUES, VALUES.square())), "linear")
    mean, variance = k.predict(POINTS)
    assert torch.equal(mean, torch.stack((VALUES, VALUES.square())))
    assert float(variance.abs().max()) == 0.0


def test_a_mixture_of_exact_and_noisy_observations():
    noise = torch.zeros(14, dtype=F64)
    noise[::2] = 0.2
    mean, variance = Kriging(KERNEL, POINTS, VALUES, noise=noise).predict(POINTS)
    assert torch.equal(mean[1::2], VALUES[1::2])
    assert float(variance[1::2].abs().max()) == 0.0
    assert float(variance[::2].min()) > 0.0


def test_single_precision_data_are_kriged_in_double():
    single = Kriging(KERNEL, POINTS.float(), VALUES.float()).predict(POINTS[:3].float() + 0.1)
    double = Kriging(KERNEL, POINTS, VALUES).predict(POINTS[:3] + 0.1)
    assert single.mean.dtype == F64
    torch.testing.assert_close(single.mean, double.mean, rtol=1e-5, atol=1e-5)


def test_coefficients_are_those_of_generalised_least_squares():
    k = Kriging(KERNEL, POINTS, VALUES, lambda s: torch.stack((torch.ones(len(s)), s[:, 0]), 1), noise=0.3)
    f = torch.stack((torch.ones(14, dtype=F64), POINTS[:, 0]), dim=1)
    inverse = torch.linalg.inv(at_pairs(KERNEL, POINTS[:, None], POINTS[None]).detach() + 0.3 * torch.eye(14))
    covariance = torch.linalg.inv(f.T @ inverse @ f)
    torch.testing.assert_close(k.coefficient_covariance, covariance)
    torch.testing.assert_close(k.coefficients, covariance @ f.T @ inverse @ VALUES)


def test_a_kernel_that_is_no_covariance_is_refused():
    """The Gaussian of great-circle distance is not positive definite."""

    class OnCircle(Gaussian):
        def at_lags(self, h):
            around = torch.remainder(h, 1.0)
            return super().at_lags(torch.minimum(around, 1.0 - around))

    circle = torch.arange(24, dtype=F64).unsqueeze(1) / 24.0
    with pytest.raises(ValueError, match="negative eigenvalue"):
        Kriging(OnCircle(0.5), circle, torch.randn(24, generator=G))


def test_equal_values_are_a_warning():
    for values in (torch.full((14,), 3.0), torch.stack((VALUES, torch.ones(14, dtype=F64)))):
        with pytest.warns(KrigingWarning, match="values are equal"):
            Kriging(KERNEL, POINTS, values).predict(POINTS)


@pytest.mark.parametrize(
    "kernel",
    [
        *(Matern(nu=nu, lengthscale=0.7, variance=1.3) + Nugget(0.2) for nu in (0.5, 1.5, 2.5)),
        Gaussian([0.5, 0.9]) + Exponential(0.4),
        Matern(nu=0.8, lengthscale=0.5) + Exponential(0.3),
        Gaussian(0.5) * Exponential(2.0),
    ],
    ids=lambda kernel: repr(kernel)[:30],
)
def test_compiled_pairs_are_the_kernel(kernel):
    rows, columns = (
        torch.rand(n, 2, generator=torch.Generator().manual_seed(n), dtype=F64) for n in (400, 300)
    )
    smooth, _ = split_nugget(kernel)
    exact = at_pairs(smooth, rows[:, None], columns[None]).detach()
    torch.testing.assert_close(between_lists(smooth, rows, columns), exact, rtol=1e-13, atol=1e-15)


def test_without_numba_the_values_are_the_same(monkeypatch):
    rows = torch.rand(300, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    compiled = between_lists(KERNEL, rows, rows)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "spatialdiff.conditioning.pairs_compiled", None)
    torch.testing.assert_close(between_lists(KERNEL, rows, rows), compiled, rtol=1e-13, atol=1e-15)
