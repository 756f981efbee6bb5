"""A process that is learned is trained, averaged, saved and resumed with the network."""

from __future__ import annotations

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Matern
from spatialdiff.objectives import EvidenceBound
from spatialdiff.processes.learned import LearnedDiffusion

GRID = sd.Grid((6, 6))
LEARN = ("Q", "D", "S", "beta", "covariance")
DATA = sd.covariance(Matern(nu=0.5, lengthscale=4.0), GRID, method="cosine").requires_grad_(False)
FIELDS = DATA.sample((64, 1), generator=torch.Generator().manual_seed(0))


class Network(torch.nn.Module):
    """A linear map of the state and of the time."""

    def __init__(self, variables):
        super().__init__()
        self.mixing = torch.nn.Conv2d(variables + 1, 1, 3, padding=1)

    def forward(self, state, t):
        time = t.to(state).reshape(-1, 1, 1, 1).expand(-1, 1, *state.shape[2:])
        return self.mixing(torch.cat([state, time], 1))


def trainer(run_dir=None, learn=LEARN, **options):
    torch.manual_seed(0)
    gamma = sd.covariance(Matern(nu=1.5, lengthscale=2.0), GRID, method="cosine")
    process = LearnedDiffusion(gamma, variables=2, learn=learn)
    denoiser = sd.Denoiser(Network(2), process, preconditioning="edm")
    options = {"lr": 1e-2, "checkpoint_every": 5, "tensorboard": False, "progress": False} | options
    return sd.Trainer(EvidenceBound(denoiser), run_dir=run_dir, batch_size=16, **options)


def learned(made):
    return [p.detach().clone() for p in made.objective.denoiser.process.learned_parameters()]


def test_everything_named_moves_and_the_process_stays_valid():
    made = trainer()
    before = learned(made)
    made.fit(FIELDS, steps=12)
    process = made.objective.denoiser.process
    assert all(not torch.equal(a, b) for a, b in zip(before, learned(made), strict=True))
    skew, dissipation, law = process.dynamics()
    assert torch.equal(skew, -skew.mT)
    assert float(torch.linalg.eigvalsh(dissipation).min()) >= process.floor * (1 - 1e-9)
    assert float(torch.linalg.eigvalsh(law).min()) > 0
    # the stationary law is that of the matrices, for whatever parameters
    A, G, _ = process.matrices()
    torch.testing.assert_close(A @ law + law @ A.mT + G, torch.zeros_like(A), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", LEARN)
def test_what_is_not_named_stays(name):
    made = trainer(learn=(name,))
    state = {k: v.clone() for k, v in made.objective.denoiser.process.state_dict().items()}
    made.fit(FIELDS, steps=3)
    moved = {
        k for k, v in made.objective.denoiser.process.state_dict().items() if not torch.equal(v, state[k])
    }
    owner = {"Q": "skew", "D": "dissipation", "S": "law_factor", "beta": "schedule"}
    assert moved
    assert all(key.startswith(owner.get(name, name)) for key in moved)


def test_a_denoising_loss_is_refused():
    gamma = sd.covariance(Matern(nu=1.5, lengthscale=2.0), GRID, method="cosine")
    with pytest.raises(ValueError, match="EvidenceBound"):
        sd.Denoising(sd.Denoiser(Network(2), LearnedDiffusion(gamma, 2)))
    sd.Denoising(sd.Denoiser(Network(2), LearnedDiffusion(gamma, 2, learn=())))


def test_a_resumed_run_makes_the_same_process(tmp_path):
    whole = trainer(tmp_path / "whole").fit(FIELDS, steps=10)
    trainer(tmp_path / "parts").fit(FIELDS, steps=10, time_limit=1e-9)
    resumed = trainer(tmp_path / "parts").fit(FIELDS, steps=10)
    for a, b in zip(learned(whole), learned(resumed), strict=True):
        assert torch.equal(a, b)
    first, second = whole.ema_denoiser(), resumed.ema_denoiser()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_averaged_denoiser_has_the_averaged_process():
    made = trainer(ema_decay=0.9).fit(FIELDS, steps=8)
    averaged = made.ema_denoiser()
    now, mean = learned(made), list(averaged.process.learned_parameters())
    assert all(not torch.equal(a, b) for a, b in zip(now, mean, strict=True))
    assert not any(p.requires_grad for p in mean)
    fields = sd.sample(averaged, 3, steps=4, generator=torch.Generator().manual_seed(0))
    assert fields.shape == (3, 1, 6, 6)
    assert bool(torch.isfinite(fields).all())
