"""Proposals: densities that integrate to one, exact quantiles, the same expectation from each."""

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Matern
from spatialdiff.objectives import AnalyticProposal, LearnedProposal, TimeProposal, UniformProposal
from spatialdiff.objectives.interval import interval_of, measure
from spatialdiff.objectives.proposals import as_proposal
from spatialdiff.processes import CLD

GRID = sd.Grid((4, 6))
DATA = (
    sd.covariance(Matern(nu=1.5, lengthscale=2.0, variance=4.0), GRID, method="cosine")
    .double()
    .requires_grad_(False)
)
GAMMA = sd.white(GRID).double()
LAWS = {"VP": sd.VP(GAMMA), "Cosine": sd.Cosine(GAMMA), "CLD": CLD(GAMMA)}


def observed(law, interval):
    """A learned proposal that has seen exp(-λ²/50)."""
    proposal = LearnedProposal(bins=16)
    levels = torch.linspace(interval.low, interval.high, 4001, dtype=torch.float64)
    proposal.observe(law, interval, levels, torch.exp(-levels.square() / 50))
    return proposal


def proposals(law):
    interval = interval_of(law)
    model = sd.oracles.GaussianDenoiser(law, DATA).gaussian
    return interval, {
        "uniform": UniformProposal(),
        "time": TimeProposal(bins=64),
        "analytic": AnalyticProposal(model),
        "white": AnalyticProposal(None, bins=40),
        "learned": observed(law, interval),
        "fresh": LearnedProposal(AnalyticProposal(model)),
    }


@pytest.mark.parametrize("name", ["uniform", "time", "analytic", "white", "learned", "fresh"])
@pytest.mark.parametrize("law", LAWS)
def test_densities_integrate_to_one_and_invert(law, name):
    law = LAWS[law]
    interval, made = proposals(law)
    proposal = made[name]
    # a midpoint rule with a multiple of the bins is exact for a piecewise constant density
    count = 20 * proposal.bins
    width = (interval.high - interval.low) / count
    levels = interval.low + width * (torch.arange(count, dtype=torch.float64) + 0.5)
    density = proposal.density(law, interval, levels)
    assert (density > 0).all()
    assert float(density.sum() * width) == pytest.approx(1.0, abs=1e-12)
    # the distribution function of a quantile is the probability asked for
    p = torch.tensor([1e-6, 0.2, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    found, at = proposal.quantile(law, interval, p)
    for probability, level in zip(p, found, strict=True):
        grid = interval.low + (level - interval.low) * (torch.arange(50_000) + 0.5) / 50_000
        mass = proposal.density(law, interval, grid).mean() * (level - interval.low)
        assert float(mass) == pytest.approx(float(probability), abs=1e-4)
    assert torch.allclose(at, proposal.density(law, interval, found))
    outside = torch.tensor([interval.low - 1e-3, interval.high + 1e-3], dtype=torch.float64)
    assert (proposal.density(law, interval, outside) == 0).all()


@pytest.mark.parametrize("law", LAWS)
def test_every_proposal_gives_the_same_integral(law):
    """∫ 1/(1 + I)² dI = 1/(1 + I_0) - 1/(1 + I_1), through the measure at drawn times."""
    law = LAWS[law]
    interval, made = proposals(law)
    exact = 1 / (1 + math.exp(interval.low)) - 1 / (1 + math.exp(interval.high))
    generator = torch.Generator().manual_seed(0)
    for proposal in made.values():
        count = 1000
        p = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) / count
        levels, density = proposal.quantile(law, interval, p)
        t = law.time_of_log_snr(levels)
        values = measure(law, t, density) / (1 + law.information(t)).square()
        # stratified: far closer than the standard error of independent draws
        assert abs(float(values.mean()) - exact) < float(values.std()) / math.sqrt(count)
        assert abs(float(values.mean()) - exact) < 0.05


def test_time_proposal_is_uniform_in_time():
    law = LAWS["VP"]
    interval = interval_of(law)
    p = torch.arange(1, 16, dtype=torch.float64) / 16
    levels, density = TimeProposal(bins=2048).quantile(law, interval, p)
    t = law.time_of_log_snr(levels)
    expected = interval.t1 + (interval.t0 - interval.t1) * p
    assert torch.allclose(t, expected, atol=2e-3)
    assert torch.allclose(density, law.log_snr_rate(t).abs().reciprocal(), rtol=0.02)


def test_analytic_proposal_follows_the_fitted_spectrum():
    """Its density is proportional to Σ ρI/(1 + ρI), derived here by differences of nothing but the model."""
    law = LAWS["VP"]
    interval = interval_of(law)
    proposal = AnalyticProposal(sd.oracles.GaussianDenoiser(law, DATA).gaussian, floor=0.0, bins=400)
    levels = torch.linspace(interval.low + 1, interval.high - 1, 30, dtype=torch.float64)
    strength = DATA.eigenvalues().flatten()[:, None] * levels.exp()
    expected = (strength / (1 + strength)).sum(0)
    found = proposal.density(law, interval, levels)
    assert torch.allclose(found / found.sum(), expected / expected.sum(), rtol=0.03)


def test_learned_proposal_learns_the_root_mean_square_and_is_saved():
    law = LAWS["VP"]
    interval = interval_of(law)
    learned = observed(law, interval)
    width = (interval.high - interval.low) / 16
    centres = interval.low + width * (torch.arange(16, dtype=torch.float64) + 0.5)
    wanted = torch.exp(-centres.square() / 50)
    found = learned.density(law, interval, centres)
    share = (found * width - 0.1 / 16) / 0.9
    assert torch.allclose(share, wanted / wanted.sum(), rtol=0.05)
    other = LearnedProposal(bins=16)
    other.load_state_dict(learned.state_dict())
    assert torch.equal(other.density(law, interval, centres), found)
    # a running mean follows a change
    for _ in range(400):
        learned.observe(law, interval, centres, torch.ones_like(centres))
    assert torch.allclose(
        learned.density(law, interval, centres) * width, torch.tensor(1 / 16).double(), rtol=0.01
    )


def test_names_and_bad_parameters():
    denoiser = sd.oracles.GaussianDenoiser(LAWS["VP"], DATA)
    kinds = {"analytic": AnalyticProposal, "learned": LearnedProposal, "time": TimeProposal}
    for name, kind in kinds.items():
        assert isinstance(as_proposal(name, denoiser), kind)
    with pytest.raises(ValueError, match="analytic, learned, log_snr, time"):
        as_proposal("late", denoiser)
    with pytest.raises(ValueError, match="floor"):
        AnalyticProposal(floor=1.0)
    with pytest.raises(ValueError, match="decay"):
        LearnedProposal(decay=1.0)
    with pytest.raises(ValueError, match="at least one"):
        LearnedProposal(bins=0)
