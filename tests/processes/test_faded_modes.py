"""Modes of which nothing is left in float64: no law, sample or bound may be touched by them."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential
from spatialdiff.likelihood import evidence_bound, probability_flow
from spatialdiff.processes import (
    CLD,
    VP,
    ConstantBeta,
    FrequencyVP,
    LinearBridge,
    LinearDiffusion,
    SpectralDiffusion,
)

F64 = torch.float64
GRID = sd.Grid((4, 4), periodic=True)
GAMMA = sd.covariance(Exponential(2.0), GRID).double().requires_grad_(False)
COSINE = sd.covariance(Exponential(3.0), sd.Grid((16, 16)), method="cosine").double().requires_grad_(False)
#: log I from about 5 at the start to far below what float64 holds
LAWS = {
    "spectral": SpectralDiffusion(GAMMA, lambda v: -v - 0.1, 1.0),
    "CLD": CLD(GAMMA, beta=ConstantBeta(400.0)),
    "K = 1": LinearDiffusion(GAMMA, [[-0.5]], [[1.0]], beta=ConstantBeta(800.0)),
    "K = 1, longer": LinearDiffusion(GAMMA, [[-0.5]], [[1.0]], beta=ConstantBeta(3000.0)),
    "VP": VP(GAMMA, schedule=ConstantBeta(800.0)),
}
COUNT = 2000


class Nothing(torch.nn.Module):
    """A network that adds nothing to the Gaussian posterior mean."""

    def forward(self, state, t):
        return torch.zeros_like(state)


def modes(samples):
    """The mean power of each mode relative to Γ's, and its standard error."""
    power = GAMMA.basis.analyze(samples).abs().square().mean((0, 1)) / GAMMA.spatial_eigenvalues()
    return power, (2.0 / (GAMMA.basis.weights * COUNT)).sqrt()


def fields(gamma, count=3):
    return gamma.sample((count, 1), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LAWS)
def test_coefficients_stay_finite_and_differentiate(name):
    law = LAWS[name]
    t = torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=F64) * law.horizon
    for coefficient in ("alpha", "sigma", "statistic", "noise_weights", "information", "information_rate"):
        value = getattr(law, coefficient)(t)
        assert bool(torch.isfinite(value).all())
    assert torch.allclose(law.noise_weights(t).norm(dim=-1), torch.ones(()).double(), atol=1e-10)
    step = 1e-6 * t
    slope = (law.log_snr(t + step) - law.log_snr(t - step)) / (2.0 * step)
    # CLD reaches the floor of log I at t = 0.93, "longer" at 0.5
    inside = law.log_snr(t - step) > -1470.0
    assert int(inside.sum()) >= 2
    assert torch.allclose(law.log_snr_rate(t)[inside], slope[inside], rtol=1e-5)
    levels = law.log_snr(t)[inside]
    assert torch.allclose(law.time_of_log_snr(levels), t[inside], rtol=1e-9)


@pytest.mark.parametrize("solver", ["gaussian", "heun"])
@pytest.mark.parametrize("name", LAWS)
def test_samples(name, solver):
    oracle = sd.oracles.GaussianDenoiser(LAWS[name], GAMMA, channels=1)
    samples = sd.sample(oracle, COUNT, steps=24, solver=solver, generator=torch.Generator().manual_seed(1))
    power, error = modes(samples)
    # heun ends with an error of its own: the last step at σ/α = 0.002 and curvature before
    slack = 0.06 if solver == "heun" else 0.0
    assert bool(((power - 1.0).abs() < 4.5 * error + slack).all())


@pytest.mark.parametrize("name", LAWS)
def test_likelihoods(name):
    law = LAWS[name]
    oracle = sd.oracles.GaussianDenoiser(law, GAMMA, channels=1)
    x = fields(GAMMA)
    exact = GAMMA.log_prob(x[:, 0])
    bound = evidence_bound(oracle, x, samples=8, prior="gaussian", generator=torch.Generator().manual_seed(2))
    assert torch.allclose(bound.value, exact, rtol=0, atol=1e-5 * GRID.size)
    drawn = evidence_bound(
        oracle,
        x,
        samples=256,
        control=False,
        prior="gaussian",
        decoder="network",
        generator=torch.Generator().manual_seed(2),
    )
    assert bool(((drawn.value - exact).abs() < 4.5 * drawn.standard_error).all())
    flow = probability_flow(oracle, x, prior="gaussian", generator=torch.Generator().manual_seed(2))
    assert torch.allclose(flow.value, exact, rtol=0, atol=2e-5 * GRID.size)


