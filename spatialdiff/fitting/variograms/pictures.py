r"""Pictures of variograms: points with numbers of pairs, fitted curves, panels by direction or by pair of
channels.

The area of a point is proportional to the number of pairs behind it; the numbers are written beside the first
variogram's points where there is room. Bars are ± one standard error, where there are several fields.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.variograms.empirical import Variogram
from spatialdiff.fitting.variograms.maps import VariogramMap
from spatialdiff.fitting.variograms.model import VariogramModel
from spatialdiff.kernels import Coregionalization
from spatialdiff.style import PALETTE, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spatialdiff.fitting.result import FitResult
    from spatialdiff.fitting.variograms.least_squares import VariogramFit

_POINTS = 200


def plot_variogram(
    variogram: Variogram | Sequence[Variogram],
    kernel: Kernel | Coregionalization | FitResult | VariogramFit | None = None,
) -> Figure:
    """One panel per variogram (such as directions), or a triangle of panels for cross-variograms.

    Args:
        variogram: one or several.
        kernel: a kernel, or a fit, whose semivariances are drawn as a curve.

    Raises:
        ValueError: no variogram; a kernel that has no variogram at these lags.
        TypeError: something that is neither a kernel nor a fit.
    """
    from matplotlib.figure import Figure

    variograms = [variogram] if isinstance(variogram, Variogram) else list(variogram)
    if not variograms:
        raise ValueError("there are no variograms to draw")
    model = _kernel_of(kernel)
    first = variograms[0]
    with style():
        if first.cross and first.channels > 1:
            channels = first.channels
            figure = Figure(figsize=(2.3 * channels + 0.6, 1.9 * channels + 0.6), layout="constrained")
            axes = figure.subplots(channels, channels, squeeze=False, sharex=True)
            for a in range(channels):
                for b in range(channels):
                    if b > a:
                        axes[a][b].set_visible(False)
                        continue
                    _panel(axes[a][b], first, model, (a, b), small=True)
                    axes[a][b].set_title(f"channel {a}" if a == b else f"{b} × {a}")
                    if a == channels - 1:
                        axes[a][b].set_xlabel("distance")
            axes[0][0].set_ylabel("semivariance")
            return figure
        columns = min(4, len(variograms))
        rows = -(-len(variograms) // columns)
        width = 5.0 if len(variograms) == 1 else 2.9 * columns
        figure = Figure(figsize=(width, (3.4 if len(variograms) == 1 else 2.7) * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for number, axis in enumerate(axes.flat):
            if number >= len(variograms):
                axis.set_visible(False)
                continue
            _panel(axis, variograms[number], model, None, small=len(variograms) > 1)
            axis.set_title(_title(variograms[number]))
            axis.set_xlabel("distance")
            if number % columns == 0:
                axis.set_ylabel("semivariance")
    return figure


def plot_map(shown: VariogramMap, channel: int = 0) -> Figure:
    """A variogram map in two dimensions, the first axis downwards.

    Raises:
        ValueError: another number of dimensions, or a channel that is not there.
    """
    from matplotlib.figure import Figure

    if len(shown.lags) != 2:
        raise ValueError(f"a picture of a variogram map needs two dimensions, got {len(shown.lags)}")
    gamma = shown.gamma
    if gamma.ndim == 3:
        if not 0 <= channel < len(gamma):
            raise ValueError(f"channel must be 0 to {len(gamma) - 1}, got {channel}")
        gamma = gamma[channel]
    down, across = (axis.tolist() for axis in shown.lags)
    half = [0.5 * (axis[1] - axis[0]) if len(axis) > 1 else 0.5 for axis in (down, across)]
    with style():
        figure = Figure(figsize=(4.6, 3.8), layout="constrained")
        axis = figure.subplots()
        picture = axis.imshow(
            gamma.numpy(),
            cmap="viridis",
            interpolation="nearest",
            extent=(across[0] - half[1], across[-1] + half[1], down[-1] + half[0], down[0] - half[0]),
        )
        axis.grid(False)
        axis.set_xlabel("lag along axis 1")
        axis.set_ylabel("lag along axis 0")
        figure.colorbar(picture, ax=axis, label="semivariance")
    return figure


def curve(model: KernelParameters, variogram: Variogram, distances: Tensor) -> Tensor:
    """The model's semivariances at other distances ``(m,)``: ``(m,)``, or ``(m, C, C)`` of a
    coregionalisation.
    """
    shape = (len(distances), *variogram.gamma.shape[1:])
    lags = distances.reshape(-1, *(1,) * (len(shape) - 1)).expand(shape)
    # without the table of a grid's lags the model is that of the distances themselves
    there = replace(
        variogram,
        lags=lags,
        gamma=torch.zeros(shape, dtype=torch.float64),
        counts=torch.ones(shape, dtype=torch.float64),
        edges=torch.cat([distances.new_zeros(1), distances]),
        table=None,
    )
    with torch.no_grad():
        return VariogramModel(model, there)(model.start())


def _panel(
    axis: Axes,
    variogram: Variogram,
    model: KernelParameters | None,
    pair: tuple[int, int] | None,
    small: bool,
) -> None:
    parts = [variogram.lags, variogram.gamma, variogram.counts, variogram.standard_errors]
    if pair is not None:
        parts = [x[:, pair[0], pair[1]] for x in parts]
    columns = [x.unsqueeze(-1) if x.ndim == 1 else x for x in parts]
    lags, gamma, counts, errors = columns
    channels = gamma.shape[1]
    largest = float(counts.max())
    for c in range(channels):
        use = counts[:, c] > 0
        x, y, n = (part[use, c].tolist() for part in (lags, gamma, counts))
        color = PALETTE[c % len(PALETTE)]
        if math.isfinite(float(errors[use, c].sum())):
            axis.errorbar(x, y, errors[use, c].tolist(), fmt="none", ecolor=color, elinewidth=0.9, alpha=0.6)
        most = 26.0 if small else 44.0
        sizes = [6.0 + most * k / largest for k in n]
        axis.scatter(
            x,
            y,
            s=sizes,
            color=color,
            edgecolors="white",
            linewidths=0.5,
            zorder=3,
            label=f"channel {c}" if channels > 1 else None,
        )
        if not small and channels == 1 and len(x) <= 20:
            for place, value, number in zip(x, y, n, strict=True):
                axis.annotate(
                    _short(number),
                    (place, value),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6.5,
                    color="#5d6873",
                )
    top = float(gamma[counts > 0].max())
    if model is not None:
        # just above 0, where a nugget is
        last = float(variogram.edges[-1])
        distances = torch.linspace(0.0, last, _POINTS, dtype=torch.float64)
        distances[0] = 1e-9 * last
        values = curve(model, variogram, distances)
        if pair is not None:
            values = values[:, pair[0], pair[1]]
        drawn = values if values.ndim == 1 else values[:, 0]
        axis.plot(distances.tolist(), drawn.tolist(), color="#1d2329", linewidth=1.4, zorder=2)
        top = max(top, float(drawn.max()))
    axis.set_xlim(0.0, 1.03 * float(variogram.edges[-1]))
    if float(gamma[counts > 0].min()) >= 0.0:
        axis.set_ylim(0.0, 1.12 * top)
    if channels > 1:
        axis.legend()


def _short(number: float) -> str:
    """A number of pairs in at most four characters or so."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= 10 * size or (size == 1e6 and number >= size):
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


def _title(variogram: Variogram) -> str:
    if variogram.direction is None:
        return "Variogram"
    u = variogram.direction.tolist()
    if len(u) == 2:
        angle = math.degrees(math.atan2(u[1], u[0])) % 180.0
        return f"{angle:.4g}° ± {variogram.tolerance:.3g}°"
    return "towards (" + ", ".join(f"{x:.2g}" for x in u) + ")"


def _kernel_of(given: Any) -> KernelParameters | None:
    if given is None:
        return None
    kernel = given if isinstance(given, Kernel | Coregionalization) else getattr(given, "kernel", None)
    if not isinstance(kernel, Kernel | Coregionalization):
        raise TypeError(
            f"plot draws the variogram of a kernel or of a fit with one, got {type(given).__name__}"
        )
    return KernelParameters(copy.deepcopy(kernel).requires_grad_(True))
