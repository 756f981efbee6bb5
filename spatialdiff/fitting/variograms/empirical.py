r"""Empirical variograms: semivariances ``γ̂(h) = ½ mean (x(s) - x(s+h))²`` of the pairs of sites in each bin.

The semivariance is half the mean squared difference: a stationary field has ``γ(h) = k(0) - k(h)``, and the
cross-variogram of channels ``a, b`` is ``γ_ab(h) = ½ E (x_a(s)-x_a(s+h))(x_b(s)-x_b(s+h)) = C_ab(0) -
½(C_ab(h) + C_ab(-h))``. Increments do not see a constant mean; of any other mean, take the residuals
(``mean=``), whose semivariances are biased downwards at long lags [Cressie 1993, section 3.4.3].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Domain, Grid, MaskedGrid, Sphere
from spatialdiff.fitting.mean import Mean
from spatialdiff.fitting.observations import Observations, observe
from spatialdiff.fitting.variograms import lattice, pairs
from spatialdiff.fitting.variograms.bins import Bins, Direction, check_sphere, make_bins
from spatialdiff.fitting.variograms.estimators import ADDITIVE, check_estimator, finish
from spatialdiff.fitting.variograms.lattice import LagTable

if TYPE_CHECKING:
    from gpytorch.kernels import Kernel
    from matplotlib.figure import Figure

    from spatialdiff.fitting.result import FitResult
    from spatialdiff.fitting.variograms.least_squares import VariogramFit
    from spatialdiff.kernels import Coregionalization

METRICS = ("euclidean", "great_circle")


@dataclass(frozen=True)
class Variogram:
    """Semivariances of pairs of sites by distance; returned by :func:`variogram`.

    Shapes are ``(b,)`` for fields without a channel axis, ``(b, C)`` with one, and ``(b, C, C)`` for
    cross-variograms. Bins without a pair have count 0 and NaN.

    Attributes:
        lags: mean distance of the pairs of each bin, in units of length.
        gamma: semivariances, in squared units of the field.
        counts: numbers of pairs, all fields together.
        edges: of the bins, ``(b + 1,)``.
        estimator: which.
        direction: unit vector ``(d,)``, or None for all directions.
        tolerance: of the direction, degrees; ``bandwidth``: of its corridor, units of length, or None.
        metric: "euclidean" or "great_circle".
        domain: where the fields are, after sites that are missing in all of them were left out.
        by_field: semivariances of the single fields, ``(N, *gamma.shape)``.
        cross: whether ``gamma`` holds cross-variograms.
        observed: ``(N, C, n)`` where values differ in what is missing, else None.
        table: on a grid, the lags that each bin is made of.
    """

    lags: Tensor
    gamma: Tensor
    counts: Tensor
    edges: Tensor
    estimator: str
    direction: Tensor | None
    tolerance: float
    bandwidth: float | None
    metric: str
    domain: Domain
    by_field: Tensor
    cross: bool
    observed: Tensor | None = field(default=None, repr=False)
    table: LagTable | None = field(default=None, repr=False)

    @property
    def n_fields(self) -> int:
        """Number ``N`` of fields."""
        return self.by_field.shape[0]

    @property
    def channels(self) -> int:
        """Number ``C`` of channels, 1 without a channel axis."""
        return 1 if self.gamma.ndim == 1 else self.gamma.shape[1]

    @property
    def standard_errors(self) -> Tensor:
        """Standard errors of ``gamma`` from the spread of the independent fields, ``s/√N``; NaN for one
        field, whose pairs say nothing on them because they depend on one another.
        """
        if self.n_fields == 1:
            return torch.full_like(self.gamma, math.nan)
        return self.by_field.std(dim=0) / math.sqrt(self.n_fields)

    def fit(self, kernel: Kernel | Coregionalization, weights: str = "n/h2", **options: Any) -> VariogramFit:
        """Weighted least squares: see :func:`fit_variogram`."""
        from spatialdiff.fitting.variograms.least_squares import fit_variogram

        return fit_variogram(self, kernel, weights, **options)

    def plot(self, kernel: Kernel | Coregionalization | FitResult | VariogramFit | None = None) -> Figure:
        """Points with numbers of pairs, and the model's curve: see :func:`plot_variogram`."""
        from spatialdiff.fitting.variograms.pictures import plot_variogram

        return plot_variogram(self, kernel)

    def __repr__(self) -> str:
        towards = ""
        if self.direction is not None:
            shown = ", ".join(f"{u:.3g}" for u in self.direction.tolist())
            towards = f", towards ({shown}) ± {self.tolerance:g}°"
        return (
            f"Variogram({self.estimator}{', cross' * self.cross}, {len(self.edges) - 1} bins up to "
            f"{float(self.edges[-1]):g}{towards}, {self.n_fields} field{'s' * (self.n_fields != 1)} on "
            f"{self.domain})"
        )


