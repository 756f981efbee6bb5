"""Air temperature: a common past used once, years kept apart, a warming that is taken out and no more."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from spatialdiff.data import air_temperature, temperature
from spatialdiff.data.temperature import COMMON_UNTIL, HELD_OUT, RUNS


@pytest.fixture(scope="module")
def stored():
    return temperature.read()


@pytest.fixture
def read(stored, monkeypatch):
    """The stored years and a copy of the fields, which a test may change before they are used."""
    years, fields = stored[0], stored[1].copy()
    monkeypatch.setattr(temperature, "read", lambda: (years, fields))
    return years, fields


def pairs(data, part):
    return [tuple(row) for row in data.origin[part].tolist()]


@pytest.mark.parametrize("gap", [0, 1, 4])
def test_no_year_of_a_run_is_in_both_parts_and_the_gap_is_kept(read, gap):
    data = air_temperature(gap=gap)
    train, test = pairs(data, "train"), pairs(data, "test")
    assert (len(train), len(test)) == (len(data.train), len(data.test))
    assert len({*train, *test}) == len(train) + len(test)
    # years before 2000 are the same in both runs: each is used once
    past = [year for _, year in train + test if year < COMMON_UNTIL]
    assert len(past) == len(set(past))
    for _, year in test:
        assert min(abs(year - other) for _, other in train) > gap
    # nothing else is left out: the years of both runs, less a gap at the sides of each block
    apart = {
        year for first, last in HELD_OUT for year in (*range(first - gap, first), *range(last, last + gap))
    }
    wanted = {(run, year) for run in (0, 1) for year in range(2000 if run else 1860, 2100)}
    assert {*train, *test} == {(run, year) for run, year in wanted if year not in apart}


def test_blocks_are_held_out_in_both_runs(read):
    test = set(pairs(air_temperature(), "test"))
    for first, last in HELD_OUT:
        for year in range(first, last):
            assert (0, year) in test
            assert ((1, year) in test) == (year >= COMMON_UNTIL)
    assert any((1, year) in test for year in range(2000, 2100))


def test_fields_are_the_temperature_less_the_course(read):
    years, fields = read
    data = air_temperature(shape=(20, 30), gap=2)
    assert data.grid.shape == (20, 30)
    use = np.array([all(not first - 2 <= year < last + 2 for first, last in HELD_OUT) for year in years])
    anomalies = (fields - temperature.course(years, fields, use))[:, :, :20, :30]
    for part, values in (("train", data.train), ("test", data.test)):
        kelvin = data.standardisation.invert(values.double())[:, 0].numpy()
        wanted = np.stack([anomalies[run, year - 1860] for run, year in pairs(data, part)])
        assert np.abs(kelvin - wanted).max() <= 2.0**-23 * np.abs(wanted).max() + 1e-9


def test_held_out_years_take_no_part(read):
    """Neither in the course nor in the standardisation: the training part does not see them change."""
    years, fields = read
    before = air_temperature()
    for first, last in HELD_OUT:
        fields[:, (years >= first - 1) & (years < last + 1)] += 40.0
    after = air_temperature()
    assert torch.equal(after.train, before.train)
    assert torch.allclose(after.test, before.test + 40.0 / before.standardisation.std.float(), atol=1e-4)


def unexplained(anomalies, length=20):
    """Means over consecutive blocks of years, in their standard errors for a stationary AR(1) series.

    Mean squares of differences at lags 1 and 2, halved, are `σ²(1 − ρ)` and `σ²(1 − ρ²)`: a slow course
    hardly enters them, so that the error is that of the weather, whatever is left of the trend. The variance
    of the mean of m years is close to `σ² (1 + ρ) / ((1 − ρ) m)`.
    """
    first, second = (np.mean((anomalies[lag:] - anomalies[:-lag]) ** 2) / 2.0 for lag in (1, 2))
    rho = second / first - 1.0
    error = np.sqrt(first / (1.0 - rho) * (1.0 + rho) / (1.0 - rho) / length)
    return np.abs(anomalies.reshape(-1, length).mean(1)) / error


def test_no_trend_is_left_where_a_straight_line_would_leave_one(read, monkeypatch):
    """24 blocks of twenty years: a standard normal beyond 4 in one of them has a probability of 0.0015."""
    years, fields = read
    use = ~np.any([(years >= first - 1) & (years < last + 1) for first, last in HELD_OUT], axis=0)

    def left():
        means = (fields - temperature.course(years, fields, use)).mean((2, 3))
        return np.concatenate([unexplained(run) for run in means])

    assert left().max() < 4.0
    monkeypatch.setattr(temperature, "natural_spline", lambda x, knots: (x[:, None] - 1980.0) ** np.arange(2))
    monkeypatch.setattr(temperature, "KNOTS", (1860.0, 2099.0))
    assert left().max() > 10.0
    assert (left() > 4.0).sum() > len(left()) // 3


def test_both_parts_vary_alike(read):
    data = air_temperature()
    assert float(data.train.double().var(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert float(data.test.double().var(correction=0)) == pytest.approx(1.0, rel=0.15)


def test_the_spline_is_straight_at_its_ends_and_reproduces_lines_and_knots():
    knots = np.array(temperature.KNOTS)
    assert np.allclose(temperature.natural_spline(knots, knots), np.eye(len(knots)), atol=1e-12)
    years = np.arange(1860.0, 2100.0)
    basis = temperature.natural_spline(years, knots)
    for values in (np.ones_like(knots), knots - 1980.0):
        line = np.ones_like(years) if values[0] == 1.0 else years - 1980.0
        assert np.allclose(basis @ values, line, atol=1e-10)
    ends = temperature.natural_spline(np.array([1859.9, 1860.0, 1860.1, 2098.9, 2099.0, 2099.1]), knots)
    curvature = np.diff(ends.reshape(2, 3, -1), n=2, axis=1) / 0.1**2
    inside = temperature.natural_spline(np.array([1899.9, 1900.0, 1900.1]), knots)
    assert np.abs(curvature).max() < 0.01 * np.abs(np.diff(inside, n=2, axis=0) / 0.1**2).max()


def test_years_that_do_not_fix_the_course_are_refused(read):
    with pytest.raises(ValueError, match="0 training years do not determine a spline of 7 knots"):
        air_temperature(gap=60)
    for settings in ({"shape": (38, 49)}, {"shape": (37, 50)}, {"shape": (0, 4)}, {"gap": -1}):
        with pytest.raises(ValueError, match=r"needed a shape of at most \(37, 49\) and gap >= 0"):
            air_temperature(**settings)
    assert air_temperature(shape=(37, 49)).train.shape[1:] == (1, 37, 49)


@pytest.mark.parametrize("module", ["h5py", "iris_sample_data"])
def test_a_missing_extra_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"needs {module}: pip install 'spatialdiff\[data\]'"
    ) as caught:
        air_temperature()
    assert caught.value.name == module


def test_runs_that_differ_in_the_past_are_refused(monkeypatch):
    """Another edition of the data, in which a held-out year could be seen in training."""
    import h5py

    class Edition(h5py.File):
        def __getitem__(self, name):
            values = super().__getitem__(name)[...]
            if RUNS[1] in self.filename:
                values[1999 - 1860, 3, 4] += 0.01
            return values

    monkeypatch.setattr(h5py, "File", Edition)
    with pytest.raises(RuntimeError, match="The two runs differ before 2000"):
        air_temperature()


def test_years_are_those_of_the_files(stored):
    """The files count hours; a year is counted from 1860 on, once each."""
    from pathlib import Path

    import h5py
    import iris_sample_data

    years, fields = stored
    assert fields.shape == (2, 240, 37, 49)
    for run in RUNS:
        with h5py.File(Path(iris_sample_data.path) / f"{run}_north_america.nc") as file:
            hours = file["time"][:]
            units = file["time"].attrs["units"]
    assert b"1970" in units if isinstance(units, bytes) else "1970" in units
    assert np.array_equal(np.floor(1970.0 + hours / (360.0 * 24.0)), years)
    assert 240.0 < fields.min() < fields.max() < 320.0
