"""Stochastic Lanczos quadrature against eigenvalues that are known."""

from __future__ import annotations

import math

import pytest
import torch
from spectra import rotation, spectrum

from spatialdiff.covariance.numerics.lanczos import (
    Preconditioner,
    Tridiagonal,
    eigenvalue_bounds,
    lanczos_log_det,
)


@pytest.mark.parametrize("kind", ["geometric", "nugget", "outlier"])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_value_within_its_error(kind, condition):
    n = 150
    values = spectrum(n, condition, kind)
    q = rotation(n)
    a = (q * values) @ q.T
    tolerance = 0.15
    value, error = lanczos_log_det(lambda x: x @ a, (n,), tolerance=tolerance, probes=16, seed=3)
    assert value.dtype == error.dtype == torch.float64
    assert 0 < error.item() <= tolerance * n
    # a tenth of the tolerance is the stated limit of the truncation
    difference = abs(value.item() - values.log().sum().item())
    assert difference <= 5 * error.item() + 0.1 * tolerance * n


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_truncation_alone(condition):
    """Against ``zᵀ log(A) z`` of the same probes, by eigenvectors: no Monte-Carlo error is left."""
    n = 120
    values = spectrum(n, condition, "geometric")
    q = rotation(n)
    a = (q * values) @ q.T
    value, _ = lanczos_log_det(lambda x: x @ a, (n,), tolerance=1.0, probes=8, seed=1)
    generator = torch.Generator().manual_seed(1)
    z = torch.stack([2.0 * torch.randint(0, 2, (n,), generator=generator) - 1 for _ in range(8)]).double()
    exact = ((z @ q).square() @ values.log()).mean()
    assert abs(value.item() - exact.item()) <= 0.1 * n


