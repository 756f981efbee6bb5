"""Cosine transforms against closed forms and mpmath."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from kernel_checks import F64

from spatialdiff.kernels.fourier import cosine_transform

FREQUENCIES = torch.tensor([0.0, 1e-3, 0.03, 0.5, 1.0, 3.0, 10.0, 40.0], dtype=F64)
CASES = {
    "gaussian": (
        lambda u: torch.exp(-u.square() / 2),
        lambda w: math.sqrt(math.pi / 2) * torch.exp(-w * w / 2),
    ),
    "exponential": (lambda u: torch.exp(-u), lambda w: 1 / (1 + w * w)),
    "algebraic": (lambda u: 1 / (1 + u * u), lambda w: math.pi / 2 * torch.exp(-w)),
    "matern": (lambda u: (1 + u) * torch.exp(-u), lambda w: 2 / (1 + w * w).square()),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_closed_forms(name, scale):
    function, transform = CASES[name]
    torch.testing.assert_close(
        cosine_transform(function, FREQUENCIES, scale), transform(FREQUENCIES), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("w", [0.1, 1.0, 7.0])
def test_rough_and_slowly_decaying(w):
    """``√u`` at 0 and a tail that is not integrable: by mpmath, ``∫ (1 + u)^{-1/2} cos(ωu) du`` and
    ``∫ exp(-√u) cos(ωu) du``.
    """
    omega = torch.tensor(w, dtype=F64)
    slow = cosine_transform(lambda u: (1 + u).rsqrt(), omega, 1.0).item()
    expected = mpmath.quadosc(lambda u: mpmath.cos(w * u) / mpmath.sqrt(1 + u), [0, mpmath.inf], omega=w)
    assert slow == pytest.approx(float(expected), abs=1e-10)
    rough = cosine_transform(lambda u: torch.exp(-u.sqrt()), omega, 1.0).item()
    pieces = [0, *(10.0**e for e in range(-6, 1)), *range(2, 40)]
    expected = 2 * mpmath.quad(lambda v: v * mpmath.exp(-v) * mpmath.cos(w * v * v), pieces)
    assert rough == pytest.approx(float(expected), abs=1e-10)


def test_infinite_where_the_integral_is():
    zero = torch.zeros(1, dtype=F64)
    assert cosine_transform(lambda u: (1 + u).pow(-1.0), zero, 1.0).item() == math.inf
    assert cosine_transform(lambda u: (1 + u).pow(-1.5), zero, 1.0).item() == pytest.approx(2.0, rel=1e-12)
