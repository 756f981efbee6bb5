"""Mixtures of pinned linear processes: the law of the state given the data, and where the mixture goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moments import assert_covariance, assert_mean, dense_gamma, generator, normal, torus_gamma
from scipy.integrate import solve_ivp
from torch import Tensor

from spatialdiff.covariance import white
from spatialdiff.domains import Grid
from spatialdiff.processes import (
    ALDA,
    CLD,
    MALDA,
    BrownianBridge,
    BrownianMotion,
    ConstantBeta,
    FixedPoint,
    IndependentField,
    LinearBeta,
    LinearBridge,
    LinearDiffusion,
    Noised,
    Paired,
    time_reversal,
)

F64 = torch.float64
FIELD = torch.linspace(-1.0, 2.0, 6, dtype=F64).reshape(2, 3)
BETA = LinearBeta(1.0, 3.0, horizon=1.2)
PROCESSES = {
    "cld": lambda gamma: CLD(gamma, beta=BETA),
    "alda": lambda gamma: ALDA(gamma, beta=BETA),
    "malda": lambda gamma: MALDA(gamma, variables=3, beta=BETA),
}
ROOT = torch.tensor([[0.9, 0.0], [0.3, 0.6]], dtype=F64)
COUPLINGS = {
    "number": FixedPoint(0.6),
    "field": FixedPoint(FIELD),
    "independent": IndependentField(1.4),
    "mean": IndependentField(0.8, FIELD),
}
CASES = [(name, pin) for name in PROCESSES for pin in ("data", "state")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def make(request):
    name, pin = request.param
    return lambda gamma: LinearBridge(PROCESSES[name](gamma), pin)


@pytest.fixture
def bridge(make):
    return make(dense_gamma())


def inside(law) -> Tensor:
    return torch.tensor([0.02, 0.4, 0.9], dtype=F64) * law.horizon


# -- the law -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUPLINGS)
def test_law_is_the_mixture_over_the_starts(bridge, name):
    """Moments, over all variables and sites, of starts drawn and then pinned to one x_τ."""
    count, k = 3000, bridge.variables
    coupling = COUPLINGS[name]
    law = coupling.law(bridge)
    assert (law.start_time, law.end_time, law.variables) == (0.0, 1.2, k)
    x1 = normal(1, 1, 2, 3, seed=1)
    ends = x1.expand(count, -1, -1, -1)
    u0 = coupling.draw(bridge, ends, generator=generator(2)).detach()
    assert u0.shape == (count, k, 2, 3)
    t = 0.4 * bridge.horizon
    state = bridge.perturb(u0, bridge.end_state(ends), t, generator=generator(3))[0].detach()
    exact = torch.kron(law.marginal(t)[1], bridge.covariance.to_dense()).detach()
    samples = (state - law.mean(x1, t)).reshape(count, 6 * k).detach()
    assert_covariance(samples, exact)
    assert_mean(samples, torch.zeros(6 * k, dtype=F64), exact.diagonal())
    start = law.start(count, 1, generator=generator(4), dtype=F64).detach()
    known = torch.kron(law.marginal(0.0)[1], bridge.covariance.to_dense()).detach()
    assert_covariance((start - law.mean(torch.zeros_like(x1), 0.0)).reshape(count, -1).detach(), known)
    assert_covariance((u0 - law.mean(x1, 0.0)).reshape(count, -1).detach(), known)


@pytest.mark.parametrize("name", COUPLINGS)
def test_bridge_steps_carry_one_marginal_into_the_next(bridge, name):
    law = COUPLINGS[name].law(bridge)
    t, _, s = inside(law)
    a, b, v = law.posterior(t, s)
    (phi, sigma), (wanted_phi, wanted) = law.marginal(t), law.marginal(s)
    torch.testing.assert_close((a @ phi[:, None])[:, 0] + b, wanted_phi, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a @ sigma @ a.mT + v, wanted, rtol=1e-10, atol=1e-12)
    x = normal(1, 1, 2, 3, seed=1)
    moved = law.mix(a, law.mean(x, t)) + law.mix(b[:, None], x)
    torch.testing.assert_close(moved, law.mean(x, s), rtol=1e-10, atol=1e-12)
    phi, sigma = law.marginal(law.horizon)
    assert phi[0] == 1.0
    assert not bool(sigma[0].any() or sigma[:, 0].any())


@pytest.mark.parametrize("name", COUPLINGS)
def test_statistic_is_sufficient_and_scaled(bridge, name):
    law = COUPLINGS[name].law(bridge)
    k, t = bridge.variables, inside(law)
    phi, sigma = law.marginal(t)
    exact = (phi[:, None] @ torch.linalg.solve(sigma, phi[..., None]))[:, 0, 0]
    torch.testing.assert_close(law.information(t), exact, rtol=1e-6, atol=0)
    alpha, deviation = law.alpha(t), law.sigma(t)
    torch.testing.assert_close(alpha**2 + deviation**2, torch.ones(3, dtype=F64), rtol=1e-13, atol=0)
    x, noise = normal(3, 1, 2, 3, seed=1), normal(3, k, 2, 3, seed=2)
    for times in (t, torch.zeros(3, dtype=F64), torch.full((3,), law.horizon, dtype=F64)):
        u = law.mean(x, times) + law.mix(law.root(times), noise)
        single = law.reduce_noise(noise, times)
        wanted = law.scale(law.alpha(times), x) + law.scale(law.sigma(times), single)
        if name in ("independent", "mean") or bool(times.any()):
            torch.testing.assert_close(law.reduce(u, times), wanted, rtol=1e-9, atol=1e-9)
        weights = law.noise_weights(times)
        torch.testing.assert_close(weights.square().sum(-1), torch.ones(3, dtype=F64), rtol=1e-10, atol=0)
    assert law.alpha(0.0) == 0.0
    assert (float(law.alpha(law.horizon)), float(law.sigma(law.horizon))) == (1.0, 0.0)


@pytest.mark.parametrize("name", COUPLINGS)
def test_rates_are_derivatives(bridge, name):
    law = COUPLINGS[name].law(bridge)
    t = inside(law).requires_grad_()
    (exact,) = torch.autograd.grad(law.information(t).log().sum(), t)
    found = law.information_rate(t.detach()) / law.information(t.detach())
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-9)
    t, step = t.detach(), 1e-5
    numeric = (law.offset(t + step) - law.offset(t - step)) / (2 * step)
    torch.testing.assert_close(law.offset_rate(t), numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*COUPLINGS, "paired"])
def test_log_snr_and_its_inverse(bridge, name):
    law = (COUPLINGS[name] if name in COUPLINGS else Paired()).law(bridge)
    t = torch.tensor([1e-6, 1e-3, 0.2, 0.7, 0.99, 1.0 - 1e-6], dtype=F64) * law.horizon
    level = law.log_snr(t)
    assert bool((level.diff() > 0).all())
    torch.testing.assert_close(law.time_of_log_snr(level), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(law.log_snr(law.time_of_log_snr(level)), level, rtol=1e-8, atol=1e-8)
    assert law.log_snr(law.horizon) == torch.inf
    assert law.time_of_log_snr(torch.inf) == law.horizon
    assert law.time_of_log_snr(-torch.inf) == law.time_of_log_snr(-1e3).clamp(max=0.0) == 0.0
    assert law.log_snr(0.0) == -torch.inf


# -- the mixture -------------------------------------------------------------------------------------------


def affine(law, field, power: float, centre: float, t: Tensor) -> tuple[Tensor, Tensor]:
    """Slope ``(K, K)`` and value at 0 ``(K,)`` of u ↦ field(u, D(u, t)) for data N(centre, power Γ).

    D is written out from φ and Σ: ``μ + ρφᵀ(ρφφᵀ + Σ)⁻¹(u - o - φμ)``.
    """
    k = law.variables
    phi, sigma = (part.detach() for part in law.marginal(t))
    total = power * phi[:, None] * phi + sigma
    gain = power * torch.linalg.solve(total, phi)
    offset = law.offset(t).expand(1, k, 1)[0, :, 0]

    def value(u: Tensor) -> Tensor:
        data = centre + gain @ (u - offset - phi * centre)
        return field(u.reshape(1, k, 1), data.reshape(1, 1, 1), t).detach().flatten()

    zero = value(torch.zeros(k, dtype=F64))
    return torch.stack([value(unit) - zero for unit in torch.eye(k, dtype=F64)], dim=1), zero


@pytest.mark.parametrize("power", [0.3, 4.0])
@pytest.mark.parametrize(
    "coupling", [FixedPoint(0.6), IndependentField(1.4, 0.5)], ids=["fixed", "independent"]
)
def test_mixture_and_flow_keep_the_marginals_of_gaussian_data(make, coupling, power):
    """Ṗ = L P + P Lᵀ + Q and ṁ = L m + l for the SDE, without Q for the flow; rates by autograd in t."""
    bridge, centre = make(white(Grid((1,))).double()), 0.7
    law = coupling.law(bridge)

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        phi, sigma = law.marginal(t)
        offset = law.offset(t).expand(1, law.variables, 1)[0, :, 0]
        return phi * centre + offset, power * phi[:, None] * phi + sigma

    for time in inside(law):
        (mean, total), (mean_rate, rate) = torch.autograd.functional.jvp(moments, time, torch.ones_like(time))
        noise = bridge.diffusion_matrix(time).detach()
        fields = [(law.reverse_drift, noise)]
        if law.deterministic_flow:
            fields.append((law.velocity, torch.zeros_like(noise)))
        for field, extra in fields:
            slope, value = affine(law, field, power, centre, time)
            size = 1.0 + float((slope.abs() @ total.abs()).max())
            assert float((slope @ total + total @ slope.mT + extra - rate).abs().max()) < 1e-8 * size
            size = 1.0 + float((slope.abs() @ mean.abs()).max())
            assert float((slope @ mean + value - mean_rate).abs().max()) < 1e-8 * size


@pytest.mark.parametrize("pin", ["data", "state"])
@pytest.mark.parametrize(
    "coupling", [FixedPoint(0.6), IndependentField(1.4, 0.5)], ids=["fixed", "independent"]
)
def test_mixture_transports_the_start_to_gaussian_data(coupling, pin):
    """Moment equations of the mixture's SDE from Π_0: they end at N(μ, C) in the data variable."""
    bridge = LinearBridge(CLD(white(Grid((1,))).double(), beta=ConstantBeta(1.5)), pin)
    law, centre, power, last = coupling.law(bridge), -0.8, 2.5, 0.99
    start = 1e-6  # a fixed start has no Gaussian posterior mean at 0

    def rates(t, y):
        time = torch.tensor(t, dtype=F64)
        phi, sigma = law.marginal(time)
        gain = power * torch.linalg.solve(power * phi[:, None] * phi + sigma, phi)
        data = centre - gain @ (law.offset(time).flatten() + phi * centre)
        slope, pull = bridge.drift_matrices(time)
        # D = data + gainᵀu
        slope, value = (slope + pull[:, :1] * gain).numpy(), (pull[:, 0] * data).numpy()
        mean, total = y[:2], y[2:].reshape(2, 2)
        moved = slope @ total
        noise = bridge.diffusion_matrix(time).numpy()
        return np.concatenate([slope @ mean + value, (moved + moved.T + noise).ravel()])

    mean = law.offset(0.0).flatten().numpy()
    initial = np.concatenate([mean, law.marginal(0.0)[1].detach().numpy().ravel()])
    y = solve_ivp(rates, (start, last), initial, method="LSODA", rtol=1e-7, atol=1e-9).y[:, -1]
    phi, sigma = law.marginal(last)
    # all of the moments are those of the law of the bridges …
    offset = law.offset(last).flatten()
    np.testing.assert_allclose(y[:2], (phi * centre + offset).numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        y[2:].reshape(2, 2), (power * phi[:, None] * phi + sigma).numpy(), rtol=2e-3, atol=1e-4
    )
    # … and the data variable has arrived, within what is left of the way
    assert abs(y[0] - centre) < 0.02
    assert abs(y[2] - power) < 0.05 * power


