"""Circulant embeddings of every kind, and the reflections of a grid, through the shared case."""

from __future__ import annotations

import gpytorch
import pytest
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance.grids.circulant import CirculantCovariance
from spatialdiff.covariance.grids.reflection import ReflectionCovariance
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

B2 = [[1.0, 0.3], [0.3, 0.5]]


class TestCirculant1(CovarianceCase):
    grid = sd.Grid(10, spacing=0.7)
    invertible_root = False
    embedding = "auto"
    kind = "plain"

    def build(self, kernel):
        gamma = CirculantCovariance(
            kernel, self.grid, self.channels, tolerance=1e-12, embedding=self.embedding
        )
        assert gamma.plan.kind == self.kind
        return gamma


class TestCirculant2(TestCirculant1):
    grid = sd.Grid((4, 5))


class TestCirculant3(TestCirculant1):
    grid = sd.Grid((2, 3, 2))
    channels = B2

    def kernel(self):
        return Exponential(1.0, 1.4)


class TestCirculantCylinder(TestCirculant1):
    """Periodic along the second axis only: the halved axis of the real FFT is then the first."""

    grid = sd.Grid((5, 4), periodic=(False, True))

    def kernel(self):
        return Matern(1.5, 0.9, 1.7)

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=15)


class TestCirculantCylinderFirst(TestCirculantCylinder):
    grid = sd.Grid((3, 5), periodic=(True, False))
    channels = 2


class TestCirculantPipe3(TestCirculantCylinder):
    grid = sd.Grid((3, 2, 4), periodic=(False, True, True))

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=8)


class TestCirculantGpytorch(TestCirculant1):
    """No reflection symmetry is assumed of a foreign kernel."""

    grid = sd.Grid((4, 5))

    def kernel(self):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(0.5)).double()
        kernel.base_kernel.lengthscale = 1.2
        return kernel


class TestCutoff1(TestCirculant1):
    embedding = kind = "cutoff"

    def kernel(self):
        return Matern(0.5, 9.0, 1.7) + Nugget(0.2)


class TestCutoff2(TestCutoff1):
    """Two terms of different anisotropy, each cut off in its own metric."""

    grid = sd.Grid((5, 4), spacing=(1.0, 0.5))
    channels = B2

    def kernel(self):
        return Exponential((6.0, 3.0), 1.2) + Exponential(4.0, 0.5) + Nugget(0.1)


class TestIntrinsic1(TestCirculant1):
    embedding = kind = "intrinsic"

    def kernel(self):
        return Matern(1.5, 25.0, 1.7) + Nugget(0.2)


class TestIntrinsic2(TestIntrinsic1):
    grid = sd.Grid((5, 4), spacing=(1.0, 0.5))

    def kernel(self):
        return Matern(0.5, (12.0, 7.0), 1.7)


class TestIntrinsic3(TestIntrinsic1):
    grid = sd.Grid((3, 2, 4))
    channels = B2

    def kernel(self):
        return Exponential(8.0, 1.2) + Matern(1.5, (5.0, 6.0, 7.0), 0.5) + Nugget(0.1)


class TestReflection1(CovarianceCase):
    grid = sd.Grid(9, spacing=0.7)

    def build(self, kernel):
        return ReflectionCovariance(kernel, self.grid, self.channels)


class TestReflection2(TestReflection1):
    grid = sd.Grid((4, 6))


class TestReflectionOdd2(TestReflection1):
    grid = sd.Grid((4, 5), spacing=(0.5, 1.0))
    channels = B2


class TestReflection3(TestReflection1):
    grid = sd.Grid((3, 2, 4))

    def kernel(self):
        return Matern(1.5, (1.0, 2.0, 3.0), 1.2) * Gaussian(4.0) + Nugget(0.3)


class TestReflectionCylinder(TestReflection1):
    grid = sd.Grid((5, 4), periodic=(False, True))

    def kernel(self):
        return Matern(1.5, 0.9, 1.7)

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=15)


class TestReflectionGpytorch(TestReflection1):
    """A foreign kernel has the symmetry of a half turn only."""

    grid = sd.Grid((3, 5))

    def kernel(self):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(1.5)).double()
        kernel.base_kernel.lengthscale = 1.2
        return kernel
