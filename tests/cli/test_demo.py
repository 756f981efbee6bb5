"""The demo in miniature, its page, and the sentences made from its numbers."""

from __future__ import annotations

import csv
import re

import pytest
import yaml

from spatialdiff.cli import main
from spatialdiff.demo import DemoConfig
from spatialdiff.demo.reading import against, at_floor, best_rows, enough, listed, reading

TINY = [
    "--quick",
    *("--patch", "16", "--stride", "12", "--flips", "false", "--width", "8", "--depth", "1"),
    *("--train_steps", "4", "--batch", "8", "--warmup", "1"),
    *("--samples", "16", "--sample_steps", "[2, 3]", "--shown", "3", "--progress", "false"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert main(["demo", *TINY, "--run-dir", str(folder)]) == 0
    return folder


def table(folder):
    with (folder / "metrics.csv").open() as file:
        return {row.pop("fields"): row for row in csv.DictReader(file)}


def test_the_demo_leaves_all_that_it_promises(run):
    rows = table(run)
    assert len(rows) == 3 + 3 * 2  # floor, training, Gaussian field, three models at two numbers of steps
    names = {path.name for path in run.iterdir()}
    assert {"report.html", "config.yaml", "versions.json", "seed.txt", "metrics.csv"} <= names
    assert sum(name.endswith(".png") for name in names) >= 5
    html = (run / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', html)
    assert "<script" not in html
    for words in ("held-out", "fitted Gaussian field", "bridge mixture", "floor", "Versions", "quick run"):
        assert words in html


def test_its_configuration_repeats_it(run, tmp_path, capsys):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["train_steps"] == 4
    assert config["quick"] is True
    again = tmp_path / "again"
    assert main(["demo", "--config", str(run / "config.yaml"), "--run-dir", str(again)]) == 0
    assert table(again) == table(run)
    text = capsys.readouterr().out
    assert "lengthscale" in text  # the fitted parameters are printed
    assert str(again / "report.html") in text.splitlines()[-1]


def test_another_kernel_by_one_line(run, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("noise: kernel\nkernel: spatialdiff.kernels.Exponential\n")
    assert main(["demo", "--config", str(file), *TINY, "--run-dir", str(tmp_path / "run")]) == 0
    ours, other = table(run), table(tmp_path / "run")
    white = [name for name in ours if name.startswith("white-noise")]
    correlated = [name for name in ours if name.startswith("correlated-noise")]
    assert all(ours[name] == other[name] for name in white)
    assert all(ours[name] != other[name] for name in correlated)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patch": 30}, "multiple of 4"),
        ({"samples": 0}, "at least 1"),
        ({"sample_steps": ()}, "sample_steps"),
    ],
)
def test_settings_that_cannot_be(options, says):
    with pytest.raises(ValueError, match=says):
        DemoConfig(**options)


FLOOR = {"a": 1.0, "b": 1.0}


def test_sentences_follow_the_numbers():
    assert listed(["x", "y", "z"]) == "x, y and z"
    assert "cannot be told" in against("M", {"a": 2.0, "b": 3.0}, "G", {"a": 2.1, "b": 3.05}, FLOOR)
    text = against("M", {"a": 1.0, "b": 5.0}, "G", {"a": 2.0, "b": 3.0}, FLOOR)
    assert text == "M is closer to the real terrain than G on a, and further from it on b."
    assert at_floor("M", {"a": 1.2, "b": 1.3}, FLOOR) == "M is within a quarter of the base on a."
    assert at_floor("M", {"a": 2.0, "b": 1.3}, FLOOR) is None


def test_fewest_steps_that_are_enough():
    by_steps = {4: {"a": 9.0, "b": 1.0}, 8: {"a": 2.05, "b": 1.0}, 16: {"a": 2.0, "b": 1.0}}
    assert enough(by_steps, FLOOR) == 8
    assert enough({4: {"a": 1.0, "b": 1.0}, 8: {"a": 2.0, "b": 2.0}}, FLOOR) == 4
    # 8 is as good as 16 only by luck of one measure
    assert enough({4: {"a": 2.0, "b": 1.0}, 8: {"a": 2.0, "b": 5.0}, 16: {"a": 2.0, "b": 1.0}}, FLOOR) == 16


def test_reading_names_the_best_row():
    errors = {"white": {4: {"a": 4.0, "b": 2.0}}, "coloured": {4: {"a": 2.0, "b": 3.0}}}
    assert best_rows(errors, {"a": 5.0, "b": 2.0}, {"a": 2.0, "b": 1.0}) == [
        ("a", "coloured, 4 steps", 1.0, 2.5),
        ("b", "white, 4 steps", 2.0, 2.0),
    ]
    text = " ".join(reading(errors, {"a": 5.0, "b": 2.0}, FLOOR, "white", "coloured"))
    assert (
        "With 4 steps, coloured is closer to the real terrain than white on a, and further from it on b."
        in text
    )
