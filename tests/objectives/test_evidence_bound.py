"""The evidence bound as an objective: its value, its two forms, and what it trains."""

import math

import pytest
import torch
from torch import nn

import spatialdiff as sd
import spatialdiff.likelihood as lk
from spatialdiff.kernels import Matern
from spatialdiff.objectives import LearnedProposal
from spatialdiff.objectives.sde_terms import mutual_information
from spatialdiff.processes import CLD, LearnedBeta

GRID = sd.Grid((2, 4))
SITES = 8


def cosine(kernel):
    return sd.covariance(kernel, GRID, method="cosine").double()


DATA = cosine(Matern(nu=0.5, lengthscale=1.0, variance=1.5)).requires_grad_(False)
WHITE = sd.white(GRID).double()
PROCESSES = {"VP": sd.VP, "CLD": CLD}


class Zero(nn.Module):
    def forward(self, u, t):
        return torch.zeros_like(u[:, :1])


class Shifted(nn.Module):
    """Returns a learnable field."""

    def __init__(self):
        super().__init__()
        self.field = nn.Parameter(0.1 * torch.ones(1, *GRID.shape, dtype=torch.float64))

    def forward(self, u, t):
        return self.field.expand(len(u), 1, *GRID.shape) + 0.05 * u[:, :1]


def fields(count, seed=0):
    return DATA.sample((count, 1), generator=torch.Generator().manual_seed(seed))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_loss_of_the_fitted_field_is_its_negative_log_density(process):
    """A network that returns zero under wiener is the Gaussian model: no chance is left in the loss."""
    law = PROCESSES[process](WHITE)
    denoiser = sd.Denoiser(Zero(), law, preconditioning="wiener", data=DATA)
    x = fields(4)
    loss = sd.EvidenceBound(denoiser, prior="gaussian")(x)
    normal = torch.distributions.MultivariateNormal(torch.zeros(SITES).double(), DATA.to_dense())
    assert float(loss) == pytest.approx(-float(normal.log_prob(x.flatten(1)).mean()) / SITES, abs=1e-6)


@pytest.mark.parametrize("decoder", ["state", "network"])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_loss_is_minus_the_bound(process, decoder):
    law = PROCESSES[process](WHITE)
    denoiser = sd.Denoiser(Shifted(), law, preconditioning="edm")
    x = fields(2)
    objective = sd.EvidenceBound(denoiser, decoder=decoder, t0=0.1)
    with torch.no_grad():
        batch = x.repeat(300, 1, 1, 1)
        losses = torch.stack([objective(batch, generator=generator(seed)) for seed in range(3)])
    bound = lk.evidence_bound(
        denoiser, x, samples=600, decoder_samples=100, decoder=decoder, t0=0.1, generator=generator(9)
    )
    error = float(bound.standard_error.square().sum().sqrt()) / 2 / SITES
    # the losses hold half as many draws in all
    assert abs(float(losses.mean()) + bound.mean) < 5 * math.hypot(error, error * math.sqrt(2))


@pytest.mark.parametrize("process", PROCESSES)
def test_both_forms_have_the_same_expectation_and_gradient(process):
    law = PROCESSES[process](WHITE)
    network = Shifted()
    denoiser = sd.Denoiser(network, law)
    x = fields(2).repeat(500, 1, 1, 1)
    values, gradients = {}, {}
    for form in ("denoising", "implicit"):
        objective = sd.EvidenceBound(denoiser, form, proposal="log_snr", t0=0.3)
        found = []
        for seed in range(4):
            network.zero_grad()
            loss = objective(x, generator=generator(seed))
            loss.backward()
            found.append(torch.cat([loss.detach()[None], network.field.grad.flatten()]))
        stacked = torch.stack(found)
        values[form], gradients[form] = stacked.mean(0), stacked.std(0) / 2
    error = sum(gradient.square() for gradient in gradients.values()).sqrt()
    # four repetitions: errors from 3 degrees of freedom, so a wide margin for each of nine numbers
    assert ((values["denoising"] - values["implicit"]).abs() < 12 * error + 1e-3).all()


@pytest.mark.parametrize("form", ["denoising", "implicit"])
def test_conditioning_on_the_auxiliary_start_changes_no_expectation(form):
    law = CLD(WHITE)
    denoiser = sd.Denoiser(Shifted(), law, preconditioning="wiener", data=DATA)
    x = fields(2).repeat(1000, 1, 1, 1)
    found = {}
    for conditioning in ("hybrid", "full"):
        objective = sd.EvidenceBound(denoiser, form, proposal="log_snr", t0=0.05, conditioning=conditioning)
        with torch.no_grad():
            draws = torch.stack([objective(x, generator=generator(seed)) for seed in range(4)])
        found[conditioning] = (float(draws.mean()), float(draws.std()) / 2.0)
    # what the state knows of the auxiliary start, which one of the two has to count
    interval = objective.bound().interval
    told = [mutual_information(law, torch.tensor(t).double(), 1) for t in (interval.t0, interval.t1)]
    shift = float(told[0] - told[1]) / SITES
    error = math.hypot(found["hybrid"][1], found["full"][1])
    assert error < shift / 10.0
    assert abs(found["hybrid"][0] - found["full"][0]) < shift / 4.0


