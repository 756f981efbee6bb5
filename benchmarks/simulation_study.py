"""Bias, root mean square error and coverage of every method of `sd.fit`, on data drawn from a known law.

    python benchmarks/simulation_study.py [--quick] [--replications 250] [--workers 2] [--out FILE.json]

Each replication draws fields from the true covariance and fits them by every method of its setting, from a
first guess with half the variance and twice the length scale. Printed per method and quantity, over the
replications that gave an estimate: the bias and the root mean square error relative to the truth, and the
share of 95 % intervals (Wald on the logarithmic scale; profile where said) that hold the truth. ``edge``
counts estimates at a bound or without a standard error, whose intervals count as missing the truth, and
``lost`` fits that raised.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import spatialdiff as sd
from spatialdiff.domains import Domain, MaskedGrid
from spatialdiff.fitting import fit
from spatialdiff.fitting.inference.intervals import interval
from spatialdiff.fitting.variograms.empirical import variogram
from spatialdiff.fitting.variograms.least_squares import VariogramFit
from spatialdiff.kernels import Matern, Nugget


@dataclass(frozen=True)
class Method:
    """A fit: its label, and arguments of `sd.fit`."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    profile: bool = False


@dataclass(frozen=True)
class Setting:
    """Fields of a known law and the methods that are tried on them."""

    name: str
    domain: Domain
    lengthscale: float
    fields: int
    methods: tuple[Method, ...]
    mean: str | None = "constant"
    nu: float = 1.5
    variance: float = 1.0
    nugget: float = 0.1

    def kernel(self, lengthscale: float = 1.0, variance: float = 1.0) -> Any:
        """The true kernel, or one off by factors."""
        smooth = Matern(self.nu, lengthscale * self.lengthscale, variance * self.variance)
        return smooth + Nugget(variance * self.nugget)

    @property
    def truth(self) -> dict[str, float]:
        """Natural values, the micro-ergodic parameter included."""
        return {
            "lengthscale": self.lengthscale,
            "variance": self.variance,
            "nugget": self.nugget,
            "micro-ergodic": self.variance / self.lengthscale ** (2 * self.nu),
        }


def settings() -> list[Setting]:
    """Scattered sites with ten fields and with one, a trend, a grid, and a grid with missing cells."""
    generator = torch.Generator().manual_seed(7)
    scattered = sd.Points(torch.rand(200, 2, generator=generator, dtype=torch.float64))
    few = sd.Points(torch.rand(80, 2, generator=generator, dtype=torch.float64))
    grid = sd.Grid((20, 20))
    holes = sd.Grid((24, 24)).masked(torch.rand(24, 24, generator=generator) > 0.25)
    exact, restricted = Method("exact"), Method("exact, restricted", {"restricted": True})
    return [
        Setting(
            "200 scattered sites, 10 fields",
            scattered,
            0.1,
            10,
            (
                exact,
                restricted,
                Method("vecchia, 15 neighbours", {"method": "vecchia", "neighbors": 15}),
                Method("iterative, 16 probes", {"method": "iterative", "probes": 16}),
                Method("variogram", {"method": "variogram"}),
            ),
        ),
        Setting(
            "200 scattered sites, 1 field",
            scattered,
            0.1,
            1,
            (
                exact,
                Method("exact, profile intervals", profile=True),
                restricted,
                Method("vecchia, 15 neighbours", {"method": "vecchia", "neighbors": 15}),
                Method("variogram", {"method": "variogram"}),
            ),
        ),
        Setting(
            "80 scattered sites, linear trend, 2 fields", few, 0.2, 2, (exact, restricted), mean="linear"
        ),
        Setting(
            "grid 20 x 20, 5 fields",
            grid,
            2.0,
            5,
            (
                exact,
                Method("whittle", {"method": "whittle"}),
                Method("whittle, 10 % taper", {"method": "whittle", "taper": 0.1}),
                Method("whittle, aliased density", {"method": "whittle", "density": "lattice"}),
                Method("variogram", {"method": "variogram"}),
                Method("spectrum", {"method": "spectrum"}),
            ),
        ),
        Setting(
            "grid 24 x 24, a quarter missing, 5 fields",
            holes,
            2.0,
            5,
            (
                exact,
                Method("whittle, imputed", {"method": "whittle"}),
                Method("vecchia, 15 neighbours", {"method": "vecchia", "neighbors": 15}),
            ),
        ),
    ]


