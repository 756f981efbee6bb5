r"""Replicated fields and their mean: what every likelihood starts from.

Fields :math:`x^{(1)}, \dots, x^{(N)}`, each with ``C`` channels at ``n`` sites, are written
:math:`x^{(i)} = \mu + e^{(i)}`, :math:`e^{(i)} \sim N(0, \Gamma)` independent. The mean :math:`\mu` is zero,
known, a linear model of the sites (:mod:`.mean`), or one number per channel and site; the last two are taken
off here by least squares, and the number of replicates that are left for the covariance is

==================  ===========================  ===========================
mean                at the domain mean (k = 0)   everywhere else
==================  ===========================  ===========================
none, known         N                            N
a linear model      N - 1                        N
``field``           N - 1                        N - 1
==================  ===========================  ===========================

The linear model's generalised-least-squares coefficients are profiled out by the likelihoods.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spatialdiff.domains import Domain, Grid, Points
from spatialdiff.fitting.given import check_variation, checked, observed_entries, restrict
from spatialdiff.fitting.mean import Design, Mean, is_known, make_design


@dataclass(frozen=True)
class Observations:
    """Centred replicates.

    Attributes:
        domain: where values are; where the same sites are missing in all fields it is what is left.
        given: the caller's domain.
        values: centred fields ``(N, C, *domain.shape)``, float64, on the CPU, 0 where nothing was observed.
        observed: bool of the same shape, ``None`` where every site of ``domain`` has a value.
        mean: what was taken off; broadcasts to one field of the caller's layout and domain.
        mean_model: "none", "known", "constant", "linear", "covariates", "function" or "field".
        design: the linear model on the sites of ``domain``, ``given_design`` on those of ``given``.
        ordinary: its least-squares coefficients, ``(C, q)``.
        has_channels: whether the caller's fields have a channel axis.
        count: replicates that carry information on the covariance; ``count_at_zero``: on the domain mean.
        resolution: relative rounding of the data.
    """

    domain: Domain
    given: Domain
    values: Tensor
    observed: Tensor | None
    mean: Tensor
    mean_model: str
    linear: Design | None
    given_linear: Design | None
    ordinary: Tensor | None
    has_channels: bool
    count: int
    count_at_zero: int
    resolution: float

    @property
    def grid(self) -> Grid:
        """The domain, where it is a regular grid.

        Raises:
            TypeError: it is not.
        """
        if not isinstance(self.domain, Grid):
            raise TypeError(f"this needs fields on a whole regular grid, got {self.domain}")
        return self.domain

    @property
    def design(self) -> Tensor | None:
        """Columns of the linear model of the mean, ``(n, q)``, orthonormal up to ``√n`` on ``given``."""
        return None if self.linear is None else self.linear.columns

    @property
    def design_names(self) -> tuple[str, ...]:
        """Names of the coefficients that are reported."""
        return () if self.linear is None else self.linear.names

    @property
    def total(self) -> int:
        """Number ``N`` of fields given."""
        return self.values.shape[0]

    @property
    def channels(self) -> int:
        """Number ``C`` of channels (1 where the fields have no channel axis)."""
        return self.values.shape[1]

    @property
    def covariance_channels(self) -> int | None:
        """The ``channels`` argument of a covariance for these fields: none for a single channel, so that it
        broadcasts."""
        return self.channels if self.channels > 1 else None

    @property
    def n_values(self) -> int:
        """Number of observed values, ``N C n`` where none is missing."""
        if self.observed is not None:
            return int(self.domain.flatten(self.observed).sum())
        return self.total * self.channels * self.flat().shape[-1]

    @property
    def mean_parameters(self) -> int:
        """Number of mean parameters that were estimated and count in AIC and BIC."""
        return 0 if self.linear is None else self.linear.number * self.channels

    def flat(self) -> Tensor:
        """Centred values at ``domain.sites()``, ``(N, C, n)``."""
        return self.domain.flatten(self.values)

    def flat_observed(self) -> Tensor | None:
        """``observed`` at ``domain.sites()``, ``(N, C, n)``."""
        return None if self.observed is None else self.domain.flatten(self.observed)

    def variance(self) -> Tensor:
        """Variance of each channel about the mean, averaged over sites, shape ``(C,)``."""
        squares, seen = self.flat().square().sum(dim=(0, 2)), self.flat_observed()
        number = self.total * self.flat().shape[-1] if seen is None else seen.sum(dim=(0, 2)).double()
        return squares / number * self.total / self.count

    def domain_means(self) -> Tensor:
        """Mean of each centred field over its observed sites, shape ``(N, C)``."""
        seen = self.flat_observed()
        if seen is None:
            return self.flat().mean(-1)
        return self.flat().sum(-1) / seen.sum(-1).clamp(min=1)

    def some(self, number: int, seed: int = 0) -> Observations:
        """The same fields at ``number`` of the sites, drawn at random, as scattered points."""
        n = self.flat().shape[-1]
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:number].sort().values
        points = Points(self.domain.sites()[rows])
        linear = None if self.linear is None else self.linear.at(rows)
        return replace(
            self,
            domain=points,
            given=points,
            values=self.flat()[..., rows],
            linear=linear,
            given_linear=linear,
        )

    def mean_field(self, added: Tensor | None) -> Tensor:
        """The mean with ``added`` coefficients ``(C, q)`` of the design on top of the ordinary ones, in the
        caller's layout."""
        if added is None or self.given_linear is None:
            return self.mean
        assert self.ordinary is not None
        return _field(self.ordinary + added, self.given_linear, self.given, self.has_channels)

    def natural_coefficients(self, added: Tensor | None) -> Tensor | None:
        """Coefficients ``(C, q)`` of the columns as they were given."""
        if self.linear is None or self.ordinary is None:
            return None
        total = self.ordinary if added is None else self.ordinary + added
        return total @ self.linear.transform.T


