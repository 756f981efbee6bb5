"""A network as the posterior mean: predictions convert into one another, preconditionings are exact,
messages are clear.
"""

import copy

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.denoisers import PREDICTIONS, convert
from spatialdiff.kernels import Exponential, Matern

SHAPE = (4, 6)


def fields(*lead, seed=0):
    return torch.randn(*lead, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(kernel, method="torus", channels=None):
    grid = sd.Grid(SHAPE, periodic=method == "torus")
    return sd.covariance(kernel, grid, method=method, channels=channels).double().requires_grad_(False)


GAMMA = Matern(nu=1.5, lengthscale=1.5, variance=1.3)
DATA = Exponential(lengthscale=2.0, variance=2.0)


class Zero(nn.Module):
    """What a U-Net with a zeroed last layer returns before training."""

    def forward(self, u, t, **condition):
        return torch.zeros_like(u)


class Fixed(nn.Module):
    """Returns given fields and keeps what it was called with."""

    def __init__(self, output):
        super().__init__()
        self.output = output
        self.seen = None

    def forward(self, u, t, **condition):
        self.seen = (u, t, condition)
        return self.output


@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
@pytest.mark.parametrize("law", ["VP", "Rectified", "VE", "independent bridge", "fixed bridge"])
def test_predictions_convert_pairwise(source, target, law):
    gamma = covariance(GAMMA)
    law = {
        "VP": sd.VP(gamma),
        "VE": sd.VE(gamma),
        "Rectified": sd.Rectified(gamma),
        "independent bridge": sd.IndependentField(0.7).law(sd.BrownianBridge(gamma)),
        "fixed bridge": sd.FixedPoint(1.5).law(sd.OrnsteinUhlenbeckBridge(gamma)),
    }[law]
    t = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    x, z = fields(3, 1, seed=1), fields(3, 1, seed=2)
    eta = gamma.color(z)
    alpha, sigma = (c[:, None, None, None] for c in (law.alpha(t), law.sigma(t)))
    u = alpha * x + sigma * eta + law.offset(t)
    a, b = (c[:, None, None, None] for c in law.velocity_weights(t))
    known = {"data": x, "noise": eta, "white_noise": z, "velocity": a * x + b * eta, "variable_noise": eta}
    assert torch.allclose(convert(known[source], u, t, law, source=source, target=target), known[target])


@pytest.mark.parametrize(
    ("preconditioning", "prediction"),
    [(p, q) for p in ("none", "edm", "wiener") for q in PREDICTIONS if p == "none" or q != "variable_noise"],
)
@pytest.mark.parametrize("method", ["torus", "dense"])
def test_target_is_what_decodes_to_the_data(preconditioning, prediction, method):
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    network = Fixed(None)
    denoiser = sd.Denoiser(network, sd.VP(gamma), prediction, preconditioning, data=(0.5, data))
    x, eta = fields(3, 1, seed=1), gamma.color(fields(3, 1, seed=2))
    t = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    u = denoiser.law.mean(x, t) + denoiser.law.sigma(t)[:, None, None, None] * eta
    network.output = denoiser.target(x, eta, t)
    assert torch.allclose(denoiser(u, t), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["torus", "cosine", "dense"])
@pytest.mark.parametrize(
    ("make", "coupling"),
    [
        (sd.VP, None),
        (sd.Rectified, None),
        (sd.BrownianBridge, "fixed"),
        (sd.OrnsteinUhlenbeckBridge, "independent"),
    ],
    ids=["VP", "Rectified", "fixed bridge", "independent bridge"],
)
def test_wiener_without_training_is_the_gaussian_posterior_mean(method, make, coupling):
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    mean = fields(seed=4)
    denoiser = sd.Denoiser(
        Zero(), make(gamma), preconditioning="wiener", data=(mean, data), coupling=coupling
    )
    u = fields(4, 1, seed=3)
    c, g = data.to_dense(), gamma.to_dense()
    for time in (0.03, 0.5, 0.97):
        alpha, variance = denoiser.law.alpha(time), denoiser.law.variance(time)
        state = (u - alpha * mean).flatten(1)
        gain = torch.linalg.solve(alpha**2 * c + variance * g, alpha * c).T
        assert torch.allclose(
            denoiser(u, time), (mean.flatten() + state @ gain.T).reshape(u.shape), atol=1e-9
        )


@pytest.mark.parametrize("method", ["torus", "cosine", "dense"])
def test_wiener_without_data_takes_them_to_have_the_covariance_of_the_noise(method):
    gamma = covariance(GAMMA, method)
    denoiser = sd.Denoiser(Zero(), sd.VP(gamma), preconditioning="wiener")
    u = fields(3, 1)
    for time in (0.05, 0.9):  # C = Γ: the posterior mean of N(0, Γ) is the same multiple of u in every mode
        alpha, variance = denoiser.law.alpha(time), denoiser.law.variance(time)
        assert torch.allclose(denoiser(u, time), alpha / (alpha**2 + variance) * u, atol=1e-10)
    white = sd.Denoiser(Zero(), sd.VP(sd.white(gamma.domain).double()), preconditioning="wiener")
    assert torch.allclose(white(u, time), alpha / (alpha**2 + variance) * u, atol=1e-10)


@pytest.mark.parametrize("method", ["torus", "cosine", "dense"])
def test_wiener_shows_and_asks_for_white_fields(method):
    """Exactly: the linear maps that make the network's input (without tint) and target have unit covariance
    under N(μ, C).
    """
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    network = Fixed(torch.zeros(24, 1, *SHAPE, dtype=torch.float64))
    denoiser = sd.Denoiser(network, sd.VP(gamma), preconditioning="wiener", data=data, tint=0.0)
    basis = torch.eye(24, dtype=torch.float64).reshape(24, 1, *SHAPE)
    zero = torch.zeros_like(basis)
    for time in (0.05, 0.4, 0.95):
        t = torch.tensor(time, dtype=torch.float64)
        alpha, variance = denoiser.law.alpha(t), denoiser.law.variance(t)
        c, g = data.to_dense(), gamma.to_dense()
        denoiser.predict(basis, t)
        to_input = network.seen[0].flatten(1).T
        state = alpha**2 * c + variance * g
        assert torch.allclose(to_input @ state @ to_input.T, torch.eye(24, dtype=torch.float64), atol=1e-8)
        of_data = denoiser.target(basis, zero, t).flatten(1).T
        of_noise = denoiser.target(zero, basis, t).flatten(1).T
        target = of_data @ c @ of_data.T + of_noise @ g @ of_noise.T
        assert torch.allclose(target, torch.eye(24, dtype=torch.float64), atol=1e-8)
        # and the target cannot be predicted linearly from the state: all that is linear is in m
        cross = of_data @ c * alpha + of_noise @ g * variance.sqrt()
        assert torch.allclose(cross, torch.zeros_like(cross), atol=1e-8)


@pytest.mark.parametrize("method", ["torus", "cosine"])
@pytest.mark.parametrize("tint", [None, 0.5])
def test_tint_colours_what_the_network_sees(method, tint):
    """At every time the input has the covariance `C^{2 tint}`, scaled to a mean variance of 1; the target
    stays white (above).
    """
    gamma, data = covariance(GAMMA, method), covariance(DATA, method)
    network = Fixed(torch.zeros(24, 1, *SHAPE, dtype=torch.float64))
    denoiser = sd.Denoiser(network, sd.VP(gamma), preconditioning="wiener", data=data, tint=tint)
    basis = torch.eye(24, dtype=torch.float64).reshape(24, 1, *SHAPE)
    values, vectors = torch.linalg.eigh(data.to_dense())
    wanted = (vectors * values ** (2 * (0.25 if tint is None else tint))) @ vectors.T
    wanted = wanted / wanted.diagonal().mean()
    for time in (0.05, 0.95):
        t = torch.tensor(time, dtype=torch.float64)
        denoiser.predict(basis, t)
        to_input = network.seen[0].flatten(1).T
        state = denoiser.law.alpha(t) ** 2 * data.to_dense() + denoiser.law.variance(t) * gamma.to_dense()
        assert torch.allclose(to_input @ state @ to_input.T, wanted, atol=1e-8)


def test_tint_is_refused_where_it_means_nothing():
    gamma, data = covariance(GAMMA, "dense"), covariance(DATA, "dense")
    wiener = {"preconditioning": "wiener", "data": data}
    assert sd.Denoiser(Zero(), sd.VP(gamma), **wiener).scaling.tint == 0.0
    with pytest.raises(ValueError, match="use tint=0"):
        sd.Denoiser(Zero(), sd.VP(gamma), **wiener, tint=0.25)
    with pytest.raises(ValueError, match=r"from 0 .* to 1/2"):
        sd.Denoiser(
            Zero(),
            sd.VP(covariance(GAMMA, "cosine")),
            preconditioning="wiener",
            data=covariance(DATA, "cosine"),
            tint=0.7,
        )
    with pytest.raises(ValueError, match="belongs to preconditioning='wiener'"):
        sd.Denoiser(Zero(), sd.VP(gamma), tint=0.25)


def test_edm_is_karras_for_unit_white_noise():
    """arXiv 2206.00364, table 1, at α = 1: c_skip, c_out, c_in, c_noise."""
    gamma = sd.white(sd.Grid(SHAPE)).double()
    process = sd.VE(gamma, sigma_min=0.01, sigma_max=50.0)
    network = Fixed(fields(1, 1, seed=8))
    deviation = 0.5
    data = sd.WhiteCovariance(sd.Grid(SHAPE), variance=deviation**2).double()
    denoiser = sd.Denoiser(network, process, preconditioning="edm", data=data)
    u, t = fields(1, 1, seed=9), torch.tensor(0.6, dtype=torch.float64)
    sigma = process.sigma(t)
    total = sigma**2 + deviation**2
    expected = deviation**2 / total * u + sigma * deviation / total.sqrt() * network.output
    assert torch.allclose(denoiser(u, t), expected)
    assert torch.allclose(network.seen[0], u / total.sqrt())
    assert torch.allclose(network.seen[1], sigma.log() / 4)


@pytest.mark.parametrize("preconditioning", ["edm", "wiener"])
def test_ends_are_finite(preconditioning):
    """No signal at t=1 of Rectified, no noise at t=0, a point at the start of a bridge."""
    gamma, data = covariance(GAMMA), covariance(DATA)
    u = fields(2, 1, seed=1)
    network = Fixed(fields(2, 1, seed=2))
    denoiser = sd.Denoiser(network, sd.Rectified(gamma), preconditioning=preconditioning, data=data)
    assert torch.isfinite(denoiser(u, 1.0)).all()
    assert torch.allclose(denoiser(u, 0.0), u)
    bridge = sd.Denoiser(
        network, sd.BrownianBridge(gamma), preconditioning=preconditioning, data=data, coupling="fixed"
    )
    at_start = bridge(torch.zeros_like(u), 0.0)
    assert torch.isfinite(at_start).all()
    assert at_start.std() > 0.1  # the residual's scale there is that of the data, not zero


def test_gradients_reach_network_and_kernels():
    grid = sd.Grid(SHAPE, periodic=True)
    gamma = sd.covariance(Matern(nu=1.5, lengthscale=1.5), grid).double()
    data = sd.covariance(Exponential(lengthscale=2.0), grid).double()
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1)).double()

    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, u, t):
            return self.inner(u)

    denoiser = sd.Denoiser(Timeless(), sd.VP(gamma), preconditioning="wiener", data=data)
    loss = sd.Denoising(denoiser)(
        fields(3, 1), white=fields(3, 1, seed=1), t=torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    )
    loss.backward()
    for parameter in (*network.parameters(), *gamma.kernel.parameters(), *data.kernel.parameters()):
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0


