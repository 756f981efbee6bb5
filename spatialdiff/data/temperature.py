r"""Air temperature: yearly anomalies over North America from two climate simulations.

`iris-sample-data` (extra `data`) holds two climate simulations under the scenarios E1 and A1B, 240 years from
1860 each on 37 × 49 sites; they are one and the same up to the year 2000, a past which is used once. A site's
temperature is

.. math:: T_{r,y} = m_r(y) + x_{r,y},

with :math:`m_r` a smooth course in time of run :math:`r`, a natural cubic spline in the years with knots some
forty years apart, and :math:`x` the anomaly. The warming is no straight line: with one, the anomalies of the
last decades would keep a common sign. The course is fitted to training years only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spatialdiff.data.fields import FieldData, from_arrays
from spatialdiff.domains import Grid

RUNS = ("E1", "A1B")
FIRST_YEAR, COMMON_UNTIL = 1860, 2000
# held out in both runs: two blocks of the common past, two of the diverging future
HELD_OUT = ((1890, 1905), (1950, 1965), (2025, 2040), (2070, 2085))
KNOTS = (1860.0, 1900.0, 1940.0, 1980.0, 2020.0, 2060.0, 2099.0)


def air_temperature(shape: tuple[int, int] = (32, 48), gap: int = 1) -> FieldData:
    """Yearly mean air temperature less its smooth course, standardised; blocks of years are held out.

    Latitude runs along the first axis, northwards; the grid's spacing is in degrees, 1.25 by 1.875. No metric
    of the sphere is applied: a degree of longitude counts the same at every latitude. A row of `origin` is
    the run (0: E1, 1: A1B) and the year; years up to 1999 stand under E1.

    Args:
        shape: sites that are kept, from the south-western corner; at most (37, 49).
        gap: years left out at each side of a held-out block, because neighbouring years are correlated.

    Raises:
        ModuleNotFoundError: the extra `data` is not installed.
        ValueError: a shape larger than the data, or a gap that is negative or leaves too few years to fit.
    """
    years, fields = read()
    rows, columns = shape
    if not (1 <= rows <= fields.shape[2] and 1 <= columns <= fields.shape[3]) or gap < 0:
        raise ValueError(
            f"needed a shape of at most {fields.shape[2:]} and gap >= 0, got shape={shape} and gap={gap}."
        )
    held = np.any([(years >= first) & (years < last) for first, last in HELD_OUT], axis=0)
    near = np.any([(years >= first - gap) & (years < last + gap) for first, last in HELD_OUT], axis=0)
    anomalies = fields[:, :, :rows, :columns] - course(years, fields[:, :, :rows, :columns], ~near)
    parts: dict[str, list[NDArray[np.float64]]] = {"train": [], "test": []}
    origins: dict[str, list[NDArray[np.int64]]] = {"train": [], "test": []}
    for run in range(len(RUNS)):
        fresh = years >= (COMMON_UNTIL if run else FIRST_YEAR)
        for part, chosen in (("train", fresh & ~near), ("test", fresh & held)):
            parts[part].append(anomalies[run, chosen])
            origins[part].append(np.stack([np.full(chosen.sum(), run), years[chosen]], axis=1))
    return from_arrays(
        np.concatenate(parts["train"]),
        np.concatenate(parts["test"]),
        grid=Grid(shape, (1.25, 1.875)),
        name="air temperature",
        units="K",
        description="yearly mean air temperature, North America, less its smooth course; spacing in degrees",
        origin={part: torch.from_numpy(np.concatenate(rows)) for part, rows in origins.items()},
    )


def read() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Years `(240,)` and temperatures `(run, year, latitude, longitude)` in kelvin."""
    try:
        import h5py
        import iris_sample_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Air temperature needs {error.name}: pip install 'spatialdiff[data]'.", name=error.name
        ) from error
    runs: list[Any] = []
    for run in RUNS:
        with h5py.File(Path(iris_sample_data.path) / f"{run}_north_america.nc") as file:
            runs.append(file["air_temperature"][:].astype(np.float64))
    fields = np.stack(runs)
    years = np.arange(FIRST_YEAR, FIRST_YEAR + fields.shape[1])
    common = years < COMMON_UNTIL
    if not np.array_equal(fields[0, common], fields[1, common]):
        raise RuntimeError(
            f"The two runs differ before {COMMON_UNTIL}: this is not the edition of iris-sample-data that "
            "was expected (2.5); a held-out year of one run could be a training year of the other."
        )
    return years, fields


def course(
    years: NDArray[np.int64], fields: NDArray[np.float64], use: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The smooth course of each run and site: least squares on the natural cubic spline, years `use` only.

    Raises:
        ValueError: years that do not determine the spline.
    """
    basis = natural_spline(years.astype(np.float64), np.array(KNOTS))
    runs, count = fields.shape[:2]
    values = fields.transpose(1, 0, 2, 3).reshape(count, -1)
    coefficients, _, rank, _ = np.linalg.lstsq(basis[use], values[use], rcond=None)
    if rank < len(KNOTS):
        raise ValueError(
            f"{use.sum()} training years do not determine a spline of {len(KNOTS)} knots; use a smaller gap."
        )
    return (basis @ coefficients).reshape(count, runs, *fields.shape[2:]).transpose(1, 0, 2, 3)


def natural_spline(x: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns `(len(x), len(knots))` spanning the cubic splines that are straight beyond the outer knots:
    the interpolants of the unit vectors."""
    from scipy.interpolate import CubicSpline

    return np.asarray(CubicSpline(knots, np.eye(len(knots)), bc_type="natural")(x))
