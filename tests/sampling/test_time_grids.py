"""The time grids, each by its own definition."""

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.sampling import time_grid
from spatialdiff.sampling.grids import FITTED, GRIDS

GRID = sd.Grid((4, 6), periodic=True)
GAMMA = sd.TorusCovariance(Matern(nu=1.5, lengthscale=1.3), GRID).double().requires_grad_(False)
DATA = sd.TorusCovariance(Exponential(lengthscale=2.0, variance=0.01), GRID).double().requires_grad_(False)
LAWS = {
    "VP": sd.VP(GAMMA),
    "EDM": sd.EDM(GAMMA),
    "Rectified": sd.Rectified(GAMMA),
    "CLD": sd.CLD(GAMMA),
    "bridge": sd.IndependentField(0.7).law(sd.BrownianBridge(GAMMA)),
}


def level(law, times):
    """σ/α."""
    return torch.exp(-0.5 * law.log_snr(times))


@pytest.mark.parametrize("grid", [*GRIDS, *FITTED])
@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_from_the_start_to_the_end_without_turning(name, grid, steps):
    law = LAWS[name]
    model = sd.oracles.GaussianDenoiser(law, DATA).gaussian
    times = time_grid(law, steps, grid, model=model, solver="ddim")
    assert times.dtype == torch.float64
    assert times.shape == (steps + 1,)
    assert float(times[0]) == law.start_time
    assert float(times[-1]) == law.end_time
    assert bool((times.diff() * (law.end_time - law.start_time) > 0).all())


@pytest.mark.parametrize("name", LAWS)
def test_levels_of_log_snr_and_edm(name):
    law, low, high = LAWS[name], 0.01, 3.0
    high = min(high, float(level(law, torch.tensor(law.start_time, dtype=torch.float64))))
    even = level(law, time_grid(law, 6, "log_snr", sigma_min=low, sigma_max=high)[1:-1])
    expected = high * (low / high) ** (torch.arange(1, 6, dtype=torch.float64) / 6)
    torch.testing.assert_close(even, expected, rtol=1e-6, atol=0)
    edm = level(law, time_grid(law, 6, "edm", sigma_min=low, sigma_max=high)[1:-1])
    roots = torch.linspace(high ** (1 / 7), low ** (1 / 7), 7, dtype=torch.float64)[1:-1]
    torch.testing.assert_close(edm, roots**7, rtol=1e-6, atol=0)


def test_uniform_and_quadratic():
    law = LAWS["bridge"]
    distance = (time_grid(law, 4, "uniform") - law.end_time).abs() / law.horizon
    torch.testing.assert_close(distance, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64))
    distance = (time_grid(law, 4, "quadratic") - law.end_time).abs() / law.horizon
    torch.testing.assert_close(
        distance.sqrt(), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", LAWS)
def test_the_fitted_grid_spans_the_levels_at_which_the_data_emerge(name):
    """Even in log-SNR, from where the strongest mode's `ρI` is small to where the weakest one's is large."""
    law = LAWS[name]
    model = sd.oracles.GaussianDenoiser(law, DATA).gaussian
    low, high = model.noise_range()
    ratio = (DATA.eigenvalues() / GAMMA.eigenvalues()).double()
    assert low < float(ratio.min().sqrt())
    assert high > float(ratio.max().sqrt())
    high = min(high, float(level(law, torch.tensor(law.start_time, dtype=torch.float64))))
    inner = level(law, time_grid(law, 7, "fitted", model=model)[1:-1])
    expected = high * (low / high) ** (torch.arange(1, 7, dtype=torch.float64) / 7)
    torch.testing.assert_close(inner, expected, rtol=1e-6, atol=0)


def test_a_fitted_grid_follows_the_data_and_the_plain_one_does_not():
    """Data of a tenth of the deviation: every level of the fitted grid is a tenth."""
    law = LAWS["EDM"]
    models = [
        sd.oracles.GaussianDenoiser(law, covariance).gaussian
        for covariance in (DATA, sd.TorusCovariance(Exponential(lengthscale=2.0), GRID).double())
    ]
    small, large = (level(law, time_grid(law, 6, "fitted", model=model)[1:-1]) for model in models)
    torch.testing.assert_close(small, 0.1 * large.detach(), rtol=1e-6, atol=0)


def test_what_a_fitted_grid_needs():
    law = LAWS["VP"]
    for grid in FITTED:
        with pytest.raises(ValueError, match="needs the fitted Gaussian law"):
            time_grid(law, 4, grid)
    model = sd.oracles.GaussianDenoiser(law, DATA).gaussian
    with pytest.raises(ValueError, match="name it with solver="):
        time_grid(law, 4, "optimised", model=model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"grid": "linear"}, "unknown time grid 'linear'"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "needed 0 < sigma_min < sigma_max"),
        ({"grid": torch.tensor([1.0, 0.5, 0.7, 0.0])}, "strictly monotone"),
        ({"grid": torch.tensor([1.0])}, "at least two"),
        ({"grid": torch.tensor([0.9, 0.0])}, "this solver runs from 1 to 0"),
        ({"grid": torch.tensor([1.0, math.nan, 0.0])}, "strictly monotone"),
    ],
)
def test_bad_grids(given, message):
    with pytest.raises(ValueError, match=message):
        time_grid(LAWS["VP"], **{"steps": 3, **given})