def test_dtype_copy_and_state_dict():
    gamma, data = covariance(GAMMA), covariance(DATA)
    network = nn.Conv2d(1, 1, 3, padding=1)

    class Timeless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, u, t):
            assert t.dtype == u.dtype
            return self.inner(u)

    denoiser = sd.Denoiser(
        Timeless(), sd.VP(gamma), preconditioning="wiener", data=(fields(seed=1), data)
    ).float()
    u = fields(2, 1).float()
    assert denoiser(u, 0.3).dtype == torch.float32
    twin = copy.deepcopy(denoiser)
    assert torch.equal(twin(u, 0.3), denoiser(u, 0.3))
    assert twin.law.covariance is twin.process.covariance
    with torch.no_grad():
        network.weight.zero_()
    assert not torch.equal(twin(u, 0.3), denoiser(u, 0.3))
    twin.load_state_dict(denoiser.state_dict())
    assert torch.equal(twin(u, 0.3), denoiser(u, 0.3))
    assert not any(name.startswith(("_law", "gaussian.gamma")) for name in denoiser.state_dict())


def test_channels_are_found_and_checked():
    grid = sd.Grid(SHAPE, periodic=True)
    plain, two = covariance(GAMMA), covariance(GAMMA, channels=2)
    assert sd.Denoiser(Zero(), sd.VP(plain)).channels == 1
    assert sd.Denoiser(Zero(), sd.VP(two)).channels == 2
    assert sd.Denoiser(Zero(), sd.VP(plain), channels=3).channels == 3
    wiener = sd.Denoiser(Zero(), sd.VP(plain), preconditioning="wiener", data=covariance(DATA, channels=2))
    assert wiener.channels == 2
    assert wiener(fields(3, 2), 0.5).shape == (3, 2, *SHAPE)
    mixed = sd.covariance(DATA, grid, channels=torch.tensor([[1.0, 0.6], [0.6, 2.0]])).double()
    correlated = sd.Denoiser(Zero(), sd.VP(plain), preconditioning="wiener", data=mixed)
    u, t = fields(3, 2, seed=3), 0.4
    alpha, variance = correlated.law.alpha(t), correlated.law.variance(t)
    c, g = mixed.to_dense(), torch.block_diag(plain.to_dense(), plain.to_dense())
    expected = (alpha * c @ torch.linalg.solve(alpha**2 * c + variance * g, u.flatten(1).T)).T
    assert torch.allclose(correlated(u, t), expected.reshape(u.shape))
    with pytest.raises(ValueError, match="disagree"):
        sd.Denoiser(Zero(), sd.VP(two), channels=3)


