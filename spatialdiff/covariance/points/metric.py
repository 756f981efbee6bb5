r"""Distances in which a kernel falls off alike in all directions.

Neighbours are chosen by ``‖Mᵀ(x - x')‖``. For a kernel rotated by ``R`` and stretched by ``Λ`` that is
``M Mᵀ = R Λ⁻² Rᵀ``; else ``M = diag(1/τ)`` up to a factor, ``τ_a`` the distance along axis ``a`` at which the
correlation of the continuous part is one half; for kernels that are not stationary ``M = I``. (Katzfuss,
Guinness and Lawrence 2022, scaled Vecchia.)
"""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from spatialdiff.kernels import at_lags
from spatialdiff.kernels.anisotropy import Anisotropic

# an axis along which the kernel does not fall off counts as this many extents
_FAR = 1e3


def neighbour_metric(kernel: gpytorch.kernels.Kernel, sites: Tensor) -> Tensor:
    """``M``, ``(d, d)`` float64 on the CPU, for ``kernel`` as it is now; a batch of kernels has one, from
    the mean of their ``Q`` or of their ``log τ``.
    """
    d = sites.shape[-1]
    identity = torch.eye(d, dtype=torch.float64)
    if not kernel.is_stationary or d == 1:
        return identity
    with torch.no_grad():
        for part in kernel.modules():
            if isinstance(part, Anisotropic) and part.dimension == d and "angles" in part._parameters:
                scaled = (part.axes / part.scales.unsqueeze(-2)).to(identity)
                factor: Tensor = torch.linalg.cholesky((scaled @ scaled.mT).reshape(-1, d, d).mean(0))
                return factor
        spans = (sites.amax(0) - sites.amin(0)).to(identity)
        halves = torch.stack(
            [_half_distance(kernel, axis, float(spans.max()), identity) for axis in range(d)]
        )
        if float(halves.max() / halves.min()) < 1 + 1e-9:
            return identity
        return torch.diag(halves.min() / halves)


def _half_distance(kernel: gpytorch.kernels.Kernel, axis: int, span: float, identity: Tensor) -> Tensor:
    """``τ_axis`` by bisection in ``log``, the mean over the batch."""
    unit = identity[axis].to(next(iter(kernel.parameters()), identity).device)

    def value(distance: Tensor) -> Tensor:
        # every member of the batch at every distance, of which each wants its own
        values = at_lags(kernel, unit * distance.to(unit).unsqueeze(-1))
        return values.reshape(len(distance), len(distance)).diagonal().to(distance)

    size = kernel.batch_shape.numel()
    high = torch.full((size,), max(span, 1e-300) * _FAR, dtype=torch.float64)
    low = high * 1e-12
    level = 0.5 * value(low)
    for _ in range(80):
        middle = (low * high).sqrt()
        above = value(middle) > level
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low.log().mean().exp()
