"""Checkpoints: data only, written atomically, the newest found again.

A checkpoint is written to a temporary file in the same directory, flushed to the disk, and renamed over its
final name, which POSIX makes one indivisible act. Whenever the process dies, every file with a final name is
complete; whatever else is left is removed.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SUFFIX = ".pt"
_NAME = re.compile(r"step-(\d+)\.pt")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used for the run at hand."""


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a power failure, where the system lets directories be flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` such that at every moment the file is the old one or the new one,
    complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def check_plain(value: Any, name: str = "checkpoint") -> None:
    """Raise `TypeError` where `value` holds anything but numbers, strings, tensors and containers of them."""
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(key, f"key of {name}")
            check_plain(item, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            check_plain(item, f"{name}[{i}]")
    elif not isinstance(value, int | float | str | bool | bytes | Tensor | None):
        raise TypeError(
            f"{name} is a {type(value).__name__}; a checkpoint holds numbers, strings, tensors and lists and "
            f"dicts of them, so that "
            "it can be loaded without executing code"
        )


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path` atomically."""
    check_plain(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace_atomically(path, buffer.getvalue())


def read(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing any code in it (`weights_only=True`)."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"It was damaged after it was "
            "written, or is something else; move it away to go on from an older one"
        ) from error
    if not isinstance(state, dict) or "network" not in state:
        raise CheckpointError(f"{path} holds no spatialdiff checkpoint")
    return state


class CheckpointDirectory:
    """The checkpoints of one run, `step-00000500.pt` and so on, of which the newest `keep` are kept (all
    where None)."""

    def __init__(self, directory: str | Path, keep: int | None = 2) -> None:
        self.directory = Path(directory)
        self.keep = keep

    def paths(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        found = [(int(m[1]), p) for p in self.directory.glob(f"*{SUFFIX}") if (m := _NAME.fullmatch(p.name))]
        return [path for _, path in sorted(found)]

    def latest(self) -> Path | None:
        """The newest complete checkpoint, if there is one."""
        paths = self.paths()
        return paths[-1] if paths else None

    def clean(self) -> None:
        """Remove what interrupted writes left behind."""
        for leftover in self.directory.glob(f".*{SUFFIX}.*.tmp"):
            leftover.unlink(missing_ok=True)

    def write(self, step: int, state: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` and then remove those that are no longer kept."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"step-{step:08d}{SUFFIX}"
        write(path, state)
        if self.keep is not None:
            for old in self.paths()[: -self.keep]:
                old.unlink(missing_ok=True)
        return path


def load_weights(source: str | Path, network: nn.Module, ema: bool = True) -> nn.Module:
    """Load the weights of a training run into `network`, in place.

    Args:
        source: a checkpoint, or the folder of a run, whose newest checkpoint is taken.
        network: a network built as the one that was trained.
        ema: the exponential moving average of the weights rather than the last ones.

    Raises:
        CheckpointError: there is no checkpoint, it cannot be read, or its weights are those of another
            network.
    """
    source = Path(source)
    path = source
    if source.is_dir():
        newest = CheckpointDirectory(source / "checkpoints").latest() or CheckpointDirectory(source).latest()
        if newest is None:
            raise CheckpointError(f"there is no checkpoint in {source} nor in {source / 'checkpoints'}")
        path = newest
    state = read(path)
    if ema:
        prefix = "module."
        weights = {k.removeprefix(prefix): v for k, v in state["ema"].items() if k.startswith(prefix)}
    else:
        weights = state["network"]
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds the weights of another network: {error}") from error
    return network
