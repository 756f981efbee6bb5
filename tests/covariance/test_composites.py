"""Covariances made of covariances, through the shared case."""

from __future__ import annotations

import pytest
import torch
from covariance_case import CovarianceCase, pairwise

import spatialdiff as sd
from spatialdiff.covariance import CirculantCovariance, DenseCovariance, TorusCovariance, WhiteCovariance
from spatialdiff.covariance.compositions import composite as composite_module
from spatialdiff.covariance.compositions.blocks import BlockCovariance
from spatialdiff.covariance.compositions.coregionalized import CoregionalizedCovariance
from spatialdiff.covariance.compositions.low_rank import LowRankCovariance
from spatialdiff.covariance.compositions.scaled import ScaledCovariance
from spatialdiff.covariance.compositions.sums import SumCovariance
from spatialdiff.kernels import Exponential, Matern, Nugget

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

F64 = torch.float64
B = torch.tensor([[1.0, 0.4], [0.4, 2.0]], dtype=F64)


class Two(CovarianceCase):
    """A kernel of two terms, of which the structure is built one by one."""

    def kernel(self):
        return Matern(1.5, 1.6, 1.7) + Nugget(0.2)

    def test_follows_changed_parameters(self):
        kernel = self.kernel()
        gamma = self.build(kernel).requires_grad_(False)
        before = gamma.variance()
        kernel.kernels[0].variance = kernel.kernels[0].variance * 1.1
        assert (gamma.variance() > before + 1e-3).all()
        torch.testing.assert_close(gamma.to_dense(), self.dense(kernel).detach(), rtol=0, atol=1e-8)


class TestSum(Two):
    """Circulant and white: factors side by side."""

    invertible_root = False

    def build(self, kernel):
        first, second = kernel.kernels
        return CirculantCovariance(first, self.grid) + WhiteCovariance(self.grid, second)


class TestSumChannels(Two):
    """One part has correlated channels, the other acts on each alike."""

    grid = sd.Grid((2, 4))
    channels = B.tolist()
    invertible_root = False

    def build(self, kernel):
        first, second = kernel.kernels
        return SumCovariance(DenseCovariance(first, self.grid, B), WhiteCovariance(self.grid, second))

    def dense(self, kernel):
        first, second = kernel.kernels
        smooth = torch.kron(B, pairwise(first, self.grid))
        return smooth + second.variance.detach() * torch.eye(2 * self.grid.size, dtype=F64)

    def test_gradient_of_expected_square(self):
        kernel = self.kernel()
        (through_root,) = torch.autograd.grad(
            self.root(self.build(kernel)).square().sum(), [kernel.kernels[1].raw_variance]
        )
        expected = 2 * self.grid.size * kernel.kernels[1].variance.detach()
        torch.testing.assert_close(through_root, expected, rtol=1e-10, atol=0)

    def test_eigenvalues(self, gamma):
        with pytest.raises(ValueError, match="basis"):
            gamma.eigenvalues()

    def test_batch_of_hyperparameters(self):
        gamma = self.build(self.batched_kernel()).requires_grad_(False)
        expected = torch.stack([one.to_dense() for one in self.members()])
        torch.testing.assert_close(gamma.to_dense(), expected, rtol=0, atol=1e-10)
        x = self.fields(gamma, 2, 3)
        expected = torch.stack([one.log_prob(x[:, i]) for i, one in enumerate(self.members())], 1)
        torch.testing.assert_close(gamma.log_prob(x), expected, rtol=1e-9, atol=0)


class TestSumOneBasis(Two):
    """Torus and white: one basis, everything exact."""

    grid = sd.Grid((4, 5), periodic=True)

    def build(self, kernel):
        first, second = kernel.kernels
        return TorusCovariance(first, self.grid) + WhiteCovariance(self.grid, second)


class TestSumOneBasisChannels(TestSumOneBasis):
    channels = 2

    def build(self, kernel):
        first, second = kernel.kernels
        return TorusCovariance(first, self.grid, 2) + WhiteCovariance(self.grid, second)

    def test_eigenvalues(self, gamma, matrix):
        weights = gamma.basis.weights.expand(gamma.eigenvalues().shape).flatten().long()
        repeated = gamma.eigenvalues().flatten().repeat_interleave(weights)
        torch.testing.assert_close(repeated.sort().values, torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-10)


