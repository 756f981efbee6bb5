r"""Kriging from local neighbourhoods: every target from its ``m`` nearest observations alone.

With ``J`` the neighbours of a target ``t``, ``A = k_JJ + N_J`` and ``b = k_Jt``, the simple-kriging weights
are ``u = A⁻¹ b``; with a drift ``Fβ`` of the mean, ``β̂ = (FᵀA⁻¹F)⁻¹ FᵀA⁻¹y`` and ``r = f_t - Fᵀu``,

``x̂_t = uᵀ y + rᵀ β̂``, ``Var(x_t - x̂_t) = k_tt - bᵀu + rᵀ (FᵀA⁻¹F)⁻¹ r``

(Chilès & Delfiner 2012, section 3.4; neighbourhoods: section 3.6). The drift is estimated in each
neighbourhood. With ``m = n`` this is kriging from all observations. Targets are predicted one by one: for
their joint law see
`spatialdiff.conditioning.vecchia_prediction`.
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.conditioning.stationary import split_nugget
from spatialdiff.covariance.points.metric import neighbour_metric
from spatialdiff.domains.points import as_sites
from spatialdiff.kernels import at_pairs

# entries of the matrices that are made at once
_ENTRIES = 4_000_000
# a drift column this close to the span of the others, in its own norm, is in it
_COLLINEAR = 1e-9


def local_kriging(
    kernel: gpytorch.kernels.Kernel,
    sites: Tensor,
    values: Tensor,
    targets: Tensor,
    *,
    neighbors: int,
    design: Tensor | None = None,
    target_design: Tensor | None = None,
    noise: float | Tensor = 0.0,
    nugget: bool = True,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the field at each target given its nearest observations.

    Args:
        kernel: any gpytorch kernel; one set of hyperparameters.
        sites: of the observations, ``(n, d)`` in the kernel's unit of length.
        values: ``(..., n)``, in units of the field.
        targets: ``(t, d)``.
        neighbors: ``m``, taken by distance in the kernel's metric (`neighbour_metric`).
        design, target_design: the drift functions at the sites ``(n, q)`` and targets ``(t, q)``; None: the
            mean is 0.
        noise: variance of the measurement errors, one number or one per observation, squared units.
        nugget: whether the kernel's nugget is part of what is predicted, so that a target on a site has its
            value; otherwise it is noise.

    Returns:
        mean ``(..., t)`` and variance ``(t,)``, float64.

    Raises:
        ValueError: shapes that do not fit; fewer neighbours than drift functions; a neighbourhood whose
            covariance is singular, or in which drift functions are linearly dependent.

    Source: Chilès & Delfiner 2012, Geostatistics, 2nd ed., sections 3.4 and 3.6.
    """
    from scipy.spatial import cKDTree

    sites, targets = as_sites(sites, "local_kriging"), as_sites(targets, "local_kriging")
    n, d = sites.shape
    if targets.shape[1] != d:
        raise ValueError(f"local_kriging: sites have {d} coordinates and targets {targets.shape[1]}.")
    values = torch.as_tensor(values).detach().to(torch.float64)
    if values.shape[-1:] != (n,):
        raise ValueError(f"local_kriging: {n} sites need values (..., {n}), got {tuple(values.shape)}.")
    if isinstance(neighbors, bool) or not isinstance(neighbors, int) or neighbors < 1:
        raise ValueError(f"local_kriging: neighbors must be a whole number from 1, got {neighbors!r}.")
    if (design is None) != (target_design is None):
        raise ValueError("local_kriging: a drift needs design and target_design, both or neither.")
    m = min(neighbors, n)
    if design is not None and m <= design.shape[-1]:
        raise ValueError(
            f"local_kriging: {m} neighbours cannot give {design.shape[-1]} drift coefficients and a "
            "residual; take more neighbors."
        )
    errors = torch.as_tensor(noise, dtype=torch.float64).expand(n)
    smooth, discontinuous = split_nugget(kernel)
    # the nugget is kept apart: of two data on one site each has its own
    with torch.no_grad():
        metric = neighbour_metric(smooth or kernel, sites)
        tree = cKDTree((sites @ metric).numpy())
        asked = (targets @ metric).numpy()
        means, variances = [], []
        size = max(1, _ENTRIES // (m * m))
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            near = tree.query(asked[part], range(1, m + 1), workers=torch.get_num_threads())[1]
            index = torch.from_numpy(near)
            mean, variance = _predict(
                smooth,
                discontinuous,
                nugget,
                sites[index],
                values[..., index],
                targets[part],
                errors[index],
                None if design is None else design[index].to(torch.float64),
                None if target_design is None else target_design[part].to(torch.float64),
            )
            means.append(mean)
            variances.append(variance)
    return torch.cat(means, -1), torch.cat(variances)


def _predict(
    smooth: gpytorch.kernels.Kernel | None,
    nugget: float,
    with_nugget: bool,
    sites: Tensor,
    values: Tensor,
    targets: Tensor,
    errors: Tensor,
    design: Tensor | None,
    target_design: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sites ``(c, m, d)``, values ``(..., c, m)``, targets ``(c, d)``, errors ``(c, m)``, designs
    ``(c, m, q)`` and ``(c, q)``.
    """
    count, m, _ = sites.shape
    if smooth is None:
        matrix, cross, own = sites.new_zeros(count, m, m), sites.new_zeros(count, m), sites.new_zeros(count)
    else:
        matrix = at_pairs(smooth, sites.unsqueeze(-2), sites.unsqueeze(-3))
        cross = at_pairs(smooth, sites, targets.unsqueeze(-2))
        own = at_pairs(smooth, targets, targets).to(torch.float64)
    matrix = matrix.to(torch.float64) + torch.diag_embed(errors + nugget)
    cross = cross.to(torch.float64)
    if with_nugget and nugget:
        same = (sites == targets.unsqueeze(-2)).all(-1)
        cross = cross + nugget * (same & (same.cumsum(-1) == 1)).to(cross)
        own = own + nugget
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool((info != 0).any()):
        first = int((info != 0).nonzero()[0])
        raise ValueError(
            f"local_kriging: the covariance of the {m} observations nearest to {int((info != 0).sum())} of "
            f"{count} targets has no Cholesky factor, the first is {targets[first].tolist()}: sites coincide "
            "or the kernel is very smooth. Give noise=, add a Nugget to the kernel, or take fewer neighbors."
        )
    right = [cross.unsqueeze(-1), values.reshape(-1, count, m).permute(1, 2, 0)]
    if design is not None:
        right.append(design)
    whitened = torch.linalg.solve_triangular(factor, torch.cat(right, -1), upper=False)
    b, y = whitened[..., :1], whitened[..., 1 : 1 + right[1].shape[-1]]
    mean = (b.mT @ y).squeeze(-2)
    variance = own - b.square().sum((-1, -2))
    if design is not None and target_design is not None:
        f = whitened[..., 1 + right[1].shape[-1] :]
        scale = f.norm(dim=-2, keepdim=True)
        q, r = torch.linalg.qr(f / scale.clamp_min(1e-300))
        weak = r.diagonal(dim1=-2, dim2=-1).abs().amin(-1) < _COLLINEAR
        if bool(weak.any()):
            where = targets[int(weak.nonzero()[0])].tolist()
            raise ValueError(
                f"local_kriging: the drift functions are linearly dependent on the {m} observations nearest "
                f"to {int(weak.sum())} of {count} targets, the first is {where}; take more neighbors or a "
                "simpler drift."
            )
        rest = (target_design.unsqueeze(-1) - f.mT @ b) / scale.mT
        gain = torch.linalg.solve_triangular(r.mT, rest, upper=False)
        mean = mean + (gain.mT @ (q.mT @ y)).squeeze(-2)
        variance = variance + gain.square().sum((-1, -2))
    return mean.T.reshape(*values.shape[:-2], count), variance.clamp_min(0.0)
