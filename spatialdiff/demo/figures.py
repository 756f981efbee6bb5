"""The demo's own picture: error against sampling steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spatialdiff.style import GAUSSIAN, REAL, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3


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
        floor: metric → what real data differ by.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    lines = -(-len(errors) // COLUMNS)
    with style():
        figure = Figure(figsize=(10.2, 2.9 * lines + 0.6), layout="constrained")
        panels: list[Axes] = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
        for axis in panels[len(errors) :]:
            axis.set_axis_off()
        for axis, (metric, models) in zip(panels, errors.items(), strict=False):
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
            axis.axhline(floor[metric], color=REAL, linewidth=1.1, linestyle=":", label="base: real terrain")
            axis.set_xscale("log", base=2)
            axis.set_ylim(bottom=0.0)
            ticks = sorted({steps for by_steps in models.values() for steps in by_steps})
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_xlabel("sampling steps")
            axis.set_title(metric)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
