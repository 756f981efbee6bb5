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

from spatialdiff.domains import Grid
from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.validity import keep_valid
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


def set_bounds(model: KernelParameters, data: Observations) -> None:
    """Narrow each free parameter to what a grid and its data can tell anything about; bounds given are kept.

    - length scales: a twentieth of the spacing to a hundred times the extent, or to the shortest period where
      images must be summed, since that takes ever longer;
    - variances: 1e-8 to 1e6 times that of the data;
    - other positive parameters: a millionth to a million times their start;
    - all: to where the kernel is positive definite in the dimension of the grid.
    """
    grid = data.grid
    variance = float(data.variance().mean())
    keep_valid(model, grid.ndim)
    for p in model.free:
        if p.bounded_by_user or not p.log:
            continue
        if p.is_lengthscale:
            closed = all(grid.periodic) and model.torus_density(model.start(), grid) is not None
            periods = [e for e, wraps in zip(grid.extent, grid.periodic, strict=True) if wraps and not closed]
            low, high = min(grid.spacing) / 20.0, min(periods) if periods else max(grid.extent) * 100.0
        elif p.is_variance:
            low, high = variance * 1e-8, variance * 1e6
        else:
            low, high = p.start * 1e-6, p.start * 1e6
        p.lower, p.upper = max(p.lower, low), min(p.upper, high)


def starting_points(model: KernelParameters, data: Observations, number: int) -> list[Tensor]:
    """``number`` starts: length scales from the data's correlation length times 1, 1/4, 4, 1/16, ..., then
    the kernel's own values.

    Several components get length scales a factor 4 apart. Variances are shared out equally, a tenth to
    nuggets, and scaled so that ``k(0)`` is the variance of the data.
    """
    grid = data.grid
    ranges = correlation_lengths(data)
    free = model.free
    base = model.start()
    owners = list(dict.fromkeys(p.path for p in free if p.is_lengthscale))
    variance = float(data.variance().mean())
    own = [_clip(model, base)]
    starts = []
    for k in range(number - 1 if number > 1 else number):
        factor = 4.0 ** ((k + 1) // 2 * (-1) ** k)
        theta = base.clone()
        for i, p in enumerate(free):
            if p.is_lengthscale:
                lengths = [r for r in ranges if math.isfinite(r)]
                typical = math.exp(sum(map(math.log, lengths)) / len(lengths))
                length = ranges[p.index] if p.name.endswith("]") and p.index < len(ranges) else typical
                spread = 4.0 ** (owners.index(p.path) - (len(owners) - 1) / 2.0)
                theta[i] = p.to_theta(min(max(length * factor * spread, p.lower), p.upper))
            elif p.is_variance:
                theta[i] = p.to_theta(variance * (0.1 if p.is_nugget and len(free) > 1 else 1.0))
        starts.append(_clip(model, _match_variance(model, theta, variance, grid)))
    return starts + own if number > 1 else starts


def correlation_lengths(data: Observations) -> list[float]:
    """Distance along each axis at which the data's correlation falls to 1/e, at least half a spacing, at most
    the extent."""
    grid = data.grid
    lengths = []
    for axis, (n, h) in enumerate(zip(grid.shape, grid.spacing, strict=True)):
        values = data.values.movedim(axis + 2, -1)
        spectrum = torch.fft.rfft(values, 2 * n, dim=-1).abs().square().flatten(0, -2).mean(0)
        lags = torch.arange(1, n + 1)
        correlation = torch.fft.irfft(spectrum, 2 * n)[:n] / (n + 1 - lags)
        correlation = correlation / correlation[0]
        below = (correlation < math.exp(-1.0)).nonzero()
        if len(below) == 0 or n == 1:
            lengths.append(max(grid.extent[axis] / 2.0, h / 2.0))
            continue
        first = int(below[0, 0])
        c0, c1 = float(correlation[first - 1]), float(correlation[first])
        lengths.append(max(h * (first - 1 + (c0 - math.exp(-1.0)) / (c0 - c1)), h / 2.0))
    return lengths


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


def _clip(model: KernelParameters, theta: Tensor) -> Tensor:
    pairs = [p.theta_bounds for p in model.free]
    low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True))
    return torch.minimum(torch.maximum(theta, low), high)


def _match_variance(model: KernelParameters, theta: Tensor, variance: float, grid: Grid) -> Tensor:
    """Scale all free variances by one factor so that ``k(0)`` is ``variance`` (a product of m variances takes
    the m-th root)."""
    mask = torch.tensor([p.is_variance and p.log for p in model.free])
    if not bool(mask.any()):
        return theta
    # the normalised periodisation leaves k(0) as it is, so that an open grid of the same kind will do
    open_grid = Grid(grid.shape, grid.spacing)
    origin = [torch.zeros(1, dtype=torch.long)] * grid.ndim
    with torch.no_grad():
        doubled = theta + mask * math.log(2.0)
        at, above = (float(model.covariance(t, open_grid, origin)) for t in (theta, doubled))
    degree = math.log2(above / at) if at > 0.0 and above > 0.0 else 0.0
    if degree < 0.1:
        return theta
    shift = math.log(variance / at) / degree
    return theta + mask * shift