class TestScaled(CovarianceCase):
    std = torch.linspace(0.5, 2.0, 20, dtype=F64).reshape(4, 5)

    def build(self, kernel):
        return DenseCovariance(kernel, self.grid).scaled(self.std)

    def spatial(self, kernel):
        s = self.std.reshape(-1)
        return s[:, None] * pairwise(kernel, self.grid) * s


class TestScaledChannels(TestScaled):
    """A field of standard deviations for each channel of an intrinsic model."""

    grid = sd.Grid((2, 4))
    channels = B.tolist()
    std = torch.linspace(0.5, 2.0, 16, dtype=F64).reshape(2, 2, 4)

    def build(self, kernel):
        return ScaledCovariance(DenseCovariance(kernel, self.grid, B), self.std)

    def dense(self, kernel):
        s = self.std.reshape(-1)
        return s[:, None] * torch.kron(B, pairwise(kernel, self.grid)) * s

    def test_eigenvalues(self, gamma):
        with pytest.raises(ValueError, match="basis"):
            gamma.eigenvalues()


class TestScaledCirculant(TestScaled):
    """A rectangular factor stays one."""

    invertible_root = False

    def build(self, kernel):
        return CirculantCovariance(kernel, self.grid).scaled(self.std)


class TestBlocks(Two):
    """Channel 0 smooth, channels 1 and 2 of the other kernel, correlated."""

    grid = sd.Grid((2, 4))
    channels = 3

    def kernel(self):
        return Matern(1.5, 1.6, 1.7) + Exponential(1.1, 0.7)

    def build(self, kernel):
        first, second = kernel.kernels
        return BlockCovariance(DenseCovariance(first, self.grid), DenseCovariance(second, self.grid, B))

    def dense(self, kernel):
        first, second = (pairwise(k, self.grid) for k in kernel.kernels)
        return torch.block_diag(first, torch.kron(B, second))

    def test_eigenvalues(self, gamma):
        with pytest.raises(ValueError, match="basis"):
            gamma.eigenvalues()

    def test_follows_changed_parameters(self):
        kernel = self.kernel()
        gamma = self.build(kernel).requires_grad_(False)
        before = gamma.variance()
        kernel.kernels[0].variance = kernel.kernels[0].variance * 1.1
        assert (gamma.variance()[0] > before[0] + 1e-3).all()
        torch.testing.assert_close(gamma.to_dense(), self.dense(kernel).detach(), rtol=0, atol=1e-8)


class TestBlocksOfDifferentFactors(TestBlocks):
    """A circulant factor beside a square one: white noise as one list."""

    invertible_root = False

    def build(self, kernel):
        first, second = kernel.kernels
        return BlockCovariance(CirculantCovariance(first, self.grid), DenseCovariance(second, self.grid, B))


# one direction shared by all channels, and a full matrix
RANK_ONE = torch.outer(torch.tensor([1.0, 0.5], dtype=F64), torch.tensor([1.0, 0.5], dtype=F64))


class TestCoregionalized(Two):
    """Terms that share a basis: a matrix per mode."""

    grid = sd.Grid((3, 4), periodic=True)
    channels = 2

    def kernel(self):
        return Matern(1.5, 0.9, 1.7) + Exponential(0.6, 0.7)

    def build(self, kernel):
        first, second = kernel.kernels
        return CoregionalizedCovariance(
            [(RANK_ONE, TorusCovariance(first, self.grid)), (B, TorusCovariance(second, self.grid))]
        )

    def dense(self, kernel):
        first, second = (pairwise(k, self.grid, images=12) for k in kernel.kernels)
        return torch.kron(RANK_ONE, first) + torch.kron(B, second)

    def test_eigenvalues(self, gamma):
        with pytest.raises(ValueError, match="basis"):
            gamma.eigenvalues()


class TestCoregionalizedSideBySide(TestCoregionalized):
    """A circulant term of rank one and a dense one."""

    grid = sd.Grid((2, 4))
    invertible_root = False

    def build(self, kernel):
        first, second = kernel.kernels
        return CoregionalizedCovariance(
            [
                (RANK_ONE, CirculantCovariance(first, self.grid)),
                (B, DenseCovariance(second, self.grid)),
            ]
        )


