"""The kernels against mpmath, gpytorch, quadrature and finite differences."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import gpytorch
import numpy as np
import pytest
import scipy.integrate
import torch

from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, Product, Sum, at_lags

ORACLES = json.loads((Path(__file__).parents[1] / "oracles" / "kernels.json").read_text())
FAMILIES = {
    "matern0.5": Matern(0.5),
    "matern1.5": Matern(1.5),
    "matern2.5": Matern(2.5),
    "gaussian": Gaussian(),
    "matern1.5*gaussian": Matern(1.5) * Gaussian(),
    "matern0.5*matern2.5": Exponential() * Matern(2.5),
}
F64 = torch.float64


@pytest.mark.parametrize("row", ORACLES, ids=lambda r: r["kernel"])
def test_correlation_and_spectral_density_against_mpmath(row):
    kernel = FAMILIES[row["kernel"]]
    for r, value in row["correlation"].items():
        h = torch.tensor([[float(r), 0.0]], dtype=F64)
        assert kernel.at_lags(h).item() == pytest.approx(float(value), rel=1e-14)
    for key, value in row["spectral_density"].items():
        d, w = key.split(",")
        omega = torch.zeros(1, int(d), dtype=F64)
        omega[0, -1] = float(w)
        # the products' tolerance is that of the trapezoidal rule
        rel = 1e-13 if "*" not in row["kernel"] else 1e-11
        assert kernel.spectral_density(omega).item() == pytest.approx(float(value), rel=rel)


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5, None])
@pytest.mark.parametrize("scale", [1.3, (0.7, 2.0)])
def test_agrees_with_gpytorch(nu, scale):
    x = torch.rand(7, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    axes = None if isinstance(scale, float) else 2
    base = (
        gpytorch.kernels.RBFKernel(ard_num_dims=axes)
        if nu is None
        else gpytorch.kernels.MaternKernel(nu, ard_num_dims=axes)
    )
    theirs = gpytorch.kernels.ScaleKernel(base).double()
    theirs.outputscale = torch.tensor(1.7, dtype=F64)
    base.lengthscale = torch.tensor(scale, dtype=F64).reshape(1, -1)
    ours = Gaussian(scale, 1.7) if nu is None else Matern(nu, scale, 1.7)
    torch.testing.assert_close(ours(x).to_dense(), theirs(x).to_dense(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours(x, diag=True), theirs(x, diag=True))
    torch.testing.assert_close(
        ours(x[:3], x[3:]).to_dense(), theirs(x[:3], x[3:]).to_dense(), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(at_lags(theirs, x), ours.at_lags(x), rtol=1e-12, atol=1e-12)


def test_in_a_gpytorch_model():
    """Sum, product and nugget in somebody else's exact Gaussian process, in both data types."""

    class Model(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood):
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = Matern(1.5, 0.5) * Gaussian(2.0) + Nugget(0.1)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    for dtype in (torch.float32, torch.float64):
        x = torch.linspace(0, 1, 12, dtype=dtype)[:, None]
        y = torch.sin(6 * x[:, 0])
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Model(x, y, likelihood).to(dtype)
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        (-mll(model(x), y)).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.covar_module.parameters())
        model.eval()
        posterior = model(x + 0.01)
        noise = 0.1 + likelihood.noise.item()
        k = Matern(1.5, 0.5) * Gaussian(2.0)
        cross = k((x + 0.01).double(), x.double()).to_dense().detach()
        gram = k(x.double()).to_dense().detach() + noise * torch.eye(12, dtype=F64)
        expected = cross @ torch.linalg.solve(gram, y.double())
        torch.testing.assert_close(posterior.mean.detach().double(), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "kernel",
    [
        Matern(0.5, 1.7, 2.0),
        Matern(1.5, 0.6),
        Gaussian(1.2, 0.5),
        Matern(2.5) * Exponential(2.0),
        Matern(1.5, 2.0) + Gaussian(1.0),
    ],
)
def test_spectral_density_is_the_fourier_transform(kernel):
    """One dimension, by scipy's oscillatory quadrature of the kernel itself."""
    for w in (0.2, 1.0, 3.0):
        value, _ = scipy.integrate.quad(
            lambda r: kernel.at_lags(torch.tensor([[r]], dtype=F64)).item(),
            0,
            np.inf,
            weight="cos",
            wvar=w,
            epsabs=1e-11,
        )
        assert kernel.spectral_density(torch.tensor([[w]], dtype=F64)).item() == pytest.approx(
            2 * value, rel=1e-7
        )


