"""Run folders: whole files or none, refusal to mix runs, provenance."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch

from spatialdiff.runs import RunFolder, digest, git_revision, versions, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    target = tmp_path / "numbers.txt"
    write_atomically(target, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.txt"]


def test_create_refuses_a_folder_that_holds_files(tmp_path):
    RunFolder.create("fit", tmp_path / "a").write_text("config.yaml", "x: 1\n")
    with pytest.raises(FileExistsError, match="--overwrite"):
        RunFolder.create("fit", tmp_path / "a")
    assert RunFolder.create("fit", tmp_path / "a", overwrite=True).path == tmp_path / "a"
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        RunFolder.create("fit", tmp_path / "file")


def test_unnamed_folders_of_the_same_second_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "20300101-000000")
    runs = []
    for _ in range(3):
        runs.append(RunFolder.create("fit", root=tmp_path))
        assert not runs[-1].path.exists()
        runs[-1].write_text("seed.txt", "0")
    assert [run.path.name for run in runs] == [
        "fit-20300101-000000",
        "fit-20300101-000000-2",
        "fit-20300101-000000-3",
    ]


def test_open_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"fit\.pt"):
        RunFolder.open(tmp_path, "fit.pt")


def test_tables_arrays_and_tensors_come_back(tmp_path):
    run = RunFolder(tmp_path / "r")
    run.write_csv("metrics.csv", [{"a": 1, "b": 2.5}, {"a": 3, "c": "x, y"}])
    assert (run / "metrics.csv").read_text() == 'a,b,c\n1,2.5,\n3,,"x, y"\n'
    run.write_arrays("fields.npz", fields=torch.arange(6.0).reshape(2, 3))
    with np.load(run / "fields.npz") as arrays:
        np.testing.assert_array_equal(arrays["fields"], np.arange(6.0).reshape(2, 3))
    run.write_tensors("state.pt", {"w": torch.ones(3), "n": 2})
    assert torch.equal(torch.load(run / "state.pt", weights_only=True)["w"], torch.ones(3))


def test_describe_writes_what_repeats_the_run(tmp_path):
    run = RunFolder(tmp_path / "r")
    found = run.describe("seed: 7\n", 7, ["spatialdiff", "fit"])
    assert (run / "config.yaml").read_text() == "seed: 7\n"
    assert (run / "seed.txt").read_text() == "7\n"
    assert (run / "command.txt").read_text() == "spatialdiff fit\n"
    assert json.loads((run / "versions.json").read_text()) == found
    assert found["torch"] == torch.__version__
    assert {"python", "spatialdiff", "gpytorch", "platform"} <= set(found)


def test_versions_outside_a_checkout(tmp_path):
    assert git_revision(tmp_path) is None
    assert versions()["spatialdiff"].count(".") == 2


def test_digest_names_a_text():
    assert digest("a") == digest("a") != digest("b")
    assert len(digest("a")) == 8
