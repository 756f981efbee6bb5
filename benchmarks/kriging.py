"""Ordinary kriging of the 3,103 cells of the meuse grid from 155 samples, beside GSTools and PyKrige.

``log(zinc)``, exponential of length scale 300 m with variance 0.55 and nugget 0.05, means and variances at
all cells, everything from the data on: the equations are set up and solved in each repeat. The values of the
libraries must agree to 1e-6 before a time is reported. Times are medians over repeats that take turns. Then
what one of 1,000,000 targets costs with 2,000 observations, in chunks.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import medians

import spatialdiff as sd
from spatialdiff.conditioning import Kriging
from spatialdiff.kernels import Exponential, Matern, Nugget

LENGTHSCALE, VARIANCE, NUGGET = 300.0, 0.55, 0.05


def by_spatialdiff(sites: torch.Tensor, values: torch.Tensor, cells: torch.Tensor) -> Any:
    kernel = Exponential(LENGTHSCALE, variance=VARIANCE) + Nugget(NUGGET)
    mean, variance = Kriging(kernel, sites, values).predict(cells)
    return mean.numpy(), variance.numpy()


def by_gstools(sites: Any, values: Any, cells: Any) -> Any:
    import gstools

    # GSTools writes a nugget as the sill's part that is no part of var
    model = gstools.Exponential(dim=2, var=VARIANCE, len_scale=LENGTHSCALE, nugget=NUGGET, rescale=1.0)
    krige = gstools.krige.Ordinary(model, sites.T, values, exact=True)
    return krige(cells.T)


def by_pykrige(sites: Any, values: Any, cells: Any) -> Any:
    from pykrige.ok import OrdinaryKriging

    # PyKrige's exponential has the practical range, at which the argument is 3
    parameters = {"psill": VARIANCE, "range": 3.0 * LENGTHSCALE, "nugget": NUGGET}
    krige = OrdinaryKriging(
        sites[:, 0], sites[:, 1], values, variogram_model="exponential", variogram_parameters=parameters
    )
    mean, variance = krige.execute("points", cells[:, 0], cells[:, 1])
    return np.asarray(mean), np.asarray(variance)


def meuse(repeats: int) -> None:
    table, grid = sd.data.meuse(), sd.data.meuse_grid()
    sites, cells = table.map_coordinates, grid.map_coordinates
    values = table["zinc"].log()
    arrays = sites.numpy(), values.numpy(), cells.numpy()
    tasks: dict[str, Callable[[], Any]] = {"spatialdiff": lambda: by_spatialdiff(sites, values, cells)}
    others: dict[str, Callable[[Any, Any, Any], Any]] = {"gstools": by_gstools, "pykrige": by_pykrige}
    for name, run in others.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed")
            continue
        tasks[name] = lambda run=run: run(*arrays)  # type: ignore[misc]
    mean, variance = tasks["spatialdiff"]()
    print(f"{len(values)} samples, {len(cells)} cells, {torch.get_num_threads()} threads, {repeats} repeats")
    for name, task in list(tasks.items())[1:]:
        theirs = task()
        apart = [float(np.abs(a - b).max()) for a, b in zip((mean, variance), theirs, strict=True)]
        print(f"{name}: means differ by at most {apart[0]:.1e}, variances by {apart[1]:.1e}")
        if max(apart) > 1e-6:
            raise SystemExit(f"{name} computes something else")
    times = medians(tasks, repeats)
    print("| library | median ms | times spatialdiff |\n| --- | ---: | ---: |")
    for name, seconds in times.items():
        print(f"| {name} | {1e3 * seconds:.1f} | {seconds / times['spatialdiff']:.1f} |")


def many_targets(targets: int, observations: int) -> None:
    generator = torch.Generator().manual_seed(0)
    sites = torch.rand(observations, 2, generator=generator, dtype=torch.float64)
    values = torch.randn(observations, generator=generator, dtype=torch.float64)
    k = Kriging(Matern(nu=1.5, lengthscale=0.05) + Nugget(0.1), sites, values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    k.predict(torch.rand(targets, 2, generator=generator, dtype=torch.float64))
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(
        f"{targets:,} targets from {observations:,} observations, mean and variance: {seconds:.1f} s, "
        f"{1e6 * seconds / targets:.0f} µs each; memory grew by {grown:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 repeats, 20,000 targets from 500")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    # cells at the rim lie outside the box of the samples
    warnings.simplefilter("ignore")
    meuse(3 if options.quick else options.repeats)
    many_targets(*((20_000, 500) if options.quick else (1_000_000, 2000)))


if __name__ == "__main__":
    main()
