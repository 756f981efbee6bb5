r"""Kriging: a field given observations of it, ``y = x(s) + e``, ``x ~ GP(f(s)ᵀβ, k)``, ``e ~ N(0, ν)``.

The best linear unbiased predictor and its variance (`spatialdiff.conditioning.system`), at sites, on any
domain, or averaged over blocks; and draws from the conditional law. A kernel's own nugget is part of the
field, a microscale variation: a target at a datum without noise has its value, exactly, and variance 0, and
the variance elsewhere holds the nugget. Measurement error is ``noise``: it is no part of what is predicted,
so that a new observation has the kriging variance and that of its own error.

Sources: Chilès & Delfiner 2012, Geostatistics, chapters 3, 5 and 7; Cressie 1993, chapter 3.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.conditioning.approximate import MOST_DENSE, chosen, predict_local, vecchia
from spatialdiff.conditioning.conditional import ConditionalCovariance
from spatialdiff.conditioning.drift import Drift, DriftModel
from spatialdiff.conditioning.law import Law, same_torus, torus_of, twins
from spatialdiff.conditioning.messages import warn_of_constants, warn_of_degrees, warn_of_extrapolation
from spatialdiff.conditioning.observed import Observed, observed
from spatialdiff.conditioning.prediction import Prediction, predict_dense, predictor
from spatialdiff.conditioning.system import DenseSystem
from spatialdiff.domains import Domain, MaskedGrid, Points
from spatialdiff.fitting import FitResult
from spatialdiff.kernels import Chordal, Coregionalization, SphericalKernel


class Kriging:
    """A field given observations.

    Args:
        kernel: any gpytorch kernel, in the length unit of the sites; a `Coregionalization` for co-kriging of
            channels; or the result of a fit.
        points: where the observations are: a domain, or coordinates ``(n, d)``. Distances wrap around on the
            periodic axes of a `Grid`, of the observations or of the targets; they go through space between
            the sites of a sphere or a mesh (kernels of ``d = 3`` coordinates, or of the sphere).
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
        KrigingWarning: coordinates in degrees given to a planar kernel; at a prediction, values that are all
            equal.
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
        if isinstance(kernel, FitResult):
            if kernel.kernel is None:
                raise ValueError(
                    f"the fit by {kernel.method!r} has no kernel, which kriging between its sites needs"
                )
            kernel = kernel.kernel
        domain = points if isinstance(points, Domain) else Points(points)
        self.law = Law(kernel, torus_of(domain))
        found: Observed = observed(domain, values, noise, missing, self.law)
        self.sites, self.place, self.channel = found.sites, found.place, found.channel
        self.values, self.noise = found.values, found.noise
        self.drift = DriftModel(_kept(drift, found), self.sites)
        self.method = chosen(method, len(self.place), self.law)
        if neighbors is not None and self.method == "dense":
            raise ValueError("neighbors= belongs to method='local' and 'vecchia'; name the method")
        self.neighbors = 30 if neighbors is None else neighbors
        warn_of_degrees(self.sites, _planar(kernel))
        self._dense: DenseSystem | None = None
        self._around: Kriging | None = None
        self._check_torus()
        if self.method == "dense":
            self._dense = self._factorise()

    # ---- periodic axes
    def _check_torus(self) -> None:
        if self.law.torus is None:
            return
        chosen(self.method, len(self.place), self.law)
        if self.drift.degree > 0:
            raise ValueError("a drift in powers of the coordinates does not close on a periodic axis")
        self.sites = self.law.wrap(self.sites)

    def _on(self, domain: Domain) -> Kriging:
        """This, or on a periodic grid the same from observations whose distances wrap around."""
        torus = torus_of(domain)
        if torus is None or (self.law.torus is not None and same_torus(torus, self.law.torus)):
            return self
        if self.law.torus is not None:
            raise ValueError(f"the observations are on a torus, {self.law.torus}, and the targets on {torus}")
        if self._around is None or not same_torus(torus, self._around.law.torus):
            around = copy.copy(self)
            around.law, around._dense = Law(self.law.kernel, torus), None
            around._check_torus()
            self._around = around
        return self._around

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
            if len(self.place) > MOST_DENSE:
                raise ValueError(
                    f"this needs the equations of all {len(self.place)} observations together; the limit is "
                    f"{MOST_DENSE}: use method='vecchia' to simulate, or predict"
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

    def twins(self, targets: Tensor) -> Tensor:
        """Which of `sites` each target is on, -1 for none, ``(t,)``."""
        return twins(self.law.wrap(targets), self.sites)

    def cross(self, targets: Tensor, twin: Tensor) -> Tensor:
        """Covariance of the channels at ``targets`` with the observations, ``(t, C, m)``."""
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
            KrigingWarning: targets outside the box of the observations; observations that are all equal.
        """
        domain, columns = self._targets(targets, drift)
        sites = domain.sites()
        warn_of_constants(self.values)
        warn_of_extrapolation(sites, self.sites, torus_of(domain) or self.law.torus)
        around = self._on(domain)
        if self.method == "dense":
            mean, variance = predict_dense(around, sites, columns, block, nodes)
        elif block is not None:
            raise ValueError("blocks need all observations together: method='dense'")
        elif self.method == "local":
            mean, variance = predict_local(self, sites, columns)
        else:
            joint = vecchia(self, sites, columns)
            mean, variance = joint.mean() + self.drift.mean, joint.variance()
        return Prediction(self._field(mean, domain), self._field(variance, domain))

    # ---- draws
    def covariance(self, targets: Domain | Tensor, *, drift: Tensor | None = None) -> ConditionalCovariance:
        """The kriging covariance on ``targets`` as a Γ, such as the noise of a bridge from the kriged field.

        Args:
            targets: a domain, or coordinates ``(t, d)``.
            drift: covariates of an external drift at the targets.
        """
        domain, columns = self._targets(targets, drift)
        return ConditionalCovariance(self._on(domain), domain, columns)

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
        around, batch = self._on(domain), self.values.shape[:-1]
        warn_of_constants(self.values)
        warn_of_extrapolation(domain.sites(), self.sites, torus_of(domain) or self.law.torus)
        if self.method == "vecchia":
            drawn = vecchia(self, domain.sites(), columns).simulate(n, generator=generator)
            return self._field(drawn + self.drift.mean, domain)
        mean = predictor(around, self.values - self.drift.mean, domain, columns) + self.drift.mean
        gamma = ConditionalCovariance(around, domain, columns).double()
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


def _kept(drift: Drift, found: Observed) -> Drift:
    """Covariates at those sites that have an observation."""
    if not isinstance(drift, Tensor) or drift.ndim == 0:
        return drift
    return found.rows(drift)


def _planar(kernel: Kernel | Coregionalization) -> bool:
    return not any(isinstance(part, Chordal | SphericalKernel) for part in kernel.modules())
