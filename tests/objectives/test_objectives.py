"""Objectives: what they draw, what they minimise, what they refuse."""

import math

import pytest
import torch
from torch import nn

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern
from spatialdiff.objectives import TimeDistribution

SHAPE = (4, 6)
GRID = sd.Grid(SHAPE, periodic=True)


def torus(kernel):
    return sd.covariance(kernel, GRID, method="torus").double().requires_grad_(False)


GAMMA = torus(Matern(nu=1.5, lengthscale=1.5))
DATA = torus(Exponential(lengthscale=2.0, variance=2.0))


def fields(*lead, seed=0):
    return torch.randn(*lead, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Fixed(nn.Module):
    """Returns a given field; keeps the keyword arguments."""

    def __init__(self, output=0.0):
        super().__init__()
        self.output = output
        self.seen = None

    def forward(self, u, t, **condition):
        self.seen = condition
        return torch.zeros_like(u) + self.output


LAWS = {
    "VP": sd.VP(GAMMA),
    "VE": sd.VE(GAMMA),
    "Rectified": sd.Rectified(GAMMA),
    "Cosine": sd.Cosine(GAMMA),
    "fixed bridge": sd.FixedPoint(0.0).law(sd.BrownianBridge(GAMMA)),
    "independent bridge": sd.IndependentField(1.0).law(sd.OrnsteinUhlenbeckBridge(GAMMA)),
}


@pytest.mark.parametrize("name", ["uniform", "log_snr", "edm"])
@pytest.mark.parametrize("law", LAWS)
def test_times_lie_inside_and_cover_evenly(name, law):
    law = LAWS[law]
    times = TimeDistribution(name)
    drawn = times.draw(law, 64, generator=torch.Generator().manual_seed(0))
    low, high = sorted((law.start_time, law.end_time))
    assert drawn.dtype == torch.float64
    assert ((drawn > low) & (drawn < high)).all()
    assert (law.alpha(drawn) > 0).all()
    assert (law.sigma(drawn) > 0).all()
    # stratified: one time in each of 64 intervals of equal probability
    edges = times.quantile(law, torch.arange(65, dtype=torch.float64) / 64).sort().values
    counts = torch.histogram(drawn.sort().values, edges).hist
    assert (counts <= 2).all()  # the wrapped draw may share an interval, by rounding at an edge
    assert (counts == 1).sum() >= 62


def test_edm_times_are_normal_in_log_noise_level():
    law = sd.VE(GAMMA, sigma_min=1e-4, sigma_max=1e4)
    times = TimeDistribution("edm", mean=-0.5, std=1.2, sigma_min=1e-4, sigma_max=1e4)
    level = -0.5 * law.log_snr(times.draw(law, 4096, generator=torch.Generator().manual_seed(0)))
    # stratified draws: far closer than 1/√n
    assert abs(float(level.mean()) + 0.5) < 1e-3
    assert abs(float(level.std()) - 1.2) < 1e-2
    loose = TimeDistribution("edm", mean=-0.5, std=1.2, stratified=False)
    level = -0.5 * law.log_snr(loose.draw(law, 4096, generator=torch.Generator().manual_seed(0)))
    assert abs(float(level.mean()) + 0.5) < 5 * 1.2 / math.sqrt(4096)


@pytest.mark.parametrize(
    ("weighting", "norm"), [("network", "coloured"), ("uniform", "coloured"), ("uniform", "whitened")]
)
def test_denoising_is_the_error_written_out(weighting, norm):
    """A network that predicts a constant field: the loss is known without the objective."""
    x, white = fields(3, 1, seed=1), fields(3, 1, seed=2)
    constant = fields(1, 1, seed=3)
    loss = sd.Denoising(sd.Denoiser(Fixed(constant), sd.VP(GAMMA)), weighting=weighting, norm=norm)
    value = loss(x, white=white, t=torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    error = (x - constant).flatten(1)
    written = error.square().mean()
    if norm == "whitened":
        written = (error * torch.linalg.solve(GAMMA.to_dense(), error.T).T).mean()
    assert torch.allclose(value, written)


@pytest.mark.parametrize("prediction", ["noise", "white_noise"])
def test_noise_predictions_regress_the_noise(prediction):
    x, white = fields(3, 1, seed=1), fields(3, 1, seed=2)
    loss = sd.Denoising(sd.Denoiser(Fixed(0.0), sd.VP(GAMMA), prediction))
    target = white if prediction == "white_noise" else GAMMA.color(white)
    assert torch.allclose(loss(x, white=white, t=torch.full((3,), 0.4)), target.square().mean())


def test_the_gaussian_model_is_the_optimum_for_gaussian_data():
    """Under wiener the target has unit variance, and a zero network already is the best affine one."""
    denoiser = sd.Denoiser(Fixed(0.0), sd.VP(GAMMA), preconditioning="wiener", data=DATA)
    n = 2000
    x = DATA.sample((n, 1), generator=torch.Generator().manual_seed(4))
    loss = sd.Denoising(denoiser)(x, generator=torch.Generator().manual_seed(5))
    # the mean of n · 24 squared standard normals has standard error √(2/(24 n))
    assert abs(float(loss) - 1.0) < 5 * math.sqrt(2 / (24 * n))


def test_drift_form_is_the_regression_of_the_drift():
    bridge = sd.OrnsteinUhlenbeckBridge(GAMMA)
    constant = fields(1, 1, seed=3)
    denoiser = sd.Denoiser(Fixed(constant), bridge, coupling=sd.FixedPoint(0.5))
    x1, white = fields(3, 1, seed=1), fields(3, 1, seed=2)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    value = sd.BridgeMixture(denoiser, form="drift")(x1, white=white, t=t)
    state, _ = bridge.perturb(torch.full_like(x1, 0.5), x1, t, white=white)
    predicted = bridge.drift_target(state, constant.expand_as(x1), t)
    assert torch.allclose(value, (predicted - bridge.drift_target(state, x1, t)).square().mean())


@pytest.mark.parametrize("condition_on_start", [False, True])
def test_pairs(condition_on_start):
    bridge = sd.BrownianBridge(GAMMA)
    network = Fixed(0.0)
    objective = sd.BridgeMixture(
        sd.Denoiser(network, bridge), "paired", condition_on_start=condition_on_start
    )
    x1, x0 = fields(3, 1, seed=1), fields(3, 1, seed=2)
    value = objective((x1, x0), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(value, x1.square().mean())
    assert set(network.seen) == ({"start"} if condition_on_start else set())
    same = objective(x1, x0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(value, same)
    with pytest.raises(ValueError, match="needs x0 for every x1"):
        objective(x1)
    with pytest.raises(ValueError, match="pairs must match"):
        objective(x1, x0[:2])


def test_a_seed_gives_the_same_loss_and_another_a_different_one():
    network = nn.Conv2d(1, 1, 3, padding=1).double()

    class Timeless(nn.Module):
        def forward(self, u, t):
            return network(u)

    objective = sd.BridgeMixture(sd.Denoiser(Timeless(), sd.BrownianBridge(GAMMA)), "independent")
    first, again, other = (
        objective(fields(4, 1), generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_any_optimiser_finds_the_posterior_mean():
    """A linear network under LBFGS, on Gaussian data at one time, ends at the Wiener gain."""
    layer = nn.Linear(24, 24, bias=False).double()

    class Linear(nn.Module):
        def forward(self, u, t):
            return layer(u.flatten(1)).reshape(u.shape)

    process, n = sd.VP(GAMMA), 4000
    objective = sd.Denoising(sd.Denoiser(Linear(), process))
    x, white = DATA.sample((n, 1), generator=torch.Generator().manual_seed(0)), fields(n, 1, seed=1)
    t = torch.full((n,), 0.4, dtype=torch.float64)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = objective(x, t=t, white=white)
        loss.backward()
        return loss

    optimiser.step(closure)
    alpha, variance = process.alpha(0.4), process.variance(0.4)
    c = DATA.to_dense()
    state = alpha**2 * c + variance * GAMMA.to_dense()
    gain = alpha * c @ torch.linalg.inv(state)
    error = layer.weight.detach() - gain
    # least squares with 24 regressors: the expected excess is (24/n) tr(posterior covariance)
    expected = 24 / n * torch.trace(c - gain @ (alpha * c))
    assert torch.trace(error @ state @ error.T) < 2 * expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d, b: sd.Denoising(d)(fields(2, 2)), ValueError, "2 channel"),
        (lambda d, b: sd.Denoising(d)(torch.zeros(2, 1, 4, 5)), ValueError, r"needed \(batch, 1, 4, 6\)"),
        (lambda d, b: sd.Denoising(d)(fields(0, 1)), ValueError, "empty batch"),
        (
            lambda d, b: sd.Denoising(d)(fields(2, 1).index_fill(0, torch.tensor([1]), math.nan)),
            ValueError,
            r"24 values that are not finite, in field\(s\) \[1\]",
        ),
        (lambda d, b: sd.Denoising(d, times="late"), ValueError, "edm, log_snr, uniform"),
        (lambda d, b: sd.Denoising(d, weighting="late"), ValueError, "network, uniform, snr"),
        (lambda d, b: sd.Denoising(d, norm="data"), ValueError, "coloured, whitened"),
        (lambda d, b: sd.Denoising(d, conditioning="both"), ValueError, "hybrid, full"),
        (lambda d, b: sd.Denoising(b), TypeError, "sd.BridgeMixture"),
        (lambda d, b: sd.BridgeMixture(d), TypeError, "sd.Denoising"),
        (lambda d, b: sd.BridgeMixture(b), RuntimeError, "no coupling yet"),
        (lambda d, b: sd.BridgeMixture(b, "optimal"), ValueError, "unknown coupling"),
        (lambda d, b: sd.BridgeMixture(b, "fixed", form="score"), ValueError, "endpoint, drift"),
        (
            lambda d, b: sd.BridgeMixture(b, "fixed")(fields(2, 1), fields(2, 1)),
            ValueError,
            "draws x0 itself",
        ),
    ],
)
def test_bad_input(call, error, message):
    denoiser = sd.Denoiser(Fixed(), sd.VP(GAMMA))
    bridge = sd.Denoiser(Fixed(), sd.BrownianBridge(GAMMA))
    with pytest.raises(error, match=message):
        call(denoiser, bridge)
