r"""The exact Gaussian log-likelihood of replicated fields by Cholesky factorisation.

Centred vectors :math:`e_{ic}` (field :math:`i`, channel :math:`c`) that are observed at the same sites
:math:`g` share a factorisation of :math:`\Gamma_g`. With :math:`M_g = \sum e e^T` over the vectors of a
group, :math:`A_c = \sum_i X^T\Gamma^{-1}X`, :math:`b_c = \sum_i X^T\Gamma^{-1}e_{ic}`, the likelihood
profiled over the coefficients :math:`\beta_c = A_c^{-1} b_c` of the mean is

.. math::
    \ell = -\tfrac12\Big[\sum_{ic} n_{ic}\log 2\pi + \sum_g N_g\log\det\Gamma_g
           + \sum_g\operatorname{tr}\Gamma_g^{-1}M_g - \sum_c b_c^T A_c^{-1} b_c\Big]

and the restricted one, that of the contrasts free of the mean (Harville 1974),

.. math:: \ell_R = \ell + \tfrac12\sum_c\big[q\log 2\pi - \log\det A_c + \log\det \textstyle\sum_i X^TX\big].

A mean per site leaves the restricted likelihood of :math:`N - 1` contrasts. Only a factor of rank
:math:`\min(N_g, n)` of :math:`M_g` is kept, so a call costs one factorisation per pattern whatever the number
of fields.

Sources: Rasmussen & Williams 2006, eq. 2.30, 2.43 and 5.9; Harville 1974, eq. 2.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spatialdiff.covariance.points.conditionals import as_isotropic
from spatialdiff.covariance.points.isotropic_matrix import isotropic_matrix
from spatialdiff.covariance.points.triangular import choose_engine
from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.spectra import embedding_weights, folded_covariance
from spatialdiff.fitting.likelihoods.whittle import covariance_table
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Coregionalization


def factorise(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor; raises ``NotPositiveDefiniteError`` where rounding would decide its last
    pivots."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise NotPositiveDefiniteError
    # the share of a variance that is left given the sites before: free of the units of the channels
    if float((factor.diagonal().square() / covariance.diagonal()).min()) < 1e-13:
        raise NotPositiveDefiniteError
    lower: Tensor = factor
    return lower


class GaussianTerms(torch.autograd.Function):
    r"""``(log det Γ, tr Γ⁻¹ F Fᵀ, Eᵀ Γ⁻¹ E)`` of ``Γ``, ``F`` and ``E``, differentiable in Γ.

    The derivative by hand costs a quarter of differentiating the factorisation.
    """

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, root: Tensor, extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor = factorise(covariance)
        split = root.shape[1]
        whitened = torch.linalg.solve_triangular(factor, torch.cat((root, extra), dim=1), upper=False)
        ctx.save_for_backward(factor, whitened)
        ctx.split = split
        log_det = 2.0 * factor.diagonal().log().sum()
        rest = whitened[:, split:]
        return log_det, whitened[:, :split].square().sum(), rest.T @ rest

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_log_det: Tensor, of_trace: Tensor, of_products: Tensor
    ) -> tuple[Tensor, None, None]:
        factor, whitened = ctx.saved_tensors
        back = torch.linalg.solve_triangular(factor.T, whitened, upper=True)
        root, extra = back[:, : ctx.split], back[:, ctx.split :]
        gradient = of_log_det * torch.cholesky_inverse(factor)
        gradient -= of_trace * (root @ root.T)
        gradient -= extra @ (0.5 * (of_products + of_products.T)) @ extra.T
        return gradient, None, None


class _ClosedMatrix(nn.Module):
    """Γ of a kernel that is an isotropic closed form, compiled."""

    def __init__(self, kernel: nn.Module) -> None:
        super().__init__()
        self.kernel = kernel

    def exists(self, sites: Tensor) -> bool:
        """Whether the kernel is one."""
        return isinstance(self.kernel, Kernel) and as_isotropic(self.kernel, sites.shape[1]) is not None

    def forward(self, sites: Tensor) -> Tensor:
        closed = as_isotropic(self.kernel, sites.shape[1])
        assert closed is not None
        return isotropic_matrix(closed, sites)


@dataclass(frozen=True)
class _Group:
    """Vectors with values at the same sites: ``Σ e eᵀ = root rootᵀ``, ``Σ e`` and how many, per channel."""

    rows: Tensor | None
    size: int
    number: int
    root: Tensor
    sums: Tensor
    counts: Tensor


class DenseLikelihood(Likelihood):
    """Exact likelihood by Cholesky factorisation; any kernel and domain with coordinates (periodic axes by
    the periodised covariance), any pattern of missing values.

    Args:
        model: the kernel; a `Coregionalization` is fitted to all channels jointly.
        data: the fields.
        restricted: the likelihood of the contrasts that are free of the mean.
        metric: a likelihood whose information is cheap and nearly that of this one, which makes the search
            one by scoring.
    """

    def __init__(
        self,
        model: KernelParameters,
        data: Observations,
        restricted: bool = False,
        metric: Likelihood | None = None,
    ) -> None:
        self.model, self.data, self.restricted, self.metric = model, data, restricted, metric
        self.joint = isinstance(model.kernel, Coregionalization)
        self._points = data.domain.sites()
        domain = data.domain
        self._table = domain.grid if isinstance(domain, MaskedGrid) else domain
        self.stationary = (
            not self.joint
            and isinstance(domain, Grid | MaskedGrid)
            and model.is_stationary(model.start(), self._points)
        )
        if not self.stationary and any(domain.periodic):
            raise ValueError(
                "on a grid with a periodic axis the exact likelihood needs a stationary kernel: k(x, x') a "
                "function of x - x'"
            )
        if self.stationary:
            assert isinstance(domain, Grid | MaskedGrid)
            self._index = _lag_index(domain)
        self._closed = _ClosedMatrix(model.kernel)
        # all sites have their own nugget, also where they coincide
        self._compiled = (
            not self.joint and choose_engine("auto") == "numba" and self._closed.exists(self._points)
        )
        flat, seen = data.flat(), data.flat_observed()
        design = torch.zeros(flat.shape[-1], 0, dtype=torch.float64) if data.design is None else data.design
        if self.joint:
            channels = data.channels
            flat = flat.flatten(1).unsqueeze(1)
            seen = None if seen is None else seen.flatten(1).unsqueeze(1)
            design = torch.block_diag(*[design] * channels)
        self._design = design
        self._groups = _groups(flat, seen, data.total - data.count)

    def covariance(self, theta: Tensor) -> Tensor:
        """``Γ(θ)`` at the sites, ``(n, n)``; ``(C n, C n)``, channel after channel, of a
        `Coregionalization`."""
        if not self.stationary:
            return self._fast(theta) if self._compiled else self.model.matrix(theta, self._points)
        assert isinstance(self._table, Grid)
        table = folded_covariance(
            covariance_table(self.model, theta, self._table), embedding_weights(self._table)
        )
        return table.reshape(-1)[self._index]

    def _fast(self, theta: Tensor) -> Tensor:
        raw = {f"kernel.{path}": value for path, value in self.model.raw_values(theta).items()}
        matrix: Tensor = torch.func.functional_call(self._closed, raw, (self._points,))
        return matrix

    def __call__(self, theta: Tensor) -> Tensor:
        value, gram, cross = self._terms(theta)
        q = self._design.shape[1]
        if q == 0:
            return value
        for channel in range(gram.shape[0]):
            factor, info = torch.linalg.cholesky_ex(gram[channel])
            if int(info):
                raise NotPositiveDefiniteError
            z = torch.linalg.solve_triangular(factor, cross[channel].unsqueeze(1), upper=False)
            value = value + 0.5 * z.square().sum()
            if self.restricted:
                log_det = 2.0 * factor.diagonal().log().sum()
                value = value + 0.5 * (q * math.log(2.0 * math.pi) - log_det + self._plain_log_det(channel))
        return value

    def _terms(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihood about the ordinary mean, ``A`` ``(C, q, q)`` and ``b`` ``(C, q)``."""
        full = self.covariance(theta)
        q, channels = self._design.shape[1], self._groups[0].sums.shape[1]
        value = torch.zeros((), dtype=torch.float64)
        gram = torch.zeros(channels, q, q, dtype=torch.float64)
        cross = torch.zeros(channels, q, dtype=torch.float64)
        for group in self._groups:
            rows = group.rows
            gamma = full if rows is None else full[rows[:, None], rows[None, :]]
            design = self._design if rows is None else self._design[rows]
            extra = torch.cat((design, group.sums), dim=1) if q else design
            log_det, trace, products = GaussianTerms.apply(gamma, group.root, extra)
            constant = group.size * math.log(2.0 * math.pi)
            value = value - 0.5 * (group.number * (constant + log_det) + trace)
            if q:
                gram = gram + group.counts[:, None, None] * products[:q, :q]
                cross = cross + products[:q, q:].T
        return value, gram, cross

    def _plain_log_det(self, channel: int) -> Tensor:
        total = torch.zeros(self._design.shape[1], self._design.shape[1], dtype=torch.float64)
        for group in self._groups:
            design = self._design if group.rows is None else self._design[group.rows]
            total = total + group.counts[channel] * design.T @ design
        return torch.logdet(total)

    def information(self, theta: Tensor) -> Tensor | None:
        return None if self.metric is None else self.metric.information(theta)

    def coefficients(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None:
            return None
        with torch.no_grad():
            _, gram, cross = self._terms(theta)
            found: Tensor = torch.linalg.solve(gram, cross.unsqueeze(-1)).squeeze(-1)
        return found.reshape(self.data.channels, -1)

    def coefficient_covariance(self, theta: Tensor) -> Tensor | None:
        if self.data.design is None:
            return None
        with torch.no_grad():
            inverse: Tensor = torch.linalg.inv(self._terms(theta)[1])
        if not self.joint:
            return inverse
        q = self.data.design.shape[1]
        return torch.stack(
            [inverse[0, c * q : (c + 1) * q, c * q : (c + 1) * q] for c in range(self.data.channels)]
        )

    def mean_variance(self, theta: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            covariance = self.covariance(theta)
        n = len(self._points)
        blocks = [covariance[i : i + n, i : i + n] for i in range(0, len(covariance), n)]
        at_mean = sum(float(block.mean()) for block in blocks) / len(blocks)
        return at_mean, float(covariance.diagonal().mean())


def _groups(flat: Tensor, seen: Tensor | None, lost: int) -> list[_Group]:
    """One group per pattern of observed sites; ``lost`` replicates went into a mean per site."""
    total, channels, n = flat.shape
    vectors = flat.reshape(total * channels, n)
    channel = torch.arange(channels).repeat(total)
    if seen is None:
        number = (total - lost) * channels
        return [_group(vectors, channel, channels, None, number)]
    patterns, inverse = torch.unique(seen.reshape(total * channels, n), dim=0, return_inverse=True)
    found = []
    for number, pattern in enumerate(patterns):
        rows = pattern.nonzero().squeeze(-1)
        if len(rows):
            own = inverse == number
            found.append(_group(vectors[own][:, rows], channel[own], channels, rows, int(own.sum())))
    return found


def _group(vectors: Tensor, channel: Tensor, channels: int, rows: Tensor | None, number: int) -> _Group:
    size = vectors.shape[1]
    if len(vectors) > size:
        values, axes = torch.linalg.eigh(vectors.T @ vectors)
        root = axes * values.clamp(min=0.0).sqrt()
    else:
        root = vectors.T.contiguous()
    sums = torch.zeros(channels, size, dtype=torch.float64).index_add_(0, channel, vectors)
    counts = torch.bincount(channel, minlength=channels).double()
    return _Group(rows, size, number, root, sums.T.contiguous(), counts)


def _lag_index(domain: Grid | MaskedGrid) -> Tensor:
    """Position in the flattened lag table of ``x_i - x_j`` for every pair of sites, shape ``(n, n)``."""
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    axes = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij"))
    sites = domain.flatten(axes).T
    index = torch.zeros(len(sites), len(sites), dtype=torch.long)
    for axis, (n, periodic) in enumerate(zip(grid.shape, grid.periodic, strict=True)):
        size = n if periodic else 2 * n
        index = index * size + (sites[:, None, axis] - sites[None, :, axis]) % size
    return index
