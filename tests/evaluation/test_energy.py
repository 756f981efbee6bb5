"""The energy distance against loops, under equal laws, and its standard error against replicates."""

from __future__ import annotations

import math

import pytest
import torch

from spatialdiff.evaluation import energy_distance
from spatialdiff.evaluation.energy import relative_energy

F64 = torch.float64


def mean_distance(pairs):
    return sum(math.dist(a, b) for a, b in pairs) / len(pairs)


def by_hand(x, y):
    x, y = x.flatten(1).tolist(), y.flatten(1).tolist()
    cross = [(a, b) for a in x for b in y]
    xx = [(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    return 2 * mean_distance(cross) - mean_distance(xx) - mean_distance(yy), mean_distance(yy)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (30, 27)])
def test_u_statistic(n, m):
    x, y = torch.randn(n, 1, 2, 3, dtype=F64), torch.randn(m, 1, 2, 3, dtype=F64) + 0.8
    value, within = by_hand(x, y)
    assert energy_distance(x, y)[0] == pytest.approx(value, abs=1e-6)
    relative = math.sqrt(max(value, 0.0) / within)
    assert relative_energy(x.flatten(1), y.flatten(1)) == pytest.approx(relative, abs=1e-5)


def replicates(number, n, m, shift):
    draws = [
        energy_distance(torch.randn(n, 4, dtype=F64) + shift, torch.randn(m, 4, dtype=F64))
        for _ in range(number)
    ]
    return torch.tensor(draws, dtype=F64).T


def test_mean_zero_for_equal_laws():
    values, stated = replicates(800, 9, 14, 0.0)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 5 * error
    assert (values < 0).any()
    # of the right order
    assert 0.2 < float(stated.square().mean().sqrt() / values.std()) < 5.0


def test_a_shift_shows_and_the_standard_error_is_its_spread():
    number, n, m = 600, 60, 80
    values, stated = replicates(number, n, m, 1.0)
    assert (values > 3 * stated).all()
    centred = values - values.mean()
    variance = centred.square().mean()
    # both estimates of the variance have noise; the terms that the first order leaves out are O(1/n) of it
    noise = ((centred.pow(4).mean() - variance**2) / number).sqrt() / variance
    noise = noise + stated.square().std() / math.sqrt(number) / variance
    ratio = stated.square().mean() / variance
    assert abs(float(ratio) - 1.0) < 5 * float(noise) + 2.0 / min(n, m)
    assert float(noise) < 0.1


def test_equal_real_fields():
    real = torch.zeros(4, 3, dtype=F64)
    assert relative_energy(torch.zeros(4, 3, dtype=F64), real) == 0.0
    assert relative_energy(torch.ones(4, 3, dtype=F64), real) == math.inf


@pytest.mark.filterwarnings("error")
def test_fields_may_carry_gradients():
    """Samples of a covariance whose kernel has parameters do."""
    x, y = torch.randn(4, 3, dtype=F64, requires_grad=True), torch.randn(5, 3, dtype=F64)
    assert energy_distance(x, y) == energy_distance(x.detach(), y)
    assert energy_distance(y, x) == energy_distance(y, x.detach())


def test_one_field_is_too_few():
    with pytest.raises(ValueError, match="got 1 and 3"):
        energy_distance(torch.zeros(1, 2), torch.zeros(3, 2))
