"""`import spatialdiff` prints nothing, starts no process, loads nothing heavy, and costs little time.

Measured in fresh interpreters, since the test process has long imported everything.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

HEAVY = [
    "lightning_fabric",
    "lightning",
    "tensorboard",
    "matplotlib",
    "jsonargparse",
    "h5py",
    "netCDF4",
    "pykeops",
    "gstools",
    "iris_sample_data",
]


def fresh(code: str, *flags: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-c", code],
        capture_output=True, text=True, check=True, cwd=cwd, env={**os.environ, **env}, timeout=300,
    )  # fmt: skip


def test_prints_nothing() -> None:
    result = fresh("import spatialdiff")
    assert (result.stdout, result.stderr) == ("", "")


def test_starts_no_process_and_writes_no_file(tmp_path: Path) -> None:
    """An audit hook sees each process that is started and each file that is opened for writing."""
    code = """
import json, os, sys
import torch, gpytorch
seen = []
def hook(event, args):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"):
        seen.append([event, repr(args)])
    elif event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append([event, repr(args)])
    elif event == "os.mkdir":
        seen.append([event, repr(args)])
sys.addaudithook(hook)
import spatialdiff
for name in spatialdiff.__all__:
    getattr(spatialdiff, name)
print(json.dumps(seen))
"""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    assert json.loads(fresh(code, cwd=tmp_path, **home).stdout) == []
    assert list(tmp_path.iterdir()) == []


def test_loads_nothing_heavy() -> None:
    """Neither the package nor any of its public names brings in an optional or slow module."""
    code = f"""
import sys
import torch, gpytorch
before = set(sys.modules)
import spatialdiff
for name in spatialdiff.__all__:
    getattr(spatialdiff, name)
print([m for m in {HEAVY!r} if m in set(sys.modules) - before])
"""
    assert fresh(code).stdout.strip() == "[]"


def test_costs_at_most_a_second_over_torch_and_gpytorch() -> None:
    """The interpreter's own clock, summed over what `import torch, gpytorch` has not loaded."""
    code = """
import sys
import torch, gpytorch
print("MARK", file=sys.stderr, flush=True)
import spatialdiff
for name in spatialdiff.__all__:
    getattr(spatialdiff, name)
"""
    log = fresh(code, "-X", "importtime").stderr.split("MARK\n")[1]
    own = [int(us) for us in re.findall(r"^import time:\s+(\d+) \|", log, flags=re.MULTILINE)]
    assert own, log
    assert sum(own) < 1_000_000, f"{sum(own) / 1e6:.2f} s:\n{log}"


def test_every_package_is_shipped() -> None:
    """pyproject.toml names every package; an editable install would not notice one missing."""
    root = Path(__file__).parents[1]
    with (root / "pyproject.toml").open("rb") as file:
        named = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    present = {
        ".".join(p.parent.relative_to(root).parts) for p in (root / "spatialdiff").rglob("__init__.py")
    }
    assert named == present | {"spatialdiff.kernels"}
