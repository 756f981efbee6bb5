"""The exact flow of Gaussian data against an independent integration of its linear equation."""

import itertools

import pytest
import torch

import spatialdiff as sd
from spatialdiff.kernels import Matern
from spatialdiff.processes import ConstantBeta
from spatialdiff.processes.flow import MANY, flow_step
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.processes.rotating_frame import RotatingFrame

GRID = sd.Grid((4,), periodic=True)
GAMMA = sd.TorusCovariance(Matern(nu=1.5, lengthscale=0.8), GRID).double().requires_grad_(False)
RATIOS = torch.tensor([0.0, 1e-2, 1.0, 50.0], dtype=torch.float64)


def random_process():
    draw = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return sd.LinearDiffusion.from_stationary(
        GAMMA,
        0.5 * (draw[0] - draw[0].T),
        0.3 * draw[1] @ draw[1].T + 0.2 * torch.eye(4, dtype=torch.float64),
        torch.diag(torch.tensor([1.0, 0.5, 0.8, 0.3], dtype=torch.float64)),
        beta=ConstantBeta(1.5),
    )


def modal_process():
    speed = 1.0 + 0.5 * torch.arange(3, dtype=torch.float64)[:, None, None]
    drift = torch.tensor([[0.0, 2.0], [-0.5, -2.0]], dtype=torch.float64)
    noise = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))
    return sd.LinearDiffusion(GAMMA, speed * drift, speed * noise, beta=ConstantBeta(1.5))


LAWS = {
    "CLD": sd.CLD(GAMMA),
    "CLD from rest": sd.CLD(GAMMA, initial=[0.0]),
    "ALDA": sd.ALDA(GAMMA, beta=ConstantBeta(3.0)),
    "MALDA": sd.MALDA(GAMMA, 3),
    "random K=4": random_process(),
    "modal K=2": modal_process(),
    "pinned CLD": sd.IndependentField(0.8).law(LinearBridge(sd.CLD(GAMMA, beta=ConstantBeta(1.0)))),
}


def basis_fields(law):
    """One state per variable, the same number at every site and in every mode: the columns of the identity.

    A unit at one site has the same coefficient in every Fourier mode.
    """
    states = torch.zeros(law.variables, law.variables, *GRID.shape, dtype=torch.float64)
    for j in range(law.variables):
        states[j, j, 0] = 1.0
    return states


def columns(law, states):
    """Back from states to matrices `([modes], K, J)`."""
    if law.basis is None:
        return states[:, :, 0].mT
    unit = torch.zeros(GRID.shape, dtype=torch.float64)
    unit[0] = 1.0
    return (law.basis.analyze(states) / law.basis.analyze(unit)).real.permute(2, 1, 0)


def integrated(law, t, s, ratio, steps):
    """M and W by Runge–Kutta steps of the law's own `velocity`, with the Gaussian posterior mean and its
    residual; nothing of `flow` is used.
    """
    start = 1.0 + ratio * law.information(t)

    def rate(u, time):
        phi, sigma = law.marginal(time)
        total = ratio * phi[..., :, None] * phi[..., None, :] + sigma
        gain = ratio * torch.linalg.solve(total, phi[..., None]).mT
        mean = law.mix(gain, u)
        # the last column is driven by the residual r = (1 + ρI_t)/(1 + ρI) at every site 0
        force = torch.zeros_like(mean)
        share = start / (1.0 + ratio * law.information(time))
        if law.basis is None:
            force[-1, 0, 0] = share
        else:
            unit = torch.zeros_like(mean[-1:])
            unit[0, 0, 0] = 1.0
            force[-1:] = law.scale(share, unit)
        return law.velocity(u, mean + force, time)

    u = torch.cat([basis_fields(law), torch.zeros(1, law.variables, *GRID.shape, dtype=torch.float64)])
    # steps even in the logarithm of the distance to the data
    shares = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    far, near = (t - law.end_time).abs(), (s - law.end_time).abs()
    sign = 1.0 if law.start_time > law.end_time else -1.0
    times = law.end_time + sign * far * (near / far) ** shares
    for a, b in itertools.pairwise(times):
        h, middle = b - a, 0.5 * (a + b)
        one = rate(u, a)
        two = rate(u + 0.5 * h * one, middle)
        three = rate(u + 0.5 * h * two, middle)
        u = u + h / 6.0 * (one + 2.0 * two + 2.0 * three + rate(u + h * three, b))
    found = columns(law, u)
    return found[..., :-1], found[..., -1]


