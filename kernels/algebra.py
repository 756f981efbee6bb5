r"""Sums and products of kernels.

``S(ω)`` of a sum is the sum; of a product, see `spatialdiff.kernels.product_density`. A composite is
isotropic, and has an effective range, where its members are functions of one and the same distance.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import operator
from collections.abc import Iterable

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.base import SpatialKernel, StationaryKernel
from spatialdiff.kernels.families import Nugget
from spatialdiff.kernels.lags import paired
from spatialdiff.kernels.product_density import product_density


def at_lags(kernel: Kernel, h: Tensor) -> Tensor:
    """``k(h)`` of differences ``(..., d)`` → ``(*batch, ...)`` for any stationary gpytorch kernel, without
    its approximate distances.
    """
    if hasattr(kernel, "at_lags"):
        result: Tensor = kernel.at_lags(h)
        return result
    flat = h.reshape(-1, h.shape[-1])
    with gpytorch.settings.lazily_evaluate_kernels(False):
        # one point at the origin: gpytorch's quadratic expansion of the distance is then free of cancellation
        values: Tensor = kernel(flat.new_zeros(1, h.shape[-1]), flat).to_dense()
    return values.reshape(*kernel.batch_shape, *h.shape[:-1]).to(h.dtype)


def at_pairs(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """``k(x, x')`` of coordinates ``(..., d)`` that broadcast against each other → ``(*batch, ...)``, for any
    gpytorch kernel.
    """
    if hasattr(kernel, "at_pairs"):
        result: Tensor = kernel.at_pairs(x1, x2)
        return result
    x1, x2 = torch.broadcast_tensors(x1, x2)
    flat = (x.reshape(-1, x.shape[-1]) for x in (x1, x2))
    # the diagonal takes differences, where the matrix would go through gpytorch's approximate distances
    values: Tensor = kernel(*flat, diag=True)
    return values.reshape(*kernel.batch_shape, *x1.shape[:-1]).to(x1.dtype)


def terms(kernel: Kernel) -> list[list[Kernel]]:
    """``kernel`` expanded as a sum of products of elementary kernels."""
    if isinstance(kernel, gpytorch.kernels.AdditiveKernel):
        return [term for part in kernel.kernels for term in terms(part)]
    if isinstance(kernel, gpytorch.kernels.ProductKernel):
        choices = itertools.product(*(terms(part) for part in kernel.kernels))
        return [[factor for part in choice for factor in part] for choice in choices]
    if hasattr(kernel, "terms"):
        expanded: list[list[Kernel]] = kernel.terms()
        return expanded
    return [[kernel]]


def _term_density(factors: list[Kernel], omega: Tensor) -> Tensor:
    if any(isinstance(factor, Nugget) for factor in factors):
        return torch.zeros_like(omega[..., 0])
    if len(factors) == 1:
        if not hasattr(factors[0], "spectral_density"):
            raise TypeError(
                f"{type(factors[0]).__name__} has no spectral_density; use kernels of spatialdiff.kernels, "
                "or a method that "
                "needs only the covariance."
            )
        density: Tensor = factors[0].spectral_density(omega)
        return density
    return product_density(factors, omega)


# results of members without a batch, or with a smaller one, lack leading axes only: they broadcast
def _sum(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, values)


def _product(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.mul, values)


def scaled(kernel: Kernel, factor: float) -> Kernel:
    """``c k``: a copy of ``kernel``, with parameters of its own, whose variance is ``c`` times as large.

    Raises:
        TypeError: a kernel of gpytorch, which is scaled by its `ScaleKernel`.
        ValueError: a factor that is not positive and finite.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"A kernel can be multiplied by a positive number, got {factor!r}.")
    if isinstance(kernel, gpytorch.kernels.AdditiveKernel):
        return Sum(*(scaled(part, factor) for part in kernel.kernels))
    if isinstance(kernel, gpytorch.kernels.ProductKernel):
        first, *rest = kernel.kernels
        return Product(scaled(first, factor), *(copy.deepcopy(part) for part in rest))
    if not isinstance(kernel, SpatialKernel):
        raise TypeError(
            f"{type(kernel).__name__} cannot be multiplied by a number here; use "
            "gpytorch.kernels.ScaleKernel."
        )
    result = copy.deepcopy(kernel)
    result.variance = result.variance.detach() * factor
    return result


def times(kernel: Kernel, other: Kernel | float) -> Kernel:
    """``k k'``, or ``c k`` for a number."""
    return scaled(kernel, float(other)) if isinstance(other, int | float) else Product(kernel, other)


