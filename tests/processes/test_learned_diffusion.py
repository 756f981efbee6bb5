"""Processes that are learned: the shared case off their start, and validity for any parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_case import F64, LinearProcessCase
from moments import dense_gamma, generator, normal
from scipy.special import expit

from spatialdiff.covariance import white
from spatialdiff.domains import Grid
from spatialdiff.processes import CLD, MALDA, VP, LearnedBeta, LearnedDiffusion, LinearBeta, LinearDiffusion


def disturb(process, seed=5, size=0.3):
    """Move every parameter that is learned off its start."""
    with torch.no_grad():
        for i, parameter in enumerate(process.learned_parameters()):
            if parameter not in set(process.covariance.parameters()):
                parameter.add_(size * normal(*parameter.shape, seed=seed + i))
    return process


def learned_rate(process):
    """β(t) of the schedule's parameters, in numpy: a constant and logistic densities cut at 0 and T."""
    with torch.no_grad():
        schedule = process.schedule
        total = float(schedule.total)
        weights = total * torch.softmax(schedule.log_weights, 0).numpy()
        slopes, centres = schedule.log_slopes.exp().numpy().copy(), schedule.centres.numpy().copy()
    horizon = process.horizon
    share = expit(slopes * (horizon - centres)) - expit(-slopes * centres)

    def rate(t):
        z = slopes * (t - centres)
        bumps = slopes * expit(z) * expit(-z) / share
        return weights[0] / horizon + float(weights[1:] @ bumps)

    return rate


class LearnedCase(LinearProcessCase):
    is_stationary = True
    learn: tuple[str, ...] = ("Q", "D", "S", "beta")

    def make(self, gamma):
        beta = LearnedBeta(total=6.0, units=5)
        return disturb(LearnedDiffusion(gamma, self.variables, self.learn, mass=0.5, beta=beta))

    def matrices(self, process, t):
        rate = learned_rate(process)(t)
        with torch.no_grad():
            M, L, C = (p.numpy() for p in (process.skew, process.dissipation, process.law_factor))
        L, C = np.tril(L), np.tril(C, -1) + np.diag(np.exp(np.diag(C)))
        D = L @ L.T + process.floor * np.eye(len(L))
        return -rate * (M - M.T + D) @ np.linalg.inv(C @ C.T), 2.0 * rate * D


class TestLearnedDiffusion2(LearnedCase):
    variables = 2


class TestLearnedDiffusion3(LearnedCase):
    variables = 3


class TestLearnedScalar(LearnedCase):
    variables = 1
    learn = ("D", "S", "beta")


class TestLearnedTimeOfCLD(LinearProcessCase):
    """Fixed matrices under a schedule that is learned."""

    variables = 2
    is_stationary = True

    def make(self, gamma):
        process = CLD(gamma, mass=0.25, beta=LearnedBeta(total=4.0, units=4))
        with torch.no_grad():
            for i, parameter in enumerate(process.schedule.parameters()):
                parameter.add_(0.2 * normal(*parameter.shape, seed=i))
        return process

    def matrices(self, process, t):
        rate = learned_rate(process)(t)
        return rate * np.array([[0.0, 4.0], [-1.0, -4.0]]), rate * np.diag([0.0, 2.0])


