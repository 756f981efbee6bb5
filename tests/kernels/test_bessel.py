"""General smoothness: values and derivatives of the Matérn correlation against 50-digit arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.special
import torch

from spatialdiff.kernels import Matern
from spatialdiff.kernels.bessel import bessel_l, matern

ORACLES = json.loads((Path(__file__).parents[1] / "oracles" / "families.json").read_text())
ROWS = [row for row in ORACLES if row["family"] == "Matern"]
F64 = torch.float64


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["parameters"]["nu"])
def test_value_and_derivatives(row):
    """ν from 0.1 to 10, r from 1e-8 to 50: relative errors, also where the correlation is 1 but for 1e-17."""
    points = row["correlation"]
    r = torch.tensor([float(point["r"]) for point in points], dtype=F64, requires_grad=True)
    nu = torch.full_like(r, float(row["parameters"]["nu"]), requires_grad=True)
    value = matern(nu, r)
    d_nu, d_r = torch.autograd.grad(value.sum(), (nu, r))
    for found, key, tolerance in ((value, "value", 1e-12), (d_r, "d_r", 1e-11), (d_nu, "d_nu", 1e-9)):
        exact = torch.tensor([float(point[key]) for point in points], dtype=F64)
        torch.testing.assert_close(found.detach(), exact, rtol=tolerance, atol=1e-300)


def test_second_derivatives():
    """In both arguments and mixed, by gradgradcheck, on both sides of the switch of formulas."""
    nu = torch.tensor([0.3, 1.0, 2.6, 7.0] * 2, dtype=F64, requires_grad=True)
    r = torch.tensor([0.04, 0.05, 0.03, 0.02, 0.7, 2.0, 5.0, 1.3], dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(matern, (nu, r), eps=1e-6, atol=1e-6, rtol=1e-6)


def test_switch_of_formulas_is_invisible():
    q = 4e-3 * torch.tensor([1 - 1e-9, 1 + 1e-9], dtype=F64)
    for nu in (0.1, 0.5, 1.0, 3.2, 10.0):
        below, above = matern(torch.tensor(nu, dtype=F64), (2 * q / nu).sqrt())
        assert abs(float(above - below)) < 1e-9 * abs(1 - float(below)) * 10


def test_extremes():
    nu = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=F64, requires_grad=True)
    r = torch.tensor([[0.0], [1e-200], [1e-30], [1e3], [1e200], [np.inf]], dtype=F64, requires_grad=True)
    value = matern(nu, r)
    assert (value[:3, 1:] == 1).all()
    assert (value[3:, 2:] < 1e-300).all()
    assert (value[4:] == 0).all()
    d_nu, d_r = torch.autograd.grad(value.sum(), (nu, r))
    assert torch.isfinite(d_nu).all()
    assert torch.isfinite(d_r).all()
    assert matern(torch.tensor(1.0), torch.tensor(np.nan)).isnan()
    assert matern(torch.tensor(1.0), torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("nu", [-9.5, -1.0, -0.2, 0.0, 0.5, 3.0, 30.0])
def test_bessel_l_of_any_order(nu):
    q = torch.tensor([1e-12, 1e-3, 0.7, 40.0, 5e3], dtype=F64)
    with mpmath.workdps(30):
        exact = [
            float(2 * mpmath.mpf(x) ** (mpmath.mpf(nu) / 2) * mpmath.besselk(nu, 2 * mpmath.sqrt(x)))
            for x in q.tolist()
        ]
    found = bessel_l(torch.tensor(nu, dtype=F64), q)
    torch.testing.assert_close(found, torch.tensor(exact, dtype=F64), rtol=2e-13, atol=0)
    origin = bessel_l(torch.tensor(nu, dtype=F64), torch.zeros(1, dtype=F64)).item()
    assert origin == (pytest.approx(scipy.special.gamma(nu), rel=1e-13) if nu > 0 else np.inf)


@pytest.mark.parametrize("p", range(10))
def test_half_integers_agree_with_the_integral(p):
    r = torch.logspace(-3, 1.5, 60, dtype=F64)
    closed = Matern(p + 0.5).correlation(r)
    torch.testing.assert_close(closed, matern(torch.tensor(p + 0.5, dtype=F64), r), rtol=1e-12, atol=1e-300)


def test_trainable_smoothness():
    """The parameter, its gradient through a likelihood-like function, and a batch of smoothnesses."""
    kernel = Matern(0.8, 1.3, 2.0, trainable_nu=True)
    assert isinstance(Matern(0.8).nu, float)
    assert kernel.nu.shape == ()
    assert {name for name, _ in kernel.named_parameters()} == {"raw_lengthscale", "raw_variance", "raw_nu"}
    h = torch.rand(9, 2, dtype=F64, generator=torch.Generator().manual_seed(0))

    def loss(raw):
        with torch.no_grad():
            kernel.raw_nu.copy_(raw)
        return kernel.at_lags(h).square().sum() + kernel.spectral_density(h).log().sum()

    (gradient,) = torch.autograd.grad(loss(torch.tensor(np.log(0.8))), kernel.raw_nu)
    step = 1e-5
    difference = (loss(np.log(0.8) + step) - loss(np.log(0.8) - step)).item() / (2 * step)
    assert gradient.item() == pytest.approx(difference, rel=1e-7)
    batch = Matern(torch.tensor([0.4, 1.5, 6.0]), 1.3, trainable_nu=True, batch_shape=(3,))
    for value, nu in zip(batch.at_lags(h), (0.4, 1.5, 6.0), strict=True):
        torch.testing.assert_close(value, Matern(nu, 1.3).at_lags(h), rtol=1e-6, atol=0)


def test_limit_of_large_smoothness():
    """At the largest ν Matérn and Gaussian differ by less than 0.003, as the error message implies."""
    r = torch.linspace(0, 6, 301, dtype=F64)
    difference = (Matern(100.0).correlation(r) - torch.exp(-r.square() / 2)).abs().max().item()
    assert 0.001 < difference < 0.003


@pytest.mark.parametrize("nu", [0.0, -1.0, float("nan"), float("inf"), 101.0])
def test_refuses(nu):
    with pytest.raises(ValueError, match="nu must be"):
        Matern(nu)


def test_refuses_a_batch_without_parameter():
    with pytest.raises(ValueError, match="trainable_nu=True"):
        Matern(torch.tensor([0.5, 1.5]), batch_shape=(2,))
