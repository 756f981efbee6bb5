"""Derivatives at other parameters than a structure was built with, where a backward pass makes its kernel."""

from __future__ import annotations

import importlib

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting.likelihoods.iterative import IterativeLikelihood
from spatialdiff.fitting.likelihoods.near_inverse import NearInverse
from spatialdiff.fitting.likelihoods.structured import StructuredLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Exponential, Matern, Nugget, RationalQuadratic

G = torch.Generator().manual_seed(0)
POINTS = sd.Points(torch.rand(120, 2, generator=G, dtype=torch.float64))
FIELDS = torch.randn(2, 120, generator=G, dtype=torch.float64)
KERNELS = [RationalQuadratic(0.2) + Nugget(0.3), Matern(nu=1.5, lengthscale=0.2) + Nugget(0.3)]


def assert_slope(function, theta):
    point = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(point), point)
    steps = 1e-5 * torch.eye(len(theta), dtype=torch.float64)
    differences = torch.stack([(function(theta + s) - function(theta - s)).detach() / 2e-5 for s in steps])
    torch.testing.assert_close(slope, differences, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_iterative_likelihood(kernel):
    model = KernelParameters(kernel)
    likelihood = IterativeLikelihood(model, observe(FIELDS, POINTS, "constant"), probes=4)
    assert_slope(likelihood, model.start() + 0.3)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_rows_made_in_chunks(kernel, monkeypatch):
    monkeypatch.setattr(
        importlib.import_module("spatialdiff.covariance.points.conditionals"), "_ENTRIES", 2000
    )
    model = KernelParameters(kernel)
    near = NearInverse(model, POINTS.sites(), 8)
    weight = torch.randn(120, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_slope(lambda theta: (near.rows(theta) * weight).sum(), model.start() + 0.3)
    vecchia = StructuredLikelihood(model, observe(FIELDS, POINTS, "constant"), "vecchia", neighbors=8)
    assert_slope(vecchia, model.start() + 0.3)


def test_axes_decomposed_in_the_backward_pass():
    grid = sd.Grid((6, 7))
    model = KernelParameters(
        sd.kernels.Separable(Exponential(2.0), Matern(nu=1.5), axes=((0,), (1,))), ["matern.variance"]
    )
    fields = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    likelihood = StructuredLikelihood(model, observe(fields, grid, "constant"), "kronecker")
    assert_slope(likelihood, model.start() + 0.3)