def test_spectral_density_integrates_to_the_variance():
    kernel = (Matern(2.5, (0.8, 1.5), 1.4) * Gaussian((1.0, 2.0)) + Gaussian(1.3, 0.6)).requires_grad_(False)
    w = torch.linspace(-40, 40, 801, dtype=F64)
    density = kernel.spectral_density(torch.stack(torch.meshgrid(w, w, indexing="ij"), -1))
    total = density.sum().item() * (w[1] - w[0]).item() ** 2 / (2 * np.pi) ** 2
    assert total == pytest.approx(2.0, rel=1e-6)


def test_anisotropic_spectral_density_is_a_rescaling():
    omega = torch.randn(5, 2, dtype=F64)
    ell = torch.tensor([0.5, 3.0], dtype=F64)
    stretched = Matern(1.5, (0.5, 3.0)).spectral_density(omega)
    torch.testing.assert_close(stretched, ell.prod() * Matern(1.5).spectral_density(omega * ell))
    product = Matern(1.5, (0.5, 3.0)) * Gaussian((1.0, 2.0))
    flipped = Matern(1.5, (3.0, 0.5)) * Gaussian((2.0, 1.0))
    torch.testing.assert_close(product.spectral_density(omega), flipped.spectral_density(omega.flip(-1)))
    torch.testing.assert_close(
        (Gaussian((1.0, 2.0)) * Gaussian((2.0, 1.0))).spectral_density(omega),
        Gaussian((2 / 5**0.5, 2 / 5**0.5)).spectral_density(omega),
    )


def test_nugget_is_kept_apart():
    kernel = (Matern(1.5, 2.0, 1.5) + Nugget(0.3)) * Nugget(2.0) + Gaussian(1.0, 0.5) * (
        Matern() + Nugget(0.2)
    )
    assert kernel.nugget.item() == pytest.approx(1.5 * 2.0 + 0.3 * 2.0 + 0.5 * 0.2)
    assert kernel.variance.item() == pytest.approx(3.6 + 0.5 * 1.2)
    omega = torch.randn(4, 2, dtype=F64)
    expected = (Gaussian(1.0, 0.5) * Matern()).spectral_density(omega)
    torch.testing.assert_close(kernel.spectral_density(omega), expected)
    assert (Nugget(0.3).spectral_density(omega) == 0).all()
    x = torch.tensor([[0.0], [1.0], [1.0]], dtype=F64)
    expected = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.3, 0.3], [0.0, 0.3, 0.3]], dtype=F64)
    torch.testing.assert_close(Nugget(0.3)(x).to_dense(), expected)


def test_effective_range():
    for kernel in (Matern(0.5, 2.0), Matern(1.5, 2.0), Matern(2.5, (1.0, 4.0)), Gaussian(3.0)):
        ranges = kernel.effective_range
        assert ranges.shape == kernel.lengthscale.shape
        h = torch.zeros(1, 2, dtype=F64)
        h[0, 0] = ranges.reshape(-1)[0]
        assert (kernel.at_lags(h) / kernel.variance).item() == pytest.approx(0.05, rel=1e-9)
    assert Exponential(1.0).effective_range.item() == pytest.approx(np.log(20))


