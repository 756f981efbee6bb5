r"""Maximising a likelihood: several starts, L-BFGS-B with exact gradients, Newton steps, observed
information.

Everything happens in :math:`\theta` (logarithms of positive parameters). Starts are searched from the best
one on; a search that comes near the maximum of an earlier one stops there. The last digits are left to Newton
steps with the observed information :math:`-\partial^2\ell/\partial\theta\,\partial\theta^T`, differences of
the exact gradient: unlike a second backward pass they are right for every kernel, also those of gpytorch
whose backward passes are written by hand. Convergence is judged by the Newton decrement
:math:`g^T H^{-1} g`, the squared distance to the optimum in standard errors.

Where a likelihood gives its Fisher information the search is Fisher scoring instead (:mod:`.scoring`).

Source: Byrd, Lu, Nocedal & Zhu 1995 (L-BFGS-B); Nocedal & Wright 2006, sections 3.2 and 9.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.scoring import fisher_scoring
from spatialdiff.kernels.base import DimensionError

_DECREMENT = 1e-4
_STEP = 1e-4
_SINGULAR = 1e10
# a search stops so near to the maximum of an earlier one, in every θ
_NEAR = 0.05
_NEWTON_STEPS = 12
# how far L-BFGS goes before it looks around, in every θ, and how often it may
_REACH, _BOXES = 2.0, 12
# beyond, differences of the gradient are one-sided: half the cost, and an error of a ten-thousandth
_MANY_SITES = 2000


@dataclass
class Optimum:
    """Where the search ended: vector, log-likelihood, observed information, and which parameters stopped at a
    bound."""

    theta: Tensor
    value: float
    information: Tensor
    at_lower: list[bool]
    at_upper: list[bool]
    decrement: float
    evaluations: int
    message: str
    hit_singular: bool

    @property
    def interior(self) -> Tensor:
        """Indices of the parameters that are not at a bound."""
        inside = [
            i
            for i, (low, high) in enumerate(zip(self.at_lower, self.at_upper, strict=True))
            if not (low or high)
        ]
        return torch.tensor(inside, dtype=torch.long)

    @property
    def converged(self) -> bool:
        """Whether a Newton step would move the estimate by less than a hundredth of a standard error."""
        return math.isfinite(self.decrement) and self.decrement < _DECREMENT


class Objective:
    """Minus the log-likelihood per observation with its gradient, counted; a large value where Γ is
    singular."""

    def __init__(self, likelihood: Likelihood) -> None:
        self.likelihood = likelihood
        self.scale = 1.0 / likelihood.data.n_values
        self.evaluations = 0
        self.singular = 0

    def gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Log-likelihood and gradient at ``theta``; raises ``NotPositiveDefiniteError``."""
        self.evaluations += 1
        point = theta.detach().clone().requires_grad_()
        try:
            value = self.likelihood(point)
        except DimensionError as error:
            raise NotPositiveDefiniteError from error
        (slope,) = torch.autograd.grad(value, point)
        if not (torch.isfinite(value) and torch.isfinite(slope).all()):
            raise NotPositiveDefiniteError
        return float(value.detach()), slope

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            value, slope = self.gradient(torch.from_numpy(theta))
        except NotPositiveDefiniteError:
            self.singular += 1
            return _SINGULAR, np.zeros_like(theta)
        return -value * self.scale, -slope.numpy() * self.scale


class _Reached(Exception):
    """The search is where an earlier one ended."""


class _Watched:
    """An objective that ends a search where it comes near the best end of earlier ones, from below."""

    def __init__(self, objective: Objective, ends: Sequence[_End]) -> None:
        self.objective, self.likelihood = objective, objective.likelihood
        self.best = max(ends, key=lambda end: end.value, default=None)
        self.singular = 0

    def gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        value, slope = self.objective.gradient(theta)
        best = self.best
        near = best is not None and float((theta - best.theta).abs().amax()) < _NEAR
        if best is not None and near and value <= best.value + 1e-3:
            raise _Reached
        return value, slope

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        try:
            value, slope = self.gradient(torch.from_numpy(theta))
        except NotPositiveDefiniteError:
            self.objective.singular += 1
            return _SINGULAR, np.zeros_like(theta)
        return -value * self.objective.scale, -slope.numpy() * self.objective.scale


@dataclass(frozen=True)
class _End:
    """Where a search ended, the log-likelihood there, and why it ended."""

    theta: Tensor
    value: float
    message: str


def maximise(likelihood: Likelihood, starts: Sequence[Tensor], max_iterations: int = 200) -> Optimum:
    """Best of the searches from ``starts``, polished by Newton steps, with the observed information there.

    Raises:
        RuntimeError: where the covariance is numerically singular at every start.
    """
    objective = Objective(likelihood)
    bounds = [p.theta_bounds for p in likelihood.model.free]
    distinct = _distinct(starts)
    ranked = sorted((objective(start.numpy().copy())[0], i) for i, start in enumerate(distinct))
    usable = [distinct[i] for value, i in ranked if value < _SINGULAR]
    if not usable:
        raise RuntimeError(
            "the covariance is numerically singular at every starting point, or too wide for the periods of "
            "the grid: add a "
            "Nugget to a very smooth kernel, bound the length scale (bounds={'lengthscale': (low, high)}), "
            "or give start values"
        )
    search = _ascend if likelihood.information(usable[0]) is None else _score
    ends: list[_End] = []
    same = 0
    for start in usable:
        try:
            ends.append(search(_Watched(objective, ends), start, bounds, max_iterations))
        except _Reached:
            same += 1
    best = max(ends, key=lambda end: end.value)
    same += sum(best.value - end.value < 1e-3 for end in ends)
    message = best.message
    if len(usable) > 1:
        message += f"; {same} of {len(usable)} starts lead there"
    evaluated = _polish(objective, best.theta, bounds)
    return Optimum(
        theta=evaluated[0],
        value=evaluated[1],
        information=evaluated[2],
        at_lower=[t <= low + 1e-6 for t, (low, _) in zip(evaluated[0].tolist(), bounds, strict=True)],
        at_upper=[t >= high - 1e-6 for t, (_, high) in zip(evaluated[0].tolist(), bounds, strict=True)],
        decrement=evaluated[3],
        evaluations=objective.evaluations,
        message=message,
        hit_singular=objective.singular > 0,
    )


