"""Coefficients that are kept for a time carry the graph of that time, and not that of another."""

from __future__ import annotations

import torch

import spatialdiff as sd


def process():
    return sd.LearnedDiffusion(sd.white(sd.Grid((4, 4))), 3, ("Q", "D", "S", "beta"))


def slope(law, t):
    for parameter in law.learned_parameters():
        parameter.grad = None
    (law.alpha(t).sum() + law.marginal(t)[1].sum()).backward()
    return [parameter.grad.clone() for parameter in law.learned_parameters()]


def test_every_backward_pass_has_a_graph_of_its_own():
    law, t = process(), torch.tensor([0.2, 0.5], dtype=torch.float64)
    with torch.no_grad():
        law.alpha(t)  # kept without a graph
    first = slope(law, t)
    assert all(bool((gradient != 0).any()) for gradient in first[:2])
    second = slope(law, t)  # the graph of the first pass is gone
    fresh = slope(process(), t.clone())
    for a, b, c in zip(first, second, fresh, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)


def test_equal_times_that_are_variables_of_their_own_get_their_own_gradient():
    law = process()
    t, other = (torch.tensor([0.3], dtype=torch.float64, requires_grad=True) for _ in range(2))
    law.alpha(t)
    law.alpha(other).sum().backward()
    assert t.grad is None
    assert bool((other.grad < 0).all())


def test_parameters_that_moved_are_seen():
    law, t = process(), torch.tensor([0.3], dtype=torch.float64)
    before = law.alpha(t).detach()
    with torch.no_grad():
        law.learned_parameters()[1].mul_(1.3)
    assert not torch.equal(before, law.alpha(t).detach())
