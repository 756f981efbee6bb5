r"""The modified Bessel function of the second kind, differentiable in order and argument.

With ``q = s²/4``, ``L_ν(q) = ∫ exp(νx - e^x - q e^{-x}) dx = 2 (s/2)^ν K_ν(s)`` (DLMF 10.32.10), and its
moments ``L_ν^{(m)}(q) = ∫ x^m exp(νx - e^x - q e^{-x}) dx`` are closed under differentiation:

``∂L_ν^{(m)}/∂ν = L_ν^{(m+1)}``, ``∂L_ν^{(m)}/∂q = -L_{ν-1}^{(m)}``.

The integrand is entire and falls double exponentially on both sides, so that the trapezoidal rule converges
geometrically; it is centred at the maximum of the exponent, ``e^x = a = (ν + √(ν² + 4q))/2``, where with
``b = q/a`` the exponent is ``νy - a(e^y - 1) - b(e^{-y} - 1)``, ``y = x - log a``.

The Matérn correlation is ``M_ν(q) = L_ν(q)/Γ(ν)``. For small ``q`` what is accurate is its distance from 1,
from the recurrence ``1 - M_ν = q L_{ν-1}(q)/Γ(ν+1) + (1 - M_{ν+1})`` and, for ``ν`` large enough that the
left tail ``e^{νx}`` is short, ``(1 - M_ν) Γ(ν) = ∫ exp(νx - e^x) (1 - exp(-q e^{-x})) dx``; every term is
positive.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# exp(-38) is below the rounding error of the sum
_FALL = 38.0
# step of the trapezoidal rule in units of the width of the peak, and its limit where the peak is wide: the
# integrand is analytic for |Im x| < π/2
_STEP, _LARGEST_STEP = 0.55, 0.2
# below this q, 1 - M is computed instead of M, so that its derivative in ν keeps its digits
_SMALL = 4e-3
# above, M is below the smallest number there is
_FAR = 1e6
# the least ν for the integral of 1 - M, whose left tail is 38/ν long
_STEEP = 4.0
_CHUNK = 2_000_000


def _reach(c: Tensor) -> Tensor:
    """A bound of ``y > 0`` with ``c (e^y - 1 - y) = _FALL``."""
    w = _FALL / c
    return torch.minimum((2 * w).sqrt(), torch.log1p(w + torch.log1p(w + torch.log1p(w))))


def _moment(nu: Tensor, q: Tensor, m: int) -> Tensor:
    """``L_ν^{(m)}(q)`` for ``q > 0``, of tensors of one shape ``(n,)``."""
    root = (nu.square() + 4 * q).sqrt()
    # the larger of the two by addition, the other by their product
    large = (nu.abs() + root) / 2
    a = torch.where(nu > 0, large, q / large)
    b = torch.where(nu > 0, q / large, large)
    w_a, w_b = _FALL / a, _FALL / b
    left = torch.minimum(_reach(b), (w_a + (w_a * (w_a + 8)).sqrt()) / 2)
    right = torch.minimum(_reach(a), (w_b + (w_b * (w_b + 8)).sqrt()) / 2)
    width = left + right
    step = (_STEP / root.sqrt()).clamp(max=_LARGEST_STEP)
    count = math.ceil(float((width / step).max())) + 1 if len(q) else 2
    top, log_a = (nu * a.log() - a - b).exp(), a.log()
    parts = []
    rows = max(1, _CHUNK // count)
    grid = torch.linspace(0, 1, count, dtype=q.dtype, device=q.device)
    for i in range(0, max(1, len(q)), rows):
        s = slice(i, i + rows)
        y = (width[s, None] * grid).sub_(left[s, None])
        e = y.exp()
        term = (nu + a)[s, None] + b[s, None]
        # νy - a(e^y - 1) - b(e^{-y} - 1)
        term = nu[s, None] * y
        term.addcmul_(a[s, None], e - 1, value=-1).addcmul_(b[s, None], e.reciprocal_() - 1, value=-1)
        term.exp_()
        if m:
            term.mul_((y + log_a[s, None]).pow_(m))
        parts.append(term.sum(-1))
    return torch.cat(parts) * top * width / (count - 1)


def _deficit_moment(nu: Tensor, q: Tensor, m: int) -> Tensor:
    """``∫ x^m exp(νx - e^x) (1 - exp(-q e^{-x})) dx`` for small ``q > 0`` and ``ν ≥ _STEEP``, shapes
    ``(n,)``.
    """
    left = q.log() - 3.7 - _FALL / nu
    right = (nu + _FALL + 9 * nu.sqrt()).log()
    width = right - left
    step = (_STEP / (nu + 1).sqrt()).clamp(max=_LARGEST_STEP)
    count = math.ceil(float((width / step).max())) + 1 if len(q) else 2
    parts = []
    rows = max(1, _CHUNK // count)
    grid = torch.linspace(0, 1, count, dtype=q.dtype, device=q.device)
    for i in range(0, max(1, len(q)), rows):
        s = slice(i, i + rows)
        x = left[s, None] + width[s, None] * grid
        term = (nu[s, None] * x - x.exp()).exp() * -torch.expm1(-q[s, None] * (-x).exp())
        if m:
            term = term * x.pow(m)
        parts.append(term.sum(-1))
    return torch.cat(parts) * width / (count - 1)


class _Moment(torch.autograd.Function):
    """``L_ν^{(m)}(q)``, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, nu: Tensor, q: Tensor, m: int) -> Tensor:
        ctx.save_for_backward(nu, q)
        ctx.m = m
        return _moment(nu, q, m)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        nu, q = ctx.saved_tensors
        in_nu = gradient * _Moment.apply(nu, q, ctx.m + 1) if ctx.needs_input_grad[0] else None
        in_q = -gradient * _Moment.apply(nu - 1, q, ctx.m) if ctx.needs_input_grad[1] else None
        return in_nu, in_q, None