def _distinct(starts: Sequence[Tensor]) -> list[Tensor]:
    """Starts without repetitions, which clipping to bounds causes."""
    kept: list[Tensor] = []
    for start in starts:
        if not any(bool((start - other).abs().amax() < 1e-3) for other in kept):
            kept.append(start)
    return kept


def _score(
    objective: _Watched, start: Tensor, bounds: Sequence[tuple[float, float]], max_iterations: int
) -> _End:
    end = _End(*fisher_scoring(objective, start, bounds, max_iterations))
    objective.objective.singular += objective.singular
    return end


def _ascend(
    objective: _Watched, start: Tensor, bounds: Sequence[tuple[float, float]], max_iterations: int
) -> _End:
    """L-BFGS-B within boxes around where it is: a line search that leaves the scales of the data ends on a
    plateau, where every site is its own."""
    low, high = (np.array(side) for side in zip(*bounds, strict=True))
    theta = start.numpy().copy()
    for _ in range(_BOXES):
        around = np.maximum(low, theta - _REACH), np.minimum(high, theta + _REACH)
        run = scipy.optimize.minimize(
            objective,
            theta,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(*around, strict=True)),
            # a millionth of a unit of log-likelihood per step; the rest is for Newton's method
            options={
                "maxiter": max_iterations,
                "ftol": max(1e-13, 1e-6 * objective.objective.scale),
                "gtol": 1e-8,
                "maxls": 40,
            },
        )
        theta = np.asarray(run.x, dtype=np.float64)
        at_wall = ((theta <= around[0]) & (theta > low)) | ((theta >= around[1]) & (theta < high))
        if not at_wall.any():
            break
    value = -float(run.fun) / objective.objective.scale
    return _End(torch.from_numpy(theta), value, str(run.message).lower())


def _polish(
    objective: Objective, theta: Tensor, bounds: Sequence[tuple[float, float]]
) -> tuple[Tensor, float, Tensor, float]:
    """Newton steps; the information is computed again after long ones only."""
    value, slope = objective.gradient(theta)
    low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(*bounds, strict=True))
    information, moved, decrement = None, math.inf, math.inf
    for attempt in range(_NEWTON_STEPS):
        if information is None or moved > 1e-2:
            information = observed_information(objective, theta, slope)
        # a parameter is held at its bound only if the likelihood pushes it there
        inside = ~(((theta <= low + 1e-6) & (slope <= 0)) | ((theta >= high - 1e-6) & (slope >= 0)))
        if not bool(inside.any()):
            return theta, value, information, 0.0
        h, g = information[inside][:, inside], slope[inside]
        if not bool(torch.isfinite(h).all()):
            return theta, value, information, math.inf
        eigenvalues, vectors = torch.linalg.eigh(h)
        # directions in which the likelihood is flat carry no information on where the optimum is
        curved = eigenvalues > 1e-9 * eigenvalues.abs().amax()
        coefficients = vectors.T @ g
        decrement = float((coefficients[curved].square() / eigenvalues[curved]).sum())
        if decrement < 1e-2 * _DECREMENT or attempt == _NEWTON_STEPS - 1:
            break
        step = torch.zeros_like(theta)
        step[inside] = vectors[:, curved] @ (coefficients[curved] / eigenvalues[curved])
        candidate = torch.minimum(torch.maximum(theta + step.clamp(-1.0, 1.0), low), high)
        try:
            new_value, new_slope = objective.gradient(candidate)
        except NotPositiveDefiniteError:
            break
        if new_value <= value:
            break
        moved = math.sqrt(max(decrement, 0.0))
        theta, value, slope = candidate, new_value, new_slope
    assert information is not None
    return theta, value, information, decrement


def observed_information(objective: Objective, theta: Tensor, slope: Tensor) -> Tensor:
    """Minus the Hessian of the log-likelihood, by central differences of the gradient; one-sided at a bound,
    at a singular edge, and where there are many sites."""
    rows = []
    bounds = [p.theta_bounds for p in objective.likelihood.model.free]
    many = objective.likelihood.data.flat().shape[-1] > _MANY_SITES
    for j in range(len(theta)):
        step = torch.zeros_like(theta)
        step[j] = _STEP
        sides: list[tuple[float, Tensor]] = []
        for sign in (1.0, -1.0):
            if not bounds[j][0] <= float(theta[j]) + sign * _STEP <= bounds[j][1] or (many and sides):
                continue
            try:
                sides.append((sign, objective.gradient(theta + sign * step)[1]))
            except NotPositiveDefiniteError:
                continue
        if len(sides) == 2:
            rows.append((sides[0][1] - sides[1][1]) / (2.0 * _STEP))
        elif sides:
            rows.append(sides[0][0] * (sides[0][1] - slope) / _STEP)
        else:
            rows.append(torch.full_like(theta, math.nan))
    hessian = torch.stack(rows)
    return -0.5 * (hessian + hessian.T)
