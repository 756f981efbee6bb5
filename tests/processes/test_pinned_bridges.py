"""Bridges of linear processes with auxiliary variables, against dense conditioning of the unpinned process.

The reference is written out independently of the library: A and G by hand, moments by scipy's matrix
exponential on the joint law of the state at several times, conditioning by dense solves.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from moments import (
    assert_covariance,
    assert_mean,
    condition,
    dense_gamma,
    generator,
    normal,
    torus_gamma,
)
from scipy.integrate import solve_ivp
from torch import Tensor

from spatialdiff.covariance import white
from spatialdiff.domains import Grid
from spatialdiff.processes import (
    VE,
    VP,
    Bridge,
    BrownianBridge,
    ConstantBeta,
    LinearBeta,
    LinearBridge,
    LinearDiffusion,
    OrnsteinUhlenbeck,
    started_law,
)

F64 = torch.float64
BETA = LinearBeta(1.0, 3.0, horizon=1.2)
# drift, noise and V_0 of CLD (M = 1/4), a third-order process, and one without any structure
MATRICES = {
    "cld": ([[0.0, 4.0], [-1.0, -4.0]], [[0.0, 0.0], [0.0, 2.0]], [0.25]),
    "alda": (
        [[0.0, 1.0, 0.0], [-1.0, 0.0, 1.4], [0.0, -1.4, -2.0]],
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]],
        [1.0, 1.0],
    ),
    "general": ([[-0.5, 1.0], [-0.3, -1.1]], [[1.0, 0.3], [0.3, 0.5]], [0.7]),
}
CASES = [(name, pin) for name in MATRICES for pin in ("data", "state")]


def process(name: str, gamma) -> LinearDiffusion:
    drift, diffusion, initial = MATRICES[name]
    return LinearDiffusion(gamma, drift, diffusion, beta=BETA, initial=initial)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request):
    name, pin = request.param
    return name, LinearBridge(process(name, dense_gamma()), pin)


def step(name: str, s: float, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Φ and Σ from s to t, by integrating the moment equations."""
    drift, diffusion, _ = (np.array(part) for part in MATRICES[name])
    size = len(drift)

    def moments(r, y):
        phi, sigma = y[: size * size].reshape(size, size), y[size * size :].reshape(size, size)
        rate = 1.0 + 2.0 * r / 1.2
        moved = drift @ sigma
        return rate * np.concatenate([(drift @ phi).ravel(), (moved + moved.T + diffusion).ravel()])

    start = np.concatenate([np.eye(size).ravel(), np.zeros(size * size)])
    if s == t:
        return np.eye(size), np.zeros((size, size))
    y = solve_ivp(moments, (s, t), start, method="DOP853", rtol=1e-13, atol=1e-16).y[:, -1]
    return y[: size * size].reshape(size, size), y[size * size :].reshape(size, size)


