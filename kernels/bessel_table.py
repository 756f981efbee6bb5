r"""The Matérn correlation of one fixed smoothness at very many distances.

``L_ν(q) = 2 q^{ν/2} K_ν(2√q)`` (see `spatialdiff.kernels.bessel`), times ``e^s`` with ``s = 2√q``, is a
smooth function of ``log s`` for every real order, near ``s^{min(0, 2ν)}`` for small and ``s^{ν-1/2}`` for
large arguments. It is tabulated as polynomials on panels, 64 to an octave of ``s``: the leading bits of the
floating-point number ``s`` are the panel, the others the place in it. Derivatives are tables of other orders,
``dL_ν/dq = -L_{ν-1}``.

The values in the table are ``K_ν(s) e^s = ∫_0^∞ exp(-2s sinh²(t/2)) cosh(νt) dt`` (DLMF 10.32.9) by the
trapezoidal rule, which converges geometrically; the integrand is positive.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.kernels.bessel import matern

# fewer entries are no work
LEAST = 20_000
# at larger orders a panel has more than the polynomial can follow
LARGEST = 20.0
# octaves of s in the table; below, ρ is taken directly, above it is 0 in double precision
_LOW, _HIGH = -20, 10
_BITS, _DEGREE = 6, 7
_NODES = 320
_CHUNK = 32_768
_ONE = 1023 << 52
_SHIFT = 52 - _BITS


def _scaled(nu: float, s: Tensor) -> Tensor:
    """``L_ν(s²/4) e^s`` for ``s > 0`` ``(n,)``."""
    order = abs(nu)
    end = torch.ones_like(s)
    for _ in range(12):
        end = 2 * torch.asinh(((40 + order * end) / (2 * s)).sqrt())
    x = torch.linspace(0, 1, _NODES, dtype=torch.float64)
    parts = []
    for start, stop in zip(s.split(2048), end.split(2048), strict=True):
        t = stop[:, None] * x
        # cosh(νt) as a multiple of e^{νt}, in one exponential that does not overflow
        term = torch.exp(order * t - 2 * start[:, None] * (t / 2).sinh().square())
        term *= (1 + torch.exp(-2 * order * t)) / 2
        term[:, 0] /= 2
        parts.append(term.sum(-1) * stop / (_NODES - 1))
    return 2 * (s / 2).pow(nu) * torch.cat(parts)


@functools.lru_cache(maxsize=32)
def _table(nu: float) -> Tensor:
    """Coefficients of ``t^0, …`` on every panel, ``-1 ≤ t < 1`` across it, ``(degree + 1, panels)``."""
    panels = 2**_BITS
    nodes = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
    share = 1 + (np.arange(panels)[:, None] + (nodes + 1) / 2) / panels
    octaves = np.exp2(np.arange(_LOW, _HIGH, dtype=np.float64))
    s = torch.from_numpy((octaves[:, None, None] * share).reshape(-1))
    values = _scaled(nu, s).reshape(-1, _DEGREE + 1)
    to_coefficients = torch.from_numpy(np.linalg.inv(np.vander(nodes, increasing=True)))
    return (to_coefficients @ values.mT).contiguous()


def _look_up(nu: float, q: Tensor) -> Tensor:
    """``L_ν(q)`` for ``q`` ``(n,)`` in the range of the table."""
    table = _table(nu).to(q.device)
    result = torch.empty_like(q)
    first = (1023 + _LOW) << _BITS
    low_bits = (1 << _SHIFT) - 1
    for x, out in zip(q.split(_CHUNK), result.split(_CHUNK), strict=True):
        s = x.sqrt().mul_(2)
        bits = s.view(torch.int64)
        panel = (bits >> _SHIFT).sub_(first)
        # the bits below those of the panel, as 1 + t', 0 ≤ t' < 2^-6
        t = (bits & low_bits).bitwise_or_(_ONE).view(torch.float64).sub_(1).mul_(2.0 ** (_BITS + 1)).sub_(1)
        value = table[_DEGREE].index_select(0, panel)
        for row in range(_DEGREE - 1, -1, -1):
            value.mul_(t).add_(table[row].index_select(0, panel))
        torch.mul(value, s.neg_().exp_(), out=out)
    return result


class _TableMoment(torch.autograd.Function):
    """``L_ν(q)``, differentiable any number of times in ``q``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, nu: float) -> Tensor:
        ctx.save_for_backward(q)
        ctx.nu = nu
        return _look_up(nu, q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (q,) = ctx.saved_tensors
        derivative: Tensor = _TableMoment.apply(q, ctx.nu - 1)
        return -gradient * derivative, None


def matern_table(nu: float, r: Tensor) -> Tensor:
    r"""Matérn correlation ``2^{1-ν}/Γ(ν) s^ν K_ν(s)``, ``s = √(2ν) r``, by tables; differentiable any number
    of times in ``r``.

    Relative errors below 1e-13 where those of `spatialdiff.kernels.bessel.matern` are and the value is above
    1e-280.

    Args:
        nu: ``0 < ν ≤ 20``.
        r: scaled distance, ``r ≥ 0``, of any shape. The derivatives at ``r = 0`` are 0.
    """
    shape, r = r.shape, r.double().reshape(-1)
    q = nu / 2 * r.clamp(max=1e6).square()
    detached = q.detach()
    inside = (detached >= 4.0 ** (_LOW - 1)) & (detached < 4.0 ** (_HIGH - 1))
    value = _TableMoment.apply(torch.where(inside, q, 1.0), nu) / math.gamma(nu)
    # 1 at r = 0, NaN at NaN, 0 beyond
    elsewhere = torch.where(detached.isnan(), detached, (detached == 0).to(q.dtype))
    result: Tensor = torch.where(inside, value, elsewhere)
    (near,) = ((detached > 0) & (detached < 4.0 ** (_LOW - 1))).nonzero(as_tuple=True)
    if len(near):
        order = torch.tensor(nu, dtype=torch.float64, device=r.device)
        result = result.index_put((near,), matern(order, r[near]))
    return result.reshape(shape)


def fixed_matern(nu: float, r: Tensor) -> Tensor:
    """`matern_table` for many entries, `spatialdiff.kernels.bessel.matern` for few or for large orders."""
    if r.numel() > LEAST and nu <= LARGEST:
        return matern_table(nu, r)
    return matern(torch.tensor(nu, dtype=torch.float64, device=r.device), r)
