r"""Stationary kernels that are built from others: ``k(h)`` through the lags, with batches kept in step.

A transform ``k(h) = k_0(T h)`` whose ``T`` has a batch of hyperparameters gives every member of the batch
lags of its own. A kernel with the same batch would form all pairs of members; `paired` keeps the equal ones.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.base import SpatialKernel, StationaryKernel


class LagKernel(SpatialKernel, ABC):
    """Base of the stationary kernels that are functions of the lag, not of one scaled distance.

    A subclass gives `at_lags`, and `_scale` where its variance can be set.
    """

    has_lengthscale = False
    dimension = 1

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def variance(self) -> Tensor:
        """``k(0)``, shape ``(*batch,)``; set through the kernels inside."""
        device = next(iter(self.parameters())).device
        return self.at_lags(torch.zeros(1, self.dimension, dtype=torch.float64, device=device)).squeeze(-1)

    @variance.setter
    def variance(self, value: float | Tensor) -> None:
        with torch.no_grad():
            self._scale(torch.as_tensor(value, dtype=torch.float64) / self.variance)

    @abstractmethod
    def _scale(self, factor: Tensor) -> None:
        """Multiply the variance by ``factor``, ``(*batch,)`` or one number."""

    @property
    def effective_range(self) -> Tensor:
        """Distance at which the correlation is 0.05, where it is a function of the distance."""
        raise ValueError(f"{type(self).__name__} has no one effective range; ask the kernels inside.")

    @abstractmethod
    def at_lags(self, h: Tensor) -> Tensor:
        """``k(h)`` of differences ``(..., d)`` → ``(*batch, ...)``, in the data type of ``h``."""

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


def is_isotropic(values: Tensor) -> bool:
    """Whether ``k(h)`` ``(..., lengths, directions)`` is the same in all directions.

    Compared with the largest value, since far away values are below what rounding leaves of larger ones.
    """
    spread = (values - values[..., :1]).abs().amax()
    return bool(spread <= 1e-6 * values.abs().amax())


def density(kernel: Any, omega: Tensor) -> Tensor:
    """``kernel.spectral_density(omega)``; raises TypeError where the kernel has none."""
    if not hasattr(kernel, "spectral_density"):
        raise TypeError(
            f"{type(kernel).__name__} has no spectral_density; use kernels of spatialdiff.kernels, or a "
            "method that needs only the covariance."
        )
    result: Tensor = kernel.spectral_density(omega)
    return result


def gaussian_mixture_family(kernel: object, title: str) -> None:
    """Raise unless ``kernel`` is an isotropic family that is positive definite in every dimension: a mixture
    of Gaussians in the scaled distance [Schoenberg 1938].
    """
    if not isinstance(kernel, StationaryKernel):
        raise TypeError(
            f"{title}: needs an isotropic family of spatialdiff.kernels (Matern, Gaussian, …), got "
            f"{type(kernel).__name__}."
        )
    radial = all(
        getattr(type(kernel), name) is getattr(StationaryKernel, name)
        for name in ("at_lags", "scaled_distance")
    )
    if not radial or kernel.max_dimension < math.inf:
        raise ValueError(
            f"{title}: needs a family that is a function of the distance, continuous and positive definite "
            f"in every dimension (Matern, Gaussian, …); {type(kernel).__name__} is not."
        )


def scale_variance(kernel: Kernel, factor: Tensor) -> None:
    """Multiply the variance of ``kernel`` by ``factor``; raises TypeError where it cannot be set."""
    if not isinstance(kernel, SpatialKernel):
        raise TypeError(f"The variance of {type(kernel).__name__} cannot be set from outside; set its own.")
    kernel.variance = kernel.variance.detach() * factor
