"""Product kernels on regular and unevenly spaced grids: exact, differentiable, and nothing taken for a
product that is none.
"""

from __future__ import annotations

import copy
import pickle

import gpytorch
import pytest
import torch
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance import CirculantCovariance, DenseCovariance, joint_spectrum
from spatialdiff.covariance.grids.kronecker import KroneckerCovariance
from spatialdiff.domains import Points, RectilinearGrid
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, Periodic
from spatialdiff.kernels.space_time import Separable

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

B = [[1.0, 0.4], [0.4, 2.0]]
UNEVEN = RectilinearGrid([[0.0, 0.7, 1.1, 3.0], [0.0, 1.0, 1.4, 2.5, 4.0]])


class TestGaussian(CovarianceCase):
    def kernel(self):
        return Gaussian((1.1, 1.6), 1.7) + Nugget(0.2)

    def build(self, kernel):
        return KroneckerCovariance(kernel, self.grid, self.channels)


class TestNoNugget(TestGaussian):
    channels = B
    grid = sd.Grid((3, 4), spacing=(0.8, 1.0))

    def kernel(self):
        return Gaussian(0.9, 1.7) * Gaussian((1.3, 2.0), 0.8)


class TestLine(TestGaussian):
    """On a line every kernel is a product."""

    grid = sd.Grid(9, spacing=0.7)

    def kernel(self):
        return Matern(1.5, 1.6, 1.7) + Exponential(0.8, 0.4) + Nugget(0.2)


class TestCircle(TestLine):
    grid = sd.Grid(8, spacing=0.7, periodic=True)

    def kernel(self):
        return Matern(1.5, 0.5, 1.7) + Exponential(0.3, 0.4) + Nugget(0.2)


class TestFlat(TestGaussian):
    """A kernel that does not depend on the second axis is constant along it: of rank 4 but for the nugget."""

    grid = sd.Grid((4, 3))

    def kernel(self):
        scaled = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(0.5, active_dims=[0])).double()
        return scaled + Nugget(0.3)


class TestProduct(TestGaussian):
    """Factors on overlapping axes merge: the Gaussian has a share in both blocks."""

    grid = sd.Grid((3, 2, 3))

    def kernel(self):
        return Gaussian((2.0, 3.0, 1.5), 1.3) * Separable(Matern(1.5, 2.0), Exponential(2.0)) + Nugget(0.1)


class TestSines(TestGaussian):
    """A product over axes as the Gaussian is, with periods that are not the grid's."""

    grid = sd.Grid((3, 4))

    def kernel(self):
        return Periodic((7.3, 9.1), (0.9, 1.2), 1.7) + Nugget(0.2)


class TestUneven(TestGaussian):
    grid = UNEVEN
    channels = 2


class TestPeriodic(TestGaussian):
    """Equal eigenvalues, whose eigenvectors have no derivative, along the second axis."""

    grid = sd.Grid((3, 6), periodic=(False, True))

    def spatial(self, kernel):
        return pairwise(kernel, self.grid, images=8)


class TestSpaceTime(TestGaussian):
    """Two blocks, one of which couples two axes."""

    grid = sd.Grid((3, 2, 4))

    def kernel(self):
        return Separable(Matern(1.5, (1.4, 1.9), 1.3), Exponential(2.0, 0.9)) + Nugget(0.1)


class TestSpaceTimeUnordered(TestGaussian):
    """Axes of a block that are not neighbours, a sum inside a factor, a periodic axis."""

    grid = sd.Grid((3, 3, 2), periodic=(False, True, False))

    def kernel(self):
        inner = Matern(1.5, (1.4, 1.9), 1.3) + Nugget(0.3)
        return Separable(inner, Exponential(0.5, 0.9), axes=((2, 0), (1,)))

    def spatial(self, kernel):
        # this kernel is constant times the same periodised factor in every term
        return pairwise(kernel, self.grid, images=20)

    def test_follows_changed_parameters(self):
        kernel = self.kernel()
        gamma = self.build(kernel).requires_grad_(False)
        before = gamma.variance()
        kernel.kernels[1].variance = 2 * kernel.kernels[1].variance
        torch.testing.assert_close(gamma.variance(), 2 * before)


class TestGpytorch(TestGaussian):
    grid = sd.Grid((3, 4))

    def kernel(self):
        one = gpytorch.kernels.MaternKernel(1.5, active_dims=[0])
        two = gpytorch.kernels.MaternKernel(0.5, active_dims=[1])
        return gpytorch.kernels.ScaleKernel(one * two).double()


def test_sides_of_the_nugget_meet():
    """A vanishing nugget changes nothing."""
    grid = sd.Grid((4, 5))
    plain = KroneckerCovariance(Gaussian(0.9, 1.3), grid).requires_grad_(False)
    noisy = KroneckerCovariance(Gaussian(0.9, 1.3) + Nugget(1e-13), grid).requires_grad_(False)
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.log_prob(x), plain.log_prob(x), rtol=1e-8, atol=0)
    torch.testing.assert_close(noisy.color(x), plain.color(x), rtol=0, atol=1e-10)


def test_degenerate_eigenvalues_have_finite_gradients():
    """A pure identity in a factor: every eigenvalue of it is the same."""
    kernel = Separable(Nugget(1.0), Exponential(1.5), axes=((0,), (1,))) + Nugget(0.2)
    grid = sd.Grid((4, 3))
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for structure in (KroneckerCovariance, DenseCovariance):
        gamma = structure(kernel, grid)
        gradients.append(torch.autograd.grad(gamma.log_prob(x).sum(), list(kernel.parameters())))
    for ours, dense in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-9)


