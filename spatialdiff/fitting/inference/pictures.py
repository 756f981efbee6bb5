r"""Diagnostics as pictures: variogram and spectrum with envelopes, Q–Q diagram, map of residuals.

Envelopes are pointwise: of the fitted law at every scale (:mod:`.checks`, at least 99 fields drawn with a
fixed seed), of the order statistics of a standard normal sample (:math:`\Phi^{-1}` of Beta quantiles) in
the Q–Q diagram. What is drawn in red is outside the envelope that holds for all scales together, by a
factor of 1.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from spatialdiff.domains import Domain, Graph, Grid, MaskedGrid, Sphere
from spatialdiff.fitting.inference.checks import ScaleCheck, checks
from spatialdiff.fitting.inference.residuals import decorrelated
from spatialdiff.fitting.inference.validated import Validation
from spatialdiff.fitting.mean import Mean
from spatialdiff.fitting.observations import Observations, observe
from spatialdiff.fitting.result import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, MODEL, WRONG = "#1d2329", "#3b78b5", "#b8485e"
MARKERS = "os^Dv"
_MOST_POINTS = 1500


def diagnose(
    result: FitResult,
    fields: Tensor | None = None,
    domain: Domain | None = None,
    *,
    mean: Mean = "constant",
    missing: str = "omit",
    simulations: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> Figure:
    """All diagnostics of a fit in one figure.

    Args:
        result: the fit.
        fields, domain, mean, missing: what it was fitted to; not needed for the result of a search in this
            session, which remembers.
        simulations: fields drawn from the fit, at least 99.
        level: of the pointwise envelopes.
        seed: of what is drawn.

    Raises:
        ValueError: fields that are needed and not given.
    """
    data = observations_of(result, fields, domain, mean, missing)
    check = checks(result, data, simulations=simulations, seed=seed)
    kinds = {scale.kind for scale in check.scales}
    panels: list[str] = [kind for kind in ("variogram", "spectrum") if kind in kinds]
    panels += ["quantiles", *(["map"] if not isinstance(data.domain, Graph) else [])]
    from spatialdiff.plotting import style

    with style():
        rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
        figure = _figure(3.7 * columns + (1.2 if rows == 2 else 0.0), 3.5 * rows)
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for axis, panel in zip(axes, panels, strict=False):
            if panel == "variogram":
                _variogram(axis, check, level)
            elif panel == "spectrum":
                _spectrum(axis, check, level)
            elif panel == "quantiles":
                _quantiles(axis, decorrelated(result, data, seed), level, "decorrelated residual")
            else:
                _map(figure, axis, *_residuals(result, data), data.domain)
        title = result.method if result.kernel is None else f"{result.method}, {_named(result.kernel)}"
        if check.replicates[0]:
            shares = " and ".join(f"{share:.0%}" for share in check.shares)
            title += f"; share of the variance in the domain mean, data and model: {shares}"
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
    return figure


def observations_of(
    result: FitResult,
    fields: Tensor | None,
    domain: Domain | None,
    mean: Mean = "constant",
    missing: str = "omit",
) -> Observations:
    """The observations that were given, or that the search of ``result`` remembers.

    Raises:
        ValueError: there are none.
    """
    if fields is not None:
        return observe(fields, result.domain if domain is None else domain, mean, missing)
    if result.search is None:
        raise ValueError(
            "this fit does not hold its data (it was read from a file, or its method keeps none): give the "
            "fields and their domain"
        )
    return result.search.likelihood.data


def variogram_picture(check: ScaleCheck, level: float = 0.95) -> Figure:
    """Semivariances of the data in the envelope of the fitted law."""
    return _one(lambda axis: _variogram(axis, check, level))


def spectrum_picture(check: ScaleCheck, level: float = 0.95) -> Figure:
    """Power of the data per ring of wavenumber in the envelope of the fitted law; the domain mean apart."""
    return _one(lambda axis: _spectrum(axis, check, level))


def quantile_picture(values: Tensor, level: float = 0.95, label: str = "decorrelated residual") -> Figure:
    """Q–Q diagram of values that should be a standard normal sample, such as `decorrelated` residuals or the
    standardised errors of cross-validation (which depend on one another a little)."""
    return _one(lambda axis: _quantiles(axis, values, level, label))


def residual_map(result: FitResult, data: Observations) -> Figure:
    """Of one field the residual, of several their root mean square at each site, over the standard deviation
    of the model."""
    from spatialdiff.plotting import style

    with style():
        figure = _figure(4.6, 3.6)
        _map(figure, figure.subplots(), *_residuals(result, data), data.domain)
    return figure


def validation_picture(found: Validation, level: float = 0.95) -> Figure:
    """Values against predictions, Q–Q diagram of standardised errors, histogram of the probability integral
    transform."""
    from spatialdiff.plotting import style

    with style():
        figure = _figure(10.2, 3.4)
        first, second, third = figure.subplots(1, 3)
        keep = torch.isfinite(found.errors)
        predicted, value = found.mean[keep], found.values[keep]
        chosen = _some(len(value))
        first.plot(predicted[chosen].numpy(), value[chosen].numpy(), ".", color=MODEL, ms=3, alpha=0.6)
        ends = [float(torch.minimum(predicted, value).min()), float(torch.maximum(predicted, value).max())]
        first.plot(ends, ends, color=DATA, lw=0.9)
        first.set_xlabel("prediction")
        first.set_ylabel("value")
        first.set_title(f"rmse {found.rmse:.3g}, CRPS {found.crps:.3g}")
        figure.suptitle(f"Cross-validation: {found.description}", fontsize=9.5, x=0.01, ha="left")
        _quantiles(second, found.standardised[keep], level, "standardised error")
        bins = 10
        third.hist(found.pit.numpy(), bins=bins, range=(0, 1), color=MODEL, alpha=0.75, density=True)
        half = 1.96 * math.sqrt((1 - 1 / bins) * bins / len(value))
        third.axhspan(1 - half, 1 + half, color=DATA, alpha=0.12, lw=0)
        third.axhline(1, color=DATA, lw=0.9)
        third.set_xlabel("probability integral transform")
        third.set_ylabel("density")
        third.set_title(f"Coverage of 95 %: {found.coverage(0.95):.1%}")
    return figure


# ---- panels
def _named(kernel: torch.nn.Module) -> str:
    parts = getattr(kernel, "kernels", None)
    if parts is None:
        return type(kernel).__name__
    return (" * " if "Product" in type(kernel).__name__ else " + ").join(_named(part) for part in parts)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _one(draw: Callable[[Axes], None]) -> Figure:
    from spatialdiff.plotting import style

    with style():
        figure = _figure(4.6, 3.6)
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


def _variogram(axis: Axes, check: ScaleCheck, level: float) -> None:
    from spatialdiff.plotting import PALETTE

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


def _spectrum(axis: Axes, check: ScaleCheck, level: float) -> None:
    index = [i for i, s in enumerate(check.scales) if s.kind == "spectrum"]
    places = [check.scales[i].place for i in index]
    _curve(axis, check, index, level, places)
    axis.set_xscale("log")
    axis.set_yscale("log")
    degree = check.scales[index[0]].direction
    axis.set_xlabel(degree or "wavenumber (cycles per unit length)")
    axis.set_ylabel("power of a degree" if degree else "mean power of a mode")
    axis.set_title(f"Spectrum, {level:.0%} envelope of the fit")


def _quantiles(axis: Axes, values: Tensor, level: float, label: str) -> None:
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


def _some(number: int) -> Tensor:
    return torch.arange(0, number, max(1, -(-number // _MOST_POINTS)))


def _residuals(result: FitResult, data: Observations) -> tuple[Tensor, str]:
    """A number for each place of the domain, NaN where none, and its name."""
    from spatialdiff.fitting.inference.checks import law_on

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


def _map(figure: Figure, axis: Axes, values: Tensor, name: str, domain: Domain) -> None:
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
