"""The Matérn correlation from tables: against 30-digit arithmetic, the integral, and finite differences."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpmath
import pytest
import torch

from spatialdiff.kernels import Matern, bessel_table
from spatialdiff.kernels.bessel import matern
from spatialdiff.kernels.bessel_table import matern_table

F64 = torch.float64
ORACLES = json.loads((Path(__file__).parents[1] / "oracles" / "families.json").read_text())
ROWS = [row for row in ORACLES if row["family"] == "Matern"]
ORDERS = [0.1, 0.3, 0.8, 1.0, 2.2, 5.3, 9.7, 20.0]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["parameters"]["nu"])
def test_value_and_derivative(row):
    points = row["correlation"]
    r = torch.tensor([float(point["r"]) for point in points], dtype=F64, requires_grad=True)
    value = matern_table(float(row["parameters"]["nu"]), r)
    (slope,) = torch.autograd.grad(value.sum(), r)
    for found, key, tolerance in ((value, "value", 1e-13), (slope, "d_r", 1e-11)):
        exact = torch.tensor([float(point[key]) for point in points], dtype=F64)
        torch.testing.assert_close(found.detach(), exact, rtol=tolerance, atol=1e-300)


@pytest.mark.parametrize("nu", ORDERS)
def test_against_arithmetic_of_thirty_digits(nu):
    """Over the whole range, value, first and second derivative in ``r``."""
    r = torch.logspace(-6, math.log10(300), 90, dtype=F64) / math.sqrt(2 * nu)
    r.requires_grad_()
    value = matern_table(nu, r)
    (first,) = torch.autograd.grad(value.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    exact: list[list[float]] = []
    with mpmath.workdps(40):
        order = mpmath.mpf(nu)
        constant = mpmath.mpf(2) ** (1 - order) / mpmath.gamma(order)
        scale = mpmath.sqrt(2 * order)
        for x in r.tolist():
            s = scale * mpmath.mpf(x)
            bessel = [mpmath.besselk(order - j, s) for j in range(3)]
            # d/ds s^ν K_ν = -s^ν K_{ν-1}, and of that -(s^{ν-1} K_{ν-1} - s^ν K_{ν-2})
            powers = constant * s**order
            rows = (
                powers * bessel[0],
                -scale * powers * bessel[1],
                -(scale**2) * powers * (bessel[1] / s - bessel[2]),
            )
            exact.append([float(v) for v in rows])
    expected = torch.tensor(exact, dtype=F64)
    torch.testing.assert_close(value.detach(), expected[:, 0], rtol=1e-13, atol=0)
    torch.testing.assert_close(first.detach(), expected[:, 1], rtol=1e-13, atol=0)
    # the two terms of the second derivative cancel where it changes sign
    size = expected[:, 2].abs() + (expected[:, 1] / r.detach()).abs()
    assert ((second - expected[:, 2]).abs() <= 1e-12 * size).all()


@pytest.mark.parametrize("nu", ORDERS)
def test_agrees_with_the_integral(nu):
    r = torch.logspace(-9, 2.5, 4000, dtype=F64)
    torch.testing.assert_close(
        matern_table(nu, r), matern(torch.tensor(nu, dtype=F64), r), rtol=2e-12, atol=1e-280
    )


def test_gradients():
    r = torch.tensor([0.03, 0.3, 1.0, 2.5, 7.0], dtype=F64, requires_grad=True)
    for nu in (0.4, 1.0, 2.2, 7.3):
        assert torch.autograd.gradcheck(lambda x, nu=nu: matern_table(nu, x), r)
        assert torch.autograd.gradgradcheck(lambda x, nu=nu: matern_table(nu, x), r)


def test_panels_and_ends_join():
    """Neighbouring numbers on both sides of every panel's and octave's edge, and of the table's."""
    nu, scale = 0.8, math.sqrt(1.6)
    edges = torch.exp2(torch.arange(-22, 9, dtype=F64))[:, None] * (1 + torch.arange(64, dtype=F64) / 64)
    s = edges.reshape(-1)
    below, above = (matern_table(nu, s * (1 + step) / scale) for step in (-1e-15, 1e-15))
    assert ((above - below).abs() <= 1e-15 * (4 * s + 50) * below).all()


def test_extremes():
    r = torch.tensor([0.0, 1e-200, 1e-30, 1e3, 1e200, math.inf], dtype=F64, requires_grad=True)
    for nu in (0.1, 1.0, 10.0):
        value = matern_table(nu, r)
        (slope,) = torch.autograd.grad(value.sum(), r)
        # 1 - ρ ~ r^{2ν} is below rounding, but for the roughest
        torch.testing.assert_close(value[:3].detach(), torch.ones(3, dtype=F64), rtol=0, atol=1e-5)
        assert (value[3:] < 1e-190).all()
        assert (value[4:] == 0).all()
        assert torch.isfinite(slope).all()
        assert (slope[0], slope[5]) == (0, 0)
    assert matern_table(1.0, torch.tensor(math.nan)).isnan()
    assert matern_table(1.0, torch.zeros(0)).shape == (0,)


def test_kernel_uses_it_for_many_distances(monkeypatch):
    kernel = Matern(0.8, 1.3, 2.0)
    x = torch.rand(150, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    calls = []
    table = matern_table
    monkeypatch.setattr(bessel_table, "matern_table", lambda *a: calls.append(a[0]) or table(*a))
    many = kernel.at_pairs(x[:, None], x[None])
    assert calls == [0.8]
    gradient = torch.autograd.grad(many.square().sum(), [kernel.raw_lengthscale, kernel.raw_variance])
    monkeypatch.setattr(bessel_table, "LEAST", 10**9)
    few = kernel.at_pairs(x[:, None], x[None])
    assert calls == [0.8]
    torch.testing.assert_close(many, few, rtol=1e-13, atol=0)
    assert (many.diagonal() == many[0, 0]).all()
    again = torch.autograd.grad(few.square().sum(), [kernel.raw_lengthscale, kernel.raw_variance])
    torch.testing.assert_close(gradient, again, rtol=1e-12, atol=0)
    assert Matern(0.8).correlation(torch.rand(30_000)).dtype == torch.float32
