"""Terrain: parts that share no cell, patches that are what the elevation model holds where they say."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from spatialdiff.data import terrain

SETTINGS = [
    {"patch": 1},
    {"patch": 8, "gap": 0},
    {"patch": 32},
    {"patch": 33, "stride": 5, "test_stride": 3, "held_out": 0.4, "gap": 3},
    {"patch": 64},
    {"patch": 109},
    {"patch": 114, "gap": 0},
]


@pytest.fixture(scope="module")
def model():
    with np.load(Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz") as file:
        return {name: file[name] for name in file.files}


def covered(origin, patch, shape):
    cells = np.zeros(shape, dtype=bool)
    for row, column in origin.tolist():
        assert row + patch <= shape[0]
        assert column + patch <= shape[1]
        cells[row : row + patch, column : column + patch] = True
    return cells


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_parts_share_no_cell_and_keep_the_gap(model, settings):
    patch, gap = settings["patch"], settings.get("gap", 8)
    data = terrain(**settings)
    parts = {}
    for part, fields in (("train", data.train), ("test", data.test)):
        assert fields.shape == (len(data.origin[part]), 1, patch, patch)
        assert len(data.origin[part].unique(dim=0)) == len(fields) > 0
        parts[part] = covered(data.origin[part], patch, model["elevation"].shape)
    assert not (parts["train"] & parts["test"]).any()
    rows = {part: np.flatnonzero(cells.any(axis=1)) for part, cells in parts.items()}
    between = np.abs(rows["train"][:, None] - rows["test"]).min() - 1
    assert between >= gap


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_patch_is_the_elevation_at_its_origin(model, settings):
    patch = settings["patch"]
    data = terrain(**settings)
    elevation = model["elevation"].astype(np.float64)
    rounding = 2.0**-23 * float(np.abs(elevation - elevation.mean()).max())  # of a standardised float32
    for part, fields in (("train", data.train), ("test", data.test)):
        metres = data.standardisation.invert(fields.double())[:, 0].numpy()
        for field, (row, column) in zip(metres, data.origin[part].tolist(), strict=True):
            there = elevation[row : row + patch, column : column + patch]
            assert np.abs(field - there).max() <= rounding


def test_both_parts_reach_across_the_map(model):
    """The relief falls from west to east: a held-out edge would be another landscape."""
    data = terrain(patch=32)
    for origin in data.origin.values():
        assert origin[:, 1].min() == 0
        assert origin[:, 1].max() + 32 + 8 > model["elevation"].shape[1]
    assert len(data.test) > 100
    train, test = (data.origin[part][:, 0] for part in ("train", "test"))
    assert train.min() < test.min() <= test.max() < train.max()


def test_flips_are_added_to_the_training_part():
    plain, flipped = terrain(patch=16, stride=16), terrain(patch=16, stride=16, flips=True)
    count = len(plain.train)
    assert len(flipped.train) == 4 * count
    assert torch.equal(flipped.origin["train"], plain.origin["train"].repeat(4, 1))
    # the same values, in another order: mean and standard deviation agree to rounding
    assert torch.allclose(flipped.standardisation.mean, plain.standardisation.mean, rtol=1e-12)
    quarters = flipped.train.split(count)
    for quarter, axes in zip(quarters, ((), (2,), (3,), (2, 3)), strict=True):
        assert torch.allclose(quarter, plain.train.flip(axes), rtol=0.0, atol=1e-6)
        assert torch.equal(quarter, quarters[0].flip(axes))
    assert torch.allclose(flipped.test, plain.test, rtol=0.0, atol=1e-6)


def test_spacing_is_in_kilometres(model):
    """A degree of the meridian of a sphere of 6371 km, and the same by the cosine of the mean latitude."""
    degree = 2.0 * math.pi * 6371.0 / 360.0
    middle = math.radians(0.5 * (float(model["ymin"]) + float(model["ymax"])))
    grid = terrain(patch=8).grid
    assert grid.spacing[0] == pytest.approx(degree * 3.0 / 3600.0, rel=1e-6)  # three arc seconds
    assert grid.spacing[1] == pytest.approx(degree * 3.0 / 3600.0 * math.cos(middle), rel=1e-6)
    assert grid.periodic == (False, False)
    rows, columns = model["elevation"].shape
    assert rows * float(model["dy"]) == pytest.approx(abs(float(model["ymax"] - model["ymin"])), rel=0.01)
    assert columns * float(model["dx"]) == pytest.approx(float(model["xmax"] - model["xmin"]), rel=0.01)


@pytest.mark.parametrize(
    ("settings", "largest"), [({}, 109), ({"gap": 0}, 114), ({"held_out": 0.9}, 9), ({"gap": 40}, 88)]
)
def test_a_patch_too_large_for_two_parts_is_refused(settings, largest):
    """And the largest that the message names is the largest that fits."""
    for patch in (largest + 1, 500):
        with pytest.raises(ValueError, match=rf"patch={patch} .* use a patch of at most {largest}, or"):
            terrain(patch=patch, **settings)
    assert len(terrain(patch=largest, **settings).test) > 0


def test_values_out_of_range_are_refused():
    for settings in ({"patch": 0}, {"stride": 0}, {"test_stride": -1}):
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=f"{name}={value}; needed at least 1"):
            terrain(**settings)
    for settings in ({"held_out": 0.0}, {"held_out": 1.0}, {"gap": -1}):
        with pytest.raises(ValueError, match="needed 0 < held_out < 1 and gap >= 0"):
            terrain(**settings)
    with pytest.raises(ValueError, match="use a smaller gap, or"):
        terrain(patch=4, gap=171)
