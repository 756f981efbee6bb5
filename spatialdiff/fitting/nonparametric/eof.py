r"""Empirical orthogonal functions plus a diagonal, with as many functions as predict other fields best.

:math:`\Gamma_r = \sum_{j \le r} \lambda_j u_j u_j^T + \operatorname{diag}(d)` with the leading eigenvectors
of the sample covariance and ``d`` the variance that they leave at each site, so that the variance of every
site is that of the data: :class:`~spatialdiff.covariance.LowRankCovariance`. The rank maximises the
likelihood of folds of consecutive fields under the ``Γ_r`` of the other folds. Counting eigenvalues whose
sampling error :math:`\lambda\sqrt{2/N}` [North et al. 1982] is smaller than the distance to the next says
which functions are patterns of their own; it is reported, and does not choose: functions that mix still
hold covariance.

With ``weights`` :math:`a_i` (areas) the functions are those of :math:`\sqrt{a_i} x_i`, which explain most
of the *area-weighted* variance, and are divided by :math:`\sqrt{a_i}` again.

Sources: North, Bell, Cahalan & Moeng 1982, equation 24; Tipping & Bishop 1999; Wold 1978 (cross-validated
rank).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance.compositions.low_rank import LowRankCovariance
from spatialdiff.domains import MaskedGrid, Sphere
from spatialdiff.fitting.observations import Observations

FLOOR = 1e-6
# ranks without a better one after which the search ends
_PAST = 6


@dataclass(frozen=True)
class EofEstimate:
    """Empirical orthogonal functions and a diagonal.

    Attributes:
        covariance: ``Γ = F Fᵀ + diag(d)``; ``covariance.factors`` and ``covariance.diagonal`` rebuild it.
        rank: ``r``.
        share: of the (weighted) variance in the functions.
        eigenvalues: of the (weighted) sample covariance, descending, ``(min(ν, n),)``.
        separated: how many leading ones differ from the next by more than North's sampling error.
        ranks, curve: log-likelihood per field of the folds given the others, nats, at these ranks.
        log_likelihood: of all fields, to which they have contributed.
        parameters: numbers that were estimated: directions, their variances, and the diagonal.
    """

    covariance: LowRankCovariance
    rank: int
    share: float
    eigenvalues: Tensor
    separated: int
    ranks: Tensor
    curve: Tensor
    log_likelihood: float
    parameters: float


def estimate_eof(
    data: Observations, rank: int | None = None, weights: Tensor | None = None, folds: int = 5
) -> EofEstimate:
    """Empirical orthogonal functions of centred fields; see the module's text.

    Args:
        data: replicates without missing values.
        rank: ``r``, or ``None`` for the one of greatest cross-validated likelihood.
        weights: positive weight of each site, ``(*domain.shape)``, such as ``sphere.weights``; ``None`` for
            equal ones.
        folds: groups of consecutive fields that are left out in turn.

    Raises:
        ValueError: missing values, too few fields, a rank that the fields do not allow, weights of another
            shape, a sphere with poles (their repeated values allow no diagonal).
    """
    domain = data.domain
    if data.observed is not None:
        raise ValueError(
            "empirical orthogonal functions need every field observed at the same sites: fill the gaps, or "
            "use method='spectrum'"
        )
    if isinstance(domain, Sphere) and domain.poles:
        raise ValueError(
            "a pole is one site written along its row, and a diagonal would draw its values apart: use a "
            "sphere without poles, or method='spectrum'"
        )
    x = data.values if data.channels > 1 else data.values[:, 0]
    root = _root_weights(weights, data)
    kept = _kept(data)
    most = min(data.count, int(kept.sum()) - 1)
    if folds < 2 or data.total < max(3, folds):
        raise ValueError(f"{data.total} fields cannot be cut into {folds} folds: give more, or fewer folds")
    flat = x.flatten(1)
    smallest = data.total - math.ceil(data.total / folds) - (data.total - data.count)
    ranks = _candidates(min(most, smallest))
    if rank is None:
        ranks, curve = _curve(flat, folds, ranks, root, kept, data)
        rank = int(ranks[int(curve.argmax())])
    elif not 1 <= rank <= most:
        raise ValueError(
            f"rank must be between 1 and {most} for {data.count} replicates of {int(kept.sum())} values, got "
            f"{rank}"
        )
    else:
        ranks, curve = torch.tensor([rank]), torch.full((1,), math.nan, dtype=torch.float64)
    functions, values = _functions(flat, root, data.count)
    factors, diagonal = _parts(functions, values, rank, root, flat.square().sum(0) / data.count, kept)
    gamma = LowRankCovariance(domain, factors.reshape(-1, *x.shape[1:]), diagonal.reshape(x.shape[1:]))
    with torch.no_grad():
        total = float(gamma.double().log_prob(x).sum()) * data.count / data.total
    n = int(kept.sum())
    return EofEstimate(
        gamma,
        rank,
        float(values[:rank].sum() / values.sum()),
        values,
        _separated(values, data.count),
        ranks,
        curve,
        total,
        float(n * rank - rank * (rank - 1) / 2 + n),
    )


def _root_weights(weights: Tensor | None, data: Observations) -> Tensor:
    shape = data.values.shape[1:] if data.channels > 1 else data.domain.shape
    if weights is None:
        return torch.ones(math.prod(shape), dtype=torch.float64)
    given = torch.as_tensor(weights).detach().cpu().double()
    if tuple(given.shape) != tuple(data.domain.shape):
        raise ValueError(
            f"weights need the shape of the domain, {tuple(data.domain.shape)}, got {tuple(given.shape)}"
        )
    if isinstance(data.domain, MaskedGrid):
        given = data.domain.fill(given, 1.0)
    if not bool((torch.isfinite(given) & (given > 0.0)).all()):
        raise ValueError(f"weights must be positive and finite, the smallest is {float(given.min()):.3g}")
    return given.expand(shape).reshape(-1).sqrt()


def _kept(data: Observations) -> Tensor:
    shape = data.values.shape[1:] if data.channels > 1 else data.domain.shape
    valid = data.domain.valid if isinstance(data.domain, MaskedGrid) else torch.ones(data.domain.shape) > 0
    return valid.expand(shape).reshape(-1)


def _candidates(most: int) -> Tensor:
    """All ranks up to 20, and from there in steps of a tenth."""
    found, rank = [], 1
    while rank <= most:
        found.append(rank)
        rank = max(rank + 1, round(1.1 * rank)) if rank >= 20 else rank + 1
    return torch.tensor(found)


def _functions(flat: Tensor, root: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weighted eigenvectors as rows, and eigenvalues."""
    _, s, vt = torch.linalg.svd(flat * root, full_matrices=False)
    return vt, s.square() / count


def _parts(
    functions: Tensor, values: Tensor, rank: int, root: Tensor, variance: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    factors = values[:rank].sqrt()[:, None] * functions[:rank] / root
    left = (variance - factors.square().sum(0)).clamp_min(FLOOR * float(variance[kept].mean()))
    return factors, left


def _curve(
    flat: Tensor, folds: int, ranks: Tensor, root: Tensor, kept: Tensor, data: Observations
) -> tuple[Tensor, Tensor]:
    """Mean log-likelihood of the fields given the other folds, for each rank up to some past the best."""
    parts = []
    for fold in torch.arange(data.total).chunk(folds):
        inside = torch.ones(data.total, dtype=torch.bool)
        inside[fold] = False
        train, test = flat[inside], flat[~inside]
        count = len(train)
        if data.mean_model == "field":
            # the mean of the others is off by as much again as its own error
            offset = train.mean(0)
            train, test = train - offset, (test - offset) * math.sqrt(count / (count + 1.0))
            count -= 1
        variance = train.square().sum(0) / count
        parts.append((*_functions(train, root, count), variance, test[:, kept]))
    curve: list[float] = []
    for rank in ranks.tolist():
        total = 0.0
        for functions, values, variance, test in parts:
            factors, diagonal = _parts(functions, values, rank, root, variance, kept)
            total += float(_log_prob(factors[:, kept], diagonal[kept], test))
        curve.append(total / data.total)
        if len(curve) > _PAST and max(curve[-_PAST:]) < max(curve):
            break
    return ranks[: len(curve)], torch.tensor(curve, dtype=torch.float64)


def _log_prob(factors: Tensor, diagonal: Tensor, x: Tensor) -> Tensor:
    """``Σ log N(x; 0, FᵀF + diag d)`` of the rows of ``x``, by Woodbury."""
    scaled = factors / diagonal.sqrt()
    white = x / diagonal.sqrt()
    eye = torch.eye(len(factors), dtype=torch.float64)
    root = torch.linalg.cholesky(scaled @ scaled.T + eye)
    part = torch.linalg.solve_triangular(root, scaled @ white.T, upper=False)
    quadratic = white.square().sum() - part.square().sum()
    log_det = diagonal.log().sum() + 2.0 * root.diagonal().log().sum()
    constant = x.shape[1] * math.log(2.0 * math.pi)
    total: Tensor = -0.5 * (quadratic + len(x) * (log_det + constant))
    return total


def _separated(values: Tensor, count: int) -> int:
    apart = values[:-1] - values[1:] > values[:-1] * math.sqrt(2.0 / count)
    return int(torch.cumprod(apart.long(), dim=0).sum())