def test_a_bound_looks_as_far_as_the_slowest_mode():
    """The mean of log I falls below all that matters long before the slowest mode is noise."""
    law = FrequencyVP(COSINE, lambda v: 1.0 / (1e-3 + v))
    assert float(law.log_snr(0.9)) < -30.0
    assert float(law.information(0.9).max()) > 1.0
    oracle = sd.oracles.GaussianDenoiser(law, COSINE, channels=1)
    x = fields(COSINE, 4)
    exact = COSINE.log_prob(x[:, 0])
    for proposal in ("analytic", "learned"):
        bound = evidence_bound(
            oracle,
            x,
            samples=500,
            control=False,
            prior="gaussian",
            decoder="network",
            proposal=proposal,
            generator=torch.Generator().manual_seed(3),
        )
        assert bool(((bound.value - exact).abs() < 4.5 * bound.standard_error).all())
    controlled = evidence_bound(oracle, x, samples=8, prior="gaussian")
    assert torch.allclose(controlled.value, exact, rtol=0, atol=1e-5 * 256)


@pytest.mark.parametrize("times", ["uniform", "log_snr"])
def test_likelihood_weighted_denoising(times):
    law = FrequencyVP(COSINE, lambda v: 1.0 / (1e-3 + v))
    denoiser = sd.Denoiser(Nothing(), law, preconditioning="wiener", data=COSINE)
    objective = sd.Denoising(denoiser, weighting="likelihood", times=times)
    loss = objective(fields(COSINE, 16), generator=torch.Generator().manual_seed(4))
    assert math.isfinite(float(loss))


@pytest.mark.parametrize("pin", ["data", "state"])
def test_a_bridge_of_faded_modes(pin):
    bridge = LinearBridge(LAWS["spectral"], pin=pin)
    oracle = sd.oracles.GaussianDenoiser(bridge, GAMMA, coupling="independent", channels=1)
    law = oracle.law
    assert float(law.log_snr(1e-3)) < -600.0
    t = torch.tensor([1e-3, 0.2, 0.5, 0.9, 0.99], dtype=F64) * law.horizon
    assert bool((law.log_snr(t).diff() > 0.0).all())
    step = 1e-6 * t * (1.0 - t)
    slope = (law.log_snr(t + step) - law.log_snr(t - step)) / (2.0 * step)
    assert torch.allclose(law.log_snr_rate(t)[1:], slope[1:], rtol=1e-4)
    drawing = torch.Generator().manual_seed(5)
    samples = sd.sample(oracle, COUNT, steps=24, solver="gaussian", generator=drawing)
    power, error = modes(samples)
    assert bool(((power - 1.0).abs() < 4.5 * error).all())
    x = fields(GAMMA)
    bound = evidence_bound(oracle, x, samples=8, prior="gaussian")
    assert torch.allclose(bound.value, GAMMA.log_prob(x[:, 0]), rtol=0, atol=1e-5 * GRID.size)


def test_the_statistic_of_a_faded_mode_is_unit_noise():
    """What a network is shown of a mode of which nothing is left has the law that it has everywhere."""
    bridge = LinearBridge(LAWS["spectral"])
    pinned = sd.oracles.GaussianDenoiser(bridge, GAMMA, coupling="independent", channels=1).law
    for law, time in ((pinned, 1e-3), (LAWS["spectral"], 1.0), (LAWS["K = 1, longer"], 1.0)):
        assert float(law.alpha(time).abs().min()) < 1e-300
        _, sigma = law.marginal(time)
        q = law.statistic(time)
        noise = (q[..., None, :] @ sigma @ q[..., :, None])[..., 0, 0]
        assert torch.allclose(noise + law.alpha(time).square(), torch.ones((), dtype=F64), rtol=1e-9)
