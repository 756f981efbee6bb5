"""The exact posterior means, against dense linear algebra and against sums written out."""

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern

SHAPE = (3, 4)
GENERATOR = torch.Generator().manual_seed(0)


def covariances(kind):
    grid = sd.Grid(SHAPE, periodic=kind == "torus")
    method = "dense" if kind == "dense" else kind
    gamma = sd.covariance(Matern(nu=1.5, lengthscale=1.2, variance=1.3), grid, method=method).double()
    data = sd.covariance(Exponential(lengthscale=1.7, variance=2.0), grid, method=method).double()
    return gamma.requires_grad_(False), data.requires_grad_(False)


def laws(gamma):
    return {
        "VP": sd.VP(gamma),
        "VE": sd.VE(gamma),
        "Rectified": sd.Rectified(gamma),
        "fixed": sd.FixedPoint(0.7).law(sd.BrownianBridge(gamma)),
        "independent": sd.IndependentField(0.6).law(sd.OrnsteinUhlenbeckBridge(gamma)),
    }


@pytest.mark.parametrize("kind", ["torus", "cosine", "dense"])
@pytest.mark.parametrize("law", ["VP", "VE", "Rectified", "fixed", "independent"])
def test_gaussian_is_the_dense_conditional_mean(kind, law):
    gamma, data = covariances(kind)
    law = laws(gamma)[law]
    mean = torch.randn(SHAPE, generator=GENERATOR, dtype=torch.float64)
    oracle = sd.oracles.GaussianDenoiser(law, data, mean=mean)
    u = torch.randn(5, 1, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    c, g = data.to_dense(), gamma.to_dense()
    for i, now in enumerate(t):
        alpha, variance, offset = law.alpha(now), law.variance(now), law.offset(now)
        state = (u[i] - offset - alpha * mean).flatten()
        expected = mean.flatten() + alpha * c @ torch.linalg.solve(alpha**2 * c + variance * g, state)
        assert torch.allclose(oracle(u, t)[i].flatten(), expected, rtol=1e-9, atol=1e-9)


def test_gaussian_at_the_ends():
    gamma, data = covariances("torus")
    u = torch.randn(2, 1, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    process = sd.Rectified(gamma)
    oracle = sd.oracles.GaussianDenoiser(process, data, mean=0.3)
    assert torch.allclose(oracle(u, 1.0), torch.full_like(u, 0.3))  # no signal: the mean
    assert torch.allclose(oracle(u, 0.0), u)  # no noise: the state
    start = sd.oracles.GaussianDenoiser(sd.BrownianBridge(gamma), data, mean=0.3, coupling=sd.FixedPoint(2.0))
    assert torch.allclose(start(torch.full_like(u, 2.0), 0.0), torch.full_like(u, 0.3))


@pytest.mark.parametrize("kind", ["torus", "dense"])
@pytest.mark.parametrize("law", ["VP", "VE", "Rectified", "fixed", "independent"])
def test_empirical_is_the_sum_written_out(kind, law):
    gamma, _ = covariances(kind)
    law = laws(gamma)[law]
    data = torch.randn(7, 2, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    oracle = sd.oracles.EmpiricalDenoiser(law, data, chunk=2)
    u = torch.randn(5, 2, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    t = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
    precision = torch.linalg.inv(gamma.to_dense())
    for b in range(5):
        alpha, variance, offset = float(law.alpha(t[b])), float(law.variance(t[b])), float(law.offset(t[b]))
        distances = []
        for x in data:
            error = (u[b] - offset - alpha * x).flatten(1)
            distances.append(sum(float(e @ precision @ e) for e in error) / variance)
        smallest = min(distances)
        weights = [math.exp(-0.5 * (d - smallest)) for d in distances]
        total = sum(weights)
        expected = sum(w / total * x for w, x in zip(weights, data, strict=True))
        assert torch.allclose(oracle(u, t)[b], expected, rtol=1e-8, atol=1e-8)
        entropy = -sum(w / total * math.log(w / total) for w in weights if w > 0)
        assert math.isclose(float(oracle.entropy(u, t)[b]), entropy, abs_tol=1e-8)


def test_empirical_forgets_and_recalls():
    gamma, _ = covariances("torus")
    process = sd.VP(gamma)
    data = torch.randn(9, 1, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    oracle = sd.oracles.EmpiricalDenoiser(process, data)
    u, _ = process.perturb(data[3:4], 1e-4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(oracle(u, 1e-4), data[3:4])
    assert float(oracle.entropy(u, 1e-4)) < 1e-6
    u, _ = process.perturb(data[3:4], 1.0, generator=torch.Generator().manual_seed(1))
    assert math.log(9) - float(oracle.entropy(u, 1.0)) < 1e-2
    with pytest.raises(ValueError, match="σ_t = 0"):
        oracle(data[:2], 0.0)
    fixed = sd.oracles.EmpiricalDenoiser(sd.BrownianBridge(gamma), data, coupling="fixed")
    at_start = fixed(torch.zeros_like(data[:2]), 0.0)
    assert torch.allclose(at_start, data.mean(0).expand_as(at_start))


def test_scores_follow_from_the_posterior_mean():
    """Against the gradient of the Gaussian log-density of the state."""
    gamma, data = covariances("torus")
    process = sd.VP(gamma)
    oracle = sd.oracles.GaussianDenoiser(process, data, mean=0.4)
    t = torch.tensor(0.37, dtype=torch.float64)
    u = torch.randn(3, 1, *SHAPE, generator=GENERATOR, dtype=torch.float64)
    state = process.alpha(t) ** 2 * data.to_dense() + process.variance(t) * gamma.to_dense()
    score = -torch.linalg.solve(state, (u - process.alpha(t) * 0.4).flatten(1).T).T.reshape(u.shape)
    assert torch.allclose(oracle.score(u, t), score)
    assert torch.allclose(oracle.gamma_score(u, t), gamma.matmul(score))
    assert torch.allclose(oracle.noise(u, t), -process.sigma(t) * gamma.matmul(score))


def test_gradients_reach_the_kernels():
    grid = sd.Grid(SHAPE, periodic=True)
    u = torch.randn(2, 1, *SHAPE, generator=GENERATOR, dtype=torch.float64)

    def value(gamma_scale, data_scale):
        gamma = sd.covariance(Matern(nu=1.5, lengthscale=gamma_scale), grid).double()
        data = sd.covariance(Exponential(lengthscale=data_scale), grid).double()
        oracle = sd.oracles.GaussianDenoiser(sd.VP(gamma), data)
        return oracle(u, 0.4).square().sum(), gamma.kernel, data.kernel

    loss, first, second = value(1.2, 1.7)
    loss.backward()
    h = 1e-5
    for kernel, lower, upper in (
        (first, value(1.2 - h, 1.7)[0], value(1.2 + h, 1.7)[0]),
        (second, value(1.2, 1.7 - h)[0], value(1.2, 1.7 + h)[0]),
    ):
        # d/dℓ = d/draw · draw/dℓ, the constraint being a softplus or an exponential
        raw = kernel.raw_lengthscale
        (slope,) = torch.autograd.grad(kernel.lengthscale.sum(), raw)
        assert float((raw.grad / slope).detach()) == pytest.approx(
            float((upper - lower).detach()) / (2 * h), rel=1e-5
        )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda g, c: sd.oracles.GaussianDenoiser(sd.BrownianBridge(g), c), RuntimeError, "no coupling yet"),
        (lambda g, c: sd.oracles.GaussianDenoiser(g, c), TypeError, "neither a noise process"),
        (
            lambda g, c: sd.oracles.GaussianDenoiser(sd.VP(g), c, coupling="fixed"),
            ValueError,
            "belong to bridges",
        ),
        (
            lambda g, c: sd.oracles.EmpiricalDenoiser(sd.VP(g), torch.zeros(0, 1, *SHAPE)),
            ValueError,
            "data of shape",
        ),
        (
            lambda g, c: sd.oracles.EmpiricalDenoiser(sd.VP(g), torch.zeros(2, 1, 5, 5)),
            ValueError,
            "data of shape",
        ),
        (
            lambda g, c: sd.oracles.EmpiricalDenoiser(sd.VP(g), torch.full((2, 1, *SHAPE), math.nan)),
            ValueError,
            "24 values that are not finite",
        ),
        (
            lambda g, c: sd.oracles.GaussianDenoiser(sd.VP(g), c)(torch.zeros(2, 3, *SHAPE), 0.5),
            ValueError,
            r"needs \(batch, 1, 3, 4\)",
        ),
        (
            lambda g, c: sd.oracles.GaussianDenoiser(sd.VP(g), c)(torch.zeros(2, 1, *SHAPE), torch.zeros(3)),
            ValueError,
            "one time, or one per field",
        ),
    ],
)
def test_bad_input(call, error, message):
    gamma, data = covariances("torus")
    with pytest.raises(error, match=message):
        call(gamma, data)
