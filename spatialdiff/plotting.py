"""Pictures: fields, spectra, variograms, sections of a covariance, training curves.

Every function returns a `matplotlib.figure.Figure` that no global state knows of: save it with `savefig`,
or show it by being the last value of a notebook cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.evaluation.curves import Panel, spectrum_curve, variogram_curve
from spatialdiff.style import GAUSSIAN, PALETTE, colors, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "Panel",
    "colors",
    "covariance_section",
    "gallery",
    "panels",
    "spectra",
    "style",
    "training_curves",
    "variograms",
]


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


def gallery(
    rows: Mapping[str, Tensor] | Tensor,
    columns: int = 8,
    label: str = "",
    *,
    grid: Grid | None = None,
    cmap: str = "gist_earth",
) -> Figure:
    """Fields as pictures on one colour scale, that of the first row.

    The first channel is shown; a three-dimensional field by its middle slice along the first axis, a
    one-dimensional one as a band. The first axis runs downwards.

    Args:
        rows: name → fields `(n, C, *grid)`, of which the first `columns` are shown; or one row without a
        name.
        columns: pictures per row, at most.
        label: of the colour scale.
        grid: gives the pictures their proportions, and the first one axes in units of length.
        cmap: a colour map of matplotlib.

    Raises:
        ValueError: no fields, or an array that is not `(n, C, *grid)`.
    """
    named = rows if isinstance(rows, Mapping) else {"": rows}
    for name, fields in named.items():
        if fields.ndim < 3 or len(fields) == 0 or (grid is not None and fields.shape[2:] != grid.shape):
            raise ValueError(
                f"The fields {name!r} have shape {tuple(fields.shape)}; needed (n, C, *grid)"
                f"{'' if grid is None else f' with grid = {grid.shape}'} and n at least 1."
            )
    if not named or columns < 1:
        raise ValueError(f"needed at least one row and one column, got {len(named)} and {columns}.")
    columns = min(columns, max(len(fields) for fields in named.values()))
    first = next(iter(named.values()))
    low, high = np.quantile(first[:, 0].detach().cpu().double().numpy(), [0.005, 0.995])
    shape = _image(first[0]).shape
    extent: tuple[float, float, float, float] | None = None
    if grid is not None and grid.ndim >= 2:
        extent = (0.0, grid.extent[-1], grid.extent[-2], 0.0)
    tall = abs(extent[2] / extent[1]) if extent is not None else shape[0] / shape[1]
    tall = min(max(tall, 0.2), 3.0)
    with style():
        margin = 0.35 + 0.082 * max((len(line) for name in named for line in name.splitlines()), default=0)
        figure = _figure(1.12 * columns + margin + 0.9, max(1.0, (1.12 * tall + 0.04) * len(named) + 0.1))
        axes = figure.subplots(
            len(named), columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.03}
        )
        picture = None
        for i, (name, fields) in enumerate(named.items()):
            for j, axis in enumerate(axes[i]):
                physical = extent is not None and i == len(named) - 1 and j == 0
                axis.grid(False)
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if j < len(fields):
                    picture = axis.imshow(
                        _image(fields[j]),
                        vmin=low,
                        vmax=high,
                        cmap=cmap,
                        interpolation="nearest",
                        extent=extent,
                    )
                if physical and extent is not None:
                    axis.set_xticks([0, extent[1]], ["0", f"{extent[1]:.3g}"], fontsize=7)
                    axis.set_yticks([])
                    axis.tick_params(length=2, pad=1)
                else:
                    axis.set_xticks([])
                    axis.set_yticks([])
            axes[i][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9.5, labelpad=8)
        if picture is not None:
            figure.colorbar(
                picture, ax=axes, shrink=min(1.0, 2.2 / len(named)), aspect=18, pad=0.015, label=label
            )
    return figure


def panels(diagrams: Sequence[Panel], colors: Mapping[str, str], dashed: Sequence[str] = ()) -> Figure:
    """Diagrams, at most three in a row, each with the ratio to its reference below where it has one.

    Args:
        diagrams: what to draw.
        colors: name of a curve → colour.
        dashed: names of curves that are drawn broken.

    Raises:
        ValueError: no diagrams.
    """
    if not diagrams:
        raise ValueError("There are no diagrams to draw.")
    lines = [diagrams[i : i + 3] for i in range(0, len(diagrams), 3)]
    heights = [4.6 if any(p.ratio_to is not None for p in line) else 3.0 for line in lines]
    handles: dict[str, Any] = {}
    with style():
        names = list(dict.fromkeys(name for diagram in diagrams for name in diagram.curves))
        figure = _figure(3.7 * len(lines[0]), sum(heights) + 0.1 + 0.2 * -(-len(names) // 3))
        cells_of = figure.add_gridspec(len(lines), len(lines[0]), height_ratios=heights)
        for i, line in enumerate(lines):
            for j, diagram in enumerate(line):
                ratio = diagram.ratio_to is not None
                cell = cells_of[i, j]
                parts = cell.subgridspec(2, 1, height_ratios=[2.2, 1.0]) if ratio else None
                top = figure.add_subplot(cell if parts is None else parts[0])
                _draw(top, diagram, colors, dashed)
                for name, handle in zip(*reversed(top.get_legend_handles_labels()), strict=True):
                    handles.setdefault(name, handle)
                if parts is None:
                    top.set_xlabel(diagram.x)
                else:
                    bottom = figure.add_subplot(parts[1], sharex=top)
                    _draw_ratio(bottom, diagram, colors, dashed)
                    bottom.set_xlabel(diagram.x)
                    top.tick_params(labelbottom=False)
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles))
        )
    return figure


def _draw(axis: Axes, diagram: Panel, colors: Mapping[str, str], dashed: Sequence[str]) -> None:
    for i, (x, y) in enumerate(diagram.bands):
        axis.plot(
            x,
            y,
            color=GAUSSIAN,
            alpha=0.35,
            linewidth=0.7,
            label="" if i else "halves of the real data",
            zorder=1,
        )
    for name, (x, y) in diagram.curves.items():
        reference = name == diagram.ratio_to or (
            diagram.ratio_to is None and name == next(iter(diagram.curves))
        )
        axis.plot(
            x,
            y,
            "--" if name in dashed else "-",
            color=colors[name],
            label=name,
            linewidth=2.2 if reference else 1.4,
        )
    axis.set_title(diagram.title)
    axis.set_ylabel(diagram.y)
    axis.set_xscale("log" if diagram.log_x else "linear")
    axis.set_yscale("log" if diagram.log_y else "linear")
    if diagram.log_x:
        _few_ticks(axis.xaxis)


def _few_ticks(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 of each decade of a logarithmic axis, at most seven of them; more where it
    spans less than a factor of five.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high >= 5.0 * low else (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_ratio(axis: Axes, diagram: Panel, colors: Mapping[str, str], dashed: Sequence[str]) -> None:
    assert diagram.ratio_to is not None
    x, reference = (np.asarray(values, dtype=float) for values in diagram.curves[diagram.ratio_to])
    if diagram.bands:
        halves = np.array([y for _, y in diagram.bands]) / reference
        axis.fill_between(x, halves.min(0), halves.max(0), color=GAUSSIAN, alpha=0.35, linewidth=0)
    for name, (place, y) in diagram.curves.items():
        axis.plot(
            place,
            np.asarray(y, dtype=float) / reference,
            "--" if name in dashed else "-",
            color=colors[name],
            linewidth=1.3,
        )
    axis.set_yscale("log")
    _few_ticks(axis.yaxis)
    axis.set_ylabel("ratio to\nreal")


def spectra(fields: Mapping[str, Tensor], grid: Grid) -> Figure:
    """Radially averaged power spectra of fields `(N, C, *grid)` by name, with their ratio to the first.

    Raises:
        ValueError: no fields.
    """
    if not fields:
        raise ValueError("There are no fields to draw.")
    drawn = {name: spectrum_curve(x.detach().cpu().double(), grid) for name, x in fields.items()}
    reference = next(iter(drawn))
    panel = Panel(
        "Power spectrum",
        "wavenumber (cycles per unit length)",
        "mean power of a mode",
        drawn,
        log_x=True,
        log_y=True,
        ratio_to=reference,
    )
    return panels([panel], colors(list(drawn)))


def variograms(fields: Mapping[str, Tensor], grid: Grid) -> Figure:
    """Empirical variograms of fields `(N, C, *grid)` by name, with their ratio to the first.

    Raises:
        ValueError: no fields.
    """
    if not fields:
        raise ValueError("There are no fields to draw.")
    drawn = {name: variogram_curve(x.detach().cpu().double(), grid) for name, x in fields.items()}
    panel = Panel("Variogram", "distance", "half mean squared difference", drawn, ratio_to=next(iter(drawn)))
    return panels([panel], colors(list(drawn)))


def covariance_section(gamma: Covariance) -> Figure:
    r"""Γ between the middle site and all others: along the axes, and as a picture in two dimensions.

    The column :math:`\Gamma e_m` is computed by one product, so that what is shown is the operator as it
    is used, with the edge effects of its structure. Of several channels the first is shown.

    Raises:
        TypeError: a covariance that does not live on a regular grid.
    """
    domain = gamma.domain
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    if not isinstance(grid, Grid):
        raise TypeError(f"covariance_section draws along the axes of a grid, got {domain!r}.")
    unit = torch.zeros(gamma.event_shape, dtype=torch.float64)
    middle = tuple(n // 2 for n in grid.shape)
    unit[(*(0,) * (len(gamma.event_shape) - grid.ndim), *middle)] = 1.0
    with torch.no_grad():
        column = gamma.matmul(unit.to(gamma.dtype)).double().reshape(-1, *grid.shape)[0].cpu()
    drawn = {}
    for axis in range(grid.ndim):
        index: list[Any] = list(middle)
        index[axis] = slice(None)
        place = (torch.arange(grid.shape[axis]) - middle[axis]) * grid.spacing[axis]
        drawn[f"along axis {axis}"] = (place.tolist(), column[tuple(index)].tolist())
    with style():
        picture = grid.ndim == 2
        figure = _figure(7.2 if picture else 4.2, 3.0)
        axes = figure.subplots(1, 2 if picture else 1, squeeze=False)[0]
        for name, color in zip(drawn, PALETTE, strict=False):
            axes[0].plot(*drawn[name], color=color, label=name)
        axes[0].set_title("Covariance with the middle site")
        axes[0].set_xlabel("distance along the axis")
        axes[0].legend()
        if picture:
            low, high = float(column.min()), float(column.max())
            signed = low < 0.0
            # the pixel of the middle site is centred on distance 0
            down, across = ((n + 0.5) * h for n, h in zip(middle, grid.spacing, strict=True))
            shown = axes[1].imshow(
                column.numpy(),
                cmap="RdBu_r" if signed else "viridis",
                vmin=-max(high, -low) if signed else low,
                vmax=max(high, -low),
                interpolation="nearest",
                extent=(-across, grid.extent[1] - across, grid.extent[0] - down, -down),
            )
            axes[1].grid(False)
            axes[1].set_xlabel("distance along axis 1")
            axes[1].set_ylabel("along axis 0")
            figure.colorbar(shown, ax=axes[1])
    return figure


def training_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]], colors: Mapping[str, str] | None = None
) -> Figure:
    """Loss against step: the values faintly, their running mean over 4 % of them in front.

    Args:
        curves: name → (step, loss).
        colors: name → colour; the palette where it is not given.

    Raises:
        ValueError: no curves, or an empty one.
    """
    if not curves or any(len(points) == 0 for points in curves.values()):
        raise ValueError("There are no curves to draw, or one of them is empty.")
    colors = colors or {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(curves)}
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