@pytest.mark.parametrize("variables", [2, 3])
def test_it_starts_as_malda(variables):
    beta = LinearBeta(0.5, 6.0)
    learned = LearnedDiffusion(dense_gamma(), variables, ("Q", "D"), beta=beta, floor=1e-9)
    malda = MALDA(dense_gamma(), variables, beta=beta)
    for t in (0.2, 1.0):
        for ours, theirs in zip(learned.marginal(t), malda.marginal(t), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_one_variable_starts_as_vp():
    learned = LearnedDiffusion(dense_gamma(), 1, ("D",), beta=LinearBeta(0.1, 20.0))
    t = torch.linspace(0.0, 1.0, 7, dtype=F64)
    torch.testing.assert_close(learned.alpha(t)[1:], VP(dense_gamma()).alpha(t)[1:], rtol=0.0, atol=1e-2)
    assert learned.stationary.item() == 1.0


@pytest.mark.parametrize("variables", [2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_every_value_of_the_parameters_is_a_process(variables, seed):
    """Q skew, D ⪰ εI, S ≻ 0, A stable, the stationary law kept: at parameters of any size."""
    process = disturb(
        LearnedDiffusion(dense_gamma(), variables, ("Q", "D", "S", "beta")), seed=10 * seed, size=1.5
    )
    Q, D, S = (m.detach() for m in process.dynamics())
    assert torch.equal(Q, -Q.mT)
    assert float(torch.linalg.eigvalsh(D).min()) > 0.5 * process.floor
    assert float(torch.linalg.eigvalsh(S).min()) > 0.0
    A, G, _ = (m.detach() for m in process.matrices())
    assert float(torch.linalg.eigvals(A).real.max()) < 0.0
    scale = float((A.abs() @ S.abs()).max())
    torch.testing.assert_close(A @ S + S @ A.mT, -G, rtol=0, atol=1e-12 * scale)
    u, _ = process.perturb(normal(2, 1, 2, 3), torch.tensor([0.01, 0.9]), generator=generator(1))
    assert torch.isfinite(u).all()


@pytest.mark.parametrize("name", ["Q", "D", "S", "beta", "covariance"])
def test_only_what_is_named_is_learned(name):
    gamma = dense_gamma().requires_grad_(False)
    process = LearnedDiffusion(gamma, 3, (name,), beta=LinearBeta(0.5, 6.0))
    trained = {n for n, p in process.named_parameters() if p.requires_grad}
    of = {"Q": {"skew"}, "D": {"dissipation"}, "S": {"law_factor"}}
    if name == "beta":
        assert trained == {n for n, _ in process.named_parameters() if n.startswith("schedule.")}
    elif name == "covariance":
        assert trained == {n for n, _ in process.named_parameters() if n.startswith("covariance.")}
    else:
        assert trained == of[name]
    assert len(process.learned_parameters()) == len(trained) > 0
    # the gradient at the very start is finite and not zero, also at the data and where S is degenerate
    t = torch.tensor([0.0, 1e-4, 0.02, 0.7], dtype=F64)
    u, _ = process.perturb(normal(4, 1, 2, 3), t, generator=generator(1))
    gradients = torch.autograd.grad((u * normal(*u.shape, seed=7)).sum(), process.learned_parameters())
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    assert any(float(g.abs().max()) > 1e-6 for g in gradients)


def test_a_law_kept_without_gradients_is_not_used_with_them():
    process = LearnedDiffusion(dense_gamma(), 2, ("Q", "D"))
    t = torch.tensor([0.3, 0.6], dtype=F64)
    with torch.no_grad():
        kept = process.marginal(t)[1]
    again = process.marginal(t)[1]
    assert again.requires_grad
    torch.testing.assert_close(again, kept, rtol=0, atol=0)


def test_a_step_of_descent_moves_the_law():
    """One step on a simple target: the law at one time comes closer to it."""
    process = LearnedDiffusion(dense_gamma().requires_grad_(False), 2, ("Q", "D", "S"))
    target = torch.tensor([[0.5, 0.1], [0.1, 0.4]], dtype=F64)
    optimiser = torch.optim.SGD(process.learned_parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = (process.marginal(0.4)[1] - target).square().sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]


def test_gradients_in_fixed_matrices():
    """A and G of any linear diffusion are differentiable through draws, information and steps."""
    process = LinearDiffusion(
        white(Grid((2,))).double(),
        [[-0.3, 3.0], [-1.0, -2.0]],
        [[0.4, 0.3], [0.3, 1.0]],
        beta=LinearBeta(0.5, 3.0),
    )
    x, z, t = normal(2, 1, 2), normal(2, 2, 2, seed=1), torch.tensor([0.02, 0.7], dtype=F64)

    class Through(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.process = process

        def forward(self):
            u, _ = process.perturb(x, t, white=z)
            a, b, v = process.posterior(t, 0.5 * t)
            return u, process.information(t).log(), a, b, v, process.gamma_score(u, t, x)

    def value(A, G):
        matrices = {"process._drift": A, "process._diffusion": 0.5 * (G + G.mT)}
        return torch.func.functional_call(Through(), matrices, ())

    A, G = (m.clone().requires_grad_() for m in (process.A, process.G))
    assert torch.autograd.gradcheck(
        value, (A, G), rtol=1e-4, atol=1e-6, check_undefined_grad=False, fast_mode=True
    )


def test_bad_choices_are_named():
    gamma = dense_gamma()
    with pytest.raises(ValueError, match="it is a sequence out of Q, D, S, beta, covariance"):
        LearnedDiffusion(gamma, 2, ("Q", "gamma"))
    with pytest.raises(ValueError, match="it is a sequence out of"):
        LearnedDiffusion(gamma, 2, "QD")
    with pytest.raises(ValueError, match=r"floor was 0\.0; it must be a positive"):
        LearnedDiffusion(gamma, 2, floor=0.0)
    with pytest.raises(ValueError, match="has no parameters"):
        LearnedDiffusion(white(Grid((2, 3))), 2, ("covariance",))
