r"""Legendre series ``k(θ) = Σ_l (2l+1)/(4π) C_l P_l(cos θ)`` and ``C_l = 2π ∫_0^π k(θ) P_l(cos θ) sin θ dθ``.

With ``s = 1 - cos t = 2 sin²(t/2)``, ``D_l = P_{l+1} - P_l`` obeys ``(l+1) D_l = l D_{l-1} - (2l+1) s P_l``,
which keeps its relative accuracy near ``t = 0``; angles beyond ``π/2`` are mirrored, ``P_l(-x) = (-1)^l
P_l(x)``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROWS = 64
_NODES = 20
# panels shrink towards a singular point by halves, down to this fraction of the half circle
_FINEST = 2.0**-36


def legendre_rows(theta: Tensor, lmax: int) -> Iterator[tuple[int, Tensor]]:
    """``(l_0, P)`` with ``P_l(cos θ)`` for up to 64 degrees from ``l_0`` on, shape ``(degrees, n)``, θ
    ``(n,)``.
    """
    mirrored = theta > math.pi / 2
    sign = torch.where(mirrored, -1.0, 1.0).to(theta)
    s = 2 * (torch.where(mirrored, math.pi - theta, theta) / 2).sin().square()
    value, step = torch.ones_like(s), -s
    rows: list[Tensor] = []
    for degree in range(lmax + 1):
        rows.append(value * sign if degree % 2 else value)
        if len(rows) == _ROWS or degree == lmax:
            yield degree + 1 - len(rows), torch.stack(rows)
            rows = []
        value = value + step
        step = ((degree + 1) * step - (2 * degree + 3) * s * value) / (degree + 2)


class _Sum(torch.autograd.Function):
    """``Σ_l a_l P_l(cos θ)``, ``(b, L+1), (n,)`` → ``(b, n)``; its derivative in ``a`` is the adjoint sum."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, theta: Tensor) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.lmax = coefficients.shape[-1] - 1
        total = theta.new_zeros(len(coefficients), len(theta))
        for first, rows in legendre_rows(theta, ctx.lmax):
            total += coefficients[:, first : first + len(rows)] @ rows
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (theta,) = ctx.saved_tensors
        return _Moments.apply(gradient, theta, ctx.lmax), None


class _Moments(torch.autograd.Function):
    """``Σ_i w_i P_l(cos θ_i)``, ``(b, n), (n,)`` → ``(b, L+1)``."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, theta: Tensor, lmax: int) -> Tensor:
        ctx.save_for_backward(theta)
        return torch.cat([weights @ rows.mT for _, rows in legendre_rows(theta, lmax)], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (theta,) = ctx.saved_tensors
        return _Sum.apply(gradient, theta), None, None


def legendre_sum(coefficients: Tensor, theta: Tensor) -> Tensor:
    """``Σ_l a_l P_l(cos θ)`` of ``a`` ``(*batch, L+1)`` at angles ``(...)`` → ``(*batch, ...)``."""
    batch = coefficients.shape[:-1]
    flat = coefficients.to(torch.float64).reshape(-1, coefficients.shape[-1])
    values: Tensor = _Sum.apply(flat, theta.detach().to(torch.float64).reshape(-1))
    return values.reshape((*batch, *theta.shape)).to(theta.dtype)


@functools.lru_cache(maxsize=1)
def _gauss() -> tuple[Tensor, Tensor]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights)


def quadrature(lmax: int, breaks: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
    """Nodes ``θ`` and weights of ``∫_0^π … dθ`` for ``k(θ) P_l(cos θ)`` with ``l ≤ lmax``: Gauss–Legendre
    panels that shrink geometrically towards ``θ = 0`` and towards each of ``breaks``, where ``k`` may be
    singular.
    """
    points = sorted({0.0, math.pi, *(b for b in breaks if 0 < b < math.pi)})
    widest = min(math.pi / 8, 8.0 / max(1, lmax))
    edges = [0.0]
    for low, high in itertools.pairwise(points):
        half = (high - low) / 2
        graded = [low]
        size = half * _FINEST
        while size < half:
            graded.append(low + size)
            size *= 2
        graded.append(low + half)
        mirrored = [high - (x - low) for x in reversed(graded[:-1])]
        for edge in [*graded[1:], *mirrored]:
            count = max(1, math.ceil((edge - edges[-1]) / widest))
            start = edges[-1]
            edges.extend(start + (edge - start) * (i + 1) / count for i in range(count))
    x, w = _gauss()
    ends = torch.tensor(edges, dtype=torch.float64)
    middle, radius = (ends[1:] + ends[:-1]) / 2, (ends[1:] - ends[:-1]) / 2
    return (middle[:, None] + radius[:, None] * x).reshape(-1), (radius[:, None] * w).reshape(-1)


def legendre_transform(
    function: Callable[[Tensor], Tensor], lmax: int, breaks: Sequence[float] = ()
) -> Tensor:
    """``C_l = 2π ∫_0^π k(θ) P_l(cos θ) sin θ dθ``, ``l = 0, …, lmax``, float64 ``(*batch, lmax + 1)``.

    Args:
        function: ``k``, from angles ``(n,)`` to ``(*batch, n)``; smooth but for 0 and ``breaks``.
        lmax: highest degree.
        breaks: angles at which ``k`` has a kink or a fractional power.
    """
    theta, weight = quadrature(lmax, breaks)
    values = function(theta) * (2 * math.pi * weight * theta.sin())
    flat: Tensor = _Moments.apply(values.reshape(-1, len(theta)), theta, lmax)
    return flat.reshape(*values.shape[:-1], lmax + 1)
