r"""The exact Gaussian log-likelihood of replicated fields by Cholesky factorisation.

With :math:`M` the second-moment matrix of the :math:`N` centred fields, summed over :math:`C` independent
channels,

.. math::
    \ell &= -\tfrac{N}{2}\left[C n\log 2\pi + C\log\det\Gamma + \operatorname{tr}(\Gamma^{-1} M)\right] \\
    \partial\ell/\partial\Gamma &= -\tfrac{N}{2}\left[C\,\Gamma^{-1} - \Gamma^{-1} M \Gamma^{-1}\right]

Only a factor :math:`M = QQ^T` of rank :math:`\min(NC, n)` is kept, so a call costs one Cholesky factorisation
whatever the number of fields. With a constant mean its generalised-least-squares estimate
:math:`\hat\mu = 1^T\Gamma^{-1}\bar e / 1^T\Gamma^{-1}1` is profiled out:
:math:`\operatorname{tr}(\Gamma^{-1}M)` loses :math:`(1^T\Gamma^{-1}\bar e)^2 / 1^T\Gamma^{-1}1`, and in the
derivative :math:`M` is taken about :math:`\hat\mu`. With a mean per site this is the restricted likelihood of
the :math:`N - 1` contrasts that are free of the mean.

Source: Rasmussen & Williams 2006, eq. 2.30, 2.43 and 5.9.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spatialdiff.fitting.likelihoods.base import Likelihood, NotPositiveDefiniteError
from spatialdiff.fitting.likelihoods.spectra import embedding_weights, folded_covariance
from spatialdiff.fitting.likelihoods.whittle import covariance_table
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters


def factorise(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor; raises ``NotPositiveDefiniteError`` where rounding would decide its last
    pivots."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info) or not bool(torch.isfinite(factor).all()):
        raise NotPositiveDefiniteError
    pivots = factor.diagonal()
    if float(pivots.min() / pivots.max()) ** 2 < 1e-13:
        raise NotPositiveDefiniteError
    lower: Tensor = factor
    return lower


class _GaussianLogLikelihood(torch.autograd.Function):
    """The module's equations; the derivative by hand costs a quarter of differentiating the factorisation."""

    @staticmethod
    def forward(
        ctx: Any, covariance: Tensor, root: Tensor, site_means: Tensor, count: int, profile: bool
    ) -> Tensor:
        factor = factorise(covariance)
        n, channels = site_means.shape
        whitened = torch.linalg.solve_triangular(factor, root, upper=False)
        quadratic = whitened.square().sum()
        ones = torch.linalg.solve_triangular(factor, torch.ones_like(site_means[:, :1]), upper=False)
        means = torch.linalg.solve_triangular(factor, site_means, upper=False)
        mu = (ones * means).sum(dim=0) / ones.square().sum() if profile else torch.zeros_like(means[0])
        quadratic = quadratic - (mu.square() * ones.square().sum()).sum()
        ctx.save_for_backward(factor, whitened, ones, means, mu)
        ctx.count, ctx.channels = count, channels
        log_det = 2.0 * factor.diagonal().log().sum()
        value: Tensor = -0.5 * count * (channels * (n * math.log(2.0 * math.pi) + log_det) + quadratic)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        factor, whitened, ones, means, mu = ctx.saved_tensors
        back = torch.linalg.solve_triangular(factor.T, torch.cat((whitened, ones, means), dim=1), upper=True)
        r = whitened.shape[1]
        root, one, mean = back[:, :r], back[:, r : r + 1], back[:, r + 1 :]
        # Γ⁻¹ M Γ⁻¹ about the profiled mean
        cross = one @ (mean @ mu).unsqueeze(0)
        second = root @ root.T - cross - cross.T + mu.square().sum() * (one @ one.T)
        gradient = -0.5 * ctx.count * (ctx.channels * torch.cholesky_inverse(factor) - second)
        return slope * gradient, None, None, None, None


class DenseLikelihood(Likelihood):
    """Exact likelihood by Cholesky factorisation; any kernel, any grid (periodic axes by the periodised
    covariance)."""

    def __init__(self, model: KernelParameters, data: Observations) -> None:
        self.model, self.data = model, data
        n = data.grid.size
        flat = data.values.reshape(-1, n)
        self._points = data.grid.coordinates().reshape(n, -1)
        self.stationary = model.is_stationary(model.start(), self._points)
        if not self.stationary and any(data.grid.periodic):
            raise ValueError(
                "on a grid with a periodic axis the kernel must be stationary: k(x, x') a function of x - x'"
            )
        if len(flat) > n:
            values, vectors = torch.linalg.eigh(flat.T @ flat / data.count)
            self._root = vectors * values.clamp(min=0.0).sqrt()
        else:
            self._root = flat.T / math.sqrt(data.count)
        self._site_means = data.values.mean(dim=0).reshape(data.channels, n).T
        self._index = _lag_index(data)

    def covariance(self, theta: Tensor) -> Tensor:
        """``Γ(θ)``, shape ``(n, n)``."""
        if not self.stationary:
            return self.model.matrix(theta, self._points)
        table = folded_covariance(
            covariance_table(self.model, theta, self.data.grid), embedding_weights(self.data.grid)
        )
        return table.reshape(-1)[self._index]

    def __call__(self, theta: Tensor) -> Tensor:
        data = self.data
        value: Tensor = _GaussianLogLikelihood.apply(
            self.covariance(theta), self._root, self._site_means, data.count, data.mean_model == "constant"
        )
        return value

    def mean(self, theta: Tensor) -> Tensor:
        """The profiled (generalised least squares) constant mean, added to the average that was taken off."""
        if self.data.mean_model != "constant":
            return self.data.mean
        with torch.no_grad():
            factor = factorise(self.covariance(theta))
            ones = torch.ones(len(factor), 1, dtype=torch.float64)
            weights = torch.cholesky_solve(ones, factor)
        return self.data.mean + ((weights * self._site_means).sum(dim=0) / weights.sum()).reshape(
            self.data.mean.shape
        )

    def mean_variance(self, theta: Tensor) -> tuple[float, float]:
        with torch.no_grad():
            covariance = self.covariance(theta)
        return float(covariance.mean()), float(covariance.diagonal().mean())

    def score_covariance(self, theta: Tensor) -> Tensor | None:
        return None


def _lag_index(data: Observations) -> Tensor:
    """Position in the flattened lag table of ``x_i - x_j`` for every pair of sites, shape ``(n, n)``."""
    grid = data.grid
    sites = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid.shape), indexing="ij"), dim=-1)
    sites = sites.reshape(grid.size, grid.ndim)
    index = torch.zeros(grid.size, grid.size, dtype=torch.long)
    for axis, (n, periodic) in enumerate(zip(grid.shape, grid.periodic, strict=True)):
        size = n if periodic else 2 * n
        index = index * size + (sites[:, None, axis] - sites[None, :, axis]) % size
    return index
