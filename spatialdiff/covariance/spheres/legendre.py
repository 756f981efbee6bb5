r"""Legendre functions, normalised, to any degree.

``P̄_lm(φ) = √((2l+1)/(4π) (l-m)!/(l+m)!) P_l^m(sin φ)`` without the phase ``(-1)^m``, so that ``2π ∫ P̄_lm²
d(sin φ) = 1`` and ``P̄_lm(φ) e^{imλ}`` is orthonormal on the unit sphere. By recursion in the degree [Holmes
& Featherstone 2002, eq. 11-13]:

``P̄_mm = √((2m+1)/(2m)) cos φ P̄_{m-1,m-1}``, ``P̄_lm = a_lm (sin φ P̄_{l-1,m} - P̄_{l-2,m}/a_{l-1,m})``,
``a_lm = √((4l²-1)/(l²-m²))``.

Near a pole ``P̄_mm ~ cos^m φ`` is below the smallest float64 from ``m`` of some hundred on, while ``P̄_lm``
grows out of it again with ``l``. So each value is a mantissa and an exponent of 2, which is exact and never
underflows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# mantissas beyond this are brought back, together with their predecessors in the recursion
_LARGE = 2.0**400


def legendre_polynomials(lmax: int, x: Tensor) -> Tensor:
    """``P_0(x), …, P_lmax(x)``, shape ``(lmax + 1, *x.shape)``, for ``|x| ≤ 1``."""
    values = [torch.ones_like(x), x][: lmax + 1]
    for degree in range(2, lmax + 1):
        values.append(((2 * degree - 1) * x * values[-1] - (degree - 1) * values[-2]) / degree)
    return torch.stack(values)


def first_index(lmax: int, m: int) -> int:
    """Row of `associated_legendre` at which order ``m`` begins."""
    return m * (lmax + 1) - m * (m - 1) // 2


def associated_legendre(lmax: int, sine: Tensor, cosine: Tensor) -> Tensor:
    """``P̄_lm`` at latitudes of given sine and cosine, float64, shape ``((lmax+1)(lmax+2)/2, n)``.

    Rows go by order ``m``; within an order first the degrees ``l = m, m+2, …``, which are even in ``φ``, then
    ``l = m+1, m+3, …``, which are odd.
    """
    x, u = sine.double().numpy(), cosine.double().numpy()
    orders = np.arange(lmax + 1)[:, None]
    starts = np.array([first_index(lmax, m) for m in range(lmax + 1)])
    evens = (lmax - orders[:, 0]) // 2 + 1
    table = np.zeros((first_index(lmax, lmax + 1), len(x)))

    # one row per order; `before` and `now` are the mantissas of degrees l-2 and l-1, which share `exponent`
    now = np.zeros((lmax + 1, len(x)))
    before = np.zeros_like(now)
    exponent = np.zeros(now.shape, dtype=np.int64)
    sector, power = np.full(len(x), math.sqrt(1 / (4 * math.pi))), np.zeros(len(x), dtype=np.int64)
    for degree in range(lmax + 1):
        if degree:
            sector, shift = np.frexp(sector * math.sqrt((2 * degree + 1) / (2 * degree)) * u)
            power = power + shift
            m = orders[:degree]
            scale = _ratio(degree, m)
            previous = np.where(m < degree - 1, 1 / _ratio(degree - 1, np.minimum(m, degree - 2)), 0.0)
            value = scale * (x * now[:degree] - previous * before[:degree])
            before[:degree] = now[:degree]
            now[:degree] = value
            large = np.abs(value) > _LARGE
            if large.any():
                exponent[:degree] += np.where(large, 400, 0)
                now[:degree] = np.where(large, value / _LARGE, value)
                before[:degree] = np.where(large, before[:degree] / _LARGE, before[:degree])
        now[degree], exponent[degree] = sector, power
        rise = degree - np.arange(degree + 1)
        rows = starts[: degree + 1] + rise // 2 + np.where(rise % 2, evens[: degree + 1], 0)
        table[rows] = np.ldexp(now[: degree + 1], exponent[: degree + 1])
    return torch.from_numpy(table)


def _ratio(degree: int, m: Any) -> Any:
    return np.sqrt((4.0 * degree * degree - 1) / (1.0 * degree * degree - m * m))
