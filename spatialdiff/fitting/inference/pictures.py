r"""Diagnostics as pictures: variogram and spectrum with envelopes, Q–Q diagram, map of residuals.

Envelopes are pointwise: of the fitted law at every scale (:mod:`.checks`, at least 99 fields drawn with a
fixed seed), of the order statistics of a standard normal sample (:math:`\Phi^{-1}` of Beta quantiles) in
the Q–Q diagram. What is drawn in red is outside the envelope that holds for all scales together, by a
factor of 1.5.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.domains import Domain, Graph
from spatialdiff.fitting.inference.checks import ScaleCheck, checks
from spatialdiff.fitting.inference.panels import (
    DATA,
    MODEL,
    draw_map,
    draw_quantiles,
    draw_spectrum,
    draw_variogram,
    kernel_name,
    new_figure,
    one_panel,
    site_residuals,
    thinned,
)
from spatialdiff.fitting.inference.residuals import decorrelated
from spatialdiff.fitting.inference.validated import Validation
from spatialdiff.fitting.mean import Mean
from spatialdiff.fitting.observations import Observations, observe
from spatialdiff.fitting.result import FitResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    from spatialdiff.style import style

    with style():
        rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
        figure = new_figure(3.7 * columns + (1.2 if rows == 2 else 0.0), 3.5 * rows)
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
        for axis, panel in zip(axes, panels, strict=False):
            if panel == "variogram":
                draw_variogram(axis, check, level)
            elif panel == "spectrum":
                draw_spectrum(axis, check, level)
            elif panel == "quantiles":
                draw_quantiles(axis, decorrelated(result, data, seed), level, "decorrelated residual")
            else:
                draw_map(figure, axis, *site_residuals(result, data), data.domain)
        title = result.method if result.kernel is None else f"{result.method}, {kernel_name(result.kernel)}"
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
    return one_panel(lambda axis: draw_variogram(axis, check, level))


def spectrum_picture(check: ScaleCheck, level: float = 0.95) -> Figure:
    """Power of the data per ring of wavenumber in the envelope of the fitted law; the domain mean apart."""
    return one_panel(lambda axis: draw_spectrum(axis, check, level))


def quantile_picture(values: Tensor, level: float = 0.95, label: str = "decorrelated residual") -> Figure:
    """Q–Q diagram of values that should be a standard normal sample, such as `decorrelated` residuals or the
    standardised errors of cross-validation (which depend on one another a little)."""
    return one_panel(lambda axis: draw_quantiles(axis, values, level, label))


def residual_map(result: FitResult, data: Observations) -> Figure:
    """Of one field the residual, of several their root mean square at each site, over the standard deviation
    of the model."""
    from spatialdiff.style import style

    with style():
        figure = new_figure(4.6, 3.6)
        draw_map(figure, figure.subplots(), *site_residuals(result, data), data.domain)
    return figure


def validation_picture(found: Validation, level: float = 0.95) -> Figure:
    """Values against predictions, Q–Q diagram of standardised errors, histogram of the probability integral
    transform."""
    from spatialdiff.style import style

    with style():
        figure = new_figure(10.2, 3.4)
        first, second, third = figure.subplots(1, 3)
        keep = torch.isfinite(found.errors)
        predicted, value = found.mean[keep], found.values[keep]
        chosen = thinned(len(value))
        first.plot(predicted[chosen].numpy(), value[chosen].numpy(), ".", color=MODEL, ms=3, alpha=0.6)
        ends = [float(torch.minimum(predicted, value).min()), float(torch.maximum(predicted, value).max())]
        first.plot(ends, ends, color=DATA, lw=0.9)
        first.set_xlabel("prediction")
        first.set_ylabel("value")
        first.set_title(f"rmse {found.rmse:.3g}, CRPS {found.crps:.3g}")
        figure.suptitle(f"Cross-validation: {found.description}", fontsize=9.5, x=0.01, ha="left")
        draw_quantiles(second, found.standardised[keep], level, "standardised error")
        bins = 10
        third.hist(found.pit.numpy(), bins=bins, range=(0, 1), color=MODEL, alpha=0.75, density=True)
        half = 1.96 * math.sqrt((1 - 1 / bins) * bins / len(value))
        third.axhspan(1 - half, 1 + half, color=DATA, alpha=0.12, lw=0)
        third.axhline(1, color=DATA, lw=0.9)
        third.set_xlabel("probability integral transform")
        third.set_ylabel("density")
        third.set_title(f"Coverage of 95 %: {found.coverage(0.95):.1%}")
    return figure
