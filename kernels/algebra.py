r"""Sums and products of kernels, with their spectral densities.

A sum's spectral density is the sum. For a product, every family here is a scale mixture of Gaussians,
``ρ(r) = E exp(-r²/(2G))`` (Matérn: ``G ~ Gamma(ν, rate ν)``, since its spectral density is a Student t with
``2ν`` degrees of freedom; Gaussian: ``G = 1``), and a product of Gaussians is a Gaussian with precision
``p_a = Σ_j 1/(ℓ_{ja}² G_j)`` along axis ``a``. Hence ``S(ω) = ∏σ_j² E[(2π)^{d/2} ∏ p_a^{-1/2} exp(-½ Σ
ω_a²/p_a)]``, by the trapezoidal rule in ``log G`` (geometric convergence).
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable

import gpytorch
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.base import SpatialKernel, gaussian_constant
from spatialdiff.kernels.families import Nugget
from spatialdiff.kernels.mixtures import mixture

_CHUNK = 4_000_000


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


def _product_density(factors: list[Kernel], omega: Tensor) -> Tensor:
    d = omega.shape[-1]
    w2 = omega.detach().double().square().sum(-1).max()
    variance = omega.new_ones(())
    precisions, weight = omega.new_zeros(1, d), omega.new_ones(1)
    for factor in factors:
        longest = float(factor.lengthscale.detach().max()) if factor.has_lengthscale else 0.0
        nodes = mixture(factor, float(w2) * longest**2, d)
        if nodes is None:
            raise TypeError(
                "spectral_density of a product needs factors of spatialdiff.kernels (Matern, Exponential, "
                "Gaussian, Nugget), "
                f"got {type(factor).__name__}."
            )
        g, w = (v.to(omega) for v in nodes)
        ell = factor.lengthscale.to(omega)
        ell = ell.expand(*ell.shape[:-1], d)
        # every pair of an old node and a new one
        precisions = (precisions.unsqueeze(-2) + 1 / (ell.square() * g[:, None]).unsqueeze(-3)).flatten(
            -3, -2
        )
        weight = (weight.unsqueeze(-1) * w.unsqueeze(-2)).flatten(-2)
        variance = variance * factor.variance.to(omega)
        if weight.shape[-1] > 1_000_000:
            raise ValueError(
                f"spectral_density of a product of {len(factors)} Matérn factors needs "
                f"{weight.shape[-1]:.1e} nodes per frequency; "
                "use at most two non-Gaussian factors."
            )
    coefficient = variance.unsqueeze(-1) * gaussian_constant(d) * weight / precisions.prod(-1).sqrt()
    flat = omega.reshape(-1, d)
    parts = [
        (torch.exp(-0.5 * chunk.square() @ (1 / precisions).mT) @ coefficient.unsqueeze(-1)).squeeze(-1)
        for chunk in flat.split(max(1, _CHUNK // (coefficient.numel())))
    ]
    joined = torch.cat(parts, -1)
    return joined.reshape(*joined.shape[:-1], *omega.shape[:-1])


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
    return _product_density(factors, omega)


# results of members without a batch, or with a smaller one, lack leading axes only: they broadcast
def _sum(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, values)


def _product(values: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.mul, values)


class _Composite:
    """What `Sum` and `Product` share: the expansion into sums of products."""

    kernels: torch.nn.ModuleList

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

    def __mul__(self, other: Kernel) -> Product:
        return Product(self, other)

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

    def __mul__(self, other: Kernel) -> Product:
        return Product(self, other)

    def __repr__(self) -> str:
        parts = (
            f"({k!r})" if isinstance(k, gpytorch.kernels.AdditiveKernel) else repr(k) for k in self.kernels
        )
        return " * ".join(parts)
