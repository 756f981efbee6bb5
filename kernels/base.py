r"""Stationary kernels: ``k(h) = σ² ρ(‖h/ℓ‖)`` with spectral density ``S(ω) = ∫ k(h) exp(-i ω·h) dh``.

A family is two functions of one number: the correlation ``ρ(r)`` of the scaled distance ``r = ‖h/ℓ‖`` and
the spectral density ``s_d(w²)`` of ``ρ`` in ``d`` dimensions as a function of the scaled squared frequency
``w² = ‖ℓ ω‖²``, so that ``S(ω) = σ² (∏ℓ) s_d(‖ℓ ω‖²)``. The length scale is ``ℓ`` itself; where the
correlation reaches 0.05 is ``effective_range``.

One kernel can hold a batch of hyperparameters: with ``batch_shape=(H,)`` every parameter has ``H`` values,
and every result has ``H`` in front.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gpytorch
import torch
from gpytorch.constraints import Positive
from torch import Tensor


class DimensionError(ValueError):
    """A kernel that is not positive definite in as many dimensions as the sites have."""


def positive(value: float | Sequence[float] | Tensor, name: str) -> Tensor:
    """``value`` as a float64 tensor; raises ValueError unless every entry is positive and finite."""
    if isinstance(value, torch.nn.Module):
        raise TypeError(f"{name} must be a number, got a {type(value).__name__}.")
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if tensor.numel() == 0 or not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
        raise ValueError(f"{name} must be positive and finite, got {value!r}.")
    return tensor


def batched(value: Tensor, batch: torch.Size, name: str) -> Tensor:
    """``value``, one number or one per member of the batch, as ``(*batch,)``."""
    if value.numel() == 1:
        return value.reshape(()).expand(batch).clone()
    if value.shape != batch:
        raise ValueError(
            f"{name} must be one number or have the batch_shape {tuple(batch)}, got shape "
            f"{tuple(value.shape)}."
        )
    return value.clone()


def align(parameter: Tensor, like: Tensor) -> Tensor:
    """``(*batch,)`` as ``(*batch, 1, …)`` with as many axes as ``like`` (*batch, …), in its data type."""
    trailing = (1,) * (like.dim() - parameter.dim())
    return parameter.to(like).reshape((*parameter.shape, *trailing))


def safe_sqrt(square: Tensor) -> Tensor:
    """``√square`` whose derivatives of every order at 0 are 0, the right ones for a distance as a function
    of parameters.
    """
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


class SpatialKernel(gpytorch.kernels.Kernel):
    r"""What the kernels here share, stationary or not: a `gpytorch.kernels.Kernel` with positive parameters.

    Parameters are stored as logarithms (``raw_lengthscale``, ``raw_variance``) in float64 and evaluated in
    the data type of the coordinates.

    Attributes:
        max_dimension: largest number of coordinates in which the kernel is positive definite.
    """

    max_dimension: float = math.inf

    def _register_positive(self, name: str, value: float | Sequence[float] | Tensor) -> None:
        """A parameter ``raw_<name>``, the logarithm of ``name``, shape ``(*batch,)``."""
        title = f"{type(self).__name__}: {name}"
        initial = batched(positive(value, title), self.batch_shape, title)
        constraint = Positive(torch.exp, torch.log)
        self.register_parameter(f"raw_{name}", torch.nn.Parameter(initial.log()))
        self.register_constraint(f"raw_{name}", constraint)

    def _positive(self, name: str) -> Tensor:
        """The parameter that `_register_positive` made."""
        constraint = getattr(self, f"raw_{name}_constraint")
        return constraint.transform(getattr(self, f"raw_{name}"))  # type: ignore[no-any-return]

    def _set_positive(self, name: str, value: float | Tensor) -> None:
        raw = getattr(self, f"raw_{name}")
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device).expand(raw.shape)
        constraint = getattr(self, f"raw_{name}_constraint")
        self.initialize(**{f"raw_{name}": constraint.inverse_transform(value)})

    def check_dimension(self, d: int) -> None:
        """Raise DimensionError, a ValueError, unless the kernel is positive definite in ``d`` dimensions."""
        if d > self.max_dimension:
            raise DimensionError(
                f"{type(self).__name__} is positive definite in at most {self.max_dimension:g} "
                f"dimension{'s' * (self.max_dimension != 1)}, but the sites have {d} coordinates; use "
                "another family, such as Matern."
            )

    def least_valid(self, d: int) -> dict[str, float]:
        """Smallest values, by name, with which the kernel is positive definite in ``d`` dimensions, of
        parameters whose own constraint allows less.
        """
        return {}

    @property
    def variance(self) -> Tensor:
        """``σ²``, the variance of the field at a site, shape ``(*batch,)``."""
        return self._positive("variance")

    @variance.setter
    def variance(self, value: float | Tensor) -> None:
        self._set_positive("variance", value)

    @property
    def nugget(self) -> Tensor:
        """Variance of the discontinuous part ``σ² 1{h=0}``, which has no spectral density: 0 for a
        continuous kernel.
        """
        return torch.zeros_like(self.variance)

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``k(x, x')`` of coordinates ``(..., d)`` that broadcast against each other → ``(*batch, ...)``."""
        raise TypeError(f"{type(self).__name__} gives no at_pairs.")

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        if last_dim_is_batch:
            raise ValueError(
                f"{type(self).__name__}: last_dim_is_batch is deprecated in gpytorch and not supported here."
            )
        # gpytorch lines up leading axes of the inputs with batch_shape; at_pairs puts the batch in front
        lead = len(self.batch_shape)
        if lead and (x1.dim() > 2 or x2.dim() > 2):
            first = [x[(0,) * lead] if x.dim() > 2 else x for x in (x1, x2)]
            if not all(torch.equal(x, y.expand_as(x)) for x, y in zip((x1, x2), first, strict=True)):
                raise ValueError(
                    f"{type(self).__name__}: inputs that differ over batch_shape {tuple(self.batch_shape)} "
                    "are not supported; give the same sites to all members."
                )
            x1, x2 = first
        return self.at_pairs(*((x1, x2) if diag else (x1.unsqueeze(-2), x2.unsqueeze(-3))))

    def __add__(self, other: gpytorch.kernels.Kernel) -> gpytorch.kernels.Kernel:
        from spatialdiff.kernels.algebra import Sum

        return Sum(self, other)

    def __mul__(self, other: gpytorch.kernels.Kernel | float) -> gpytorch.kernels.Kernel:
        from spatialdiff.kernels.algebra import times

        return times(self, other)

    __rmul__ = __mul__