QUANTITIES = ("lengthscale", "variance", "nugget", "micro-ergodic")


def replicate(setting: Setting, number: int) -> dict[str, dict[str, Any]]:
    """Estimates and whether their intervals hold the truth, by method."""
    torch.set_num_threads(1)
    gamma = sd.covariance(setting.kernel(), setting.domain, method="dense")
    fields = gamma.sample((setting.fields,), generator=torch.Generator().manual_seed(1000 + number)).detach()
    if isinstance(setting.domain, MaskedGrid):
        fields = setting.domain.fill(fields)
    return {method.label: estimate(setting, method, fields) for method in setting.methods}


def estimate(setting: Setting, method: Method, fields: torch.Tensor) -> dict[str, Any]:
    """One fit: per quantity the estimate and whether its interval holds the truth (None: no interval)."""
    start = time.perf_counter()
    options = {"method": "exact", "starts": 1, **method.options}
    kernel = setting.kernel(2.0, 0.5)
    if options["method"] == "spectrum":
        kernel, options = None, {"method": "spectrum"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if options["method"] == "variogram":
                result = variogram(fields, setting.domain, mean=setting.mean).fit(kernel)
            else:
                result = fit(kernel, fields, setting.domain, mean=setting.mean, **options)
    except RuntimeError as error:  # no usable covariance: counted and shown
        return {"lost": str(error), "seconds": time.perf_counter() - start}
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "converged": result.converged}
    truth = setting.truth if kernel is not None else {"variance": setting.variance + setting.nugget}
    for name, value in truth.items():
        if name == "micro-ergodic" and method.profile:
            continue
        at, error, low, high = with_interval(result, name, setting, method.profile)
        edge = not (math.isfinite(error) and error > 0.0)
        found[name] = {"estimate": at, "covered": not edge and low <= value <= high, "edge": edge}
    return found


def with_interval(
    result: Any, name: str, setting: Setting, profile: bool
) -> tuple[float, float, float, float]:
    """Estimate, standard error and the ends of the 95 % interval of a quantity."""
    if isinstance(result, VariogramFit):
        # log(σ²/ℓ^2ν) = log σ² - 2ν log ℓ; intervals on the logarithmic scale, as `interval` gives them
        names = result.model.names
        weights = torch.zeros(len(names), dtype=torch.float64)
        weights[names.index("variance" if name == "micro-ergodic" else name)] = 1.0
        if name == "micro-ergodic":
            weights[names.index("lengthscale")] = -2.0 * setting.nu
        at = math.exp(float(weights @ result.theta))
        relative = math.sqrt(max(float(weights @ result.covariance @ weights), 0.0))
        return at, at * relative, at * math.exp(-1.96 * relative), at * math.exp(1.96 * relative)
    key = name
    if name == "micro-ergodic":
        (key,) = [k for k in result.derived if k.startswith("variance/lengthscale")]
    at, error = result.derived[key] if key in result.derived else _estimate(result, key)
    if not (math.isfinite(error) and error > 0.0):
        return at, error, math.nan, math.nan
    if result.kernel is None:
        return at, error, at - 1.96 * error, at + 1.96 * error
    return (at, error, *interval(result, key, kind="profile" if profile else "wald"))


def _estimate(result: Any, name: str) -> tuple[float, float]:
    return result.parameters[name], result.standard_errors[name]