def test_one_variable_is_the_scalar_law():
    """Fields of the K = 1 law against `BridgeLaw`; α and σ differ by a common factor."""
    gamma = dense_gamma()
    new, old = LinearBridge(BrownianMotion(gamma, horizon=1.5)), BrownianBridge(gamma, 1.5)
    u, x = normal(3, 1, 2, 3, seed=1), normal(3, 1, 2, 3, seed=2)
    for coupling in (*COUPLINGS.values(), Noised(0.5, 0.9)):
        ours, theirs = coupling.law(new), coupling.law(old)
        t = inside(ours)
        assert ours.deterministic_flow == theirs.deterministic_flow
        calls = [
            lambda law, t=t: law.mean(x, t),
            lambda law, t=t: law.reverse_drift(u, x, t),
            lambda law, t=t: law.gamma_score(u, t, x),
            lambda law, t=t: law.noise(u, t, x),
            lambda law, t=t: law.log_snr(t),
            lambda law, t=t: law.information_rate(t),
            lambda law, t=t: law.posterior(t[:1], t[2:])[0],
        ]
        if ours.deterministic_flow:
            calls.append(lambda law, t=t: law.velocity(u, x, t))
        for call in calls:
            torch.testing.assert_close(call(ours), call(theirs), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "process", [CLD, ALDA, lambda gamma: MALDA(gamma, variables=4)], ids=["cld", "alda", "malda"]
)
def test_time_reversal_is_a_bridge_mixture_in_several_variables(process):
    """The stationary process reversed and pinned in its data variable, from the noised data: the same law,
    drift, flow, steps and information as the noise process at T - t.
    """
    forward = process(torus_gamma())
    bridge, coupling = time_reversal(forward)
    law = coupling.law(bridge)
    k = forward.variables
    u, x = normal(2, k, 6, 4, seed=1), normal(2, 1, 6, 4, seed=2)
    for fraction in (0.05, 0.3, 0.9):
        t = torch.tensor(fraction * forward.horizon, dtype=F64)
        s = forward.horizon - t
        for ours, theirs in zip(law.marginal(s), forward.marginal(t), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(law.information(s), forward.information(t), rtol=1e-8, atol=0)
        torch.testing.assert_close(law.information_rate(s), -forward.information_rate(t), rtol=1e-7, atol=0)
        drift = forward.reverse_drift(u, x, t)
        scale = float(drift.detach().abs().max())
        torch.testing.assert_close(law.reverse_drift(u, x, s), drift, rtol=1e-8, atol=1e-9 * scale)
        flow = forward.velocity(u, x, t)
        torch.testing.assert_close(law.velocity(u, x, s), -flow, rtol=1e-8, atol=1e-9 * scale)
        steps = law.posterior(s, s + 0.5 * t), forward.posterior(t, 0.5 * t)
        for ours, theirs in zip(*steps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(law.reduce(u, s), forward.reduce(u, t), rtol=1e-7, atol=1e-8)


def test_time_reversal_needs_a_stationary_start():
    gamma = torus_gamma()
    with pytest.raises(ValueError, match="a stationary law from which the auxiliary variables start"):
        time_reversal(CLD(gamma, initial=[0.01]))
    with pytest.raises(ValueError, match="a stationary law from which"):
        time_reversal(LinearDiffusion(gamma, [[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]))
    tied = LinearDiffusion.from_stationary(
        gamma, [[0.0, -1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[1.0, 0.3], [0.3, 1.0]]
    )
    with pytest.raises(ValueError, match="couples the data variable"):
        time_reversal(tied)


# -- modes, channels, pairs --------------------------------------------------------------------------------


def test_each_mode_is_pinned_by_its_own_matrices():
    """A process whose A and G differ from mode to mode: fields of the law, mode by mode, are those of the
    law with that mode's matrices.
    """
    gamma = torus_gamma()
    basis = gamma.basis
    scale = (0.5 + 3.0 * basis.wavenumbers)[..., None, None]
    drift = torch.tensor([[0.0, 1.0], [-1.0, -2.0]], dtype=F64) * scale
    noise = torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=F64) * scale
    coupling = IndependentField(1.2, torch.full((6, 4), 0.5, dtype=F64))
    u, x = normal(3, 2, 6, 4, seed=1), normal(3, 1, 6, 4, seed=2)
    for pin in ("data", "state"):
        law = coupling.law(LinearBridge(LinearDiffusion(gamma, drift, noise, beta=BETA), pin))
        t = inside(law)
        calls = [
            lambda law, t=t: law.mean(x, t),
            lambda law, t=t: law.reverse_drift(u, x, t),
            lambda law, t=t: law.gamma_score(u, t, x),
            lambda law, t=t: law.reduce(u, t),
            lambda law, t=t: law.velocity(u, x, t),
            lambda law, t=t: law.mix(law.posterior(t, t + 0.05)[0], u),
        ]
        for i in (0, 5, basis.modes.numel() - 1):
            k = tuple(int(j) for j in np.unravel_index(i, tuple(basis.modes)))
            one = coupling.law(LinearBridge(LinearDiffusion(gamma, drift[k], noise[k], beta=BETA), pin))
            assert law.information(t).shape == (3, *basis.modes)
            for call in calls:
                ours, theirs = (basis.analyze(call(each).detach())[..., k[0], k[1]] for each in (law, one))
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
        level = law.log_snr(t)
        torch.testing.assert_close(law.time_of_log_snr(level), t, rtol=1e-8, atol=1e-10)


def test_channels_share_the_process():
    gamma = torus_gamma()
    bridge = LinearBridge(CLD(gamma, beta=BETA))
    value = normal(2, 6, 4, seed=5)
    law = IndependentField(0.9, value).law(bridge)
    u, x, t = normal(3, 4, 6, 4, seed=1), normal(3, 2, 6, 4, seed=2), inside(law)
    for channel in range(2):
        single = IndependentField(0.9, value[channel]).law(bridge)
        part = u[:, channel::2]
        data = x[:, channel : channel + 1]
        torch.testing.assert_close(law.mean(x, t)[:, channel::2], single.mean(data, t))
        torch.testing.assert_close(law.reduce(u, t)[:, channel : channel + 1], single.reduce(part, t))
        torch.testing.assert_close(law.velocity(u, x, t)[:, channel::2], single.velocity(part, data, t))
    for call in (
        lambda law: law.mean(x, t),
        lambda law: law.reduce(u, t),
        lambda law: law.start(3, 2),
    ):
        with pytest.raises(ValueError, match=r"give it as a field \(C, \*grid\) with C = 2"):
            call(FixedPoint(0.6).law(bridge))


def test_paired_law(bridge):
    law, k = Paired().law(bridge), bridge.variables
    x0, x1, t = normal(3, 1, 2, 3, seed=1), normal(3, 1, 2, 3, seed=2), inside(law)
    u = normal(3, k, 2, 3, seed=3)
    assert not law.closed_form
    assert not law.deterministic_flow
    start = law.start(3, 1, initial=x0, generator=generator(4)).detach()
    assert start.shape == (3, k, 2, 3)
    assert torch.equal(start[:, :1], x0)
    assert torch.equal(Paired().draw(bridge, x1, x0, generator=generator(4)).detach(), start)
    wanted = bridge.drift_target(u, bridge.end_state(x1), t)
    torch.testing.assert_close(law.reverse_drift(u, x1, t), wanted, rtol=0, atol=0)
    for call in (lambda: law.mean(x1, t), lambda: law.gamma_score(u, t, x1), lambda: law.offset_rate(t)):
        with pytest.raises(RuntimeError, match="no closed form"):
            call()
    with pytest.raises(ValueError, match=r"starts from given fields x0 of shape \(3, 1, 2, 3\); got nothing"):
        law.start(3, 1)
    with pytest.raises(ValueError, match="starts from x0 at time 0"):
        law.start(3, 1, initial=x0, time=0.3)


def test_flows_scores_and_levels_say_where_they_do_not_exist(bridge):
    law = FixedPoint().law(bridge)
    u, x = normal(2, bridge.variables, 2, 3), normal(2, 1, 2, 3)
    assert not law.deterministic_flow
    with pytest.raises(RuntimeError, match=r"no probability flow.*'bridge' or 'euler_maruyama'"):
        law.velocity(u, x, 0.5)
    for t in (0.0, law.horizon):
        with pytest.raises(ValueError, match="the score does not exist"):
            law.gamma_score(u, t, x)
    cld = LinearBridge(CLD(dense_gamma(), beta=BETA))
    with pytest.raises(ValueError, match="needs the signal and the root of all of them"):
        Noised(0.5, 0.9).law(cld)
    with pytest.raises(ValueError, match="a bridge of one variable needs numbers"):
        Noised(torch.ones(2), ROOT).law(BrownianBridge(dense_gamma()))
    with pytest.raises(ValueError, match="signal has shape"):
        Noised(torch.ones(2), torch.eye(3))
    with pytest.raises(RuntimeError, match="not monotone"):
        Noised(torch.tensor([5.0, 0.0]), 0.01 * ROOT).law(cld).time_of_log_snr(0.0)


def test_coefficients_follow_what_is_learned():
    """The law is built once; a change of the process' matrices reaches it."""
    bridge = LinearBridge(CLD(dense_gamma(), beta=BETA))
    law = IndependentField().law(bridge)
    t = torch.tensor(0.5, dtype=F64)
    before, time = law.information(t), law.time_of_log_snr(0.0)
    with torch.no_grad():
        bridge.reference_process._drift.mul_(0.5)
    assert abs(float(law.information(t) / before) - 1.0) > 1e-2
    assert abs(float(law.time_of_log_snr(0.0) - time)) > 1e-3


def test_gamma_is_registered_once_and_moves_with_the_law():
    law = IndependentField().law(LinearBridge(CLD(dense_gamma(), beta=BETA)))
    assert len(list(law.parameters())) == len(list(law.covariance.parameters()))
    assert law.bridge.covariance is law.covariance
    law.float()
    assert law.start(2, 1).dtype == torch.float32
