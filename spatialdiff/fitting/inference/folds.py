r"""Prediction of folds from one inverse; and how sites are put into folds.

For fields ``y_r`` observed at sites of their own, with the mean's coefficients in common,
:math:`P_r = \Gamma_r^{-1}`, :math:`U_r = P_r X_r`, :math:`A = \sum_r X_r^T U_r`,
:math:`w_r = P_r y_r - U_r A^{-1} \sum_s U_s^T y_s` (which is ``Q y``) and :math:`D_r = P_{r,BB}`,

.. math:: e_r = D_r^{-1}\Big[w_{r,B} + U_{r,B}\, S^{-1} \sum_s U_{s,B}^T D_s^{-1} w_{s,B}\Big], \quad
   \operatorname{Cov} e_r = D_r^{-1} + D_r^{-1} U_{r,B} S^{-1} U_{r,B}^T D_r^{-1}, \quad
   S = A - \sum_s U_{s,B}^T D_s^{-1} U_{s,B}

are the error of fold ``B`` and its covariance. ``S`` is the information on the coefficients that is left
without the fold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# information on the coefficients that is left without a fold, as a share of all, below which it is rounding
_LEAST = 1e-11


@dataclass(frozen=True)
class _Pattern:
    """Fields that are observed at the same sites."""

    fields: Tensor
    sites: Tensor
    precision: Tensor
    columns: Tensor
    residual: Tensor


def predict_folds(
    gamma: Tensor, design: Tensor | None, values: Tensor, seen: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Errors of the prediction of each fold from the other folds, and their variances.

    Args:
        gamma: covariance ``(m, m)`` of the values of a field, noise included.
        design: ``(m, q)``, or ``None`` where the mean is known to be 0.
        values: ``(N, m)``.
        seen: bool, ``(N, m)``: what was observed.
        labels: fold of each of the ``m`` places; negative: in no fold.

    Returns:
        errors (value minus prediction) and variances, ``(N, m)``, NaN where nothing was predicted.

    Raises:
        ValueError: a covariance that is not positive definite; coefficients that cannot be estimated without
            a fold.
    """
    x = values.new_zeros(values.shape[1], 0) if design is None else design
    patterns, information = _patterns(gamma, x, values, seen)
    found = labels[labels >= 0]
    single = len(found.unique()) == len(found)
    errors, variances = torch.full_like(values, math.nan), torch.full_like(values, math.nan)
    if single:
        _sites_alone(patterns, information, labels, errors, variances)
        return errors, variances
    for label in found.unique().tolist():
        _fold(patterns, information, labels == label, errors, variances)
    return errors, variances


def _patterns(gamma: Tensor, x: Tensor, values: Tensor, seen: Tensor) -> tuple[list[_Pattern], Tensor]:
    rows, which = torch.unique(seen, dim=0, return_inverse=True)
    made, information = [], x.new_zeros(x.shape[1], x.shape[1])
    moment = x.new_zeros(x.shape[1])
    for number, row in enumerate(rows):
        sites, fields = row.nonzero().squeeze(-1), (which == number).nonzero().squeeze(-1)
        factor, info = torch.linalg.cholesky_ex(gamma[sites[:, None], sites])
        if int(info):
            raise ValueError(
                "the covariance of the observed values is not positive definite to working precision: add a "
                "Nugget to the kernel, or give noise="
            )
        precision = torch.cholesky_inverse(factor)
        columns = precision @ x[sites]
        y = values[fields][:, sites]
        information = information + len(fields) * x[sites].T @ columns
        moment = moment + (y @ columns).sum(dim=0)
        made.append(_Pattern(fields, sites, precision, columns, y @ precision))
    if not x.shape[1]:
        return made, information
    _check_left(information, information, "all sites")
    coefficients = torch.linalg.solve(information, moment)
    return [
        _Pattern(p.fields, p.sites, p.precision, p.columns, p.residual - p.columns @ coefficients)
        for p in made
    ], information


def _check_left(left: Tensor, information: Tensor, what: str) -> None:
    scale = information.diagonal().rsqrt()
    scaled = left * scale[:, None] * scale
    if float(torch.linalg.eigvalsh(0.5 * (scaled + scaled.mT)).min()) < _LEAST:
        raise ValueError(
            f"the coefficients of the mean cannot be estimated from {what}: use a simpler mean, or smaller "
            "folds"
        )


