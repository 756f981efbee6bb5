r"""The sum of squares that a variogram fit minimises: vectors, bounds, weights, and the search.

``S(θ) = (γ̂ - γ(θ))ᵀ W (γ̂ - γ(θ))`` with ``W`` diagonal or a matrix, held during a minimisation. Minimised
by the trust-region reflective method of `scipy.optimize.least_squares`, from the best few of many starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.validity import keep_valid
from spatialdiff.fitting.variograms.empirical import Variogram
from spatialdiff.fitting.variograms.model import VariogramModel
from spatialdiff.fitting.variograms.uncertainty import GaussianSpread

_ROUNDS = 60
_SETTLED = 1e-8
# rounds after which only half a step is taken, should the weights go to and fro
_DAMPED = 10
_STEP = 1e-5
# of the starts so many are taken to a minimum
_FINISHED = 3


def set_bounds(model: KernelParameters, variograms: list[Variogram]) -> None:
    """Narrow each free parameter to what the variogram can tell anything about; bounds given are kept.

    Length scales: a twentieth of the shortest to a hundred times the longest lag (the shortest period where
    images are summed); variances 1e-8 to 1e6 times the largest semivariance; other positive parameters a
    millionth to a million times their start; all: to where the kernel is positive definite.
    """
    domain = variograms[0].domain
    keep_valid(model, domain.dimension)
    lags = torch.cat([v.lags[(v.counts > 0) & (v.lags > 0)].reshape(-1) for v in variograms])
    largest = max(float(v.gamma.nan_to_num().abs().max()) for v in variograms)
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    periods = (
        [e for e, p in zip(grid.extent, grid.periodic, strict=True) if p] if isinstance(grid, Grid) else []
    )
    for p in model.free:
        if p.bounded_by_user or not p.log:
            continue
        if p.is_lengthscale and p.attribute != "angle":
            low, high = float(lags.min()) / 20.0, min([float(lags.max()) * 100.0, *periods])
            low, high = low / p.unit, high / p.unit
        elif p.is_variance:
            low, high = largest * 1e-8, largest * 1e6
        elif p.kind == "root":
            low, high = math.sqrt(largest) * 1e-6, math.sqrt(largest) * 1e3
        else:
            low, high = p.start * 1e-6, p.start * 1e6
        p.lower, p.upper = max(p.lower, low), min(p.upper, high)


class Problem:
    """Observed and modelled semivariances as vectors, and their weights."""

    def __init__(self, model: KernelParameters, variograms: list[Variogram], weights: str) -> None:
        self.model, self.variograms, self.name = model, variograms, weights
        self.models = [VariogramModel(model, v) for v in variograms]
        self.entries = [usable(v) for v in variograms]
        self.gamma = self._joined([v.gamma for v in variograms])
        self.lags = self._joined([v.lags for v in variograms])
        self.counts = self._joined([v.counts for v in variograms])
        self.evaluations = 0
        self.spread = GaussianSpread(model, variograms, self.entries)
        number = len(self.gamma)
        if number < len(model.free):
            raise ValueError(
                f"{len(model.free)} parameters cannot be fitted to {number} semivariances: hold some "
                "(fixed=...), or give more bins"
            )
        if weights == "n/h2" and bool((self.lags == 0).any()):
            raise ValueError(
                "a bin holds pairs at distance 0 only, whose weight N/h² is infinite: start the first bin "
                "above 0, or use weights='n' or 'n/gamma2'"
            )
        low, high = zip(*(p.theta_bounds for p in model.free), strict=True)
        self.low, self.high = torch.tensor(low).double(), torch.tensor(high).double()

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part[use] for part, use in zip(parts, self.entries, strict=True)])

    def predicted(self, theta: Tensor) -> Tensor:
        self.evaluations += 1
        with torch.no_grad():
            return self._joined([m(theta) for m in self.models])

    def weight(self, theta: Tensor) -> Tensor:
        """Diagonal ``(m,)``, or a matrix ``(m, m)``."""
        if self.name == "equal":
            return torch.ones_like(self.gamma)
        if self.name == "n":
            return self.counts
        if self.name == "n/h2":
            return self.counts / self.lags.square()
        if self.name == "n/gamma2":
            # cross-semivariances may be 0; their variance is that of the product of two increments
            return self.counts / (2.0 * self._variance_factor(theta))
        inverse: Tensor = torch.linalg.inv(self.spread(theta))
        return inverse

    def _variance_factor(self, theta: Tensor) -> Tensor:
        """``½ (γ_aa γ_bb + γ_ab²)``, which is ``γ²`` for a single channel, times ½: ``Var γ̂ ≈ 2 γ²/N``."""
        found = []
        for m, v in zip(self.models, self.variograms, strict=True):
            with torch.no_grad():
                g = m(theta)
            if v.gamma.ndim == 3:
                own = g.diagonal(dim1=-2, dim2=-1)
                g2 = 0.5 * (own.unsqueeze(-1) * own.unsqueeze(-2) + g.square())
            else:
                g2 = g.square()
            found.append(0.5 * g2)
        return self._joined(found)

    def jacobian(self, theta: Tensor) -> Tensor:
        """``∂γ/∂θ`` by central differences (at a bound one-sided), ``(m, p)``."""
        columns = []
        for i, value in enumerate(theta.tolist()):
            step = _STEP * max(1.0, abs(value) if not self.model.free[i].log else 1.0)
            above, below = theta.clone(), theta.clone()
            above[i] = min(value + step, float(self.high[i]))
            below[i] = max(value - step, float(self.low[i]))
            width = float(above[i] - below[i])
            columns.append((self.predicted(above) - self.predicted(below)) / width)
        return torch.stack(columns, dim=-1)

    def inside(self, theta: Tensor) -> Tensor:
        """Which parameters are not at a bound."""
        return (theta > self.low + 1e-6) & (theta < self.high - 1e-6)

    def solve(self, starts: Sequence[Tensor]) -> tuple[Tensor, float, bool, str]:
        """Minimiser, weighted sum of squares, convergence and message."""
        iterated = self.name in ("n/gamma2", "generalised")
        first = self.counts if iterated else self.weight(starts[0])
        promising = sorted(starts, key=lambda start: self._sum(start, first))[:_FINISHED]
        best = min((self._minimise(start, first) for start in promising), key=lambda run: run[1])
        if not iterated:
            return best
        theta, _, converged, message = best
        for number in range(_ROUNDS):
            last = theta
            theta, objective, converged, message = self._minimise(last, self.weight(last))
            if float((theta - last).abs().max()) < _SETTLED:
                return theta, objective, converged, message
            if number >= _DAMPED:
                theta = 0.5 * (last + theta)
        return theta, objective, False, f"the weights did not settle in {_ROUNDS} rounds"

    def _sum(self, theta: Tensor, weight: Tensor) -> float:
        misfit = self.gamma - self.predicted(theta.clamp(self.low, self.high))
        return float(misfit @ (weight * misfit if weight.ndim == 1 else weight @ misfit))

    def _minimise(self, theta: Tensor, weight: Tensor) -> tuple[Tensor, float, bool, str]:
        from scipy.optimize import least_squares

        root = weight.sqrt() if weight.ndim == 1 else torch.linalg.cholesky(weight, upper=True)
        size = float(_times(root, self.gamma).norm())

        def residual(x: np.ndarray) -> np.ndarray:
            misfit = self.gamma - self.predicted(torch.from_numpy(x))
            return np.asarray((_times(root, misfit) / size).numpy())

        def slope(x: np.ndarray) -> np.ndarray:
            return np.asarray((-_times(root, self.jacobian(torch.from_numpy(x))) / size).numpy())

        # strictly inside, as the solver asks
        margin = 1e-9 * (1.0 + theta.abs())
        first = torch.minimum(torch.maximum(theta, self.low + margin), self.high - margin)
        run = least_squares(
            residual,
            first.numpy(),
            slope,
            bounds=(self.low.numpy(), self.high.numpy()),
            xtol=1e-11,
            ftol=1e-12,
            gtol=1e-14,
            max_nfev=300,
        )
        return torch.from_numpy(run.x), 2.0 * float(run.cost) * size**2, bool(run.success), str(run.message)


def _times(root: Tensor, x: Tensor) -> Tensor:
    if root.ndim == 2:
        return root @ x
    return root * x if x.ndim == 1 else root[:, None] * x


def usable(variogram: Variogram) -> Tensor:
    """Entries that hold pairs; of the pairs of channels each once."""
    use = (variogram.counts > 0) & torch.isfinite(variogram.gamma)
    if use.ndim == 3:
        use = use & torch.ones_like(use).triu()
    return use
