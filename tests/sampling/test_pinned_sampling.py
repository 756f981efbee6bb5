"""Samplers on mixtures of pinned processes with auxiliary variables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.oracles import GaussianDenoiser
from spatialdiff.processes import CLD, ConstantBeta, FixedPoint, IndependentField, LinearBridge

GRID = sd.Grid((6, 4), periodic=True)
CENTRE, COUNT = 0.3, 3000


def torus(kernel):
    return sd.covariance(kernel, GRID, method="torus").double().requires_grad_(False)


def bridge(pin: str) -> LinearBridge:
    return LinearBridge(CLD(torus(Exponential(lengthscale=1.5, variance=0.8)), beta=ConstantBeta(3.0)), pin)


def spectrum_error(fields: Tensor, data) -> float:
    """The largest deviation of the power of a mode, in standard errors."""
    power = data.basis.analyze(fields[:, 0] - CENTRE).abs().square().mean(0)
    exact = data.eigenvalues()
    return float(((power - exact).abs() / (exact * (2.0 / data.basis.weights / COUNT).sqrt())).max())


@pytest.mark.parametrize(
    ("pin", "coupling", "solver"),
    [
        ("data", FixedPoint(0.5), "gaussian_sde"),
        ("state", IndependentField(1.2), "gaussian_sde"),
        ("data", IndependentField(1.2, 0.5), "gaussian"),
        ("state", IndependentField(1.2), "gaussian"),
    ],
)
def test_gaussian_data_are_reached_in_a_few_exact_steps(pin, coupling, solver):
    data = torus(Matern(nu=0.5, lengthscale=2.0))
    denoiser = GaussianDenoiser(bridge(pin), data, CENTRE, coupling=coupling)
    draws = torch.Generator().manual_seed(1)
    fields = sd.sample(denoiser, COUNT, steps=3, solver=solver, generator=draws)
    assert fields.shape == (COUNT, 1, 6, 4)
    assert spectrum_error(fields, data) < 5.0


def test_pairs_are_sampled_from_their_starts():
    """Towards a network that returns the start: the auxiliary start is drawn, the end is the start itself."""

    class Start(nn.Module):
        def forward(self, u, t, start=None):
            return u[:, :1] if start is None else start

    x0 = torch.randn(5, 1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for shown in (True, False):
        mixture = sd.BridgeMixture(sd.Denoiser(Start(), bridge("data")), "paired", condition_on_start=shown)
        drawn = sd.sample(
            mixture.denoiser,
            5,
            steps=4,
            solver="bridge",
            start=x0,
            generator=torch.Generator().manual_seed(3),
            return_path=True,
        )
        assert torch.equal(drawn[0][:, :1], x0)
        assert drawn.shape[:2] == (5, 5)
        assert torch.equal(drawn[-1][:, :1], x0) == shown
