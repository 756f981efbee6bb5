"""Circulant embeddings: growth, refusal, clipping on request, the solver's stated tolerance."""

from __future__ import annotations

import pytest
import torch
from covariance_case import pairwise

import spatialdiff as sd
from spatialdiff.covariance import CirculantCovariance, EmbeddingError
from spatialdiff.covariance.grids.circulant import fast_size
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget


def embedding_eigenvalues(kernel, n, m):
    """Of the plain embedding with lags ``min(j, m-j)``, by a dense eigenvalue routine."""
    j = torch.arange(m, dtype=torch.float64)
    lag = torch.minimum(j, m - j)
    row = kernel.at_lags(lag[:, None]).detach()
    index = (torch.arange(m)[:, None] - torch.arange(m)) % m
    assert m >= 2 * (n - 1)
    return torch.linalg.eigvalsh(row[index])


def test_growth_is_needed_and_found():
    """Matérn 3/2, a length scale of a third of the line: the minimal embedding has negative eigenvalues."""
    kernel = Matern(nu=1.5, lengthscale=16.0).requires_grad_(False)
    grid = sd.Grid(48)
    assert embedding_eigenvalues(kernel, 48, fast_size(94)).min().item() < -1e-4
    gamma = CirculantCovariance(kernel, grid, embedding="plain")
    assert gamma.embedding[0] > fast_size(94)
    assert embedding_eigenvalues(kernel, 48, gamma.embedding[0]).min().item() > -1e-10
    torch.testing.assert_close(gamma.to_dense(), pairwise(kernel, grid), rtol=0, atol=1e-12)
    assert gamma.report.exact
    assert gamma.report.padding == gamma.embedding


def test_exponential_needs_no_growth_on_a_line():
    """Convex and decreasing: non-negative at the minimal size (Dietrich & Newsam 1997, theorem 2)."""
    assert CirculantCovariance(Exponential(30.0), sd.Grid(33)).embedding == (64,)


def test_no_embedding_is_an_error_that_says_what_to_do():
    kernel = Matern(nu=2.5, lengthscale=14.0)
    with pytest.raises(EmbeddingError) as error:
        CirculantCovariance(kernel, sd.Grid((16, 16)), embedding="plain", max_growth=2.0)
    message = str(error.value)
    for part in (
        "smallest eigenvalue is -",
        "are negative",
        "tried 30x30",
        "cosine",
        "on_negative",
        "max_growth",
    ):
        assert part in message


def test_clipping_is_asked_for_and_reported():
    kernel = Matern(nu=2.5, lengthscale=14.0).requires_grad_(False)
    grid = sd.Grid((16, 16))
    gamma = CirculantCovariance(kernel, grid, embedding="plain", max_growth=2.0, on_negative="clip")
    report = gamma.report
    error = (gamma.to_dense() - pairwise(kernel, grid)).abs().max().item()
    assert not report.exact
    assert 0 < report.clipped_mass < 0.2
    assert error == pytest.approx(report.error_bound, rel=1e-6)
    assert error > 1e-6
    # samples and products are of the same, clipped, covariance
    m = gamma.factor_shape.numel()
    root = gamma.color(torch.eye(m, dtype=torch.float64).reshape(m, *gamma.factor_shape)).flatten(1).T
    torch.testing.assert_close(root @ root.T, gamma.to_dense(), rtol=0, atol=1e-10)
    assert "clipped" in str(report)


def test_embedding_sizes():
    assert [fast_size(n) for n in (1, 2, 3, 14, 22, 62, 2046)] == [1, 2, 4, 16, 24, 64, 2048]
    assert CirculantCovariance(Exponential(2.0), sd.Grid((5, 7), periodic=(True, False))).embedding == (5, 12)


def test_solve_states_its_tolerance():
    g = torch.Generator().manual_seed(0)
    kernel = (Matern(1.5, 4.0) + Nugget(0.01)).requires_grad_(False)
    b = torch.randn(2, 24, 20, generator=g, dtype=torch.float64)
    gamma = CirculantCovariance(kernel, sd.Grid((24, 20)), tolerance=1e-11)
    residual = gamma.matmul(gamma.solve(b)) - b
    assert (residual.norm() / b.norm()).item() < 1e-10
    assert torch.equal(gamma.solve(torch.zeros_like(b)), torch.zeros_like(b))
    hurried = CirculantCovariance(kernel, sd.Grid((24, 20)), max_iterations=3)
    with pytest.raises(RuntimeError, match=r"relative residual of .* in 3 iterations"):
        hurried.solve(b)


def test_solve_double_backward_through_the_right_hand_side():
    gamma = CirculantCovariance(Exponential(2.0) + Nugget(0.1), sd.Grid(6)).requires_grad_(False)
    b = torch.randn(6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(gamma.quad_form(b), b, create_graph=True)
    torch.testing.assert_close(first, 2 * gamma.solve(b).detach(), rtol=1e-7, atol=1e-9)


def test_parameters_that_outgrow_the_embedding_are_refused():
    kernel = Matern(1.5, 2.0).requires_grad_(False)
    gamma = CirculantCovariance(kernel, sd.Grid((12, 12)))
    kernel.lengthscale = 10.0
    with pytest.raises(EmbeddingError, match="Build the covariance anew"):
        gamma.sample()


def test_refuses():
    with pytest.raises(ValueError, match="torus"):
        CirculantCovariance(Matern(), sd.Grid(8, periodic=True))
    with pytest.raises(ValueError, match="on_negative"):
        CirculantCovariance(Matern(), sd.Grid(8), on_negative="ignore")
    with pytest.raises(EmbeddingError):
        CirculantCovariance(Gaussian(7.0), sd.Grid((16, 16)), max_growth=1.5)


def test_smooth_long_field_of_many_sites():
    """Variance and lag-one covariance of a 256 x 256 field, from 8 draws: within the spread that Γ itself
    implies.
    """
    kernel = Matern(1.5, 6.0).requires_grad_(False)
    gamma = CirculantCovariance(kernel, sd.Grid((256, 256)))
    x = gamma.double().sample((8,), generator=torch.Generator().manual_seed(1))
    rho = float(kernel.at_lags(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    h = torch.stack(
        torch.meshgrid(torch.arange(-80, 81.0), torch.arange(-80, 81.0), indexing="ij"), -1
    ).double()
    # Var(mean of x²) = 2 Σ_h ρ(h)²/n, to the order of the boundary
    spread = (2 * kernel.at_lags(h).square().sum().item() / x.numel()) ** 0.5
    assert abs(x.square().mean().item() - 1) < 5 * spread
    assert abs((x[:, 1:] * x[:, :-1]).mean().item() - rho) < 5 * spread
