r"""Does a fitted Γ have the variance of the data at every scale?

Fields are drawn from the fitted law, the mean is taken off them as it was off the data, and the statistics of
:mod:`.scales` (square of the domain mean, power per ring of wavenumber, semivariance per lag) are compared. A
statistic that under the model is :math:`m\,\chi^2_d/d` for one field (:math:`m, d` by its mean and variance
over the fields drawn) has, as the mean over ``N`` fields of data over the mean over ``M`` drawn ones, the law
:math:`F(Nd, Md)`: the envelope allows for the noise of the simulation as well. Where a data set is one field,
quantiles of the drawn ones are taken as they are.

A likelihood is decided by the many small scales. What this would have caught: an exponential fitted to
temperature anomalies by Whittle's likelihood puts 68 % of the variance into the domain mean, where the data
have 20 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance, covariance
from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.inference.scales import Scale, Scales
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.result import FitResult
from spatialdiff.kernels import Coregionalization

# of the values of all fields drawn
_MEMORY = 30_000_000
_LEAST = 99
# by how much replicates that depend on one another may move a mean of squares
_FACTOR = 1.5


@dataclass(frozen=True)
class ScaleCheck:
    """Data against model at every scale.

    Attributes:
        scales: what each entry is of.
        data: mean over fields, ``(C, scales)``.
        model: mean over the fields drawn, ``(C, scales)``.
        freedom: ``d``, degrees of freedom of one field, ``(C, scales)``.
        drawn: statistics of single fields drawn, ``(M, C, scales)``.
        fields: ``N``; ``level``: probability, over all scales together, of no false flag.
        replicates: of the domain mean and of the other scales; 0 where the mean that was taken off leaves
        none. shares: of the variance in the domain mean, of the data and of the model.
    """

    scales: tuple[Scale, ...]
    data: Tensor
    model: Tensor
    freedom: Tensor
    drawn: Tensor
    fields: int
    level: float
    replicates: tuple[int, int]
    shares: tuple[float, float]

    @property
    def ratio(self) -> Tensor:
        """Data over model, ``(C, scales)``."""
        return self.data / self.model

    def envelope(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Pointwise interval of the data's statistics under the model, ``(C, scales)`` each."""
        low, high = self._ratios(level)
        return low * self.model, high * self.model

    def _ratios(self, level: float) -> tuple[Tensor, Tensor]:
        tail = 0.5 * (1.0 - level)
        if self.fields > 1 or tail * len(self.drawn) < 1.0:
            return self._by_moments(level)
        edges = torch.tensor([tail, 1.0 - tail], dtype=torch.float64)
        low, high = self.drawn.quantile(edges, dim=0) / self.model
        return low, high

    @property
    def used(self) -> Tensor:
        """Where data and model can be compared, ``(C, scales)``: not the mean where it was taken off a single
        field."""
        finite = torch.isfinite(self.ratio) & (self.model > 0.0)
        finite[:, 0] &= self.replicates[0] > 0
        return finite

    @property
    def outside(self) -> Tensor:
        """Which scales are outside the simultaneous envelope (Bonferroni), ``(C, scales)``."""
        number = max(int(self.used.sum()), 1)
        low, high = self._by_moments(1.0 - (1.0 - self.level) / number)
        return self.used & ((self.ratio < low) | (self.ratio > high))

    def _by_moments(self, level: float) -> tuple[Tensor, Tensor]:
        import scipy.stats

        tail = 0.5 * (1.0 - level)
        counts = torch.full_like(self.data, float(self.replicates[1]))
        counts[:, 0] = float(max(self.replicates[0], 1))
        up, down = (counts * self.freedom).numpy(), (len(self.drawn) * self.freedom).numpy()
        low, high = (torch.from_numpy(scipy.stats.f.ppf(p, up, down)) for p in (tail, 1.0 - tail))
        return low, high

    @property
    def flagged(self) -> Tensor:
        """Outside the simultaneous envelope, and by a factor of 1.5 at least: replicates that depend on one
        another leave narrower envelopes than they should."""
        ratio = self.ratio.nan_to_num(1.0).clamp(min=1e-300)
        return self.outside & ((ratio > _FACTOR) | (ratio < 1.0 / _FACTOR))

    @property
    def suspicious(self) -> bool:
        """Whether any scale is flagged."""
        return bool(self.flagged.any())

    def complaint(self) -> str:
        """One sentence on what is flagged; empty where nothing is."""
        parts = []
        for channel, index in self.flagged.nonzero().tolist():
            factor = float(self.ratio[channel, index])
            size = f"{factor:.3g} times" if factor > 1.0 else f"1/{1.0 / factor:.3g} of"
            where = f"channel {channel}, " if len(self.data) > 1 else ""
            parts.append((abs(math.log(factor)), index, f"{where}{self.scales[index]}: {size} the model's"))
        if not parts:
            return ""
        worst = sorted(sorted(parts, reverse=True)[:4], key=lambda part: part[1])
        text = "; ".join(part[2] for part in worst)
        more = f" (and {len(parts) - 4} more)" if len(parts) > 4 else ""
        share = ""
        if bool(self.flagged[:, 0].any()):
            share = (
                f"; the domain mean holds {self.shares[0]:.0%} of the variance of the data, "
                f"{self.shares[1]:.0%} of the model's"
            )
        return f"the variance of the data is not the model's at every scale: {text}{more}{share}"

    def __str__(self) -> str:
        low, high = self.envelope(self.level)
        lines = [
            f"Data against {len(self.drawn)} fields drawn from the fit (pointwise, {self.level:.1%})",
            f"  {'scale':<34}  {'data':>10}  {'model':>10}  {'low':>10}  {'high':>10}",
        ]
        for channel in range(len(self.data)):
            if len(self.data) > 1:
                lines.append(f"  channel {channel}")
            for i, scale in enumerate(self.scales):
                values = [float(v[channel, i]) for v in (self.data, self.model, low, high)]
                mark = "  <- flagged" if bool(self.flagged[channel, i]) else ""
                mark = mark if bool(self.used[channel, i]) else "  (not compared)"
                lines.append(f"  {scale!s:<34}  " + "  ".join(f"{v:>10.4g}" for v in values) + mark)
        lines.append("  " + (self.complaint() or "no scale is flagged"))
        return "\n".join(lines)


