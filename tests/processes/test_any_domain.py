"""Processes, bridges, oracles and samplers on every kind of domain: nothing in them knows of grids."""

from __future__ import annotations

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern, Nugget

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

F64 = torch.float64
MASK = torch.arange(20).reshape(4, 5) % 4 > 0
SITES = torch.rand(14, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
GAMMAS = {
    "points": lambda k: sd.covariance(k, sd.Points(SITES), method="dense"),
    "vecchia": lambda k: sd.covariance(k, sd.Points(SITES), method="vecchia", neighbors=5),
    "matrix_free": lambda k: sd.covariance(k, sd.Points(SITES), method="matrix_free", backend="plain"),
    "rectilinear": lambda k: sd.covariance(k, sd.RectilinearGrid([[0.0, 0.2, 0.7], [0.0, 0.1, 0.5, 0.6]])),
    "masked": lambda k: sd.covariance(k, sd.Grid((4, 5), 0.25).masked(MASK)),
    "masked circulant": lambda k: sd.covariance(k, sd.Grid((4, 5), 0.25).masked(MASK), method="circulant"),
    "mesh": lambda k: sd.covariance(k.kernels[0], sd.Mesh.from_grid(sd.Grid((4, 4), 0.25)), method="spde"),
    "graph": lambda k: sd.covariance(k.kernels[0], sd.Graph.grid((3, 4)), method="graph"),
    "sphere": lambda k: sd.covariance(k, sd.Sphere((4, 6), poles=False)),
    "sum": lambda k: sd.covariance(k, sd.Points(SITES)) + sd.white(sd.Points(SITES), variance=0.1),
    "scaled": lambda k: sd.covariance(k, sd.Grid((3, 4), 0.25)).scaled(torch.linspace(0.5, 1.5, 4)),
}


@pytest.fixture(params=GAMMAS)
def gamma(request):
    kernel = Matern(1.5, 0.6, 1.2) + Nugget(0.05)
    return GAMMAS[request.param](kernel).requires_grad_(False).double()


def valid(gamma, x):
    return gamma.domain.flatten(x)


def test_marginal_law_of_the_noise(gamma):
    """``u_t - α x`` has covariance ``σ² Γ``: every pair of sites, each entry within 5.5 of its deviations."""
    process = sd.VP(gamma)
    count, t = 4000, 0.4
    x = torch.randn(1, 1, *gamma.domain.shape, dtype=F64).expand(count, -1, *(-1,) * gamma.domain.ndim)
    u, noise = process.perturb(x, torch.full((count,), t), generator=torch.Generator().manual_seed(1))
    phi, sigma = process.marginal(torch.tensor(t))
    residual = valid(gamma, u - phi.squeeze().to(F64) * x).squeeze(1)
    dense = gamma.to_dense()
    keep = valid(gamma, torch.arange(len(dense)).reshape(gamma.domain.shape))
    expected = sigma.squeeze() * dense[keep[:, None], keep]
    error = residual.T @ residual / count - expected
    d = expected.diagonal()
    deviation = ((d[:, None] * d + expected.square()) / count).sqrt()
    assert (error / deviation).abs().max().item() < 5.5
    torch.testing.assert_close(
        valid(gamma, noise) * sigma.squeeze().sqrt(), residual[:, None], rtol=0, atol=1e-9
    )


def test_posterior_mean_of_gaussian_data(gamma):
    """Data from ``N(0, c Γ)``: the posterior mean is one gain everywhere."""
    process = sd.VP(gamma)
    scale = 0.7
    data = gamma.scaled(scale**0.5)
    phi, sigma = (v.squeeze() for v in process.marginal(torch.tensor(0.3)))
    u = gamma.sample((3, 1))
    gain = scale * phi / (scale * phi.square() + sigma)
    oracle = sd.oracles.GaussianDenoiser(process, data)
    mean = oracle(u, torch.full((3,), 0.3))
    torch.testing.assert_close(valid(gamma, mean), gain * valid(gamma, u), rtol=1e-6, atol=1e-8)


def test_bridges(gamma):
    """Pinned at both ends on any domain."""
    bridge = sd.BrownianBridge(gamma)
    x0, x1 = gamma.sample((2, 1)), gamma.sample((2, 1))
    for t, end in ((0.0, x0), (1.0, x1)):
        x, _ = bridge.perturb(x0, x1, torch.full((2,), t))
        torch.testing.assert_close(valid(gamma, x), valid(gamma, end), rtol=0, atol=1e-9)


def test_coregionalized_noise():
    """Channels with a covariance between them, in a process and its sampler."""
    grid = sd.Grid((4, 4), periodic=True)
    b = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=F64)
    model = sd.kernels.Coregionalization([(b, Matern(1.5, 1.5)), (torch.eye(2), Exponential(1.0, 0.3))])
    gamma = sd.covariance(model, grid).requires_grad_(False).double()
    process = sd.VP(gamma)
    u, _ = process.perturb(
        torch.zeros(4000, 2, 4, 4, dtype=F64), torch.ones(4000), generator=torch.Generator().manual_seed(0)
    )
    sigma = process.marginal(torch.tensor(1.0))[1].squeeze()
    dense = sigma * gamma.to_dense()
    flat = u.flatten(1)
    error = flat.T @ flat / 4000 - dense
    d = dense.diagonal()
    assert (error / ((d[:, None] * d + dense.square()) / 4000).sqrt()).abs().max().item() < 5.5
