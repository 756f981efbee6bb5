"""Matrix-free covariances: the shared case with both engines, and what only they do."""

from __future__ import annotations

from typing import ClassVar

import torch
from covariance_case import CovarianceCase

import spatialdiff as sd
from spatialdiff.covariance.matrix_free import MatrixFreeCovariance
from spatialdiff.domains import Points
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget


def scattered(n, d=2, seed=0, extent=4.0):
    g = torch.Generator().manual_seed(seed)
    return Points(torch.rand(n, d, generator=g, dtype=torch.float64) * extent)


class _Case(CovarianceCase):
    grid = scattered(20)
    backend = "plain"

    def build(self, kernel):
        return MatrixFreeCovariance(kernel, self.grid, self.channels, backend=self.backend, tolerance=2e-12)


class TestPlain(_Case):
    pass


class TestNumba(_Case):
    backend = "numba"


class TestNumbaWithCorrelatedChannels(_Case):
    backend = "numba"
    grid = scattered(12, 3)
    channels: ClassVar = [[1.0, 0.4], [0.4, 2.0]]

    def kernel(self):
        return (
            Exponential(lengthscale=[1.6, 2.0, 0.9], variance=1.2)
            + Gaussian(lengthscale=0.8, variance=0.5)
            + Nugget(0.2)
        )


class TestPairs(_Case):
    """A kernel that is no closed form, on a grid with a hole."""

    grid = sd.Grid((4, 5)).masked(torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.3)
    channels = 2

    def kernel(self):
        return Matern(nu=1.5, lengthscale=1.6, variance=1.7) * Matern(nu=0.5, lengthscale=3.0) + Nugget(0.2)
