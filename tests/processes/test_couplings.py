"""Couplings: the law of the state given the data end, its dynamics, and time reversal as a bridge mixture."""

from __future__ import annotations

import pytest
import torch
from moments import assert_covariance, assert_mean, dense_gamma, generator, normal, torus_gamma
from torch import Tensor

from spatialdiff.covariance import white
from spatialdiff.domains import Grid
from spatialdiff.processes import (
    VE,
    VP,
    BrownianBridge,
    BrownianMotion,
    Cosine,
    FixedPoint,
    IndependentField,
    Noised,
    OrnsteinUhlenbeck,
    OrnsteinUhlenbeckBridge,
    Paired,
    as_coupling,
    time_reversal,
)

F64 = torch.float64
FIELD = torch.linspace(-1.0, 2.0, 6, dtype=F64).reshape(2, 3)
COUPLINGS = {
    "number": FixedPoint(0.6),
    "field": FixedPoint(FIELD),
    "independent": IndependentField(1.4),
    "mean": IndependentField(1.1, FIELD),
    "noised": Noised(0.5, 0.9),
}
STOCHASTIC = {name: COUPLINGS[name] for name in ("independent", "mean", "noised")}
BRIDGES = {
    "brownian": lambda gamma: BrownianBridge(gamma, horizon=1.5),
    "ou": lambda gamma: OrnsteinUhlenbeckBridge(gamma, horizon=2.0, rate=0.8),
}


@pytest.fixture(params=BRIDGES)
def bridge(request):
    return BRIDGES[request.param](dense_gamma())


def inside(law) -> Tensor:
    return torch.tensor([0.2, 0.5, 0.85], dtype=F64) * law.horizon


@pytest.mark.parametrize("name", COUPLINGS)
def test_law_is_the_mixture_over_the_starts(bridge, name):
    """Moments of draws x_0 → X_t given one x_τ, at every pair of sites."""
    count = 5000
    coupling = COUPLINGS[name]
    law = coupling.law(bridge)
    assert (law.start_time, law.end_time) == (0.0, bridge.horizon)
    assert law.closed_form
    x1 = normal(1, 1, 2, 3, seed=1)
    ends = x1.expand(count, -1, -1, -1)
    x0 = coupling.draw(bridge, ends, generator=generator(2))
    assert x0.shape == ends.shape
    t = 0.4 * bridge.horizon
    state, _ = bridge.perturb(x0, ends, t, generator=generator(3))
    samples = (state - law.mean(x1, t)).reshape(count, 6)
    exact = law.variance(t) * bridge.covariance.to_dense()
    assert_covariance(samples, exact)
    assert_mean(samples, torch.zeros(6, dtype=F64), exact.diagonal())
    start = law.start(count, 1, generator=generator(4), dtype=F64, data=(x1[0], None)).reshape(count, 6)
    known = law.variance(0.0) * bridge.covariance.to_dense()
    assert_covariance(start - law.mean(x1, 0.0).flatten(), known)


@pytest.mark.parametrize("name", COUPLINGS)
def test_law_coefficients(bridge, name):
    law = COUPLINGS[name].law(bridge)
    c_0, c_1, v = bridge.coefficients(inside(law))
    phi, sigma = law.marginal(inside(law))
    std = {"independent": 1.4, "mean": 1.1, "noised": 0.9}.get(name, 0.0)
    signal = 0.5 if name == "noised" else 0.0
    torch.testing.assert_close(phi[:, 0], c_1 + signal * c_0)
    torch.testing.assert_close(sigma[:, 0, 0], std**2 * c_0**2 + v)
    value = {"number": torch.tensor(0.6, dtype=F64), "field": FIELD, "mean": FIELD}.get(
        name, torch.zeros((), dtype=F64)
    )
    offset = law.offset(inside(law)).expand(3, 1, 2, 3)
    torch.testing.assert_close(offset, c_0.reshape(3, 1, 1, 1) * value.expand(1, 2, 3))
    # the law is that of a Markov process: bridge steps carry one marginal into the next
    t, s = inside(law)[0], inside(law)[2]
    a, b, spread = law.step(t, s)
    torch.testing.assert_close(a * law.alpha(t) + b, law.alpha(s))
    torch.testing.assert_close(a**2 * law.variance(t) + spread, law.variance(s))
    torch.testing.assert_close((a * law.offset(t)).expand(2, 3), law.offset(s).expand(2, 3))
    assert [c.item() for c in law.step(t, law.end_time)] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("name", COUPLINGS)
