"""The demo's report page and its table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spatialdiff.demo.config import DemoConfig
from spatialdiff.demo.figures import error_by_steps, gallery
from spatialdiff.demo.pipeline import (
    COLORS,
    CORRELATED,
    GAUSSIAN_FIELD,
    MODELS,
    WHITE,
    DemoResult,
    label,
)
from spatialdiff.demo.reading import reading
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder

FLOOR = "floor: real against real"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def rows(result: DemoResult) -> dict[str, dict[str, float]]:
    """Row → metric → error: the floor, the Gaussian field, then each model at each number of steps."""
    names = [GAUSSIAN_FIELD, *(label(model, steps) for model, steps in result.fields)]
    return {FLOOR: dict(result.floor), **{name: dict(result.errors[name]) for name in names}}


def best_of(table: Mapping[str, Mapping[str, float]]) -> set[tuple[str, str]]:
    """The smallest error of each column, among the candidates."""
    candidates = [name for name in table if name != FLOOR]
    return {
        (min(candidates, key=lambda name, m=metric: table[name][m]), metric)  # type: ignore[misc]
        for metric in table[FLOOR]
    }


def terminal_table(result: DemoResult) -> str:
    """The table as text, the smallest error of each column starred."""
    table = rows(result)
    best = best_of(table)
    metrics = list(table[FLOOR])
    width = max(map(len, table))
    columns = [max(len(metric), 8) for metric in metrics]
    lines = [
        " " * width
        + "  "
        + "  ".join(f"{metric:>{size}} " for metric, size in zip(metrics, columns, strict=True)),
        "-" * (width + 2 + sum(size + 3 for size in columns)),
    ]
    for name, errors in table.items():
        cells = [
            f"{number(errors[metric]):>{size}}{'*' if (name, metric) in best else ' '}"
            for metric, size in zip(metrics, columns, strict=True)
        ]
        lines.append(f"{name:<{width}}  " + "  ".join(cells))
        if name in (GAUSSIAN_FIELD,):
            lines.append("")
    lines.append(
        "Every number is a distance to held-out terrain: smaller is better, * the smallest of a column."
    )
    return "\n".join(lines)


def _what_was_done(result: DemoResult, config: DemoConfig) -> list[str]:
    train, test, grid = result.data.train, result.data.test, result.data.grid
    gamma = "smoothed spectrum of the patches" if config.noise == "spectrum" else "fitted kernel"
    side = " × ".join(map(str, grid.shape))
    return [
        f"Patches of {side} cells were cut from an elevation model, {len(train)} to learn from and "
        f"{len(test)} from another "
        "part of the map to compare with.",
        f"A covariance Γ was fitted to the first: the {gamma}, diagonal in the cosine basis; drawing from it "
        f"gives the "
        "Gaussian field with the same spectrum, which is what the models have to beat.",
        f"The same network ({result.parameters:,} weights) was then trained three times, "
        f"{config.train_steps} steps of "
        f"{config.batch} patches each: by denoising with white noise, by denoising with noise of covariance "
        f"Γ, and by a "
        "mixture of bridges driven by noise of covariance Γ.",
        f"Each model generated {config.samples} fields with {', '.join(map(str, config.sample_steps))} steps "
        f"of its sampler.",
        "All of them were compared with the held-out patches, and the held-out patches with each other, "
        "which gives the "
        "floor below which no difference means anything.",
    ]


def write(
    result: DemoResult,
    config: DemoConfig,
    out: RunFolder,
    text: str,
    seed: int,
    found: Mapping[str, str],
    quick: bool,
) -> Path:
    """Write `report.html`, the pictures, the table and the fields; returns the path of the page."""
    table = rows(result)
    best = best_of(table)
    metrics = list(table[FLOOR])
    names = list(table)
    most = max(config.sample_steps)
    out.write_csv("metrics.csv", [{"fields": name, **errors} for name, errors in table.items()])
    page = Page(
        "Terrain from correlated noise",
        "Diffusion models with white and with spatially correlated noise, trained on equal budgets and "
        "compared with real terrain.",
    )
    page.items(_what_was_done(result, config), ordered=True)
    if quick:
        page.text(
            "This was a quick run: everything happened, but the models had too little training to be judged."
        )

    page.section("The fields")
    units = f"{result.data.name}, standardised"
    pictures = {"held-out terrain": result.data.test[:: max(1, len(result.data.test) // config.shown)]}
    pictures[GAUSSIAN_FIELD.replace(" Gaussian", "\nGaussian")] = result.gaussian
    pictures |= {model.replace(" ", "\n", 1): result.fields[model, most] for model in MODELS}
    drawn = gallery(pictures, columns=config.shown, label=units)
    out.write_picture("fields.png", drawn)
    page.figure(
        drawn, f"One colour scale for all; the models with {most} steps. Not chosen: the first of each."
    )

    page.section("How far from real terrain")
    cells = [[name, *(number(table[name][metric]) for metric in metrics)] for name in names]
    page.table(
        ["", *metrics],
        cells,
        "Distances to held-out terrain: smaller is better, the smallest of each column in colour. "
        "The floor is what two halves of the held-out terrain differ by.",
        best=[(names.index(name), metrics.index(metric) + 1) for name, metric in best],
        reference=[0, 1],
        rules=[names.index(label(model, config.sample_steps[0])) for model in MODELS],
    )
    page.subsection("What the numbers say")
    errors = {model: {steps: table[label(model, steps)] for steps in config.sample_steps} for model in MODELS}
    page.items(reading(errors, table[GAUSSIAN_FIELD], table[FLOOR], WHITE, CORRELATED))
    page.text(
        f"One training run and {config.samples} fields each: a difference between two rows that is smaller "
        f"than the floor "
        "may be chance."
    )
    by_metric = {
        m: {model: {s: e[m] for s, e in by.items()} for model, by in errors.items()} for m in metrics
    }
    figure = error_by_steps(by_metric, COLORS, table[GAUSSIAN_FIELD], table[FLOOR])
    out.write_picture("steps.png", figure)
    page.figure(figure, "Error against the number of sampling steps.")
    return page.save(out / "report.html")
