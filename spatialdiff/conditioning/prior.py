r"""Joint draws of a field at targets and at the places of observations, as a linear map of white noise.

A grid and scattered places go together by FFT (`spatialdiff.conditioning.offgrid`), any other domain by the
root of the joint covariance. Channels are mixtures, ``x_c = Σ_q Σ_r L_q[c, r] w_qr`` with independent fields
``w_qr`` of covariance ``k_q`` [linear model of coregionalisation].
"""

from __future__ import annotations

from typing import Protocol

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.conditioning.law import Law, same_torus, torus_of
from spatialdiff.conditioning.offgrid import OffGridPrior
from spatialdiff.domains import Domain, Grid, MaskedGrid
from spatialdiff.kernels import Coregionalization

MOST_DENSE = 6000


class OneField(Protocol):
    """The law of one field at targets and places."""

    factor_size: int

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """White noise ``(..., factor_size)`` → the field ``(..., *domain.shape)`` and the values ``(...,
        p)``."""
        ...


class DensePrior:
    """The law of a field on any domain and at places, by the root of the joint covariance.

    Args:
        kernel: any gpytorch kernel.
        domain: of the targets.
        places: ``(p, d)``.
        torus: see `Law`.

    Raises:
        ValueError: more than 6000 different sites.
    """

    def __init__(self, kernel: Kernel, domain: Domain, places: Tensor, torus: Grid | None = None) -> None:
        self.domain, law = domain, Law(kernel, torus)
        targets = domain.sites()
        t = len(targets)
        unique, group = torch.unique(law.wrap(torch.cat((targets, places))), dim=0, return_inverse=True)
        n = len(unique)
        if n > MOST_DENSE:
            raise ValueError(
                f"joint draws at {n} sites that are no grid factorise a matrix of that size; the limit is "
                f"{MOST_DENSE}: use method='vecchia', a Grid as target, or fewer targets"
            )
        self.nugget = float(law.nugget)
        self._targets, self._places = group[:t], group[t:]
        gamma = law.between(unique.unsqueeze(-2), unique.unsqueeze(-3))[..., 0, 0]
        self.root = _root(gamma) if law.terms else gamma
        # a target shares the nugget of the first observation on it
        order = torch.arange(len(places))
        first = torch.full((n,), len(places)).scatter_reduce(0, self._places, order, "amin")
        self._own = torch.where(first[self._places] == order, self._places, n + order)
        self.factor_size = n + (n + len(places) if self.nugget else 0)

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.root)
        values = white[..., :n].double() @ self.root.T
        field, observed = values[..., self._targets], values[..., self._places]
        if self.nugget:
            rough = self.nugget**0.5 * white[..., n:].double()
            field, observed = field + rough[..., self._targets], observed + rough[..., self._own]
        return self.domain.unflatten(field), observed


def _root(gamma: Tensor) -> Tensor:
    """``R`` with ``R Rᵀ = Γ``; a smooth kernel's matrix is singular to working precision, where the
    eigenvalues at rounding are 0."""
    factor, info = torch.linalg.cholesky_ex(gamma)
    if int(info) == 0:
        lower: Tensor = factor
        return lower
    values, vectors = torch.linalg.eigh(gamma)
    rounding = len(gamma) * torch.finfo(torch.float64).eps * float(values[-1])
    if float(values[0]) < -10.0 * rounding:
        raise ValueError(
            f"the covariance of {len(gamma)} sites has a negative eigenvalue {float(values[0]):.3g}: the "
            "kernel is not positive definite there"
        )
    root: Tensor = vectors * values.clamp(min=0.0).sqrt()
    return root


class _MaskedPrior:
    """A grid's law on its valid cells."""

    def __init__(self, inner: OffGridPrior, domain: MaskedGrid) -> None:
        self.inner, self.valid, self.factor_size = inner, domain.valid, inner.factor_size

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        field, values = self.inner.color(white)
        return torch.where(self.valid, field, 0.0), values


class JointPrior:
    """The law of all channels at targets, and at observations ``(place, channel)``.

    Args:
        kernel: a stationary kernel on grids, any elsewhere; or a `Coregionalization`.
        domain: of the targets.
        sites: ``(p, d)``, the places.
        place, channel: of each observation, ``(m,)``.
        torus: see `Law`.

    Attributes:
        factor_size: length of the white noise of one draw.
        error: bound on the error of a covariance, a share of the variance.
    """

    def __init__(
        self,
        kernel: Kernel | Coregionalization,
        domain: Domain,
        sites: Tensor,
        place: Tensor,
        channel: Tensor,
        torus: Grid | None = None,
    ) -> None:
        self.domain, self.place, self.channel = domain, place, channel
        self.has_channels = isinstance(kernel, Coregionalization)
        if isinstance(kernel, Coregionalization):
            roots = [root.detach() for root in kernel.roots]
            kernels = list(kernel.kernels)
        else:
            roots, kernels = [torch.ones(1, 1, dtype=torch.float64)], [kernel]
        each = zip(roots, kernels, strict=True)
        self.parts = [(root, _one(part, domain, sites, torus)) for root, part in each]
        self.factor_size = sum(root.shape[1] * part.factor_size for root, part in self.parts)
        self.error = max(getattr(getattr(part, "inner", part), "error", 0.0) for _, part in self.parts)

    def color(self, white: Tensor) -> tuple[Tensor, Tensor]:
        """White noise ``(..., factor_size)`` → fields ``(..., *domain.shape)``, or of a `Coregionalization`
        ``(..., C, *domain.shape)``, and values at the observations ``(..., m)``."""
        begin = 0
        fields: Tensor | None = None
        values: Tensor | None = None
        for root, part in self.parts:
            for column in root.T:
                size = part.factor_size
                field, observed = part.color(white[..., begin : begin + size])
                begin += size
                if self.has_channels:
                    field = field.unsqueeze(-self.domain.ndim - 1) * column.reshape(
                        -1, *(1,) * self.domain.ndim
                    )
                observed = observed[..., self.place] * column[self.channel]
                fields = field if fields is None else fields + field
                values = observed if values is None else values + observed
        assert fields is not None
        assert values is not None
        return fields, values


def _one(kernel: Kernel, domain: Domain, sites: Tensor, torus: Grid | None) -> OneField:
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    own = torus_of(domain)
    wraps_alike = own is None if torus is None else same_torus(torus, own)
    if isinstance(grid, Grid) and kernel.is_stationary and wraps_alike:
        inner = OffGridPrior(kernel, grid, sites)
        return _MaskedPrior(inner, domain) if isinstance(domain, MaskedGrid) else inner
    return DensePrior(kernel, domain, sites, torus)
