"""Probability flow: exact for Gaussian data, whatever the process, the start and the divergence."""

import pytest
from gaussian_fields import GAMMAS, GRID, MEAN, PROCESSES, SITES, exact, fields, generator, oracle
from test_evidence import mixture, mixture_density

import spatialdiff as sd
import spatialdiff.likelihood as lk


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("process", PROCESSES)
def test_the_density_of_gaussian_data(process, gamma):
    """The prior is the marginal at T: N(0, S ⊗ Γ) is further from it than 1e-5."""
    x = fields(1)
    flow = lk.probability_flow(
        oracle(process, gamma), x, t0=0.2, samples=2, prior="gaussian", generator=generator(1)
    )
    assert close(flow, exact(x), 1e-5)


@pytest.mark.parametrize("process", [sd.VE, sd.Cosine, sd.Rectified])
def test_scalar_processes_with_and_without_the_model(process):
    """Without the model the flow begins at σ/α = 0.002, which costs ½ (σ/α)²/ρ per mode at most."""
    x = fields(2)
    prior = {"prior": "gaussian"}
    assert close(lk.probability_flow(oracle(process), x, samples=2, **prior), exact(x), 1e-5)
    plain = lk.probability_flow(oracle(process), x, divergence="exact", control=False, **prior)
    assert plain.standard_error.max() == 0.0
    assert close(plain, exact(x), 1e-5)


def close(flow, value, tolerance):
    return float((flow.value - value).abs().max()) / SITES < tolerance


@pytest.mark.parametrize("process", ["VP", "CLD"])
def test_hutchinson_is_unbiased_and_exact_is_exact(process):
    x = fields(1)
    settings = {"control": False, "t0": 0.2, "start": "noised", "prior": "gaussian"}
    full = lk.probability_flow(
        oracle(process), x, divergence="exact", samples=2, generator=generator(2), **settings
    )
    assert close(full, exact(x), 1e-5)
    drawn = lk.probability_flow(oracle(process), x, samples=16, generator=generator(3), **settings)
    assert ((drawn.value - exact(x)).abs() < 5 * drawn.standard_error).all()
    # not for the wrong reason: something was left to chance
    assert (drawn.standard_error > 1e-3).all()


@pytest.mark.parametrize("process", ["VP", "CLD"])
def test_the_density_of_a_mixture(process):
    """Not Gaussian: at a start so near the data that the decoder has nothing to add."""
    x = fields(1) + 9 * MEAN
    flow = lk.probability_flow(
        mixture(process),
        x,
        divergence="exact",
        start="noised",
        samples=2,
        prior="noise",
        t0=0.02 if process == "VP" else 0.1,
        generator=generator(4),
        rtol=1e-3,
        atol=1e-3,
    )
    assert close(flow, mixture_density(x), 1e-2)


def test_a_bridge_has_a_flow():
    bridge = sd.BrownianBridge(GAMMAS["matern"])
    denoiser = sd.oracles.GaussianDenoiser(
        bridge, oracle("VP").gaussian.data_covariance, MEAN, coupling="independent"
    )
    assert close(lk.probability_flow(denoiser, fields(2), samples=2), exact(fields(2)), 1e-5)
    fixed = sd.oracles.GaussianDenoiser(bridge, sd.white(GRID).double(), coupling="fixed")
    with pytest.raises(RuntimeError, match="no probability flow"):
        lk.probability_flow(fixed, fields(2))


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        ("VP", {"divergence": "sliced"}, "hutchinson, exact"),
        ("VP", {"start": "late"}, "data, noised"),
        ("CLD", {"start": "data"}, "start='noised'"),
        ("VP", {"samples": 1}, "at least 2"),
        ("VP", {"prior": "flat"}, "stationary, noise, gaussian"),
    ],
)
def test_bad_options(process, options, message):
    with pytest.raises(ValueError, match=message):
        lk.probability_flow(oracle(process), fields(), **options)
