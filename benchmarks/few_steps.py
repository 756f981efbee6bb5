"""Few-step sampling on terrain and air temperature: every solver, white and fitted Γ, with or without Wiener.

    python benchmarks/few_steps.py train --out runs/few-steps       24 networks on equal budgets, three seeds
    python benchmarks/few_steps.py sample --out runs/few-steps      fields by every solver, 4 to 64 calls
    python benchmarks/few_steps.py report --out runs/few-steps      table and picture for docs/few-steps.md

Every stage goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import spatialdiff as sd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCES = ("terrain", "temperature")
NOISES = ("white", "fitted")
PRECONDITIONINGS = ("edm", "wiener")
SEEDS = (0, 1, 2)
TRAINING_STEPS = 1500
FIELDS = 64
CALLS = (4, 8, 16, 64)
GAUSSIAN = "fitted Gaussian field"
#: of as many fields each, of the fitted Gaussian field
DRAWS = 8
METRICS = ("spectrum", "variogram", "gradients", "energy distance")
#: by which solvers are ranked: the energy distance of so few fields tells little
RANKED = METRICS[:3]
#: the pictures end here: an error this large is as good as any larger one
TOP = 4.0
TITLES = {"edm": "EDM", "wiener": "Wiener"}
#: name → solver, its options, network calls per step
SAMPLERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "ancestral": ("ancestral", {}, 1),
    "Euler–Maruyama": ("euler_maruyama", {}, 1),
    "predictor–corrector": ("predictor_corrector", {}, 2),
    "DDIM": ("ddim", {}, 1),
    "Heun": ("heun", {}, 2),
    "exponential, order 2": ("exponential", {"order": 2}, 1),
    "Gaussian step": ("gaussian", {"order": 1}, 1),
    "Gaussian step, order 2": ("gaussian", {"order": 2}, 1),
    "Gaussian SDE step": ("gaussian_sde", {}, 1),
    "Euler": ("euler", {}, 1),
    "splitting": ("splitting", {}, 1),
    "splitting, order 2": ("splitting", {"order": 2}, 2),
}


def load(source: str) -> sd.data.FieldData:
    """Training and held-out fields."""
    if source == "terrain":
        return sd.data.terrain(patch=32, stride=4, flips=True)
    return sd.data.air_temperature()


def fitted(data: sd.data.FieldData) -> sd.FitResult:
    """The smoothed spectrum of the training fields in the cosine basis."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.fitting.FitWarning)
        return sd.fit(None, data.train, data.grid, method="spectrum", basis="cosine")


def denoiser(data: sd.data.FieldData, fit: sd.FitResult, noise: str, preconditioning: str) -> sd.Denoiser:
    """An untrained denoiser for VP noise."""
    gamma = (sd.white(data.grid) if noise == "white" else fit.covariance).float()
    network = sd.networks.UNet(1, data.grid, width=16, depth=2)
    law = (fit.mean, fit.covariance)
    return sd.Denoiser(network, sd.VP(gamma), preconditioning=preconditioning, data=law, channels=1)


def train(out: Path, source: str) -> None:
    """Train every model of one source that is not there yet."""
    data = load(source)
    fit = fitted(data)
    for seed, noise, preconditioning in itertools.product(SEEDS, NOISES, PRECONDITIONINGS):
        path = out / f"{source}-{noise}-{preconditioning}-{seed}.pt"
        if path.exists():
            continue
        begun = time.perf_counter()
        torch.manual_seed(seed)
        objective = sd.Denoising(denoiser(data, fit, noise, preconditioning), times="fitted")
        trainer = sd.Trainer(
            objective, batch_size=16, lr=2e-3, ema_decay=0.995, warmup=50, seed=seed, tensorboard=False,
            progress=False,
        ).fit(data.train, steps=TRAINING_STEPS)  # fmt: skip
        partial = path.with_suffix(".part")
        torch.save(trainer.ema_denoiser().network.state_dict(), partial)
        partial.rename(path)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s", flush=True)


def models(out: Path, source: str) -> Iterator[tuple[str, str, int, Path]]:
    """Noise, preconditioning, seed and file of every trained model of a source."""
    for noise, preconditioning, seed in itertools.product(NOISES, PRECONDITIONINGS, SEEDS):
        yield noise, preconditioning, seed, out / f"{source}-{noise}-{preconditioning}-{seed}.pt"


