r"""Maximising a likelihood: starts from the data, L-BFGS-B with exact gradients, Newton polish, observed
information.

Everything happens in :math:`\theta` (logarithms of positive parameters). The observed information
:math:`-\partial^2\ell/\partial\theta\,\partial\theta^T` is the central difference of the exact gradient:
unlike a second backward pass it is right for every kernel, also those of gpytorch whose backward passes are
written by hand. Convergence is judged by the Newton decrement :math:`g^T H^{-1} g`, the squared distance to
the optimum in standard errors.

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
from spatialdiff.kernels.base import DimensionError

_DECREMENT = 1e-4
_STEP = 1e-4


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


class _Objective:
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
            return 1e10, np.zeros_like(theta)
        return -value * self.scale, -slope.numpy() * self.scale


def maximise(likelihood: Likelihood, starts: Sequence[Tensor], max_iterations: int = 200) -> Optimum:
    """Best of L-BFGS-B runs from ``starts``, polished by Newton steps, with the observed information there.

    Raises:
        RuntimeError: where the covariance is numerically singular at every start.
    """
    objective = _Objective(likelihood)
    model = likelihood.model
    bounds = [p.theta_bounds for p in model.free]
    best = None
    for start in starts:
        first, _ = objective(start.numpy().copy())
        if first >= 1e10:
            continue
        run = scipy.optimize.minimize(
            objective,
            start.numpy().copy(),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": max_iterations, "ftol": 1e-13, "gtol": 1e-8, "maxls": 40},
        )
        if best is None or run.fun < best.fun - 1e-12:
            best = run
    if best is None:
        raise RuntimeError(
            "the covariance is numerically singular at every starting point, or too wide for the periods of "
            "the grid: add a "
            "Nugget to a very smooth kernel, bound the length scale (bounds={'lengthscale': (low, high)}), "
            "or give start values"
        )
    theta = torch.from_numpy(np.asarray(best.x, dtype=np.float64))
    evaluated = _polish(objective, theta, bounds)
    return Optimum(
        theta=evaluated[0],
        value=evaluated[1],
        information=evaluated[2],
        at_lower=[t <= low + 1e-6 for t, (low, _) in zip(evaluated[0].tolist(), bounds, strict=True)],
        at_upper=[t >= high - 1e-6 for t, (_, high) in zip(evaluated[0].tolist(), bounds, strict=True)],
        decrement=evaluated[3],
        evaluations=objective.evaluations,
        message=str(best.message),
        hit_singular=objective.singular > 0,
    )


def _polish(
    objective: _Objective, theta: Tensor, bounds: Sequence[tuple[float, float]]
) -> tuple[Tensor, float, Tensor, float]:
    value, slope = objective.gradient(theta)
    decrement = math.inf
    for attempt in range(3):
        information = observed_information(objective, theta, slope)
        low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(*bounds, strict=True))
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
        if decrement < 1e-2 * _DECREMENT or attempt == 2:
            break
        step = torch.zeros_like(theta)
        step[inside] = vectors[:, curved] @ (coefficients[curved] / eigenvalues[curved])
        candidate = torch.minimum(torch.maximum(theta + step.clamp(-0.5, 0.5), low), high)
        try:
            new_value, new_slope = objective.gradient(candidate)
        except NotPositiveDefiniteError:
            break
        if new_value <= value:
            break
        theta, value, slope = candidate, new_value, new_slope
    return theta, value, information, decrement


def observed_information(objective: _Objective, theta: Tensor, slope: Tensor) -> Tensor:
    """Minus the Hessian of the log-likelihood, by central (at a bound or a singular edge: one-sided)
    differences of the gradient."""
    rows = []
    bounds = [p.theta_bounds for p in objective.likelihood.model.free]
    for j in range(len(theta)):
        step = torch.zeros_like(theta)
        step[j] = _STEP
        sides = []
        for sign in (1.0, -1.0):
            if not bounds[j][0] <= float(theta[j]) + sign * _STEP <= bounds[j][1]:
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
