r"""Fourier transforms of smooth, slowly decaying functions of the distance.

``s_d(w) = |S^{d-1}| ∫_0^∞ f(r) Ω_d(wr) r^{d-1} dr`` with ``Ω_1 = cos``, ``Ω_2 = J_0``, ``Ω_3(z) = sin(z)/z``,
by double-exponential quadrature for Fourier integrals [Ooura & Mori 1999]: ``r = M φ(t)`` with
``φ(t) = t/(1 - exp(-2t - a(1 - e^{-t}) - b(e^t - 1)))``, ``b = 1/4``, ``a = b/√(1 + M log(1 + M)/(4π))``,
``M = π/(w s)``, nodes ``t = (n + ½)s`` for the cosine and ``t = ns`` for the sine: for large ``t`` the nodes
run into their zeros doubly exponentially, so that ``f`` needs no decay of its own. In two dimensions
``J_0(z) = Re H(z) cos z - Im H(z) sin z`` with ``H(z) = H_0^{(1)}(z) e^{-iz}``, which does not oscillate. At
``w = 0``, ``r = exp(½π sinh t)`` [Takahasi & Mori 1974].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_STEP = 1 / 32
_REACH = (-12.0, 5.5)


def cosine_transform(function: Callable[[Tensor], Tensor], omega: Tensor, scale: float) -> Tensor:
    """``∫_0^∞ f(u) cos(ωu) du``: half of `radial_transform` in one dimension."""
    return radial_transform(function, omega, 1, scale) / 2


def radial_transform(function: Callable[[Tensor], Tensor], w: Tensor, d: int, scale: float = 1.0) -> Tensor:
    """``s_d(w)``, ``d = 1, 2, 3``; infinite where ``w = 0`` and ``f r^{d-1}`` is not integrable.

    Args:
        function: ``f``, from nodes ``(*w.shape, nodes)`` to values ``(*batch, *w.shape, nodes)``, or
            broadcastable to it; smooth for ``r > 0``, without oscillations of its own.
        w: angular frequencies ``≥ 0``, any shape; constants.
        d: dimension.
        scale: order of magnitude of the ``r`` over which ``f`` varies.
    """
    frequency = w.detach().double().abs() * scale
    zero = (frequency == 0).unsqueeze(-1)
    node, weight = _rule(torch.where(zero.squeeze(-1), 1.0, frequency), d)
    if bool(zero.any()):
        plain, plain_weight = _plain_rule(node.shape[-1], d)
        node = torch.where(zero, plain.to(node), node)
        weight = torch.where(zero, plain_weight.to(node), weight)
    terms = function((node * scale).to(w.dtype)).double() * weight
    total = terms.sum(-1) * scale**d
    if bool(zero.any()):
        last = terms[..., -1].abs() * scale**d
        diverges = zero.squeeze(-1) & ((last > 1e-12 * total.abs()) | ~torch.isfinite(total))
        total = torch.where(diverges, math.inf, total)
    return total.to(w.dtype)


def _rule(w: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of ``|S^{d-1}| ∫ … Ω_d(wr) r^{d-1} dr``, ``(...)`` → ``(..., nodes)``."""
    n = torch.arange(math.floor(_REACH[0] / _STEP), math.ceil(_REACH[1] / _STEP), dtype=torch.float64)
    n, w = n.to(w.device), w.unsqueeze(-1)
    large = math.pi / (w * _STEP)
    node, slope = _ooura_mori((n + 0.5) * _STEP, large)
    cosine_node, cosine_weight = large * node, _STEP * large * slope * torch.cos(w * large * node)
    if d == 1:
        return cosine_node, 2 * cosine_weight
    node, slope = _ooura_mori(n * _STEP, large)
    sine_node, sine_weight = large * node, _STEP * large * slope * torch.sin(w * large * node)
    if d == 3:
        return sine_node, 4 * math.pi / w * sine_node * sine_weight
    from scipy.special import hankel1e

    def amplitude(r: Tensor) -> Tensor:
        # H is infinite at 0, where the weight r log r is 0
        values = torch.from_numpy(hankel1e(0, (w * r).clamp_min(1e-300).cpu().numpy()))
        return values.to(r.device) * r

    weights = cosine_weight * amplitude(cosine_node).real, -sine_weight * amplitude(sine_node).imag
    return torch.cat([cosine_node, sine_node], -1), 2 * math.pi * torch.cat(weights, -1)


def _plain_rule(count: int, d: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of ``|S^{d-1}| ∫ … r^{d-1} dr`` over ``[e^{-b}, e^b]``, in which powers are finite: a
    tail ``r^{-p-1}`` is cut at ``e^{-bp}``.
    """
    bound = min(300.0, 690.0 / d)
    s = torch.linspace(-1, 1, count, dtype=torch.float64) * math.asinh(2 * bound / math.pi)
    node = torch.exp(0.5 * math.pi * s.sinh())
    area = 2 * math.pi ** (d / 2) / math.gamma(d / 2)
    return node, area * (s[1] - s[0]) * 0.5 * math.pi * s.cosh() * node.pow(d)


def _ooura_mori(t: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
    """``φ(t)`` and ``φ'(t)``."""
    b = 0.25
    a = b / torch.sqrt(1 + large * torch.log1p(large) / (4 * math.pi))
    origin = t == 0
    safe = torch.where(origin, 1.0, t)
    exponent = -2 * safe + a * torch.expm1(-safe) - b * torch.expm1(safe)
    slope_of = -2 - a * torch.exp(-safe) - b * torch.exp(safe)
    # for negative t the exponent is large: divide through by its exponential
    fraction = torch.where(
        exponent > 0,
        torch.exp(-exponent.clamp_min(0.0)) / torch.expm1(-exponent.clamp_min(1e-300)),
        -1 / torch.expm1(exponent.clamp_max(-1e-300)),
    )
    remainder = torch.where(
        exponent > 0,
        1 / torch.expm1(-exponent.clamp_min(1e-300)),
        torch.exp(exponent.clamp_max(0.0)) * fraction,
    )
    phi, slope = safe * fraction, fraction + safe * remainder * slope_of * fraction
    # E = -ct + et² + … at the origin
    c, e = 2 + a + b, (a - b) / 2
    return torch.where(origin, 1 / c, phi), torch.where(origin, (e + c.square() / 2) / c.square(), slope)
