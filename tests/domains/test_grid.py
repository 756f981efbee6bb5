"""Grids."""

from __future__ import annotations

import pickle

import pytest
import torch

import spatialdiff as sd


def test_one_value_or_one_per_axis():
    grid = sd.Grid((4, 6), spacing=0.5, periodic=(True, False))
    assert grid.shape == (4, 6)
    assert grid.spacing == (0.5, 0.5)
    assert grid.periodic == (True, False)
    assert grid.extent == (2.0, 3.0)
    assert (grid.ndim, grid.size, grid.cell_volume) == (2, 24, 0.25)
    assert sd.Grid(5) == sd.Grid((5,), 1.0, False)


def test_coordinates():
    x = sd.Grid((2, 3), spacing=(0.5, 2.0)).coordinates()
    assert x.shape == (2, 3, 2)
    assert x.dtype == torch.float64
    assert x[1, 2].tolist() == [0.5, 4.0]


def test_is_a_value():
    grid = sd.Grid((4, 6), 0.5)
    assert {grid: 1}[sd.Grid([4, 6], (0.5, 0.5))] == 1
    assert grid != sd.Grid((4, 6))
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert repr(grid) == "Grid(shape=(4, 6), spacing=(0.5, 0.5), periodic=(False, False))"
    with pytest.raises(AttributeError):
        grid.shape = (1,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "1, 2 or 3 axes"),
        (((2, 2, 2, 2),), "1, 2 or 3 axes"),
        (((4, 0),), "at least 1"),
        (((4, 2.5),), "whole number"),
        (((4, 4), (1.0, 2.0, 3.0)), "3 entries for 2 axes"),
        (((4, 4), 0.0), "positive"),
        (((4, 4), (1.0, float("nan"))), "positive"),
        (((4, 4), 1.0, (True,)), "1 entries for 2 axes"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sd.Grid(*arguments)