def observe(fields: Tensor, domain: Domain, mean: Mean = "constant", missing: str = "raise") -> Observations:
    """Check ``fields``, take their mean off, and say what is left to estimate a covariance from.

    Args:
        fields: ``(N, *domain.shape)``, ``(N, C, *domain.shape)``, or one field ``domain.shape``.
        domain: where the fields are; masked cells are ignored.
        mean: ``None`` (zero), ``"constant"`` (one number per channel), ``"linear"`` (also in the
            coordinates), ``"field"`` (one number per channel and site), a tensor that broadcasts to one field
            (known), covariates ``(*domain.shape, q)``, or a function of coordinates ``(n, d) → (n, q)``.
        missing: ``"raise"``, or ``"omit"``: NaN is a value that was not observed.

    Raises:
        TypeError: for fields that are not a floating-point tensor.
        ValueError: for a wrong shape, no data, missing values, constant fields, too few fields or sites for
            the mean, or a mean that cannot be told from what was observed.
    """
    values = checked(fields, domain)
    has_channels = fields.ndim == domain.ndim + 2
    event = tuple(values.shape[1:]) if has_channels else tuple(domain.shape)
    known = is_known(mean, domain, event)
    given, observed = domain, observed_entries(values, domain, missing)
    rows = torch.arange(given.flatten(values[0, 0]).shape[-1])
    if observed is not None:
        pattern = given.flatten(observed[0, 0])
        values, domain, observed = restrict(values, domain, observed)
        if observed is None:
            rows = rows[pattern]
    total = values.shape[0]
    count = count_at_zero = total
    linear = given_linear = None
    ordinary = None
    offset = torch.zeros((), dtype=torch.float64)
    flat = domain.flatten(values)
    seen = None if observed is None else domain.flatten(observed)
    if known:
        assert isinstance(mean, Tensor)
        model, offset = "known", mean.detach().to(device="cpu", dtype=torch.float64)
        full = given.flatten(torch.broadcast_to(offset, event))
        flat = flat - (full if has_channels else full.unsqueeze(0))[..., rows]
    elif mean is None:
        model = "none"
    elif isinstance(mean, str) and mean == "field":
        model = "field"
        if total < 2:
            raise ValueError(
                "mean='field' estimates one mean per site and leaves nothing of a single field: give at "
                "least two fields, or use mean='constant'"
            )
        if observed is not None:
            raise ValueError(
                "mean='field' with values missing at different sites in different fields leaves each site "
                "another number of replicates: use mean='constant' or a linear model, or fill them first"
            )
        estimate = flat.mean(dim=0)
        flat, count, count_at_zero = flat - estimate, total - 1, total - 1
        whole = torch.zeros(len(estimate), given.flatten(fields).shape[-1], dtype=torch.float64)
        whole[:, rows] = estimate
        offset = given.unflatten(whole if has_channels else whole[0])
    else:
        given_linear = make_design(mean, given)
        model, linear = given_linear.model, given_linear.at(rows)
        ordinary = _least_squares(flat, linear, seen)
        flat = flat - (linear.columns @ ordinary.T).T
        offset, count_at_zero = _field(ordinary, given_linear, given, has_channels), total - 1
    if seen is not None:
        flat = torch.where(seen, flat, 0.0)
    check_variation(flat, seen, float(values.abs().amax()), has_channels)
    resolution = torch.finfo(fields.dtype).eps
    return Observations(
        domain=domain,
        given=given,
        values=domain.unflatten(flat),
        observed=observed,
        mean=offset,
        mean_model=model,
        linear=linear,
        given_linear=given_linear,
        ordinary=ordinary,
        has_channels=has_channels,
        count=count,
        count_at_zero=count_at_zero,
        resolution=resolution,
    )


def _least_squares(flat: Tensor, design: Design, seen: Tensor | None) -> Tensor:
    """Ordinary coefficients ``(C, q)``, all fields together, of what was observed."""
    columns = design.columns
    if seen is None:
        solution: Tensor = torch.linalg.lstsq(columns, flat.mean(dim=0).T).solution
        return solution.T
    found = []
    for channel in range(flat.shape[1]):
        weight = seen[:, channel].sum(dim=0).double()
        gram = columns.T @ (weight[:, None] * columns)
        if float(torch.linalg.eigvalsh(gram)[0]) < 1e-10 * float(weight.sum()):
            raise ValueError(
                f"the mean with coefficients {', '.join(design.names)} cannot be told from the sites that "
                f"are observed in channel {channel}: use a simpler mean"
            )
        found.append(torch.linalg.solve(gram, columns.T @ flat[:, channel].sum(dim=0)))
    return torch.stack(found)


def _field(coefficients: Tensor, design: Design, domain: Domain, has_channels: bool) -> Tensor:
    if design.model == "constant":
        return coefficients.reshape(-1, *(1,) * domain.ndim) if has_channels else coefficients.reshape(())
    whole = domain.unflatten((design.columns @ coefficients.T).T)
    return whole if has_channels else whole[0]