def summary(setting: Setting, runs: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per method and quantity."""
    rows = []
    for method in setting.methods:
        every = [run[method.label] for run in runs]
        good = [entry for entry in every if "lost" not in entry]
        names = [name for name in (*QUANTITIES,) if good and name in good[0]]
        for name in names:
            truth = setting.truth[name]
            if method.label == "spectrum":
                truth = setting.variance + setting.nugget
            estimates = torch.tensor([entry[name]["estimate"] for entry in good], dtype=torch.float64) / truth
            edges = sum(entry[name]["edge"] for entry in good)
            coverage = sum(entry[name]["covered"] for entry in good) / len(good)
            rows.append(
                {
                    "setting": setting.name,
                    "method": method.label,
                    "quantity": "total variance" if method.label == "spectrum" else name,
                    "bias": float(estimates.mean()) - 1.0,
                    "bias_error": float(estimates.std()) / math.sqrt(len(good)),
                    "rmse": float((estimates - 1.0).square().mean().sqrt()),
                    "median": float(estimates.median()) - 1.0,
                    "coverage": coverage if edges < len(good) else None,
                    "coverage_error": math.sqrt(0.95 * 0.05 / len(good)),
                    "replications": len(good),
                    "lost": len(every) - len(good),
                    "edge": edges,
                    "unconverged": sum(not entry["converged"] for entry in good),
                    "seconds": sum(entry["seconds"] for entry in every) / len(every),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, one line per method: bias / root mean square error / coverage of each quantity."""
    lines: list[str] = []
    for name in dict.fromkeys(row["setting"] for row in rows):
        chosen = [row for row in rows if row["setting"] == name]
        lines += ["", f"**{name}** ({chosen[0]['replications']} replications)", ""]
        quantities = [
            q for q in (*QUANTITIES, "total variance") if any(row["quantity"] == q for row in chosen)
        ]
        lines += [
            "| method | " + " | ".join(quantities) + " | edge, lost |",
            "|---" * (len(quantities) + 2) + "|",
        ]
        for method in dict.fromkeys(row["method"] for row in chosen):
            cells = {row["quantity"]: row for row in chosen if row["method"] == method}
            shown = [_cell(cells[q]) if q in cells else "" for q in quantities]
            first = next(iter(cells.values()))
            edge = (
                max(row["edge"] for row in cells.values() if row["coverage"] is not None)
                if any(row["coverage"] is not None for row in cells.values())
                else 0
            )
            lines.append(f"| {method} | " + " | ".join(shown) + f" | {edge}, {first['lost']} |")
    return "\n".join(lines[1:])


def _cell(row: dict[str, Any]) -> str:
    coverage = "–" if row["coverage"] is None else f"{row['coverage']:.1%}"
    return f"{row['bias']:+.1%} / {row['rmse']:.1%} / {coverage}"


def main() -> None:
    """Run the settings one after the other, the replications of each in parallel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 replications")
    parser.add_argument("--replications", type=int, default=250)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--methods", default="", help="methods whose label contains this")
    parser.add_argument("--without", default="", help="leave out methods whose label contains this")
    parser.add_argument("--out", type=Path, default=None, help="JSON with every number")
    options = parser.parse_args()
    count = 8 if options.quick else options.replications
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers) as pool:
        for setting in settings():
            chosen = tuple(
                m
                for m in setting.methods
                if options.methods in m.label and not (options.without and options.without in m.label)
            )
            if options.only not in setting.name or not chosen:
                continue
            setting = replace(setting, methods=chosen)
            start = time.perf_counter()
            runs = pool.map(functools.partial(replicate, setting), range(count), chunksize=1)
            rows += summary(setting, runs)
            print(f"{setting.name}: {time.perf_counter() - start:.0f} s", flush=True)
            for lost in {entry["lost"] for run in runs for entry in run.values() if "lost" in entry}:
                print(f"  lost: {lost}")
            if options.out is not None:
                options.out.write_text(json.dumps({"replications": count, "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
