"""The report as text, as numbers, as pictures, in a folder."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import spatialdiff as sd
from spatialdiff.evaluation import compare

GRID = sd.Grid((6, 8), spacing=0.5)


def noise(number, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, *GRID.shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def report():
    sets = {"good": noise(12, 1), "a|b*": 1.5 * noise(12, 2)}
    return compare(sets, noise(24, 3), GRID, training=noise(12, 4), splits=2)


@pytest.fixture(scope="module")
def single():
    return compare(noise(12, 1), noise(24, 3), GRID, splits=2)


def cells(report):
    """Row name → the numbers printed, stars taken off."""
    names = ["floor: real against real", "training data", *report.names]
    found = {}
    for line in report.table().splitlines():
        for name in names:
            if line.startswith(name + " "):
                found[name] = line[len(name) :].split()
    return found


def test_table_holds_the_numbers(report):
    found = cells(report)
    assert list(found) == ["floor: real against real", "training data", "good", "a|b*"]
    rows = {"floor: real against real": report.floor, "training data": report.training}
    rows |= {name: report.errors(name) for name in report.names}
    for name, errors in rows.items():
        printed = [float(cell.rstrip("*")) for cell in found[name]]
        for value, exact in zip(printed, errors.values(), strict=False):
            assert value == pytest.approx(exact, rel=6e-3)
        extra = len(printed) - len(errors)
        assert extra == (0 if name == "training data" else 1)
    assert float(found["good"][-1]) == pytest.approx(report.nearest["good"]["ratio"], abs=5.1e-3)
    head = report.table().splitlines()[0]
    assert re.split(r"\s{2,}", head.strip()) == [*report.floor, "nearest training"]
    assert str(report) == report.table()


def test_the_smallest_error_of_a_column_has_a_star(report, single):
    found = cells(report)
    for j, metric in enumerate(report.floor):
        best = min(report.names, key=lambda name, m=metric: report.errors(name)[m])
        assert [name for name in report.names if found[name][j].endswith("*")] == [best]
    assert "*" not in single.table()


def test_markdown_is_a_table(report, single):
    for each in (report, single):
        lines = [line for line in each.markdown().splitlines() if line.startswith("|")]
        assert len(lines) == 3 + len(each.names) + (each.training is not None)
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
        assert bars == {len(each.floor) + 2 + bool(each.nearest)}
        assert re.fullmatch(r"\|---(\|---:)+\|", lines[1])
    assert r"a\|b\*" in report.markdown()


def test_numbers_are_plain(report, single):
    for each in (report, single):
        assert json.loads(json.dumps(each.numbers, allow_nan=False)) == each.numbers
    assert report.numbers["errors"] == {name: report.errors(name) for name in report.names}
    assert report.numbers["grid"] == {"shape": [6, 8], "spacing": [0.5, 0.5], "periodic": [False, False]}
    assert single.numbers["training data"] is None


def test_folder(report, tmp_path):
    out = report.save(tmp_path / "some" / "where")
    assert out == tmp_path / "some" / "where"
    names = {"numbers.json", "table.txt", "table.md", "curves.json", "curves.png", "fields.png"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "numbers.json").read_text()) == report.numbers
    assert (out / "table.txt").read_text() == report.table() + "\n"
    assert (out / "table.md").read_text() == report.markdown() + "\n"
    for name in ("curves.png", "fields.png"):
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
    drawn = json.loads((out / "curves.json").read_text())
    assert set(drawn) == set(report.curves)
    for metric, panel in report.curves.items():
        for name, (x, y) in panel.curves.items():
            assert drawn[metric][name] == [x, y]


def test_a_folder_is_overwritten(report, single, tmp_path):
    report.save(tmp_path)
    single.save(str(tmp_path))
    assert json.loads((tmp_path / "numbers.json").read_text()) == single.numbers


def test_pictures(report):
    curves, fields = report.plot(), report.plot_fields(columns=3)
    assert isinstance(curves, Figure)
    assert isinstance(fields, Figure)
    titles = [axis.get_title(loc="left") for axis in curves.axes]
    assert [t for t in titles if t] == ["Power spectrum", "Variogram", "Values", "Gradients", "Curvature"]
    images = [axis for axis in fields.axes if axis.images and axis.get_label() != "<colorbar>"]
    assert len(images) == 3 * (1 + len(report.names))


def test_curves_are_those_of_the_metrics(report):
    """Densities integrate to at most one, spectra to the mean power."""
    for metric in ("marginal", "gradients", "curvature"):
        x, y = report.curves[metric].curves["held-out data"]
        width = np.diff(x).min()
        assert float(np.sum(y) * width) == pytest.approx(1.0, abs=1e-3)
    assert len(report.curves["spectrum"].bands) == 4
    only = report.curves["spectrum"].only(["good"])
    assert list(only.curves) == ["good"]
    assert only.title == "Power spectrum"
