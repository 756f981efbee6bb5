"""Distributions of values, first and second differences, against scipy and against loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

import spatialdiff as sd
from spatialdiff.evaluation import compare
from spatialdiff.evaluation.gradients import curvature, magnitude, slopes
from spatialdiff.evaluation.marginal import moments, ordered, relative_wasserstein, wasserstein
from spatialdiff.kernels import Gaussian

F64 = torch.float64


def test_wasserstein_distance_of_scipy():
    x = torch.randn(6, 2, 35, dtype=F64)
    y = torch.randn(6, 2, 35, dtype=F64).exp()
    each = [scipy.stats.wasserstein_distance(x[:, c].flatten(), y[:, c].flatten()) for c in range(2)]
    assert wasserstein(ordered(x), ordered(y)) == pytest.approx(sum(each) / 2, rel=1e-12)
    scale = [float(y[:, c].square().mean().sqrt()) for c in range(2)]
    over = sum(w / s for w, s in zip(each, scale, strict=True)) / 2
    assert relative_wasserstein(ordered(x), ordered(y)) == pytest.approx(over, rel=1e-12)
    assert wasserstein(ordered(x), ordered(x.flip(0))) == 0
    assert wasserstein(ordered(x + 0.25), ordered(x)) == pytest.approx(0.25, rel=1e-12)


def test_samples_of_different_size_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 4\) and \(1, 5\)"):
        wasserstein(torch.zeros(1, 4), torch.zeros(1, 5))


def test_moments_of_scipy():
    rows = torch.randn(5, 2, 40, dtype=F64).exp()
    rows[:, 1] *= -3.0
    found = moments(rows)
    flat = rows.transpose(0, 1).reshape(2, -1).numpy()
    assert found["mean"] == pytest.approx(flat.mean(1).mean(), rel=1e-12)
    assert found["std"] == pytest.approx(flat.std(1).mean(), rel=1e-12)
    assert found["skewness"] == pytest.approx(scipy.stats.skew(flat, axis=1).mean(), rel=1e-12)
    kurtosis = scipy.stats.kurtosis(flat, axis=1, fisher=False).mean()
    assert found["kurtosis"] == pytest.approx(kurtosis, rel=1e-12)


@pytest.mark.parametrize("periodic", [(False, False), (True, False), (True, True)])
def test_differences_with_unequal_spacings(periodic):
    grid = sd.Grid((5, 4), spacing=(0.5, 2.0), periodic=periodic)
    x = torch.randn(2, 1, 5, 4, dtype=F64)
    rows, cols = grid.shape
    f = x[1, 0].numpy()
    last = [n if wraps else n - 1 for n, wraps in zip(grid.shape, periodic, strict=True)]
    down = [[(f[(i + 1) % rows, j] - f[i, j]) / 0.5 for j in range(cols)] for i in range(last[0])]
    right = [[(f[i, (j + 1) % cols] - f[i, j]) / 2.0 for j in range(last[1])] for i in range(rows)]
    size = [(down[i][j] ** 2 + right[i][j] ** 2) ** 0.5 for i in range(last[0]) for j in range(last[1])]
    np.testing.assert_allclose(magnitude(x, grid)[1, 0], size, rtol=1e-12)
    signed = np.concatenate([np.ravel(down), np.ravel(right)])
    np.testing.assert_allclose(slopes(x, grid)[1, 0], signed, rtol=1e-12)

    second = [
        f[(i + 1) % rows, j] - 2 * f[i, j] + f[i - 1, j]
        for i in (range(rows) if periodic[0] else range(1, rows - 1))
        for j in range(cols)
    ] + [
        f[i, (j + 1) % cols] - 2 * f[i, j] + f[i, j - 1]
        for i in range(rows)
        for j in (range(cols) if periodic[1] else range(1, cols - 1))
    ]
    np.testing.assert_allclose(curvature(x, grid)[1, 0], second, rtol=1e-12, atol=1e-14)


def test_axes_of_one_site_do_not_count():
    x = torch.randn(3, 2, 6, dtype=F64)
    flat, thin = sd.Grid(6, spacing=0.5), sd.Grid((1, 6), spacing=(7.0, 0.5))
    for measure in (magnitude, slopes, curvature):
        torch.testing.assert_close(measure(x.unsqueeze(2), thin), measure(x, flat), rtol=0, atol=0)


def phases_of_noise(fields, generator):
    """Fields with the amplitudes of `fields`, the domain mean kept and all other phases random."""
    noise = torch.randn(fields.shape, generator=generator, dtype=F64)
    phase = torch.fft.rfft2(noise)
    phase = phase / phase.abs()
    phase[..., 0, 0] = 1.0
    return torch.fft.irfft2(torch.fft.rfft2(fields) * phase, s=fields.shape[-2:])


@pytest.mark.parametrize(
    ("shape", "metrics"),
    [
        # gradients of |x| are as steep as those of x; only the creases differ
        pytest.param(torch.abs, ("curvature",), id="creased"),
        pytest.param(lambda x: (0.7 * x).exp(), ("gradients", "curvature"), id="lognormal"),
    ],
)
def test_a_gaussian_twin_is_told_apart_by_differences_and_not_by_the_spectrum(shape, metrics):
    grid = sd.Grid((24, 24), periodic=True)
    law = sd.covariance(Gaussian(lengthscale=2.5), grid).double()
    source = torch.Generator().manual_seed(7)
    fields = shape(law.sample((240,), generator=source).detach())
    real, fresh, other = fields[:120], fields[120:180], fields[180:]
    report = compare({"fresh": fresh, "twin": phases_of_noise(other, source)}, real, grid)
    floor, fresh, twin = report.floor, report.errors("fresh"), report.errors("twin")
    assert twin["spectrum"] < 2 * floor["spectrum"]
    for metric in metrics:
        assert twin[metric] > floor[metric] + 5 * report.floor_spread[metric]
        assert twin[metric] > 2 * max(floor[metric], fresh[metric])