def sample(out: Path, source: str) -> None:
    """Draw and compare the fields of every model and solver that are not there yet, a file for each pair."""
    data = load(source)
    fit = fitted(data)
    shared = out / f"{source}-shared.json"
    if not shared.exists():
        gaussian = {
            str(seed): fit.mean.float()
            + fit.covariance.float().sample((FIELDS, 1), generator=torch.Generator().manual_seed(seed))
            for seed in range(DRAWS)
        }
        report = sd.evaluation.compare(gaussian, data.test, data.grid, training=data.train)
        write(shared, report.numbers)
    for noise, preconditioning, seed, weights in models(out, source):
        model = denoiser(data, fit, noise, preconditioning)
        model.network.load_state_dict(torch.load(weights, weights_only=True))
        model = model.requires_grad_(False).eval()
        for name, (solver, options, cost) in SAMPLERS.items():
            path = out / f"{weights.stem}.{name.replace(' ', '_').replace(',', '')}.json"
            if path.exists():
                continue
            begun = time.perf_counter()
            drawn = {
                str(calls): sd.sample(
                    model,
                    FIELDS,
                    steps=calls // cost,
                    solver=solver,
                    grid="fitted",
                    generator=torch.Generator().manual_seed(1000 + seed),
                    **options,
                )
                for calls in CALLS
            }
            write(path, sd.evaluation.compare(drawn, data.test, data.grid).numbers)
            if seed == SEEDS[0]:
                torch.save({k: v[:8] for k, v in drawn.items()}, path.with_suffix(".fields"))
            print(f"{path.name}: {time.perf_counter() - begun:.0f} s", flush=True)


