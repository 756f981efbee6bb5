r"""Weighted least squares: the kernel whose variogram is nearest to an empirical one,

.. math:: \hat\theta = \arg\min_\theta \sum_k w_k (\hat\gamma_k - \gamma(h_k; \theta))^2 .

==================  ====================================  =====================================================
``"n/h2"``          ``N_k / h_k²``                        gstat's default: the behaviour near 0
``"n"``             ``N_k``
``"n/gamma2"``      ``N_k / γ(h_k; θ)²``, iterated        Cressie 1985: ``Var γ̂ ≈ 2 γ²/N`` for Gaussian fields
``"equal"``         1                                     ordinary least squares
``"generalised"``   ``Cov(γ̂; θ)^{-1}``, iterated          Gaussian covariance of the estimates [Genton 1998]
==================  ====================================  =====================================================

Weights that depend on θ are held during a minimisation and renewed until nothing moves, so that the estimating
equations stay unbiased (minimising ``Σ N (γ̂/γ - 1)²`` would favour large ``γ``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.result import FitWarning
from spatialdiff.fitting.validity import keep_valid
from spatialdiff.fitting.variograms.empirical import Variogram, variogram_of
from spatialdiff.fitting.variograms.model import VariogramModel
from spatialdiff.fitting.variograms.starts import starting_points
from spatialdiff.fitting.variograms.uncertainty import GaussianSpread, parameter_covariance
from spatialdiff.kernels import Coregionalization

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = ("n/h2", "n", "n/gamma2", "equal", "generalised")
_ROUNDS = 100
_SETTLED = 1e-9
_STEP = 1e-5
# of the starts so many are taken to a minimum
_FINISHED = 3


@dataclass
class VariogramFit:
    """The kernel of a weighted least-squares fit; returned by :func:`fit_variogram`.

    Attributes:
        kernel: the fitted kernel (no gradients).
        parameters: natural values by name, held ones included.
        standard_errors: by name; of ``source``; 0 for held parameters, NaN at a bound or where there is none.
        source: what they come from: "the spread of the fields" (at least 10 independent fields), "the Gaussian
            covariance of the semivariances" (Matheron's estimator, complete data, few sites), or "none".
        objective: weighted sum of squares at the minimum, with the weights there (gstat's ``SSErr``).
        weights: their name.
        variograms: what was fitted.
        theta, covariance: the vector of the free parameters (logarithms of positive ones), and the covariance
            of its estimate, NaN where unknown.
        model: the free parameters and their names.
        converged, message, n_evaluations: of the search.
        warnings: the texts of the :class:`FitWarning` s.
    """

    kernel: Kernel | Coregionalization
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    source: str
    objective: float
    weights: str
    variograms: list[Variogram]
    theta: Tensor
    covariance: Tensor
    model: KernelParameters
    converged: bool
    message: str
    n_evaluations: int
    warnings: list[str] = field(default_factory=list)

    def gamma(self) -> list[Tensor]:
        """The model's semivariances at the bins of each variogram, in the shape of its ``gamma``."""
        with torch.no_grad():
            return [VariogramModel(self.model, v)(self.theta) for v in self.variograms]

    def plot(self) -> Figure:
        """The variograms with the fitted curves."""
        from spatialdiff.fitting.variograms.pictures import plot_variogram

        return plot_variogram(self.variograms, self)

    def __str__(self) -> str:
        width = max(len(name) for name in self.parameters)
        lines = [
            f"Variogram fit, weights {self.weights}: weighted sum of squares {self.objective:.6g}",
            f"  {'parameter':<{width}}  {'estimate':>11}  {'std. error':>11}",
        ]
        held = set(self.parameters) - set(self.model.names)
        for name, value in self.parameters.items():
            error = self.standard_errors[name]
            shown = "held" if name in held else ("-" if math.isnan(error) else f"{error:.4g}")
            lines.append(f"  {name:<{width}}  {value:>11.5g}  {shown:>11}")
        lines.append(f"  standard errors from {self.source}")
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def fit_variogram(
    variogram: Variogram | Sequence[Variogram],
    kernel: Kernel | Coregionalization,
    weights: str = "n/h2",
    *,
    fixed: Iterable[str] | Mapping[str, float] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    ties: Mapping[str, str] | Iterable[Iterable[str]] = (),
    starts: int = 6,
) -> VariogramFit:
    r"""Fit a kernel to an empirical variogram, or jointly to several (such as directional ones), by weighted
    least squares.

    .. math:: \hat\theta = \arg\min_\theta \sum_k w_k (\hat\gamma_k - \gamma(h_k; \theta))^2, \qquad
       \gamma(h) = k(0) - k(h)

    Starts are laid over the range of distances, with variances by non-negative least squares; a
    `Coregionalization` (to cross-variograms) starts from the positive semi-definite matrices of Goulard & Voltz.
    No likelihood is behind it: standard errors are those of ``result.source``, and there is no AIC.

    Args:
        variogram: one, or several of one domain.
        kernel: any stationary gpytorch kernel (on the sphere an isotropic one), or a `Coregionalization`. Not
            modified; its values are one of the starts.
        weights: "n/h2", "n", "n/gamma2", "equal" or "generalised"; see the module.
        fixed: names of parameters to hold, or names and values.
        bounds: natural-scale bounds by name.
        ties: names that share a value.
        starts: how many starting points.

    Raises:
        ValueError: unknown weights or names; a kernel that is not stationary; fewer bins than parameters; a bin
            at distance 0 with weights "n/h2"; "generalised" weights for many sites or missing values.
        TypeError: something that is not a kernel.

    Warns:
        FitWarning: a parameter at a bound, or no convergence.

    References:
        Cressie 1985; Goulard & Voltz 1992; Genton 1998; Pebesma 2004.
    """
    model = KernelParameters(kernel, fixed, bounds, ties)
    variograms = [variogram] if isinstance(variogram, Variogram) else list(variogram)
    return fit_parameters(model, variograms, weights, starts)


def fit_observations(
    model: KernelParameters,
    data: Observations,
    *,
    weights: str = "n/h2",
    starts: int = 6,
    directions: Sequence[Any] | None = None,
    **options: Any,
) -> VariogramFit:
    """The fit to observations: variogram with ``options`` of :func:`variogram` (cross-variograms for a
    `Coregionalization`; one per direction where ``directions`` are given), then weighted least squares.
    """
    cross = isinstance(model.kernel, Coregionalization)
    if directions is None:
        found = [variogram_of(data, cross=cross, **options)]
    else:
        found = [variogram_of(data, cross=cross, direction=d, **options) for d in directions]
    return fit_parameters(model, found, weights, starts)


def fit_parameters(
    model: KernelParameters, variograms: list[Variogram], weights: str = "n/h2", starts: int = 6
) -> VariogramFit:
    """:func:`fit_variogram` of parameters that have been described."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    if not variograms:
        raise ValueError("fit_variogram needs at least one variogram")
    set_bounds(model, variograms)
    problem = _Problem(model, variograms, weights)
    theta, objective, converged, message = problem.solve(starting_points(model, variograms, starts))
    weight = problem.weight(theta)
    jacobian = problem.jacobian(theta)
    covariance, source = parameter_covariance(problem.spread, theta, jacobian, weight, problem.inside(theta))
    result = VariogramFit(
        kernel=model.fitted(theta, torch.float64),
        parameters=model.natural(theta),
        standard_errors=model.standard_errors(theta, covariance),
        source=source,
        objective=objective,
        weights=weights,
        variograms=variograms,
        theta=theta,
        covariance=covariance,
        model=model,
        converged=converged,
        message=message,
        n_evaluations=problem.evaluations,
    )
    _complain(result, problem)
    return result


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


class _Problem:
    """Observed and modelled semivariances as vectors, and their weights."""

    def __init__(self, model: KernelParameters, variograms: list[Variogram], weights: str) -> None:
        self.model, self.variograms, self.name = model, variograms, weights
        self.models = [VariogramModel(model, v) for v in variograms]
        self.entries = [_usable(v) for v in variograms]
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
        return torch.linalg.inv(self.spread(theta))

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
        for _ in range(_ROUNDS):
            last = theta
            theta, objective, converged, message = self._minimise(last, self.weight(last))
            if float((theta - last).abs().max()) < _SETTLED:
                return theta, objective, converged, message
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
            xtol=1e-12,
            ftol=1e-14,
            gtol=1e-14,
            max_nfev=300,
        )
        return torch.from_numpy(run.x), 2.0 * float(run.cost) * size**2, bool(run.success), str(run.message)


def _times(root: Tensor, x: Tensor) -> Tensor:
    if root.ndim == 2:
        return root @ x
    return root * x if x.ndim == 1 else root[:, None] * x


def _usable(variogram: Variogram) -> Tensor:
    """Entries that hold pairs; of the pairs of channels each once."""
    use = (variogram.counts > 0) & torch.isfinite(variogram.gamma)
    if use.ndim == 3:
        use = use & torch.ones_like(use).triu()
    return use


def _complain(result: VariogramFit, problem: _Problem) -> None:
    def warn(text: str) -> None:
        result.warnings.append(text)
        warnings.warn(text, FitWarning, stacklevel=4)

    if not result.converged:
        warn(f"the variogram fit did not converge: {result.message}")
    at_low, at_high = result.theta <= problem.low + 1e-6, result.theta >= problem.high - 1e-6
    for p, low, high in zip(result.model.free, at_low.tolist(), at_high.tolist(), strict=True):
        if p.kind == "root" or (p.is_nugget and low):
            # a singular matrix, or no nugget, is an answer
            continue
        if low or high:
            warn(
                f"{p.name} is at its {'lower' if low else 'upper'} bound {p.lower if low else p.upper:.3g}: the "
                "variogram does not identify it; fit other lags (max_distance=), hold it, or use another family"
            )