@pytest.mark.parametrize(
    "kernel",
    [
        Matern(0.5, (0.7, 1.3), 2.0),
        Matern(1.5, 0.9),
        Matern(2.5, 1.1),
        Gaussian(1.5),
        Matern(1.5) * Gaussian(2.0) + Nugget(0.2),
    ],
)
def test_twice_differentiable_in_parameters(kernel):
    """At every pair of points, coinciding ones included."""
    kernel = copy.deepcopy(kernel)
    parameters = list(kernel.parameters())
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.5, 0.2], [2.0, -1.0]], dtype=F64)

    def values(*raw):
        return torch.func.functional_call(kernel, dict(zip(names, raw, strict=True)), (x,)).to_dense()

    names = [name for name, _ in kernel.named_parameters()]
    raw = [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(values, raw)
    assert torch.autograd.gradgradcheck(values, raw)
    omega = torch.randn(3, 2, dtype=F64)
    density = kernel.spectral_density(omega).sum()
    for gradient in torch.autograd.grad(density, parameters, allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


def test_spectral_density_gradient():
    kernel = Matern(1.5, (0.8, 1.4), 2.0) * Exponential(1.3)
    omega = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    kernel.spectral_density(omega).sum().backward()
    for parameter in kernel.parameters():
        for i in range(parameter.numel()):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.reshape(-1)[i] += step
                    values.append(kernel.spectral_density(omega).sum().item())
                    parameter.reshape(-1)[i] -= step
            numeric = (values[0] - values[1]) / 2e-5
            assert parameter.grad.reshape(-1)[i].item() == pytest.approx(numeric, rel=1e-7)


def test_parameters():
    kernel = Matern(2.5, (2.0, 3.0), 0.5)
    assert kernel.nu == 2.5
    torch.testing.assert_close(kernel.lengthscale, torch.tensor([[2.0, 3.0]], dtype=F64), rtol=1e-15, atol=0)
    assert kernel.variance.item() == 0.5
    kernel.lengthscale = 25.3
    kernel.variance = 0.3
    torch.testing.assert_close(kernel.lengthscale, torch.full((1, 2), 25.3, dtype=F64), rtol=1e-15, atol=0)
    assert kernel.variance.item() == pytest.approx(0.3, rel=1e-15)
    assert {n for n, _ in kernel.named_parameters()} == {"raw_lengthscale", "raw_variance"}
    other = Matern(2.5, (1.0, 1.0))
    other.load_state_dict(kernel.state_dict())
    torch.testing.assert_close(other.lengthscale, kernel.lengthscale)
    assert repr(Exponential(2.0)) == "Exponential(lengthscale=2, variance=1)"
    assert repr(kernel + Nugget(0.1)).endswith("+ Nugget(variance=0.1)")
    assert kernel.at_lags(torch.ones(2, 2)).dtype == torch.float32
    assert kernel.dtype == F64


def test_algebra_is_flat_and_ours():
    total = Matern() + Nugget() + Gaussian() * Exponential() * gpytorch.kernels.RBFKernel()
    assert type(total) is Sum
    assert len(total.kernels) == 3
    assert type(total.kernels[2]) is Product
    assert len(total.kernels[2].kernels) == 3
    assert total.is_stationary
    assert not (Matern() + gpytorch.kernels.LinearKernel()).is_stationary
    with pytest.raises(TypeError, match="RBFKernel"):
        total.spectral_density(torch.zeros(1, 1))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), (1.0, -2.0), ()])
def test_refuses_parameters(bad):
    for family in (Matern, Exponential, Gaussian):
        with pytest.raises(ValueError, match=f"{family.__name__}: lengthscale must be positive"):
            family(lengthscale=bad)
    if not isinstance(bad, tuple):
        with pytest.raises(ValueError, match="variance must be positive"):
            Matern(variance=bad)
        with pytest.raises(ValueError, match="variance must be positive"):
            Nugget(bad)


def test_refuses():
    with pytest.raises(ValueError, match="nu must be at most 100, got 200"):
        Matern(nu=200)
    with pytest.raises(ValueError, match="2 length scales"):
        Matern(1.5, (1.0, 2.0)).spectral_density(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at most two"):
        (Matern() * Exponential() * Matern(2.5)).spectral_density(torch.zeros(1, 1, dtype=F64))