def variogram(
    fields: Tensor,
    domain: Domain,
    bins: int | Tensor | Sequence[float] | None = None,
    *,
    estimator: str = "matheron",
    direction: Direction | None = None,
    tolerance: float = 22.5,
    bandwidth: float | None = None,
    max_distance: float | None = None,
    cross: bool = False,
    mean: Mean = None,
    missing: str = "raise",
    metric: str | None = None,
) -> Variogram:
    r"""Empirical semivariances ``γ̂(h)`` of fields, by bins of distance ``(e_k, e_{k+1}]``.

    .. math:: \hat\gamma_k = \tfrac12 \operatorname{mean} \{(x_i - x_j)^2 : e_k < \|s_i - s_j\| \le e_{k+1}\}

    Exact: on grids and masked grids from all lags by FFT (wrapping around periodic axes), elsewhere from the
    pairs of sites, which a k-d tree finds where ``max_distance`` is short.

    Args:
        fields: ``(N, *domain.shape)``, ``(N, C, *domain.shape)``, or one field.
        domain: where they are; any with coordinates.
        bins: increasing edges, or how many of one width; None: 15 (no narrower than a cell of a grid).
        estimator: "matheron" (unbiased), "cressie", "dowd" or "genton" (robust against outliers).
        direction: an angle in degrees from the first axis towards the second, or a vector ``(d,)``; None:
        all. tolerance: half-angle of the cone about the direction, degrees.
        bandwidth: farthest from the direction's axis, in units of length.
        max_distance: last edge, where ``bins`` is no edges. Default: a third of the diagonal of the bounding
            box, at most half a period; a sixth of a great circle on a sphere.
        cross: cross-variograms of all pairs of channels, in which a pair of sites counts where both channels
            are known at both.
        mean: what is taken off first, as in :func:`fit` ("linear", covariates, …); residuals of ordinary
            least squares.
        missing: "raise", or "omit": NaN is a value that was not observed.
        metric: "euclidean" or "great_circle" (sites in R³ on a sphere about the origin); by default great
            circles on a `Sphere` only.

    Returns:
        A :class:`Variogram` with ``lags``, ``gamma``, ``counts``, ``plot()`` and ``fit(kernel)``.

    Raises:
        ValueError: an unknown estimator or metric; a wrong shape, missing or constant data; bins that are not
            increasing; a direction of another dimension, or on a sphere; too many pairs for an order
            statistic; no pair in any bin.
        TypeError: fields that are not a floating-point tensor.

    References:
        Matheron 1962; Cressie & Hawkins 1980; Dowd 1984; Genton 1998; Marcotte 1996 (FFT).
    """
    return variogram_of(
        observe(fields, domain, mean, missing),
        bins,
        estimator=estimator,
        direction=direction,
        tolerance=tolerance,
        bandwidth=bandwidth,
        max_distance=max_distance,
        cross=cross,
        metric=metric,
    )


