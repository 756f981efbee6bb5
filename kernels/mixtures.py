r"""Families as scale mixtures of Gaussians, ``ρ(r) = E exp(-r²/(2G))``.

Matérn: ``G ~ Gamma(ν, rate ν)`` for every ``ν > 0``, since its spectral density is a Student t with ``2ν``
degrees of freedom; Gaussian: ``G = 1``. With ``x = log G`` the density of Matérn's mixture is
``ν^ν/Γ(ν) exp(νx - νe^x)``, and the trapezoidal rule in ``x`` converges geometrically.
"""

from __future__ import annotations

import math

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.families import Gaussian, Matern

_STEP = 0.25


def mixture(kernel: Kernel, largest_w2: float, d: int) -> tuple[Tensor, Tensor] | None:
    """Nodes ``G`` ``(nodes,)`` and weights ``(*batch, nodes)`` (``(nodes,)`` where ν is a number) of
    ``ρ(r) = Σ w exp(-r²/(2G))``, good for squared scaled frequencies up to ``largest_w2`` in ``d``
    dimensions.

    The weights are differentiable in ν. None where the family is no such mixture. Cutting the left tail at
    ``x`` loses ``exp((ν + d/2) x)`` of the spectral density, and the mass at high frequency sits at
    ``G ≈ 1/w²``.
    """
    if isinstance(kernel, Gaussian):
        return torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    if not isinstance(kernel, Matern):
        return None
    nu = torch.as_tensor(kernel.nu, dtype=torch.float64)
    least, most = float(nu.detach().min()), float(nu.detach().max())
    left = -(37.0 / (least + d / 2) + math.log1p(largest_w2))
    # the peak is 1/√(ν + d/2) wide
    step = min(_STEP, 0.55 / math.sqrt(most + 2))
    x = torch.arange(left, math.log(40.0 / least + 1.0) + 1.0, step, dtype=torch.float64, device=nu.device)
    nu = nu.unsqueeze(-1)
    log_weight = torch.special.xlogy(nu, nu) - torch.lgamma(nu) + nu * (x - x.exp())
    return x.exp(), step * log_weight.exp()