def test_rates_are_derivatives(bridge, name):
    law = COUPLINGS[name].law(bridge)
    t = inside(law).requires_grad_()
    for value, rate in ((law.alpha(t), law.alpha_rate(t)), (law.sigma(t), law.sigma_rate(t))):
        (exact,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(rate, exact, rtol=1e-9, atol=1e-12)
    step = 1e-5
    numeric = (law.offset(t.detach() + step) - law.offset(t.detach() - step)) / (2 * step)
    torch.testing.assert_close(law.offset_rate(t.detach()), numeric, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", [*COUPLINGS, "paired"])
def test_log_snr_and_its_inverse(bridge, name):
    law = as_coupling(COUPLINGS.get(name, "paired")).law(bridge)
    t = torch.linspace(0.0, 1.0, 101, dtype=F64)[1:-1] * law.horizon
    level = law.log_snr(t)
    assert bool((level.diff() > 0).all())
    torch.testing.assert_close(level, torch.log(law.alpha(t) ** 2 / law.variance(t)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(law.time_of_log_snr(level), t, rtol=1e-9, atol=1e-12)
    assert law.log_snr(law.horizon) == torch.inf
    assert law.time_of_log_snr(torch.inf).item() == pytest.approx(law.horizon, rel=1e-12)
    assert law.time_of_log_snr(-torch.inf).item() == pytest.approx(0.0, abs=1e-12)
    if name != "noised":
        assert law.log_snr(0.0) == -torch.inf


@pytest.mark.parametrize("name", ["number", "independent", "noised"])
@pytest.mark.parametrize("power", [0.0, 0.3, 4.0])
def test_mixture_sde_and_flow_keep_the_marginals_of_gaussian_data(name, power):
    """With data N(0, c) the mixture drift and the flow are affine in u; their moment equations must be
    those of X_t.
    """
    for make in BRIDGES.values():
        bridge = make(white(Grid((1,))).double())
        law = COUPLINGS[name].law(bridge)
        t = inside(law).requires_grad_()
        total = law.alpha(t) ** 2 * power + law.variance(t)
        (rate,) = torch.autograd.grad(total.sum(), t)
        t, total = t.detach(), total.detach()
        gain = (law.alpha(t) * power / total).reshape(3, 1, 1)
        offset, offset_rate = law.offset(t), law.offset_rate(t)

        def affine(field, t=t, gain=gain, offset=offset):
            """Slope and value at 0 of u ↦ field(u, D(u))."""
            states = (torch.full((3, 1, 1), level, dtype=F64) for level in (0.0, 1.0))
            at = [field(u, gain * (u - offset), t) for u in states]
            return (at[1] - at[0]).flatten(), at[0].flatten()

        mean, mean_rate = (o.expand(3, 1, 1).flatten() for o in (offset, offset_rate))
        slope, constant = affine(law.reverse_drift)
        torch.testing.assert_close(2.0 * slope * total + law.diffusion(t) ** 2, rate, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(slope * mean + constant, mean_rate, rtol=1e-9, atol=1e-10)
        if law.deterministic_flow:
            slope, constant = affine(law.velocity)
            torch.testing.assert_close(2.0 * slope * total, rate, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(slope * mean + constant, mean_rate, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_flow_is_the_drift_less_half_the_score(bridge, name):
    law = STOCHASTIC[name].law(bridge)
    u, x, t = normal(3, 1, 2, 3, seed=1), normal(3, 1, 2, 3, seed=2), inside(law)
    half = 0.5 * law.diffusion(t).reshape(3, 1, 1, 1) ** 2
    flow = law.reverse_drift(u, x, t) - half * law.gamma_score(u, t, x)
    torch.testing.assert_close(law.velocity(u, x, t), flow, rtol=1e-9, atol=1e-10)


def test_a_fixed_point_has_no_flow_and_says_what_works(bridge):
    law = FixedPoint().law(bridge)
    x = normal(2, 1, 2, 3)
    assert not law.deterministic_flow
    with pytest.raises(RuntimeError, match=r"no probability flow.*'bridge' or 'euler_maruyama'"):
        law.velocity(x, x, 0.5)
    with pytest.raises(ValueError, match=r"sigma\(t\) = 0"):
        law.gamma_score(x, 0.0, x)
    assert torch.equal(law.start(2, 1, dtype=F64), torch.zeros(2, 1, 2, 3, dtype=F64))


def test_paired_law(bridge):
    law = Paired().law(bridge)
    x0, x1, t = normal(3, 1, 2, 3, seed=1), normal(3, 1, 2, 3, seed=2), inside(law)
    assert not law.closed_form
    assert not law.deterministic_flow
    assert Paired().needs_initial
    assert torch.equal(Paired().draw(bridge, x1, x0), x0)
    assert torch.equal(law.start(3, 1, initial=x0), x0)
    torch.testing.assert_close(law.reverse_drift(x0, x1, t), bridge.drift_target(x0, x1, t), rtol=0, atol=0)
    for call in (lambda: law.mean(x1, t), lambda: law.gamma_score(x0, t, x1), lambda: law.offset_rate(t)):
        with pytest.raises(RuntimeError, match="no closed form"):
            call()
    with pytest.raises(ValueError, match=r"starts from given fields x0 of shape \(3, 1, 2, 3\); got nothing"):
        law.start(3, 1)
    with pytest.raises(ValueError, match=r"got a field of shape \(2, 1, 2, 3\)"):
        law.start(3, 1, initial=x0[:2])
    with pytest.raises(ValueError, match="starts from x0 at time 0"):
        law.start(3, 1, initial=x0, time=0.3)
    with pytest.raises(ValueError, match="needs x0 for every x1"):
        Paired().draw(bridge, x1)
    with pytest.raises(ValueError, match="pairs must match"):
        Paired().draw(bridge, x1, x0[:2])


def test_names_and_bad_couplings(bridge):
    assert isinstance(as_coupling("fixed"), FixedPoint)
    assert isinstance(as_coupling("independent"), IndependentField)
    assert isinstance(as_coupling("paired"), Paired)
    own = Noised(0.1, 1.0)
    assert as_coupling(own) is own
    with pytest.raises(ValueError, match="unknown coupling 'optimal'; known: fixed, independent, paired"):
        as_coupling("optimal")
    x = normal(2, 1, 2, 3)
    for coupling in COUPLINGS.values():
        with pytest.raises(ValueError, match="draws x0 itself"):
            coupling.draw(bridge, x, x)
    with pytest.raises(ValueError, match="std was"):
        IndependentField(0.0)
    with pytest.raises(ValueError, match=r"it must be a number or a field \(\*grid\) or \(C, \*grid\)"):
        FixedPoint(torch.zeros(3, 2)).law(bridge)
    with pytest.raises(ValueError, match="not finite"):
        FixedPoint(float("nan"))
    with pytest.raises(RuntimeError, match="not monotone"):
        Noised(5.0, 0.01).law(bridge).time_of_log_snr(0.0)


def test_gamma_is_registered_once_and_moves_with_the_law():
    law = IndependentField().law(BrownianBridge(dense_gamma()))
    assert len(list(law.parameters())) == len(list(law.covariance.parameters()))
    assert law.bridge.covariance is law.covariance
    law.float()
    assert law.start(2, 1).dtype == torch.float32


@pytest.mark.parametrize(
    "make",
    [
        VP,
        lambda gamma: VE(gamma, 0.5, 3.0),
        lambda gamma: BrownianMotion(gamma, 2.0),
        lambda gamma: OrnsteinUhlenbeck(gamma, rate=0.9, horizon=2.0),
    ],
    ids=["vp", "ve", "brownian", "ou"],
)
def test_time_reversal_is_a_bridge_mixture(make):
    """The drift of the mixture over (noised, clean) data is the reverse-time drift, with a softmax posterior
    mean.

    The posterior mean of each side is computed here from its own law: weights of the bridge mixture from the
    coefficients of the bridge and of the coupling, weights of time reversal from the marginal of the noise
    process.
    """
    gamma = torus_gamma()
    process = make(gamma)
    bridge, coupling = time_reversal(process)
    law = coupling.law(bridge)
    data = 0.3 * gamma.color(normal(12, 1, 6, 4, seed=1)).detach()

    def posterior_mean(u: Tensor, shift: Tensor, variance: Tensor) -> Tensor:
        """softmax average of the data, u | x_i ~ N(shift x_i, variance Γ)."""
        residual = u[:, None] - shift * data[None]
        weights = torch.softmax(-0.5 * gamma.quad_form(residual)[..., 0] / variance, dim=1)
        assert weights.max(dim=1).values.min() < 0.9, "the case must mix several data"
        return torch.einsum("bi,icxy->bcxy", weights, data)

    noised = process.marginal(process.horizon)
    for fraction in (0.3, 0.6, 0.95):
        t = torch.tensor(fraction * process.horizon, dtype=F64)
        s = process.horizon - t
        u, _ = process.perturb(data[:5], t, generator=generator(2))
        c_0, c_1, v = bridge.coefficients(s)
        shift = c_1 + c_0 * noised[0][0]
        forward = posterior_mean(u, shift, v + c_0**2 * noised[1][0, 0])
        backward = posterior_mean(u, process.alpha(t), process.variance(t))
        torch.testing.assert_close(forward, backward, rtol=1e-8, atol=1e-8)
        mixture = bridge.drift_target(u, forward, s)
        torch.testing.assert_close(mixture, process.reverse_drift(u, backward, t), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(law.alpha(s), process.alpha(t), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(law.variance(s), process.variance(t), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(bridge.diffusion(s), process.diffusion(t), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            law.velocity(u, forward, s), -process.velocity(u, forward, t), rtol=1e-8, atol=1e-8
        )
        # the bridge step is the ancestral step
        for a, b in zip(law.step(s, s + 0.5 * t), process.step(t, 0.5 * t), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_time_reversal_needs_a_beta_schedule():
    with pytest.raises(TypeError, match="Cosine has no beta schedule"):
        time_reversal(Cosine(torus_gamma()))
