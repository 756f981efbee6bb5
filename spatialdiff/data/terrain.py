"""Terrain: patches of the elevation model that ships with matplotlib.

`sample_data/jacksboro_fault_dem.npz` is a part of the Shuttle Radar Topography Mission's model around the
Jacksboro fault, Tennessee: 344 × 403 elevations in metres, 3 arc seconds apart. Ridges and valleys make it
far from Gaussian.

The relief falls from west to east, so a held-out part at one edge would be another landscape. Bands of rows
across the whole map are held out instead, a gap away from the rest.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spatialdiff.data.fields import FieldData, from_arrays
from spatialdiff.domains import Grid

KILOMETRES_PER_DEGREE = 6371.0 * math.pi / 180.0


def terrain(
    patch: int = 32,
    stride: int = 4,
    test_stride: int = 8,
    held_out: float = 0.25,
    gap: int = 8,
    flips: bool = False,
) -> FieldData:
    """Square patches of elevation, standardised; train and held-out patches share no cell.

    The spacing of the grid is in kilometres: a degree of longitude is shorter than one of latitude. A row of
    `origin` is the first row and column of a patch in the elevation model.

    Args:
        patch: side of a patch, in cells.
        stride: distance of training patches from one another, in cells; they overlap where it is below
            `patch`.
        test_stride: the same for held-out patches.
        held_out: share of the rows in held-out bands (at least one patch high each).
        gap: rows between training and held-out patches, used by neither.
        flips: add the mirror images (north-south, east-west, both) of the training patches.

    Raises:
        ValueError: a patch too large for two parts, or values out of range.
    """
    import matplotlib

    for name, value in (("patch", patch), ("stride", stride), ("test_stride", test_stride)):
        if value < 1:
            raise ValueError(f"{name}={value}; needed at least 1.")
    if not 0.0 < held_out < 1.0 or gap < 0:
        raise ValueError(f"needed 0 < held_out < 1 and gap >= 0, got held_out={held_out:g} and gap={gap}.")
    with np.load(Path(matplotlib.get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz") as model:
        elevation = torch.from_numpy(model["elevation"].astype(np.float64))
        step_y, step_x = float(model["dy"]), float(model["dx"])
        latitude = 0.5 * (float(model["ymin"]) + float(model["ymax"]))
    train_rows, test_rows = bands(len(elevation), patch, held_out, gap)
    train, train_origin = cut(elevation, train_rows, patch, stride)
    test, test_origin = cut(elevation, test_rows, patch, test_stride)
    if flips:
        train = torch.cat([train, train.flip(1), train.flip(2), train.flip(1, 2)])
        train_origin = train_origin.repeat(4, 1)
    spacing = (
        step_y * KILOMETRES_PER_DEGREE,
        step_x * KILOMETRES_PER_DEGREE * math.cos(math.radians(latitude)),
    )
    return from_arrays(
        train,
        test,
        grid=Grid((patch, patch), spacing),
        name="terrain",
        units="m",
        description=f"elevation around the Jacksboro fault, {patch} x {patch} cells, spacing in km",
        origin={"train": train_origin, "test": test_origin},
    )


def bands(
    rows: int, patch: int, held_out: float, gap: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Rows `[first, last)` of the training and of the held-out bands: two held out, one for large patches."""
    for number in (2, 1):
        height = max(patch, round(held_out * rows / number))
        kept = (rows - number * (height + 2 * gap)) // (number + 1)
        if kept >= patch:
            break
    else:
        largest = min((rows - 2 * gap) // 3, (rows - 2 * gap - round(held_out * rows)) // 2)
        smaller = f"patch of at most {largest}" if largest > 0 else "smaller gap"
        raise ValueError(
            f"patch={patch} with gap={gap} and held_out={held_out:g} leaves no room for training patches on "
            f"{rows} rows; use a {smaller}, or a smaller held_out."
        )
    train, test, row = [], [], 0
    for _ in range(number):
        train.append((row, row + kept))
        test.append((row + kept + gap, row + kept + gap + height))
        row += kept + height + 2 * gap
    train.append((row, rows))
    return train, test


def cut(elevation: Tensor, strips: list[tuple[int, int]], patch: int, stride: int) -> tuple[Tensor, Tensor]:
    """All patches `(N, patch, patch)` of the strips of rows, and the first row and column of each."""
    patches, origins = [], []
    for first, last in strips:
        strip = elevation[first:last].unfold(0, patch, stride).unfold(1, patch, stride)
        patches.append(strip.reshape(-1, patch, patch))
        down, across = torch.arange(strip.shape[0]) * stride + first, torch.arange(strip.shape[1]) * stride
        origins.append(torch.cartesian_prod(down, across))
    return torch.cat(patches), torch.cat(origins)