def joint(name: str, times: list[float], start: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (of u_0) and covariance (per Γ) of the state at ``times``, from a start of covariance
    ``start``.
    """
    size = len(start)
    weights, covariance = [], torch.zeros(len(times) * size, len(times) * size, dtype=F64)
    phi, sigma, before = torch.eye(size, dtype=F64), start, 0.0
    for i, t in enumerate(times):
        a, noise = (torch.from_numpy(part) for part in step(name, before, t))
        phi, sigma = a @ phi, a @ sigma @ a.mT + noise
        here = slice(i * size, (i + 1) * size)
        covariance[here, : i * size] = a @ covariance[(i - 1) * size : i * size, : i * size] if i else 0.0
        covariance[: i * size, here] = covariance[here, : i * size].mT
        covariance[here, here] = sigma
        weights.append(phi)
        before = t
    return torch.cat(weights), covariance


def pinned(name: str, pins: int, times: list[float], gamma: Tensor, u0: Tensor, end: Tensor, start: Tensor):
    """Mean and covariance of the states at ``times`` given the end, by dense conditioning over all sites.

    The start is u_0, or ``N(u_0, start ⊗ Γ)`` independent of the end: the weight of the start in the
    conditional mean, found by conditioning from every unit vector, carries its covariance over.
    """
    size, n = len(start), len(gamma)
    weights, covariance = joint(name, [*times, 1.2], torch.zeros(size, size, dtype=F64))
    inside = len(times) * size
    keep = torch.arange(inside + pins)  # the pinned variables of the last state come first
    forward = torch.kron(weights[keep], torch.eye(n, dtype=F64))
    full = torch.kron(covariance[keep][:, keep], gamma)
    ends, rest = slice(inside * n, None), slice(0, inside * n)
    mean, spread = condition(full, forward @ u0, ends, rest, end)
    nothing = torch.zeros(pins * n, dtype=F64)
    units = torch.eye(size * n, dtype=F64)
    weight = torch.stack([condition(full, forward @ unit, ends, rest, nothing)[0] for unit in units], dim=1)
    return mean, spread + weight @ torch.kron(start, gamma) @ weight.mT


# -- coefficients ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [(0.3, 0.7), (0.02, 1.0), (0.9, 1.17)])
def test_coefficients_and_posterior_are_dense_conditioning(case, times):
    name, bridge = case
    k, p, gamma = bridge.variables, bridge.pins, bridge.covariance.to_dense().detach()
    u0, end, value = normal(6 * k, seed=1), normal(6 * p, seed=2), normal(6 * k, seed=3)
    fixed = torch.zeros(k, k, dtype=F64)
    mean, covariance = pinned(name, p, list(times), gamma, u0, end, fixed)
    eye = torch.eye(6, dtype=F64)
    t, s = times
    c0, c1, v = bridge.coefficients(t)
    found = torch.kron(c0, eye) @ u0 + torch.kron(c1, eye) @ end
    torch.testing.assert_close(found, mean[: 6 * k], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.kron(v, gamma), covariance[: 6 * k, : 6 * k], rtol=1e-8, atol=1e-9)
    exact, spread = condition(covariance, mean, slice(0, 6 * k), slice(6 * k, None), value)
    a, b, v = bridge.posterior(t, s)
    found = torch.kron(a, eye) @ value + torch.kron(b, eye) @ end
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.kron(v, gamma), spread, rtol=1e-7, atol=1e-8)


def test_auxiliary_start_is_integrated_out(case):
    """The law of u_t given x_0 and the end, v_0 ~ N(0, V_0 ⊗ Γ), from `started_law` and from `perturb`."""
    name, bridge = case
    k, p, gamma = bridge.variables, bridge.pins, bridge.covariance.to_dense().detach()
    start = torch.diag(torch.tensor([0.0, *MATRICES[name][2]], dtype=F64))
    x0, x1 = normal(6, seed=1), normal(6, seed=2)
    u0 = torch.cat([x0, torch.zeros(6 * (k - 1), dtype=F64)])
    end = torch.cat([x1, torch.zeros(6 * (p - 1), dtype=F64)])
    shape = (1, 1, 2, 3)
    law = started_law(bridge, x0.reshape(2, 3))
    for t in (0.05, 0.6, 1.15):
        mean, covariance = pinned(name, p, [t], gamma, u0, end, start)
        assert torch.allclose(law.mean(x1.reshape(shape), t).flatten(), mean, rtol=1e-8, atol=1e-8)
        assert torch.allclose(torch.kron(law.marginal(t)[1], gamma), covariance, rtol=1e-8, atol=1e-9)
        z = normal(1, k, 2, 3, seed=4)
        state, noise = bridge.perturb(x0.reshape(shape), end.reshape(1, p, 2, 3), t, white=z)
        wanted = law.mean(x1.reshape(shape), t) + law.mix(law.root(t), noise)
        assert torch.allclose(state, wanted, rtol=1e-12, atol=1e-12)


def test_reciprocal_property(case):
    """The bridge within the bridge, from u_r to u_t, is the unpinned process between the same two states."""
    name, bridge = case
    k = bridge.variables
    r, s, t = 0.2, 0.5, 0.8
    # the joint law of (u_s, u_t) given u_r and the end, by two bridge steps
    a, b, v = bridge.posterior(r, s)
    a2, b2, v2 = bridge.posterior(s, t)
    gain = v @ a2.mT @ torch.linalg.inv(a2 @ v @ a2.mT + v2)
    # u_s given u_r, u_t, end = (A - gain A2 A) u_r + gain u_t + (B - gain (A2 B + B2)) end
    of_end = b - gain @ (a2 @ b + b2)
    of_start, spread = a - gain @ a2 @ a, v - gain @ a2 @ v
    phi, sigma = (torch.from_numpy(part) for part in step(name, r, s))
    phi2, sigma2 = (torch.from_numpy(part) for part in step(name, s, t))
    wanted = sigma @ phi2.mT @ torch.linalg.inv(phi2 @ sigma @ phi2.mT + sigma2)
    assert torch.allclose(of_end, torch.zeros_like(of_end), atol=1e-10)
    assert torch.allclose(gain, wanted, rtol=1e-9, atol=1e-10)
    assert torch.allclose(of_start, phi - wanted @ phi2 @ phi, rtol=1e-9, atol=1e-10)
    assert torch.allclose(spread, sigma - wanted @ phi2 @ sigma, rtol=1e-8, atol=1e-10)
    assert k > 1
    assert float(b.abs().max()) > 1e-3, "the end must matter"


def test_the_ends_are_exact(case):
    _, bridge = case
    k, p, tau = bridge.variables, bridge.pins, bridge.horizon
    eye = torch.eye(k, dtype=F64)
    for t in (0.0, 0.4, tau):
        a, b, v = bridge.posterior(t, tau)
        assert torch.equal(a[:p], torch.zeros(p, k, dtype=F64))
        assert torch.equal(b[:p], torch.eye(p, dtype=F64))
        assert not bool(v[:p].any() or v[:, :p].any())
    for t in (0.0, 0.4):
        a, b, v = bridge.posterior(t, t)
        assert torch.allclose(a, eye, atol=1e-15)
        assert not bool(b.any() or v.any())


@pytest.mark.parametrize("left", [1e-2, 1e-5, 1e-8])
def test_nothing_cancels_near_the_end(left):
    """CLD pinned in its data: the law just before the end against 60-digit arithmetic."""
    mpmath = pytest.importorskip("mpmath")
    mp = mpmath.mp.clone()
    mp.dps = 60
    bridge = LinearBridge(
        LinearDiffusion(
            dense_gamma(), *MATRICES["cld"][:2], beta=ConstantBeta(1.0, 1.0), initial=MATRICES["cld"][2]
        )
    )
    law = started_law(bridge, 0.0, 1.3)
    drift, diffusion = (mp.matrix(part) for part in MATRICES["cld"][:2])

    def moments(b):
        block = mp.matrix(4, 4)
        for i in range(2):
            for j in range(2):
                block[i, j], block[2 + i, 2 + j] = -drift[i, j], drift[j, i]
                block[i, 2 + j] = diffusion[i, j]
        e = mp.expm(block * b, method="taylor")
        phi = mp.matrix(2, 2)
        for i in range(2):
            for j in range(2):
                phi[i, j] = e[2 + j, 2 + i]
        return phi, phi * mp.matrix([[e[i, 2 + j] for j in range(2)] for i in range(2)])

    d = mp.mpf(left)
    phi, sigma = moments(1 - d)
    phi2, sigma2 = moments(d)
    h = phi2[0, :]
    total = (h * sigma * h.T)[0] + sigma2[0, 0]
    pull = sigma * h.T / total
    rest = mp.eye(2) - pull * h
    start = mp.matrix([[mp.mpf(1.3) ** 2, 0], [0, mp.mpf("0.25")]])
    inner = phi * start * phi.T + sigma
    covariance = rest * inner * rest.T + pull * pull.T * sigma2[0, 0]
    information = (pull.T * mp.inverse(covariance) * pull)[0]
    # the time itself has but 16 digits, of which 1 - t keeps few
    t = 1.0 - left
    slack = 1e-12 + 4.0 * 2.2e-16 / left
    found = float(law.information(t))
    assert found == pytest.approx(float(information), rel=slack)
    kept = law.marginal(t)[1].detach()
    for i in range(2):
        for j in range(2):
            scale = math.sqrt(float(covariance[i, i] * covariance[j, j]))
            assert abs(float(kept[i, j]) - float(covariance[i, j])) < slack * scale
    gain = bridge.pull(t)[0][:, 0]
    wanted = h.T / sigma2[0, 0]
    assert [float(g) for g in gain] == pytest.approx([float(w) for w in wanted], rel=slack)


# -- one variable ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scalar", "reference"),
    [
        (
            lambda g: BrownianBridge(g, schedule=BETA),
            lambda g: LinearDiffusion(g, [[0.0]], [[1.0]], beta=BETA),
        ),
        (lambda g: Bridge(g, BETA, 0.8), lambda g: LinearDiffusion(g, [[-0.8]], [[1.0]], beta=BETA)),
        (lambda g: Bridge(g, ConstantBeta(1.0, 2.0), 0.9), lambda g: OrnsteinUhlenbeck(g, 0.9, horizon=2.0)),
        (lambda g: Bridge(g, LinearBeta(0.1, 20.0), 0.5), VP),
    ],
    ids=["brownian", "ou", "named-ou", "vp"],
)
@pytest.mark.parametrize("pin", ["data", "state"])
def test_one_variable_is_the_scalar_bridge(scalar, reference, pin):
    gamma = dense_gamma()
    old, new = scalar(gamma), LinearBridge(reference(gamma), pin)
    t = torch.tensor([0.0, 1e-3, 0.2, 0.5, 0.9, 0.999], dtype=F64) * old.horizon
    s = t + 0.3 * (old.horizon - t)

    def same(many, one):
        for a, b in zip(many, one, strict=True):
            torch.testing.assert_close(a.flatten(), b, rtol=1e-12, atol=1e-12)

    same(new.coefficients(t), old.coefficients(t))
    same(new.posterior(t, s), old.posterior(t, s))
    same([new.path_rate(t)], [old.path_rate(t)])
    x, u = normal(6, 1, 2, 3, seed=1), normal(6, 1, 2, 3, seed=2)
    for call in ("drift_adjustment", "drift_target"):
        torch.testing.assert_close(
            getattr(new, call)(u, x, t), getattr(old, call)(u, x, t), rtol=1e-12, atol=1e-12
        )
    z = normal(6, 1, 2, 3, seed=3)
    for a, b in zip(new.perturb(u, x, t, white=z), old.perturb(u, x, t, white=z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    z = normal(6, 6, 1, 2, 3, seed=3)
    torch.testing.assert_close(
        new.simulate(u, x, t, white=z), old.simulate(u, x, t, white=z), rtol=1e-12, atol=1e-12
    )


# -- drift -------------------------------------------------------------------------------------------------


def test_drift_is_the_doob_transform(case):
    """F u + Q Γ ∇log p(x_τ | u), with Γ, Γ⁻¹ and the density of the end written out, by autograd."""
    name, bridge = case
    k, p = bridge.variables, bridge.pins
    gamma = bridge.covariance.to_dense().detach()
    drift, diffusion, _ = (torch.tensor(part, dtype=F64) for part in MATRICES[name])
    end = normal(6 * p, seed=2)
    for i, t in enumerate((0.1, 0.6, 1.1)):
        beta = 1.0 + 2.0 * t / 1.2
        phi, sigma = (torch.from_numpy(part) for part in step(name, t, 1.2))
        u = normal(6 * k, seed=10 + i).requires_grad_()
        residual = end - torch.kron(phi[:p], torch.eye(6, dtype=F64)) @ u
        density = -0.5 * residual @ torch.linalg.solve(torch.kron(sigma[:p, :p], gamma), residual)
        (gradient,) = torch.autograd.grad(density, u)
        pull = beta * torch.kron(diffusion, gamma) @ gradient
        shape = (1, -1, 2, 3)
        state, target = u.detach().reshape(shape), end.reshape(shape)
        adjustment = bridge.drift_adjustment(state, target, t).detach().flatten()
        scale = float(pull.abs().max())
        torch.testing.assert_close(adjustment, pull, rtol=1e-7, atol=1e-9 * scale)
        full = beta * torch.kron(drift, torch.eye(6, dtype=F64)) @ u.detach() + pull
        found = bridge.drift_target(state, target, t).detach().flatten()
        torch.testing.assert_close(found, full, rtol=1e-7, atol=1e-9 * scale)


def test_sde_with_the_drift_target_has_the_marginals_of_the_bridge(case):
    """Moment equations of du = drift_target dt + (Q ⊗ Γ)^{1/2} dW, integrated by scipy."""
    _, bridge = case
    k, p = bridge.variables, bridge.pins
    last = 1.0
    u0, end = normal(k, seed=1).numpy(), normal(p, seed=2).numpy()

    def rates(t, y):
        with torch.no_grad():
            slope, gain = (part.numpy() for part in bridge.drift_matrices(t))
            noise = bridge.diffusion_matrix(t).numpy()
        mean, covariance = y[:k], y[k:].reshape(k, k)
        moved = slope @ covariance
        return np.concatenate([slope @ mean + gain @ end, (moved + moved.T + noise).ravel()])

    y = solve_ivp(
        rates, (0.0, last), np.concatenate([u0, np.zeros(k * k)]), method="DOP853", rtol=1e-8, atol=1e-10
    ).y[:, -1]
    c0, c1, v = (part.detach().numpy() for part in bridge.coefficients(last))
    np.testing.assert_allclose(y[:k], c0 @ u0 + c1 @ end, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y[k:].reshape(k, k), v, rtol=1e-5, atol=1e-7)


def test_moment_equations_hold_up_to_the_end(case):
    """Ċ_0 = L C_0, Ċ_τ = L C_τ + g, V̇ = L V + V Lᵀ + Q with L, g of the drift, by autograd in t."""
    _, bridge = case
    for t in (0.01, 0.5, 1.1, 1.19):
        time = torch.tensor(t, dtype=F64)
        parts, rates = torch.autograd.functional.jvp(bridge.coefficients, time, torch.ones_like(time))
        c0, c1, v = (part.detach() for part in parts)
        slope, gain = (part.detach() for part in bridge.drift_matrices(t))
        noise = bridge.diffusion_matrix(t).detach()
        wanted = slope @ c0, slope @ c1 + gain, slope @ v + v @ slope.mT + noise
        # what cancels in the products sets the rounding that is left
        sizes = slope.abs() @ c0.abs(), slope.abs() @ c1.abs(), slope.abs() @ v.abs()
        for rate, exact, size in zip(rates, wanted, sizes, strict=True):
            assert float((rate - exact).abs().max()) < 1e-9 * (1.0 + float(size.max()))


def test_the_end_is_singular_and_says_what_to_do(case):
    _, bridge = case
    u, x = normal(1, bridge.variables, 2, 3), normal(1, bridge.pins, 2, 3)
    for call in (bridge.drift_target, bridge.drift_adjustment):
        with pytest.raises(ValueError, match=r"singular at its end t = 1.2; take the last step"):
            call(u, x, bridge.horizon)
    with pytest.raises(ValueError, match="singular at its end"):
        bridge.path_rate(bridge.horizon)


# -- draws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["state", "data"])
def test_simulated_paths_have_the_exact_moments(part):
    """Means and covariances over times, variables and sites, from a full state and from x_0 alone."""
    count, times = 4000, [0.2, 0.7, 1.1]
    bridge = LinearBridge(process("cld", dense_gamma()))
    gamma = bridge.covariance.to_dense().detach()
    k = 2
    u0, x1 = normal(6 * k, seed=1), normal(6, seed=2)
    if part == "data":
        u0[6:] = 0.0
    start = torch.diag(torch.tensor([0.0, 0.25 if part == "data" else 0.0], dtype=F64))
    begin = u0.reshape(1, k, 2, 3)[:, : 1 if part == "data" else k].expand(count, -1, -1, -1)
    ends = x1.reshape(1, 1, 2, 3).expand(count, -1, -1, -1)
    path = bridge.simulate(begin, ends, times, generator=generator(3)).detach()
    assert path.shape == (3, count, k, 2, 3)
    mean, covariance = pinned("cld", 1, times, gamma, u0, x1, start)
    samples = path.transpose(0, 1).reshape(count, -1)
    assert_covariance(samples - mean, covariance)
    assert_mean(samples, mean, covariance.diagonal())


def test_paths_begin_and_end_at_the_ends(case):
    _, bridge = case
    k, p = bridge.variables, bridge.pins
    u0, end = normal(2, k, 2, 3, seed=1), normal(2, p, 2, 3, seed=2)
    path = bridge.simulate(u0, end, [0.0, 0.6, bridge.horizon], generator=generator(3)).detach()
    torch.testing.assert_close(path[0], u0, rtol=0, atol=1e-14)
    assert torch.equal(path[2][:, :p], end)


def test_paths_of_the_data_variable_are_smooth():
    """Squared increments over ever finer steps: ∝ h for the Brownian bridge, ∝ h² for CLD's data variable.

    Σ (Δx)² over n steps tends to B(τ) for the former and, ∫ẋ² dt being finite, falls like 1/n for the latter;
    that of its velocity tends to ∫ β G dt.
    """
    gamma = white(Grid((40,))).double()
    rough = BrownianBridge(gamma, 1.0)
    smooth = LinearBridge(
        LinearDiffusion(gamma, *MATRICES["cld"][:2], beta=ConstantBeta(1.0), initial=MATRICES["cld"][2])
    )
    x0, x1 = torch.zeros(20, 1, 40, dtype=F64), normal(20, 1, 40, seed=1)

    def variation(bridge, steps: int) -> Tensor:
        """Mean over 800 sites of Σ (Δu)², for each variable."""
        times = torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
        path = bridge.simulate(x0, x1, times, generator=generator(2))
        return path.diff(dim=0).square().sum(0).mean((0, 2))

    coarse, fine = 40, 240
    ends = x1.square().mean()
    # E Σ (Δx)² = (1 - h) + x_1² h for the Brownian bridge; standard error √(2/n)/√800
    for steps in (coarse, fine):
        h = 1.0 / steps
        wanted = 1.0 - h + ends * h
        assert abs(float(variation(rough, steps)[0] - wanted)) < 5 * (2 * h / 800) ** 0.5
    first, last = variation(smooth, coarse), variation(smooth, fine)
    assert float(first[0] / last[0]) == pytest.approx(coarse**-1 * fine, rel=0.1)
    assert float(last[0]) < 0.02 * float(variation(rough, fine)[0])
    assert abs(float(last[1]) - 2.0) < 5 * 2.0 * (2 / fine / 800) ** 0.5 + 0.05


# -- tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pin", ["data", "state"])
def test_whitening_equivalence(pin):
    gamma = torus_gamma(channels=torch.tensor([[1.0, 0.4], [0.4, 0.5]], dtype=F64))
    coloured = LinearBridge(process("cld", gamma), pin)
    plain = LinearBridge(process("cld", white(gamma.domain, channels=2).double()), pin)
    p, t = coloured.pins, torch.tensor([0.2, 0.7, 1.1], dtype=F64)
    x0, u, end, z = (
        normal(3, *shape, 6, 4, seed=i) for i, shape in enumerate([(2,), (4,), (2 * p,), (2, 2)])
    )

    def whiten(field: Tensor) -> Tensor:
        apart = field.reshape(*field.shape[:-3], -1, 2, 6, 4)
        return gamma.whiten(apart).reshape(field.shape).detach()

    def same(actual: Tensor, whitened: Tensor) -> None:
        torch.testing.assert_close(whiten(actual.detach()), whitened.detach(), rtol=1e-10, atol=1e-10)

    y0, v, goal = whiten(x0), whiten(u), whiten(end)
    same(coloured.perturb(x0, end, t, white=z)[0], plain.perturb(y0, goal, t, white=z)[0])
    same(coloured.drift_target(u, end, t), plain.drift_target(v, goal, t))
    chain = normal(3, 3, 2, 2, 6, 4, seed=8)
    same(coloured.simulate(u, end, t, white=chain), plain.simulate(v, goal, t, white=chain))


def test_gradients_in_A_and_G():
    """Of posterior, drift and the law, near both ends and inside, against finite differences."""

    class Free(LinearDiffusion):
        def matrices(self):
            return self.free_drift, self.free_diffusion, self._initial

    def build(drift, diffusion, pin):
        reference = Free.__new__(Free)
        made = process("general", white(Grid((1,))).double())
        reference.__dict__.update(made.__dict__)
        reference.free_drift, reference.free_diffusion = drift, diffusion
        return LinearBridge(reference, pin)

    t = torch.tensor([0.01, 0.6, 1.19], dtype=F64)
    u, x = normal(3, 2, 1, seed=1), normal(3, 1, 1, seed=2)
    drift = torch.tensor(MATRICES["general"][0], dtype=F64)
    root = torch.tensor([[1.0, 0.0], [0.3, 0.6]], dtype=F64)
    for pin in ("data", "state"):

        def outputs(a, b, pin=pin):
            bridge = build(a, b @ b.mT, pin)
            law = started_law(bridge, 0.0, 1.2)
            end = bridge.end_state(x)
            phi, sigma = law.marginal(t)
            found = (
                *bridge.posterior(t, t + 0.005),
                bridge.drift_target(u, end, t) * (1.2 - t)[:, None, None] ** 2,
                phi,
                sigma,
                law.information(t).log(),
            )
            # one number of each, with weights of both signs at every entry
            return tuple(
                (part * torch.cos(torch.arange(part.numel())).reshape(part.shape)).sum() for part in found
            )

        leaves = [drift.clone().requires_grad_(), root.clone().requires_grad_()]
        assert torch.autograd.gradcheck(outputs, leaves, eps=1e-6, atol=1e-5, rtol=1e-4)


def test_dtypes_and_seeds(case):
    _, bridge = case
    x0, end, t = (
        normal(3, 1, 2, 3, seed=1),
        normal(3, bridge.pins, 2, 3, seed=2),
        torch.tensor([0.1, 0.5, 1.1]),
    )
    draws = [bridge.perturb(x0, end, t, generator=generator(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    z = normal(3, bridge.variables, 2, 3, seed=3)
    exact = bridge.perturb(x0, end, t, white=z)[0]
    bridge.float()
    single = bridge.perturb(x0.float(), end.float(), t, white=z.float())[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)
    assert all(part.dtype == F64 for part in bridge.coefficients(t))


def test_bad_input_is_named():
    gamma = dense_gamma()
    bridge = LinearBridge(process("cld", gamma))
    x, t = normal(3, 1, 2, 3), torch.tensor([0.1, 0.5, 1.1], dtype=F64)
    with pytest.raises(TypeError, match="LinearBridge pins a noise process"):
        LinearBridge(BrownianBridge(gamma))
    with pytest.raises(ValueError, match="pin was 'velocity'; the choices are data, state"):
        LinearBridge(process("cld", gamma), "velocity")
    with pytest.raises(ValueError, match="times of this process lie in"):
        bridge.perturb(x, x, 1.5)
    with pytest.raises(ValueError, match="t must not exceed s"):
        bridge.posterior(0.7, 0.2)
    with pytest.raises(ValueError, match="the two ends must match"):
        bridge.perturb(x[:2], x, t)
    with pytest.raises(ValueError, match=r"x0 has 3 channels; needed 1 .* or 2"):
        bridge.perturb(x.expand(3, 3, 2, 3), x, t)
    with pytest.raises(ValueError, match="the two ends must match, x1 with 2 variable"):
        LinearBridge(process("cld", gamma), "state").perturb(x, x, t)
    with pytest.raises(ValueError, match=r"white has 3 draws; this path needs 4"):
        bridge.simulate(x, x, t, white=normal(3, 3, 2, 2, 3))
    with pytest.raises(ValueError, match="x1: 6 of 18 values are NaN"):
        bridge.perturb(x, x.index_fill(0, torch.tensor([1]), torch.nan), t)


def test_references_of_every_kind_are_pinned():
    """Closed-form processes serve as references too: VE's bridge is a Brownian one in the time σ²."""
    gamma = dense_gamma()
    bridge = LinearBridge(VE(gamma, 0.5, 3.0))
    t = torch.tensor([0.2, 0.9], dtype=F64)
    passed = bridge.reference(0.0, t)[1].flatten()
    whole = bridge.reference(0.0, 1.0)[1].flatten()
    c0, c1, v = (part.flatten() for part in bridge.coefficients(t))
    torch.testing.assert_close(c1, passed / whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(c0, 1.0 - passed / whole, rtol=1e-11, atol=0)
    torch.testing.assert_close(v, passed * (whole - passed) / whole, rtol=1e-11, atol=0)
