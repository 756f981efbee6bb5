"""Times and noise ranges that follow the fitted spectra."""

import math

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.kernels import Matern
from spatialdiff.objectives import TimeDistribution
from spatialdiff.sampling import time_grid

GRID = sd.Grid((8, 12))
DATA = sd.covariance(Matern(nu=1.5, lengthscale=2.0, variance=4.0), GRID, method="cosine")


class Zero(nn.Module):
    def forward(self, u, t):
        return torch.zeros_like(u)


def denoiser(gamma, data=DATA):
    return sd.Denoiser(Zero(), sd.VP(gamma), preconditioning="wiener", data=data, channels=1)


def test_range_holds_every_level_at_which_a_mode_emerges():
    c = DATA.eigenvalues().detach()
    low, high = denoiser(sd.white(GRID)).gaussian.noise_range(margin=2.0)
    assert low == pytest.approx(float(c.min().sqrt()) * math.exp(-2.0))
    assert high == pytest.approx(float(c.max().sqrt()) * math.exp(2.0))
    # beyond the range every Gaussian gain is within exp(-4) of 0 or 1
    assert float((c / (c + low**2)).min()) > 1.0 - math.exp(-4.0)
    assert float((c / (c + high**2)).max()) < math.exp(-4.0)


def test_noise_shaped_like_the_data_needs_one_level():
    model = denoiser(DATA)
    assert model.gaussian.noise_range(margin=0.0) == pytest.approx((1.0, 1.0))
    times = TimeDistribution.fitted(model)
    assert (times.mean, times.std) == pytest.approx((0.0, 1.0))


def test_fitted_times_have_the_stated_mean_and_spread():
    model = denoiser(sd.white(GRID))
    times = TimeDistribution.fitted(model)
    low, high = (math.log(level) for level in model.gaussian.noise_range(margin=0.0))
    t = times.draw(model.law, 20_000, generator=torch.Generator().manual_seed(0))
    levels = -0.5 * model.law.log_snr(t)
    # stratified draws; the tails beyond three e-foldings are cut, which moves both by a few percent at most
    assert float(levels.mean()) == pytest.approx(0.5 * (low + high), abs=0.05)
    assert float(levels.std()) == pytest.approx(math.sqrt(1.0 + (high - low) ** 2 / 12.0), rel=0.1)
    assert float(levels.min()) >= low - 3.0 - 1e-6
    assert float(levels.max()) <= high + 3.0 + 1e-6


def test_objectives_and_samplers_take_them_by_name():
    model = denoiser(sd.white(GRID))
    assert sd.Denoising(model, times="fitted").times == TimeDistribution.fitted(model)
    low, high = model.gaussian.noise_range()
    draws = [
        sd.sample(model, 2, steps=4, solver="ddim", generator=torch.Generator().manual_seed(0), **options)
        for options in ({"grid": "fitted"}, {"sigma_min": low, "sigma_max": high}, {})
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    with pytest.raises(ValueError, match=r"grid='fitted' needs"):
        sd.sample(sd.Denoiser(Zero(), sd.VP(sd.white(GRID))), 1, steps=2, grid="fitted")


def test_fitted_times_need_a_fit():
    with pytest.raises(ValueError, match=r"data= the result of sd\.fit"):
        TimeDistribution.fitted(sd.Denoiser(Zero(), sd.VP(sd.white(GRID))))


@pytest.mark.parametrize("grid", ["log_snr", "edm"])
def test_steps_are_spread_below_sigma_max_where_the_law_starts_beyond(grid):
    law = denoiser(sd.white(GRID)).law
    times = time_grid(law, 8, grid, sigma_min=0.05, sigma_max=20.0)
    sigma = (-0.5 * law.log_snr(times[1:-1])).exp()
    assert float((-0.5 * law.log_snr(times[0])).exp()) > 100.0
    assert float(sigma.min()) > 0.05
    assert 5.0 < float(sigma.max()) < 20.0
