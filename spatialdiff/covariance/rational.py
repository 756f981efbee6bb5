r"""Rational functions for fractional powers: ``x^{-β} ≈ r(x) = w_0 + Σ_k w_k/(x + t_k)``, ``0 < β < 1``, all
``w, t > 0``.

``x^{-β}`` is a Stieltjes function, so near-best rational functions of it have negative poles, and their zeros
``-s_k``
lie between them: ``r(A) z`` takes one solve with the positive definite ``A + t_k`` per pole, and its exact
inverse

``r(x)^{-1} = 1/r(0) + x Σ_k (v_k/s_k)/(x + s_k)``, ``v_k = 1/Σ_j w_j/(t_j - s_k)²``,

one per zero, every term positive. Poles come from the AAA algorithm (Nakatsukasa, Sète & Trefethen 2018), the
weights from least squares in the relative error, and that error is measured on a finer grid. Applied to the
operator of an SPDE this is the operator-based rational approximation of Bolin & Kirchner (2020, section 3).
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

_FIT, _CHECK = 800, 6001


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
    from scipy.interpolate import AAA

    ratio = max(high / low, 4.0)
    x = np.geomspace(1.0, ratio, _FIT)
    best = math.inf
    sharp = tolerance
    while sharp > 1e-17:
        with warnings.catch_warnings():
            # that AAA stops short of its own tolerance is measured here
            warnings.simplefilter("ignore", RuntimeWarning)
            found = AAA(x, x**-beta, rtol=max(sharp, 2e-15), max_terms=60).poles()
        sharp /= 4
        t = np.sort(-found.real)
        if t.size == 0 or t[0] <= 0 or np.abs(found.imag).max() > 1e-9 * np.abs(found).min():
            continue
        constant, weights = _weights(t, beta, x)
        if constant <= 0 or (weights <= 0).any():
            continue
        fine = np.geomspace(1.0, ratio, _CHECK)
        error = np.abs((constant + (weights / (fine[:, None] + t)).sum(1)) * fine**beta - 1).max()
        best = min(best, float(error))
        if error <= tolerance:
            return _scaled(constant, weights, t, beta, low, float(error))
    raise RuntimeError(
        f"The fractional power {beta:g} of an operator with eigenvalues in [{low:.3g}, {high:.3g}] is "
        f"approximated to {best:.2g} at best, {tolerance:.2g} was asked for; give a larger tolerance=, or a "
        "mesh that is coarser relative to the length scale."
    )


def _weights(t: Any, beta: float, x: Any) -> tuple[float, Any]:
    # columns of unit size where each matters most
    scale = np.append(t**-beta, x[-1] ** -beta)
    columns = np.hstack([t / (x[:, None] + t), np.ones((len(x), 1))]) * scale * x[:, None] ** beta
    solution = np.linalg.lstsq(columns, np.ones(len(x)), rcond=1e-15)[0] * scale
    return float(solution[-1]), solution[:-1] * t


def _scaled(constant: float, weights: Any, t: Any, beta: float, low: float, error: float) -> Rational:
    ends = np.append(t, t[-1] + weights.sum() / constant * (1 + 1e-9))
    zeros = np.array([_zero(constant, weights, t, a, b) for a, b in itertools.pairwise(ends)])
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


def _zero(constant: float, weights: Any, t: Any, left: float, right: float) -> float:
    """The ``s`` in ``(left, right)`` where ``constant + Σ w/(t - s) = 0``, where the sum
    rises from -∞ to ∞.
    """
    low, high = left, right
    for _ in range(200):
        middle = math.sqrt(low * high)
        if not low < middle < high:
            break
        value = constant + float((weights / (t - middle)).sum())
        low, high = (middle, high) if value < 0 else (low, middle)
    return math.sqrt(low * high)