class _Composite:
    """What `Sum` and `Product` share: the expansion into sums of products."""

    kernels: torch.nn.ModuleList
    batch_shape: torch.Size

    def spectral_density(self, omega: Tensor) -> Tensor:
        """``S(ω)`` of the continuous part at angular frequencies ``(..., d)``, radians per unit length
        → ``(*batch, ...)``.
        """
        return _sum(_term_density(term, omega) for term in terms(self))

    @property
    def nugget(self) -> Tensor:
        """Variance of the discontinuous part, shape ``(*batch,)``."""
        found = [term for term in terms(self) if any(isinstance(factor, Nugget) for factor in term)]
        zero = torch.zeros(self.batch_shape, dtype=torch.float64)
        return _sum([zero, *(_product(_variance(factor) for factor in term) for term in found)])

    @property
    def variance(self) -> Tensor:
        """``k(0)``, shape ``(*batch,)``."""
        return _sum(_product(_variance(factor) for factor in term) for term in terms(self))

    @property
    def max_dimension(self) -> float:
        """Largest number of coordinates in which every member is positive definite."""
        return min(float(getattr(kernel, "max_dimension", math.inf)) for kernel in self.kernels)

    @property
    def reflection_symmetric(self) -> bool:
        """Whether ``k(h)`` depends on ``|h_a|`` only, as far as is known."""
        return all(getattr(kernel, "reflection_symmetric", False) for kernel in self.kernels)

    @property
    def is_stationary(self) -> bool:
        return all(kernel.is_stationary for kernel in self.kernels)

    def check_dimension(self, d: int) -> None:
        """Raise ValueError unless every member is positive definite in ``d`` dimensions."""
        for kernel in self.kernels:
            check = getattr(kernel, "check_dimension", None)
            if check is not None:
                check(d)

    @property
    def effective_range(self) -> Tensor:
        """Smallest distance from which on the correlation, a nugget included, is at most 0.05, shape
        ``(*batch, 1, 1)``.

        Raises:
            ValueError: a member that is no function of the distance, such as one with a length scale per
                axis.
        """
        longest = torch.zeros(self.batch_shape, dtype=torch.float64)
        for factor in itertools.chain(*self._terms()):
            reach = _isotropic_range(factor)
            longest = torch.maximum(longest, reach)
        with torch.no_grad():
            total = self.variance
            # from far to near: the last place where the correlation is above
            far = torch.linspace(1, 0, 2049, dtype=torch.float64)
            at = far * (2 * longest.unsqueeze(-1))
            above = self._at_distances(at) > 0.05 * total.unsqueeze(-1)
            while bool(above[..., 0].any()):
                longest = torch.where(above[..., 0], 2 * longest, longest)
                at = far * (2 * longest.unsqueeze(-1))
                above = self._at_distances(at) > 0.05 * total.unsqueeze(-1)
            last = above.to(torch.int8).argmax(-1, keepdim=True)
            low = at.gather(-1, last).squeeze(-1)
            high = at.gather(-1, (last - 1).clamp_min(0)).squeeze(-1)
            for _ in range(60):
                middle = (low + high) / 2
                inside = self._at_distances(middle.unsqueeze(-1)).squeeze(-1) > 0.05 * total
                low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
            return high.reshape(*self.batch_shape, 1, 1)

    def _at_distances(self, r: Tensor) -> Tensor:
        """``k`` at distances of every member of the batch, ``(*batch, n)`` → ``(*batch, n)``."""
        lags, batch = r.unsqueeze(-1), self.batch_shape

        def value(kernel: Kernel) -> Tensor:
            return paired(functools.partial(at_lags, kernel), kernel, lags, batch)

        return _sum(_product(value(factor) for factor in term) for term in self._terms())

    def _terms(self) -> list[list[Kernel]]:
        assert isinstance(self, Kernel)
        return terms(self)


def _isotropic_range(kernel: Kernel) -> Tensor:
    """Effective range of a family with one length scale, ``(*batch,)``."""
    if isinstance(kernel, StationaryKernel):
        reach = kernel.effective_range.detach()
        if reach.shape[-1] == 1:
            return reach.reshape(kernel.batch_shape)
    raise ValueError(
        f"effective_range of a sum or a product needs isotropic families with one length scale, got "
        f"{kernel!r}."
    )


def _variance(kernel: Kernel) -> Tensor:
    if isinstance(kernel, SpatialKernel | _Composite):
        result: Tensor = kernel.variance
        return result
    axes = kernel.ard_num_dims or 1
    return at_lags(kernel, torch.zeros(1, axes, dtype=torch.float64)).reshape(kernel.batch_shape)


class Sum(_Composite, gpytorch.kernels.AdditiveKernel):
    """``k(h) = Σ_j k_j(h)``; made by ``+``. Parameters are those of the ``kernels``."""

    def __init__(self, *kernels: Kernel) -> None:
        flat = [
            part
            for k in kernels
            for part in (k.kernels if isinstance(k, gpytorch.kernels.AdditiveKernel) else [k])
        ]
        super().__init__(*flat)

    def at_lags(self, h: Tensor) -> Tensor:
        """``k(h)`` of differences ``(..., d)`` → ``(*batch, ...)``."""
        return _sum(at_lags(kernel, h) for kernel in self.kernels)

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``k(x, x')`` of coordinates ``(..., d)`` that broadcast → ``(*batch, ...)``."""
        return _sum(at_pairs(kernel, x1, x2) for kernel in self.kernels)

    def __add__(self, other: Kernel) -> Sum:
        return Sum(self, other)

    def __mul__(self, other: Kernel | float) -> Kernel:
        return times(self, other)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return " + ".join(repr(kernel) for kernel in self.kernels)


class Product(_Composite, gpytorch.kernels.ProductKernel):
    """``k(h) = ∏_j k_j(h)``; made by ``*``. Parameters are those of the ``kernels``; only the product of
    variances is identified.
    """

    def __init__(self, *kernels: Kernel) -> None:
        flat = [
            part
            for k in kernels
            for part in (k.kernels if isinstance(k, gpytorch.kernels.ProductKernel) else [k])
        ]
        super().__init__(*flat)

    def at_lags(self, h: Tensor) -> Tensor:
        """``k(h)`` of differences ``(..., d)`` → ``(*batch, ...)``."""
        return _product(at_lags(kernel, h) for kernel in self.kernels)

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``k(x, x')`` of coordinates ``(..., d)`` that broadcast → ``(*batch, ...)``."""
        return _product(at_pairs(kernel, x1, x2) for kernel in self.kernels)

    def __add__(self, other: Kernel) -> Sum:
        return Sum(self, other)

    def __mul__(self, other: Kernel | float) -> Kernel:
        return times(self, other)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        parts = (
            f"({k!r})" if isinstance(k, gpytorch.kernels.AdditiveKernel) else repr(k) for k in self.kernels
        )
        return " * ".join(parts)
