r"""Kernel products by KeOps, for CUDA devices; imported only where they are used.

KeOps compiles a formula at its first use and then keeps no more than the result in memory.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KEOPS_VERBOSE", "0")

import torch
from pykeops.torch import LazyTensor
from torch import Tensor

_TINY = 1e-30


def _pairs(coordinates: Tensor) -> tuple[Any, Any]:
    """Differences and squared distances of all pairs, symbolic."""
    sites = coordinates.T.contiguous()
    difference = LazyTensor(sites[:, None]) - LazyTensor(sites[None])
    return difference, (difference**2).sum(-1)


def _profile(family: str, square: Any) -> Any:
    if family == "gaussian":
        return (-square).exp()
    s = square.sqrt()
    if family == "exponential":
        return (-s).exp()
    if family == "matern32":
        return (1.0 + s) * (-s).exp()
    return (1.0 + s + square / 3.0) * (-s).exp()


def _slope(family: str, square: Any) -> Any:
    if family == "gaussian":
        return -2.0 * (-square).exp()
    s = square.sqrt()
    if family == "exponential":
        return -((-s).exp() / (s + _TINY))
    if family == "matern32":
        return -(-s).exp()
    return -((1.0 + s) * (-s).exp()) / 3.0


def multiply(family: str, coordinates: Tensor, x: Tensor) -> Tensor:
    """``y_si = Σ_j ρ(‖u_i - u_j‖) x_sj``; as `tiles_plain.multiply`."""
    _, square = _pairs(coordinates)
    fields = x.T.contiguous()
    result: Tensor = (_profile(family, square) * LazyTensor(fields[None])).sum(dim=1)
    return result.T


def moments(family: str, coordinates: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The sums of `tiles_plain.moments`."""
    difference, square = _pairs(coordinates)
    weight = (LazyTensor(g.T.contiguous()[:, None]) * LazyTensor(x.T.contiguous()[None])).sum(-1)
    value = (weight * _profile(family, square)).sum(dim=1)
    slopes = (weight * _slope(family, square) * difference**2).sum(dim=1)
    return value.sum(dtype=torch.float64), slopes.sum(0, dtype=torch.float64)
