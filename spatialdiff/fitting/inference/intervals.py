r"""Confidence intervals of a fit: Wald's from the observed information, and from the profile likelihood.

Wald's interval is :math:`\hat\theta_i \pm z\,\mathrm{se}_i` on the scale that is optimised, the logarithm of
positive parameters, so that it stays positive. The profile likelihood
:math:`\ell_p(t) = \max_{\theta:\,\theta_i = t} \ell(\theta)` gives the set

.. math:: \{t : 2\lambda^{-1}\,[\ell(\hat\theta) - \ell_p(t)] \le \chi^2_{1,\,\mathrm{level}}\},

which needs no symmetry and sees bounds and ridges. :math:`\lambda = 1` for a likelihood; for Whittle's, whose
information is not the inverse variance of its estimates, :math:`\lambda = V_{ii}/(H^{-1})_{ii}` with
:math:`V` the sandwich covariance. How it is followed: :mod:`.profiler`.

Sources: Cox & Hinkley 1974, section 9.3; Kent 1982 (λ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.fitting.inference.profiler import STEP, Profiler, normal_quantile
from spatialdiff.fitting.naming import Parameter, describe
from spatialdiff.fitting.result import FitResult, Search
from spatialdiff.fitting.storage import constraints_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("wald", "profile")


@dataclass(frozen=True)
class Profile:
    """The profile likelihood of one parameter.

    Attributes:
        name: of the parameter.
        values: natural values, increasing, ``(k,)``.
        log_likelihood: the maximum over the other parameters, ``(k,)``, nats.
        estimate, maximum: where it is highest, and how high.
        scale: ``λ`` of the module.
        level: of ``interval``.
        interval: where the profile is high enough; 0 or infinite where it never falls.
    """

    name: str
    values: Tensor
    log_likelihood: Tensor
    estimate: float
    maximum: float
    scale: float
    level: float
    interval: tuple[float, float]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the profile, its threshold and the interval; returns the axes."""
        import matplotlib.pyplot as plt

        axes = plt.subplots(figsize=(4.0, 3.0))[1] if ax is None else ax
        drop = 0.5 * self.scale * normal_quantile(self.level) ** 2
        axes.plot(self.values.tolist(), (self.log_likelihood - self.maximum).tolist(), "o-", ms=3)
        axes.axhline(-drop, color="0.5", lw=0.8, ls="--", label=f"{self.level:.0%} interval")
        for end in self.interval:
            if math.isfinite(end) and end != 0.0:
                axes.axvline(end, color="0.5", lw=0.8)
        axes.axvline(self.estimate, color="C3", lw=1.0, label="estimate")
        axes.set(xlabel=self.name, ylabel="profile log-likelihood − maximum", ylim=(-4.0 * drop, 0.3 * drop))
        axes.legend(fontsize="small")
        return axes


def interval(result: FitResult, name: str, level: float = 0.95, kind: str = "wald") -> tuple[float, float]:
    """Ends of the confidence interval of a parameter, a derived quantity or a coefficient of the mean.

    Args:
        result: a fit.
        name: as in the table of the fit.
        level: such as 0.95.
        kind: ``"wald"``, or ``"profile"`` (parameters of the kernel).

    Raises:
        ValueError: an unknown name or kind, a level that is none, a profile of what is no parameter or is
            held, of a result that was read from a file, or of a likelihood whose Monte-Carlo error is too
            large.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, got {level}")
    if kind == "profile":
        return Profiler(_searched(result), name).interval(level)
    z = normal_quantile(level)
    if name in result.parameters:
        value, error = result.parameters[name], result.standard_errors[name]
        p = _parameter(result, name)
        if p is None or not p.log:
            return value - z * error, value + z * error
        return _positive(value, error, z)
    if name in result.derived:
        value, error = result.derived[name]
        if name.startswith("correlation["):
            # Fisher's transformation keeps it within ±1
            middle, width = math.atanh(value), z * error / (1.0 - value**2)
            return math.tanh(middle - width), math.tanh(middle + width)
        off_diagonal = name.startswith("B") and name[-4:-1].partition(",")[0] != name[-4:-1].partition(",")[2]
        if value <= 0.0 or off_diagonal:
            return value - z * error, value + z * error
        return _positive(value, error, z)
    for coefficient in (name, name.removeprefix("mean ")):
        if coefficient in result.coefficients:
            value, error = result.coefficients[coefficient]
            return value - z * error, value + z * error
    known = [*result.parameters, *result.derived, *result.coefficients]
    raise ValueError(f"the fit has no {name!r}; it has {', '.join(known)}")


def profile(result: FitResult, name: str, level: float = 0.95, points: int = 9) -> Profile:
    """The profile likelihood of a parameter, from a little below to a little above its interval.

    Args:
        result: a fit.
        name: a parameter that was estimated.
        level: of the interval.
        points: number of values.

    Raises:
        ValueError: see `interval`; fewer than 3 points.
    """
    if points < 3:
        raise ValueError(f"a profile needs at least 3 points, got {points}")
    profiler = Profiler(_searched(result), name)
    low, high = profiler.ends(level)
    center, p = profiler.center, profiler.parameter
    reach = 1.3
    low_bound, high_bound = p.theta_bounds
    width = max(center - low if math.isfinite(low) else 0.0, high - center if math.isfinite(high) else 0.0)
    width = width or 2.0 * STEP
    below = center - low if math.isfinite(low) else width
    above = high - center if math.isfinite(high) else width
    left, right = max(center - reach * below, low_bound), min(center + reach * above, high_bound)
    where = sorted({*np.linspace(left, right, points).tolist(), center})
    heights = [profiler.height(t) for t in where]
    return Profile(
        name=name,
        values=torch.tensor([math.exp(t) if p.log else t * p.step for t in where], dtype=torch.float64),
        log_likelihood=torch.tensor(heights, dtype=torch.float64),
        estimate=math.exp(center) if p.log else center * p.step,
        maximum=profiler.maximum,
        scale=profiler.scale,
        level=level,
        interval=profiler.natural(low, high),
    )


def _searched(result: FitResult) -> Search:
    if result.search is None:
        raise ValueError(
            "a profile needs the likelihood, which a result read from a file or fitted without one has not: "
            "fit again, or use kind='wald'"
        )
    return result.search


def _parameter(result: FitResult, name: str) -> Parameter | None:
    kernel: Any = result.kernel
    if kernel is None:
        return None
    return next((p for p in describe(kernel, constraints_of(kernel)) if p.name == name), None)


def _positive(value: float, error: float, z: float) -> tuple[float, float]:
    """The interval that is symmetric in the logarithm."""
    if value <= 0.0:
        return value, value + z * error
    factor = math.exp(z * error / value) if error < 1e2 * value else math.inf
    return value / factor, value * factor
