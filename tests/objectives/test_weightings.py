"""Weightings and norms of the denoising loss: each written out, and the likelihood's against the bound."""

import math

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.objectives import AnalyticProposal, LearnedProposal, TimeDistribution
from spatialdiff.objectives.interval import interval_of
from spatialdiff.processes import CLD, LinearDiffusion

GRID = sd.Grid((4, 6))


def cosine(kernel):
    return sd.covariance(kernel, GRID, method="cosine").double().requires_grad_(False)


GAMMA = cosine(Matern(nu=1.5, lengthscale=1.5, variance=1.3))
DATA = cosine(Exponential(lengthscale=2.0, variance=2.0))


def fields(*lead, seed=0):
    return torch.randn(*lead, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed(nn.Module):
    """A posterior mean that is the same field everywhere."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, u, t):
        return self.output.expand(len(u), *self.output.shape[1:])


MODAL = LinearDiffusion(
    GAMMA, -(0.5 + GAMMA.basis.wavenumbers[..., None, None]), torch.ones(4, 6, 1, 1, dtype=torch.float64)
)
LAWS = {"VP": sd.VP(GAMMA), "VE": sd.VE(GAMMA), "CLD": CLD(GAMMA), "modal": MODAL}


@pytest.mark.parametrize("norm", ["coloured", "whitened"])
@pytest.mark.parametrize("weighting", ["uniform", "snr", "min_snr", "edm"])
@pytest.mark.parametrize("law", LAWS)
def test_losses_written_out(law, weighting, norm):
    law = LAWS[law]
    constant = fields(1, 1, seed=3)
    denoiser = sd.Denoiser(Fixed(constant), law, data=DATA)
    x, t = fields(3, 1, seed=1), torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    loss = sd.Denoising(denoiser, weighting=weighting, norm=norm)(x, t=t)
    information = law.information(t)
    gamma = float(GAMMA.variance().mean())
    weight = {
        "uniform": torch.ones_like(information),
        "snr": information,
        "min_snr": information.clamp(max=5.0),
        "edm": (information + gamma / float(DATA.variance().mean())) / (gamma if norm == "coloured" else 1),
    }[weighting]
    modes = GAMMA.basis.analyze(x - constant)[:, 0].square()
    if norm == "whitened":
        modes = modes / GAMMA.eigenvalues()
    weight = weight if law is MODAL else weight[:, None, None]
    assert torch.allclose(loss, (weight * modes).sum((1, 2)).mean() / 24)


@pytest.mark.parametrize("law", ["VP", "CLD", "modal"])
@pytest.mark.parametrize(
    "times",
    ["edm", "log_snr", "uniform", AnalyticProposal(None), LearnedProposal(bins=8)],
    ids=lambda times: times if isinstance(times, str) else type(times).__name__,
)
def test_the_likelihood_weighting_is_the_integral_of_the_bound(law, times):
    """D = 0 for data of one field: ½ xᵀΓ⁻¹x (I_0 - I_1), whatever the times; per mode for a modal law."""
    law = LAWS[law]
    zero = torch.zeros(1, 1, 4, 6, dtype=torch.float64)
    x = fields(1, 1, seed=1).expand(256, 1, 4, 6)
    settings = {"sigma_min": 0.1, "sigma_max": 5.0, "margin": 0.1}
    if isinstance(times, str):
        times = TimeDistribution(times, **settings)
    objective = sd.Denoising(
        sd.Denoiser(Fixed(zero), law), times=times, weighting="likelihood", norm="whitened"
    )
    loss = [float(objective(x, generator=torch.Generator().manual_seed(seed))) for seed in range(2)]
    if isinstance(times, TimeDistribution):
        ends = times.quantile(law, torch.tensor([0.0, 1.0], dtype=torch.float64))
    else:
        interval = interval_of(law)
        ends = torch.tensor([interval.t0, interval.t1], dtype=torch.float64)
    gained = law.information(ends)[0] - law.information(ends)[1]
    modes = GAMMA.basis.analyze(x[:1])[0, 0].square() / GAMMA.eigenvalues()
    exact = float(0.5 * (gained * modes).sum()) / 24
    # stratified over 256 times: the error is that of a midpoint rule with random offsets
    assert sum(loss) / 2 == pytest.approx(exact, rel=0.02)


def test_min_snr_and_edm_are_flat_where_they_should_be():
    """Under independent pixels of the data's variance the EDM weighting makes every level's loss 1."""
    white = sd.white(GRID).double()
    data = white.scaled(1.7)
    law = sd.VP(white)
    denoiser = sd.Denoiser(Fixed(torch.zeros(1, 1, 4, 6).double()), law, preconditioning="wiener", data=data)
    x = data.sample((3000, 1), generator=torch.Generator().manual_seed(0))
    for level in (-3.0, 0.0, 4.0):
        t = law.time_of_log_snr(torch.full((3000,), level, dtype=torch.float64))
        loss = sd.Denoising(denoiser, weighting="edm")(x, t=t, generator=torch.Generator().manual_seed(1))
        # 72000 squares of standard normals
        assert float(loss) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 72_000))


@pytest.mark.parametrize("prediction", ["data", "noise", "variable_noise"])
def test_full_conditioning_has_the_same_optimum(prediction):
    """The regression target given the auxiliary start has the hybrid target as its conditional mean."""
    law, n = CLD(GAMMA), 2000
    generator = torch.Generator().manual_seed(0)
    x = DATA.sample((n, 1), generator=generator)
    t = torch.full((n,), 0.3, dtype=torch.float64)
    oracle = sd.oracles.GaussianDenoiser(law, DATA)

    class Exact(nn.Module):
        """The best prediction, plus a known field."""

        shift = 0.0

        def forward(self, u, t):
            data = oracle(u, t)
            mean = {
                "data": lambda: data,
                "noise": lambda: law.noise(u, t, data),
                "variable_noise": lambda: law.variable_noise(u, t, data),
            }[prediction]()
            return mean + self.shift

    network = Exact()
    denoiser = sd.Denoiser(network, law, prediction)
    for conditioning in ("hybrid", "full"):
        objective = sd.Denoising(denoiser, conditioning=conditioning)
        losses = []
        for shift in (-0.2, 0.2):
            network.shift = shift
            losses.append(float(objective(x, t=t, generator=torch.Generator().manual_seed(1))))
        # E(e + s)² is even in s where E e = 0; the mean error of n fields is off by O(1/√n) of a field's mean
        assert abs(losses[1] - losses[0]) < 0.8 * 5 * 1.5 / math.sqrt(n)
        network.shift = 0.0
        best = float(objective(x, t=t, generator=torch.Generator().manual_seed(1)))
        assert best < min(losses)
    with pytest.raises(ValueError, match="white="):
        objective(x, t=t, white=torch.zeros(n, 2, 4, 6))


def test_likelihood_needs_the_density_of_the_times():
    denoiser = sd.Denoiser(Fixed(torch.zeros(1, 1, 4, 6).double()), sd.VP(GAMMA))
    objective = sd.Denoising(denoiser, weighting="likelihood")
    with pytest.raises(ValueError, match="density of the times"):
        objective(fields(2, 1), t=torch.tensor([0.2, 0.3]))


def test_a_learned_proposal_adapts_and_keeps_the_expectation():
    law = sd.VP(GAMMA)
    denoiser = sd.Denoiser(Fixed(torch.zeros(1, 1, 4, 6).double()), law)
    objective = sd.Denoising(denoiser, times="learned", weighting="likelihood", norm="whitened")
    x = fields(64, 1, seed=1)
    before = objective.times.squares.clone()
    for seed in range(16):
        objective(x, generator=torch.Generator().manual_seed(seed))
    assert not torch.equal(before, objective.times.squares)
    interval = interval_of(law)
    exact = 0.5 * GAMMA.quad_form(x[:, 0]).mean() / 24 * (math.exp(interval.high) - math.exp(interval.low))
    values = torch.stack([objective(x, generator=torch.Generator().manual_seed(1000 + s)) for s in range(16)])
    assert abs(float(values.mean() - exact)) < 5 * float(values.std()) / math.sqrt(16)
    assert "times.squares" in objective.state_dict()
