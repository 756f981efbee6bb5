"""Time and memory of the product with a kernel matrix that is never stored.

The yardstick is the time of its ``n²`` exponentials alone, taken in tiles that stay in the cache. All times
are interleaved in one run, the smallest of several; memory is that of a process of its own, the peak with the
product less the peak without.

    python benchmarks/kernel_product.py [--quick] [--threads 2] [--compile]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("KEOPS_VERBOSE", "0")

import torch
from torch import Tensor

from spatialdiff.covariance.points.closed_forms import closed_form
from spatialdiff.covariance.points.tile_product import engine
from spatialdiff.kernels import Matern

SCALE = 0.1  # length scale on the unit square


def sites(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Scaled coordinates ``(2, n)`` and one field ``(1, n)``."""
    g = torch.Generator().manual_seed(0)
    form = closed_form(Matern(1.5, SCALE), 2)
    assert form is not None
    scaled = torch.rand(n, 2, generator=g, dtype=torch.float64) * form.scales[0].detach()
    return scaled.T.to(dtype).contiguous(), torch.randn(1, n, generator=g).to(dtype)


def exponentials(n: int) -> Callable[[], None]:
    """``n²`` exponentials of a tile of 128 × 2000, as the plain product has."""
    tile, out = -3 * torch.rand(128, 2000), torch.empty(128, 2000)
    repeats = n * n // tile.numel()

    def run() -> None:
        for _ in range(repeats):
            torch.exp(tile, out=out)

    return run


def compiled_by_torch(n: int) -> Callable[[], None]:
    """The same tile after ``torch.compile``."""
    coordinates, x = sites(n)

    @torch.compile(dynamic=True)
    def tile(left: Tensor, right: Tensor, field: Tensor) -> Tensor:
        s = (left[:, :, None] - right[:, None]).square().sum(0).sqrt()
        return ((1 + s) * torch.exp(-s) * field).sum(-1)

    def run() -> None:
        for rows in coordinates.split(128, 1):
            for columns, field in zip(coordinates.split(2000, 1), x.split(2000, 1), strict=True):
                tile(rows, columns, field)

    return run


def product(name: str, n: int) -> Callable[[], None]:
    """The product of one field by an engine."""
    coordinates, x = sites(n)
    tiles = engine(name)

    def run() -> None:
        tiles.multiply("matern32", coordinates, x)

    return run


def peak_memory(name: str, n: int, rows: int) -> None:
    """Print what the product adds to the peak of this process, in MB, and its time."""
    coordinates, x = sites(n)
    tiles = engine(name)
    tiles.multiply("matern32", coordinates[:, :rows].contiguous(), x[:, :rows].contiguous())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    tiles.multiply("matern32", coordinates, x)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{name:8} {(after - before) / 1024:8.1f} MB {seconds:8.1f} s")


def check_keops() -> None:
    """KeOps' sums against those of the plain engine."""
    coordinates, x = sites(300, torch.float64)
    g = torch.randn(2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.expand(2, -1)
    for family in ("exponential", "matern32", "matern52", "gaussian"):
        mine, theirs = engine("plain"), engine("keops")
        torch.testing.assert_close(
            theirs.multiply(family, coordinates, x), mine.multiply(family, coordinates, x), rtol=0, atol=1e-9
        )
        for a, b in zip(
            theirs.moments(family, coordinates, g, x), mine.moments(family, coordinates, g, x), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    print("keops agrees with plain: values and slopes of every family")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5,000 and 20,000 sites, one repeat")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="add torch.compile")
    parser.add_argument("--check-keops", action="store_true", help="compile and check every formula")
    parser.add_argument("--memory", nargs=2, metavar=("ENGINE", "SITES"), help="used by this script itself")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory:
        peak_memory(given.memory[0], int(given.memory[1]), rows=4096)
        return
    if given.check_keops:
        check_keops()
        return
    n, large, repeats = (5000, 20_000, 1) if given.quick else (20_000, 200_000, 3)
    ways = {"exponentials": exponentials(n), "numba": product("numba", n), "plain": product("plain", n)}
    ways["keops"] = product("keops", n)
    if given.compile:
        ways["torch.compile"] = compiled_by_torch(n)
    for run in ways.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    floor = min(times["exponentials"])
    print(f"Matérn 3/2, {n} sites in 2-D, float32, {given.threads} threads")
    for name, values in times.items():
        print(f"{name:14} {min(values):8.3f} s  {min(values) / floor:6.2f} x the exponentials")
    print(f"peak extra memory and time at {large} sites")
    for name in ("numba",) if given.quick else ("numba", "plain"):
        command = [sys.executable, __file__, "--threads", str(given.threads), "--memory", name, str(large)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