def test_gauss_is_above_and_radau_below():
    values = spectrum(80, 1e4, "geometric")
    q = rotation(80)
    z = torch.randn(3, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = (z @ q).square() @ values.log()
    run = Tridiagonal(lambda x: (x @ q * values) @ q.T, z, 1)
    gaps = []
    for k in range(1, 60):
        run.step()
        nodes, weights = run.ritz()
        upper = run.norm.square() * (weights * nodes.log()).sum(-1)
        nodes, weights = run.radau(torch.full((3,), 1e-4, dtype=torch.float64))
        lower = run.norm.square() * (weights * nodes.clamp_min(1e-4).log()).sum(-1)
        assert (upper > exact - 1e-9).all(), k
        assert (lower < exact + 1e-9).all(), k
        gaps.append((upper - lower).max().item())
    assert gaps[-1] < 1e-3 * gaps[0]


def test_basis_is_orthonormal():
    """Full reorthogonalisation, at a condition number where the plain recurrence has lost everything."""
    values = spectrum(100, 1e8, "nugget")
    q = rotation(100)
    run = Tridiagonal(lambda x: (x @ q * values) @ q.T, torch.ones(1, 100, dtype=torch.float64), 1)
    for _ in range(40):
        run.step()
    basis = torch.cat([c[0] for c in run.chunks])[:40]
    torch.testing.assert_close(basis @ basis.T, torch.eye(40, dtype=torch.float64), rtol=0, atol=1e-12)


def test_exhausted_space():
    """Three distinct eigenvalues: Lanczos ends after three steps and the rule is exact."""
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(20)
    q = rotation(60)
    a = (q * values) @ q.T
    value, error = lanczos_log_det(lambda x: x @ a, (60,), tolerance=0.05, probes=16)
    assert abs(value.item() - values.log().sum().item()) <= 5 * error.item()
    identity, error = lanczos_log_det(lambda x: 3.0 * x, (60,), tolerance=1e-6)
    assert identity.item() == pytest.approx(60 * math.log(3), abs=1e-9)
    assert error.item() < 1e-9


def test_memory_limit_keeps_the_value():
    values = spectrum(150, 1e6, "nugget")
    q = rotation(150)
    full, _ = lanczos_log_det(lambda x: (x @ q * values) @ q.T, (150,), tolerance=0.3, probes=8)
    short, _ = lanczos_log_det(
        lambda x: (x @ q * values) @ q.T, (150,), tolerance=0.3, probes=8, memory=8 * 150 * 8 * 5
    )
    assert short.item() == pytest.approx(full.item(), abs=2 * 0.1 * 0.3 * 150)


def test_batch_of_operators_and_field_axes():
    conditions = [1e2, 1e3, 1e5]
    q = rotation(60)
    spectra = torch.stack([spectrum(60, c, "nugget") for c in conditions])
    a = (q * spectra[:, None]) @ q.T

    def matmul(x):
        return (a @ x.reshape(-1, 3, 60, 1)).reshape(x.shape)

    value, error = lanczos_log_det(matmul, (6, 10), batch=(3,), tolerance=0.2, probes=12)
    assert value.shape == error.shape == (3,)
    for i in range(3):
        one, _ = lanczos_log_det(
            lambda x, i=i: (x.reshape(-1, 60) @ a[i]).reshape(x.shape), (6, 10), tolerance=0.2, probes=12
        )
        assert one.item() == pytest.approx(value[i].item(), abs=0.1 * 0.2 * 60)
        assert abs(value[i] - spectra[i].log().sum()).item() <= 5 * error[i].item() + 0.02 * 60


def test_preconditioner_reduces_steps_and_error():
    values = spectrum(150, 1e8, "nugget")
    q = rotation(150)
    near = values * torch.linspace(0.8, 1.25, 150, dtype=torch.float64)
    m = Preconditioner(lambda x: (x @ q * near.rsqrt()) @ q.T, near.log().sum())
    calls = []

    def matmul(x):
        calls.append(1)
        return (x @ q * values) @ q.T

    value, error = lanczos_log_det(matmul, (150,), preconditioner=m, tolerance=2e-3)
    assert len(calls) < 40
    assert error.item() <= 2e-3 * 150
    assert abs(value.item() - values.log().sum().item()) <= 5 * error.item() + 2e-4 * 150


def test_preconditioner_that_is_not_symmetric():
    q = rotation(50)
    a = (q * spectrum(50, 1e4, "geometric")) @ q.T
    root = torch.linalg.cholesky(a + 1e-3 * torch.eye(50, dtype=torch.float64))
    inverse = torch.linalg.inv(root)
    m = Preconditioner(lambda x: x @ inverse.T, 2 * root.diagonal().log().sum(), lambda x: x @ inverse)
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(m.solve(x), torch.cholesky_solve(x[:, None], root)[:, 0])
    value, error = lanczos_log_det(lambda x: x @ a, (50,), preconditioner=m, tolerance=0.05, probes=64)
    assert abs(value.item() - torch.logdet(a).item()) <= 5 * error.item() + 0.005 * 50


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_gradient_is_that_of_the_surrogate(condition):
    """For the same probes the gradient is ``mean zᵀ A⁻¹ dA z`` exactly, and its mean is ``tr A⁻¹ dA``."""
    n = 60
    q = rotation(n)
    base = (q * spectrum(n, condition, "geometric")) @ q.T
    other = torch.cov(torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value, _ = lanczos_log_det(
        lambda x: x @ (base * theta + 0.01 * theta.square() * other), (n,), tolerance=1.0, probes=200, seed=5
    )
    (gradient,) = torch.autograd.grad(value, theta)
    a = (base * theta + 0.01 * theta.square() * other).detach()
    da = (base + 0.02 * theta * other).detach()
    generator = torch.Generator().manual_seed(5)
    z = torch.stack([2.0 * torch.randint(0, 2, (n,), generator=generator) - 1 for _ in range(200)]).double()
    each = (torch.linalg.solve(a, z.T).T * (z @ da)).sum(-1)
    assert gradient.item() == pytest.approx(each.mean().item(), rel=1e-5)
    exact = torch.linalg.solve(a, da).trace()
    assert abs(gradient.item() - exact.item()) <= 5 * each.std().item() / math.sqrt(200)


def test_gradient_batch_with_preconditioner():
    n = 40
    q = rotation(n)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    values = spectrum(n, 1e3, "geometric")
    m = Preconditioner(lambda x: (x @ q * values.rsqrt()) @ q.T, values.log().sum())
    value, _ = lanczos_log_det(
        lambda x: scale[:, None] * ((x @ q * values) @ q.T), (n,), batch=(2,), preconditioner=m, tolerance=0.1
    )
    expected = values.log().sum() + n * scale.log()
    torch.testing.assert_close(value, expected)
    # A = θ A₀ and M = A₀: the estimator has no variance
    (gradient,) = torch.autograd.grad(value.sum(), scale)
    torch.testing.assert_close(gradient, n / scale.detach(), rtol=1e-6, atol=0)


def test_refuses():
    q = rotation(60)

    def operator(values):
        return lambda x: (x @ q * values) @ q.T

    with pytest.raises(RuntimeError, match=r"condition number is at least .* limit of 1e\+09"):
        lanczos_log_det(operator(spectrum(60, 1e11, "geometric")), (60,), tolerance=0.1)
    with pytest.raises(RuntimeError, match=r"standard error of .* more than the limit of 64"):
        lanczos_log_det(operator(spectrum(60, 1e6, "geometric")), (60,), tolerance=1e-4, max_probes=64)
    with pytest.raises(RuntimeError, match="5 Lanczos steps leave a truncation error"):
        lanczos_log_det(operator(spectrum(60, 1e6, "geometric")), (60,), tolerance=0.1, steps=5)
    bad = spectrum(60, 1e2, "geometric")
    bad[30] = -0.1
    with pytest.raises(ValueError, match="not positive definite"):
        lanczos_log_det(operator(bad), (60,), tolerance=0.1)


def test_same_seed_same_value():
    values = spectrum(50, 1e3, "geometric")
    q = rotation(50)

    def run(seed, memory=1e9):
        return lanczos_log_det(
            lambda x: (x @ q * values) @ q.T, (50,), tolerance=1.0, seed=seed, memory=memory
        )[0].item()

    assert run(1) == run(1)
    assert run(1) != run(2)
    # groups of fewer probes are the same probes
    assert run(1, memory=8 * 50 * 64 * 4) == pytest.approx(run(1), abs=2 * 0.1 * 50)


def test_eigenvalue_bounds():
    values = torch.stack([spectrum(100, 1e2, "geometric"), spectrum(100, 1e4, "nugget")])
    q = rotation(100)
    low, high = eigenvalue_bounds(
        lambda x: ((x[..., None, :] @ q)[..., 0, :] * values) @ q.T, (100,), batch=(2,), steps=100
    )
    torch.testing.assert_close(low, values.amin(-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(high, values.amax(-1), rtol=1e-6, atol=0)
    _, short = eigenvalue_bounds(
        lambda x: ((x[..., None, :] @ q)[..., 0, :] * values) @ q.T, (100,), batch=(2,), steps=10
    )
    assert (short >= values.amax(-1) * (1 - 1e-6)).all()
