r"""Estimators of the semivariance ``γ(h) = ½ E (x(s) - x(s+h))²`` from the increments ``y`` of pairs.

===============  ===========================================================  =============================
``"matheron"``   ``½ mean y²``                                                Matheron 1962
``"cressie"``    ``½ (mean √|y|)⁴ / (0.457 + 0.494/N + 0.045/N²)``             Cressie & Hawkins 1980, eq. 12
``"dowd"``       ``½ · 2.198 (median |y|)²``                                   Dowd 1984
``"genton"``     ``½ (2.2191 {|y_i - y_j|; i < j}_(k))²``, ``k = C(⌊N/2⌋+1, 2)``  Genton 1998, eq. 4
===============  ===========================================================  =============================

The constants make the last three consistent for Gaussian increments: :math:`2.198 = 1/\Phi^{-1}(3/4)^2`
rounded, and ``2.2191`` does the same for the lower quartile of the differences. ``N`` counts pairs.
Matheron's is unbiased for every law; one outlier spoils it.
"""

from __future__ import annotations

import math

import numpy as np

ESTIMATORS = ("matheron", "cressie", "dowd", "genton")
# estimators that are functions of a sum over pairs
ADDITIVE = ("matheron", "cressie")
# increments that Dowd's and Genton's estimators may hold at a time
MOST_VALUES = 40_000_000
_DOWD = 2.198
_GENTON = 2.2191


def check_estimator(estimator: str, cross: bool) -> None:
    """Raise ValueError for a name that is not known, and for a robust estimator of cross-variograms."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if cross and estimator != "matheron":
        raise ValueError(
            f"cross-variograms are means of products of increments: estimator={estimator!r} has no such "
            "form; use 'matheron', or cross=False for the channels one by one"
        )


def transform(increments: np.ndarray, estimator: str) -> np.ndarray:
    """What an additive estimator sums."""
    return increments**2 if estimator == "matheron" else np.sqrt(np.abs(increments))


def finish(sums: np.ndarray, counts: np.ndarray, estimator: str) -> np.ndarray:
    """Semivariances from sums over pairs; NaN where there are none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = sums / counts
        if estimator == "matheron":
            return np.asarray(0.5 * mean)
        return np.asarray(0.5 * mean**4 / (0.457 + 0.494 / counts + 0.045 / counts**2))


def of_values(increments: np.ndarray, estimator: str) -> float:
    """Semivariance of the increments of one bin, by any estimator; NaN where there are none."""
    number = len(increments)
    if number == 0:
        return math.nan
    if estimator == "dowd":
        return float(0.5 * _DOWD * np.median(np.abs(increments)) ** 2)
    if estimator == "genton":
        return 0.5 * (_GENTON * _lower_quartile_of_differences(increments)) ** 2
    return float(
        finish(transform(increments, estimator).sum(keepdims=True), np.array([number]), estimator)[0]
    )


def _lower_quartile_of_differences(values: np.ndarray) -> float:
    """The ``C(⌊N/2⌋+1, 2)``-th smallest ``|y_i - y_j|``, ``i < j``, by bisection on sorted values: for a
    bound ``r`` the number of differences at most ``r`` is found by binary searches in O(N log N).
    """
    n = len(values)
    if n < 2:
        return math.nan
    y = np.sort(values)
    half = n // 2 + 1
    rank = half * (half - 1) // 2
    ranks = np.arange(n)

    def below(r: float) -> int:
        return int((np.searchsorted(y, y + r, side="right") - 1 - ranks).sum())

    low, high = -1.0, float(y[-1] - y[0])
    while True:
        middle = 0.5 * (low + high) if low >= 0.0 else 0.0
        if middle in (low, high):
            return high
        low, high = (low, middle) if below(middle) >= rank else (middle, high)
