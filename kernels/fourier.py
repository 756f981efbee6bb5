r"""Cosine transforms of slowly decaying functions, ``∫_0^∞ f(u) cos(ωu) du``.

Double-exponential quadrature for Fourier integrals [Ooura & Mori 1999]: ``u = M φ(t)`` with
``φ(t) = t/(1 - exp(-2t - a(1 - e^{-t}) - b(e^t - 1)))``, ``b = 1/4``,
``a = b/√(1 + M log(1 + M)/(4π))``, ``M = π/(ω s)``, nodes ``t = (n - ½)s``: for large ``t`` the nodes run
into the zeros of ``cos(ωu)`` doubly exponentially, so that ``f`` needs no decay of its own. At ``ω = 0``,
``u = exp(½π sinh t)`` [Takahasi & Mori 1974].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_STEP = 1 / 32
_REACH = (-12.0, 5.5)


def cosine_transform(function: Callable[[Tensor], Tensor], omega: Tensor, scale: float) -> Tensor:
    """``∫_0^∞ f(u) cos(ωu) du``; infinite where ``ω = 0`` and ``f`` is not integrable.

    Args:
        function: ``f``, from nodes ``(*omega.shape, nodes)`` to values ``(*batch, *omega.shape, nodes)``, or
            broadcastable to it; smooth for ``u > 0``.
        omega: angular frequencies, any shape.
        scale: order of magnitude of the ``u`` over which ``f`` varies.
    """
    frequency = omega.detach().double().abs() * scale
    zero = frequency == 0
    w = torch.where(zero, 1.0, frequency)
    n = torch.arange(math.floor(_REACH[0] / _STEP), math.ceil(_REACH[1] / _STEP), dtype=torch.float64)
    t = ((n + 0.5) * _STEP).to(w.device)
    large = (math.pi / (w * _STEP)).unsqueeze(-1)
    node, slope = _ooura_mori(t, large)
    weight = _STEP * large * slope * torch.cos(w.unsqueeze(-1) * large * node)
    node = large * node
    if bool(zero.any()):
        # over [e^{-300}, e^{300}], whose squares are finite: a tail u^{-p}, p > 1, is cut at e^{-300(p-1)}
        s = torch.linspace(-5.9, 5.9, len(t), dtype=torch.float64, device=t.device)
        plain = torch.exp(0.5 * math.pi * s.sinh())
        plain_weight = (s[1] - s[0]) * 0.5 * math.pi * s.cosh() * plain
        node = torch.where(zero.unsqueeze(-1), plain, node)
        weight = torch.where(zero.unsqueeze(-1), plain_weight, weight)
    values = function((node * scale).to(omega.dtype)).double()
    total = (values * weight).sum(-1) * scale
    if bool(zero.any()):
        last = (values[..., -1] * weight[..., -1]).abs() * scale
        diverges = zero & ((last > 1e-12 * total.abs()) | ~torch.isfinite(total))
        total = torch.where(diverges, math.inf, total)
    return total.to(omega.dtype)


def _ooura_mori(t: Tensor, large: Tensor) -> tuple[Tensor, Tensor]:
    """``φ(t)`` and ``φ'(t)``; the limits at ``t = 0`` are not needed, since no node is there."""
    b = 0.25
    a = b / torch.sqrt(1 + large * torch.log1p(large) / (4 * math.pi))
    exponent = -2 * t - a * (-torch.expm1(-t)) - b * torch.expm1(t)
    slope_of = -2 - a * torch.exp(-t) - b * torch.exp(t)
    # for very negative t the exponent is large: divide through by its exponential
    decay = torch.exp(-exponent.clamp_min(0.0))
    growth = torch.exp(exponent.clamp_max(0.0))
    denominator = torch.where(exponent > 0, decay - 1, -torch.expm1(exponent.clamp_max(0.0)))
    numerator = torch.where(exponent > 0, decay, torch.ones_like(decay))
    phi = t * numerator / denominator
    exponential = torch.where(exponent > 0, torch.ones_like(decay), growth)
    slope = numerator / denominator + t * exponential * slope_of * numerator / denominator.square()
    return phi, slope
