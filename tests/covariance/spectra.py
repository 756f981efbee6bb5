"""Matrices whose eigenvalues are known."""

from __future__ import annotations

import math

import torch


def rotation(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]


def spectrum(n, condition, kind):
    """Eigenvalues of the kinds that covariances have."""
    if kind == "geometric":
        return torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    if kind == "nugget":
        return torch.arange(1, n + 1, dtype=torch.float64).pow(-3) + 1 / condition
    values = torch.linspace(1e-3, 1, n, dtype=torch.float64)
    values[0] = 1 / condition
    return values