def checks(
    result: FitResult, data: Observations, *, simulations: int = 400, level: float = 0.999, seed: int = 0
) -> ScaleCheck:
    """Compare the fitted Γ with the data at every scale; see the module's text.

    Args:
        result: the fit.
        data: the observations that it was fitted to.
        simulations: fields drawn from the fit, at least; fewer on large domains, and never below 99.
        level: probability of no false flag, over all scales together.
        seed: of the fields drawn.

    Raises:
        ValueError: fewer than 99 simulations, or a level outside (0, 1).
    """
    if simulations < _LEAST:
        raise ValueError(f"at least {_LEAST} simulations are needed for an envelope, got {simulations}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a probability between 0 and 1, got {level}")
    statistics = Scales(data.domain, seed)
    found = statistics(data.values, data.observed)
    gamma = law_on(result, data)
    size = max(math.prod(data.values.shape[1:]), 1)
    number = max(_LEAST, min(simulations, _MEMORY // size))
    groups = -(-number // data.total)
    generator = torch.Generator().manual_seed(seed)
    drawn, shares = [], []
    for _ in range(groups):
        x = draw(gamma, data, generator)
        drawn.append(statistics(x, data.observed))
        shares.append(_variance(x, data))
    pool = torch.cat(drawn)
    model = pool.nanmean(dim=0)
    spread = (pool - model).square().nanmean(dim=0)
    freedom = (2.0 * model.square() / spread.clamp(min=1e-300)).clamp(min=0.5)
    mean = found.nanmean(dim=0)
    total = _variance(data.values, data)
    return ScaleCheck(
        scales=tuple(statistics.scales),
        data=mean,
        model=model,
        freedom=freedom,
        drawn=pool,
        fields=data.total,
        level=level,
        replicates=(data.count_at_zero, data.count),
        shares=(
            float(mean[:, 0].sum() / total.sum()),
            float(model[:, 0].sum() / torch.stack(shares).mean(dim=0).sum()),
        ),
    )


def law_on(result: FitResult, data: Observations) -> Covariance:
    """The fitted Γ on the domain of the data, or on the whole grid that they are a part of."""
    if result.domain == data.domain:
        return result.covariance
    if result.kernel is not None:
        channels = None if isinstance(result.kernel, Coregionalization) else data.covariance_channels
        return covariance(result.kernel, data.domain, channels)
    if isinstance(data.domain, MaskedGrid) and result.domain == data.domain.grid:
        return result.covariance
    if isinstance(data.domain, MaskedGrid) and isinstance(result.domain, Grid | MaskedGrid):
        return result.covariance
    raise ValueError(f"the fit is on {result.domain}, the data on {data.domain}: fit to these data")


def draw(gamma: Covariance, data: Observations, generator: torch.Generator) -> Tensor:
    """As many fields as the data ``(N, C, *shape)``, with gaps and mean taken off as in the data."""
    with torch.no_grad():
        lead = (data.total,) if gamma.channels is not None else (data.total, data.channels)
        x = gamma.double().sample(lead, generator=generator).reshape(data.values.shape)
    return centred(x, data)


def centred(x: Tensor, data: Observations) -> Tensor:
    """``x`` less the mean that least squares give for it, 0 where the data have gaps."""
    domain = data.domain
    flat, seen = domain.flatten(x), data.flat_observed()
    if seen is not None:
        flat = torch.where(seen, flat, 0.0)
    if data.mean_model == "field":
        flat = flat - flat.mean(dim=0)
    elif data.design is not None:
        columns = data.design
        weight = torch.full_like(flat, 1.0) if seen is None else seen.double()
        fitted = []
        for channel in range(flat.shape[1]):
            gram = columns.T @ (weight[:, channel].sum(dim=0)[:, None] * columns)
            right = columns.T @ flat[:, channel].sum(dim=0)
            fitted.append(columns @ torch.linalg.solve(gram, right))
        flat = flat - torch.stack(fitted)
    if seen is not None:
        flat = torch.where(seen, flat, 0.0)
    return domain.unflatten(flat)


def _variance(x: Tensor, data: Observations) -> Tensor:
    """Mean square of each channel over what was observed, ``(C,)``."""
    seen = data.flat_observed()
    squares = data.domain.flatten(x).square()
    if seen is None:
        return squares.mean(dim=(0, 2))
    return squares.sum(dim=(0, 2)) / seen.sum(dim=(0, 2))