def steepest(loss, parameter, slope, step):
    """The largest entry of a gradient, and the central difference of the loss by that parameter."""
    index = int(slope.abs().argmax())
    move = torch.zeros_like(parameter).flatten()
    move[index] = step
    values = []
    for sign in (1, -1):
        parameter.data += sign * move.reshape(parameter.shape)
        with torch.no_grad():
            values.append(float(loss()))
        parameter.data -= sign * move.reshape(parameter.shape)
    return float(slope.flatten()[index]), (values[0] - values[1]) / (2 * step)


def learned(total=1.5):
    return sd.LearnedDiffusion(
        cosine(Matern(nu=0.5, lengthscale=1.0)),
        variables=2,
        learn=("Q", "D", "S", "beta", "covariance"),
        beta=LearnedBeta(total=total),
    )


def test_the_closed_terms_train_the_process_and_the_covariance():
    """Gradients against differences of the exact loss.

    The denoiser is the exact posterior mean for whatever the process is, so nothing is left to chance, and
    the loss depends on the process by how far the short noising leaves the state from the prior.
    """
    law = learned(total=0.7)
    denoiser = sd.Denoiser(Zero(), law, preconditioning="wiener", data=(torch.zeros(1, 2, 4).double(), DATA))
    x = fields(6)

    def loss():
        return sd.EvidenceBound(denoiser, t0=0.2)(x, generator=generator(1))

    # not the shape of β between: the exact loss depends on its total alone
    parameters = [law.skew, law.dissipation, law.law_factor, *law.covariance.parameters()]
    for parameter, slope in zip(parameters, torch.autograd.grad(loss(), parameters), strict=True):
        found, difference = steepest(loss, parameter, slope, 1e-4)
        assert abs(found) > 1e-6
        assert found == pytest.approx(difference, rel=1e-3, abs=1e-7)


def test_the_drawn_terms_train_the_process():
    """A posterior mean that is not exact: mean gradients against differences with the same noise."""
    law = learned(total=0.7)
    denoiser = sd.Denoiser(Shifted(), law)
    x = fields(4).repeat(100, 1, 1, 1)
    found = []
    for seed in range(5):
        objective = sd.EvidenceBound(denoiser, proposal="time", t0=0.2)

        def loss(objective=objective, seed=seed):
            return objective(x, generator=generator(seed))

        (slope,) = torch.autograd.grad(loss(), law.dissipation)
        found.append(torch.tensor(steepest(loss, law.dissipation, slope, 1e-3)))
    drawn, difference = torch.stack(found).T
    # the differences hold that of the times drawn too, which has expectation zero
    gap = drawn - difference
    assert abs(float(gap.mean())) < 6 * float(gap.std()) / math.sqrt(5) + 1e-3 * abs(float(drawn.mean()))
    assert abs(float(gap.mean())) < 0.1 * abs(float(drawn.mean()))


@pytest.mark.parametrize("data", [None, DATA], ids=["plain", "fitted"])
def test_a_learned_process_descends_the_bound(data):
    """Every learned part has a gradient, and a few steps lower the loss, times and noise held fixed."""
    process = learned(total=4.0)
    denoiser = sd.Denoiser(Zero(), process, "data", "wiener" if data is not None else "none", data=data)
    objective = sd.EvidenceBound(denoiser)
    x = fields(8)
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = objective(x, generator=generator(0))
        loss.backward()
        losses.append(float(loss.detach()))
        moved = [p for p in process.parameters() if p.requires_grad]
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in moved)
        optimiser.step()
    assert losses[-1] < losses[0]


def test_the_learned_proposal_is_saved_with_the_objective():
    denoiser = sd.Denoiser(Shifted(), sd.VP(WHITE))
    objective = sd.EvidenceBound(denoiser, proposal="learned")
    assert isinstance(objective.proposal, LearnedProposal)
    objective(fields(16), generator=generator(0))
    assert int(objective.proposal.counts.sum()) == 16
    other = sd.EvidenceBound(sd.Denoiser(Shifted(), sd.VP(WHITE)), proposal="learned")
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other.proposal.squares, objective.proposal.squares)
    objective.eval()
    objective(fields(16), generator=generator(0))
    assert int(objective.proposal.counts.sum()) == 16


def test_bad_input():
    denoiser = sd.Denoiser(Shifted(), sd.VP(WHITE))
    with pytest.raises(ValueError, match="denoising, implicit"):
        sd.EvidenceBound(denoiser, "sliced")
    with pytest.raises(ValueError, match="fitted law"):
        sd.EvidenceBound(denoiser, prior="gaussian")
    with pytest.raises(ValueError, match="empty batch"):
        sd.EvidenceBound(denoiser)(fields(2)[:0])
    bridge = sd.Denoiser(Shifted(), sd.BrownianBridge(WHITE), coupling="independent")
    with pytest.raises(ValueError, match="needs a noise process"):
        sd.EvidenceBound(bridge, "implicit")
