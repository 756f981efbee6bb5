"""Run folders: what a command did, kept so that it can be repeated.

    runs/<command>-<name>/
        config.yaml      the resolved configuration: feed it back with --config
        seed.txt         the seed that every random draw came from
        versions.json    Python, packages, git revision, platform
        metrics.csv      one line per measured number
        *.png            pictures
        report.html      all of it on one page

Every file appears whole or not at all: it is written beside its place and then renamed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from spatialdiff.report import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = (
    "torch",
    "gpytorch",
    "linear_operator",
    "numpy",
    "scipy",
    "lightning-fabric",
    "matplotlib",
    "jsonargparse",
)


def write_atomically(path: Path | str, write: Callable[[IO[bytes]], object]) -> Path:
    """Call `write(file)` on a temporary file beside `path`, flush it to disk, and rename it to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def git_revision(directory: Path | str) -> str | None:
    """The revision of the checkout that holds `directory`, with `-dirty` where files differ; None outside
    one."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """What the numbers of a run may depend on: versions of Python and packages, revision, machine."""
    import torch

    from spatialdiff.version import __version__

    found = {"python": platform.python_version(), "spatialdiff": __version__}
    home = Path(__file__).resolve().parent.parent
    if (home / "pyproject.toml").is_file() and (revision := git_revision(home)) is not None:
        found["git revision"] = revision
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    found["platform"] = platform.platform()
    found["processors"] = str(os.cpu_count())
    found["torch threads"] = str(torch.get_num_threads())
    found["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def digest(text: str) -> str:
    """Eight hexadecimal digits that name a text, so that the same configuration finds its own folder
    again."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class RunFolder:
    """A folder that holds everything one command produced.

    Args:
        path: where it is; made by the first file that is written, so that a command that fails before leaves
            nothing.

    Source: the list at the head of this module.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls,
        command: str,
        run_dir: Path | str | None = None,
        *,
        overwrite: bool = False,
        root: Path | str = "runs",
    ) -> RunFolder:
        """A new folder: `run_dir`, or `<root>/<command>-<date>-<time>`.

        Raises:
            FileExistsError: `run_dir` holds files already and `overwrite` is not set.
        """
        if run_dir is None:
            stem = Path(root) / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
            path, count = stem, 1
            while path.exists():
                count += 1
                path = stem.with_name(f"{stem.name}-{count}")
            return cls(path)
        path = Path(run_dir)
        if path.exists() and not path.is_dir():
            raise FileExistsError(f"The run folder {path} is a file. Give another --run-dir.")
        if path.is_dir() and not overwrite and any(path.iterdir()):
            raise FileExistsError(
                f"The run folder {path} already holds files. Give another --run-dir, or --overwrite to "
                f"replace them."
            )
        return cls(path)

    @classmethod
    def open(cls, path: Path | str, *needs: str) -> RunFolder:
        """A folder that is there already and holds the files `needs`.

        Raises:
            FileNotFoundError: naming what is missing.
        """
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"There is no run folder {path}.")
        missing = [name for name in needs if not (path / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"The folder {path} has no {', '.join(missing)}: it is not a finished run of the kind that "
                f"is needed here."
            )
        return cls(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file."""
        return write_atomically(self / name, lambda file: file.write(text.encode()))

    def write_json(self, name: str, value: object) -> Path:
        """Write a JSON file."""
        return self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file."""
        return json.loads((self / name).read_text())

    def write_csv(self, name: str, rows: Iterable[Mapping[str, object]]) -> Path:
        """Write a table; its columns are the keys of all rows, in order of appearance."""
        rows = list(rows)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return self.write_text(name, text.getvalue())

    def write_arrays(self, name: str, **arrays: Any) -> Path:
        """Write named arrays as a compressed `.npz` file (tensors are converted)."""
        import numpy as np

        plain: dict[str, Any] = {key: np.asarray(value) for key, value in arrays.items()}
        return write_atomically(self / name, lambda file: np.savez_compressed(file, **plain))

    def write_tensors(self, name: str, value: object) -> Path:
        """Write tensors and plain values with `torch.save`, readable with `weights_only=True`."""
        import torch

        return write_atomically(self / name, lambda file: torch.save(value, file))

    def write_picture(self, name: str, figure: Figure) -> Path:
        """Write a figure as PNG; `Page.figure` takes the path, so that it is drawn once."""
        return write_atomically(self / name, lambda file: file.write(png(figure)))

    def describe(self, config: str, seed: int, command: Sequence[str] | None = None) -> dict[str, str]:
        """Write `config.yaml`, `seed.txt`, `command.txt` and `versions.json`; returns the versions."""
        self.write_text("config.yaml", config)
        self.write_text("seed.txt", f"{seed}\n")
        self.write_text("command.txt", " ".join(command or sys.argv) + "\n")
        found = versions()
        self.write_json("versions.json", found)
        return found
