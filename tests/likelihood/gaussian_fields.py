"""Gaussian data whose density is known, and every kind of process, for the tests of likelihoods."""

import torch

import spatialdiff as sd
from spatialdiff.kernels import Matern
from spatialdiff.processes import ALDA, CLD, MALDA, LinearDiffusion

GRID = sd.Grid((2, 4))
SITES = 8
MEAN = torch.full((1, 2, 4), 0.1, dtype=torch.float64)


def covariance(kernel):
    return sd.covariance(kernel, GRID, method="cosine").double().requires_grad_(False)


DATA = covariance(Matern(nu=0.5, lengthscale=1.0, variance=0.7))
GAMMAS = {
    "white": sd.white(GRID).double(),
    "matern": covariance(Matern(nu=1.5, lengthscale=1.0)),
}


def random_stable(gamma, variables=4):
    """Random skew Q, random D ⪰ 0 and S ≻ 0."""
    generator = torch.Generator().manual_seed(3)
    m, low, root = (
        torch.randn(variables, variables, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    stationary = torch.eye(variables, dtype=torch.float64) + 0.2 * root @ root.T
    return LinearDiffusion.from_stationary(gamma, m - m.T, 0.5 * low @ low.T, stationary)


PROCESSES = {
    "VP": sd.VP,
    "CLD": CLD,
    "ALDA": ALDA,
    "MALDA": lambda gamma: MALDA(gamma, variables=3),
    "random": random_stable,
}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def fields(count=3, seed=0):
    return DATA.sample((count, 1), generator=generator(seed)) + MEAN


def exact(x):
    """log N(x; μ, C) by dense linear algebra, nats per field."""
    law = torch.distributions.MultivariateNormal(MEAN.flatten(), DATA.to_dense())
    return law.log_prob(x.flatten(1))


def oracle(process, gamma="white"):
    make = PROCESSES[process] if isinstance(process, str) else process
    return sd.oracles.GaussianDenoiser(make(GAMMAS[gamma]), DATA, MEAN)
