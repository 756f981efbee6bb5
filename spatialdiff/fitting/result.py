r"""What a fit found, readable, and savable as plain data.

A :class:`FitResult` holds the law :math:`N(\mu, \Gamma)` that was fitted (``mean``, ``kernel`` or
``spectrum``, ``covariance``), how sure it is of its parameters, and what looks wrong. ``print(result)`` is a
table; ``state_dict()`` gives tensors, numbers and strings only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.covariance import Covariance, LowRankCovariance, covariance
from spatialdiff.domains import Domain, Grid
from spatialdiff.domains.state import domain_from_state, domain_state
from spatialdiff.fitting.kernel_state import kernel_from_state, kernel_state
from spatialdiff.fitting.nonparametric.shrinkage import shrunk_covariance
from spatialdiff.fitting.nonparametric.smoothing import SpectrumBins

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from spatialdiff.fitting.inference.checks import ScaleCheck
    from spatialdiff.fitting.inference.intervals import Profile
    from spatialdiff.fitting.likelihoods.base import Likelihood
    from spatialdiff.fitting.optimise import Optimum

STATE_VERSION = 3


class FitWarning(UserWarning):
    """A fit that should not be trusted as it is: a bound reached, a parameter not identified, a variance in
    the wrong place."""


@dataclass(frozen=True)
class Search:
    """The likelihood that was maximised, where its maximum is, and the covariance of the estimates there (of
    logarithms of positive parameters)."""

    likelihood: Likelihood
    optimum: Optimum
    covariance: Tensor


@dataclass(frozen=True)
class MeanShare:
    """Share of the variance that sits in the mean over the domain: of the data, of the model, and where the
    model expects the data's.

    ``low`` and ``high`` bound 99.9 % of the values that the model gives for as many fields. NaN where it
    cannot be estimated.
    """

    data: float
    model: float
    low: float
    high: float

    @property
    def suspicious(self) -> bool:
        """Outside the interval, and the share or what is left of it off by a factor 1.5.

        The factor is for replicates that depend on one another, whose interval is wider than it is here.
        """
        if not all(map(math.isfinite, (self.data, self.model, self.low, self.high))):
            return False
        pairs = ((self.data, self.model), (1.0 - self.data, 1.0 - self.model))
        off = any(max(a, b) > 1.5 * max(min(a, b), 0.0) for a, b in pairs)
        return off and not self.low <= self.data <= self.high


@dataclass
class FitResult:
    """The fitted law of a data set; returned by :func:`spatialdiff.fit`.

    Attributes:
        method: how it was fitted, such as ``"exact"``, ``"whittle"`` or ``"spectrum"``.
        reason: why this method, and which structure, basis, density or taper.
        domain: where the fields are.
        channels: ``None``, or the number of independent channels.
        kernel: the fitted kernel (no gradients), ``None`` for ``"spectrum"``.
        spectrum: the fitted eigenvalues ``(*modes)`` or ``(C, *modes)``, ``None`` for a kernel.
        basis: ``"cosine"`` or ``"torus"`` of ``spectrum``.
        mean: broadcasts to one field.
        coefficients: coefficients of a linear mean with standard errors, by name.
        parameters: natural values by name, held ones included.
        standard_errors: by name, natural scale; 0 for held parameters, NaN where none can be given.
        derived: derived quantities with standard errors: effective range, micro-ergodic parameter, mean
            share, ...
        log_likelihood, aic, bic: in nats; Whittle's where ``method="whittle"``, restricted where
            ``restricted`` or ``mean="field"``; NaN where the method has no likelihood.
        log_likelihood_error: Monte-Carlo standard error of the log-likelihood, 0 where it is exact.
        restricted: whether the likelihood is that of contrasts free of the mean.
        converged: whether the optimum is located to a small part of a standard error.
        message, n_evaluations: from the optimiser.
        warnings: the texts of the :class:`FitWarning` s.
        mean_share: where the variance of the domain mean is.
        bins: the data's and the smooth radial spectrum (``"spectrum"`` only).
        factors, diagonal: ``Γ = F Fᵀ + diag(d)`` of ``"eof"``; ``factors`` of ``"shrinkage"``, ``Γ = w T + F
            Fᵀ`` with ``w`` the parameter ``weight``.
        target: the fit ``T`` that was shrunk towards.
        n_fields: how many fields were given.
    """

    method: str
    reason: str
    domain: Domain
    channels: int | None
    mean: Tensor
    parameters: dict[str, float]
    standard_errors: dict[str, float]
    log_likelihood: float
    aic: float
    bic: float
    converged: bool
    message: str
    n_evaluations: int
    n_fields: int
    mean_share: MeanShare
    kernel: Kernel | None = None
    spectrum: Tensor | None = None
    basis: str | None = None
    bins: SpectrumBins | None = None
    factors: Tensor | None = None
    diagonal: Tensor | None = None
    target: FitResult | None = None
    derived: dict[str, tuple[float, float]] = field(default_factory=dict)
    coefficients: dict[str, tuple[float, float]] = field(default_factory=dict)
    restricted: bool = False
    log_likelihood_error: float = 0.0
    held: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)
    # the likelihood and its maximum, for intervals; not written to files
    search: Search | None = field(default=None, repr=False, compare=False)

    @property
    def grid(self) -> Grid:
        """The domain, where it is a regular grid.

        Raises:
            TypeError: the fit is to another domain.
        """
        if not isinstance(self.domain, Grid):
            raise TypeError(f"this needs a fit on a whole regular grid; the fit is on {self.domain}")
        return self.domain

    @functools.cached_property
    def covariance(self) -> Covariance:
        """The fitted covariance Γ on the fit's grid, built on first use.

        A spectrum gives a cosine or torus covariance. A kernel gives ``sd.covariance(kernel, grid)`` with its
        default structure; for a grid that is not periodic, ``sd.covariance(result.kernel, result.grid,
        method="cosine")`` is the one with a fast basis.
        """
        if self.target is not None:
            assert self.factors is not None
            return shrunk_covariance(self.target.covariance, self.factors, self.parameters["weight"])
        if self.diagonal is not None:
            assert self.factors is not None
            return LowRankCovariance(self.domain, self.factors, self.diagonal)
        if self.spectrum is not None:
            assert self.basis is not None
            return covariance(None, self.domain, self.channels, method=self.basis, spectrum=self.spectrum)
        assert self.kernel is not None
        return covariance(self.kernel, self.domain, channels=self.channels)

    def interval(self, name: str, level: float = 0.95, kind: str = "wald") -> tuple[float, float]:
        """Confidence interval of a parameter, derived quantity or coefficient; see
        :func:`spatialdiff.fitting.inference.intervals.interval`."""
        from spatialdiff.fitting.inference.intervals import interval

        return interval(self, name, level, kind)

    def profile(self, name: str, level: float = 0.95, points: int = 9) -> Profile:
        """Profile likelihood of a parameter; see :func:`spatialdiff.fitting.inference.intervals.profile`."""
        from spatialdiff.fitting.inference.intervals import profile

        return profile(self, name, level, points)

    def check(self, fields: Tensor | None = None, **options: Any) -> ScaleCheck:
        """The fitted Γ against the data at every scale; see :func:`spatialdiff.fitting.checks`.

        ``fields`` and their ``mean`` are those that were fitted, and need not be given after a search in this
        session.
        """
        from spatialdiff.fitting.inference.checks import checks
        from spatialdiff.fitting.inference.pictures import observations_of

        ways = {name: options.pop(name) for name in ("mean", "missing") if name in options}
        return checks(self, observations_of(self, fields, self.domain, **ways), **options)

    def plot(self, fields: Tensor | None = None, **options: Any) -> Figure:
        """Diagnostics in pictures: variogram and spectrum with envelopes, residuals, quantiles; see
        :func:`spatialdiff.fitting.diagnose`."""
        from spatialdiff.fitting.inference.pictures import diagnose

        return diagnose(self, fields, self.domain, **options)

    def warn(self, text: str, stacklevel: int = 2) -> None:
        """Store ``text`` among the warnings and emit it as a :class:`FitWarning`."""
        self.warnings.append(text)
        python_warnings.warn(text, FitWarning, stacklevel=stacklevel + 1)

    def __str__(self) -> str:
        lines = [
            f"Fit by {self.method} ({self.reason})",
            f"  {self.n_fields} field{'s' * (self.n_fields != 1)} on {self.domain}"
            + (f", {self.channels} independent channels" if self.channels else ""),
        ]
        if self.kernel is not None:
            lines.append(f"  kernel {_describe(self.kernel)}")
        rows = [(name, value, self.standard_errors[name]) for name, value in self.parameters.items()]
        rows += [(f"mean {name}", value, error) for name, (value, error) in self.coefficients.items()]
        rows += [(name, value, error) for name, (value, error) in self.derived.items()]
        width = max([len(row[0]) for row in rows] + [9])
        lines += ["", f"  {'parameter':<{width}}  {'estimate':>11}  {'std. error':>11}"]
        for position, (name, value, error) in enumerate(rows):
            if position == len(self.parameters) + len(self.coefficients) and position:
                lines.append(f"  {'-' * width}  {'-' * 11}  {'-' * 11}")
            shown = "held" if name in self.held else ("-" if math.isnan(error) else f"{error:.4g}")
            lines.append(f"  {name:<{width}}  {value:>11.5g}  {shown:>11}")
        lines.append("")
        if not math.isnan(self.log_likelihood):
            noise = f" ± {self.log_likelihood_error:.2g}" if self.log_likelihood_error else ""
            criteria = "" if math.isnan(self.aic) else f"   AIC {self.aic:.6g}   BIC {self.bic:.6g}"
            kind = "restricted log-likelihood" if self.restricted else "log-likelihood"
            lines.append(f"  {kind} {self.log_likelihood:.6g}{noise}{criteria}")
        lines += [
            f"  {'converged' if self.converged else 'NOT converged'} after {self.n_evaluations} "
            f"evaluations: {self.message}",
            "  share of variance in the domain mean: " + _share_text(self.mean_share),
        ]
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.4g}" for name, value in self.parameters.items())
        return (
            f"FitResult({self.method}, {values}, converged={self.converged}, warnings={len(self.warnings)})"
        )

    def state_dict(self) -> dict[str, Any]:
        """The result as nested dictionaries and lists of tensors, numbers, booleans and strings
        (``torch.load(weights_only=True)``)."""
        state: dict[str, Any] = {"state_version": STATE_VERSION}
        for entry in dataclasses.fields(self):
            if entry.name == "search":
                continue
            value = getattr(self, entry.name)
            if entry.name == "domain":
                value = domain_state(value)
            elif entry.name == "target" and value is not None:
                value = value.state_dict()
            elif entry.name in ("mean_share", "bins") and value is not None:
                value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            elif entry.name == "kernel" and value is not None:
                value = kernel_state(value)
            elif entry.name in ("derived", "coefficients"):
                value = {name: list(pair) for name, pair in value.items()}
            elif entry.name == "held":
                value = list(value)
            state[entry.name] = value
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any], kernel: Kernel | None = None) -> FitResult:
        """Rebuild a result from :meth:`state_dict`.

        Args:
            state: what ``state_dict`` gave.
            kernel: a kernel of the same structure, needed where the fit's kernel is not made of
                ``spatialdiff.kernels``; its values are replaced by the fitted ones.

        Raises:
            ValueError: for a state of another version or with missing entries, or where ``kernel`` is needed.
        """
        if state.get("state_version") != STATE_VERSION:
            raise ValueError(
                f"this is not a fit saved by version {STATE_VERSION}: state_version is "
                f"{state.get('state_version')!r}"
            )
        names = [f.name for f in dataclasses.fields(cls) if f.name != "search"]
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(f"the saved fit lacks {', '.join(missing)}")
        values = {name: state[name] for name in names}
        values["domain"] = domain_from_state(values["domain"])
        values["target"] = None if values["target"] is None else cls.from_state(values["target"], kernel)
        values["mean_share"] = MeanShare(**values["mean_share"])
        values["bins"] = None if values["bins"] is None else SpectrumBins(**values["bins"])
        values["kernel"] = None if values["kernel"] is None else kernel_from_state(values["kernel"], kernel)
        for name in ("derived", "coefficients"):
            values[name] = {key: (float(a), float(b)) for key, (a, b) in values[name].items()}
        values["held"] = tuple(values["held"])
        values["warnings"] = list(values["warnings"])
        return cls(**values)


def _describe(kernel: Kernel) -> str:
    parts = getattr(kernel, "kernels", None)
    if parts is None:
        base = getattr(kernel, "base_kernel", None)
        return type(kernel).__name__ + (f"({_describe(base)})" if base is not None else "")
    sign = " * " if "Product" in type(kernel).__name__ else " + "
    return "(" + sign.join(_describe(part) for part in parts) + ")"


def _share_text(share: MeanShare) -> str:
    if math.isnan(share.data):
        return f"model {share.model:.1%} (not to be estimated from these data)"
    text = f"data {share.data:.1%}, model {share.model:.1%}"
    if math.isfinite(share.low):
        text += f" (the model expects {share.low:.1%} to {share.high:.1%} in these data)"
    return text