def write(path: Path, numbers: dict[str, Any]) -> None:
    """The whole file or none."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(numbers))
    partial.rename(path)


def collect(out: Path, source: str) -> dict[tuple[str, str, str, int], list[dict[str, float]]]:
    """(noise, preconditioning, sampler, calls) → the errors of each seed; and the rows that all share."""
    shared = json.loads((out / f"{source}-shared.json").read_text())
    found = {
        ("", "", "floor: real against real", 0): [shared["floor"]],
        ("", "", "training data", 0): [shared["training data"]],
        ("", "", GAUSSIAN, 0): [shared["errors"][str(seed)] for seed in range(DRAWS)],
    }
    for noise, preconditioning, _, weights in models(out, source):
        for name in SAMPLERS:
            path = out / f"{weights.stem}.{name.replace(' ', '_').replace(',', '')}.json"
            numbers = json.loads(path.read_text())
            for calls in CALLS:
                found.setdefault((noise, preconditioning, name, calls), []).append(
                    numbers["errors"][str(calls)]
                )
    return found


def cell(rows: list[dict[str, float]], metric: str) -> str:
    """Mean over the seeds and their range."""
    values = [row[metric] for row in rows]
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def table(found: dict[tuple[str, str, str, int], list[dict[str, float]]], metrics: list[str]) -> str:
    """A Markdown table, a row for each model, solver and number of calls."""
    lines = ["| noise | preconditioning | solver | calls | " + " | ".join(metrics) + " |"]
    lines.append("|---|---|---|---:|" + "---:|" * len(metrics))
    for (noise, preconditioning, name, calls), rows in sorted(found.items(), key=lambda item: item[0][:1]):
        cells = " | ".join(cell(rows, metric) for metric in metrics)
        lines.append(f"| {noise} | {preconditioning} | {name} | {calls or ''} | {cells} |")
    return "\n".join(lines)


def summary(found: dict[tuple[str, str, str, int], list[dict[str, float]]], metrics: list[str]) -> str:
    """For each model and number of calls the solver of the smallest mean error, and that error, by metric."""
    lines = ["| noise | preconditioning | calls | " + " | ".join(metrics) + " |"]
    lines.append("|---|---|---:|" + "---|" * len(metrics))
    for (_, _, name, calls), rows in found.items():
        if not calls:
            lines.append(f"| {name} | | | " + " | ".join(cell(rows, metric) for metric in metrics) + " |")
    for noise, preconditioning, calls in itertools.product(NOISES, PRECONDITIONINGS, CALLS):
        cells = []
        for metric in metrics:
            means = {
                name: statistics.mean(row[metric] for row in found[noise, preconditioning, name, calls])
                for name in SAMPLERS
            }
            best = min(means, key=lambda name, means=means: means[name])  # type: ignore[misc]
            cells.append(f"{means[best]:.3f} {best}")
        lines.append(f"| {noise} | {preconditioning} | {calls} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ranks(found: dict[tuple[str, str, str, int], list[dict[str, float]]]) -> str:
    """Mean rank of every solver over the models and the ranked metrics, by number of calls."""
    lines = [
        "| solver | " + " | ".join(f"{calls} calls" for calls in CALLS) + " |",
        "|---|" + "---:|" * len(CALLS),
    ]
    places: dict[tuple[str, int], list[int]] = {}
    for noise, preconditioning, metric, calls in itertools.product(NOISES, PRECONDITIONINGS, RANKED, CALLS):
        means = {
            name: statistics.mean(row[metric] for row in found[noise, preconditioning, name, calls])
            for name in SAMPLERS
        }
        for place, name in enumerate(sorted(means, key=lambda name, means=means: means[name]), 1):  # type: ignore[misc]
            places.setdefault((name, calls), []).append(place)
    for name in sorted(SAMPLERS, key=lambda name: statistics.mean(places[name, CALLS[0]])):
        cells = " | ".join(f"{statistics.mean(places[name, calls]):.1f}" for calls in CALLS)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def draw(found: dict[tuple[str, str, str, int], list[dict[str, float]]], metrics: list[str]) -> Figure:
    """Mean error over the seeds against network calls: a row for each model, a column for each metric."""
    from matplotlib.figure import Figure

    from spatialdiff.style import GAUSSIAN as GREY
    from spatialdiff.style import PALETTE, REAL, style

    pairs = list(itertools.product(NOISES, PRECONDITIONINGS))
    with style():
        figure = Figure(figsize=(3.0 * len(metrics), 2.5 * len(pairs)), layout="constrained")
        axes = figure.subplots(len(pairs), len(metrics), squeeze=False, sharey="col", sharex=True)
        for row, (noise, preconditioning) in zip(axes, pairs, strict=True):
            row[0].set_ylabel(f"{noise} noise, {TITLES[preconditioning]}")
            for axis, metric in zip(row, metrics, strict=True):
                for number, name in enumerate(SAMPLERS):
                    seeds = [found[noise, preconditioning, name, calls] for calls in CALLS]
                    means = [statistics.mean(r[metric] for r in rows) for rows in seeds]
                    color, dash = PALETTE[number % len(PALETTE)], "-" if number < len(PALETTE) else "--"
                    axis.plot(CALLS, means, dash, color=color, label=name, marker=".")
                for name, color in ((GAUSSIAN, GREY), ("floor: real against real", REAL)):
                    level = max(statistics.mean(row[metric] for row in found["", "", name, 0]), 1e-4)
                    axis.axhline(level, color=color, lw=1.2, ls=":", label=name)
                axis.set_xscale("log", base=2)
                axis.set_yscale("log")
                axis.set_ylim(top=TOP)
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("")
                axis.set_xticks(CALLS, [str(calls) for calls in CALLS])
        for axis, metric in zip(axes[0], metrics, strict=True):
            axis.set_title(metric)
        for axis in axes[-1]:
            axis.set_xlabel("network calls")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def report(out: Path, sources: list[str]) -> None:
    """Write `summary-`, `ranks-` and `table-<source>.md`, and `few-steps-<source>.png`."""
    for source in sources:
        found = collect(out, source)
        shown = [metric for metric in next(iter(found.values()))[0] if metric in METRICS]
        (out / f"table-{source}.md").write_text(table(found, shown) + "\n")
        (out / f"summary-{source}.md").write_text(summary(found, shown) + "\n")
        (out / f"ranks-{source}.md").write_text(ranks(found) + "\n")
        draw(found, shown).savefig(out / f"few-steps-{source}.png", dpi=100)


def main() -> None:
    """Parse and run a stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("train", "sample", "report"))
    parser.add_argument("--out", type=Path, default=Path("runs/few-steps"))
    parser.add_argument("--sources", nargs="+", default=list(SOURCES), choices=SOURCES)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "report":
        report(arguments.out, arguments.sources)
        return
    for source in arguments.sources:
        (train if arguments.stage == "train" else sample)(arguments.out, source)


if __name__ == "__main__":
    main()
