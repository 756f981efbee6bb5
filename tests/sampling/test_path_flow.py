"""The steps of a path made at once, and kept for the next."""

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.processes import ConstantBeta
from spatialdiff.processes.flow import flow_step, flow_steps
from spatialdiff.sampling import path_flow
from spatialdiff.sampling.path_flow import kept_steps

GRID = sd.Grid((4, 6), periodic=True)
GAMMA = sd.TorusCovariance(Matern(nu=1.5, lengthscale=1.3), GRID).double().requires_grad_(False)
DATA = sd.TorusCovariance(Exponential(lengthscale=2.0), GRID).double().requires_grad_(False)
RATIO = torch.logspace(-3, 2, 5, dtype=torch.float64)
LAWS = {
    "VP": sd.VP(GAMMA),
    "CLD": sd.CLD(GAMMA),
    "ALDA": sd.ALDA(GAMMA),
    "pinned": sd.IndependentField(0.8).law(sd.LinearBridge(sd.CLD(GAMMA, beta=ConstantBeta(1.0)))),
}


def grid(law):
    return torch.linspace(law.start_time, law.end_time, 6, dtype=torch.float64)


@pytest.mark.parametrize("frame", ["endpoint", "angle"])
@pytest.mark.parametrize("name", LAWS)
def test_a_path_is_its_steps(name, frame):
    law, times = LAWS[name], grid(LAWS[name])
    path = flow_steps(law, times, RATIO, frame=frame)
    assert path.M.shape == (5, 5, law.variables, law.variables)
    for i in range(5):
        one = flow_step(law, times[i], times[i + 1], RATIO, frame=frame)
        torch.testing.assert_close(path.M[i], one.M, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(path.W[i], one.W, rtol=1e-8, atol=1e-8)


def test_a_step_of_no_length_changes_nothing():
    law = LAWS["CLD"]
    path = flow_steps(law, torch.tensor([0.6, 0.6, 0.3, 0.0, 0.0], dtype=torch.float64), RATIO)
    eye = torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    for i in (0, 3):
        assert torch.equal(path.M[i], eye)
        assert float(path.W[i].abs().max()) == 0.0


def test_chunks_change_nothing(monkeypatch):
    from spatialdiff.processes import rotating_frame

    law, times = LAWS["ALDA"], grid(LAWS["ALDA"])
    whole = flow_steps(law, times, RATIO)
    monkeypatch.setattr(rotating_frame, "CHUNK", 1)
    torch.testing.assert_close(flow_steps(law, times, RATIO).M, whole.M, rtol=1e-13, atol=1e-13)


def counted(monkeypatch):
    calls = []
    original = path_flow.flow_steps
    monkeypatch.setattr(path_flow, "flow_steps", lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


@pytest.mark.parametrize("solver", ["ddim", "heun", "gaussian"])
def test_a_second_sample_asks_for_no_flow_and_is_the_same(monkeypatch, solver):
    law = sd.CLD(GAMMA)
    oracle = sd.oracles.GaussianDenoiser(law, DATA)
    calls = counted(monkeypatch)

    def draw(steps=4):
        return sd.sample(oracle, 2, solver=solver, steps=steps, generator=torch.Generator().manual_seed(0))

    first = draw()
    assert len(calls) == 1
    assert torch.equal(draw(), first)
    assert len(calls) == 1
    assert not torch.equal(draw(5), first)
    assert len(calls) == 2


def test_what_is_kept_is_not_used_for_a_law_that_changed(monkeypatch):
    law = sd.CLD(GAMMA)
    times = grid(law)
    before = kept_steps(law, times, RATIO, "endpoint")
    law.schedule = ConstantBeta(2.0)
    after = kept_steps(law, times, RATIO, "endpoint")
    assert not torch.allclose(before.M, after.M, rtol=1e-3)
    torch.testing.assert_close(after.M, flow_steps(law, times, RATIO).M)


def test_nothing_is_kept_where_a_law_learns():
    law = sd.LearnedDiffusion(GAMMA, variables=2)
    times = grid(law).clone()
    for _ in range(2):
        found = kept_steps(law, times, RATIO, "endpoint")
        (slope,) = torch.autograd.grad(found.M.sum(), [next(iter(law.learned_parameters()))])
        assert bool(slope.abs().max() > 0)