@pytest.mark.parametrize("name", ["CLD", "random K=4", "modal K=2", "pinned CLD"])
def test_against_an_integration_of_the_velocity(name):
    law = LAWS[name]
    t, s = torch.tensor([0.7, 0.35], dtype=torch.float64) * law.horizon
    if law.start_time < law.end_time:
        t, s = law.horizon - t, law.horizon - s
    ratio = torch.tensor(1.7, dtype=torch.float64)
    step = flow_step(law, t, s, ratio)
    M, W = integrated(law, t, s, ratio, steps=80)
    assert torch.allclose(step.M, M, atol=2e-4, rtol=0)
    assert torch.allclose(step.W, W, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("span", [(0.9, 0.3), (0.5, 0.0), (1.0, 0.05)])
def test_the_flow_carries_the_covariance_and_composes(name, span):
    """`M P_t Mᵀ = P_s`, and two steps are one; `W = (1 + ρI_t)(φ_s - M φ_t)` also where it is integrated."""
    law = LAWS[name]
    t, s = torch.tensor(span, dtype=torch.float64) * law.horizon
    middle = 0.4 * law.horizon if float(s) < 0.4 * law.horizon < float(t) else 0.5 * (float(t) + float(s))
    if law.start_time < law.end_time:
        t, s, middle = law.horizon - t, law.horizon - s, law.horizon - middle
    ratio = RATIOS[1:] if law.basis is None else RATIOS[1:, None].expand(-1, 3)
    step = flow_step(law, t, s, ratio)
    frame = RotatingFrame(law, ratio)

    def marginal(time):
        phi, sigma = (frame.lift(part[None])[0] for part in law.marginal(time))
        return phi, ratio[..., None, None] * phi[..., :, None] * phi[..., None, :] + sigma

    (phi_t, P_t), (phi_s, P_s) = marginal(t), marginal(s)
    assert torch.allclose(step.M @ P_t @ step.M.mT, P_s, atol=1e-8)
    first, second = flow_step(law, t, middle, ratio), flow_step(law, middle, s, ratio)
    assert torch.allclose((second.M @ first.M)[..., 0, :], step.M[..., 0, :], atol=1e-7)
    load = (1.0 + ratio * frame.lift(law.information(t)[None])[0])[..., None]
    expected = load * (phi_s - (step.M @ phi_t[..., None])[..., 0])
    assert torch.allclose(step.W[..., 0], expected[..., 0], atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        sd.VP,
        sd.VE,
        sd.Rectified,
        lambda gamma: sd.OrnsteinUhlenbeck(gamma, 0.1, horizon=1.0),
        # the state is not scaled as the statistic is
        lambda gamma: sd.LinearDiffusion(gamma, [[-0.1]], [[1.0]], beta=sd.processes.ConstantBeta(5.0)),
        lambda gamma: sd.processes.LearnedDiffusion(gamma, 1, learn=("S",)),
    ],
)
def test_one_variable_is_the_closed_form(make):
    law = make(GAMMA)
    t, s = torch.tensor([0.8, 0.3], dtype=torch.float64)
    step = flow_step(law, t, s, RATIOS)

    def marginal(time):
        phi, sigma = law.marginal(time)
        return phi[..., 0], phi[..., 0] ** 2 * RATIOS + sigma[..., 0, 0]

    (now, before), (then, after) = marginal(t), marginal(s)
    growth = (after / before).sqrt()
    load = 1.0 + RATIOS * law.information(t)
    assert torch.allclose(step.M[:, 0, 0], growth)
    assert torch.allclose(step.W[:, 0], load * (then - growth * now))
    # the general method, which does not know the closed form
    M, W = (part[0] for part in RotatingFrame(law, RATIOS).steps(torch.stack([t, s]), 1e-9))
    assert torch.allclose(M, step.M)
    assert torch.allclose(W, step.W, atol=1e-8)


