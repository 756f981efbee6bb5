"""What `compare` does with its samples, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.evaluation import METRICS, Metric, compare
from spatialdiff.evaluation.compare import _halves, _subsets
from spatialdiff.kernels import Matern

F64 = torch.float64
GRID = sd.Grid((6, 5), spacing=(1.0, 0.5))
NAMES = [metric.name for metric in METRICS]


def noise(number, *channels, grid=GRID, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, *channels, *grid.shape, generator=generator, dtype=F64)


def recorder(sizes):
    """A metric that notes how many fields each summary is of."""

    def summary(rows):
        sizes.append(len(rows))
        return rows.mean(0)

    return Metric(
        "recorder", lambda x, grid: x.flatten(2), summary, lambda a, b: float((a - b).square().mean())
    )


# -- samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "sets", "training", "size"),
    [(20, (50,), None, 10), (21, (50, 30), None, 10), (40, (7, 50), None, 7), (40, (50,), 5, 5)],
)
def test_every_sample_has_the_same_size(real, sets, training, size):
    sizes: list[int] = []
    generated = {f"set {i}": noise(n, seed=i) for i, n in enumerate(sets)}
    learned = None if training is None else noise(training, seed=8)
    report = compare(
        generated, noise(real, seed=9), GRID, training=learned, metrics=[recorder(sizes)], splits=5
    )
    assert report.size == size
    assert report.splits == 5
    rows = len(sets) + (training is not None)
    assert sizes == [size] * (5 * (2 + rows))
    assert set(report.floor) == set(report.errors("set 0")) == {"recorder"}
    counts = {"held-out data": real, **{name: len(x) for name, x in generated.items()}}
    assert report.counts == (counts if training is None else {**counts, "training data": training})


def test_halves_are_disjoint_and_swapped():
    pairs = _halves(11, 4, 5, torch.Generator().manual_seed(0))
    assert len(pairs) == 5
    for one, other in pairs:
        assert len(set(one.tolist()) | set(other.tolist())) == 8
    for i in (0, 2):
        assert pairs[i][0].tolist() == pairs[i + 1][1].tolist()
        assert pairs[i][1].tolist() == pairs[i + 1][0].tolist()
    assert pairs[0][0].tolist() != pairs[2][0].tolist()


def test_subsets_use_all_fields_equally_often():
    parts = _subsets(12, 4, 6, torch.Generator().manual_seed(0))
    assert [len(set(part.tolist())) for part in parts] == [4] * 6
    assert torch.bincount(torch.cat(parts)).tolist() == [2] * 12


def test_floor_and_error_by_hand():
    """With one split that exhausts both sets, from the definitions."""
    generated, real = noise(4, seed=1), noise(8, seed=2)
    standard = (real - real.mean()) / real.std(correction=0)
    ours = (generated - real.mean()) / real.std(correction=0)
    metric = Metric(
        "mean", lambda x, grid: x.flatten(2), lambda rows: rows.mean(0), lambda a, b: float((a - b).norm())
    )
    generator = torch.Generator().manual_seed(5)
    report = compare(generated, real, GRID, metrics=[metric], splits=1, generator=generator)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    one, other = standard[order[:4]], standard[order[4:]]
    assert report.floor["mean"] == pytest.approx(float((one.mean(0) - other.mean(0)).norm()), rel=1e-12)
    assert report.errors()["mean"] == pytest.approx(float((ours.mean(0) - other.mean(0)).norm()), rel=1e-12)
    assert report.floor_spread["mean"] == 0


def test_error_is_the_floor_for_fields_of_the_same_law():
    """Measures that no change of units alters: there generated and real halves are exchangeable."""
    grid = sd.Grid(24)
    law = sd.covariance(Matern(nu=1.5, lengthscale=3.0), grid).double()
    source = torch.Generator().manual_seed(1)
    names = ("variogram", "gradients", "curvature")
    metrics = [metric for metric in METRICS if metric.name in names]
    gaps = []
    for _ in range(60):
        fields = law.sample((45,), generator=source)
        report = compare(fields[:15], fields[15:], grid, metrics=metrics, splits=2)
        gaps.append([report.errors()[name] - report.floor[name] for name in names])
    gap = torch.tensor(gaps, dtype=F64)
    error = gap.std(0) / math.sqrt(len(gap))
    assert (gap.mean(0).abs() < 5 * error).all()


def test_every_column_sees_the_fault_it_is_for():
    real, good = noise(60, seed=1), noise(60, seed=2)
    wrong = {
        "spectrum": 1.5 * good,
        "variogram": good.cumsum(-1) / 2,
        "marginal": good + 0.5,
        "gradients": good.cumsum(-2),
        "curvature": good.pow(3),
        "energy distance": good + 0.5,
    }
    assert list(wrong) == NAMES
    report = compare({"good": good, **wrong}, real, GRID)
    for name in NAMES:
        assert report.errors(name)[name] > report.floor[name] + 5 * report.floor_spread[name]
        assert report.errors(name)[name] > 1.5 * report.errors("good")[name]
    assert report.energy["marginal"]["value"] > 5 * report.energy["marginal"]["standard error"]
    assert abs(report.energy["good"]["value"]) < 5 * report.energy["good"]["standard error"]


def test_units_of_the_reference():
    """Errors do not depend on units; a wrong mean in the generated fields stays visible."""
    generated, real = noise(12, seed=1) + 0.3, noise(30, seed=2)
    one = compare(generated, real, GRID)
    other = compare(10.0 + 5.0 * generated, 10.0 + 5.0 * real, GRID)
    for name in NAMES:
        assert other.errors()[name] == pytest.approx(one.errors()[name], rel=1e-5)
        assert other.floor[name] == pytest.approx(one.floor[name], rel=1e-5)
    flat = real.flatten()
    expected = (generated.mean() - flat.mean()) / flat.std(correction=0)
    assert one.moments["generated"]["values"]["mean"] == pytest.approx(float(expected), rel=1e-10)
    assert one.moments["held-out data"]["values"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert one.moments["held-out data"]["values"]["std"] == pytest.approx(1.0, rel=1e-12)


# -- interface ----------------------------------------------------------------------------------------------


def test_the_same_numbers_every_time():
    sets, real, training = {"a": noise(12, seed=1), "b": noise(20, seed=2)}, noise(26), noise(15, seed=3)
    one = compare(sets, real, GRID, training=training)
    torch.manual_seed(99)
    torch.randn(3)
    assert compare(sets, real, GRID, training=training).numbers == one.numbers
    elsewhere = torch.Generator().manual_seed(1)
    other = compare(sets, real, GRID, training=training, generator=elsewhere)
    assert other.floor != one.floor
    # of all fields, whatever the splits
    assert other.energy == one.energy
    assert other.nearest == one.nearest


def test_a_tensor_is_the_set_named_generated():
    x, real = noise(9, seed=1), noise(20)
    report = compare(x, real, GRID)
    assert list(report.names) == ["generated"]
    assert report.errors() == report.errors("generated") == compare({"generated": x}, real, GRID).errors()
    assert compare(x.numpy(), real.numpy(), GRID).numbers == report.numbers


def test_several_sets_have_a_row_each():
    report = compare({"a": noise(9, seed=1), "b": noise(11, seed=2)}, noise(20), GRID)
    assert list(report.names) == ["a", "b"]
    for name in report.names:
        assert list(report.errors(name)) == list(report.floor) == NAMES
        assert all(math.isfinite(value) and value >= 0 for value in report.errors(name).values())
    assert report.errors("a") != report.errors("b")
    with pytest.raises(KeyError, match="it has a, b"):
        report.errors()
    with pytest.raises(KeyError, match="'c'"):
        report.errors("c")
    assert report.training is None
    assert report.nearest == {}


def test_equally_large_sets_are_compared_in_pairs():
    x = noise(30, seed=1)
    report = compare({"one": x, "same": x.clone()}, noise(20), GRID)
    assert report.errors("one") == report.errors("same")


def test_training_data_have_their_row():
    training, real = noise(14, seed=1), noise(20)
    report = compare(noise(14, seed=2), real, GRID, training=training)
    assert report.training is not None
    assert list(report.training) == NAMES
    assert report.training == report.errors("training data")
    # the row is what the training fields would score as a set of their own
    assert report.training == compare(training, real, GRID, training=training).errors()
    assert set(report.nearest["generated"]) == {"distance", "ratio", "close"}


@pytest.mark.parametrize(
    ("grid", "channels"),
    [
        (GRID, (3,)),
        (sd.Grid(9, spacing=0.2), ()),
        (sd.Grid(8, periodic=True), (2,)),
        (sd.Grid((4, 3, 5)), ()),
        (sd.Grid((4, 2, 3), periodic=(True, False, False)), (2,)),
        (sd.Grid((1, 7)), ()),
    ],
    ids=["channels", "1d", "1d-channels", "3d", "3d-channels", "one-site"],
)
def test_channels_and_dimensions(grid, channels):
    real, good = noise(24, *channels, grid=grid, seed=1), noise(12, *channels, grid=grid, seed=2)
    bad = good.clone()
    bad[(slice(None), -1) if channels else slice(None)] *= 2.0  # the last channel, or the only one
    report = compare({"good": good, "bad": bad}, real, grid, training=noise(12, *channels, grid=grid, seed=3))
    for name in NAMES:
        assert math.isfinite(report.floor[name])
    for name in ("spectrum", "variogram", "marginal", "gradients", "curvature"):
        assert report.errors("bad")[name] > report.errors("good")[name]
    assert set(report.curves) == {"spectrum", "variogram", "marginal", "gradients", "curvature"}
    assert report.fields["good"].shape == (12, *(channels or (1,)), *grid.shape)


def test_one_channel_may_be_left_out():
    x, real = noise(9, seed=1), noise(20)
    assert compare(x.unsqueeze(1), real, GRID).numbers == compare(x, real, GRID).numbers


# -- refusals -----------------------------------------------------------------------------------------------


def test_missing_values_are_counted():
    x = noise(6, 1)
    x[2, 0, 1, 3] = math.nan
    x[2, 0, 4, 4] = math.inf
    x[5, 0, 0, 0] = -math.inf
    with pytest.raises(
        ValueError, match=r"generated.* have 3 missing or infinite values of 180, in 2 of 6"
    ) as e:
        compare(x, noise(8), GRID)
    assert "(2, 0, 1, 3), (2, 0, 4, 4), (5, 0, 0, 0)" in str(e.value)
    with pytest.raises(ValueError, match="reference fields have 3 missing"):
        compare(noise(6), x, GRID)
    with pytest.raises(ValueError, match="training fields have 3 missing"):
        compare(noise(6), noise(8), GRID, training=x)


@pytest.mark.parametrize("shape", [(6, 5, 6), (6, 1, 5, 6), (6, 5), (6, 1, 1, 6, 5)])
def test_another_shape(shape):
    with pytest.raises(ValueError, match=r"needed \(N, \*grid\) or \(N, C, \*grid\) with grid = \(6, 5\)"):
        compare(torch.randn(shape), noise(8), GRID)


def test_other_bad_input():
    x, real = noise(6), noise(8)
    with pytest.raises(ValueError, match=r"'generated' have 2 channel\(s\) and the reference 1"):
        compare(noise(6, 2), real, GRID)
    with pytest.raises(ValueError, match=r"'training data' have 2 channel"):
        compare(x, real, GRID, training=noise(6, 2))
    with pytest.raises(ValueError, match=r"reference fields hold 3 .* two halves"):
        compare(x, real[:3], GRID)
    with pytest.raises(ValueError, match=r"'generated' hold 1 .* at least 2"):
        compare(x[:1], real, GRID)
    with pytest.raises(ValueError, match="dictionary is empty"):
        compare({}, real, GRID)
    with pytest.raises(ValueError, match="splits=0"):
        compare(x, real, GRID, splits=0)
    with pytest.raises(ValueError, match="complex"):
        compare(torch.complex(x, x), real, GRID)
    with pytest.raises(ValueError, match="no axis of at least 4 sites"):
        compare(torch.randn(6, 3, 3), torch.randn(8, 3, 3), sd.Grid((3, 3)))


@pytest.mark.parametrize("name", ["held-out data", "training data", "floor: real against real"])
def test_rows_of_the_report_are_no_names_of_sets(name):
    with pytest.raises(ValueError, match="name rows of the report"):
        compare({name: noise(6)}, noise(8), GRID)


@pytest.mark.parametrize("level", [0.0, 281.3])
def test_a_constant_channel_of_the_reference(level):
    real = noise(8, 2)
    real[:, 1] = level
    with pytest.raises(ValueError, match=r"Channel\(s\) \[1\] of the reference are constant"):
        compare(noise(6, 2), real, GRID)


def test_a_reference_that_does_not_vary_in_space():
    real = torch.randn(12, 1, 1, dtype=F64).expand(12, *GRID.shape)
    with pytest.raises(ValueError, match="constant in space"):
        compare(noise(6), real, GRID)
