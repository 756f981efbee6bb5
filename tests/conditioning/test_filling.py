"""Filling of missing cells against dense kriging, and at sizes where only conjugate gradients reach."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.conditioning.filling import fill
from spatialdiff.kernels import Gaussian, Matern, Nugget

NAN = float("nan")
SMOOTH = Matern(nu=1.5, lengthscale=2.0)


def dense(kernel, grid, y, noise, drift):
    """Mean and covariance of the whole field by inverses."""
    k = sd.covariance(kernel, grid, method="dense").to_dense().detach()
    o = ~y.isnan().flatten()
    x = grid.coordinates().reshape(-1, grid.ndim)
    one = torch.ones(len(x), 1, dtype=torch.float64)
    f = {None: one[:, :0], "constant": one, "linear": torch.cat([one, x], 1)}[drift]
    inverse = torch.linalg.inv(k[o][:, o] + torch.diag(noise.expand(grid.shape).flatten()[o]))
    s = torch.linalg.inv(f[o].T @ inverse @ f[o])
    data = y.flatten()[o]
    beta = s @ f[o].T @ inverse @ data
    mean = f @ beta + k[:, o] @ inverse @ (data - f[o] @ beta)
    rest = f - k[:, o] @ inverse @ f[o]
    covariance = k - k[:, o] @ inverse @ k[o] + rest @ s @ rest.T
    return mean.reshape(grid.shape), covariance


def gappy(grid, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *grid.shape, generator=generator, dtype=torch.float64)
    x[torch.rand(x.shape, generator=generator) < 0.3] = NAN
    x[-1, 3 : grid.shape[0] - 3] = NAN
    return x


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(
    ("grid", "drift"),
    [
        (sd.Grid((13, 11), (1.0, 0.8)), None),
        (sd.Grid((13, 11), (1.0, 0.8)), "constant"),
        (sd.Grid((13, 11), (1.0, 0.8)), "linear"),
        (sd.Grid((12, 10), 1.0, periodic=True), "constant"),
        (sd.Grid((12, 10), 1.0, periodic=(True, False)), "constant"),
        (sd.Grid(60, 0.5), "linear"),
    ],
)
def test_fields_with_gaps_of_their_own_are_kriged_exactly(grid, drift, noise):
    kernel = SMOOTH + Nugget(0.05)
    fields = gappy(grid)
    errors = torch.tensor(noise, dtype=torch.float64)
    result = fill(fields, kernel, grid, drift=drift, noise=noise, tolerance=1e-12)
    assert result.variance_from == "exact"
    for y, mean, variance in zip(fields, result.mean, result.variance, strict=True):
        wanted, covariance = dense(kernel, grid, y, errors, drift)
        assert torch.allclose(mean, wanted, rtol=0, atol=1e-9)
        assert torch.allclose(variance.flatten(), covariance.diagonal(), rtol=0, atol=1e-10)
        if not noise:
            seen = ~y.isnan()
            assert torch.equal(mean[seen], y[seen])
            assert float(variance[seen].abs().max()) == 0


def test_draws_have_the_conditional_law():
    grid, kernel = sd.Grid((5, 4), 1.0), Matern(nu=0.5, lengthscale=2.0)
    y = gappy(grid, 1, seed=4)[0]
    y[0, 0] = 1.3
    noise = torch.linspace(0.0, 0.6, 20, dtype=torch.float64).reshape(5, 4)
    count = 20_000
    result = fill(
        y, kernel, grid, noise=noise, n=count, generator=torch.Generator().manual_seed(1), tolerance=1e-10
    )
    mean, covariance = dense(kernel, grid, y, noise, "constant")
    drawn = (result.samples - mean).flatten(1)
    found = drawn.T @ drawn / count
    variance = covariance.diagonal().clamp_min(0)
    error = ((variance[:, None] * variance + covariance.square()) / count).sqrt() + 1e-9
    assert float(((found - covariance) / error).abs().max()) < 4.5
    assert float((drawn.mean(0).abs() / ((variance / count).sqrt() + 1e-9)).max()) < 4.5
    # cell 0 has no error: every draw honours it
    assert not bool(y[0, 0].isnan())
    assert float((result.samples[:, 0, 0] - y[0, 0]).abs().max()) == 0


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("kernel", [Matern(nu=1.5, lengthscale=9.0), Matern(nu=0.5, lengthscale=15.0)])
def test_half_of_a_large_grid_missing_without_noise(kernel, periodic):
    grid = sd.Grid((160, 120), 1.0, periodic=periodic)
    method = "torus" if periodic else "circulant"
    truth = (
        sd.covariance(kernel, grid, method=method).double().sample(generator=torch.Generator().manual_seed(3))
    )
    truth = truth.detach()
    y = truth.clone()
    y[40:120] = NAN
    y[torch.rand(grid.shape, generator=torch.Generator().manual_seed(4)) < 0.3] = NAN
    seen = ~y.isnan()
    result = fill(y, kernel, grid, n=2, generator=torch.Generator().manual_seed(5), tolerance=1e-9)
    assert torch.equal(result.mean[seen], y[seen])
    assert torch.equal(result.samples[:, seen], y[seen].expand(2, -1))
    assert result.variance_from == "simulation"
    # as good as kriging is: the errors have the variance that the draws show
    gap = (truth - result.mean)[~seen]
    draws = (result.samples - result.mean)[:, ~seen]
    assert 0.5 < float(gap.square().mean() / draws.square().mean()) < 2.0
    # and near the data they are small
    few = truth[:40][~seen[:40]] - result.mean[:40][~seen[:40]]
    assert float(few.square().mean()) < 0.1


def test_the_gap_is_filled_as_by_kriging_from_all_cells_around_it():
    """A hole in a 1-D exponential field: Markov, so that only the two cells at its ends count."""
    grid, ell = sd.Grid(400, 1.0), 20.0
    y = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y[100:300] = NAN
    result = fill(y, Matern(nu=0.5, lengthscale=ell), grid, drift=None, tolerance=1e-12)
    x = torch.arange(100, 300, dtype=torch.float64)
    left, right = (x - 99) / ell, (300 - x) / ell
    whole = math.sinh(201 / ell)
    wanted = (torch.sinh(right) * y[99] + torch.sinh(left) * y[300]) / whole
    assert torch.allclose(result.mean[100:300], wanted, rtol=0, atol=1e-9)
    variance = 2 * torch.sinh(left) * torch.sinh(right) / whole
    assert torch.allclose(result.variance[100:300], variance, rtol=0, atol=1e-9)


def test_a_mask_in_place_of_nan_and_drift_functions():
    grid = sd.Grid((9, 8), 1.0)
    y = gappy(grid, 1)[0]
    missing = y.isnan()
    known = torch.where(missing, 77.0, y)
    by_mask = fill(known, SMOOTH, grid, missing=missing, drift="linear", tolerance=1e-12)
    columns = torch.cat([torch.ones(9, 8, 1).double(), grid.coordinates()], -1)
    by_nan = fill(y, SMOOTH, grid, drift=columns, tolerance=1e-12)
    assert torch.allclose(by_mask.mean, by_nan.mean, rtol=0, atol=1e-9)
    batch = fill(torch.stack([y, y + 1])[:, None], SMOOTH, grid, tolerance=1e-12)
    assert batch.mean.shape == (2, 1, 9, 8)
    # ordinary kriging shifts with the data
    assert torch.allclose(batch.mean[1], batch.mean[0] + 1, rtol=0, atol=1e-9)
    assert fill(y, SMOOTH, grid, variance=False).variance is None


GRID = sd.Grid((12, 12), 1.0)
FIELD = gappy(GRID, 1)[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fill(FIELD[1:], SMOOTH, GRID), "shape"),
        (lambda: fill(FIELD * NAN, SMOOTH, GRID), "0 observed cells"),
        (lambda: fill(torch.where(FIELD > 1, float("inf"), FIELD), SMOOTH, GRID), "NaN or infinite"),
        (lambda: fill(FIELD, SMOOTH, GRID, missing="zero"), "missing must be"),
        (lambda: fill(FIELD, SMOOTH, GRID, noise=-1.0), "noise must be"),
        (lambda: fill(FIELD, SMOOTH, GRID, drift="cubic"), "drift must be"),
        (lambda: fill(FIELD, SMOOTH, GRID, drift=torch.ones(12, 12, 2)), "linearly dependent"),
        (lambda: fill(FIELD, SMOOTH, GRID, n=0), "n must be"),
        (lambda: fill(FIELD, SMOOTH, sd.Grid((12, 12), periodic=True), drift="linear"), "periodic"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_conjugate_gradients_that_do_not_converge_are_an_error():
    with pytest.raises(RuntimeError, match="did not reach a relative residual"):
        fill(FIELD, SMOOTH, GRID, tolerance=1e-10, max_iterations=1)


def test_a_kernel_too_smooth_for_its_cells_says_to_give_noise():
    grid, kernel = sd.Grid((30, 30), 0.2), Gaussian(lengthscale=3.0)
    field = torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    field[5:9] = NAN
    with pytest.raises((ValueError, RuntimeError), match="noise="):
        fill(field, kernel, grid)
    assert bool(fill(field, kernel, grid, noise=0.01).mean.isfinite().all())


def test_fill_takes_a_kernel_only():
    with pytest.raises(TypeError, match="fill: kernel must be"):
        fill(torch.zeros(4, 4), object(), sd.Grid((4, 4)))
