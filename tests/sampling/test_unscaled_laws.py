"""Processes of one variable whose state is not scaled as the statistic is: one law, written two ways."""

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.likelihood import probability_flow
from spatialdiff.processes import ConstantBeta
from spatialdiff.processes.flow import flow_step

GRID = sd.Grid((3, 4), periodic=True)
GAMMA = sd.TorusCovariance(Matern(nu=1.5, lengthscale=1.3), GRID).double().requires_grad_(False)
DATA = sd.TorusCovariance(Exponential(lengthscale=2.0), GRID).double().requires_grad_(False)
# stationary variance 5: φ² + Σ is far from 1
SCALAR = sd.OrnsteinUhlenbeck(GAMMA, 0.1, horizon=30.0)
LINEAR = sd.LinearDiffusion(GAMMA, [[-0.1]], [[1.0]], beta=ConstantBeta(1.0, 30.0))
SOLVERS = ["ddim", "exponential", "euler", "heun", "adaptive", "gaussian", "ancestral"]


def oracle(law):
    return sd.oracles.GaussianDenoiser(law, DATA, mean=0.4)


def test_the_two_have_the_same_law():
    t = torch.tensor([3.0, 12.0], dtype=torch.float64)
    for one, other in zip(SCALAR.marginal(t), LINEAR.marginal(t), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert float((LINEAR.alpha(t) - SCALAR.alpha(t)).abs().max()) > 0.01


def test_one_flow():
    ratio = torch.tensor([0.0, 0.3, 20.0], dtype=torch.float64)
    one, other = (flow_step(law, 20.0, 5.0, ratio) for law in (SCALAR, LINEAR))
    torch.testing.assert_close(one.M, other.M, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.W, other.W, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_sample(solver):
    times = torch.tensor([30.0, 15.0, 6.0, 2.0, 0.3, 0.0], dtype=torch.float64)
    one, other = (
        sd.sample(oracle(law), 3, solver=solver, grid=times, generator=torch.Generator().manual_seed(0))
        for law in (SCALAR, LINEAR)
    )
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_gaussian_step_is_exact():
    error = sd.oracles.gaussian_transport_error(LINEAR, "gaussian", 3, (0.4, DATA)).relative
    assert error < 1e-9


@pytest.mark.parametrize("t0", [0.1, 1.0])
def test_one_likelihood(t0):
    x = 0.4 + DATA.sample((2, 1), generator=torch.Generator().manual_seed(1))
    found = probability_flow(oracle(LINEAR), x, divergence="exact", t0=t0, prior="gaussian")
    expected = DATA.log_prob(x[:, 0] - 0.4)
    torch.testing.assert_close(found.value, expected, rtol=0, atol=1e-5 * GRID.size)
