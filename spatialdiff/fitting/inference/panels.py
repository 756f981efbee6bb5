"""The panels that `pictures` puts together: each draws into one pair of axes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from spatialdiff.domains import Domain, Grid, MaskedGrid, Sphere
from spatialdiff.fitting.inference.checks import ScaleCheck, law_on
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.result import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, MODEL, WRONG = "#1d2329", "#3b78b5", "#b8485e"
MARKERS = "os^Dv"
_MOST_POINTS = 1500


def kernel_name(kernel: torch.nn.Module) -> str:
    """The classes of a kernel and of its parts."""
    parts = getattr(kernel, "kernels", None)
    if parts is None:
        return type(kernel).__name__
    return (" * " if "Product" in type(kernel).__name__ else " + ").join(kernel_name(part) for part in parts)


def new_figure(width: float, height: float) -> Figure:
    """A figure of that size in inches, which no global state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def one_panel(draw: Callable[[Axes], None]) -> Figure:
    """A figure of one panel."""
    from spatialdiff.style import style

    with style():
        figure = new_figure(4.6, 3.6)
        draw(figure.subplots())
    return figure


def _curve(
    axis: Axes, check: ScaleCheck, index: list[int], level: float, x: list[float], **look: str
) -> None:
    """Data as points, the model as a line in its envelope; means over channels."""
    low, high = (edge.mean(0)[index] for edge in check.envelope(level))
    data, model, wrong = check.data.mean(0)[index], check.model.mean(0)[index], check.flagged.any(0)[index]
    color = look.get("color", MODEL)
    axis.fill_between(x, low.numpy(), high.numpy(), color=color, alpha=0.2, lw=0)
    axis.plot(x, model.numpy(), color=color, lw=1.4)
    marker = look.get("marker", "o")
    for flag, face in ((False, DATA), (True, WRONG)):
        chosen = (wrong == flag).nonzero().squeeze(-1).tolist()
        axis.plot([x[i] for i in chosen], data[chosen].numpy(), marker, color=face, ms=4, ls="none", zorder=3)
    if "label" in look:
        axis.plot([], [], marker=marker, color=color, mfc=DATA, mec=DATA, ms=4, label=look["label"])


def draw_variogram(axis: Axes, check: ScaleCheck, level: float) -> None:
    """Semivariances by distance, a colour for each direction."""
    from spatialdiff.style import PALETTE

    directions = list(dict.fromkeys(s.direction for s in check.scales if s.kind == "variogram"))
    for number, direction in enumerate(directions):
        index = [i for i, s in enumerate(check.scales) if s.kind == "variogram" and s.direction == direction]
        places = [check.scales[i].place for i in index]
        look = {"color": PALETTE[number % len(PALETTE)], "marker": MARKERS[number % len(MARKERS)]}
        _curve(axis, check, index, level, places, label=direction.strip() or "data and fit", **look)
    axis.set_xlim(left=0.0)
    axis.set_ylim(bottom=0.0)
    axis.set_xlabel("distance")
    axis.set_ylabel("half mean squared difference")
    axis.set_title(f"Variogram, {level:.0%} envelope of the fit")
    axis.legend(loc="lower right" if len(directions) > 1 else "best")


def draw_spectrum(axis: Axes, check: ScaleCheck, level: float) -> None:
    """Power by wavenumber, or by degree on a sphere."""
    index = [i for i, s in enumerate(check.scales) if s.kind == "spectrum"]
    places = [check.scales[i].place for i in index]
    _curve(axis, check, index, level, places)
    axis.set_xscale("log")
    axis.set_yscale("log")
    degree = check.scales[index[0]].direction
    axis.set_xlabel(degree or "wavenumber (cycles per unit length)")
    axis.set_ylabel("power of a degree" if degree else "mean power of a mode")
    axis.set_title(f"Spectrum, {level:.0%} envelope of the fit")


