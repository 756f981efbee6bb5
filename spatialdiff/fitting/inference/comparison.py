r"""Several kernels fitted to the same data, ranked by an information criterion.

.. math:: \mathrm{AIC} = 2p - 2\hat\ell, \qquad \mathrm{BIC} = p\log n - 2\hat\ell, \qquad
          w_k = e^{-\Delta_k/2} \Big/ \sum_j e^{-\Delta_j/2}

with ``p`` parameters of kernel and mean, ``n`` values and :math:`\Delta_k` the difference to the smallest.
Only likelihoods of the same values are comparable: not an exact one with Whittle's, not restricted ones of
different means (whose contrasts differ), and not estimates whose Monte-Carlo error hides the difference.

Sources: Akaike 1974; Schwarz 1978; Burnham & Anderson 2002, section 2.9 (weights); Harville 1974.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel
from torch import Tensor

from spatialdiff.domains import Domain
from spatialdiff.fitting.result import FitResult, FitWarning
from spatialdiff.kernels import Coregionalization, Exponential, Matern

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CRITERIA = ("aic", "bic")
# differences below so many Monte-Carlo standard errors are noise
_SURE = 2.0


@dataclass(frozen=True)
class Row:
    """One line of a comparison; ``difference`` and ``weight`` are those of the criterion."""

    name: str
    log_likelihood: float
    parameters: int
    aic: float
    bic: float
    difference: float
    weight: float
    effective_range: float
    nugget_share: float
    converged: bool
    warnings: int


@dataclass(frozen=True)
class Comparison:
    """Fits of several kernels to the same data, the best one first; ``print`` it.

    Attributes:
        results: the fits by name, in order.
        criterion: "aic" or "bic".
        failed: what went wrong with kernels that could not be fitted, by name.
    """

    results: dict[str, FitResult]
    criterion: str
    failed: dict[str, str]

    @property
    def best(self) -> FitResult:
        """The fit with the smallest criterion."""
        return next(iter(self.results.values()))

    @property
    def table(self) -> list[Row]:
        """One row per kernel, the best one first."""
        values = [getattr(result, self.criterion) for result in self.results.values()]
        least = min(values)
        shares = [math.exp(-0.5 * (value - least)) for value in values]
        return [
            Row(
                name=name,
                log_likelihood=result.log_likelihood,
                parameters=round(result.aic / 2.0 + result.log_likelihood),
                aic=result.aic,
                bic=result.bic,
                difference=value - least,
                weight=share / sum(shares),
                effective_range=_effective_range(result),
                nugget_share=result.derived.get("nugget/sill", (0.0, 0.0))[0],
                converged=result.converged,
                warnings=len(result.warnings),
            )
            for (name, result), value, share in zip(self.results.items(), values, shares, strict=True)
        ]

    def __str__(self) -> str:
        width = max(map(len, [*self.results, *self.failed, "kernel"]))
        delta = f"Δ{self.criterion.upper()}"
        lines = [
            f"{'kernel':<{width}}  {'log-lik.':>11}  {'p':>3}  {'AIC':>11}  {'BIC':>11}  "
            f"{delta:>8}  {'weight':>6}  {'eff. range':>10}  {'nugget':>6}"
        ]
        for row in self.table:
            notes = [] if row.converged else ["NOT converged"]
            notes += [f"{row.warnings} warning{'s' * (row.warnings != 1)}"] if row.warnings else []
            lines.append(
                f"{row.name:<{width}}  {row.log_likelihood:>11.6g}  {row.parameters:>3}  {row.aic:>11.6g}  "
                f"{row.bic:>11.6g}  {row.difference:>8.2f}  {row.weight:>6.3f}  "
                f"{_shown(row.effective_range):>10}  {row.nugget_share:>6.1%}"
                + (f"  {', '.join(notes)}" if notes else "")
            )
        lines += [f"{name:<{width}}  failed: {text}" for name, text in self.failed.items()]
        return "\n".join(lines)

    def plot(self) -> Figure:
        """The empirical semivariances with those of every fit (where sites have coordinates), and the
        differences of the criterion."""
        from spatialdiff.fitting.inference.comparison_picture import plot_comparison

        return plot_comparison(self)


def compare(
    kernels: Mapping[str, Kernel | Coregionalization] | Iterable[Kernel | Coregionalization],
    fields: Tensor,
    domain: Domain,
    criterion: str = "aic",
    **options: Any,
) -> Comparison:
    """Fit several kernels to the same fields and rank them.

    Args:
        kernels: by name, or one after another (named by their families).
        fields: as in :func:`spatialdiff.fit`.
        domain: where they are.
        criterion: "aic" or "bic", which order the table.
        options: of :func:`spatialdiff.fit`, the same for all. ``fixed``, ``bounds`` and ``ties`` have to be
            names that every kernel has.

    Returns:
        A :class:`Comparison`: ``.best``, ``.table``, ``print`` and ``.plot()``.

    Raises:
        ValueError: fewer than two kernels, two of one name, an unknown criterion, and fits that cannot be
            compared: likelihoods of different kinds, Monte-Carlo errors that hide the difference.
        RuntimeError: where none of the kernels could be fitted.

    Warns:
        FitWarning: the warnings of the fits, each with the name of the kernel.
    """
    from spatialdiff.fitting.estimate import fit

    _check_criterion(criterion)
    named = _named(kernels)
    results: dict[str, FitResult] = {}
    failed: dict[str, str] = {}
    for name, kernel in named.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FitWarning)
            try:
                results[name] = fit(kernel, fields, domain, **options)
            except RuntimeError as error:
                failed[name] = str(error)
        for warning in caught:
            mine = issubclass(warning.category, FitWarning)
            text = f"{name}: {warning.message}" if mine else str(warning.message)
            warnings.warn(text, warning.category, stacklevel=2)
    for name, text in failed.items():
        warnings.warn(f"{name} could not be fitted: {text}", FitWarning, stacklevel=2)
    if not results:
        raise RuntimeError("none of the kernels could be fitted: " + "; ".join(failed.values()))
    return _ranked(results, criterion, failed)


def compare_fits(results: Mapping[str, FitResult], criterion: str = "aic") -> Comparison:
    """Rank fits that were made one by one, such as with different means.

    Args:
        results: by name; their data must be the same.
        criterion: "aic" or "bic".

    Raises:
        ValueError: fewer than two fits; see :func:`compare`; different data; restricted likelihoods (or those
            of fields about a mean per site) with different means.
    """
    _check_criterion(criterion)
    if len(results) < 2:
        raise ValueError(f"a comparison needs at least two fits, got {len(results)}")
    return _ranked(dict(results), criterion, {})


def _ranked(results: dict[str, FitResult], criterion: str, failed: dict[str, str]) -> Comparison:
    for (one, first), (other, second) in itertools.combinations(results.items(), 2):
        _check_comparable(one, first, other, second)
    order = sorted(results, key=lambda name: float(getattr(results[name], criterion)))
    for one, other in itertools.pairwise(order):
        _check_noise(one, results[one], other, results[other], criterion)
    return Comparison({name: results[name] for name in order}, criterion, failed)


def _check_criterion(criterion: str) -> None:
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")


def _check_comparable(one: str, first: FitResult, other: str, second: FitResult) -> None:
    """Raise ValueError unless two likelihoods are densities of the same values."""
    pair = f"{one} and {other} cannot be compared"
    for name, result in ((one, first), (other, second)):
        if not math.isfinite(result.log_likelihood):
            raise ValueError(
                f"{name} has no likelihood (method={result.method!r}): fit it by method='exact' or "
                "'vecchia', or compare fits by cross-validation"
            )
    if first.domain != second.domain or first.n_fields != second.n_fields:
        raise ValueError(
            f"{pair}: {first.n_fields} fields on {first.domain} are other data than {second.n_fields} on "
            f"{second.domain}"
        )
    kinds = [(r.method, r.reason.rpartition("; ")[2] if r.method != "exact" else "") for r in (first, second)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{pair}: one likelihood is {first.method} ({first.reason}), the other {second.method} "
            f"({second.reason}); fit both by the same method="
        )
    means = [_mean_of(result) for result in (first, second)]
    contrasts = [r.restricted or mean == ("field",) for r, mean in zip((first, second), means, strict=True)]
    if contrasts[0] != contrasts[1]:
        raise ValueError(f"{pair}: one likelihood is restricted and the other is not; fit both with the same")
    if contrasts[0] and means[0] != means[1]:
        raise ValueError(
            f"{pair}: restricted likelihoods of the means {means[0]} and {means[1]} are densities of "
            "different contrasts; fit with restricted=False to compare means"
        )
    _check_values(pair, first, second)


def _mean_of(result: FitResult) -> tuple[str, ...]:
    """What was estimated of the mean."""
    if result.search is not None:
        data = result.search.likelihood.data
        return tuple(data.design_names) or (data.mean_model,)
    return tuple(result.coefficients)


def _check_values(pair: str, first: FitResult, second: FitResult) -> None:
    if first.search is None or second.search is None:
        return
    one, other = (result.search.likelihood.data for result in (first, second) if result.search is not None)
    if one.n_values != other.n_values or one.has_channels != other.has_channels:
        raise ValueError(f"{pair}: one is fitted to {one.n_values} values and the other to {other.n_values}")
    whole = one.domain == one.given and other.domain == other.given
    if not whole or one.observed is not None or other.observed is not None:
        return
    originals = [
        (data.values if data.has_channels else data.values[:, 0]) + data.mean for data in (one, other)
    ]
    scale = float(originals[0].abs().amax())
    if not torch.allclose(originals[0], originals[1], rtol=0.0, atol=1e-8 * scale):
        raise ValueError(f"{pair}: they are fitted to different values")


def _check_noise(one: str, first: FitResult, other: str, second: FitResult, criterion: str) -> None:
    error = math.hypot(first.log_likelihood_error, second.log_likelihood_error)
    difference = 0.5 * abs(getattr(first, criterion) - getattr(second, criterion))
    if error > 0.0 and difference < _SURE * error:
        raise ValueError(
            f"{one} and {other} cannot be ranked: half their difference in {criterion.upper()} is "
            f"{difference:.2g}, and the Monte-Carlo standard error of the difference of log-likelihoods "
            f"{error:.2g}: use more probes, or an exact method"
        )


def _effective_range(result: FitResult) -> float:
    """The longest of the components' and axes'."""
    found = [
        value
        for name, (value, _) in result.derived.items()
        if name.rpartition(".")[2].startswith("effective_range")
    ]
    return max(found, default=math.nan)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _named(
    kernels: Mapping[str, Kernel | Coregionalization] | Iterable[Kernel | Coregionalization],
) -> dict[str, Kernel | Coregionalization]:
    if isinstance(kernels, Kernel | Coregionalization):
        raise TypeError(f"compare takes several kernels, got one {type(kernels).__name__}: use fit")
    if isinstance(kernels, Mapping):
        named = dict(kernels)
    else:
        named = {}
        for kernel in kernels:
            label = label_of(kernel)
            alike = sum(name == label or name.startswith(f"{label} (") for name in named)
            named[f"{label} ({alike + 1})" if alike else label] = kernel
    if len(named) < 2:
        raise ValueError(f"a comparison needs at least two kernels, got {len(named)}; use fit for one")
    return named


def label_of(kernel: Kernel | Coregionalization) -> str:
    """A short name of a kernel: its families, with fixed orders."""
    if isinstance(kernel, Coregionalization):
        return "Σ B ⊗ " + ", ".join(label_of(part) for part in kernel.kernels)
    if isinstance(kernel, AdditiveKernel | ProductKernel):
        sign = " + " if isinstance(kernel, AdditiveKernel) else " * "
        return sign.join(label_of(part) for part in kernel.kernels)
    if isinstance(kernel, Matern) and not isinstance(kernel, Exponential):
        return "Matern(ν)" if kernel.trainable_nu else f"Matern({kernel.nu:g})"
    inner = [part for part in kernel.children() if isinstance(part, Kernel)]
    nested = getattr(kernel, "kernels", None)
    inner = list(nested) if nested is not None else inner
    return type(kernel).__name__ + (f"({', '.join(map(label_of, inner))})" if inner else "")
