r"""Kriging: a field given observations of it, ``y = x(s) + e``, ``x ~ GP(f(s)ᵀβ, k)``, ``e ~ N(0, ν)``.

The best linear unbiased predictor and its variance (`spatialdiff.conditioning.system`), at sites, on any
domain, or averaged over blocks; and draws from the conditional law. A kernel's own nugget is part of the
field: a target at a datum without noise has its value, exactly, and variance 0. Measurement error is
``noise``.

Sources: Chilès & Delfiner 2012, Geostatistics, chapters 3, 5 and 7; Cressie 1993, chapter 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.conditioning.blocks import block_nodes
from spatialdiff.conditioning.conditional import ConditionalCovariance
from spatialdiff.conditioning.drift import Drift, DriftModel
from spatialdiff.conditioning.law import Law, twins
from spatialdiff.conditioning.messages import warn_of_degrees, warn_of_extrapolation
from spatialdiff.conditioning.neighbourhoods import local_kriging
from spatialdiff.conditioning.observed import Observed, observed
from spatialdiff.conditioning.system import DenseSystem
from spatialdiff.conditioning.vecchia_prediction import VecchiaPrediction
from spatialdiff.domains import Domain, MaskedGrid, Points
from spatialdiff.fitting import FitResult
from spatialdiff.kernels import Chordal, Coregionalization, SphericalKernel

METHODS = ("auto", "dense", "local", "vecchia")
_AUTO_DENSE = 5000
_MOST_DENSE = 20_000
_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Prediction:
    """Kriging mean and variance, ``targets.shape`` with the batch or the channels of the data in front; NaN
    in masked cells. Unpacks as ``mean, variance``.
    """

    mean: Tensor
    variance: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        yield self.mean
        yield self.variance

    @property
    def standard_deviation(self) -> Tensor:
        """Square root of the variance."""
        return self.variance.sqrt()


class Kriging:
    """A field given observations.

    Args:
        kernel: any gpytorch kernel, in the length unit of the sites; a `Coregionalization` for co-kriging of
            channels; or the result of a fit.
        points: where the observations are: a domain, or coordinates ``(n, d)``.
        values: ``points.shape``, or several data sets ``(..., *points.shape)``; for a `Coregionalization`
            ``(..., C, *points.shape)``.
        drift: the mean: None or a number (simple kriging), "constant" (ordinary), "linear", "quadratic"
            (universal), a function of coordinates, or covariates ``(n, q)`` at the observations (external
            drift).
        noise: variance of the measurement errors, squared units of the field; one number, or one per
            observation.
        method: "dense" (all observations together), "local" (the nearest ``neighbors`` of each target),
            "vecchia" (a joint approximation), or "auto": dense up to 5000 observations, then local.
        neighbors: of "local" and "vecchia"; default 30.
        missing: "raise", or "omit": NaN is a value that was not observed.

    Raises:
        ValueError: shapes that do not fit; NaN; constant coordinates for a trend, fewer observations than
            drift functions; two observations at one place without noise or nugget; negative noise; a
            covariance that is singular.
        TypeError: something that is no kernel.

    Warns:
        KrigingWarning: coordinates in degrees given to a planar kernel.
    """

    def __init__(
        self,
        kernel: Kernel | Coregionalization | FitResult,
        points: Domain | Tensor,
        values: Tensor,
        drift: Drift = "constant",
        noise: float | Tensor = 0.0,
        *,
        method: str = "auto",
        neighbors: int | None = None,
        missing: str = "raise",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if isinstance(kernel, FitResult):
            if kernel.kernel is None:
                raise ValueError(
                    f"the fit by {kernel.method!r} has no kernel, which kriging between its sites needs"
                )
            kernel = kernel.kernel
        self.law = Law(kernel)
        domain = points if isinstance(points, Domain) else Points(points)
        found: Observed = observed(domain, values, noise, missing, self.law)
        self.sites, self.place, self.channel = found.sites, found.place, found.channel
        self.values, self.noise = found.values, found.noise
        self.drift = DriftModel(_kept(drift, found), self.sites)
        self.method = _method(method, len(self.place), self.law, self.values)
        if neighbors is not None and self.method == "dense":
            raise ValueError("neighbors= belongs to method='local' and 'vecchia'; name the method")
        self.neighbors = 30 if neighbors is None else neighbors
        warn_of_degrees(self.sites, _planar(kernel))
        self._dense: DenseSystem | None = None
        if self.method == "dense":
            self._dense = self._factorise()

    # ---- the equations of all observations
    def _factorise(self) -> DenseSystem:
        covariance = self.law.observed(self.sites, self.place, self.channel)
        covariance.diagonal().add_(self.noise)
        rows = self.spread(self.drift.columns)[self.place, self.channel]
        return DenseSystem(covariance, rows, self.values - self.drift.mean)

    @property
    def dense(self) -> DenseSystem:
        """The factorised equations.

        Raises:
            ValueError: more than 20,000 observations.
        """
        if self._dense is None:
            if len(self.place) > _MOST_DENSE:
                raise ValueError(
                    f"this needs the equations of all {len(self.place)} observations together; the limit is "
                    f"{_MOST_DENSE}: use method='vecchia' to simulate, or predict"
                )
            self._dense = self._factorise()
        return self._dense

    @property
    def coefficients(self) -> Tensor:
        """Generalised-least-squares ``β̂``, ``(..., C q)``, of the drift's functions; those of powers are of
        coordinates centred and scaled by the observations'."""
        return self.dense.coefficients

    @property
    def coefficient_covariance(self) -> Tensor:
        """Covariance of `coefficients`."""
        return self.dense.coefficient_covariance

    def spread(self, drift: Tensor) -> Tensor:
        """Drift functions ``(t, q)`` as those of every channel, ``(t, C, C q)``: each has its own ``β``."""
        count = self.law.count
        if count == 1:
            return drift.unsqueeze(1)
        eye = torch.eye(count, dtype=torch.float64)
        return torch.einsum("tq,ab->tabq", drift, eye).flatten(2)

    def cross(self, targets: Tensor) -> Tensor:
        """Covariance of the channels at ``targets`` with the observations, ``(t, C, m)``."""
        twin = twins(targets, self.sites)
        return self.law.cross(targets, twin, self.sites, self.place, self.channel)

    # ---- predictions
    def predict(
        self,
        targets: Domain | Tensor,
        *,
        drift: Tensor | None = None,
        block: float | Sequence[float] | None = None,
        nodes: int = 4,
    ) -> Prediction:
        """The kriging mean and variance of the field at ``targets``.

        Args:
            targets: a domain, or coordinates ``(t, d)``.
            drift: covariates of an external drift at the targets, ``(*targets.shape, q)``.
            block: sides of blocks centred on the targets, one number or one per axis: predict their
                averages. The nugget averages out.
            nodes: Gauss–Legendre nodes per axis of a block.

        Raises:
            ValueError: coordinates of another dimension; an external drift without its values at the
                targets; blocks with another method than "dense".

        Warns:
            KrigingWarning: targets outside the box of the observations.
        """
        domain, columns = self._targets(targets, drift)
        sites = domain.sites()
        warn_of_extrapolation(sites, self.sites)
        if self.method == "dense":
            mean, variance = self._predict_dense(sites, columns, block, nodes)
        elif block is not None:
            raise ValueError("blocks need all observations together: method='dense'")
        elif self.method == "local":
            mean, variance = self._predict_local(sites, columns)
        else:
            joint = self._vecchia(sites, columns)
            mean, variance = joint.mean() + self.drift.mean, joint.variance()
        return Prediction(self._field(mean, domain), self._field(variance, domain))

    def _predict_dense(
        self, sites: Tensor, columns: Tensor, block: float | Sequence[float] | None, nodes: int
    ) -> tuple[Tensor, Tensor]:
        """Mean ``(..., C, t)`` and variance ``(C, t)``, or without channels ``(..., t)`` and ``(t,)``."""
        shifts, weights = block_nodes(block, nodes, sites.shape[1])
        size = max(1, _ENTRIES // (max(len(self.place), 1) * self.law.count * len(weights)))
        means, variances = [], []
        for begin in range(0, len(sites), size):
            part, rows = sites[begin : begin + size], columns[begin : begin + size]
            cross, own, rows = self._averaged(part, rows, shifts, weights, block is not None)
            count, channels, _ = cross.shape
            spread = self.spread(rows)
            mean = self.dense.mean(cross.flatten(0, 1), spread.flatten(0, 1)) + self.drift.mean
            white, rest = self.dense.project(cross.flatten(0, 1), spread.flatten(0, 1))
            change = (white.square().sum(0) - rest.square().sum(0)).reshape(count, channels)
            variance = (own.diagonal(dim1=-2, dim2=-1) - change).clamp(min=0.0)
            means.append(mean.unflatten(-1, (count, channels)).mT)
            variances.append(variance.T)
        mean, variance = torch.cat(means, dim=-1), torch.cat(variances, dim=-1)
        # rounding leaves a trace of the variance at a datum
        exact = self._known(sites) if block is None else torch.zeros_like(variance, dtype=torch.bool)
        variance = torch.where(exact, 0.0, variance)
        return (mean, variance) if self.law.channels is not None else (mean.squeeze(-2), variance.squeeze(0))

    def _averaged(
        self, sites: Tensor, columns: Tensor, shifts: Tensor, weights: Tensor, block: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances with the observations ``(t, C, m)``, own ``(t, C, C)`` and drift ``(t, q)``."""
        if not block:
            return self.cross(sites), self.law.variance(sites), columns
        points = sites.unsqueeze(1) + shifts
        flat = points.flatten(0, 1)
        none = torch.full((len(flat),), -1)
        cross = self.law.cross(flat, none, self.sites, self.place, self.channel)
        cross = torch.einsum("n,tncm->tcm", weights, cross.unflatten(0, (len(sites), -1)))
        between = self.law.between(points.unsqueeze(2), points.unsqueeze(1))
        own = torch.einsum("a,b,tabcd->tcd", weights, weights, between)
        if self.drift.function is not None or self.drift.degree > 1:
            columns = self.drift.at(flat).unflatten(0, (len(sites), -1))
            columns = torch.einsum("n,tnq->tq", weights, columns)
        return cross, own, columns

    def _known(self, sites: Tensor) -> Tensor:
        """Which channels of each target were observed without error, ``(C, t)``."""
        twin = twins(sites, self.sites)
        known = torch.zeros(self.law.count, len(self.sites) + 1, dtype=torch.bool)
        exact = self.noise == 0
        known[self.channel[exact], self.place[exact]] = True
        return known[:, twin]

    def _predict_local(self, sites: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        own, at = self._designs(columns)
        mean, variance = local_kriging(
            self.law.kernel,
            self.sites,
            self.values - self.drift.mean,
            sites,
            neighbors=min(self.neighbors, len(self.place)),
            design=own,
            target_design=at,
            noise=self.noise,
        )
        return mean + self.drift.mean, variance

    def _vecchia(self, sites: Tensor, columns: Tensor) -> VecchiaPrediction:
        own, at = self._designs(columns)
        if self.values.ndim > 1:
            raise ValueError("method='vecchia' takes one data set at a time, values of shape points.shape")
        return VecchiaPrediction(
            self.law.kernel,
            self.sites,
            self.values - self.drift.mean,
            sites,
            design=own,
            target_design=at,
            noise=self.noise,
            neighbors=self.neighbors,
        )

    def _designs(self, columns: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.drift.number == 0:
            return None, None
        return self.drift.columns, columns

    def predictor(self, values: Tensor, domain: Domain, columns: Tensor) -> Tensor:
        """The kriging mean on ``domain`` from other ``values`` ``(..., m)`` at the observations, 0 in masked
        cells; a known mean is not added."""
        sites = domain.sites()
        size = max(1, _ENTRIES // (max(len(self.place), 1) * self.law.count))
        parts = []
        for begin in range(0, len(sites), size):
            cross = self.cross(sites[begin : begin + size])
            spread = self.spread(columns[begin : begin + size])
            mean = self.dense.mean(cross.flatten(0, 1), spread.flatten(0, 1), values)
            parts.append(mean.unflatten(-1, cross.shape[:2]).mT)
        field = domain.unflatten(torch.cat(parts, dim=-1))
        return field if self.law.channels is not None else field.squeeze(-domain.ndim - 1)

    def variance_at(self, domain: Domain, columns: Tensor) -> Tensor:
        """The kriging variance on ``domain``, ``(*shape)`` or ``(C, *shape)``; of a masked grid at its valid
        cells."""
        _, variance = self._predict_dense(domain.sites(), columns, None, 1)
        return variance if isinstance(domain, MaskedGrid) else domain.unflatten(variance)

    # ---- draws
    def covariance(self, targets: Domain | Tensor, *, drift: Tensor | None = None) -> ConditionalCovariance:
        """The kriging covariance on ``targets`` as a Γ, such as the noise of a bridge from the kriged field.

        Args:
            targets: a domain, or coordinates ``(t, d)``.
            drift: covariates of an external drift at the targets.
        """
        domain, columns = self._targets(targets, drift)
        return ConditionalCovariance(self, domain, columns)

    def simulate(
        self,
        n: int,
        targets: Domain | Tensor,
        *,
        drift: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``n`` fields from the conditional law, jointly right at all targets (Matheron's rule): ``(n,
        *targets.shape)`` with the batch or channels of the data after ``n``, float64; NaN in masked cells.

        Args:
            n: how many.
            targets: a domain, or coordinates ``(t, d)``; grids are drawn by FFT jointly with observations
                that lie between their cells.
            drift: covariates of an external drift at the targets.
            generator: of the white noise.
        """
        domain, columns = self._targets(targets, drift)
        warn_of_extrapolation(domain.sites(), self.sites)
        if self.method == "vecchia":
            drawn = self._vecchia(domain.sites(), columns).simulate(n, generator=generator)
            return self._field(drawn + self.drift.mean, domain)
        mean = self.predictor(self.values - self.drift.mean, domain, columns) + self.drift.mean
        batch = self.values.shape[:-1]
        gamma = ConditionalCovariance(self, domain, columns).double()
        drawn = mean + gamma.sample((n, *batch), generator=generator)
        return domain.fill(drawn) if isinstance(domain, MaskedGrid) else drawn

    # ---- shapes
    def _targets(self, targets: Domain | Tensor, drift: Tensor | None) -> tuple[Domain, Tensor]:
        """The domain and the drift functions at its sites ``(t, q)``."""
        domain = targets if isinstance(targets, Domain) else Points(targets)
        if domain.dimension != self.sites.shape[1]:
            raise ValueError(
                f"the targets have {domain.dimension} coordinates and the observations {self.sites.shape[1]}"
            )
        if drift is not None and not self.drift.needs_covariates:
            raise ValueError("drift= at the targets is for covariates given at the observations as well")
        flat = None
        if drift is not None:
            given = torch.as_tensor(drift)
            given = given.unsqueeze(-1) if given.ndim == domain.ndim else given
            if tuple(given.shape[:-1]) != tuple(domain.shape):
                raise ValueError(
                    f"drift= at the targets needs shape (*{tuple(domain.shape)}, q), got {tuple(drift.shape)}"
                )
            flat = domain.flatten(given.movedim(-1, 0)).T
        return domain, self.drift.at(domain.sites(), flat)

    def _field(self, values: Tensor, domain: Domain) -> Tensor:
        field = domain.unflatten(values)
        return domain.fill(field) if isinstance(domain, MaskedGrid) else field

    def __repr__(self) -> str:
        return (
            f"Kriging({len(self.place)} observations at {len(self.sites)} sites, {self.drift.number} drift "
            f"functions, method={self.method!r})"
        )


def _method(method: str, number: int, law: Law, values: Tensor) -> str:
    if method == "auto":
        return "dense" if number <= _AUTO_DENSE or law.channels is not None else "local"
    if method != "dense" and law.channels is not None:
        raise ValueError(f"co-kriging takes all observations together: method='dense', got {method!r}")
    if method == "dense" and number > _MOST_DENSE:
        raise ValueError(
            f"method='dense' factorises the covariance of {number} observations; the limit is {_MOST_DENSE}: "
            "use method='local' or 'vecchia'"
        )
    return method


def _kept(drift: Drift, found: Observed) -> Drift:
    """Covariates at those sites that have an observation."""
    if not isinstance(drift, Tensor) or drift.ndim == 0:
        return drift
    return found.rows(drift)


def _planar(kernel: Kernel | Coregionalization) -> bool:
    return not any(isinstance(part, Chordal | SphericalKernel) for part in kernel.modules())