class StationaryKernel(SpatialKernel, ABC):
    r"""Base of the isotropic families: ``lengthscale``, ``variance``, and two functions of one number.

    A subclass gives `correlation` and `_unit_spectrum`.

    Args:
        lengthscale: ``ℓ``, one number or one per axis, in units of length; with ``batch_shape``, a tensor
            that broadcasts to ``(*batch_shape, 1)`` or ``(*batch_shape, d)``.
        variance: ``σ²``, in squared units of the field; one number, or ``(*batch_shape,)``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; a shape that does not fit ``batch_shape``.
    """

    has_lengthscale = True

    def __init__(
        self,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        name, batch = type(self).__name__, torch.Size(batch_shape)
        ell = positive(lengthscale, f"{name}: lengthscale")
        axes = ell.shape[-1] if ell.dim() else 1
        try:
            ell = ell.expand(*batch, axes)
        except RuntimeError:
            raise ValueError(
                f"{name}: lengthscale must be one number or one per axis"
                + (f" and broadcast to {(*batch, axes)}" if batch else "")
                + f", got shape {tuple(ell.shape)}."
            ) from None
        super().__init__(
            ard_num_dims=axes if axes > 1 else None,
            batch_shape=batch,
            lengthscale_constraint=Positive(torch.exp, torch.log),
        )
        self._register_positive("variance", variance)
        self.double()
        self.lengthscale = ell.reshape(*batch, 1, axes)

    def _set_lengthscale(self, value: float | Tensor) -> None:
        # gpytorch's own goes through float32
        raw = self.raw_lengthscale
        value = torch.as_tensor(value, dtype=raw.dtype, device=raw.device)
        self.initialize(raw_lengthscale=self.raw_lengthscale_constraint.inverse_transform(value))

    @property
    def is_stationary(self) -> bool:
        return True

    @property
    def reflection_symmetric(self) -> bool:
        """Whether ``k(h)`` depends on ``|h_a|`` only."""
        return True

    @property
    def effective_range(self) -> Tensor:
        """Distance at which the correlation is 0.05, one per length scale, shape ``(*batch, 1, d)`` or
        ``(*batch, 1, 1)``.
        """
        return self.lengthscale * self._range_factor().reshape(*self.batch_shape, 1, 1)

    def _range_factor(self) -> Tensor:
        """The scaled distance of correlation 0.05, shape ``(*batch,)`` or ``()``; a family whose
        correlation oscillates gives the last one.
        """
        with torch.no_grad():
            low = torch.zeros(self.batch_shape, dtype=torch.float64)
            high = torch.ones_like(low)
            while bool((above := self.correlation(high) > 0.05).any()):
                low, high = torch.where(above, high, low), torch.where(above, 2 * high, high)
            for _ in range(60):
                middle = (low + high) / 2
                above = self.correlation(middle) > 0.05
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return (low + high) / 2

    @property
    def microergodic(self) -> Tensor:
        """The combination of variance and length scale that data in a bounded region identify, ``(*batch,)``.

        Raises:
            ValueError: a family for which none is known.
        """
        raise ValueError(f"{type(self).__name__}: no micro-ergodic parameter is known for this family.")

    @abstractmethod
    def correlation(self, r: Tensor) -> Tensor:
        """``ρ(r)`` of the scaled distance ``r = ‖h/ℓ‖ ≥ 0``, shape ``(*batch, ...)``; ``ρ(0) = 1``."""

    @abstractmethod
    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        """Spectral density in ``d`` dimensions for ``σ² = ℓ = 1`` at squared frequency ``w2``, shape
        ``(*batch, ...)``.
        """

    def _scales(self, x: Tensor) -> Tensor:
        """Length scales that divide ``x`` ``(..., d)``: ``(*batch, 1, …, a)``."""
        ell = self.lengthscale.to(x)
        if ell.shape[-1] not in (1, x.shape[-1]):
            raise ValueError(
                f"{type(self).__name__}: coordinates have {x.shape[-1]} axes, but there are {ell.shape[-1]} "
                "length scales."
            )
        batch = self.batch_shape
        return ell.reshape(*batch, *(1,) * (x.dim() - 1), ell.shape[-1])

    def scaled_distance(self, h: Tensor) -> Tensor:
        """``r = ‖h/ℓ‖`` of differences ``h``, shape ``(..., d)`` → ``(*batch, ...)``."""
        return safe_sqrt((h / self._scales(h)).square().sum(-1))

    def at_lags(self, h: Tensor) -> Tensor:
        """``k(h)`` of differences ``h = x - x'``, ``(..., d)`` → ``(*batch, ...)``, in the data type of
        ``h``.
        """
        self.check_dimension(h.shape[-1])
        r = self.scaled_distance(h)
        return align(self.variance, r) * self.correlation(r)

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.at_lags(x1 - x2)

    def spectral_density(self, omega: Tensor) -> Tensor:
        """``S(ω) = σ² (∏ℓ) s_d(‖ℓ ω‖²)`` of the continuous part at angular frequencies ``(..., d)``, radians
        per unit length → ``(*batch, ...)``.
        """
        d = omega.shape[-1]
        self.check_dimension(d)
        ell = self._scales(omega)
        w2 = (omega * ell).square().sum(-1)
        volume = ell.expand(*ell.shape[:-1], d).prod(-1)
        return align(self.variance, w2) * volume * self._unit_spectrum(w2, d)

    def __repr__(self) -> str:
        ell = [round(v, 6) for v in self.lengthscale.detach().reshape(-1).tolist()]
        shown = f"{ell[0]:g}" if len(ell) == 1 else str(ell)
        values = self.variance.detach()
        shape = [round(v, 6) for v in values.reshape(-1).tolist()]
        variance = f"{shape[0]:g}" if values.dim() == 0 else str(shape)
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"{type(self).__name__}({self._extra()}lengthscale={shown}, variance={variance}{batch})"

    def _extra(self) -> str:
        return ""


def gaussian_constant(d: int) -> float:
    """``(2π)^{d/2}``."""
    return math.pow(2 * math.pi, d / 2)
