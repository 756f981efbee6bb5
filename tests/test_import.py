"""`import spatialdiff` prints nothing, starts no process, loads nothing heavy, and costs little time.

Measured in fresh interpreters, since the test process has long imported everything.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import spatialdiff

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
    command = [sys.executable, *flags, "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env={**os.environ, **env}, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result


def test_prints_nothing() -> None:
    command = "import os; os.environ.pop('KEOPS_VERBOSE', None); import spatialdiff"
    result = fresh(command)
    assert (result.stdout, result.stderr) == ("", "")


def test_starts_no_process_and_writes_no_file(tmp_path: Path) -> None:
    """An audit hook sees each process that is started and each file that is opened for writing; gpytorch
    alone makes pykeops write its cache, where that is installed.
    """
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
    written = []
    for folder, script in (("gpytorch", "import torch, gpytorch; print([])"), ("spatialdiff", code)):
        place = tmp_path / folder
        place.mkdir()
        quiet = {"PYTHONDONTWRITEBYTECODE": "1", "KEOPS_VERBOSE": "0"}
        home = {"HOME": str(place), "XDG_CACHE_HOME": str(place), **quiet}
        assert json.loads(fresh(script, cwd=place, **home).stdout) == []
        written.append({p.relative_to(place) for p in place.rglob("*")})
    assert written[1] <= written[0]


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
    assert fresh(code, KEOPS_VERBOSE="0").stdout.strip() == "[]"


@pytest.mark.parametrize("use", ["", "for name in spatialdiff.__all__: getattr(spatialdiff, name)"])
def test_costs_at_most_a_second_over_torch_and_gpytorch(use: str) -> None:
    """Processor time, which does not grow with the load; with and without loading every public name."""
    code = f"""
import time
import torch, gpytorch
begun = time.process_time()
import spatialdiff
{use}
print(time.process_time() - begun)
"""
    seconds = []
    for _ in range(3):  # the first may also compile bytecode
        seconds.append(float(fresh(code, KEOPS_VERBOSE="0").stdout))
        if seconds[-1] <= 1.0:
            return
    pytest.fail(f"import spatialdiff took {seconds} s of processor time")


def test_every_package_is_shipped() -> None:
    """pyproject.toml names every package; an editable install would not notice one missing."""
    root = Path(__file__).parents[1]
    with (root / "pyproject.toml").open("rb") as file:
        named = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    present = {
        ".".join(p.parent.relative_to(root).parts) for p in (root / "spatialdiff").rglob("__init__.py")
    }
    # the tables are a folder of data alone, which setuptools ships as a package
    assert named == present | {"spatialdiff.kernels", "spatialdiff.data.tables"}


def test_every_name_loaded_on_first_use_is_public() -> None:
    assert set(spatialdiff.__all__) == {*spatialdiff._NAMES, *spatialdiff._MODULES, "__version__"}
