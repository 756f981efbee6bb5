"""Fisher scoring: the optimum of L-BFGS, from afar, at bounds, and where the information says little."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

import spatialdiff as sd
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.vecchia import VecchiaLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.optimise import Objective
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.scoring import fisher_scoring
from spatialdiff.kernels import Matern, Nugget

TRUE = Matern(nu=1.5, lengthscale=0.1, variance=1.5) + Nugget(0.2)
BOUNDS = [(-9.0, 4.0)] * 3


def drawn(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    points = sd.Points(torch.rand(n, 2, generator=g, dtype=torch.float64))
    with torch.no_grad():
        return points, sd.VecchiaCovariance(TRUE, points, neighbors=30).double().sample(generator=g)


def objective(n=400):
    points, y = drawn(n)
    return Objective(VecchiaLikelihood(KernelParameters(TRUE), observe(y, points), neighbors=15))


def by_lbfgs(objective, start, bounds):
    run = scipy.optimize.minimize(
        objective,
        start.numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-15, "gtol": 1e-9},
    )
    return torch.from_numpy(run.x), -run.fun / objective.scale


def test_scoring_finds_the_optimum_of_lbfgs_in_fewer_evaluations():
    ours, theirs = objective(), objective()
    start = ours.likelihood.model.start() + 0.5
    theta, value, message = fisher_scoring(ours, start, BOUNDS)
    best, best_value = by_lbfgs(theirs, start, BOUNDS)
    assert "converged" in message
    # half the decrement at which it stops
    assert value == pytest.approx(best_value, abs=1e-5)
    errors = torch.linalg.inv(ours.likelihood.information(best)).diagonal().sqrt()
    assert float(((theta - best).abs() / errors).max()) < 1e-2
    assert ours.evaluations <= 12 < theirs.evaluations + 4


@pytest.mark.parametrize(
    "shift", [(3, 0, 0), (-3, 0, 0), (0, 4, 0), (0, -4, 0), (0, 0, 4), (0, 0, -4), (2, 4, -4), (-2, -3, 3)]
)
def test_far_starts_lead_to_the_same_optimum(shift):
    ours = objective()
    start = ours.likelihood.model.start()
    best = fisher_scoring(ours, start, BOUNDS)[1]
    _, value, message = fisher_scoring(ours, start + torch.tensor(shift, dtype=torch.float64), BOUNDS)
    assert value == pytest.approx(best, abs=1e-4), message


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("side", [-1, 1])
def test_bounds_hold(index, side):
    ours = objective()
    model = ours.likelihood.model
    best = fisher_scoring(ours, model.start(), BOUNDS)[0]
    bounds = list(BOUNDS)
    edge = float(best[index]) + 0.4 * side
    bounds[index] = (edge, 4.0) if side > 0 else (-9.0, edge)
    start = best.clone()
    start[index] = edge + 0.8 * side
    theta, value, message = fisher_scoring(ours, start, bounds)
    _, expected = by_lbfgs(ours, start, bounds)
    assert float(theta[index]) == edge
    assert value == pytest.approx(expected, abs=1e-5), message


class Quadratic:
    """``-½ (θ - o)ᵀ H (θ - o)``, with an information that may be another matrix."""

    def __init__(self, optimum, curvature, information=None):
        self.optimum, self.curvature = torch.tensor(optimum).double(), torch.tensor(curvature).double()
        self.matrix = self.curvature if information is None else torch.tensor(information).double()
        self.likelihood, self.singular = self, 0

    def information(self, theta):
        return self.matrix

    def gradient(self, theta):
        off = theta - self.optimum
        return -0.5 * float(off @ self.curvature @ off), -self.curvature @ off


def test_a_step_that_leaves_at_a_corner_does_not_stop_the_rest():
    # the slope at 0 points inwards along both axes, Newton's step outwards along the first
    inverse = np.array([[1.0, -0.9], [-0.9, 1.0]])
    problem = Quadratic([-0.5, 2.0], np.linalg.inv(inverse).tolist())
    slope = problem.gradient(torch.zeros(2).double())[1]
    assert bool((slope > 0).all())
    theta, value, message = fisher_scoring(problem, torch.zeros(2).double(), [(0.0, 9.0)] * 2)
    run = scipy.optimize.minimize(
        lambda x: -problem.gradient(torch.from_numpy(x))[0], [1.0, 1.0], bounds=[(0.0, 9.0)] * 2
    )
    assert "converged" in message
    np.testing.assert_allclose(theta.numpy(), run.x, atol=1e-2)
    assert value == pytest.approx(-run.fun, abs=1e-4)


def test_information_of_deficient_rank_is_damped():
    problem = Quadratic([1.0, -2.0], [[2.0, 0.5], [0.5, 1.0]], [[2.0, 2.0], [2.0, 2.0]])
    theta, _, _ = fisher_scoring(problem, torch.zeros(2).double(), [(-9.0, 9.0)] * 2)
    torch.testing.assert_close(theta, problem.optimum, atol=0.02, rtol=0.0)


def test_singular_places_shorten_steps():
    class Cliff(Quadratic):
        def gradient(self, theta):
            if float(theta[0]) > 1.3:
                raise NotPositiveDefiniteError
            return super().gradient(theta)

    problem = Cliff([1.2], [[1.0]], [[0.3]])
    theta, _, message = fisher_scoring(problem, torch.tensor([0.5]).double(), [(-9.0, 9.0)])
    assert problem.singular > 0
    assert "converged" in message
    assert float(theta) == pytest.approx(1.2, abs=0.01)


def test_it_says_when_steps_run_out():
    ours = objective()
    message = fisher_scoring(ours, ours.likelihood.model.start() + 2.0, BOUNDS, max_iterations=1)[2]
    assert "1 steps were not enough" in message


def test_twenty_thousand_points_are_fitted():
    points, y = drawn(20_000)
    start = Matern(nu=1.5, lengthscale=0.3) + Nugget(0.5)
    found = sd.fit(start, y + 3.0, points, method="vecchia", neighbors=15, starts=1)
    assert found.converged
    for name, true in (("lengthscale", 0.1), ("variance", 1.5), ("nugget", 0.2)):
        assert abs(found.parameters[name] - true) < 4.5 * found.standard_errors[name]
