"""Covariance functions, each a `gpytorch.kernels.Kernel` with a spectral density."""

from __future__ import annotations

from spatialdiff.kernels.algebra import Product, Sum, at_lags, at_pairs, terms
from spatialdiff.kernels.base import SpatialKernel, StationaryKernel
from spatialdiff.kernels.families import Exponential, Gaussian, Matern, Nugget

__all__ = [
    "Exponential",
    "Gaussian",
    "Matern",
    "Nugget",
    "Product",
    "SpatialKernel",
    "StationaryKernel",
    "Sum",
    "at_lags",
    "at_pairs",
    "terms",
]