def test_singular_samples_but_does_not_invert():
    gamma = KroneckerCovariance(Gaussian(8.0), sd.Grid((32, 32))).requires_grad_(False)
    assert torch.isfinite(gamma.sample((2,))).all()
    for operation in (gamma.solve, gamma.whiten, gamma.log_prob):
        with pytest.raises(ValueError, match="add a Nugget"):
            operation(torch.zeros(32, 32))
    with pytest.raises(ValueError, match="add a Nugget"):
        gamma.log_det()


def test_agrees_with_the_circulant_embedding_on_a_large_grid():
    grid = sd.Grid((60, 50), spacing=(1.0, 0.8))
    kernel = (Gaussian((2.0, 1.5), 1.4) + Nugget(0.3)).requires_grad_(False)
    x = torch.randn(60, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, other = KroneckerCovariance(kernel, grid), CirculantCovariance(kernel, grid, tolerance=1e-12)
    torch.testing.assert_close(ours.matmul(x), other.matmul(x), rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.solve(x), other.solve(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.log_det(), other.log_det(), rtol=1e-11, atol=0)


def test_basis():
    """Two covariances of one kernel share it, and white noise goes with any."""
    grid = sd.Grid((4, 5))
    kernel = Gaussian(0.9, 1.3).requires_grad_(False)
    gamma, twice = KroneckerCovariance(kernel, grid), KroneckerCovariance(kernel, grid)
    other = KroneckerCovariance(Gaussian(1.1), grid).requires_grad_(False)
    assert gamma.basis == twice.basis
    assert hash(gamma.basis) == hash(twice.basis)
    assert gamma.basis != other.basis
    x = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gamma.basis.synthesize(gamma.basis.analyze(x)), x)
    torch.testing.assert_close(gamma.basis.multiply(x, gamma.eigenvalues()), gamma.matmul(x))
    basis, noise, data = joint_spectrum(sd.covariance(Nugget(0.5), grid), gamma)
    torch.testing.assert_close(
        basis.multiply(x, data / (data + noise)),
        DenseCovariance(gamma.to_dense() + 0.5 * torch.eye(20, dtype=torch.float64), grid).solve(
            gamma.matmul(x)
        ),
    )


def test_copies_follow_their_own_kernel():
    kernel = Gaussian(0.9, 1.3) + Nugget(0.1)
    gamma = KroneckerCovariance(kernel, sd.Grid((3, 4))).requires_grad_(False)
    gamma.log_det()
    for twin in (copy.deepcopy(gamma), pickle.loads(pickle.dumps(gamma))):
        twin.kernel.kernels[0].variance = 2.6
        torch.testing.assert_close(twin.variance(), torch.full((3, 4), 2.7, dtype=torch.float64))
        torch.testing.assert_close(gamma.variance(), torch.full((3, 4), 1.4, dtype=torch.float64))


def test_batches_have_no_joint_spectrum_across_structures():
    grid = sd.Grid((3, 4))
    batch = DenseCovariance(Gaussian(0.9, batch_shape=(2,)), grid)
    with pytest.raises(ValueError, match="without batch_shape"):
        joint_spectrum(batch, KroneckerCovariance(Gaussian(0.9), grid))


def test_second_derivatives_are_refused():
    """The derivative of the root is not differentiable again: an error, not a wrong number."""
    kernel = Gaussian(0.9, 1.3) + Nugget(0.1)
    gamma = KroneckerCovariance(kernel, sd.Grid((3, 4)))
    x = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gamma.quad_form(x), kernel.kernels[1].raw_variance, create_graph=True)


@pytest.mark.parametrize(
    ("kernel", "domain", "message"),
    [
        (Matern(1.5, 1.2), sd.Grid((4, 5)), "not separable: Matern couples"),
        (Matern(1.5, 1.2), UNEVEN, "not separable"),
        (gpytorch.kernels.MaternKernel(1.5).double(), sd.Grid((4, 5)), "MaternKernel couples"),
        (Gaussian(1.2) + Gaussian(2.0), sd.Grid((4, 5)), "sum of 2 terms"),
        (Gaussian(1.2) * Matern(2.5), sd.Grid((4, 5)), "not separable"),
        (Nugget(1.0), sd.Grid((4, 5)), "white"),
        (Separable(Matern(), Exponential()), sd.Grid((4, 5)), "axes"),
    ],
)
def test_refuses(kernel, domain, message):
    with pytest.raises(ValueError, match=message):
        KroneckerCovariance(kernel, domain)


def test_refuses_other_domains_and_kernels():
    with pytest.raises(TypeError, match="Points"):
        KroneckerCovariance(Gaussian(), Points(torch.rand(5, 2)))
    with pytest.raises(TypeError, match="gpytorch kernel"):
        KroneckerCovariance(torch.eye(3), sd.Grid(3))
    wave = Separable(gpytorch.kernels.RBFKernel(), Exponential(), axes=((0,), (1,)))
    with pytest.raises(ValueError, match="not stationary"):
        KroneckerCovariance(
            gpytorch.kernels.LinearKernel(active_dims=[0]) * gpytorch.kernels.RBFKernel(active_dims=[1]),
            sd.Grid((3, 4), periodic=(True, False)),
        ).sample()
    assert KroneckerCovariance(wave, sd.Grid((3, 4))).method == "kronecker"
