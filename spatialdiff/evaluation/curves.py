"""The curves behind the numbers: spectrum, variogram, and the distributions of values and differences."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.evaluation.gradients import curvature, magnitude
from spatialdiff.evaluation.marginal import values
from spatialdiff.evaluation.spectrum import spectrum
from spatialdiff.evaluation.variogram import increments, lags

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Panel:
    """One diagram: a curve for each name.

    Args:
        title, x, y: what is shown, and the axes.
        curves: name → (abscissa, ordinate).
        log_x, log_y: logarithmic axes.
        ratio_to: the curve that a second diagram below divides the others by.
        bands: curves between whose extremes a band is shaded: what halves of the real data give.
    """

    title: str
    x: str
    y: str
    curves: Mapping[str, Curve]
    log_x: bool = False
    log_y: bool = False
    ratio_to: str | None = None
    bands: Sequence[Curve] = ()

    def only(self, names: Collection[str]) -> Panel:
        """The same diagram of some of the curves."""
        return replace(self, curves={name: curve for name, curve in self.curves.items() if name in names})


def density(rows: Tensor, low: float, high: float, bins: int = 61) -> Curve:
    """Histogram as a density; values outside count in the total, empty bins are left out."""
    flat = rows.detach().double().flatten()
    count = torch.histc(flat, bins, low, high)
    width = (high - low) / bins
    place = torch.arange(bins, dtype=torch.float64) * width + low + width / 2
    kept = count > 0
    return place[kept].tolist(), (count / (flat.numel() * width))[kept].tolist()


def spectrum_curve(fields: Tensor, grid: Grid) -> Curve:
    """Mean power per ring, averaged over fields and channels, the domain mean left out."""
    place, power = spectrum(fields, grid)
    return place[1:].tolist(), power.mean((0, 1))[1:].tolist()


def variogram_curve(fields: Tensor, grid: Grid) -> Curve:
    """Mean variogram over fields, channels and axes, at lags up to half the shortest axis.

    One point per lag in cells, at its mean distance over the axes; an axis of one site has no lags.
    """
    axes = [axis for axis, size in enumerate(grid.shape) if size > 1]
    cells = lags(min(grid.shape[axis] for axis in axes))
    values = [
        sum(float(increments(fields, grid, axis, lag).square().mean()) for axis in axes) / (2 * len(axes))
        for lag in cells
    ]
    spacing = sum(grid.spacing[axis] for axis in axes) / len(axes)
    return [lag * spacing for lag in cells], values


def _range(rows: Tensor, share: float = 1e-4) -> tuple[float, float]:
    """Where the real values are, a quarter of that added at either side."""
    flat = rows.flatten().sort().values
    low, high = float(flat[int(share * (len(flat) - 1))]), float(flat[int((1 - share) * (len(flat) - 1))])
    margin = 0.25 * (high - low) or 1.0
    return low - margin, high + margin


def curves(fields: Mapping[str, Tensor], grid: Grid, halves: Sequence[Tensor] = ()) -> dict[str, Panel]:
    """Diagrams by the name of their metric; the first of `fields` is the reference of the ratios.

    Args:
        fields: name → `(N, C, *grid)`.
        grid: where they live.
        halves: parts of the reference, for the bands.
    """
    reference = next(iter(fields))
    real = fields[reference]
    by_name = {
        "spectrum": Panel(
            "Power spectrum",
            "wavenumber (cycles per unit length)",
            "mean power of a mode",
            {name: spectrum_curve(x, grid) for name, x in fields.items()},
            log_x=True,
            log_y=True,
            ratio_to=reference,
            bands=[spectrum_curve(x, grid) for x in halves],
        ),
        "variogram": Panel(
            "Variogram",
            "distance",
            "half mean squared difference",
            {name: variogram_curve(x, grid) for name, x in fields.items()},
            log_x=True,
            log_y=True,
            ratio_to=reference,
            bands=[variogram_curve(x, grid) for x in halves],
        ),
    }
    distributions = {
        "marginal": ("Values", "value", values, False),
        "gradients": ("Gradients", "magnitude, over its root mean square", magnitude, True),
        "curvature": ("Curvature", "second difference, over its root mean square", curvature, True),
    }
    for metric, (title, label, rows, relative) in distributions.items():
        size = rows(real, grid).double().square().mean().sqrt() if relative else torch.tensor(1.0)
        low, high = _range(rows(real, grid) / size)
        low = max(low, 0.0) if metric == "gradients" else low
        by_name[metric] = Panel(
            title,
            label,
            "density",
            {name: density(rows(x, grid) / size, low, high) for name, x in fields.items()},
            log_y=True,
            bands=[density(rows(x, grid) / size, low, high) for x in halves],
        )
    return by_name
