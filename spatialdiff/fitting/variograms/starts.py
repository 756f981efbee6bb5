r"""Where the search for a variogram's parameters begins.

Length scales are laid from the shortest to the longest lag in equal ratios (those of several components a
factor 4 apart). For given length scales the variances of a sum of components enter ``γ`` linearly, and are
found by non-negative least squares; the matrices ``B_q`` of a coregionalisation as by Goulard & Voltz.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from spatialdiff.fitting.naming import triangular
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.variograms.coregionalise import positive_matrices
from spatialdiff.fitting.variograms.empirical import Variogram
from spatialdiff.fitting.variograms.initial import direct, initial_values
from spatialdiff.fitting.variograms.model import VariogramModel
from spatialdiff.kernels import Coregionalization

_TURNS = 4


def starting_points(
    model: KernelParameters, variograms: list[Variogram], models: list[VariogramModel], number: int
) -> list[Tensor]:
    """``number`` vectors, the last from the kernel's own length scales; with a free angle of a principal axis
    the others come in four directions.
    """
    first = variograms[0]
    guess = initial_values(first)
    lags = direct(first)[0]
    usable = lags[torch.isfinite(lags) & (lags > 0)]
    low, high = math.log(float(usable.min())), math.log(float(usable.max()))
    count = max(number - 1, 1)
    reaches = [math.exp(low + (high - low) * (k + 0.5) / count) for k in range(count)]
    angles = [i for i, p in enumerate(model.free) if p.kind == "angle"]
    turns = [k * math.pi / _TURNS for k in range(_TURNS)] if len(angles) == 1 else [None]
    found = []
    for reach in reaches:
        for turn in turns:
            theta = model.start()
            if turn is not None:
                theta[angles[0]] = turn - math.pi / 2 + 0.1
            _spread_lengths(model, theta, reach)
            found.append(_with_variances(model, theta, variograms, models, guess["sill"]))
    if number > 1:
        found.append(_with_variances(model, model.start(), variograms, models, guess["sill"]))
    return found


def _spread_lengths(model: KernelParameters, theta: Tensor, reach: float) -> None:
    owners = list(dict.fromkeys(p.path for p in model.free if p.is_lengthscale))
    for i, p in enumerate(model.free):
        if p.is_lengthscale:
            # practical ranges are about three length scales
            length = reach / 2.0 * 4.0 ** (owners.index(p.path) - (len(owners) - 1) / 2.0) / p.unit
            theta[i] = p.to_theta(min(max(length, p.lower * 1.001), p.upper / 1.001))


def _with_variances(
    model: KernelParameters,
    theta: Tensor,
    variograms: list[Variogram],
    models: list[VariogramModel],
    sill: float,
) -> Tensor:
    if isinstance(model.kernel, Coregionalization):
        return _with_matrices(model, theta, variograms)
    where = [i for i, p in enumerate(model.free) if p.is_variance and p.log]
    if not where:
        return theta
    from scipy.optimize import nnls

    observed = torch.cat([_direct(v.gamma) for v in variograms])
    pairs = torch.cat([_direct(v.counts) for v in variograms])
    use = (pairs > 0) & torch.isfinite(observed)

    def gamma(values: list[float]) -> Tensor:
        at = theta.clone()
        for i, value in zip(where, values, strict=True):
            at[i] = math.log(value)
        with torch.no_grad():
            return torch.cat([_direct(m(at)) for m in models])[use]

    tiny = 1e-12 * sill
    base = gamma([tiny] * len(where))
    columns = [gamma([sill if j == k else tiny for j in range(len(where))]) - base for k in range(len(where))]
    root = pairs[use].sqrt()
    design = torch.stack(columns, dim=-1) * root[:, None]
    shares, _ = nnls(design.numpy(), ((observed[use] - base) * root).numpy())
    equal = [sill / len(where)] * len(where)
    values = [max(float(s), 1e-3) * sill for s in shares] if np.any(shares > 0) else equal
    # where variances multiply one another the columns say nothing
    expected = base + torch.stack(columns, -1) @ torch.tensor(values, dtype=torch.float64) / sill
    linear = float((gamma(values) - expected).abs().max())
    if linear > 1e-6 * sill:
        values = equal
    result = theta.clone()
    for i, value in zip(where, values, strict=True):
        p = model.free[i]
        result[i] = p.to_theta(min(max(value, p.lower), p.upper))
    return result


def _with_matrices(model: KernelParameters, theta: Tensor, variograms: list[Variogram]) -> Tensor:
    kernel = model.fitted(theta, torch.float64)
    assert isinstance(kernel, Coregionalization)
    matrices = positive_matrices(variograms[0], kernel, tolerance=1e-6)
    roots = {}
    for number, (matrix, old) in enumerate(zip(matrices, kernel.roots, strict=True)):
        values, vectors = torch.linalg.eigh(matrix)
        rank = old.shape[-1]
        root = vectors[:, -rank:] * values[-rank:].clamp_min(0.0).sqrt()
        roots[f"roots.{number}"] = triangular(root)
    result = theta.clone()
    for i, p in enumerate(model.free):
        if p.path in roots:
            value = float(roots[p.path].reshape(-1)[p.index])
            result[i] = p.to_theta(max(value, p.lower)) if p.log else value
    return result


def _direct(x: Tensor) -> Tensor:
    return (x.diagonal(dim1=-2, dim2=-1) if x.ndim == 3 else x).reshape(-1)