CIRCULANT = {"method": "circulant"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda g, c: sd.Denoiser(Zero(), sd.VP(g), "score"),
            ValueError,
            "data, noise, white_noise, velocity",
        ),
        (lambda g, c: sd.Denoiser(Zero(), sd.VP(g), preconditioning="vp"), ValueError, "none, edm, wiener"),
        (lambda g, c: sd.Denoiser(Zero(), sd.VP(g), data="terrain"), TypeError, "result of sd.fit"),
        (
            lambda g, c: sd.Denoiser(
                Zero(), sd.VP(covariance(Exponential(lengthscale=1.0), "circulant")), "white_noise"
            ),
            ValueError,
            "needs Γ = R Rᵀ with a square R",
        ),
        (
            lambda g, c: sd.Denoiser(Zero(), sd.BrownianBridge(g))(fields(1, 1), 0.5),
            RuntimeError,
            "no coupling yet",
        ),
        (lambda g, c: sd.Denoiser(Zero(), sd.VP(g), coupling="fixed"), ValueError, "belong to bridges"),
        (
            lambda g, c: sd.Denoiser(Zero(), sd.BrownianBridge(g), coupling="fixed").bind("independent"),
            ValueError,
            r"bound to FixedPoint\(0\)",
        ),
        (
            lambda g, c: sd.Denoiser(
                Zero(), sd.BrownianBridge(g), preconditioning="wiener", data=c, coupling="paired"
            ),
            ValueError,
            "condition_on_start=True",
        ),
        (
            lambda g, c: sd.Denoiser(Zero(), sd.BrownianBridge(g), coupling="fixed", condition_on_start=True),
            ValueError,
            "needs pairs",
        ),
        (
            lambda g, c: sd.Denoiser(
                Zero(), sd.BrownianBridge(g), coupling="paired", condition_on_start=True
            )(fields(1, 1), 0.5),
            ValueError,
            "pass start=",
        ),
        (lambda g, c: sd.Denoiser(Zero(), sd.VP(g))(fields(1, 2), 0.5), ValueError, r"\(batch, 1, 4, 6\)"),
        (
            lambda g, c: sd.Denoiser(Fixed(fields(1, 2)), sd.VP(g))(fields(1, 1), 0.5),
            ValueError,
            "the network returned shape",
        ),
        (
            lambda g, c: sd.Denoiser(Zero(), sd.Rectified(g), "noise")(fields(1, 1), 1.0),
            ValueError,
            "does not determine the data at t=1",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(covariance(GAMMA), covariance(DATA))
