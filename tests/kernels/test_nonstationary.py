"""Paciorek–Schervish kernels against the formula, dense structures and finite differences."""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import F64, SITES, check_batch, check_gradients, matrix, sites, smallest_eigenvalue

import spatialdiff as sd
from spatialdiff.kernels import (
    Anisotropic,
    Askey,
    Cauchy,
    Exponential,
    Gaussian,
    GridField,
    Matern,
    Nonstationary,
    Nugget,
    PoweredExponential,
    RationalQuadratic,
    Wave,
    at_pairs,
)


class Positive(torch.nn.Module):
    """A network with positive outputs."""

    def __init__(self, inputs, outputs, dtype=F64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(inputs, 4, dtype=dtype),
                torch.nn.Tanh(),
                torch.nn.Linear(4, outputs, dtype=dtype),
            )

    def forward(self, x):
        return self.layers(x).exp()


def direct(kernel, x1, x2, a1, a2):
    """Paciorek & Schervish (2006), equation 8, with dense linear algebra."""
    mean, h = (a1 + a2) / 2, x1 - x2
    r = (h @ torch.linalg.solve(mean, h)).sqrt()
    root = (torch.det(a1) * torch.det(a2)) ** 0.25 / torch.det(mean).sqrt()
    return root * kernel.at_lags(r.reshape(1, 1)).squeeze()


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("components", [1, None])
def test_is_the_formula(d, components):
    family = Matern(1.5, 1.3, 2.0)
    kernel = Nonstationary(family, Positive(d, components or d)).requires_grad_(False)
    x = sites(6, d)
    ell = kernel.lengthscale_field(x).expand(6, d)
    a = torch.diag_embed(ell.square())
    expected = torch.stack(
        [torch.stack([direct(family, x[i], x[j], a[i], a[j]) for j in range(6)]) for i in range(6)]
    )
    torch.testing.assert_close(matrix(kernel, x), expected.detach())


@pytest.mark.parametrize("d", [2, 3])
def test_is_the_formula_with_rotation(d):
    family = Exponential(1.3, 2.0)
    kernel = Nonstationary(
        family,
        Positive(d, d),
        angles=lambda x: x[..., : 1 if d == 2 else 3] * 0.7,
        standard_deviation=lambda x: 1 + x[..., 0],
    ).requires_grad_(False)
    x = sites(6, d)
    a, s = kernel._matrices(x), 1 + x[:, 0]
    if d == 2:
        c, v = torch.cos(0.7 * x[:, 0]), torch.sin(0.7 * x[:, 0])
        axes = torch.stack([torch.stack([c, -v], -1), torch.stack([v, c], -1)], -2)
        torch.testing.assert_close(a, axes @ torch.diag_embed(kernel.lengthscale_field(x).square()) @ axes.mT)
    expected = torch.stack(
        [
            torch.stack([s[i] * s[j] * direct(family, x[i], x[j], a[i], a[j]) for j in range(6)])
            for i in range(6)
        ]
    )
    torch.testing.assert_close(matrix(kernel, x), expected.detach())
    torch.testing.assert_close(matrix(kernel, x).diagonal(), kernel.variance_at(x))
    other = Nonstationary(family, anisotropy=kernel._matrices, standard_deviation=lambda x: 1 + x[..., 0])
    torch.testing.assert_close(matrix(other, x), expected.detach())


def test_constant_fields_give_the_stationary_kernel():
    x = sites(7, 2)
    torch.testing.assert_close(
        matrix(Nonstationary(Matern(1.5, 2.0, 1.2), 0.5), x), matrix(Matern(1.5, 1.0, 1.2), x)
    )
    kernel = Nonstationary(Gaussian(), (0.5, 2.0), angles=lambda x: torch.full_like(x[..., 0], 0.3))
    torch.testing.assert_close(
        matrix(kernel, x), matrix(Anisotropic(Gaussian(), 0.3, lengthscales=(0.5, 2.0)), x)
    )
    assert not kernel.is_stationary


