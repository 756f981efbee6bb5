"""The probability flow of bridges of linear processes: exact densities, pinned in the data and the state."""

from __future__ import annotations

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.likelihood import probability_flow
from spatialdiff.processes import CLD, VP, BrownianMotion, LinearBridge, LinearDiffusion, StochasticHeat
from spatialdiff.processes.schedules import ConstantBeta

GRID = sd.Grid((2, 3), periodic=True)
GAMMA = sd.covariance(Exponential(2.0), GRID).double().requires_grad_(False)
DATA = sd.covariance(Matern(nu=1.5, lengthscale=1.2), GRID).double().requires_grad_(False)
ONE = ConstantBeta(1.0, 1.0)
#: the reference, what is pinned of it, and whether every derivative is taken from the denoiser itself
CASES = {
    "BrownianMotion": (BrownianMotion(GAMMA), "data", True),
    "VP": (VP(GAMMA), "data", False),
    "unscaled": (LinearDiffusion(GAMMA, [[-0.1]], [[1.0]], beta=ConstantBeta(1.0, 5.0)), "data", False),
    "CLD": (CLD(GAMMA, beta=ConstantBeta(4.0)), "data", False),
    "CLD, state": (CLD(GAMMA, beta=ConstantBeta(4.0)), "state", True),
    "heat": (StochasticHeat(GAMMA, 0.1, 0.1, beta=ONE), "data", False),
}


@pytest.mark.parametrize("name", CASES)
def test_the_density_of_gaussian_data(name):
    reference, pin, exactly = CASES[name]
    oracle = sd.oracles.GaussianDenoiser(
        LinearBridge(reference, pin=pin), DATA, coupling="independent", channels=1
    )
    x = DATA.sample((2, 1), generator=torch.Generator().manual_seed(0))
    exact = DATA.log_prob(x[:, 0])
    # without the model's part every derivative is the denoiser's own
    for divergence in ("hutchinson", "exact") if exactly else ("hutchinson",):
        found = probability_flow(
            oracle,
            x,
            prior="gaussian",
            control=divergence == "hutchinson",
            divergence=divergence,
            samples=2,
            rtol=1e-5,
            atol=1e-5,
            generator=torch.Generator().manual_seed(1),
        )
        # the tolerance of the integrator, on both ends of the path
        assert torch.allclose(found.value, exact, rtol=0, atol=1e-4 * GRID.size)


def test_a_denoiser_without_gradients_is_refused():
    law = VP(GAMMA)
    oracle = sd.oracles.GaussianDenoiser(law, DATA, channels=1)
    given = oracle.forward

    def silent(*args, **kwargs):
        return given(*args, **kwargs).detach()

    oracle.forward = silent
    x = DATA.sample((2, 1), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="autograd finds none"):
        probability_flow(oracle, x)
    bound = sd.EvidenceBound(oracle, form="implicit")
    with pytest.raises(ValueError, match="autograd finds none: the denoiser ignores the state"):
        bound(x)
