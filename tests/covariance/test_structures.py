"""Every structure through the shared case."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from covariance_case import CovarianceCase, cosine_projection, pairwise

import spatialdiff as sd
from spatialdiff.covariance import (
    CosineCovariance,
    DenseCovariance,
    TorusCovariance,
    WhiteCovariance,
)
from spatialdiff.kernels import Gaussian, Matern, Nugget

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

B = [[1.0, 0.4, 0.1], [0.4, 2.0, -0.3], [0.1, -0.3, 0.7]]

B2 = [[1.0, 0.3], [0.3, 0.5]]


class TestWhite(CovarianceCase):
    def kernel(self):
        return Nugget(1.3)

    def build(self, kernel):
        return WhiteCovariance(self.grid, kernel, self.channels)


class TestWhiteChannels(TestWhite):
    channels = B


class TestDense(CovarianceCase):
    def build(self, kernel):
        return DenseCovariance(kernel, self.grid, self.channels)


class TestDenseChannels(TestDense):
    grid = sd.Grid((2, 3))
    channels = B


class TestDenseNonStationary(TestDense):
    grid = sd.Grid(7, spacing=0.5)

    def kernel(self):
        return gpytorch.kernels.ScaleKernel(gpytorch.kernels.LinearKernel()).double() + Nugget(0.5)

    def test_follows_changed_parameters(self):
        kernel = self.kernel()
        gamma = self.build(kernel).requires_grad_(False)
        before = gamma.variance()
        kernel.kernels[1].variance = 0.9
        torch.testing.assert_close(gamma.variance() - before, torch.full((7,), 0.4, dtype=torch.float64))


class TestDenseGpytorchTorus(TestDense):
    """A foreign kernel on the torus goes through the sum over images."""

    grid = sd.Grid((4, 3), periodic=True)

    def kernel(self):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(2.5, ard_num_dims=2)).double()
        kernel.base_kernel.lengthscale = torch.tensor([[0.7, 0.5]])
        return kernel

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=15)


class TestTorus1(CovarianceCase):
    grid = sd.Grid(9, spacing=0.8, periodic=True)

    def build(self, kernel):
        return TorusCovariance(kernel, self.grid, self.channels)


class TestTorus2(TestTorus1):
    grid = sd.Grid((4, 6), spacing=(0.7, 1.0), periodic=True)

    def kernel(self):
        return Matern(0.5, (0.9, 1.2), 1.2) + Matern(2.5, 1.1, 0.5)

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=12)


class TestTorus3(TestTorus1):
    grid = sd.Grid((3, 2, 4), periodic=True)

    def kernel(self):
        return Matern(1.5, 0.8, 1.2) * Gaussian(1.0) + Nugget(0.3)

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=3)


class TestTorusChannels(TestTorus1):
    grid = sd.Grid((3, 4), periodic=True)
    channels = B

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=15)


class TestTorusGpytorch(TestTorus1):
    grid = sd.Grid((4, 5), periodic=True)
    channels = 2

    def kernel(self):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double()
        kernel.base_kernel.lengthscale = 0.8
        return kernel

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=4)


class TestCosine(CovarianceCase):
    def build(self, kernel):
        return CosineCovariance(kernel, self.grid, self.channels)

    def spatial(self, kernel):
        return cosine_projection(kernel, self.grid)


class TestCosine1(TestCosine):
    grid = sd.Grid(11, spacing=0.6)
    channels = 2


class TestCosine3(TestCosine):
    grid = sd.Grid((3, 2, 4))
    channels = B2


class TestCosineGpytorch(TestCosine):
    """No reflection symmetry is assumed of a foreign kernel."""

    def kernel(self):
        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(1.5)).double()
        kernel.base_kernel.lengthscale = 1.2
        return kernel


class _FromSpectrum(CovarianceCase):
    """Eigenvalues are given: no kernel, no parameters."""

    has_kernel = False
    batches = False
    channels = 2

    def spectrum(self):
        raise AssertionError("a case gives spectrum()")

    def kernel(self):
        return Nugget(1.0)

    @pytest.mark.parametrize("name", ["none"])
    def test_gradients(self, name):
        assert list(self.build(self.kernel()).parameters()) == []

    def test_gradient_of_expected_square(self):
        assert not self.root(self.build(self.kernel())).requires_grad

    def test_follows_changed_parameters(self):
        gamma = self.build(self.kernel())
        before = gamma.to_dense()
        gamma.spectrum.mul_(2.0)
        torch.testing.assert_close(gamma.to_dense(), 2 * before)

    def test_eigenvalues(self, gamma, matrix):
        assert torch.equal(gamma.eigenvalues(), self.spectrum())

    def dense(self, kernel):
        return torch.block_diag(*(self.block(s) for s in self.spectrum()))


class TestCosineFromSpectrum(_FromSpectrum):
    grid = sd.Grid((3, 5))

    def spectrum(self):
        k = sd.covariance(Matern(1.5, 2.0), self.grid, method="cosine").basis.wavenumbers
        return torch.stack([1 / (0.1 + k**2), 2 / (0.1 + k)])

    def build(self, kernel):
        return CosineCovariance.from_spectrum(self.grid, self.spectrum(), channels=2)

    def block(self, spectrum):
        import scipy.fft

        one, two = (
            torch.from_numpy(scipy.fft.dct(torch.eye(n, dtype=torch.float64).numpy(), axis=0, norm="ortho"))
            for n in self.grid.shape
        )
        modes = torch.kron(one, two)
        return modes.T @ torch.diag(spectrum.flatten()) @ modes


class TestTorusFromSpectrum(_FromSpectrum):
    grid = sd.Grid((4, 3), periodic=True)

    def spectrum(self):
        k = sd.covariance(Matern(1.5, 2.0), self.grid).basis.wavenumbers
        return torch.stack([1 / (0.1 + k**2), 2 / (0.1 + k)])

    def build(self, kernel):
        return sd.covariance(spectrum=self.spectrum(), domain=self.grid, channels=2, method="torus")

    def block(self, spectrum):
        row = torch.fft.irfftn(spectrum, s=self.grid.shape)
        i, j = (v.flatten() for v in torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij"))
        return row[(i[:, None] - i) % 4, (j[:, None] - j) % 3]
