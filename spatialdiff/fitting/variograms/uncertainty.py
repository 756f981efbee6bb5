r"""How sure a variogram fit is: the covariance of the semivariances, and what it means for the parameters.

With ``V = Cov(γ̂)``, weights ``W`` and ``J = ∂γ/∂θ`` at the estimate, :math:`\operatorname{Cov}\hat\theta
\approx G V G^T`, :math:`G = (J^T W J)^{-1} J^T W`. The semivariances of different bins share sites and are
strongly dependent: taking them as independent, as the residuals of a regression, understates every error.

- With independent fields ``V`` is the covariance of their semivariances divided by their number.
- Otherwise, for a Gaussian field of covariance Γ: :math:`\hat\gamma_k = x^T A_k x` with ``A_k`` the
  Laplacian of the graph of the bin's pairs over ``2 N_k``, and :math:`V_{kl} = 2 \operatorname{tr}(A_k Γ A_l
  Γ)` [Cressie 1985; Genton 1998]; with ``N`` fields it is divided by ``N``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.domains import Grid, MaskedGrid
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.variograms.bins import Bins
from spatialdiff.fitting.variograms.empirical import Variogram
from spatialdiff.fitting.variograms.pairs import blocks, distinct_sites
from spatialdiff.kernels import Coregionalization

FEWEST_FIELDS = 10
# numbers in the products A_k Γ held at a time, and sites beyond which they take long
_MOST = 60_000_000
_MOST_SITES = 2000


def parameter_covariance(
    spread: GaussianSpread, theta: Tensor, jacobian: Tensor, weight: Tensor, inside: Tensor
) -> tuple[Tensor, str]:
    """Covariance ``(p, p)`` of the estimate of ``theta`` and where it comes from; NaN for parameters at a
    bound, and where nothing is known.
    """
    variograms, entries = spread.variograms, spread.entries
    p = len(theta)
    covariance = torch.full((p, p), torch.nan, dtype=torch.float64)
    slopes = jacobian[:, inside]
    weighted = weight[:, None] * slopes if weight.ndim == 1 else weight @ slopes
    normal = slopes.mT @ weighted
    scale = normal.diagonal().sqrt()
    # not finite where the curve does not move with a parameter, such as the length scale of white noise
    scaled = normal / scale / scale[:, None]
    known = bool(inside.any()) and bool(scaled.isfinite().all())
    if not known or float(torch.linalg.eigvalsh(scaled)[0]) < 1e-12:
        return covariance, "none (the variogram does not identify the parameters)"
    gain = torch.linalg.solve(normal, weighted.mT)
    fields = min(v.n_fields for v in variograms)
    if fields >= FEWEST_FIELDS:
        each = torch.cat([v.by_field[:, use] for v, use in zip(variograms, entries, strict=True)], dim=1)
        found = each.isfinite().all(dim=1)
        estimates = each[found] @ gain.mT
        if int(found.sum()) >= FEWEST_FIELDS:
            inner = torch.cov(estimates.mT).reshape(len(gain), len(gain)) / int(found.sum())
            return _placed(covariance, inner, inside), "the spread of the fields"
    if spread.unknown:
        return covariance, f"none ({spread.unknown})"
    return _placed(
        covariance, gain @ spread(theta) @ gain.mT, inside
    ), "the Gaussian covariance of the semivariances"


class GaussianSpread:
    """``θ → Cov(γ̂; θ)`` ``(m, m)`` of the entries that are fitted, for Gaussian fields and independent
    channels.

    ``unknown`` says why there is none, or nothing.
    """

    def __init__(self, model: KernelParameters, variograms: list[Variogram], entries: list[Tensor]) -> None:
        self.model, self.variograms, self.entries = model, variograms, entries
        self.unknown = _unknown(model, variograms)
        self._laplacians: Tensor | None = None

    def __call__(self, theta: Tensor) -> Tensor:
        """The covariance. Raises ValueError where there is none."""
        if self.unknown:
            raise ValueError(
                f"the covariance of the semivariances is not available ({self.unknown}): use "
                "weights='n/h2' or 'n/gamma2'"
            )
        first = self.variograms[0]
        if self._laplacians is None:
            self._laplacians = torch.cat([_laplacians(v) for v in self.variograms])
        with torch.no_grad():
            products = self._laplacians @ self.model.matrix(
                theta, first.domain.sites()[distinct_sites(first.domain)]
            )
        turned = products.mT.reshape(len(products), -1)
        bins = 2.0 * (products.reshape(len(products), -1) @ turned.mT) / first.n_fields
        index, channel, offset = [], [], 0
        for use in self.entries:
            places = use.reshape(len(use), -1).nonzero()
            index.append(offset + places[:, 0])
            channel.append(places[:, 1])
            offset += len(use)
        rows, columns = torch.cat(index), torch.cat(channel)
        return bins[rows[:, None], rows] * (columns[:, None] == columns)


def _laplacians(variogram: Variogram) -> Tensor:
    """``A_k`` of each bin, ``(b, n, n)``."""
    sites = variogram.domain.sites()[distinct_sites(variogram.domain)].numpy()
    direction = None if variogram.direction is None else variogram.direction.numpy()
    bins = Bins(variogram.edges.numpy(), direction, variogram.tolerance, variogram.bandwidth)
    both = torch.zeros(bins.number, len(sites), len(sites), dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    for i, j, place, _ in blocks(sites, bins, variogram.metric == "great_circle"):
        k, first, second = (torch.from_numpy(x) for x in (place, i, j))
        both.index_put_((k, first, second), one, accumulate=True)
        both.index_put_((k, second, first), one, accumulate=True)
    degree = both.sum(dim=-1)
    pairs = degree.sum(dim=-1) / 2.0
    return (torch.diag_embed(degree) - both) / (2.0 * pairs.clamp_min(1.0)[:, None, None])


def _unknown(model: KernelParameters, variograms: list[Variogram]) -> str:
    """Why the Gaussian covariance cannot be given, or nothing."""
    domain = variograms[0].domain
    n, number = domain.size, sum(len(v.edges) - 1 for v in variograms)
    if any(v.estimator != "matheron" for v in variograms):
        return "a robust estimator of a single field"
    if any(v.observed is not None for v in variograms):
        return "missing values"
    if isinstance(model.kernel, Coregionalization) or any(v.cross and v.channels > 1 for v in variograms):
        return "cross-variograms of few fields"
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    if isinstance(grid, Grid) and any(grid.periodic):
        return "a periodic grid"
    if n > _MOST_SITES or number * n**2 > _MOST:
        return f"{n} sites and {number} bins are many"
    return ""


def _placed(covariance: Tensor, inner: Tensor, inside: Tensor) -> Tensor:
    where = inside.nonzero()[:, 0]
    covariance[where[:, None], where] = inner
    return covariance
