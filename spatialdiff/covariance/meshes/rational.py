r"""Rational functions for fractional powers: ``x^{-β} ≈ r(x) = w_0 + Σ_k w_k/(x + t_k)``, ``0 < β < 1``, all
``w, t > 0``.

``x^{-β}`` is a Stieltjes function, so near-best rational functions of it have negative poles, and their zeros
``-s_k``
lie between them: ``r(A) z`` takes one solve with the positive definite ``A + t_k`` per pole, and its exact
inverse

``r(x)^{-1} = 1/r(0) + x Σ_k (v_k/s_k)/(x + s_k)``, ``v_k = 1/Σ_j w_j/(t_j - s_k)²``,

one per zero, every term positive. Poles come from the AAA algorithm (Nakatsukasa, Sète & Trefethen 2018,
section 3) with errors measured relative to ``x^{-β}``, the weights from least squares, and the error is then
measured on a finer grid. Applied to the operator of an SPDE this is the operator-based rational approximation
of Bolin & Kirchner (2020, section 3).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_FIT, _CHECK, _MOST = 400, 6001, 40


@dataclass(frozen=True)
class Rational:
    """``r(x) = constant + Σ weights/(x + poles)`` and its inverse ``inverse_at_zero + x Σ inverse_weights/(x
    + zeros)``.

    Attributes:
        error: largest ``|r(x) x^β - 1|`` on ``[low, high]``.
    """

    constant: float
    weights: tuple[float, ...]
    poles: tuple[float, ...]
    inverse_at_zero: float
    inverse_weights: tuple[float, ...]
    zeros: tuple[float, ...]
    error: float


@functools.lru_cache(maxsize=64)
def fractional_power(beta: float, low: float, high: float, tolerance: float) -> Rational:
    """The function ``r`` of the module for ``x^{-β}`` on ``[low, high]``, with relative error at most
    ``tolerance``.

    Raises:
        RuntimeError: the tolerance is not reached in float64.
    """
    ratio = max(high / low, 4.0)
    x, fine = np.geomspace(1.0, ratio, _FIT), np.geomspace(1.0, ratio, _CHECK)
    best = math.inf
    for nodes, node_weights in _barycentric(x, x**-beta):
        t = _poles(nodes, node_weights, ratio)
        if t is None:
            continue
        constant, weights = _weights(t, beta, x)
        if constant <= 0 or (weights <= 0).any():
            continue
        error = float(np.abs((constant + (weights / (fine[:, None] + t)).sum(1)) * fine**beta - 1).max())
        best = min(best, error)
        if error <= tolerance:
            return _scaled(constant, weights, t, beta, low, error)
    raise RuntimeError(
        f"The fractional power {beta:g} of an operator with eigenvalues in [{low:.3g}, {high:.3g}] is "
        f"approximated to {best:.2g} at best, {tolerance:.2g} was asked for; give a larger tolerance=, or a "
        "mesh that is coarser relative to the length scale."
    )


def _barycentric(x: Any, f: Any) -> Iterator[tuple[Any, Any]]:
    """Support points and weights of AAA interpolants of growing degree: the next point is where the relative
    error is largest, the weights minimise the linearised relative error at all the others.
    """
    left, chosen = np.ones(len(x), dtype=bool), []
    r = np.full(len(x), np.exp(np.log(f).mean()))
    for _ in range(_MOST):
        chosen.append(int(np.where(left, np.abs(r / f - 1), 0.0).argmax()))
        left[chosen[-1]] = False
        cauchy = 1 / (x[left, None] - x[chosen])
        loewner = (1 - f[chosen] / f[left, None]) * cauchy
        weights = np.linalg.svd(loewner, full_matrices=False)[2][-1]
        r = f.copy()
        r[left] = (cauchy @ (weights * f[chosen])) / (cauchy @ weights)
        if len(chosen) > 1:
            yield x[chosen], weights


def _poles(nodes: Any, weights: Any, ratio: float) -> Any:
    """The ``t`` of the poles ``-t`` of a barycentric interpolant, None unless all are real and negative."""

    def denominator(t: Any) -> Any:
        return (weights / (t[:, None] + nodes)).sum(1)

    grid = np.geomspace(1e-8, 1e8 * ratio, _CHECK)
    values = denominator(grid)
    change = np.flatnonzero(values[:-1] * values[1:] < 0)
    if len(change) != len(nodes) - 1:
        return None
    return _bisect(denominator, grid[change], grid[change + 1], values[change])


def _bisect(function: Callable[[Any], Any], low: Any, high: Any, at_low: Any) -> Any:
    """Roots between positive ends, one for each pair, halving on the logarithmic scale."""
    for _ in range(80):
        middle = np.sqrt(low * high)
        same = function(middle) * at_low > 0
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.sqrt(low * high)


def _weights(t: Any, beta: float, x: Any) -> tuple[float, Any]:
    # columns of unit size where each matters most
    scale = np.append(t**-beta, x[-1] ** -beta)
    columns = np.hstack([t / (x[:, None] + t), np.ones((len(x), 1))]) * scale * x[:, None] ** beta
    solution = np.linalg.lstsq(columns, np.ones(len(x)), rcond=1e-15)[0] * scale
    return float(solution[-1]), solution[:-1] * t


def _scaled(constant: float, weights: Any, t: Any, beta: float, low: float, error: float) -> Rational:
    # between two poles, and beyond the last, Σ w/(t - s) + constant rises from -∞
    ends = np.append(t, t[-1] + weights.sum() / constant * (1 + 1e-9))
    low_ends, high_ends = (np.array(v) for v in zip(*itertools.pairwise(ends), strict=True))
    zeros = _bisect(
        lambda s: constant + (weights / (t - s[:, None])).sum(1), low_ends, high_ends, -np.ones(len(t))
    )
    residues = 1 / (weights / (t - zeros[:, None]) ** 2).sum(1)
    at_zero = 1 / (constant + (weights / t).sum())
    return Rational(
        constant=constant * low**-beta,
        weights=tuple((weights * low ** (1 - beta)).tolist()),
        poles=tuple((t * low).tolist()),
        inverse_at_zero=float(at_zero * low**beta),
        inverse_weights=tuple((residues / zeros * low**beta).tolist()),
        zeros=tuple((zeros * low).tolist()),
        error=error,
    )
