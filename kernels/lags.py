r"""Stationary kernels that are built from others: ``k(h)`` through the lags, with batches kept in step.

A transform ``k(h) = k_0(T h)`` whose ``T`` has a batch of hyperparameters gives every member of the batch
lags of its own. A kernel with the same batch would form all pairs of members; `paired` keeps the equal ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.base import SpatialKernel


class LagKernel(SpatialKernel, ABC):
    """Base of the stationary kernels that are functions of the lag, not of one scaled distance.

    A subclass gives `at_lags`.
    """

    has_lengthscale = False

    @property
    def is_stationary(self) -> bool:
        return True

    @abstractmethod
    def at_lags(self, h: Tensor) -> Tensor:
        """``k(h)`` of differences ``h = x - x'``, ``(..., d)`` → ``(*batch, ...)``, in the data type of ``h``."""

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.at_lags(x1 - x2)


def paired(function: Callable[[Tensor], Tensor], kernel: Kernel, x: Tensor, batch: torch.Size) -> Tensor:
    """``function``, a method of ``kernel`` from ``(..., d)`` to ``(*kernel.batch_shape, ...)``, where every
    member of ``batch`` has an ``x`` of its own: ``(*batch, ..., d)`` → ``(*batch, ...)``.
    """
    if not batch or not kernel.batch_shape:
        return function(x)
    if kernel.batch_shape != batch:
        raise ValueError(
            f"{type(kernel).__name__} has batch_shape {tuple(kernel.batch_shape)} inside a kernel with "
            f"batch_shape {tuple(batch)}; they must be equal, or one of them empty."
        )
    members = batch.numel()
    values = function(x)
    joint = values.reshape(members, members, *values.shape[2 * len(batch) :])
    return joint.diagonal(dim1=0, dim2=1).movedim(-1, 0).reshape(*batch, *joint.shape[2:])


def parameter_values(
    value: float | Sequence[float] | Tensor, batch: torch.Size, count: int, title: str
) -> Tensor:
    """``value`` as float64 ``(*batch, count)``; raises ValueError on another shape, NaN or infinity."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{title} must be finite, got {value!r}.")
    if tensor.dim() == 0:
        tensor = tensor.reshape(1)
    if tensor.shape[-1] != count:
        raise ValueError(f"{title} needs {count} values, got shape {tuple(tensor.shape)}.")
    try:
        return tensor.expand(*batch, count).clone()
    except RuntimeError:
        raise ValueError(
            f"{title} must broadcast to (*batch_shape, {count}) = {(*batch, count)}, got shape "
            f"{tuple(tensor.shape)}."
        ) from None


def check_kernel(kernel: object, title: str) -> Kernel:
    """``kernel``, if it is a gpytorch kernel that says it is stationary; raises TypeError or ValueError."""
    if not isinstance(kernel, Kernel):
        raise TypeError(f"{title}: needs a kernel, got {type(kernel).__name__}.")
    if not kernel.is_stationary:
        raise ValueError(f"{title}: needs a stationary kernel, and {type(kernel).__name__} is not.")
    return kernel


def density(kernel: Any, omega: Tensor) -> Tensor:
    """``kernel.spectral_density(omega)``; raises TypeError where the kernel has none."""
    if not hasattr(kernel, "spectral_density"):
        raise TypeError(
            f"{type(kernel).__name__} has no spectral_density; use kernels of spatialdiff.kernels, or a method "
            "that needs only the covariance."
        )
    result: Tensor = kernel.spectral_density(omega)
    return result
