"""Covariance functions, each a `gpytorch.kernels.Kernel` with a spectral density."""

from __future__ import annotations

from spatialdiff.kernels.algebra import Product, Sum, at_lags, terms
from spatialdiff.kernels.base import StationaryKernel
from spatialdiff.kernels.families import Exponential, Gaussian, Matern, Nugget

__all__ = [
    "Exponential",
    "Gaussian",
    "Matern",
    "Nugget",
    "Product",
    "StationaryKernel",
    "Sum",
    "at_lags",
    "terms",
]
