r"""Following the profile likelihood :math:`\ell_p(t) = \max_{\theta_i = t} \ell(\theta)` of one parameter.

Each maximum over the others starts from the nearest one that is known, moved along
:math:`-H_{oo}^{-1}H_{oi}`, its direction to first order. The ends of an interval are found by secants in
:math:`r(t) = \sqrt{2\lambda^{-1}[\ell(\hat\theta) - \ell_p(t)]}`, which is close to linear.

Source: Venzon & Moolgavkar 1988.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError
from spatialdiff.fitting.naming import Parameter
from spatialdiff.fitting.optimise import Objective
from spatialdiff.fitting.result import FitWarning, Search

# the widest step on the scale of logarithms where no standard error says how far to go
STEP = 0.5
_TOLERANCE = 1e-3
# a comparison of likelihoods means something up to this Monte-Carlo error
_NOISE = 0.5


class Profiler:
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
        along: Tensor = vectors @ ((vectors.T @ column) / eigenvalues)
        return -along

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
        z = normal_quantile(level)
        low, high = self.parameter.theta_bounds
        return self._end(-1.0, low, z), self._end(1.0, high, z)

    def _end(self, sign: float, bound: float, z: float) -> float:
        limit = abs(bound - self.center) if math.isfinite(bound) else math.inf
        if self.parameter.period is not None:
            limit = min(limit, self.parameter.period / 2.0)
        if limit < 1e-6:
            return sign * math.inf
        near, at_near = 0.0, 0.0
        step = z * self.error if math.isfinite(self.error) else STEP
        step = min(step, limit, 4.0 * STEP if self.parameter.log else math.inf)
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
        return low * p.step, high * p.step

    def interval(self, level: float) -> tuple[float, float]:
        return self.natural(*self.ends(level))


def normal_quantile(level: float) -> float:
    """``z`` with ``P(|N(0, 1)| ≤ z) = level``."""
    return math.sqrt(2.0) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