def test_as_a_covariance():
    """Dense Γ of a field whose length scale doubles across the grid; the structures that need stationarity
    refuse.
    """
    grid = sd.Grid((6, 5))
    values = torch.linspace(1, 2, 6, dtype=F64)[:, None].expand(6, 5)
    kernel = Nonstationary(Matern(1.5), GridField(values)).requires_grad_(False)
    gamma = sd.covariance(kernel, grid, method="dense")
    x = grid.coordinates().reshape(-1, 2)
    torch.testing.assert_close(gamma.to_dense(), matrix(kernel, x), rtol=0, atol=1e-13)
    assert gamma.to_dense()[0, 1] < gamma.to_dense()[-2, -1] - 0.1
    draws = gamma.double().sample((4000,), generator=torch.Generator().manual_seed(0)).flatten(1)
    estimate = (draws[:, 0] * draws[:, 1]).mean().item()
    exact = gamma.to_dense()[0, 1].item()
    assert abs(estimate - exact) < 5 * math.sqrt((1 + exact**2) / 4000)
    for method in ("circulant", "cosine"):
        with pytest.raises(ValueError, match="stationary"):
            sd.covariance(kernel, grid, method=method)


def test_sums_products_and_gpytorch():
    x = sites(5, 2)
    kernel = Nonstationary(Matern(1.5), Positive(2, 1))
    total = kernel * Gaussian(2.0) + Nugget(0.1)
    expected = matrix(kernel, x) * matrix(Gaussian(2.0), x) + 0.1 * torch.eye(5, dtype=F64)
    torch.testing.assert_close(at_pairs(total, x[:, None], x[None]), expected)
    torch.testing.assert_close(total(x).to_dense(), expected)
    torch.testing.assert_close(kernel(x, diag=True), kernel.variance_at(x))
    assert not total.is_stationary


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(
        [Matern(0.5), Matern(2.5), Gaussian(), Cauchy(0.7), RationalQuadratic(0.4), PoweredExponential(0.6)]
    ),
    d=st.sampled_from([1, 2, 3]),
    spread=st.floats(0, 2),
    frequency=st.floats(0, 5),
    seed=st.integers(0, 1000),
)
def test_positive_definite(family, d, spread, frequency, seed):
    def lengthscale(x):
        return torch.exp(spread * torch.sin(frequency * x + torch.arange(d)))

    angles = None
    if d > 1:
        angles = lambda x: frequency * x[..., : 1 if d == 2 else 3]  # noqa: E731
    kernel = Nonstationary(family, lengthscale, angles=angles, standard_deviation=lambda x: 1 + x[..., 0])
    assert smallest_eigenvalue(kernel, sites(25, d, seed)) > -1e-13


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), rank=st.integers(0, 2))
def test_any_field_of_matrices_is_positive_definite(seed, rank):
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(4, 4, 2, 2, dtype=F64, generator=generator)
    values = field @ field.mT + 10.0**-rank * torch.eye(2, dtype=F64)
    kernel = Nonstationary(Matern(1.5), anisotropy=GridField(values, spacing=(1.0, 1.0)))
    assert smallest_eigenvalue(kernel, sites(25, 2, seed)) > -1e-13


def test_gradients():
    kernel = Nonstationary(
        Matern(1.5, 0.8, 1.3),
        Positive(2, 2),
        angles=GridField(sites(3, 3).reshape(3, 3), origin=(-0.2, -1.2), trainable=True),
        standard_deviation=Positive(2, 1),
    )
    check_gradients(kernel, lambda k: matrix(k, SITES[:, :2]), second=False)
    kernel = Nonstationary(Exponential(0.8, 1.3), (0.5, 2.0, 1.0), standard_deviation=1.4)
    check_gradients(kernel, lambda k: matrix(k, SITES))


def test_batches():
    ell, variance = torch.tensor([[0.5], [1.0]], dtype=F64), torch.tensor([1.0, 3.0], dtype=F64)
    field, deviation = Positive(2, 1), Positive(2, 1)
    batched = Nonstationary(Matern(1.5, ell, variance, batch_shape=(2,)), field, standard_deviation=deviation)
    single = [
        Nonstationary(Matern(1.5, ell[i], variance[i]), field, standard_deviation=deviation) for i in range(2)
    ]
    assert batched.batch_shape == (2,)
    check_batch(batched, single, lambda k: matrix(k, SITES[:, :2]))
    check_batch(batched, single, lambda k: k.variance_at(SITES[:, :2]))


def test_network_in_single_precision():
    kernel = Nonstationary(Matern(1.5), Positive(2, 1, torch.float32))
    assert matrix(kernel, SITES[:, :2]).dtype == F64
    assert matrix(kernel, SITES[:, :2].float()).dtype == torch.float32
    assert next(kernel.lengthscale_field.parameters()).dtype == torch.float32


