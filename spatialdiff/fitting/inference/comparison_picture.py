r"""A picture of a comparison: semivariances of the data and of every fit, and differences of the criterion.

The semivariance of a model is averaged as the data's is: over directions of a stationary kernel, over pairs
of sites in bins of distance of any other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from spatialdiff.domains import Domain, Graph
from spatialdiff.fitting.result import FitResult
from spatialdiff.fitting.variograms.empirical import Variogram, variogram_of
from spatialdiff.kernels import Coregionalization
from spatialdiff.kernels.algebra import at_lags, at_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spatialdiff.fitting.inference.comparison import Comparison

_DIRECTIONS = 64
_PAIRS = 20_000
_POINTS = 100


def plot_comparison(comparison: Comparison) -> Figure:
    """See :meth:`~spatialdiff.fitting.inference.comparison.Comparison.plot`."""
    import matplotlib.pyplot as plt

    rows = comparison.table
    with_sites = not isinstance(comparison.best.domain, Graph)
    height = max(2.8, 0.35 * len(rows) + 1.2)
    figure, axes = plt.subplots(
        1, 1 + with_sites, figsize=(4.0 + 4.4 * with_sites, height), squeeze=False, layout="constrained"
    )
    colors = [f"C{i % 10}" for i in range(len(rows))]
    if with_sites:
        _curves(axes[0, 0], comparison, colors)
    bars = axes[0, -1]
    bars.barh([row.name for row in rows], [row.difference for row in rows], color=colors)
    bars.invert_yaxis()
    for position, row in enumerate(rows):
        bars.annotate(
            f" {row.difference:.1f}" if position else " best",
            (row.difference, position),
            va="center",
            fontsize="small",
        )
    bars.margins(x=0.25)
    bars.set_xlabel(f"{comparison.criterion.upper()} − smallest")
    return figure


def _curves(axes: Axes, comparison: Comparison, colors: list[str]) -> None:
    empirical = _empirical(comparison.best)
    last = 1.0
    if empirical is not None:
        gamma = empirical.gamma if empirical.gamma.ndim == 1 else empirical.gamma.mean(-1)
        axes.plot(empirical.lags.tolist(), gamma.tolist(), "ko", ms=4, label="data")
        last = float(empirical.edges[-1])
    else:
        sites = comparison.best.domain.sites()
        last = float((sites.amax(0) - sites.amin(0)).amax()) / 2.0
    for (name, result), color in zip(comparison.results.items(), colors, strict=True):
        assert result.kernel is not None
        lags, gamma = model_semivariance(result.kernel, result.domain, last)
        axes.plot(lags.tolist(), gamma.tolist(), color=color, lw=1.2, label=name)
    axes.set(xlabel="distance", ylabel="semivariance", xlim=(0.0, None), ylim=(0.0, None))
    axes.legend(fontsize="small")


def _empirical(result: FitResult) -> Variogram | None:
    """The variogram of the centred fields, where the result still has them."""
    return None if result.search is None else variogram_of(result.search.likelihood.data)


def model_semivariance(kernel: nn.Module, domain: Domain, last: float) -> tuple[Tensor, Tensor]:
    """``γ(h) = ½ E (x(s) - x(s+h))²`` at distances up to ``last``, averaged over directions or places, and
    over the channels of a `Coregionalization`; distances and semivariances, ``(k,)`` each."""
    if isinstance(kernel, Coregionalization):
        parts = [model_semivariance(part, domain, last) for part in kernel.kernels]
        weights = [matrix.diagonal().mean() for matrix, _ in kernel.terms]
        total = torch.stack([w * gamma for w, (_, gamma) in zip(weights, parts, strict=True)]).sum(0)
        return parts[0][0], total.detach()
    assert isinstance(kernel, Kernel)
    kernel = kernel.double()
    with torch.no_grad():
        if kernel.is_stationary:
            d = domain.dimension
            lags = torch.linspace(0.0, last, _POINTS + 1, dtype=torch.float64)[1:]
            h = lags[:, None, None] * _directions(d)
            origin = at_lags(kernel, torch.zeros(1, d, dtype=torch.float64))
            return lags, origin - at_lags(kernel, h).mean(-1)
        sites = domain.sites()
        generator = torch.Generator().manual_seed(0)
        i, j = torch.randint(0, len(sites), (2, _PAIRS), generator=generator)
        distance = (sites[i] - sites[j]).norm(dim=-1)
        near = (distance > 0.0) & (distance <= last)
        i, j, distance = i[near], j[near], distance[near]
        gamma = 0.5 * (at_pairs(kernel, sites[i], sites[i]) + at_pairs(kernel, sites[j], sites[j]))
        gamma = gamma - at_pairs(kernel, sites[i], sites[j])
        count = max(1, min(_POINTS, len(distance) // 50))
        bins = (distance / last * count).long().clamp_max(count - 1)
        number = torch.bincount(bins, minlength=count).double()
        used = number > 0
        means = [torch.bincount(bins, v, minlength=count)[used] / number[used] for v in (distance, gamma)]
        return means[0], means[1]


def _directions(d: int) -> Tensor:
    """Unit vectors ``(m, d)``, evenly spread over half of the directions."""
    if d == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if d == 2:
        angle = torch.arange(_DIRECTIONS, dtype=torch.float64) * (math.pi / _DIRECTIONS)
        return torch.stack([angle.cos(), angle.sin()], dim=-1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * _DIRECTIONS, d, dtype=torch.float64, generator=generator)
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit
