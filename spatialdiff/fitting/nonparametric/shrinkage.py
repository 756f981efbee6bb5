r"""Γ between the empirical covariance and a model: :math:`\Gamma_w = (1 - w) S + w T`.

:math:`S = \tfrac1\nu \sum_i e_i e_i^T` of centred fields has rank ``ν`` at most, and whatever it has beyond
the model ``T`` (the fitted covariance of a kernel or a spectrum) is estimated from ``ν`` fields: patterns
that are tied to places. ``w`` maximises the likelihood of each field (or block of consecutive fields) given
the others,

.. math:: \ell(w) = \sum_B \log N\big(e_B;\ 0,\ (1 - w) S_{-B} + w T\big),

and not the Frobenius risk that Ledoit & Wolf minimise, which the few leading patterns decide alone: noise
with covariance Γ, whitening and likelihood are about ``Γ⁻¹``, so about every pattern. ``T`` is held, its few
parameters being determined by all values of all fields.

*In closed form.* With :math:`A = \sum e_i e_i^T`, :math:`a = (1-w)/\nu_{-B}` and
:math:`B_w = wT + aA`, leaving out the rows ``E`` of a block gives
:math:`wT + aA - a\tilde E^T\tilde E`, :math:`\tilde E = (I + \mathbf 1\mathbf 1^T/(N - b))^{1/2} E` where one
mean per site was taken off (the same block, about the mean without it, whitened), ``E`` otherwise. So with
:math:`q = \tilde E B_w^{-1} \tilde E^T` the quadratic form is :math:`\operatorname{tr} q (I - aq)^{-1}` and
the determinant :math:`|B_w|\,|I - aq|`, and both come from the eigenvalues of the matrix :math:`E T^{-1}
E^T` of size ``N``: one solve with ``T`` per field for all ``w``.

Sources: Hoffbeck & Landgrebe 1996, Theiler 2012 (leave-one-out likelihood of a shrunk covariance); Ledoit &
Wolf 2004; Warton 2008 (cross-validated likelihood).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.compositions.low_rank_update import LowRankUpdate
from spatialdiff.covariance.compositions.scaled import ScaledCovariance
from spatialdiff.fitting.observations import Observations

LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class ShrinkageEstimate:
    """A shrunk covariance and how its weight was found.

    Attributes:
        covariance: ``Γ = w T + F Fᵀ``.
        factors: ``F``, one field per row, ``(N, *event)``; with ``weight`` and the target it is ``Γ``.
        weight: ``w``, the target's share.
        weights, curve: log-likelihood of fields given the others, per field, at these weights, nats.
        gain: of the curve's maximum over ``w = 1``, the target alone, per field.
        log_likelihood: of all fields under ``Γ``, to which they have contributed.
    """

    covariance: Covariance
    factors: Tensor
    weight: float
    weights: Tensor
    curve: Tensor
    gain: float
    log_likelihood: float


def estimate_shrinkage(
    data: Observations, target: Covariance, weight: float | None = None, block: int | None = None
) -> ShrinkageEstimate:
    """Shrink the empirical covariance of ``data`` towards ``target``.

    Args:
        data: at least 3 replicates without missing values.
        target: ``T`` on ``data.domain``, invertible; with the channels of the data, or without (then all
            channels share it, and the data may have one only).
        weight: ``w`` in (0, 1], or ``None`` for the one of greatest leave-out likelihood.
        block: consecutive fields that are left out together, at least as many as depend on one another: for
            dependent fields a smaller block takes their common noise for structure; ``None`` for a twentieth
            of all.

    Raises:
        ValueError: missing values, too few fields, a target on another domain or with other channels, a
            weight outside (0, 1].
    """
    block = max(1, data.total // 20) if block is None else block
    rows = _rows(data, target, block)
    # a copy: `double` would change the covariance of the caller
    target = copy.deepcopy(target).double()
    with torch.no_grad():
        solved = target.solve(rows)
        kernel = solved.flatten(1) @ rows.flatten(1).T
        log_det = float(target.log_det())
    kernel = 0.5 * (kernel + kernel.T)
    size = data.domain.size * (target.channels or 1)
    score = _LeaveOut(kernel, log_det, size, data, block)
    weights = torch.logspace(math.log10(LEAST_WEIGHT), 0.0, 61, dtype=torch.float64)
    weights[-1] = 1.0
    curve = torch.stack([score(float(w)) for w in weights])
    if weight is None:
        best = int(curve.argmax())
        weight = _refined(score, weights, best)
    elif not 0.0 < weight <= 1.0:
        raise ValueError(f"weight is the share of the target, above 0 and at most 1, got {weight}")
    gain = float(score(weight) - curve[-1])
    factors = rows * math.sqrt((1.0 - weight) / data.count)
    gamma = shrunk_covariance(target, factors, weight)
    with torch.no_grad():
        total = float(gamma.double().log_prob(rows).sum()) * data.count / data.total
    return ShrinkageEstimate(gamma, factors, weight, weights, curve, gain, total)


def shrunk_covariance(target: Covariance, factors: Tensor, weight: float) -> Covariance:
    """``w T + F Fᵀ``; what a file needs beside the target is ``factors`` and ``weight``."""
    base = target if weight == 1.0 else ScaledCovariance(target, math.sqrt(weight))
    return base if weight == 1.0 else LowRankUpdate(base, factors)


def _rows(data: Observations, target: Covariance, block: int) -> Tensor:
    if data.observed is not None:
        raise ValueError(
            "shrinkage needs every field observed at the same sites: fill the gaps, or use method='spectrum'"
        )
    if target.domain != data.domain:
        raise ValueError(f"the target is on {target.domain}, the fields on {data.domain}")
    if (target.channels or 1) != data.channels:
        raise ValueError(
            f"the target has {target.channels or 1} channels, the fields {data.channels}: give a target with "
            "as many"
        )
    left = data.count - block
    if block < 1 or left < 2:
        raise ValueError(
            f"shrinkage leaves out {block} of {data.count} replicates and needs at least 2 others: give more "
            "fields, or a smaller block"
        )
    return data.values if target.channels is not None else data.values[:, 0]


class _LeaveOut:
    """Mean log-likelihood of a field given those of other blocks, as a function of ``w``."""

    def __init__(self, kernel: Tensor, log_det: float, size: int, data: Observations, block: int) -> None:
        values, self.vectors = torch.linalg.eigh(kernel)
        self.values = values.clamp(min=0.0)
        self.log_det, self.size = log_det, size
        self.total, self.count = data.total, data.count
        lost = data.mean_model == "field"
        self.blocks = [torch.arange(i, min(i + block, self.total)) for i in range(0, self.total, block)]
        self.lost = lost

    def __call__(self, weight: float) -> Tensor:
        sums = torch.zeros((), dtype=torch.float64)
        for length in {len(b) for b in self.blocks}:
            index = torch.stack([b for b in self.blocks if len(b) == length])
            a = (1.0 - weight) / (self.count - length)
            gain = self.values / (weight + a * self.values)
            rows = self.vectors[index]
            q = (rows * gain) @ rows.mT
            if self.lost:
                ones = torch.full((length, length), 1.0 / (self.total - length), dtype=torch.float64)
                root = torch.linalg.cholesky(torch.eye(length, dtype=torch.float64) + ones)
                q = root.T @ q @ root
            left = torch.eye(length, dtype=torch.float64) - a * q
            factor = torch.linalg.cholesky(left)
            quadratic = torch.cholesky_solve(q, factor).diagonal(dim1=-2, dim2=-1).sum()
            common = self.size * math.log(weight) + self.log_det
            common += float(torch.log1p(a / weight * self.values).sum())
            own = 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum()
            determinants = length * (len(index) * common + own)
            constant = index.numel() * self.size * math.log(2.0 * math.pi)
            sums = sums - 0.5 * (quadratic + determinants + constant)
        return sums / self.total


def _refined(score: _LeaveOut, weights: Tensor, best: int) -> float:
    """The maximum between the neighbours of the best weight of the list."""
    from scipy.optimize import minimize_scalar

    if best == len(weights) - 1:
        near = minimize_scalar(
            lambda t: -float(score(math.exp(t))),
            bounds=(math.log(float(weights[-2])), 0.0),
            method="bounded",
        )
        return math.exp(near.x) if -near.fun > float(score(1.0)) else 1.0
    low, high = weights[max(best - 1, 0)], weights[best + 1]
    found = minimize_scalar(
        lambda t: -float(score(math.exp(t))),
        bounds=(math.log(float(low)), math.log(float(high))),
        method="bounded",
    )
    return math.exp(found.x)
