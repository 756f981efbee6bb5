r"""Confidence intervals of a fit: Wald's from the observed information, and from the profile likelihood.

Wald's interval is :math:`\hat\theta_i \pm z\,\mathrm{se}_i` on the scale that is optimised, the logarithm of
positive parameters, so that it stays positive. The profile likelihood
:math:`\ell_p(t) = \max_{\theta:\,\theta_i = t} \ell(\theta)` gives the set

.. math:: \{t : 2\lambda^{-1}\,[\ell(\hat\theta) - \ell_p(t)] \le \chi^2_{1,\,\mathrm{level}}\},

which needs no symmetry and sees bounds and ridges. :math:`\lambda = 1` for a likelihood; for Whittle's, whose
information is not the inverse variance of its estimates, :math:`\lambda = V_{ii}/(H^{-1})_{ii}` with
:math:`V` the sandwich covariance. The ends are found by secants in
:math:`r(t) = \sqrt{2\lambda^{-1}[\ell(\hat\theta) - \ell_p(t)]}`, which is close to linear.

Sources: Cox & Hinkley 1974, section 9.3; Kent 1982 (λ); Venzon & Moolgavkar 1988 (profiles).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.naming import Parameter, constraints_of, describe
from spatialdiff.fitting.optimise import Objective
from spatialdiff.fitting.result import FitResult, FitWarning, Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("wald", "profile")
# the widest step on the scale of logarithms where no standard error says how far to go
_STEP = 0.5
_TOLERANCE = 1e-3
# a comparison of likelihoods means something up to this Monte-Carlo error
_NOISE = 0.5


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
        drop = 0.5 * self.scale * _quantile(self.level) ** 2
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
        return _Profiler(_searched(result), name).interval(level)
    z = _quantile(level)
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
    profiler = _Profiler(_searched(result), name)
    low, high = profiler.ends(level)
    center, p = profiler.center, profiler.parameter
    reach = 1.3
    low_bound, high_bound = p.theta_bounds
    width = max(center - low if math.isfinite(low) else 0.0, high - center if math.isfinite(high) else 0.0)
    width = width or 2.0 * _STEP
    below = center - low if math.isfinite(low) else width
    above = high - center if math.isfinite(high) else width
    left, right = max(center - reach * below, low_bound), min(center + reach * above, high_bound)
    where = sorted({*np.linspace(left, right, points).tolist(), center})
    heights = [profiler.height(t) for t in where]
    return Profile(
        name=name,
        values=torch.tensor([math.exp(t) if p.log else t for t in where], dtype=torch.float64),
        log_likelihood=torch.tensor(heights, dtype=torch.float64),
        estimate=math.exp(center) if p.log else center,
        maximum=profiler.maximum,
        scale=profiler.scale,
        level=level,
        interval=profiler.natural(low, high),
    )


class _Profiler:
    """Maxima over all parameters but one, each started from the last."""

    def __init__(self, search: Search, name: str) -> None:
        model = search.likelihood.model
        names = [p.name for p in model.free]
        if name not in names:
            leader = next((p.tied for p in model.all if p.name == name), None)
            if leader is None:
                raise ValueError(
                    f"a profile needs a parameter of the kernel that was estimated, got {name!r}; there are "
                    + ", ".join(names)
                )
            name = leader
        noise = search.likelihood.standard_error(search.optimum.theta)
        if noise > _NOISE:
            raise ValueError(
                f"the Monte-Carlo error of the log-likelihood, {noise:.2g}, is too large for a profile, "
                "whose interval ends where it has fallen by 2 to 3: use more probes"
            )
        self.objective = Objective(search.likelihood)
        self.free = model.free
        self.index = names.index(name)
        self.parameter: Parameter = model.free[self.index]
        self.others = [i for i in range(len(names)) if i != self.index]
        self.theta = search.optimum.theta
        self.center, self.maximum = float(self.theta[self.index]), search.optimum.value
        self.information = search.optimum.information
        variance = float(search.covariance[self.index, self.index])
        self.error = math.sqrt(variance) if variance > 0.0 else math.nan
        self.scale = self._scale(search)
        self._direction = self._ridge()
        self._known = {self.center: (self.maximum, self.theta)}

    def _scale(self, search: Search) -> float:
        if search.likelihood.score_covariance(self.theta) is None or math.isnan(self.error):
            return 1.0
        inside = search.optimum.interior
        inverse = torch.linalg.inv(self.information[inside][:, inside])
        position = inside.tolist().index(self.index)
        return self.error**2 / float(inverse[position, position])

    def _ridge(self) -> Tensor:
        """Change of the other parameters along the profile, ``-H_oo⁻¹ H_oi``, to first order."""
        o, i = self.others, self.index
        block, column = self.information[o][:, o], self.information[o, i]
        if not o or not bool(torch.isfinite(block).all() & torch.isfinite(column).all()):
            return torch.zeros(len(o), dtype=torch.float64)
        eigenvalues, vectors = torch.linalg.eigh(block)
        curved = eigenvalues > 1e-8 * eigenvalues.abs().amax()
        vectors, eigenvalues = vectors[:, curved], eigenvalues[curved]
        return -(vectors @ ((vectors.T @ column) / eigenvalues))

    def height(self, t: float) -> float:
        """``ℓ_p(t)``; minus infinity where the covariance is singular."""
        import scipy.optimize

        if t in self._known:
            return self._known[t][0]
        nearest = min(self._known, key=lambda s: abs(s - t))
        start = self._known[nearest][1].clone()
        start[self.others] += self._direction * (t - nearest)
        start[self.index] = t
        if not self.others:
            return self._store(t, start)
        bounds = [self.free[i].theta_bounds for i in self.others]
        diagonal = self.information.diagonal()[self.others].clamp_min(1.0)
        widths = torch.where(torch.isfinite(diagonal), diagonal, 1.0).rsqrt().numpy()

        def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            theta = start.clone()
            theta[self.others] = torch.from_numpy(scaled * widths)
            value, slope = self.objective(theta.numpy())
            return value / self.objective.scale, slope[self.others] * widths / self.objective.scale

        low, high = (np.array(side) / widths for side in zip(*bounds, strict=True))
        first = np.clip(start[self.others].numpy() / widths, low, high)
        run = scipy.optimize.minimize(
            objective,
            first,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options={"ftol": 1e-10, "gtol": 1e-3, "maxiter": 100},
        )
        start[self.others] = torch.from_numpy(run.x * widths)
        return self._store(t, start)

    def _store(self, t: float, theta: Tensor) -> float:
        try:
            value = self.objective.gradient(theta)[0]
        except NotPositiveDefiniteError:
            return -math.inf
        self._known[t] = (value, theta)
        if value > self.maximum + 0.01:
            warnings.warn(
                f"at {self.parameter.name} = {self.parameter.to_natural(t):.4g} the likelihood is "
                f"{value - self.maximum:.2g} higher than at the estimate: fit again from there",
                FitWarning,
                stacklevel=5,
            )
        return value

    def _root(self, t: float) -> float:
        return math.sqrt(max(2.0 * (self.maximum - self.height(t)) / self.scale, 0.0))

    def ends(self, level: float) -> tuple[float, float]:
        """Ends on the scale that is optimised; infinite where the profile does not fall far enough."""
        z = _quantile(level)
        low, high = self.parameter.theta_bounds
        return self._end(-1.0, low, z), self._end(1.0, high, z)

    def _end(self, sign: float, bound: float, z: float) -> float:
        limit = abs(bound - self.center) if math.isfinite(bound) else math.inf
        if self.parameter.period is not None:
            limit = min(limit, self.parameter.period / 2.0)
        if limit < 1e-6:
            return sign * math.inf
        near, at_near = 0.0, 0.0
        step = z * self.error if math.isfinite(self.error) else _STEP
        step = min(step, limit, 4.0 * _STEP if self.parameter.log else math.inf)
        far = step
        at_far = self._root(self.center + sign * far)
        while at_far < z:
            if far >= limit:
                return sign * math.inf
            near, at_near = far, at_far
            far = min(limit, far + max(step, 2.0 * (far * z / max(at_far, 0.1 * z) - far)))
            at_far = self._root(self.center + sign * far)
        for _ in range(40):
            if abs(at_far - z) < _TOLERANCE * z:
                return self.center + sign * far
            finite = math.isfinite(at_far)
            middle = near + (far - near) * ((z - at_near) / (at_far - at_near) if finite else 0.5)
            # stay inside the bracket, so that a bent root function cannot stall the secant
            margin = 0.02 * (far - near)
            middle = min(max(middle, near + margin), far - margin)
            value = self._root(self.center + sign * middle)
            if abs(value - z) < _TOLERANCE * z:
                return self.center + sign * middle
            if value < z:
                near, at_near = middle, value
            else:
                far, at_far = middle, value
        return self.center + sign * 0.5 * (near + far)

    def natural(self, low: float, high: float) -> tuple[float, float]:
        """Ends as natural values: 0 and infinity where there is none; all directions for an angle."""
        p = self.parameter
        if p.log:
            return (0.0 if low == -math.inf else math.exp(low)), math.exp(high)
        if p.period is not None and (math.isinf(low) or math.isinf(high)):
            return self.center - p.period / 2.0, self.center + p.period / 2.0
        return low, high

    def interval(self, level: float) -> tuple[float, float]:
        return self.natural(*self.ends(level))


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


def _quantile(level: float) -> float:
    """``z`` with ``P(|N(0, 1)| ≤ z) = level``."""
    return math.sqrt(2.0) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
