"""Rotated and stretched kernels: against the definition, quadrature, a dense Γ and finite differences."""

from __future__ import annotations

import copy
import math

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import F64, SITES, check_batch, check_gradients, matrix, sites, smallest_eigenvalue

import spatialdiff as sd
from spatialdiff.covariance import CirculantCovariance, DenseCovariance
from spatialdiff.kernels import Anisotropic, Gaussian, Matern, Nugget, PoweredExponential, at_lags, terms
from spatialdiff.kernels.anisotropy import rotation


def test_first_axis_is_where_the_angle_points():
    """The axis with scale λ has λ times the range, in the direction that the docstring states."""
    theta = 0.4
    kernel = Anisotropic(Matern(1.5), theta, lengthscales=(5.0, 0.5))
    along = torch.tensor([[math.cos(theta), math.sin(theta)]], dtype=F64)
    across = torch.tensor([[-math.sin(theta), math.cos(theta)]], dtype=F64)
    one = torch.tensor([[1.0]], dtype=F64)
    torch.testing.assert_close(kernel.at_lags(5 * along), Matern(1.5).at_lags(one))
    torch.testing.assert_close(kernel.at_lags(0.5 * across), Matern(1.5).at_lags(one))
    a, b = 0.3, -0.7
    kernel = Anisotropic(Matern(1.5), (a, b, 1.1), lengthscales=(5.0, 0.5, 0.5))
    first = torch.tensor([[math.cos(a) * math.cos(b), math.sin(a) * math.cos(b), -math.sin(b)]], dtype=F64)
    torch.testing.assert_close(kernel.at_lags(5 * first), Matern(1.5).at_lags(one))