def variogram_of(
    data: Observations,
    bins: int | Tensor | Sequence[float] | None = None,
    *,
    estimator: str = "matheron",
    direction: Direction | None = None,
    tolerance: float = 22.5,
    bandwidth: float | None = None,
    max_distance: float | None = None,
    cross: bool = False,
    metric: str | None = None,
) -> Variogram:
    """The variogram of observations that have been checked and centred; see :func:`variogram`."""
    check_estimator(estimator, cross)
    domain = data.domain
    chosen = metric or ("great_circle" if isinstance(domain, Sphere) else "euclidean")
    if chosen not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    great_circle = chosen == "great_circle"
    if great_circle:
        check_sphere(domain)
    asked = make_bins(domain, bins, direction, tolerance, bandwidth, max_distance, great_circle)
    sums, table = _sums(data, asked, estimator, cross, great_circle)
    # a mean at each site takes its share of the variance with it
    scale = data.total / data.count
    found = _assemble(sums, data, estimator, cross, scale)
    if not bool((found[2] > 0).any()):
        raise ValueError(
            f"no pair of sites is in any bin between {asked.edges[0]:g} and {asked.edges[-1]:g}"
            f"{'' if direction is None else ' in this direction'}: give wider bins or another tolerance"
        )
    lags, gamma, counts, by_field = found
    return Variogram(
        lags=lags,
        gamma=gamma,
        counts=counts,
        edges=torch.from_numpy(asked.edges),
        estimator=estimator,
        direction=None if asked.direction is None else torch.from_numpy(asked.direction),
        tolerance=asked.tolerance,
        bandwidth=asked.bandwidth,
        metric=chosen,
        domain=domain,
        by_field=by_field,
        cross=cross,
        observed=data.flat_observed(),
        table=table,
    )


def directional_variograms(
    fields: Tensor,
    domain: Domain,
    directions: Sequence[Direction] = (0.0, 45.0, 90.0, 135.0),
    bins: int | Tensor | Sequence[float] | None = None,
    *,
    mean: Mean = None,
    missing: str = "raise",
    **options: Any,
) -> list[Variogram]:
    """One variogram per direction; arguments as for :func:`variogram`."""
    data = observe(fields, domain, mean, missing)
    return [variogram_of(data, bins, direction=direction, **options) for direction in directions]


def _sums(
    data: Observations, bins: Bins, estimator: str, cross: bool, great_circle: bool
) -> tuple[pairs.Sums, LagTable | None]:
    domain = data.domain
    if isinstance(domain, Grid | MaskedGrid) and not great_circle:
        grid = domain.grid if isinstance(domain, MaskedGrid) else domain
        observed = data.observed
        if isinstance(domain, MaskedGrid):
            observed = domain.valid[None, None] if observed is None else observed & domain.valid
        if estimator == "matheron":
            return lattice.sums_on_grid(data.values, observed, grid, bins, cross)
        return lattice.robust_on_grid(data.values, observed, grid, bins, estimator)
    places = pairs.distinct_sites(domain)
    values, sites = data.flat()[..., places].numpy(), domain.sites()[places].numpy()
    flat_observed = data.flat_observed()
    seen = None if flat_observed is None else flat_observed[..., places].numpy()
    if estimator in ADDITIVE:
        return pairs.sums_on_points(values, seen, sites, bins, estimator, cross, great_circle), None
    return pairs.values_on_points(values, seen, sites, bins, estimator, great_circle), None


def _assemble(
    sums: pairs.Sums, data: Observations, estimator: str, cross: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lags, semivariances, counts, and semivariances by field, in their shapes."""
    fields = len(sums.sums)
    times = fields if len(sums.counts) == 1 else 1
    counts = sums.counts.sum(axis=0) * times
    with np.errstate(divide="ignore", invalid="ignore"):
        lags = sums.distances.sum(axis=0) * times / counts
    if sums.pooled is None:
        gamma = finish(sums.sums.sum(axis=0), counts, estimator)
        by_field = finish(sums.sums, np.broadcast_to(sums.counts, sums.sums.shape), estimator)
    else:
        gamma, by_field = sums.pooled, sums.sums

    def shaped(x: np.ndarray) -> Tensor:
        """``(..., pairs of channels, b)`` → ``(..., b)``, ``(..., b, C)`` or ``(..., b, C, C)``."""
        tensor = torch.from_numpy(np.ascontiguousarray(x)).movedim(-2, -1)
        if cross:
            channels = data.channels
            where = torch.empty(channels, channels, dtype=torch.long)
            for number, (a, b) in enumerate(pairs.channel_pairs(channels, True)):
                where[a, b] = where[b, a] = number
            return tensor[..., where]
        return tensor if data.has_channels else tensor[..., 0]

    lags_, gamma_, counts_, by_field_ = (shaped(x) for x in (lags, gamma * scale, counts, by_field * scale))
    return lags_, gamma_, counts_, by_field_
