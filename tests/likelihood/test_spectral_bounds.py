"""Evidence bounds of spectral processes are tight for Gaussian data and the exact posterior mean."""

from __future__ import annotations

import pytest
import torch

from spatialdiff.covariance import CosineCovariance, TorusCovariance
from spatialdiff.denoisers import GaussianDenoiser
from spatialdiff.domains import Grid
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.likelihood import evidence_bound
from spatialdiff.processes import ConstantBeta, LinearBeta
from spatialdiff.processes.spectral import FrequencyVP, HeatDissipation, SpectralDiffusion, StochasticHeat

TORUS = Grid((6, 5), periodic=True)
NEUMANN = Grid((5, 4))


def damped_wave(gamma):
    def drift(v):
        zero, one = torch.zeros_like(v), torch.ones_like(v)
        return torch.stack([torch.stack([zero, one], -1), torch.stack([-1.0 - v, -3.0 * one], -1)], -2)

    return SpectralDiffusion(gamma, drift, [[0.0, 0.0], [0.0, 2.0]], beta=ConstantBeta(1.0, 4.0))


MAKERS = {
    "heat dissipation": lambda g: HeatDissipation(g, 1.4),
    "pure heat dissipation": lambda g: HeatDissipation(g, 1.4, floor=0.0),
    "frequency VP": lambda g: FrequencyVP(g, lambda v: 1.0 + v / 10.0, LinearBeta(0.1, 8.0)),
    "stochastic heat": lambda g: StochasticHeat(g, 0.3, 0.2, beta=LinearBeta(0.3, 4.0)),
    "damped waves": damped_wave,
}


@pytest.mark.parametrize("domain", ["torus", "cosine"])
@pytest.mark.parametrize("name", MAKERS)
def test_bound_is_the_log_density(name, domain):
    if domain == "torus":
        gamma = TorusCovariance(Exponential(lengthscale=1.5, variance=0.8), TORUS).double()
        data = TorusCovariance(Matern(nu=1.5, lengthscale=1.2), TORUS).double()
    else:
        gamma = CosineCovariance(Matern(nu=1.5, lengthscale=1.2, variance=1.3), NEUMANN).double()
        data = CosineCovariance(Exponential(lengthscale=2.0), NEUMANN).double()
    x = data.sample(8, generator=torch.Generator().manual_seed(0))[:, None]
    denoiser = GaussianDenoiser(MAKERS[name](gamma), data, channels=1)
    exact = data.log_prob(x[:, 0]) / x[0].numel()
    # the prior is the exact marginal at the end, so that nothing but the integral is left to be wrong
    found = evidence_bound(denoiser, x, prior="gaussian", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.nats_per_site, exact, rtol=0, atol=1e-5)
