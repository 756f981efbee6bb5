"""The demo's report page and its table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from spatialdiff.demo.config import DemoConfig
from spatialdiff.demo.figures import error_by_steps
from spatialdiff.demo.pipeline import (
    COLORS,
    CORRELATED,
    GAUSSIAN_FIELD,
    MODELS,
    WHITE,
    DemoResult,
    label,
)
from spatialdiff.demo.reading import best_rows, reading
from spatialdiff.evaluation.report import FLOOR, REFERENCE, TRAINING
from spatialdiff.plotting import gallery, panels, training_curves
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder
from spatialdiff.style import GAUSSIAN, REAL

NEAREST = "nearest"


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def rows(result: DemoResult) -> dict[str, dict[str, float]]:
    """Row → metric → error: the floor, the training terrain, the Gaussian field, each model at each number of
    steps."""
    comparison = result.comparison
    training = {} if comparison.training is None else {TRAINING: comparison.training}
    return {
        FLOOR: dict(comparison.floor),
        **training,
        **{name: comparison.errors(name) for name in comparison.names},
    }


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
    comparison = result.comparison
    table = rows(result)
    metrics = list(comparison.floor)
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
    page.figure(
        out.write_picture("fields.png", drawn),
        f"One colour scale for all; the models with {most} steps. Not chosen: the first of each. The three "
        f"models start from "
        "the white draws of the Gaussian field, so that a column shows what each makes of them.",
    )

    page.section("How far from real terrain")
    copying = {name: number(found["ratio"]) for name, found in comparison.nearest.items()}
    cells = [[name, *(number(table[name][m]) for m in metrics), copying.get(name, "")] for name in names]
    least = [(min(comparison.names, key=lambda name, m=m: table[name][m]), m) for m in metrics]  # type: ignore[misc]
    page.table(
        ["", *metrics, NEAREST],
        cells,
        f"Distances to held-out terrain: smaller is better, the smallest of each column in colour. The floor "
        f"is what two "
        f"halves of the held-out terrain differ by; the training terrain comes from other parts of the map, "
        f"and no model "
        f"of it can be asked for less. All by {comparison.splits} random splits into samples of "
        f"{comparison.size}. The last "
        "column is the distance to the nearest training patch over that of held-out patches: near 1 is new, "
        "far below is a "
        "copy.",
        best=[(names.index(name), metrics.index(m) + 1) for name, m in least],
        reference=[i for i, name in enumerate(names) if name in (FLOOR, TRAINING, GAUSSIAN_FIELD)],
        rules=[names.index(label(model, config.sample_steps[0])) for model in MODELS],
    )
    page.code("\n".join(f"{m:<16} {comparison.meanings[m]}" for m in metrics), "What each column is")
    page.subsection("What the numbers say")
    errors = {model: {steps: table[label(model, steps)] for steps in config.sample_steps} for model in MODELS}
    base = {m: max(table[FLOOR][m], table.get(TRAINING, table[FLOOR])[m]) for m in metrics}
    page.items(reading(errors, table[GAUSSIAN_FIELD], base, WHITE, CORRELATED))
    best = best_rows(errors, table[GAUSSIAN_FIELD], base)
    page.table(
        ["", "closest model", "over the base", "Gaussian field over the base"],
        [[metric, name, f"{ratio:.2f}", f"{gaussian:.2f}"] for metric, name, ratio, gaussian in best],
    )
    page.text(
        "The base is, for each column, the larger of the floor and of the distance of the training terrain. "
        "One "
        f"training run and {config.samples} fields each: a difference that is small beside the base may be "
        f"chance."
    )
    by_metric = {
        m: {model: {s: e[m] for s, e in by.items()} for model, by in errors.items()} for m in metrics
    }
    figure = error_by_steps(by_metric, COLORS, table[GAUSSIAN_FIELD], base)
    page.figure(out.write_picture("steps.png", figure), "Error against the number of sampling steps.")

    page.section("Where they differ")
    colors = {REFERENCE: REAL, GAUSSIAN_FIELD: GAUSSIAN, **{label(m, most): COLORS[m] for m in MODELS}}
    diagrams = [panel.only(list(colors)) for panel in comparison.curves.values()]
    first = [panel for panel in diagrams if panel.ratio_to is not None]
    second = [panel for panel in diagrams if panel.ratio_to is None]
    captions = (
        "Spectrum and variogram, and below them their ratios to the real terrain. They see the covariance "
        "only, which the "
        "Gaussian field has by construction. Lengths in km; the grey band is where halves of the held-out "
        "terrain lie.",
        "Distributions of values, slopes and second differences: what is not Gaussian shows here.",
    )
    for name, group, caption in zip(("spectra", "distributions"), (first, second), captions, strict=True):
        figure = panels(group, colors, dashed=[GAUSSIAN_FIELD])
        page.figure(out.write_picture(f"{name}.png", figure), caption)

    page.section("Γ")
    page.text("The kernel by maximum likelihood, for its parameters:").code(str(result.parametric))
    page.text("The smoothed spectrum:").code(str(result.spectrum))
    chosen = "the smoothed spectrum" if config.noise == "spectrum" else "the fitted kernel"
    page.text(f"The noise of the correlated models has {chosen}.").code(str(result.gamma.report))

    page.section("Training")
    figure = training_curves(result.curves, COLORS)
    page.figure(
        out.write_picture("training.png", figure),
        "Mean square error of what the network predicts, recorded values faint, their running mean in front. "
        "The models "
        "predict different things, so that only the shapes compare, not the heights.",
    )
    columns = ["", "training", *(f"{steps} steps" for steps in config.sample_steps)]
    seconds = [
        [
            model,
            f"{result.training[model]:.1f} s",
            *(f"{result.sampling[model, steps]:.1f} s" for steps in config.sample_steps),
        ]
        for model in MODELS
    ]
    page.table(columns, seconds, f"Time to train, and to generate {config.samples} fields.")
    page.pairs({name: f"{took:.1f} s" for name, took in result.seconds.items()}, "Time of each stage.")
    page.provenance(text, seed, found, (out / "command.txt").read_text())
    out.write_json("timings.json", {"stages": result.seconds, "training": result.training})
    fields = {f"{model} {steps}".replace(" ", "_"): x for (model, steps), x in result.fields.items()}
    out.write_arrays("fields.npz", gaussian=result.gaussian, held_out=result.data.test, **fields)
    return page.save(out / "report.html")
