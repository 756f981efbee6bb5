r"""Weighted least squares: the kernel whose variogram is nearest to an empirical one,

.. math:: \hat\theta = \arg\min_\theta \sum_k w_k (\hat\gamma_k - \gamma(h_k; \theta))^2 .

==================  ====================================  ====================================================
``"n/h2"``          ``N_k / h_k²``                        gstat's default: the behaviour near 0
``"n"``             ``N_k``
``"n/gamma2"``      ``N_k / γ(h_k; θ)²``, iterated        Cressie 1985: ``Var γ̂ ≈ 2 γ²/N`` of Gaussian ones
``"equal"``         1                                     ordinary least squares
``"generalised"``   ``Cov(γ̂; θ)^{-1}``, iterated          Gaussian covariance of the estimates [Genton 1998]
==================  ====================================  ====================================================

Weights that depend on θ are held during a minimisation and renewed until nothing moves, so that the
estimating equations stay unbiased (minimising ``Σ N (γ̂/γ - 1)²`` would favour large ``γ``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.result import FitWarning
from spatialdiff.fitting.variograms.empirical import Variogram, variogram_of
from spatialdiff.fitting.variograms.model import VariogramModel
from spatialdiff.fitting.variograms.problem import Problem, set_bounds
from spatialdiff.fitting.variograms.starts import starting_points
from spatialdiff.fitting.variograms.uncertainty import parameter_covariance
from spatialdiff.kernels import Coregionalization

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WEIGHTS = ("n/h2", "n", "n/gamma2", "equal", "generalised")


@dataclass
class VariogramFit:
    """The kernel of a weighted least-squares fit; returned by :func:`fit_variogram`.

    Attributes:
        kernel: the fitted kernel (no gradients).
        parameters: natural values by name, held ones included.
        standard_errors: by name; of ``source``; 0 for held parameters, NaN at a bound or where there is none.
        source: what they come from: "the spread of the fields" (at least 10 independent fields), "the
            Gaussian covariance of the semivariances" (Matheron's estimator, complete data, few sites), or
        "none". objective: weighted sum of squares at the minimum, with the weights there (gstat's ``SSErr``).
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
    `Coregionalization` (to cross-variograms) starts from the positive semi-definite matrices of Goulard &
    Voltz. No likelihood is behind it: standard errors are those of ``result.source``, and there is no AIC.

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
        ValueError: unknown weights or names; a kernel that is not stationary; fewer bins than parameters; a
            bin at distance 0 with weights "n/h2"; "generalised" weights for many sites or missing values.
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
    problem = Problem(model, variograms, weights)
    theta, objective, converged, message = problem.solve(
        starting_points(model, variograms, problem.models, starts)
    )
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


def _complain(result: VariogramFit, problem: Problem) -> None:
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
                f"{p.name} is at its {'lower' if low else 'upper'} bound {p.lower if low else p.upper:.3g}: "
                "the variogram does not identify it; fit other lags (max_distance=), hold it, or use "
                "another family"
            )
