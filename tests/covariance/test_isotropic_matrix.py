"""The compiled matrix of an isotropic closed form against the kernel itself."""

from __future__ import annotations

import pytest
import torch

from spatialdiff.covariance.points.conditionals import as_isotropic
from spatialdiff.covariance.points.isotropic_matrix import isotropic_matrix
from spatialdiff.kernels import Anisotropic, Exponential, Gaussian, Matern, Nugget, at_pairs

KERNELS = [
    Exponential(0.3, variance=1.7) + Nugget(0.2),
    Matern(nu=1.5, lengthscale=[0.2, 0.5], variance=0.6),
    Matern(nu=2.5, lengthscale=0.4) + Nugget(0.1) + Nugget(0.05),
    Gaussian(0.2, variance=3.0) + Nugget(0.3),
    Anisotropic(Matern(nu=1.5, lengthscale=0.3), ratios=[2.0], angles=[0.4]) + Nugget(0.1),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_matrix_and_derivatives_are_those_of_the_kernel(kernel):
    g = torch.Generator().manual_seed(0)
    sites = torch.rand(37, 2, generator=g, dtype=torch.float64)
    weight = torch.randn(37, 37, generator=g, dtype=torch.float64)
    closed = as_isotropic(kernel, 2)
    assert closed is not None
    fast = isotropic_matrix(closed, sites)
    slow = at_pairs(kernel, sites[:, None], sites[None])
    torch.testing.assert_close(fast, slow, rtol=1e-13, atol=1e-14)
    parameters = list(kernel.parameters())
    ours = torch.autograd.grad((weight * fast).sum(), parameters)
    theirs = torch.autograd.grad((weight * slow).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
