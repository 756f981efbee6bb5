import pytest
import torch
from torch import nn

from spatialdiff.training import CheckpointError, load_weights
from spatialdiff.training.checkpoint import CheckpointDirectory, check_plain, read, replace_atomically, write

STATE = {"network": {"w": torch.arange(3.0)}, "list": [1, 2.5, "a", None, True, (1, 2)], 3: b"x"}


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was executed')",))


def test_round_trip_without_executing_code(tmp_path):
    write(tmp_path / "a.pt", STATE)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(state["network"]["w"], STATE["network"]["w"])
    assert state["list"] == STATE["list"]
    assert read(tmp_path / "a.pt").keys() == STATE.keys()
    torch.save({"network": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "evil.pt")


def test_only_plain_data_are_written(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[1\] is a Linear"):
        check_plain({"a": [1, nn.Linear(1, 1)]})
    with pytest.raises(TypeError, match="is a set"):
        write(tmp_path / "a.pt", {"network": {1, 2}})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    replace_atomically(path, b"old")

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_directory_keeps_the_newest_and_ignores_leftovers(tmp_path):
    directory = CheckpointDirectory(tmp_path / "c", keep=2)
    assert directory.latest() is None
    for step in (5, 100, 20, 3000):
        directory.write(step, STATE)
    assert [p.name for p in directory.paths()] == ["step-00000100.pt", "step-00003000.pt"]
    leftover = directory.directory / ".step-00009999.pt.123.tmp"
    leftover.write_bytes(b"half")
    (directory.directory / "step-notes.pt").write_bytes(b"not a checkpoint")
    assert directory.latest().name == "step-00003000.pt"
    directory.clean()
    assert not leftover.exists()
    assert len(list(directory.directory.iterdir())) == 3
    CheckpointDirectory(tmp_path / "c", keep=None).write(4000, STATE)
    assert len(directory.paths()) == 3


def test_unreadable_checkpoints_say_so(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read(tmp_path / "none.pt")
    write(tmp_path / "a.pt", STATE)
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="was damaged"):
        read(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match="holds no spatialdiff checkpoint"):
        read(tmp_path / "b.pt")


def test_load_weights(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        load_weights(tmp_path, nn.Linear(2, 1))
    network, average = nn.Linear(2, 1), nn.Linear(2, 1)
    ema = {f"module.{k}": v for k, v in average.state_dict().items()} | {"n_averaged": torch.tensor(3)}
    CheckpointDirectory(tmp_path / "checkpoints").write(1, {"network": network.state_dict(), "ema": ema})
    for flag, expected in ((True, average), (False, network)):
        loaded = load_weights(tmp_path, nn.Linear(2, 1), ema=flag)
        assert torch.equal(loaded.weight, expected.weight)
    with pytest.raises(CheckpointError, match="another network"):
        load_weights(tmp_path, nn.Linear(3, 1))
