"""The forms of the bridge-mixture objective: what each estimates, and that all have one optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch import Tensor, nn

import spatialdiff as sd
from spatialdiff.covariance import DenseCovariance, white
from spatialdiff.kernels import Matern
from spatialdiff.objectives import BridgeMixture
from spatialdiff.objectives.times import TimeDistribution
from spatialdiff.processes import (
    CLD,
    BrownianBridge,
    ConstantBeta,
    FixedPoint,
    IndependentField,
    LinearBridge,
    LinearDiffusion,
    OrnsteinUhlenbeckBridge,
)

F64 = torch.float64
GRID = sd.Grid((3, 2))
RHO, CENTRE = 1.7, 0.4
LEVELS = (math.log(0.02), math.log(20.0))


def gamma():
    return DenseCovariance(Matern(nu=1.5, lengthscale=1.7, variance=1.3), GRID).double().requires_grad_(False)


BRIDGES = {
    "brownian": lambda g: BrownianBridge(g, 1.0),
    "ou": lambda g: OrnsteinUhlenbeckBridge(g, 1.5, rate=0.8),
    "cld-data": lambda g: LinearBridge(CLD(g, beta=ConstantBeta(1.5))),
    "cld-state": lambda g: LinearBridge(CLD(g, beta=ConstantBeta(1.5)), "state"),
    "dense-noise": lambda g: LinearBridge(
        LinearDiffusion(g, [[-0.5, 1.0], [-0.3, -1.1]], [[1.0, 0.3], [0.3, 0.5]], initial=[0.7])
    ),
}
COUPLINGS = {"fixed": FixedPoint(0.3), "independent": IndependentField(1.2)}


class Wiener(nn.Module):
    """The posterior mean of data N(CENTRE, RHO Γ) from the statistic, or with another gain."""

    def __init__(self, law, factor: float = 1.0) -> None:
        super().__init__()
        self.law, self.factor = (law,), factor

    def gain(self, t: Tensor) -> Tensor:
        alpha, variance = self.law[0].alpha(t), self.law[0].variance(t)
        return self.factor * RHO * alpha / (RHO * alpha**2 + variance)

    def forward(self, u: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        law = self.law[0]
        centred = law.reduce(u, t) - law.scale(law.alpha(t), torch.full_like(u[:, :1], CENTRE))
        return CENTRE + law.scale(self.gain(t), centred)


def objective(bridge, coupling, form: str, times="log_snr", factor: float = 1.0) -> BridgeMixture:
    network = Wiener(coupling.law(bridge), factor)
    return BridgeMixture(sd.Denoiser(network, bridge), coupling, form=form, times=times)


def span() -> TimeDistribution:
    return TimeDistribution("log_snr", sigma_min=math.exp(LEVELS[0]), sigma_max=math.exp(LEVELS[1]))


def fields(count: int, seed: int = 0) -> Tensor:
    draw = gamma().sample((count, 1), generator=torch.Generator().manual_seed(seed))
    return CENTRE + RHO**0.5 * draw


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("name", BRIDGES)
def test_path_kl_of_the_gaussian_oracle_is_its_integral(name, coupling):
    """½ ∫ κ ρ/(1 + ρI) dt per value, by quadrature over the times between the levels; batch by batch."""
    bridge, start = BRIDGES[name](gamma()), COUPLINGS[coupling]
    law = start.law(bridge)
    first, last = (float(law.time_of_log_snr(-2.0 * level)) for level in reversed(LEVELS))

    def rate(x: float) -> float:
        # in the logit of time, where the integrand is smooth
        t = law.horizon / (1.0 + math.exp(-x))
        information = float(law.alpha(t) ** 2 / law.variance(t))
        return 0.5 * float(bridge.path_rate(t)) * RHO / (1 + RHO * information) * t * (1 - t / law.horizon)

    ends = [math.log(t / (law.horizon - t)) for t in (first, last)]
    exact = quad(rate, *ends, limit=200, epsrel=1e-6)[0]
    estimate = objective(bridge, start, "path_kl", span())
    draws = torch.Generator().manual_seed(1)
    losses = torch.stack([estimate(fields(200, seed), generator=draws) for seed in range(20)])
    error = float(losses.std()) / math.sqrt(len(losses))
    assert error < 0.05 * exact
    assert abs(float(losses.mean()) - exact) < 4.5 * error


@pytest.mark.parametrize("times", ["uniform", "edm"])
def test_path_kl_does_not_depend_on_the_distribution_of_times(times):
    """The same integral from other times of the same interval, in the same metric."""
    bridge, start = BRIDGES["brownian"](white(sd.Grid((200,))).double()), COUPLINGS["independent"]
    law = start.law(bridge)
    if times == "uniform":
        low, high = (float(law.log_snr(t)) for t in (0.05, 0.95))
        given = TimeDistribution("uniform", margin=0.05)
        other = TimeDistribution("log_snr", sigma_min=math.exp(-high / 2), sigma_max=math.exp(-low / 2))
    else:
        given = TimeDistribution("edm", sigma_min=0.05, sigma_max=5.0)
        other = TimeDistribution("log_snr", sigma_min=0.05, sigma_max=5.0)
    means, errors = [], []
    for i, distribution in enumerate((given, other)):
        loss = objective(bridge, start, "path_kl", distribution)
        draws = torch.Generator().manual_seed(i)
        data = CENTRE + RHO**0.5 * torch.randn(400, 1, 200, dtype=F64, generator=draws)
        parts = torch.stack([loss(part, generator=draws) for part in data.split(20)])
        means.append(float(parts.mean()))
        errors.append(float(parts.std()) / math.sqrt(len(parts)))
    assert abs(means[0] - means[1]) < 4.5 * math.hypot(*errors)
    assert max(errors) < 0.05 * means[1]


@pytest.mark.parametrize("name", ["brownian", "cld-data"])
def test_path_kl_bounds_the_relative_entropy_of_a_wrong_model(name):
    """A posterior mean with 0.8 of its gain, in one site: what the form adds over the optimum is the relative
    entropy of the paths, which exceeds that of the states at the last time, from the moment equations.
    """
    bridge, start = BRIDGES[name](white(sd.Grid((1,))).double()), IndependentField(1.2)
    law, k, last, factor = start.law(bridge), bridge.variables, 0.8, 0.8
    oracle = Wiener(law, factor)

    def moments(t: float) -> tuple[np.ndarray, np.ndarray]:
        phi, sigma = (part.detach().numpy() for part in law.marginal(t))
        return phi * CENTRE, RHO * np.outer(phi, phi) + sigma

    def rates(t, y):
        time = torch.tensor(t, dtype=F64)
        gain, alpha, variance = float(oracle.gain(time)), float(law.alpha(time)), float(law.variance(time))
        # D = CENTRE + gain (qᵀu - α CENTRE) in the drift, whose dependence on D is linear
        zero, one = torch.zeros(1, k, 1, dtype=F64), torch.ones(1, 1, 1, dtype=F64)
        units = torch.eye(k, dtype=F64)[..., None]
        free = law.reverse_drift(units, 0.0 * units[:, :1], time).flatten(1).mT
        pull = law.reverse_drift(zero, one, time).flatten()[:, None]
        slope = (free + gain * pull * law.statistic(time)).numpy()
        value = (pull[:, 0] * CENTRE * (1.0 - gain * alpha)).numpy()
        noise = law.noise_root(time).numpy()
        mean, total = y[:k], y[k : k + k * k].reshape(k, k)
        moved = slope @ total
        # E(D - D*)² under the true law: the error is (1 - 1/factor) times the deviation of D
        spread = ((1 - factor) / factor * gain) ** 2 * (RHO * alpha**2 + variance)
        path = 0.5 * float(bridge.path_rate(time)) * spread
        return np.concatenate([slope @ mean + value, (moved + moved.T + noise @ noise.T).ravel(), [path]])

    mean, total = moments(0.0)
    y = solve_ivp(
        rates, (0.0, last * law.horizon), [*mean, *total.ravel(), 0.0], method="RK45", rtol=1e-5, atol=1e-8
    ).y[:, -1]
    m, s, path = y[:k], y[k : k + k * k].reshape(k, k), y[-1]
    mean, total = moments(last * law.horizon)
    solved = np.linalg.solve(s, total)
    gap = m - mean
    entropy = 0.5 * (np.trace(solved) - k - np.linalg.slogdet(solved)[1] + gap @ np.linalg.solve(s, gap))
    assert 1e-4 < entropy < path
    # and the objective sees that excess: both forms on the same draws
    low = 0.5 * float(law.log_snr(last * law.horizon))
    times = TimeDistribution("log_snr", sigma_min=math.exp(-low), sigma_max=300.0)
    draws = torch.Generator().manual_seed(3)
    data = CENTRE + RHO**0.5 * torch.randn(20_000, 1, 1, dtype=F64, generator=draws)
    parts = []
    for i, part in enumerate(data.split(2000)):
        wrong, right = (
            objective(bridge, start, "path_kl", times, gain)(part, generator=torch.Generator().manual_seed(i))
            for gain in (factor, 1.0)
        )
        parts.append(float(wrong - right))
    error = float(np.std(parts)) / math.sqrt(len(parts) - 1)
    assert abs(np.mean(parts) - path) < 5 * error
    assert error < 0.3 * path


@pytest.mark.parametrize("form", ["endpoint", "drift", "path_kl"])
@pytest.mark.parametrize("name", ["ou", "cld-data"])
def test_every_form_has_the_posterior_mean_for_its_optimum(name, form):
    """The gradient in the gain vanishes on average at the posterior mean of Gaussian data, not beside it."""
    bridge, start = BRIDGES[name](gamma()), COUPLINGS["independent"]
    law = start.law(bridge)

    class Scaled(Wiener):
        def __init__(self, value: float) -> None:
            super().__init__(law)
            self.scale = nn.Parameter(torch.tensor(value, dtype=F64))

        def forward(self, u, t, **condition):
            return CENTRE + self.scale * (super().forward(u, t) - CENTRE)

    # the drift form has a finite variance only away from the end
    times = TimeDistribution("log_snr", sigma_min=0.3, sigma_max=20.0)

    def slopes(value: float) -> tuple[float, float]:
        network = Scaled(value)
        loss = BridgeMixture(sd.Denoiser(network, bridge), start, form=form, times=times)
        draws = torch.Generator().manual_seed(5)
        found = []
        for seed in range(12):
            (slope,) = torch.autograd.grad(loss(fields(100, seed), generator=draws), [network.scale])
            found.append(float(slope))
        return float(np.mean(found)), float(np.std(found)) / math.sqrt(len(found) - 1)

    mean, error = slopes(1.0)
    assert abs(mean) < 4.5 * error
    for value in (0.6, 1.4):
        mean, error = slopes(value)
        assert (value - 1.0) * mean > 4.5 * abs(value - 1.0) * error


@pytest.mark.parametrize("pin", ["data", "state"])
def test_drift_form_is_the_regression_of_the_drift(pin):
    """Against the bridge's own drift at the states that the objective draws, variable by variable."""
    bridge, start = LinearBridge(CLD(gamma(), beta=ConstantBeta(1.5)), pin), IndependentField(1.2)
    law, x = start.law(bridge), fields(4)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=F64)
    z = torch.randn(4, 2, 3, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    loss = objective(bridge, start, "drift")
    value = loss(x, t=t, white=z)
    state = law.mean(x, t) + law.mix(law.root(t), law.draw(4, 1, white=z))
    oracle = Wiener(law)
    gap = bridge.drift_target(state, bridge.end_state(x), t) - bridge.drift_target(
        state, bridge.end_state(oracle(state, t)), t
    )
    assert float(value) == pytest.approx(float(gap.square().mean()), rel=1e-10)


def test_pairs_and_starts_in_several_variables():
    """`path_kl` of pairs, with the start shown or not; the auxiliary start is integrated out."""

    class Shown(nn.Module):
        def forward(self, u, t, start=None):
            return 0.5 * u[:, :1] + (0.0 if start is None else 0.5 * start)

    bridge = LinearBridge(CLD(gamma(), beta=ConstantBeta(1.5)))
    x1, x0 = fields(6), fields(6, seed=1)
    generator = torch.Generator().manual_seed(2)
    for shown in (False, True):
        loss = BridgeMixture(
            sd.Denoiser(Shown(), bridge), "paired", form="path_kl", times=span(), condition_on_start=shown
        )
        assert math.isfinite(float(loss(x1, x0, generator=generator)))
    with pytest.raises(ValueError, match="needs x0 for every x1"):
        loss(x1)
    with pytest.raises(ValueError, match="unknown form 'girsanov'; the choices are endpoint, drift, path_kl"):
        BridgeMixture(sd.Denoiser(Shown(), bridge), "fixed", form="girsanov")
