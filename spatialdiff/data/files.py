"""Fields from a file of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatialdiff.data.fields import FieldData, from_arrays
from spatialdiff.data.images import from_codes
from spatialdiff.domains import Grid


def from_file(
    path: str | Path,
    spacing: float | Sequence[float] = 1.0,
    periodic: bool | Sequence[bool] = False,
    channels: bool = False,
    held_out: float = 0.2,
    name: str | None = None,
    units: str = "",
    levels: int | None = None,
    seed: int = 0,
) -> FieldData:
    """Fields from a `.npy` file, or from the arrays `train` and `test` of a `.npz` file.

    Args:
        path: the file; arrays `(N, *grid)`, or `(N, C, *grid)` with `channels`.
        spacing, periodic: of the grid, as for `Grid`.
        channels: whether the second axis is one of channels.
        held_out: share of the fields, the last ones, that is held out where the file has no `test`.
        name, units: for pictures and reports; the name of the file where none is given.
        levels: of integers from 0 to `levels - 1`, such as 256 of 8-bit images, which are dequantised
            (`from_codes`); None for continuous fields.
        seed: of the dequantisation noise.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: `levels` of values that are not integers.
        ValueError: a file of another kind, no array `train`, or what `from_arrays` and `from_codes` refuse.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of fields at {path}.")
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"held_out={held_out:g}; needed a share of at least 0 and below 1.")
    train, test = _arrays(path)
    if train.ndim < (3 if channels else 2):
        needed = "(N, C, *grid)" if channels else "(N, *grid)"
        raise ValueError(f"train has shape {train.shape}; needed {needed} with a grid of 1 to 3 axes.")
    if test is None and held_out > 0.0:
        kept = len(train) - round(held_out * len(train))
        train, test = train[:kept], train[kept:]
    grid = Grid(train.shape[2 if channels else 1 :], spacing, periodic)
    if levels is not None:
        held = train[:0] if test is None else test
        codes = (_codes(part, label) for part, label in ((train, "train"), (held, "test")))
        return from_codes(*codes, levels=levels, grid=grid, name=name or path.stem, seed=seed)
    if test is not None and len(test) == 0:
        test = None
    return from_arrays(train, test, grid=grid, name=name or path.stem, units=units)


def _codes(values: NDArray[Any], name: str) -> Tensor:
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} holds values of type {values.dtype}; levels= needs integers")
    return torch.from_numpy(values.astype(np.int64))


def _arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The training fields and, where the file has them, the held-out ones."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is no whole .npy or .npz file of numbers: {error}") from error
    if isinstance(loaded, np.ndarray):
        return loaded, None
    with loaded:
        if "train" not in loaded:
            raise ValueError(f"{path} has no array 'train'; it holds {', '.join(loaded.files) or 'nothing'}.")
        return loaded["train"], loaded.get("test")