def test_a_late_step_does_not_cancel():
    """Near the data `φ_s - M φ_t` is 1e-9 of its terms; W keeps its digits there."""
    law = LAWS["CLD"]
    t, s = torch.tensor([1e-3, 5e-4], dtype=torch.float64)
    ratio = torch.tensor([10.0], dtype=torch.float64)
    assert float(law.information(t)) > 1e7
    whole = flow_step(law, t, s, ratio)
    halves = [flow_step(law, a, b, ratio) for a, b in ((t, 0.75e-3), (0.75e-3, s))]
    # r ∝ 1/(1 + ρI): the second half starts with less of it
    share = (1.0 + ratio * law.information(t)) / (1.0 + ratio * law.information(0.75e-3))
    added = (halves[1].M @ halves[0].W[..., None])[..., 0] + share * halves[1].W
    assert torch.allclose(whole.W, added, rtol=1e-7, atol=1e-12)


def test_many_ratios_are_those_of_each():
    law = LAWS["MALDA"]
    generator = torch.Generator().manual_seed(0)
    ratio = torch.exp(4.0 * torch.randn(20, 30, generator=generator, dtype=torch.float64))
    ratio[3, 4] = 0.0
    assert ratio.numel() > MANY
    t, s = torch.tensor([0.5, 0.4], dtype=torch.float64)
    many = flow_step(law, t, s, ratio)
    for i, j in ((0, 0), (3, 4), (19, 29), (7, 11)):
        one = flow_step(law, t, s, ratio[i, j])
        assert torch.allclose(many.M[i, j], one.M, atol=1e-8)
        assert torch.allclose(many.W[i, j], one.W, atol=1e-8)


def test_a_fast_rotation_over_a_short_step():
    """ALDA turns by a hundred radians at the noise end while the distance to the data falls by a fifth."""
    law = sd.ALDA(GAMMA)
    t, middle, s = torch.tensor([1.0, 0.9, 0.8], dtype=torch.float64)
    whole = flow_step(law, t, s, RATIOS).M
    assert torch.allclose(
        flow_step(law, middle, s, RATIOS).M @ flow_step(law, t, middle, RATIOS).M, whole, atol=1e-8
    )


def test_a_step_to_the_data_where_there_are_none():
    """`ρ = 0` to the very end: W there is `φ_s - M φ_t`; its integral, without bound, is not asked."""
    law = sd.CLD(GAMMA)
    t, s = torch.tensor([0.0644, 0.0], dtype=torch.float64)
    step = flow_step(law, t, s, torch.tensor([0.0, 1e-12, 1.0], dtype=torch.float64))
    phi, end = law.marginal(t)[0], law.marginal(s)[0]
    assert torch.allclose(step.W[0], end - (step.M[0] @ phi), atol=1e-12, rtol=1e-10)
    assert float(step.M[0, 0].abs().max()) < 1e-10


def test_bad_input():
    with pytest.raises(ValueError, match="endpoint, angle"):
        flow_step(LAWS["CLD"], 0.5, 0.4, 1.0, frame="polar")
    fixed = sd.FixedPoint(0.0).law(LinearBridge(sd.CLD(GAMMA)))
    with pytest.raises(RuntimeError, match="no probability flow"):
        flow_step(fixed, 0.1, 0.2, 1.0)
    with pytest.raises(RuntimeError, match="doublings"):
        flow_step(LAWS["CLD"], 0.9, 0.1, 1.0, tolerance=1e-30)
