"""Functions of the pencil of Γ and C by Lanczos, against dense linear algebra."""

import pytest
import torch

import spatialdiff as sd
from spatialdiff.denoisers import krylov
from spatialdiff.denoisers.krylov import KrylovBasis, model_spectrum
from spatialdiff.kernels import Exponential, Matern

GRID = sd.Grid((10, 7))


def pair():
    gamma = sd.CirculantCovariance(Matern(nu=0.5, lengthscale=2.0), GRID).double().requires_grad_(False)
    data = sd.CirculantCovariance(Exponential(lengthscale=4.0, variance=1.5), GRID)
    return gamma, data.double().requires_grad_(False)


def dense_function(gamma, data, f):
    """``f(C Γ⁻¹)`` by the generalised eigenproblem."""
    root = torch.linalg.cholesky(gamma.to_dense())
    inner = torch.linalg.solve_triangular(root, data.to_dense(), upper=False)
    inner = torch.linalg.solve_triangular(root, inner.mT, upper=False)
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    left = root @ vectors
    return left @ (f(values)[:, None] * torch.linalg.inv(left))


@pytest.mark.parametrize("level", [1e-3, 1.0, 1e4])
def test_functions_and_their_adjoints_equal_dense_ones(level):
    gamma, data = pair()
    basis = KrylovBasis(gamma, data)
    x = torch.randn(3, 2, *GRID.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x.requires_grad_(True)
    for f in (lambda r: r / (r + level), lambda r: (1.0 / (1.0 + r / level)).sqrt()):
        matrix = dense_function(gamma, data, f)
        expected = (x.detach().flatten(2) @ matrix.T).reshape(x.shape)
        found = basis.multiply(x, f(basis.nodes))
        assert float((found.detach() - expected).norm() / x.detach().norm()) < 1e-5
        again = basis.synthesize(f(basis.nodes) * basis.analyze(x.detach()))
        assert float((again - expected).norm() / x.detach().norm()) < 1e-5
        probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (slope,) = torch.autograd.grad((found * probe).sum(), x)
        adjoint = (probe.flatten(2) @ matrix).reshape(x.shape)
        assert float((slope - adjoint).norm() / adjoint.norm()) < 1e-4


def test_the_gaussian_model_by_lanczos_equals_the_dense_one(monkeypatch):
    gamma, data = pair()
    law = sd.VP(gamma)
    u = law.start(2, 1, generator=torch.Generator().manual_seed(2))
    dense = sd.oracles.GaussianDenoiser(law, data, mean=0.3)
    expected = [dense(u, t) for t in (0.9, 0.5, 0.1)]
    monkeypatch.setattr(krylov, "DENSE_LIMIT", 0)
    fast = sd.oracles.GaussianDenoiser(law, data, mean=0.3)
    assert isinstance(fast.gaussian.spectra()[0], KrylovBasis)
    for t, value in zip((0.9, 0.5, 0.1), expected, strict=True):
        assert float((fast(u, t) - value).norm() / value.norm()) < 1e-5


@pytest.mark.parametrize("solver", ["gaussian", "gaussian_sde"])
def test_exact_steps_by_lanczos_equal_dense_ones(monkeypatch, solver):
    gamma, data = pair()
    law = sd.VP(gamma)

    def fields():
        oracle = sd.oracles.GaussianDenoiser(law, data)
        generator = torch.Generator().manual_seed(3)
        return sd.sample(oracle, 2, steps=2, solver=solver, generator=generator)

    expected = fields()
    monkeypatch.setattr(krylov, "DENSE_LIMIT", 0)
    found = fields()
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_large_grids_without_a_common_basis_can_be_preconditioned():
    grid = sd.Grid((66, 64))
    gamma = sd.CirculantCovariance(Exponential(lengthscale=3.0), grid).double().requires_grad_(False)
    data = sd.CirculantCovariance(Exponential(lengthscale=5.0, variance=2.0), grid)
    data = data.double().requires_grad_(False)
    law = sd.VP(gamma)
    basis, _, _ = model_spectrum(gamma, data)
    assert isinstance(basis, KrylovBasis)
    with pytest.raises(ValueError, match="share no fast basis"):
        _ = basis.weights

    class Silent(torch.nn.Module):
        def forward(self, u, t):
            return torch.zeros_like(u)

    denoiser = sd.Denoiser(Silent(), law, preconditioning="wiener", data=data)
    u = law.start(1, 1, generator=torch.Generator().manual_seed(4))
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, variance = law.alpha(t), law.variance(t)
    # the posterior mean solves (α² C + σ² Γ) z = y, m = α C z
    found = denoiser(u, t)
    z = torch.zeros_like(u)
    r, p = u.clone(), u.clone()
    for _ in range(400):
        q = alpha**2 * data.matmul(p) + variance * gamma.matmul(p)
        step = (r * r).sum() / (p * q).sum()
        z, before, r = z + step * p, r, r - step * q
        p = r + (r * r).sum() / (before * before).sum() * p
        if float(r.norm()) < 1e-12 * float(u.norm()):
            break
    expected = alpha * data.matmul(z)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def scattered(method):
    places = 10.0 * torch.rand(60, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    if method == "vecchia":
        domain = sd.Points(places)
        kernels = (Matern(nu=1.5, lengthscale=2.0), Exponential(lengthscale=4.0, variance=1.5))
    else:
        domain = sd.Mesh.delaunay(places)
        kernels = (Matern(nu=1.0, lengthscale=2.0), Matern(nu=1.0, lengthscale=4.0, variance=1.5))
    return [sd.covariance(k, domain, method=method).double().requires_grad_(False) for k in kernels]


@pytest.mark.parametrize("method", ["vecchia", "spde"])
@pytest.mark.parametrize("make", [sd.VP, sd.CLD])
def test_sparse_covariances_have_posterior_means_and_exact_steps(monkeypatch, method, make):
    """Scattered sites and a mesh, K = 1 and 2: `μ + α C (α² C + σ² Γ)⁻¹ (y - α μ)`, and the flow's map."""
    gamma, data = scattered(method)
    law = make(gamma)
    u = law.start(3, 1, generator=torch.Generator().manual_seed(1))
    dense = sd.oracles.GaussianDenoiser(law, data, mean=0.3)
    by_modes = sd.sample(dense, 3, solver="gaussian", steps=2, start=u)
    monkeypatch.setattr(krylov, "DENSE_LIMIT", 0)
    oracle = sd.oracles.GaussianDenoiser(law, data, mean=0.3)
    assert isinstance(oracle.gaussian.spectra()[0], KrylovBasis)
    C, G = data.to_dense(), gamma.to_dense()
    for t in torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64):
        alpha, y = law.alpha(t), law.reduce(u, t).flatten(1)
        solved = torch.linalg.solve(alpha**2 * C + law.variance(t) * G, (y - alpha * 0.3).T)
        expected = 0.3 + (alpha * C @ solved).T
        assert float((oracle(u, t).flatten(1) - expected).norm() / expected.norm()) < 1e-6
    found = sd.sample(oracle, 3, solver="gaussian", steps=2, start=u)
    assert float((found - by_modes).norm() / by_modes.norm()) < 1e-4