def _sites_alone(
    patterns: list[_Pattern], information: Tensor, labels: Tensor, errors: Tensor, variances: Tensor
) -> None:
    """Folds of one site: no inverse of blocks, all at once."""
    q = information.shape[0]
    left = information.expand(len(labels), q, q).clone()
    pull = information.new_zeros(len(labels), q)
    for p in patterns:
        diagonal = p.precision.diagonal()
        outer = p.columns[:, :, None] * p.columns[:, None, :] / diagonal[:, None, None]
        left[p.sites] -= len(p.fields) * outer
        pull[p.sites] += p.columns * (p.residual.sum(dim=0) / diagonal)[:, None]
    held = labels >= 0
    if q and bool(held.any()):
        _check_left(left[held], information, "the sites outside a fold")
        left[~held] = information
        solved = torch.linalg.solve(left, pull.unsqueeze(-1)).squeeze(-1)
    for p in patterns:
        diagonal = p.precision.diagonal()
        error, variance = p.residual / diagonal, 1.0 / diagonal
        if q and bool(held.any()):
            error = error + (p.columns * solved[p.sites]).sum(dim=-1) / diagonal
            along = torch.linalg.solve(left[p.sites], p.columns.unsqueeze(-1)).squeeze(-1)
            variance = variance + (p.columns * along).sum(dim=-1) / diagonal.square()
        keep = held[p.sites]
        at = p.fields[:, None], p.sites[keep]
        errors[at] = error[:, keep]
        variances[at] = variance[keep].expand(len(p.fields), -1)


def _fold(
    patterns: list[_Pattern], information: Tensor, inside: Tensor, errors: Tensor, variances: Tensor
) -> None:
    q = information.shape[0]
    left, pull = information.clone(), information.new_zeros(q)
    blocks = []
    for p in patterns:
        places = inside[p.sites].nonzero().squeeze(-1)
        if len(places) == 0:
            continue
        inverse = torch.linalg.inv(p.precision[places[:, None], places])
        inverse = 0.5 * (inverse + inverse.T)
        columns = inverse @ p.columns[places]
        alone = p.residual[:, places] @ inverse
        left = left - len(p.fields) * p.columns[places].T @ columns
        pull = pull + p.columns[places].T @ alone.sum(dim=0)
        blocks.append((p, places, inverse, columns, alone))
    if not blocks:
        return
    if q:
        _check_left(left, information, "the sites outside a fold")
    for p, places, inverse, columns, alone in blocks:
        error, variance = alone, inverse.diagonal()
        if q:
            error = error + columns @ torch.linalg.solve(left, pull)
            variance = variance + (columns * torch.linalg.solve(left, columns.T).T).sum(dim=-1)
        at = p.fields[:, None], p.sites[places]
        errors[at] = error
        variances[at] = variance.expand(len(p.fields), -1)


def make_folds(
    folds: str | int | Tensor,
    sites: Tensor | None,
    number: int,
    block_size: float | Sequence[float] | None,
    seed: int,
) -> Tensor:
    """Fold of each site.

    Args:
        folds: "loo", "blocks", a number of random folds, or labels ``(n,)``.
        sites: coordinates ``(n, d)``, for blocks.
        number: ``n``.
        block_size: side of a tile, one or one per axis.
        seed: of random folds.

    Raises:
        ValueError: another name, fewer than two folds, a block size that is missing or not positive.
    """
    if block_size is not None and not (isinstance(folds, str) and folds == "blocks"):
        raise ValueError(f"block_size= is for folds='blocks', got folds={folds!r}")
    if isinstance(folds, Tensor):
        labels = folds
    elif isinstance(folds, str) and folds == "blocks":
        labels = _tiles(sites, block_size)
    elif isinstance(folds, str):
        if folds != "loo":
            raise ValueError(f"folds must be 'loo', 'blocks', a number or labels, got {folds!r}")
        labels = torch.arange(number)
    else:
        if isinstance(folds, bool) or not 2 <= folds <= number:
            raise ValueError(f"folds must be between 2 and the number of sites, {number}, got {folds}")
        order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
        labels = torch.empty(number, dtype=torch.long)
        labels[order] = torch.arange(number) % folds
    used = labels[labels >= 0]
    if len(used.unique()) < 2 and len(used) == number:
        raise ValueError("all sites are in one fold, and nothing is left to predict it from: use more folds")
    return labels


def _tiles(sites: Tensor | None, block_size: float | Sequence[float] | None) -> Tensor:
    if sites is None:
        raise ValueError("folds='blocks' needs sites with coordinates; give labels instead")
    if block_size is None:
        raise ValueError(
            "folds='blocks' needs block_size=, the side of a tile in the unit of the coordinates: about the "
            "distance over which predictions are wanted"
        )
    side = torch.as_tensor(block_size, dtype=torch.float64)
    if side.numel() not in (1, sites.shape[1]) or not bool((torch.isfinite(side) & (side > 0.0)).all()):
        raise ValueError(
            f"block_size must be positive, one number or one per coordinate ({sites.shape[1]}), got "
            f"{block_size!r}"
        )
    tile = torch.floor((sites - sites.amin(dim=0)) / side * (1 + 1e-12)).long()
    labels: Tensor = torch.unique(tile, dim=0, return_inverse=True)[1]
    return labels
