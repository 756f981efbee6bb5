"""A million sites, and how time grows with their number.

(a) One draw of a large field of every structure, each in a process of its own: set-up, time per draw, peak
memory over that of the imports, and a picture in ``--pictures``. (b) The time of every structure over four
sizes, and the exponent fitted to it against the one that is stated. (c) ``log_prob`` of 256 fields of 128 x
128 against its transforms (torus) and its matrix products (Kronecker).

One thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from timing import medians

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Gaussian, Matern

Build = Callable[[], sd.Covariance]


def uniform(n: int, d: int = 2) -> sd.Points:
    return sd.Points(torch.rand(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def matern(lengthscale: float) -> Matern:
    return Matern(1.5, lengthscale).requires_grad_(False)


def masked(n: int) -> sd.MaskedGrid:
    """A lake: a disc with two islands."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, n), torch.linspace(-1, 1, n), indexing="ij")
    island = ((x - 0.3) ** 2 + (y + 0.2) ** 2 < 0.05) | ((x + 0.4) ** 2 + (y - 0.3) ** 2 < 0.02)
    return sd.Grid((n, n), 1 / n).masked((x**2 + y**2 < 1) & ~island)


LARGE: dict[str, tuple[str, Build]] = {
    "line": (
        "1-D grid, 1,048,576; circulant",
        lambda: sd.covariance(matern(200.0), sd.Grid(2**20), method="circulant"),
    ),
    "plane": (
        "2-D grid, 1024 x 1024; circulant",
        lambda: sd.covariance(matern(40.0), sd.Grid((1024, 1024)), method="circulant"),
    ),
    "volume": (
        "3-D grid, 128 x 128 x 128; circulant",
        lambda: sd.covariance(matern(8.0), sd.Grid((128,) * 3), method="circulant"),
    ),
    "torus": (
        "2-D torus, 1024 x 1024",
        lambda: sd.covariance(matern(40.0), sd.Grid((1024, 1024), periodic=True)),
    ),
    "kronecker": (
        "2-D grid, 1024 x 1024; Kronecker",
        lambda: sd.covariance(
            Gaussian(20.0).requires_grad_(False), sd.Grid((1024, 1024)), method="kronecker"
        ),
    ),
    "lake": (
        "masked grid, 1024 x 1024",
        lambda: sd.covariance(matern(0.05), masked(1024), method="circulant"),
    ),
    "points": (
        "200,000 scattered points; Vecchia, m = 30",
        lambda: sd.covariance(matern(0.05), uniform(200_000), method="vecchia"),
    ),
    "mesh": (
        "mesh of 100,000 vertices; SPDE, α = 5/2",
        lambda: sd.covariance(matern(0.05), sd.Mesh.delaunay(uniform(100_000).coordinates()), method="spde"),
    ),
    "mesh2": (
        "mesh of 100,000 vertices; SPDE, α = 2",
        lambda: sd.covariance(
            Matern(1.0, 0.05).requires_grad_(False),
            sd.Mesh.delaunay(uniform(100_000).coordinates()),
            method="spde",
        ),
    ),
    "sphere": ("sphere, 361 x 720", lambda: sd.covariance(matern(0.15), sd.Sphere((361, 720)))),
}


def resident() -> float:
    """Peak memory of this process, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(name: str, folder: str | None) -> None:
    """Build, draw and report on one large field, as JSON."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    before = resident()
    start = time.perf_counter()
    gamma = LARGE[name][1]()
    field = gamma.sample(generator=torch.Generator().manual_seed(0))
    first = time.perf_counter() - start
    peak = resident() - before
    times = []
    for seed in range(3):
        start = time.perf_counter()
        gamma.sample(generator=torch.Generator().manual_seed(seed + 1))
        times.append(time.perf_counter() - start)
    if folder:
        draw(name, gamma, field, Path(folder))
    result = {"first": first, "draw": statistics.median(times), "memory": peak, "sites": gamma.domain.size}
    print(json.dumps({**result, "variance": float(field.double().square().mean())}))