class _DeficitMoment(torch.autograd.Function):
    """``∫ x^m exp(νx - e^x) (1 - exp(-q e^{-x})) dx``, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, nu: Tensor, q: Tensor, m: int) -> Tensor:
        ctx.save_for_backward(nu, q)
        ctx.m = m
        return _deficit_moment(nu, q, m)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        nu, q = ctx.saved_tensors
        in_nu = gradient * _DeficitMoment.apply(nu, q, ctx.m + 1) if ctx.needs_input_grad[0] else None
        in_q = gradient * _Moment.apply(nu - 1, q, ctx.m) if ctx.needs_input_grad[1] else None
        return in_nu, in_q, None


def _deficit(nu: Tensor, q: Tensor) -> Tensor:
    """``1 - M_ν(q)`` for small ``q > 0``."""
    total: Tensor | float = 0.0
    lifts = max(0, math.ceil(_STEEP - float(nu.detach().min()))) if len(nu) else 0
    for j in range(lifts):
        total = total + q * _Moment.apply(nu + (j - 1), q, 0) * torch.exp(-torch.lgamma(nu + (j + 1)))
    raised = nu + lifts
    last: Tensor = _DeficitMoment.apply(raised, q, 0)
    return total + last * torch.exp(-torch.lgamma(raised))


def bessel_l(nu: Tensor, q: Tensor) -> Tensor:
    r"""``L_ν(q) = 2 q^{ν/2} K_ν(2√q)``, differentiable any number of times in both.

    Args:
        nu: real order, of any sign.
        q: ``q ≥ 0``; at 0 the value is ``Γ(ν)`` for ``ν > 0`` and infinite otherwise. Shapes broadcast.
    """
    nu, q = torch.broadcast_tensors(nu.double(), q.double())
    shape, nu, q = q.shape, nu.reshape(-1), q.reshape(-1)
    regular = (q > 0) & (q < _FAR)
    (where,) = regular.nonzero(as_tuple=True)
    origin = torch.where(nu > 0, torch.lgamma(nu.clamp(min=1e-300)).exp(), math.inf)
    result = torch.where(q.isnan(), q, torch.where(q == 0, origin, 0.0))
    result = result.index_put((where,), _Moment.apply(nu[where], q[where], 0))
    return result.reshape(shape)


def matern(nu: Tensor, r: Tensor) -> Tensor:
    r"""Matérn correlation ``2^{1-ν}/Γ(ν) s^ν K_ν(s)``, ``s = √(2ν) r``, differentiable any number of times.

    Relative errors against 30-digit arithmetic, ν from 0.1 to 10 and ``r`` from 1e-8 to 50: see
    ``tests/kernels/test_bessel.py``.

    Args:
        nu: ``0 < ν ≤ 100``.
        r: scaled distance, ``r ≥ 0``; shapes broadcast. The derivatives at ``r = 0`` are 0.
    """
    nu, r = torch.broadcast_tensors(nu.double(), r.double())
    shape, nu, r = r.shape, nu.reshape(-1), r.reshape(-1)
    # so far out the value is 0, and the square of more may be infinite
    q = nu * r.clamp(max=1e6).square() / 2
    (small,) = ((q > 0) & (q < _SMALL)).nonzero(as_tuple=True)
    (large,) = ((q >= _SMALL) & (q < _FAR)).nonzero(as_tuple=True)
    result = torch.where(q.isnan(), q, (q == 0).to(q.dtype)).detach()
    result = result.index_put((small,), 1 - _deficit(nu[small], q[small]))
    integral = _Moment.apply(nu[large], q[large], 0)
    result = result.index_put((large,), integral * torch.exp(-torch.lgamma(nu[large])))
    return result.reshape(shape)