# ---- fields on grids
def test_grid_field_is_multilinear():
    values = torch.tensor([[0.0, 1.0, 4.0], [2.0, 3.0, 5.0]], dtype=F64)
    field = GridField(values, spacing=(2.0, 0.5), origin=(1.0, -1.0))
    nodes = torch.stack(
        torch.meshgrid(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -0.5, 0.0]), indexing="ij"), -1
    ).double()
    torch.testing.assert_close(field(nodes), values)
    middle = torch.tensor([[2.0, -0.75], [1.0, -0.25], [3.9, 0.2], [1.0, -1.1]], dtype=F64)
    torch.testing.assert_close(field(middle), torch.tensor([1.5, 2.5, 5.0, 0.0], dtype=F64))
    single = GridField(torch.tensor([[3.0]]))
    torch.testing.assert_close(single(torch.tensor([[0.2, -0.3]], dtype=F64)), torch.tensor([3.0], dtype=F64))
    pairs = GridField(torch.stack([values, -values], -1), spacing=(2.0, 0.5), origin=(1.0, -1.0))
    torch.testing.assert_close(pairs(middle)[:, 1], -field(middle))
    assert dict(field.named_parameters()) == {}
    assert "values" in dict(GridField(values, trainable=True).named_parameters())


def test_grid_field_refuses():
    field = GridField(torch.ones(3, 3))
    with pytest.raises(ValueError, match="1 of 2 sites are outside the grid"):
        field(torch.tensor([[1.0, 1.0], [1.0, 2.6]], dtype=F64))
    with pytest.raises(ValueError, match="2 axes, but the sites have 3"):
        field(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="finite"):
        GridField(torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="spacing must be positive"):
        GridField(torch.ones(3), spacing=0.0)
    with pytest.raises(ValueError, match="3 spacings for values of shape"):
        GridField(torch.ones(3, 3), spacing=(1.0, 1.0, 1.0))


def test_refuses():
    x = SITES[:, :2]
    with pytest.raises(TypeError, match="isotropic family"):
        Nonstationary(gpytorch.kernels.RBFKernel(), 1.0)
    for family in (Wave(), Askey(3.0), Nugget()):
        with pytest.raises(ValueError, match="positive definite in every dimension"):
            Nonstationary(family, 1.0)
    with pytest.raises(ValueError, match="2 length scales"):
        Nonstationary(Matern(1.5, (1.0, 2.0)), 1.0)
    with pytest.raises(ValueError, match="either lengthscale"):
        Nonstationary(Matern())
    with pytest.raises(ValueError, match="either lengthscale"):
        Nonstationary(Matern(), 1.0, anisotropy=lambda x: x)
    with pytest.raises(ValueError, match="give no angles"):
        Nonstationary(Matern(), anisotropy=lambda x: x, angles=lambda x: x)
    with pytest.raises(TypeError, match="lengthscale must be a number"):
        Nonstationary(Matern(), object())
    with pytest.raises(ValueError, match="lengthscale must be positive everywhere"):
        matrix(Nonstationary(Matern(), lambda x: x[..., :1]), x)
    with pytest.raises(ValueError, match="lengthscale returned NaN"):
        matrix(Nonstationary(Matern(), lambda x: x[..., :1] * math.nan), x)
    with pytest.raises(ValueError, match="lengthscale must have 1 or 2 components"):
        matrix(Nonstationary(Matern(), lambda x: torch.ones(*x.shape[:-1], 3)), x)
    with pytest.raises(ValueError, match="must return shape"):
        matrix(Nonstationary(Matern(), lambda x: torch.ones(3)), x)
    with pytest.raises(ValueError, match="angles need one component"):
        matrix(Nonstationary(Matern(), 1.0, angles=lambda x: x), x)
    with pytest.raises(ValueError, match="positive definite at every site"):
        matrix(Nonstationary(Matern(), anisotropy=lambda x: -torch.eye(2).expand(*x.shape, 2).to(x)), x)
    with pytest.raises(ValueError, match="symmetric"):
        matrix(
            Nonstationary(
                Matern(),
                anisotropy=lambda x: torch.tensor([[1.0, 0.5], [0.0, 1.0]]).expand(*x.shape, 2).to(x),
            ),
            x,
        )
    with pytest.raises(ValueError, match="anisotropy must return shape"):
        matrix(Nonstationary(Matern(), anisotropy=lambda x: x), x)
