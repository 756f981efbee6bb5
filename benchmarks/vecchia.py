"""What Vecchia's approximation costs, beside GPBoost for the same likelihood.

Negative log-likelihood of a Matérn 3/2 field with nugget on scattered sites in the unit square, ``m = 30``,
at fixed parameters, with the same order of the sites on both sides, so that the values must agree
(GPBoost's parameters are nugget variance, variance, and the length scale in the convention of
`spatialdiff.kernels.Matern`). Then one sample, the gradient, and how time grows with the number of sites.
Times are medians over repeats that take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import time
from collections.abc import Callable

import torch
from timing import medians

from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.domains import Points
from spatialdiff.kernels import Matern, Nugget

LENGTHSCALE, VARIANCE, NUGGET = 0.05, 1.0, 0.1


def build(n: int, neighbors: int, engine: str) -> VecchiaCovariance:
    sites = torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = Matern(nu=1.5, lengthscale=LENGTHSCALE, variance=VARIANCE) + Nugget(NUGGET)
    return VecchiaCovariance(kernel, Points(sites), neighbors=neighbors, engine=engine).double()


def likelihood(gamma: VecchiaCovariance, y: torch.Tensor) -> float:
    """From the kernel, nothing kept from before."""
    with torch.no_grad():
        # a parameter that is written forgets what was computed with it
        for parameter in gamma.parameters():
            parameter.copy_(parameter + 1e-15)
        return -float(gamma.log_prob(y))


def gradient(gamma: VecchiaCovariance, y: torch.Tensor) -> None:
    gamma.zero_grad()
    (-gamma.log_prob(y)).backward()


def beside_gpboost(n: int, neighbors: int, repeats: int, engine: str) -> None:
    start = time.perf_counter()
    gamma = build(n, neighbors, engine)
    made = time.perf_counter() - start
    with torch.no_grad():
        y = gamma.sample(generator=torch.Generator().manual_seed(1))
    tasks: dict[str, Callable[[], object]] = {"likelihood": lambda: likelihood(gamma, y)}
    value = None
    if importlib.util.find_spec("gpboost") is not None:
        import gpboost
        import numpy as np

        order = gamma.order.numpy()
        start = time.perf_counter()
        model = gpboost.GPModel(
            gp_coords=gamma.sites.numpy(),
            cov_function="matern",
            cov_fct_shape=1.5,
            gp_approx="vecchia",
            num_neighbors=neighbors,
            vecchia_ordering="none",
            likelihood="gaussian",
        )
        theirs = time.perf_counter() - start
        values, parameters = y.numpy()[order], np.array([NUGGET, VARIANCE, LENGTHSCALE])
        tasks["likelihood, GPBoost"] = lambda: model.neg_log_likelihood(cov_pars=parameters, y=values)
        value = float(model.neg_log_likelihood(cov_pars=parameters, y=values))

    def sample() -> torch.Tensor:
        with torch.no_grad():
            return gamma.sample()

    def samples() -> torch.Tensor:
        with torch.no_grad():
            return gamma.sample((16,))

    tasks |= {
        "one sample": sample,
        "16 samples": samples,
        "likelihood and gradient": lambda: gradient(gamma, y),
    }
    found = medians(tasks, repeats)
    print(f"\n{n} sites, {neighbors} neighbours, {engine}")
    print(
        f"order and neighbours {made:.2f} s" + (f" (GPBoost, no ordering: {theirs:.2f} s)" if value else "")
    )
    print(
        f"negative log-likelihood {likelihood(gamma, y):.6f}" + (f" (GPBoost {value:.6f})" if value else "")
    )
    for name, seconds in found.items():
        ratio = f"{seconds / found['likelihood, GPBoost']:7.2f} x GPBoost's likelihood" if value else ""
        print(f"{name:28s} {seconds:8.3f} s {ratio}")


def growth(sizes: list[int], neighbors: int, repeats: int, engine: str) -> None:
    print(f"\ngrowth, {neighbors} neighbours, {engine}")
    print(f"{'sites':>9s} {'set-up':>8s} {'likelihood':>11s} {'sample':>8s}  (s)")
    rows = []
    for n in sizes:
        start = time.perf_counter()
        gamma = build(n, neighbors, engine)
        made = time.perf_counter() - start
        gamma.requires_grad_(False)
        y = gamma.sample()
        found = medians({"l": lambda g=gamma, y=y: likelihood(g, y), "s": gamma.sample}, repeats)  # type: ignore[misc]
        rows.append((n, made, found["l"], found["s"]))
        print(f"{n:9d} {made:8.2f} {found['l']:11.3f} {found['s']:8.3f}")
    exponents = []
    x = [math.log(row[0]) for row in rows]
    for column in (1, 2, 3):
        y_ = [math.log(row[column]) for row in rows]
        mean_x, mean_y = statistics.mean(x), statistics.mean(y_)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y_, strict=True))
        exponents.append(slope / sum((a - mean_x) ** 2 for a in x))
    print("exponent  " + " ".join(f"{e:9.2f}" for e in exponents) + "   (stated: about 1)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sites, fewer repeats")
    parser.add_argument("--threads", type=int, default=2, help="for torch and for GPBoost's OpenMP")
    parser.add_argument("--engine", default="auto", choices=["auto", "numba", "torch"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{options.threads} torch threads; GPBoost takes OMP_NUM_THREADS, set it to the same before starting",
        flush=True,
    )
    n, repeats = (10_000, 3) if options.quick else (100_000, 5)
    beside_gpboost(n, 30, repeats, options.engine)
    growth([n // 8, n // 4, n // 2, n], 30, repeats, options.engine)


if __name__ == "__main__":
    main()
