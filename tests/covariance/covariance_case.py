"""What every structure of Γ must do, compared with dense linear algebra in float64.

A structure subclasses `CovarianceCase`, says how to build itself from a kernel, and what matrix it must
represent, computed here from definitions and not through the structure's own fast path.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math

import gpytorch
import pytest
import scipy.fft
import torch
from torch import Tensor

import spatialdiff as sd
from spatialdiff.covariance import Covariance
from spatialdiff.domains import Domain
from spatialdiff.kernels import Matern, Nugget


def pairwise(kernel: gpytorch.kernels.Kernel, domain: Domain, images: int = 40) -> Tensor:
    """``k(x, x')`` for all sites, ``(*batch, N, N)``; on periodic axes each additive term summed over images
    and brought back to its variance; rows and columns of masked cells are 0.
    """
    sites = domain.coordinates().reshape(-1, domain.dimension)
    terms = kernel.kernels if isinstance(kernel, gpytorch.kernels.AdditiveKernel) else [kernel]
    total = torch.zeros(*kernel.batch_shape, len(sites), len(sites), dtype=torch.float64)
    steps = [range(-images, images + 1) if p else (0,) for p in domain.periodic]
    grid = getattr(domain, "grid", domain)
    extent = getattr(grid, "extent", (0.0,) * domain.dimension)
    for term in terms:
        matrix = torch.zeros_like(total)
        for step in itertools.product(*steps):
            shift = torch.tensor([s * e for s, e in zip(step, extent, strict=False)], dtype=torch.float64)
            # one call per image through gpytorch's own entry point
            moved = sites + shift if any(domain.periodic) else sites
            matrix = matrix + term(moved, sites).to_dense()
        if any(domain.periodic):
            wanted = term(sites[:1]).to_dense()[..., :1, :1]
            matrix = matrix * (wanted / matrix[..., :1, :1])
        total = total + matrix
    if hasattr(domain, "valid"):
        valid = domain.valid.reshape(-1)
        total = total * (valid[:, None] & valid)
    return total


def cosine_projection(kernel: gpytorch.kernels.Kernel, grid: sd.Grid) -> Tensor:
    """The closest matrix (Frobenius) that is diagonal in scipy's orthonormal DCT-II."""
    matrix = pairwise(kernel, grid, images=12)
    modes = torch.ones(1, 1, dtype=torch.float64)
    for n in grid.shape:
        axis = scipy.fft.dct(torch.eye(n, dtype=torch.float64).numpy(), axis=0, norm="ortho")
        modes = torch.kron(modes, torch.from_numpy(axis))
    return modes.T @ torch.diag((modes @ matrix @ modes.T).diagonal()) @ modes


@functools.cache
def reference(case: type[CovarianceCase]) -> Tensor:
    """The matrix of a case, built once."""
    instance = case()
    return instance.dense(instance.kernel()).detach()


class CovarianceCase:
    """Subclasses set ``grid`` (any domain), ``channels``, and give `build` and `spatial`."""

    grid: Domain = sd.Grid((4, 5))
    channels: int | list[list[float]] | None = None
    invertible_root = True
    has_log_det = True
    solve_tolerance = 1e-10
    # largest absolute error of an entry of Γ; larger only where the structure states a tolerance
    tolerance = 2e-11
    has_kernel = True
    # whether kernels with a batch of hyperparameters are meant for this structure
    batches = True
    # relative size of the steps of the finite differences, and what they may be off by
    step = 1e-5

    # ---- what a structure says about itself
    def kernel(self) -> gpytorch.kernels.Kernel:
        return Matern(nu=1.5, lengthscale=1.6, variance=1.7) + Nugget(0.2)

    def build(self, kernel: gpytorch.kernels.Kernel) -> Covariance:
        raise AssertionError("a case gives build()")

    def spatial(self, kernel: gpytorch.kernels.Kernel) -> Tensor:
        return pairwise(kernel, self.grid)

    # ---- the reference
    def dense(self, kernel: gpytorch.kernels.Kernel) -> Tensor:
        spatial = self.spatial(kernel)
        if self.channels is None:
            return spatial
        b = (
            torch.eye(self.channels)
            if isinstance(self.channels, int)
            else torch.tensor(self.channels, dtype=torch.float64)
        )
        return torch.kron(b.double(), spatial)

    @pytest.fixture
    def gamma(self) -> Covariance:
        return self.build(self.kernel()).requires_grad_(False)

    @pytest.fixture
    def matrix(self) -> Tensor:
        return reference(type(self))

    def fields(self, gamma: Covariance, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
        g = torch.Generator().manual_seed(7)
        return torch.randn(*batch, *gamma.event_shape, generator=g, dtype=torch.float64).to(dtype)

    def kept(self) -> Tensor:
        """Indices of the entries of an event that carry a value: all but masked cells."""
        count = 1 if self.channels is None else len(torch.atleast_1d(torch.as_tensor(self.channels)))
        if isinstance(self.channels, int):
            count = self.channels
        valid = getattr(self.grid, "valid", torch.ones(self.grid.shape, dtype=torch.bool)).reshape(-1)
        return valid.repeat(count).nonzero().squeeze(-1)

    def unmasked(self, x: Tensor) -> Tensor:
        """``x`` with 0 in masked cells."""
        return self.grid.unflatten(self.grid.flatten(x))

    def inverse(self, matrix: Tensor) -> Tensor:
        """``Γ⁻¹`` on the entries that carry a value, 0 elsewhere."""
        kept = self.kept()
        result = torch.zeros_like(matrix)
        result[kept[:, None], kept] = torch.linalg.inv(matrix[kept[:, None], kept])
        return result

    def restricted(self, matrix: Tensor) -> Tensor:
        kept = self.kept()
        return matrix[kept[:, None], kept]

    def root(self, gamma: Covariance) -> Tensor:
        m = gamma.factor_shape.numel()
        eye = torch.eye(m, dtype=torch.float64).reshape(m, *gamma.factor_shape)
        return gamma.color(eye).reshape(m, -1).T

    # ---- operations
    def test_dense(self, gamma, matrix):
        torch.testing.assert_close(gamma.to_dense(), matrix, rtol=0, atol=self.tolerance)

    def test_root(self, gamma, matrix):
        r = self.root(gamma)
        torch.testing.assert_close(r @ r.T, matrix, rtol=0, atol=self.tolerance)

    def test_matmul(self, gamma, matrix):
        x = self.fields(gamma, 3)
        loose = max(1e-10, 20 * self.tolerance)
        torch.testing.assert_close(gamma.matmul(x).flatten(1), x.flatten(1) @ matrix, rtol=0, atol=loose)

    def test_solve(self, gamma, matrix):
        x = self.fields(gamma, 3)
        expected = x.flatten(1) @ self.inverse(matrix)
        tolerance = self.solve_tolerance * torch.linalg.cond(self.restricted(matrix)).item()
        torch.testing.assert_close(
            gamma.solve(x).flatten(1), expected, rtol=0, atol=tolerance * expected.abs().max().item()
        )

    def test_whiten_inverts_color(self, gamma):
        if not self.invertible_root:
            with pytest.raises(ValueError, match="cosine"):
                gamma.whiten(self.fields(gamma))
            return
        assert gamma.factor_shape == gamma.event_shape
        z = self.unmasked(self.fields(gamma, 2))
        torch.testing.assert_close(gamma.whiten(gamma.color(z)), z, rtol=0, atol=1e-10)

    def test_log_det(self, gamma, matrix):
        value = gamma.log_det()
        assert value.dtype == torch.float64
        assert value.shape == ()
        assert value.item() == pytest.approx(torch.logdet(self.restricted(matrix)).item(), abs=1e-9)

    def test_quad_form_and_log_prob(self, gamma, matrix):
        x = self.fields(gamma, 2, 3)
        flat = x.reshape(6, -1)
        kept = self.kept()
        law = torch.distributions.MultivariateNormal(
            torch.zeros(len(kept), dtype=torch.float64), self.restricted(matrix)
        )
        quad = (flat * (flat @ self.inverse(matrix))).sum(-1).reshape(2, 3)
        torch.testing.assert_close(gamma.quad_form(x), quad, rtol=1e-8, atol=0)
        torch.testing.assert_close(
            gamma.log_prob(x), law.log_prob(flat[:, kept]).reshape(2, 3), rtol=1e-8, atol=0
        )

    def test_variance(self, gamma, matrix):
        variance = gamma.variance()
        assert variance.shape == gamma.event_shape
        torch.testing.assert_close(variance.reshape(-1), matrix.diagonal(), rtol=1e-11, atol=0)

    def test_eigenvalues(self, gamma, matrix):
        if gamma.basis is None:
            with pytest.raises(ValueError, match="basis"):
                gamma.eigenvalues()
            return
        values = gamma.spatial_eigenvalues()
        weights = gamma.basis.weights
        assert weights.sum().item() == self.grid.size
        spatial = self.spatial(self.kernel()).detach()
        repeated = values.expand(gamma.basis.modes).flatten().repeat_interleave(weights.flatten().long())
        torch.testing.assert_close(repeated.sort().values, torch.linalg.eigvalsh(spatial), rtol=0, atol=1e-10)
        if self.channels is None or isinstance(self.channels, int):
            assert gamma.eigenvalues().shape == (*gamma.event_shape[: -self.grid.ndim], *gamma.basis.modes)
        else:
            with pytest.raises(ValueError, match="correlated"):
                gamma.eigenvalues()

    def test_linear_operator(self, gamma, matrix):
        operator = gamma.double().to_linear_operator()
        x = self.fields(gamma, 4).flatten(1).T
        assert operator.shape == matrix.shape
        torch.testing.assert_close(operator @ x, matrix @ x, rtol=0, atol=1e-10)
        torch.testing.assert_close(operator @ x[:, 0], matrix @ x[:, 0], rtol=0, atol=1e-10)
        torch.testing.assert_close(operator.to_dense(), matrix, rtol=0, atol=1e-10)
        torch.testing.assert_close(operator.diagonal(), matrix.diagonal(), rtol=0, atol=1e-10)
        quad, log_det = operator.inv_quad_logdet(x, logdet=True)
        expected = (x * (self.inverse(matrix) @ x)).sum()
        assert quad.item() == pytest.approx(expected.item(), rel=1e-7)
        assert log_det.item() == pytest.approx(torch.logdet(self.restricted(matrix)).item(), abs=1e-9)

    # ---- shapes, types, seeds
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
    def test_batches(self, gamma, batch):
        x = self.fields(gamma, *batch)
        z = torch.randn(*batch, *gamma.factor_shape, dtype=torch.float64)
        one = [gamma.color(row) for row in z.reshape(-1, *gamma.factor_shape)]
        torch.testing.assert_close(
            gamma.color(z).reshape(-1, *gamma.event_shape), torch.stack(one), rtol=1e-10, atol=1e-12
        )
        assert gamma.matmul(x).shape == x.shape
        assert gamma.solve(x).shape == x.shape
        assert gamma.quad_form(x).shape == batch
        assert gamma.log_prob(x).shape == batch
        assert gamma.sample(batch).shape == (*batch, *gamma.event_shape)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtypes(self, gamma, matrix, dtype):
        gamma = gamma.to(dtype)
        assert gamma.dtype == dtype
        assert gamma.sample((2,)).dtype == dtype
        x = self.fields(gamma, 2, dtype=dtype)
        condition = torch.linalg.cond(self.restricted(matrix)).item()
        eps = torch.finfo(dtype).eps * len(matrix) * condition
        for name in ("matmul", "solve", "quad_form", "log_prob"):
            result = getattr(gamma, name)(x)
            exact = getattr(gamma, name)(x.double())
            assert result.dtype == dtype, name
            scale = exact.abs().max().item()
            torch.testing.assert_close(result.double(), exact, rtol=0, atol=max(eps, 1e-9) * scale, msg=name)
        # parameters and spectra keep their precision whatever the fields are
        torch.testing.assert_close(gamma.to_dense(), matrix, rtol=0, atol=self.tolerance)

    def test_seed(self, gamma):
        draws = [gamma.sample((2,), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])

    def test_sample_is_coloured_noise(self, gamma):
        gamma = gamma.double()
        z = torch.randn(
            3, *gamma.factor_shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
        )
        drawn = gamma.sample((3,), generator=torch.Generator().manual_seed(4))
        torch.testing.assert_close(drawn, gamma.color(z), rtol=0, atol=0)

    def test_sample_covariance(self, gamma, matrix):
        """All pairs of sites: an entry of the sample covariance has variance ``(Γ_ii Γ_jj + Γ_ij²)/N``."""
        count = 4000
        draws = gamma.double().sample((count,), generator=torch.Generator().manual_seed(0)).flatten(1)
        kept = self.kept()
        outside = torch.ones(draws.shape[1], dtype=torch.bool).index_fill(0, kept, False)
        assert (draws[:, outside] == 0).all()
        draws, matrix = draws[:, kept], self.restricted(matrix)
        error = draws.T @ draws / count - matrix
        d = matrix.diagonal()
        deviation = ((d[:, None] * d + matrix.square()) / count).sqrt()
        assert (error / deviation).abs().max().item() < 5.5
        mean = draws.mean(0) / (d / count).sqrt()
        assert mean.abs().max().item() < 5.0

    def test_state_dict(self, gamma):
        file = io.BytesIO()
        torch.save(gamma.state_dict(), file)
        file.seek(0)
        other_kernel = self.kernel()
        for parameter in other_kernel.parameters():
            parameter.data.add_(0.07)
        other = self.build(other_kernel)
        other.load_state_dict(torch.load(file, weights_only=True))
        z = (
            self.fields(gamma)
            if self.invertible_root
            else torch.randn(gamma.factor_shape, dtype=torch.float64)
        )
        assert other.factor_shape == gamma.factor_shape
        torch.testing.assert_close(other.color(z), gamma.color(z), rtol=0, atol=0)

    def test_copies(self, gamma):
        x = self.fields(gamma)
        before = gamma.matmul(x)
        torch.testing.assert_close(copy.deepcopy(gamma).matmul(x), before, rtol=0, atol=0)
        assert str(gamma.report).startswith("method")
        assert type(gamma).__name__ in repr(gamma)

    # ---- gradients
    def parameters_of(self, kernel: gpytorch.kernels.Kernel) -> list[Tensor]:
        return list(kernel.parameters())

    def scalar(self, gamma: Covariance, name: str) -> Tensor:
        if name == "sample":
            z = torch.randn(
                2, *gamma.factor_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
            )
            weight = torch.linspace(-1, 1, gamma.event_shape.numel(), dtype=torch.float64)
            return (gamma.color(z).flatten(1) * weight).sum() + gamma.color(z).square().sum()
        if name == "log_det":
            return gamma.log_det()
        if name == "variance":
            return gamma.variance().sum()
        x = self.fields(gamma, 2)
        if name == "matmul":
            return (x * gamma.matmul(x)).sum()
        return getattr(gamma, name)(x).sum()

    @pytest.mark.parametrize("name", ["sample", "matmul", "quad_form", "log_det", "log_prob", "variance"])
    def test_gradients(self, name):
        if not self.has_kernel:
            pytest.fail("a case without a kernel overrides test_gradients")
        kernel = self.kernel()
        gamma = self.build(kernel)
        self.scalar(gamma, name).backward()
        step = 1e-5
        for parameter in self.parameters_of(kernel):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for index in range(parameter.numel()):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        parameter.reshape(-1)[index] += sign * step
                        values.append(self.scalar(gamma, name).item())
                        parameter.reshape(-1)[index] -= sign * step
                numeric = (values[0] - values[1]) / (2 * step)
                scale = max(abs(numeric), abs(values[0]) * 1e-3)
                assert gradient.reshape(-1)[index].item() == pytest.approx(numeric, abs=2e-6 * scale + 1e-8)

    def test_gradient_of_expected_square(self):
        """``d/dθ E‖R z‖² = d/dθ tr Γ``, where the left side goes through `color` for every unit vector z."""
        kernel = self.kernel()
        gamma = self.build(kernel)
        parameters = self.parameters_of(kernel)
        through_root = torch.autograd.grad(self.root(gamma).square().sum(), parameters, allow_unused=True)
        trace = torch.autograd.grad(self.dense(kernel).trace(), parameters, allow_unused=True)
        for a, b in zip(through_root, trace, strict=True):
            a, b = (torch.zeros(()) if v is None else v for v in (a, b))
            torch.testing.assert_close(a.sum().double(), b.sum().double(), rtol=1e-8, atol=1e-8)

    def test_gradient_to_fields(self, gamma):
        x = self.fields(gamma).requires_grad_()
        (gradient,) = torch.autograd.grad(gamma.quad_form(x), x)
        torch.testing.assert_close(gradient, 2 * gamma.solve(x.detach()), rtol=1e-7, atol=1e-9)

    def test_follows_changed_parameters(self):
        """Written through gpytorch's setter, which no version counter sees."""
        kernel = self.kernel()
        gamma = self.build(kernel).requires_grad_(False)
        before = gamma.variance()
        part = kernel
        while hasattr(part, "kernels"):
            part = part.kernels[0]
        if isinstance(part, gpytorch.kernels.ScaleKernel):
            part.outputscale = part.outputscale * 1.1
        else:
            part.variance = part.variance * 1.1
        assert (gamma.variance().flatten()[self.kept()] > before.flatten()[self.kept()] + 1e-3).all()
        torch.testing.assert_close(gamma.to_dense(), self.dense(kernel).detach(), rtol=0, atol=1e-8)

    # ---- bad input
    def test_refuses(self, gamma):
        x = self.fields(gamma)
        with pytest.raises(ValueError, match="needs shape"):
            gamma.matmul(x[..., :-1])
        with pytest.raises(ValueError, match="needs shape"):
            gamma.color(torch.randn(3))
        bad = x.clone()
        bad.view(-1)[self.kept()[:2]] = math.nan
        for operation in (gamma.solve, gamma.quad_form, gamma.log_prob):
            with pytest.raises(ValueError, match=r"2 of \d+ values are NaN"):
                operation(bad)
        with pytest.raises(TypeError, match="floating"):
            gamma.matmul(x.long())
        if self.channels is not None:
            with pytest.raises(ValueError, match="channels"):
                gamma.matmul(torch.cat([x, x[:1]]))

    # ---- a batch of hyperparameters
    def batched_kernel(self) -> gpytorch.kernels.Kernel:
        """`kernel` with three values of every parameter."""
        return batched(self.kernel())

    def members(self) -> list[Covariance]:
        return [self.build(member(self.batched_kernel(), i)).requires_grad_(False) for i in range(3)]

    def test_batch_of_hyperparameters(self):
        if not self.batches:
            return
        gamma, members = self.build(self.batched_kernel()).requires_grad_(False), self.members()
        assert gamma.batch_shape == (3,)
        x = self.fields(gamma, 2, 3)
        loose = max(1e-9, 20 * self.tolerance)

        def stacked(operation):
            return torch.stack([operation(one, x[:, i]) for i, one in enumerate(members)], dim=1)

        for name in ("matmul", "solve", "quad_form", "log_prob"):
            result, expected = getattr(gamma, name)(x), stacked(lambda g, v, name=name: getattr(g, name)(v))
            assert result.shape == expected.shape
            scale = max(1.0, expected.abs().max().item())
            torch.testing.assert_close(result, expected, rtol=0, atol=loose * scale, msg=name)
        # one field for all members, and members over a field each
        torch.testing.assert_close(gamma.matmul(x[0, 0]), gamma.matmul(x[0, 0].expand_as(x[0])))
        for name in ("log_det", "variance", "to_dense"):
            expected = torch.stack([getattr(one, name)() for one in members])
            assert getattr(gamma, name)().shape == expected.shape
            torch.testing.assert_close(getattr(gamma, name)(), expected, rtol=0, atol=loose, msg=name)
        m = gamma.factor_shape.numel()
        eye = torch.eye(m, dtype=torch.float64).reshape(m, 1, *gamma.factor_shape)
        root = gamma.color(eye).flatten(2).permute(1, 2, 0)
        torch.testing.assert_close(root @ root.mT, gamma.to_dense(), rtol=0, atol=loose)
        if self.invertible_root:
            z = self.unmasked(torch.randn(2, 3, *gamma.factor_shape, dtype=torch.float64))
            torch.testing.assert_close(gamma.whiten(gamma.color(z)), z, rtol=0, atol=1e-9)
        for dtype in (torch.float32, torch.float64):
            draws = gamma.to(dtype).sample((4,), generator=torch.Generator().manual_seed(1))
            assert draws.shape == (4, 3, *gamma.event_shape)
            assert draws.dtype == dtype
            assert torch.isfinite(draws).all()
        assert gamma.log_det_standard_error().shape == (3,)
        with pytest.raises(ValueError, match="batch of shape"):
            gamma.matmul(x[:, :2])

    def test_gradients_of_a_batch(self):
        if not self.batches:
            return
        kernel = self.batched_kernel()
        gamma = self.build(kernel)
        x = self.fields(gamma, 2, 3)
        gamma.log_prob(x).sum().backward()
        for i in range(3):
            alone = member(self.batched_kernel(), i)
            self.build(alone).log_prob(x[:, i]).sum().backward()
            for parameter, one in zip(kernel.parameters(), alone.parameters(), strict=True):
                scale = max(1.0, one.grad.abs().max().item())
                torch.testing.assert_close(
                    parameter.grad[i].reshape(one.shape), one.grad, rtol=0, atol=1e-7 * scale
                )


def batched(kernel: gpytorch.kernels.Kernel) -> gpytorch.kernels.Kernel:
    """``kernel`` with ``batch_shape=(3,)``: its parameters, and two neighbours of each."""
    kernel = copy.deepcopy(kernel)
    for part in kernel.modules():
        if not isinstance(part, gpytorch.kernels.Kernel):
            continue
        part._batch_shape = torch.Size((3,))
        for name, raw in list(part._parameters.items()):
            shifts = torch.tensor([0.0, 0.1, -0.07], dtype=raw.dtype).reshape(3, *(1,) * raw.dim())
            part._parameters[name] = torch.nn.Parameter(raw.detach() + shifts)
    return kernel


def member(kernel: gpytorch.kernels.Kernel, index: int) -> gpytorch.kernels.Kernel:
    """Member ``index`` of a batch."""
    kernel = copy.deepcopy(kernel)
    for part in kernel.modules():
        if not isinstance(part, gpytorch.kernels.Kernel):
            continue
        part._batch_shape = torch.Size()
        for name, raw in list(part._parameters.items()):
            part._parameters[name] = torch.nn.Parameter(raw.detach()[index].clone())
    return kernel