class TestLowRank(CovarianceCase):
    has_kernel = False
    batches = False
    channels = 2
    grid = sd.Grid((3, 4))
    factors = torch.randn(3, 2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(5))
    diagonal = torch.linspace(0.2, 0.8, 24, dtype=F64).reshape(2, 3, 4)

    def build(self, kernel):
        return LowRankCovariance(self.grid, self.factors, self.diagonal)

    def dense(self, kernel):
        flat = self.factors.reshape(3, -1)
        return flat.T @ flat + torch.diag(self.diagonal.reshape(-1))

    @pytest.mark.parametrize("name", ["log_prob"])
    def test_gradients(self, name, gamma, matrix):
        x = self.fields(gamma).requires_grad_()
        (gradient,) = torch.autograd.grad(getattr(gamma, name)(x), x)
        expected = -torch.linalg.solve(matrix, x.detach().flatten())
        torch.testing.assert_close(gradient.flatten(), expected, rtol=1e-9, atol=1e-11)

    def test_gradient_of_expected_square(self, gamma, matrix):
        torch.testing.assert_close(self.root(gamma).square().sum(), matrix.trace(), rtol=1e-12, atol=0)

    def test_follows_changed_parameters(self, gamma):
        gamma.diagonal.add_(0.1)
        shifted = self.dense(None) + 0.1 * torch.eye(24, dtype=F64)
        torch.testing.assert_close(gamma.to_dense(), shifted, rtol=0, atol=1e-10)

    def test_eigenvalues(self, gamma):
        with pytest.raises(ValueError, match="basis"):
            gamma.eigenvalues()


def test_empirical_orthogonal_functions_of_real_temperatures():
    """Full rank gives back the sample covariance; a low rank keeps the variance of every site and the leading
    part of the covariance, as numpy's eigenvectors say.
    """
    data = sd.data.air_temperature((10, 12))
    fields = data.train[:, 0].double()
    grid = data.grid
    flat = (fields - fields.mean(0)).flatten(1)
    sample = flat.T @ flat / (len(flat) - 1)
    values, vectors = torch.linalg.eigh(sample)
    rank = 6
    gamma = LowRankCovariance.from_data(fields, grid, rank).double()
    leading = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    dense = gamma.to_dense()
    off = ~torch.eye(len(dense), dtype=torch.bool)
    torch.testing.assert_close(dense[off], leading[off], rtol=0, atol=1e-9)
    torch.testing.assert_close(dense.diagonal(), sample.diagonal(), rtol=1e-9, atol=0)
    full = LowRankCovariance.from_data(fields, grid, min(len(fields) - 1, grid.size - 1))
    # what the smallest eigenvalue and the floor of the residual leave
    atol = 1.01e-6 * sample.diagonal().mean().item() + values[0].item() + 1e-12
    torch.testing.assert_close(full.to_dense(), sample, rtol=0, atol=atol)
    uniform = LowRankCovariance.from_data(fields, grid, rank, uniform=True)
    left = values[:-rank].mean()
    torch.testing.assert_close(uniform.diagonal, left.expand_as(uniform.diagonal), rtol=1e-8, atol=0)
    torch.testing.assert_close(
        torch.linalg.eigvalsh(uniform.to_dense())[-rank:], values[-rank:], rtol=1e-8, atol=0
    )


def test_trained_standard_deviations_and_roots():
    grid = sd.Grid((3, 4))
    std = torch.nn.Parameter(torch.full((3, 4), 1.3, dtype=F64))
    gamma = ScaledCovariance(DenseCovariance(Matern(1.5, 2.0), grid), std)
    assert any(p is std for p in gamma.parameters())
    x = torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    gamma.log_prob(x).backward()
    solved = gamma.solve(x).detach()
    torch.testing.assert_close(std.grad, (x * solved - 1) / std.detach(), rtol=1e-8, atol=1e-10)
    root = torch.nn.Parameter(torch.tensor([[1.0], [0.4]], dtype=F64))
    pair = CoregionalizedCovariance(
        [(root, DenseCovariance(Matern(1.5, 2.0), grid)), (torch.eye(2), sd.white(grid))]
    )
    y = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda r: _with_root(pair, r, y), (root,))