def test_rotations_are_rotations():
    angles = torch.randn(20, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    matrices = rotation(angles)
    eye = torch.eye(3, dtype=F64).expand(20, 3, 3)
    torch.testing.assert_close(matrices @ matrices.mT, eye)
    torch.testing.assert_close(torch.det(matrices), torch.ones(20, dtype=F64))
    about = rotation(torch.tensor([0.3, 0.0, 0.0], dtype=F64))
    torch.testing.assert_close(about[:2, :2], rotation(torch.tensor([0.3], dtype=F64)))


def test_without_rotation_it_is_one_length_scale_per_axis():
    h = sites(9, 3)
    torch.testing.assert_close(
        Anisotropic(Matern(2.5, 1.0, 1.4), lengthscales=(0.5, 2.0, 1.1)).at_lags(h),
        Matern(2.5, (0.5, 2.0, 1.1), 1.4).at_lags(h),
    )
    relative = Anisotropic(Matern(2.5, 0.5, 1.4), ratios=(4.0, 2.2))
    torch.testing.assert_close(relative.at_lags(h), Matern(2.5, (0.5, 2.0, 1.1), 1.4).at_lags(h))
    torch.testing.assert_close(
        relative.spectral_density(h), Matern(2.5, (0.5, 2.0, 1.1), 1.4).spectral_density(h)
    )
    assert relative.reflection_symmetric


def test_spectral_density_is_the_fourier_transform():
    """By the trapezoidal rule in two dimensions, which is exact to rounding for a Gaussian."""
    kernel = Anisotropic(Gaussian(0.8, 1.3), 0.6, ratios=2.5)
    u = torch.linspace(-16, 16, 257, dtype=F64)
    h = torch.stack(torch.meshgrid(u, u, indexing="ij"), -1)
    values = kernel.at_lags(h)
    for omega in ([0.0, 0.0], [0.7, -0.3], [1.0, 2.0]):
        w = torch.tensor(omega, dtype=F64)
        integral = (values * torch.cos(h @ w)).sum() * (u[1] - u[0]) ** 2
        assert kernel.spectral_density(w[None]).item() == pytest.approx(integral.item(), abs=1e-12)


def test_wraps_any_kernel():
    """A sum with a nugget, a product, one of gpytorch's, and itself."""
    h = torch.cat([torch.zeros(1, 2, dtype=F64), sites(5, 2)])
    turned = h @ rotation(torch.tensor([0.3], dtype=F64)) / torch.tensor([1.0, 3.0], dtype=F64)
    theirs = gpytorch.kernels.MaternKernel(1.5).double()
    for inner in (Matern(1.5) + Nugget(0.2), Matern(1.5) * Gaussian(2.0), PoweredExponential(1.2), theirs):
        kernel = Anisotropic(inner, 0.3, ratios=3.0)
        torch.testing.assert_close(kernel.at_lags(h), at_lags(inner, turned))
    kernel = Anisotropic(Matern(1.5, 1.0, 2.0) + Nugget(0.2), 0.3, ratios=3.0)
    assert kernel.nugget.item() == pytest.approx(0.2)
    assert kernel.variance.item() == pytest.approx(2.2)
    omega = sites(4, 2)
    only = Anisotropic(Matern(1.5, 1.0, 2.0), 0.3, ratios=3.0)
    torch.testing.assert_close(kernel.spectral_density(omega), only.spectral_density(omega))


def test_metric():
    kernel = Anisotropic(Matern(1.5), (0.3, -0.5, 1.0), lengthscales=(0.5, 2.0, 1.0))
    h = sites(6, 3)
    length = torch.einsum("na,ab,nb->n", h, kernel.metric(3), h).sqrt()
    torch.testing.assert_close(kernel.at_lags(h), Matern(1.5).at_lags(length[:, None]))
    torch.testing.assert_close((h @ kernel.to_principal_axes(3).mT).norm(dim=-1), length)


def test_two_turns_undo_each_other():
    h = sites(6, 2)
    inner = Anisotropic(Matern(1.5), 0.3, lengthscales=(2.0, 0.5))
    twice = Anisotropic(inner, -0.3, lengthscales=(1.0, 1.0))
    torch.testing.assert_close(twice.at_lags(h), Matern(1.5, (2.0, 0.5)).at_lags(h))


def test_terms_share_the_parameters():
    kernel = Anisotropic(Matern(1.5) * (Gaussian() + Matern(0.5)) + Nugget(0.3), 0.3, ratios=2.0)
    expanded = terms(kernel)
    assert [len(term) for term in expanded] == [2, 2, 1]
    h = sites(5, 2)
    total = sum(torch.stack([at_lags(factor, h) for factor in term]).prod(0) for term in expanded)
    torch.testing.assert_close(total, kernel.at_lags(h))
    assert expanded[0][0].angles is kernel.angles
    assert {id(p) for term in expanded for f in term for p in f.parameters()} == {
        id(p) for p in kernel.parameters()
    }


@pytest.mark.parametrize("periodic", [False, (True, False)])
def test_circulant_embedding_of_a_rotated_kernel(periodic):
    """A rotated kernel is not even in every axis; the embedding must not mirror it."""
    kernel = Anisotropic(Matern(1.5, 1.2, 1.5) + Nugget(0.1), 0.7, ratios=2.5).requires_grad_(False)
    assert not kernel.reflection_symmetric
    grid = sd.Grid((9, 8), spacing=(1.0, 0.7), periodic=periodic)
    dense = DenseCovariance(kernel, grid).to_dense()
    fast = CirculantCovariance(kernel, grid)
    torch.testing.assert_close(fast.to_dense(), dense, rtol=0, atol=1e-12)
    if periodic is False:
        x = grid.coordinates().reshape(-1, 2)
        torch.testing.assert_close(dense, matrix(kernel, x), rtol=0, atol=1e-12)
    root = fast.double().color(
        torch.eye(fast.factor_shape.numel(), dtype=F64).reshape(-1, *fast.factor_shape)
    )
    root = root.reshape(len(root), -1)
    torch.testing.assert_close(root.T @ root, dense, rtol=0, atol=1e-11)
    mirrored = matrix(
        Anisotropic(Matern(1.5, 1.2, 1.5) + Nugget(0.1), -0.7, ratios=2.5), grid.coordinates().reshape(-1, 2)
    )
    assert (mirrored - dense).abs().max() > 0.1


@pytest.mark.parametrize("method", ["torus"])
def test_torus_of_a_rotated_kernel(method):
    kernel = Anisotropic(Matern(1.5, 1.2, 1.5), 0.7, ratios=2.5).requires_grad_(False)
    grid = sd.Grid((10, 9), periodic=True)
    fast = sd.covariance(kernel, grid, method=method)
    torch.testing.assert_close(fast.to_dense(), DenseCovariance(kernel, grid).to_dense(), rtol=0, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(
    angle=st.floats(-4, 4),
    ratio=st.floats(0.05, 20),
    d=st.sampled_from([2, 3]),
    nu=st.sampled_from([0.5, 1.5, 2.5]),
    seed=st.integers(0, 1000),
)
def test_positive_definite(angle, ratio, d, nu, seed):
    angles = angle if d == 2 else (angle, 0.5 * angle, -angle)
    kernel = Anisotropic(Matern(nu), angles, ratios=(ratio,) * (d - 1))
    assert smallest_eigenvalue(kernel, sites(25, d, seed)) > -1e-13


@pytest.mark.parametrize("d", [2, 3])
def test_gradients(d):
    angles = 0.4 if d == 2 else (0.4, -0.2, 1.0)
    kernel = Anisotropic(Matern(1.5, 0.8, 1.3), angles, ratios=(2.0, 0.6)[: d - 1])
    check_gradients(kernel, lambda k: matrix(k, SITES[:, :d]))
    check_gradients(kernel, lambda k: k.spectral_density(SITES[:, :d]))
    other = Anisotropic(Gaussian(1.0), angles, lengthscales=(2.0, 0.6, 1.1)[:d])
    check_gradients(other, lambda k: matrix(k, SITES[:, :d]))


def test_batches():
    ell, variance = torch.tensor([[0.5], [1.0], [2.0]], dtype=F64), torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    angles, ratios = (
        torch.tensor([[0.1], [0.9], [-2.0]], dtype=F64),
        torch.tensor([[2.0], [0.3], [1.0]], dtype=F64),
    )
    inner = Matern(1.5, ell, variance, batch_shape=(3,))
    single = [Anisotropic(Matern(1.5, ell[i], variance[i]), angles[i], ratios=ratios[i]) for i in range(3)]
    both = Anisotropic(inner, angles, ratios=ratios, batch_shape=(3,))
    assert both.batch_shape == (3,)
    h = sites(6, 2).reshape(2, 3, 2)
    for function in (
        lambda k: k.at_lags(h),
        lambda k: k.spectral_density(h),
        lambda k: k.variance,
        lambda k: matrix(k, SITES[:, :2]),
        lambda k: k.effective_range,
    ):
        check_batch(both, single, function)
    inside = Anisotropic(inner, 0.3, ratios=2.0)
    check_batch(
        inside,
        [Anisotropic(Matern(1.5, ell[i], variance[i]), 0.3, ratios=2.0) for i in range(3)],
        lambda k: k.spectral_density(h),
    )
    outside = Anisotropic(Matern(1.5, 0.7) + Nugget(0.1), angles, ratios=ratios, batch_shape=(3,))
    check_batch(
        outside,
        [Anisotropic(Matern(1.5, 0.7) + Nugget(0.1), angles[i], ratios=ratios[i]) for i in range(3)],
        lambda k: k.at_lags(h),
    )
    with pytest.raises(ValueError, match="must be equal, or one of them empty"):
        Anisotropic(inner, 0.3, ratios=2.0, batch_shape=(2,)).at_lags(h)


def test_float32_and_copies():
    kernel = Anisotropic(Matern(1.5), 0.4, ratios=2.0)
    assert kernel.at_lags(torch.ones(3, 2)).dtype == torch.float32
    other = Anisotropic(Matern(1.5), 0.0, ratios=1.0)
    other.load_state_dict(kernel.state_dict())
    torch.testing.assert_close(other.at_lags(SITES[:, :2]), copy.deepcopy(kernel).at_lags(SITES[:, :2]))
    assert "angles=[0.4]" in repr(kernel)
    torch.testing.assert_close(kernel.effective_range[0, 1], 2 * Matern(1.5).effective_range[0, 0])


def test_variance_is_set_inside():
    kernel = Anisotropic(Matern(1.5, 1.0, 2.0), 0.4, ratios=2.0)
    kernel.variance = 3.0
    assert kernel.kernel.variance.item() == pytest.approx(3.0)


def test_refuses():
    with pytest.raises(TypeError, match="needs a kernel, got float"):
        Anisotropic(1.0, ratios=2.0)
    with pytest.raises(ValueError, match="stationary"):
        Anisotropic(gpytorch.kernels.LinearKernel(), ratios=2.0)
    with pytest.raises(ValueError, match="either lengthscales"):
        Anisotropic(Matern(), 0.1)
    with pytest.raises(ValueError, match="either lengthscales"):
        Anisotropic(Matern(), 0.1, ratios=2.0, lengthscales=(1.0, 2.0))
    with pytest.raises(ValueError, match="ratios must be positive"):
        Anisotropic(Matern(), 0.1, ratios=-2.0)
    with pytest.raises(ValueError, match="angles for 3 axes needs 3 values"):
        Anisotropic(Matern(), 0.1, ratios=(2.0, 1.0))
    with pytest.raises(ValueError, match="rotation is for two or three"):
        Anisotropic(Matern(), 0.1, lengthscales=(2.0,))
    with pytest.raises(ValueError, match="must be finite"):
        Anisotropic(Matern(), math.nan, ratios=2.0)
    with pytest.raises(ValueError, match="2 axes, but the sites have 3"):
        Anisotropic(Matern(), 0.1, ratios=2.0).at_lags(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="broadcast to"):
        Anisotropic(Matern(), torch.zeros(2, 1), ratios=2.0, batch_shape=(3,))
    with pytest.raises(ValueError, match="no effective range"):
        Anisotropic(gpytorch.kernels.RBFKernel(), ratios=2.0).effective_range  # noqa: B018
    with pytest.raises(TypeError, match="cannot be set"):
        Anisotropic(gpytorch.kernels.RBFKernel().double(), ratios=2.0).variance = 2.0