def draw(name: str, gamma: sd.Covariance, field: torch.Tensor, folder: Path) -> None:
    """A picture of the field where it lives."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    domain, values = gamma.domain, field.detach()
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    if isinstance(domain, sd.Points):
        x = domain.coordinates()
        axis.scatter(x[:, 0], x[:, 1], c=values, s=0.3, linewidths=0)
    elif isinstance(domain, sd.Mesh):
        x = domain.coordinates()
        axis.tripcolor(x[:, 0], x[:, 1], domain.elements, values, shading="gouraud")
    elif isinstance(domain, sd.MaskedGrid):
        axis.imshow(domain.fill(values), interpolation="nearest")
    elif values.dim() == 1:
        axis.plot(values[: 2**14])
    else:
        axis.imshow(values if values.dim() == 2 else values[:, :, 0], origin="lower", interpolation="nearest")
    axis.set_title(LARGE[name][0])
    figure.savefig(folder / f"{name}.png", dpi=110)


def large(names: list[str], folder: str | None) -> None:
    print(f"\n(a) large fields, {os.environ.get('OMP_NUM_THREADS', '1')} thread(s)")
    print(f"{'':46s} {'first, s':>9s} {'draw, s':>9s} {'memory, MB':>11s}")
    for name in names:
        command = [sys.executable, __file__, "--one", name, *(["--pictures", folder] if folder else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{LARGE[name][0]:46s} {row['first']:9.2f} {row['draw']:9.3f} {row['memory']:11.0f}", flush=True
        )


def timed(task: Callable[[], object], repeats: int) -> float:
    return medians({"": task}, repeats)[""]


def sampler(make: Callable[[int], sd.Covariance], batch: int = 1) -> Callable[[int], Callable[[], object]]:
    def prepare(size: int) -> Callable[[], object]:
        gamma = make(size)
        return lambda: gamma.sample((batch,))

    return prepare


def factor(n: int) -> Callable[[], object]:
    """The Cholesky factor of a matrix that is there."""
    matrix = sd.covariance(Exponential(20.0).requires_grad_(False), sd.Grid(n), method="dense").to_dense()
    return lambda: sd.DenseCovariance(matrix, sd.Grid(n)).sample()


# name: (sizes along an axis, sites of a size, task, stated exponent, whether divided by log n)
Growth = tuple[tuple[int, ...], Callable[[int], int], Callable[[int], Callable[[], object]], float, bool]
GROWTH: dict[str, Growth] = {
    "torus, draw": (
        (256, 512, 1024, 2048),
        lambda s: s * s,
        sampler(lambda s: sd.covariance(matern(8.0), sd.Grid((s, s), periodic=True))),
        1,
        True,
    ),
    "cosine, draw": (
        (256, 512, 1024, 2048),
        lambda s: s * s,
        sampler(lambda s: sd.covariance(matern(8.0), sd.Grid((s, s)), method="cosine")),
        1,
        True,
    ),
    "circulant, draw": (
        (256, 400, 640, 1024),
        lambda s: s * s,
        sampler(lambda s: sd.covariance(matern(8.0), sd.Grid((s, s)), method="circulant")),
        1,
        True,
    ),
    "dense, draws": (
        (2000, 3000, 4500, 6750),
        lambda s: s,
        sampler(
            lambda s: sd.covariance(Exponential(20.0).requires_grad_(False), sd.Grid(s), method="dense"), 256
        ),
        2,
        False,
    ),
    "dense, factor": ((2000, 3000, 4500, 6750), lambda s: s, lambda s: factor(s), 3, False),
    "Kronecker, draw": (
        (512, 1024, 2048, 4096),
        lambda s: s * s,
        sampler(
            lambda s: sd.covariance(Gaussian(3.0).requires_grad_(False), sd.Grid((s, s)), method="kronecker")
        ),
        1.5,
        False,
    ),
    "matrix-free, product": ((8000, 16000, 32000, 64000), lambda s: s, lambda s: product(s), 2, False),
    "Vecchia, factor": ((40_000, 80_000, 160_000, 320_000), lambda s: s, lambda s: vecchia(s), 1, False),
    "Vecchia, draw": (
        (40_000, 80_000, 160_000, 320_000),
        lambda s: s,
        sampler(lambda s: sd.covariance(matern(0.05), uniform(s), method="vecchia")),
        1,
        False,
    ),
    "SPDE on a plane, draw": (
        (64, 128, 256, 512),
        lambda s: s * s,
        sampler(
            lambda s: sd.covariance(
                Matern(1.0, 0.1).requires_grad_(False),
                sd.Mesh.from_grid(sd.Grid((s, s), 1 / s)),
                method="spde",
            )
        ),
        1,
        True,
    ),
    "sphere, draw": (
        (181, 229, 287, 361),
        lambda s: 2 * s * (s - 1),
        sampler(lambda s: sd.covariance(matern(0.2), sd.Sphere((s, 2 * (s - 1))))),
        1.5,
        False,
    ),
}


def product(n: int) -> Callable[[], object]:
    gamma = sd.covariance(matern(0.1), uniform(n), method="matrix_free")
    x = torch.randn(n)
    return lambda: gamma.matmul(x)


def vecchia(n: int) -> Callable[[], object]:
    """The conditionals: a new length scale each time, so that nothing is cached."""
    kernel = matern(0.05)
    gamma = sd.covariance(kernel, uniform(n), method="vecchia", ordering="random")

    def task() -> object:
        kernel.lengthscale = kernel.lengthscale * 1.0001
        return gamma.log_det()

    return task


def growth(repeats: int, only: str) -> None:
    print("\n(b) growth with the number of sites n")
    print(f"{'':26s} {'seconds at four sizes':^40s} {'fitted':>7s} {'stated':>7s}")
    for name, (sizes, sites, prepare, stated, logarithm) in GROWTH.items():
        if only not in name:
            continue
        seconds = [timed(prepare(size), repeats) for size in sizes]
        x = [math.log(sites(size)) for size in sizes]
        y = [
            math.log(t / (math.log(sites(s)) if logarithm else 1))
            for t, s in zip(seconds, sizes, strict=True)
        ]
        slope = statistics.linear_regression(x, y).slope
        shown = " ".join(f"{t:9.4f}" for t in seconds)
        unit = " n log n" if logarithm else ""
        print(f"{name:26s} {shown:40s} {slope:7.2f} {stated:7.2f}{unit}", flush=True)


def densities(repeats: int) -> None:
    """256 fields of 128 x 128."""
    torus = sd.covariance(matern(8.0), sd.Grid((128, 128), periodic=True))
    kernel = (Gaussian(3.0) + sd.kernels.Nugget(0.01)).requires_grad_(False)
    product = sd.covariance(kernel, sd.Grid((128, 128)), method="kronecker")
    x = torch.randn(256, 128, 128)
    factor = torch.randn(128, 128)
    print("\n(c) log_prob of 256 fields of 128 x 128, and its floor")
    rows = {
        "torus": (lambda: torus.log_prob(x), lambda: torch.fft.rfftn(x, dim=(-2, -1))),
        "Kronecker": (lambda: product.log_prob(x), lambda: factor @ x @ factor),
    }
    for name, (task, floor) in rows.items():
        mine, least = medians({"mine": task, "floor": floor}, repeats).values()
        print(f"{name:26s} {1e3 * mine:9.2f} ms {1e3 * least:9.2f} ms {mine / least:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pictures", help="folder for pictures of the large fields")
    parser.add_argument("--only", default="", help="part of the name of what to run")
    parser.add_argument("--part", choices=("a", "b", "c"), help="one part")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if arguments.one:
        one(arguments.one, arguments.pictures)
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.part in (None, "a"):
        large([name for name in LARGE if arguments.only in name], arguments.pictures)
    if arguments.part in (None, "b"):
        growth(arguments.repeats, arguments.only)
    if arguments.part in (None, "c"):
        densities(arguments.repeats)


if __name__ == "__main__":
    main()