def _with_root(gamma, root, y):
    # the same covariance as a function of its root
    spatial = gamma.parts[0].to_dense().detach()
    smooth = torch.kron((root @ root.T).contiguous(), spatial.contiguous())
    dense = smooth + torch.eye(len(smooth), dtype=F64)
    mine = gamma.log_prob(y)
    direct = torch.distributions.MultivariateNormal(torch.zeros(len(dense), dtype=F64), dense).log_prob(
        y.flatten()
    )
    torch.testing.assert_close(mine, direct, rtol=1e-9, atol=0)
    (a,) = torch.autograd.grad(mine, gamma.root_0, retain_graph=True)
    (b,) = torch.autograd.grad(direct, root, retain_graph=True)
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    return direct


def test_beyond_the_dense_limit(monkeypatch):
    """Conjugate gradients and Lanczos quadrature against Cholesky, on the same sum."""
    grid = sd.Grid((12, 14))
    kernel = Matern(1.5, 2.5, 1.2).requires_grad_(False)

    def build():
        parts = CirculantCovariance(kernel, grid), WhiteCovariance(grid, 0.3)
        return SumCovariance(*parts, log_det_tolerance=0.02)

    x = torch.randn(3, 12, 14, dtype=F64, generator=torch.Generator().manual_seed(2))
    small = build()
    solved, log_det = small.solve(x), small.log_det()
    monkeypatch.setattr(composite_module, "DENSE_ENTRIES", 1)
    large = build()
    torch.testing.assert_close(large.solve(x), solved, rtol=0, atol=1e-8 * solved.abs().max().item())
    error = large.log_det_standard_error()
    assert 0 < error.item() <= 0.02 * grid.size
    assert abs(large.log_det() - log_det).item() <= 5 * error.item() + 2e-3 * grid.size
    assert "standard error" in str(large.report)


def test_refusals():
    grid, other = sd.Grid((3, 4)), sd.Grid((4, 4))
    kernel = Matern(1.5, 2.0)
    gamma = DenseCovariance(kernel, grid)
    with pytest.raises(ValueError, match="live on"):
        SumCovariance(gamma, DenseCovariance(kernel, other))
    with pytest.raises(ValueError, match=r"numbers of channels, \[2, 3\]"):
        SumCovariance(DenseCovariance(kernel, grid, 2), DenseCovariance(kernel, grid, 3))
    with pytest.raises(TypeError, match="got float"):
        SumCovariance(gamma, 2.0)
    with pytest.raises(TypeError):
        gamma + 2.0
    with pytest.raises(ValueError, match="at least one"):
        BlockCovariance()
    with pytest.raises(ValueError, match=r"broadcast to \(3, 4\)"):
        gamma.scaled(torch.ones(5))
    with pytest.raises(ValueError, match="positive and finite"):
        gamma.scaled(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="positive semi-definite"):
        CoregionalizedCovariance([(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), gamma)])
    with pytest.raises(ValueError, match="spatial only"):
        CoregionalizedCovariance([(torch.eye(2), DenseCovariance(kernel, grid, 2))])
    with pytest.raises(ValueError, match=r"sizes, \[2, 3\]"):
        CoregionalizedCovariance([(torch.eye(2), gamma), (torch.eye(3), gamma)])
    with pytest.raises(ValueError, match="between 1 and 4"):
        LowRankCovariance.from_data(torch.randn(5, 3, 4), grid, 5)
    with pytest.raises(ValueError, match="all alike"):
        LowRankCovariance.from_data(torch.ones(5, 3, 4), grid, 2)
    with pytest.raises(ValueError, match="NaN"):
        LowRankCovariance.from_data(torch.full((5, 3, 4), torch.nan), grid, 2)
    with pytest.raises(ValueError, match="must be positive"):
        LowRankCovariance(grid, torch.ones(2, 3, 4), 0.0)
    with pytest.raises(ValueError, match="factors need shape"):
        LowRankCovariance(grid, torch.ones(3, 4), 1.0)
