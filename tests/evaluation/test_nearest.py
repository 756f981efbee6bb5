"""Copies of training fields, and fields that are new."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.evaluation import compare, nearest_distance
from spatialdiff.evaluation.nearest import CHUNK, copying

F64 = torch.float64
GRID = sd.Grid((6, 5))


def test_distance_by_hand():
    x, t = torch.randn(CHUNK + 7, 1, 2, 3, dtype=F64), torch.randn(20, 1, 2, 3, dtype=F64)
    found = nearest_distance(x, t)
    rows = t.flatten(1).tolist()
    expected = [min(math.dist(a, b) for b in rows) for a in x.flatten(1).tolist()]
    # the nearest is chosen in single precision
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_a_copy_is_at_distance_zero(offset):
    """Also of fields far from zero, such as pressures in pascal."""
    training = offset + torch.randn(60, 1, *GRID.shape, dtype=F64)
    copies = training[torch.randperm(60)[:30]]
    assert (nearest_distance(copies, training) == 0).all()
    assert (nearest_distance(offset + torch.randn(5, 1, *GRID.shape, dtype=F64), training) > 0.1).all()


def test_copying_by_hand():
    held_out = torch.linspace(1.0, 3.0, 201, dtype=F64)
    found = copying(torch.tensor([0.0, 0.5, 1.0, 2.5], dtype=F64), held_out)
    # torch's median of an even number is the lower one; 1 % of the held-out ones are below 1.02
    assert found == {"distance": 0.5, "ratio": 0.25, "close": 0.75}
    zero = torch.zeros(4, dtype=F64)
    assert copying(zero, zero)["ratio"] == 1.0
    assert copying(zero + 1, zero)["ratio"] == math.inf


def test_copies_and_new_fields_in_a_report():
    training, fresh, real = torch.randn(3, 200, 1, *GRID.shape, dtype=F64)
    some = fresh.clone()
    some[::10] = training[::10]
    sets = {"copies": training[:50], "new": fresh, "some": some}
    report = compare(sets, real, GRID, training=training, splits=2)
    assert report.nearest["copies"]["ratio"] == 0.0
    assert report.nearest["copies"]["close"] == 1.0
    # standard error of a ratio of two medians, from resampled distances
    new, usual = nearest_distance(fresh, training), nearest_distance(real, training)
    draws = [
        float(new[torch.randint(200, (200,))].median() / usual[torch.randint(200, (200,))].median())
        for _ in range(200)
    ]
    error = float(torch.tensor(draws).std())
    assert error < 0.05
    assert abs(report.nearest["new"]["ratio"] - 1.0) < 5 * error
    # 1 in 100 is expected below the limit, the limit itself being estimated from as many
    assert report.nearest["new"]["close"] < 0.01 + 5 * math.sqrt(2 * 0.01 * 0.99 / 200)
    # a tenth of copies: not in the median, but in the share
    assert report.nearest["some"]["ratio"] > 0.9
    assert report.nearest["some"]["close"] >= 0.1
