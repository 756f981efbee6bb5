"""The linear model of coregionalisation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import F64, SITES, check_gradients, sites

from spatialdiff.kernels import (
    Anisotropic,
    Coregionalization,
    Exponential,
    Gaussian,
    Matern,
    Nonstationary,
    Nugget,
)

B1 = torch.tensor([[1.0, 0.5, 0.1], [0.5, 2.0, -0.4], [0.1, -0.4, 0.7]], dtype=F64)
B2 = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [2.0, 2.0, 4.0]], dtype=F64)


def model():
    return Coregionalization([(B1, Matern(1.5, 0.8)), (B2, Anisotropic(Exponential(2.0), 0.3, ratios=2.0))])


def full(lmc, x):
    """The covariance matrix of all channels at all sites, channels first."""
    values = lmc.cross_pairs(x[:, None], x[None])
    return values.permute(2, 0, 3, 1).reshape(lmc.channels * len(x), -1)


def test_is_the_sum_of_kronecker_products():
    x = sites(7, 2)
    lmc = model()
    expected = sum(
        torch.kron(b, kernel.at_pairs(x[:, None], x[None]))
        for b, kernel in zip((B1, B2), lmc.kernels, strict=True)
    )
    torch.testing.assert_close(full(lmc, x), expected)
    for (got, kernel), b in zip(lmc.terms, (B1, B2), strict=True):
        torch.testing.assert_close(got, b)
        assert kernel in list(lmc.kernels)
    h = x.reshape(7, 1, 2) - x
    torch.testing.assert_close(lmc.cross(h), lmc.cross_pairs(x[:, None], x[None]))
    torch.testing.assert_close(lmc.variance, B1 + B2)
    torch.testing.assert_close(lmc.cross(torch.zeros(1, 2, dtype=F64))[0], B1 + B2)
    omega = sites(4, 2)
    densities = [kernel.spectral_density(omega)[:, None, None] for kernel in lmc.kernels]
    torch.testing.assert_close(lmc.spectral_density(omega), densities[0] * B1 + densities[1] * B2)


def test_rank_is_that_of_the_matrix():
    lmc = model()
    assert [tuple(root.shape) for root in lmc.roots] == [(3, 3), (3, 1)]
    assert lmc.channels == 3


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), channels=st.integers(1, 4), rank=st.integers(1, 3), d=st.integers(1, 3))
def test_positive_definite(seed, channels, rank, d):
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(2, channels, rank, dtype=F64, generator=generator)
    b = roots @ roots.mT
    lmc = Coregionalization([(b[0], Matern(1.5)), (b[1], Gaussian(0.5) + Nugget(0.1))])
    values = torch.linalg.eigvalsh(full(lmc, sites(12, d, seed)).detach())
    assert values[0] > -1e-13 * values[-1]


def test_gradients():
    check_gradients(model(), lambda m: m.cross_pairs(SITES[:, None, :2], SITES[None, :, :2]))
    check_gradients(model(), lambda m: m.spectral_density(SITES[:, :2]))


def test_batches():
    b = torch.stack([B1, 2 * B1])
    ell = torch.tensor([[0.5], [1.5]], dtype=F64)
    h = sites(6, 2).reshape(2, 3, 2)
    batched = Coregionalization([(b, Matern(1.5, ell, batch_shape=(2,))), (B2, Exponential())])
    single = [Coregionalization([(b[i], Matern(1.5, ell[i])), (B2, Exponential())]) for i in range(2)]
    assert batched.batch_shape == (2,)
    torch.testing.assert_close(batched.cross(h), torch.stack([m.cross(h) for m in single]))
    torch.testing.assert_close(batched.variance, torch.stack([m.variance for m in single]))
    matrices = Coregionalization([(b, Matern(1.5)), (B2, Exponential())])
    single = [Coregionalization([(b[i], Matern(1.5)), (B2, Exponential())]) for i in range(2)]
    torch.testing.assert_close(matrices.cross(h), torch.stack([m.cross(h) for m in single]))


def test_with_a_kernel_that_is_not_stationary():
    lmc = Coregionalization([(B1, Nonstationary(Matern(1.5), lambda x: 1 + x[..., :1]))])
    assert not lmc.is_stationary
    x = sites(5, 2)
    assert lmc.cross_pairs(x[:, None], x[None]).shape == (5, 5, 3, 3)
    with pytest.raises(ValueError, match="use cross_pairs"):
        lmc.cross(x)


def test_refuses():
    with pytest.raises(ValueError, match="at least one term"):
        Coregionalization([])
    with pytest.raises(TypeError, match="term 0 must be a pair"):
        Coregionalization([B1])
    with pytest.raises(ValueError, match="positive semi-definite"):
        Coregionalization([([[1.0, 2.0], [2.0, 1.0]], Matern())])
    with pytest.raises(ValueError, match="positive semi-definite"):
        Coregionalization([([[0.0, 0.0], [0.0, 0.0]], Matern())])
    with pytest.raises(ValueError, match="symmetric"):
        Coregionalization([([[1.0, 0.5], [0.4, 1.0]], Matern())])
    with pytest.raises(ValueError, match="square"):
        Coregionalization([([[1.0, 0.5]], Matern())])
    with pytest.raises(ValueError, match=r"different sizes \[2, 3\]"):
        Coregionalization([(B1, Matern()), (torch.eye(2), Matern())])