def draw_quantiles(axis: Axes, values: Tensor, level: float, label: str) -> None:
    """Ordered values against standard normal quantiles."""
    import scipy.stats

    ordered = values[torch.isfinite(values)].sort().values
    m = len(ordered)
    rank = torch.unique(_ranks(m))
    p = (rank.double() + 0.5) / m
    normal = torch.special.ndtri(p)
    tail = 0.5 * (1.0 - level)
    upper, lower = (
        torch.special.ndtri(torch.from_numpy(scipy.stats.beta.ppf(q, rank + 1, m - rank)))
        for q in (1.0 - tail, tail)
    )
    axis.fill_between(normal.numpy(), lower.numpy(), upper.numpy(), color=MODEL, alpha=0.25, lw=0)
    ends = [float(normal[0]), float(normal[-1])]
    axis.plot(ends, ends, color=MODEL, lw=1.2)
    axis.plot(normal.numpy(), ordered[rank].numpy(), ".", color=DATA, ms=3)
    axis.set_xlabel("standard normal quantile")
    axis.set_ylabel(label)
    axis.set_title(f"Q–Q of {m} values, standard deviation {float(ordered.std()):.3g}")


def _ranks(m: int) -> Tensor:
    """All ranks of a small sample; of a large one the ends and evenly spaced normal quantiles between."""
    if m <= _MOST_POINTS:
        return torch.arange(m)
    ends = torch.cat((torch.arange(30), torch.arange(m - 30, m)))
    far = float(torch.special.ndtri(torch.tensor(1.0 - 0.5 / m, dtype=torch.float64)))
    between = torch.special.ndtr(torch.linspace(-far, far, 400, dtype=torch.float64))
    return torch.cat((ends, (between * m).long().clamp(0, m - 1)))


def thinned(number: int) -> Tensor:
    """At most 1500 evenly spaced indices."""
    return torch.arange(0, number, max(1, -(-number // _MOST_POINTS)))


def site_residuals(result: FitResult, data: Observations) -> tuple[Tensor, str]:
    """A number for each place of the domain, NaN where none, and its name."""
    gamma = law_on(result, data)
    with torch.no_grad():
        variance = gamma.variance().double()
    standard = (data.values / variance.sqrt())[:, 0]
    seen = data.observed[:, 0] if data.observed is not None else torch.ones_like(standard, dtype=torch.bool)
    if isinstance(data.domain, MaskedGrid):
        seen = seen & data.domain.valid
    if data.total == 1:
        return torch.where(seen[0], standard[0], math.nan), "residual over standard deviation"
    number = seen.sum(0) * (data.count / data.total)
    squares = torch.where(seen, standard, 0.0).square().sum(0) / number
    return squares.sqrt(), "root mean square residual over the model's"


def draw_map(figure: Figure, axis: Axes, values: Tensor, name: str, domain: Domain) -> None:
    """A number for each site as a picture, dots, or points along a line."""
    centre = 1.0 if name.startswith("root") else 0.0
    finite = values[torch.isfinite(values)]
    reach = max(float((finite - centre).abs().quantile(0.99) if finite.numel() < 10**7 else 3.0), 1e-12)
    look: dict[str, Any] = {"vmin": centre - reach, "vmax": centre + reach, "cmap": "RdBu_r"}
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    axis.grid(False)
    if isinstance(grid, Grid | Sphere) and grid.ndim > 1:
        picture = values if grid.ndim == 2 else values[grid.shape[0] // 2]
        extent = None
        if isinstance(grid, Sphere):
            extent = (0.0, 360.0, -90.0, 90.0)
            axis.set_xlabel("longitude")
            axis.set_ylabel("latitude")
        elif grid.ndim == 2:
            extent = (0.0, grid.extent[1], grid.extent[0], 0.0)
        origin: Literal["lower", "upper"] = "lower" if isinstance(grid, Sphere) else "upper"
        shown = axis.imshow(
            picture.numpy(), interpolation="nearest", extent=extent, origin=origin, aspect="auto", **look
        )
        figure.colorbar(shown, ax=axis)
    else:
        sites = domain.sites()
        flat = domain.flatten(values)
        if sites.shape[1] == 1:
            axis.plot(sites[:, 0].numpy(), flat.numpy(), ".", color=DATA, ms=3)
            axis.axhline(centre, color=MODEL, lw=1.0)
        else:
            size = max(2.0, min(18.0, 3000.0 / len(sites)))
            dots = axis.scatter(sites[:, 0], sites[:, 1], c=flat.numpy(), s=size, **look)
            axis.set_aspect("equal", adjustable="datalim")
            figure.colorbar(dots, ax=axis)
    axis.set_title(name[0].upper() + name[1:])
