"""The pictures of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

REAL, GAUSSIAN = "#1d2329", "#9aa5b1"
PALETTE = ("#3b78b5", "#d9762b", "#2a9074", "#9b5fb0", "#b8485e", "#8a7a2e")

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": "#39424b",
    "axes.edgecolor": "#8a949e",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.6,
    "xtick.color": "#5d6873",
    "ytick.color": "#5d6873",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "figure.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every picture, left behind on exit."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _image(field: Tensor) -> np.ndarray[Any, Any]:
    """The first channel as a picture; one-dimensional fields as a band, three-dimensional ones by their
    middle slice."""
    values: np.ndarray[Any, Any] = field.detach().cpu().double().numpy()[0]
    if values.ndim == 1:
        return np.repeat(values[None], max(1, values.shape[0] // 4), axis=0)
    if values.ndim == 3:
        values = values[values.shape[0] // 2]
    return values


def gallery(rows: Mapping[str, Tensor], columns: int = 8, label: str = "") -> Figure:
    """One row of fields `(n, C, *grid)` per name, all on the colour scale of the first row."""
    first = next(iter(rows.values()))
    low, high = np.quantile(first[:, 0].detach().cpu().double().numpy(), [0.005, 0.995])
    with style():
        figure = _figure(1.12 * columns + 1.5, 1.16 * len(rows))
        axes = figure.subplots(
            len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03}
        )
        picture = None
        for (name, fields), line in zip(rows.items(), axes, strict=True):
            for j, axis in enumerate(line):
                axis.set_xticks([])
                axis.set_yticks([])
                axis.grid(False)
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if j < fields.shape[0]:
                    picture = axis.imshow(
                        _image(fields[j]), vmin=low, vmax=high, cmap="gist_earth", interpolation="nearest"
                    )
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9.5, labelpad=8)
        if picture is not None:
            figure.colorbar(
                picture, ax=axes, shrink=min(1.0, 2.2 / len(rows)), aspect=18, pad=0.015, label=label
            )
    return figure


def training_curves(curves: Mapping[str, Sequence[tuple[int, float]]], colors: Mapping[str, str]) -> Figure:
    """Loss against step, smoothed over 2 % of the steps, the raw values faintly behind."""
    with style():
        figure = _figure(7.2, 3.0)
        axis = figure.subplots()
        for name, points in curves.items():
            steps, losses = np.asarray(points, dtype=float).T
            axis.plot(steps, losses, color=colors[name], alpha=0.18, linewidth=0.8)
            span = max(1, len(losses) // 25)
            kernel = np.ones(span) / span
            smooth = np.convolve(losses, kernel, mode="valid")
            axis.plot(steps[span - 1 :], smooth, color=colors[name], label=name)
        axis.set_yscale("log")
        axis.set_xlabel("training step")
        axis.set_ylabel("loss (mean square error of what the network predicts)")
        axis.legend()
    return figure


def error_by_steps(
    errors: Mapping[str, Mapping[str, Mapping[int, float]]],
    colors: Mapping[str, str],
    gaussian: Mapping[str, float],
    floor: Mapping[str, float],
) -> Figure:
    """For each metric, each model's error against its number of sampling steps.

    Args:
        errors: metric → model → steps → error.
        colors: model → colour.
        gaussian: metric → error of the fitted Gaussian field.
        floor: metric → what two halves of the real data differ by.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    with style():
        figure = _figure(3.1 * len(errors), 3.1)
        panels: Sequence[Axes] = figure.subplots(1, len(errors), squeeze=False)[0]
        for axis, (metric, models) in zip(panels, errors.items(), strict=True):
            for name, by_steps in models.items():
                axis.plot(
                    list(by_steps),
                    list(by_steps.values()),
                    "o-",
                    color=colors[name],
                    markersize=4,
                    label=name,
                )
            axis.axhline(
                gaussian[metric], color=GAUSSIAN, linewidth=1.4, linestyle="--", label="fitted Gaussian field"
            )
            axis.axhline(
                floor[metric], color=REAL, linewidth=1.1, linestyle=":", label="floor: real against real"
            )
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            ticks = sorted({steps for by_steps in models.values() for steps in by_steps})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel("sampling steps")
            axis.set_title(metric)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
