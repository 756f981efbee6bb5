"""Time grids and training times of processes whose modes turn from noise to data at different times."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import SpatialWarning
from spatialdiff.kernels import Matern, Nugget
from spatialdiff.objectives.times import TimeDistribution
from spatialdiff.processes import (
    FrequencyVP,
    HeatDissipation,
    LinearBridge,
    SpectralDiffusion,
    StochasticHeat,
)
from spatialdiff.processes.active_levels import active_levels
from spatialdiff.sampling.grids import time_grid

F64 = torch.float64
GRID = sd.Grid((8, 8))


class Half(torch.nn.Module):
    """Half of the state, as if it were the data."""

    def forward(self, state, t):
        return 0.5 * state


def gamma(lengthscale):
    kernel = Matern(nu=1.5, lengthscale=lengthscale) + Nugget(0.01)
    return sd.covariance(kernel, GRID, method="cosine").double().requires_grad_(False)


GAMMA, DATA = gamma(1.5), gamma(3.0)


def wave(v):
    """Position and velocity of a damped wave."""
    rows = [torch.stack([0 * v, 1 + 0 * v], -1), torch.stack([-1 - v, -3 - 0 * v], -1)]
    return torch.stack(rows, -2)


LAWS = {
    "spectral": SpectralDiffusion(GAMMA, lambda v: -v - 0.1, 1.0),
    "heat": StochasticHeat(GAMMA, 1.0, 0.05),
    "dissipation": HeatDissipation(GAMMA, 3.0),
    "wave": SpectralDiffusion(GAMMA, wave, [[0.0, 0.0], [0.0, 2.0]]),
}


@pytest.mark.parametrize(
    ("name", "grid"),
    [("spectral", "edm"), ("spectral", "fitted"), *((name, "log_snr") for name in LAWS)],
)
def test_a_grid_converges(name, grid):
    """The probability flow on a finer grid comes closer to the data, down to what its start leaves out."""
    errors = [
        float(sd.oracles.gaussian_transport_error(LAWS[name], "exponential", steps, DATA, grid=grid).relative)
        for steps in (24, 96)
    ]
    # of second order, but for the start and the noise level of the last call
    assert errors[1] < errors[0] / 2.0
    assert errors[1] < 1e-2


@pytest.mark.parametrize("name", LAWS)
def test_the_steps_reach_from_the_last_noise_to_the_last_data(name):
    law = LAWS[name]
    times = time_grid(law, 64, "log_snr", sigma_min=0.01, sigma_max=50.0)
    assert bool((times.diff() < 0.0).all())
    # the first step of the layout leads to a most informed mode near σ_max, the last to a least near σ_min
    assert float(law.information(times[1]).max()) < 4.0 * 50.0**-2
    assert float(law.information(times[-2]).min()) > 0.25 * 0.01**-2
    clipped = [
        law.information(t).log().clamp(-2.0 * math.log(50.0), -2.0 * math.log(0.01)) for t in times[:-1]
    ]
    moved = torch.stack([(after - before).max() for before, after in pairwise(clipped)])
    # no step moves any mode much further than another step does
    assert float(moved.max()) < 1.6 * float(moved.mean())


def test_levels_are_those_of_the_law_where_all_modes_are_alike():
    law = FrequencyVP(GAMMA, lambda v: 1.0 + 0.0 * v)
    plain = sd.VP(GAMMA)
    for grid in ("log_snr", "edm"):
        torch.testing.assert_close(time_grid(law, 12, grid), time_grid(plain, 12, grid), rtol=2e-2, atol=1e-3)
    levels = active_levels(law, -8.0, 12.0)
    t = torch.tensor([0.05, 0.3, 0.8], dtype=F64)
    torch.testing.assert_close(levels.level(t), plain.log_snr(t), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", [*LAWS, "bridge"])
def test_a_level_and_its_inverse_and_rate(name):
    law = LAWS.get(name) or sd.IndependentField(0.8).law(LinearBridge(StochasticHeat(GAMMA, 1.0, 0.05)))
    levels = active_levels(law, -8.0, 12.0)
    height = torch.linspace(float(levels.levels[0]) + 0.01, float(levels.levels[-1]) - 0.01, 50, dtype=F64)
    t = levels.time(height)
    assert bool((t.diff() * (law.end_time - law.start_time) > 0.0).all())
    torch.testing.assert_close(levels.level(t), height, rtol=0, atol=1e-9)
    # away from the nodes; next to the end of a bridge t itself has few digits
    step = 1e-5 * torch.minimum(t, law.horizon - t)
    slope = (levels.level(t + step) - levels.level(t - step)).abs() / (2.0 * step)
    close = ((levels.rate(t) - slope).abs() < 1e-3 * slope)[:-5]
    # but for one that falls next to a node
    assert int((~close).sum()) <= 1


@pytest.mark.parametrize("times", ["edm", "log_snr"])
@pytest.mark.parametrize("name", ["spectral", "dissipation"])
def test_training_times(name, times):
    """They reach every scale, and their density is that of what is drawn."""
    law = LAWS[name]
    drawn = TimeDistribution(times)
    t = drawn.quantile(law, (torch.arange(20000, dtype=F64) + 0.5) / 20000)
    assert float(law.information(t.max()).max()) < 1e-3
    # ∫ f dλ by draws against a sum over λ itself, for an f that is smooth in λ
    level = law.log_snr(t)
    found = float((torch.exp(-0.5 * (level / 4.0).square()) / drawn.density(law, t)).mean())
    assert found == pytest.approx(4.0 * math.sqrt(2.0 * math.pi), rel=0.02)


def test_a_start_that_holds_the_data_is_warned_of():
    oracle = sd.oracles.GaussianDenoiser(sd.BrownianMotion(GAMMA), DATA, channels=1)
    with pytest.warns(SpatialWarning, match="the start of BrownianMotion still holds the data"):
        sd.sample(oracle, 1, steps=2, solver="heun")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("solver", ["gaussian", "heun"])
def test_other_starts_are_not(solver):
    law = sd.VP(GAMMA) if solver == "heun" else sd.BrownianMotion(GAMMA)
    sd.sample(sd.oracles.GaussianDenoiser(law, DATA, channels=1), 1, steps=2, solver=solver)


def test_no_factorisation_is_made_for_a_warning():
    """Γ by circulant embedding and other data: what the network alone can sample needs no common basis."""
    rough = sd.covariance(Matern(nu=0.5, lengthscale=2.0), GRID, method="circulant").requires_grad_(False)
    smooth = sd.covariance(Matern(nu=1.5, lengthscale=2.0), GRID, method="dense").requires_grad_(False)
    denoiser = sd.Denoiser(Half(), sd.BrownianMotion(rough), data=(0.0, smooth))
    assert not denoiser.gaussian.fast
    sd.sample(denoiser, 1, steps=2)
    assert denoiser.gaussian._cache is None


def test_steps_are_whole():
    oracle = sd.oracles.GaussianDenoiser(sd.VP(GAMMA), DATA, channels=1)
    with pytest.raises(ValueError, match=r"steps=2\.5; a sampler needs at least 1 step, and whole ones"):
        sd.sample(oracle, 1, steps=2.5)


def test_the_transport_error_of_one_covariance_per_variable():
    grid = sd.Grid((3, 4), periodic=True)
    first, second = (
        sd.covariance(Matern(nu=1.5, lengthscale=size), grid).double().requires_grad_(False)
        for size in (1.2, 2.0)
    )
    law = sd.CLD((first, second))
    oracle = sd.oracles.GaussianDenoiser(law, second, channels=1)
    error = sd.oracles.gaussian_transport_error(law, "ddim", 12, second)
    count = 4000
    samples = sd.sample(oracle, count, steps=12, solver="ddim", generator=torch.Generator().manual_seed(0))
    power = first.basis.analyze(samples).abs().square().mean((0, 1))
    exact = error.output.reshape(power.shape)
    spread = (2.0 / (first.basis.weights * count)).sqrt()
    assert float(((power - exact).abs() / (exact * spread)).max()) < 4.5
    # the search asks for the error of every named grid on the same modes
    sd.sample(oracle, 1, steps=1, solver="ddim", grid="optimised")


def test_a_corrector_needs_a_closed_law():
    bridge = LinearBridge(sd.CLD(GAMMA))
    denoiser = sd.Denoiser(torch.nn.Identity(), bridge, coupling="paired", channels=1)
    with pytest.raises(ValueError, match="a corrector needs the score of the state"):
        sd.sample(denoiser, 1, steps=2, solver="predictor_corrector", start=torch.zeros(1, 1, 8, 8).double())


def test_a_noise_prediction_of_modes_that_fade_is_warned_of():
    def build(law, prediction, preconditioning="none"):
        return sd.Denoiser(torch.nn.Identity(), law, prediction, preconditioning)

    with pytest.warns(SpatialWarning, match="prediction='noise' finds the data by dividing by α"):
        build(LAWS["spectral"], "noise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for law, prediction in ((LAWS["spectral"], "data"), (LAWS["spectral"], "velocity")):
            build(law, prediction)
        build(LAWS["spectral"], "noise", "wiener")
        build(sd.VP(GAMMA), "noise")
