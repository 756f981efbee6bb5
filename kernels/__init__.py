"""Covariance functions, each a `gpytorch.kernels.Kernel` with a spectral density."""

from __future__ import annotations

from spatialdiff.kernels.algebra import Product, Sum, at_lags, at_pairs, terms
from spatialdiff.kernels.base import SpatialKernel, StationaryKernel
from spatialdiff.kernels.compact import Askey, Circular, Cubic, Spherical
from spatialdiff.kernels.families import Exponential, Gaussian, Matern, Nugget
from spatialdiff.kernels.oscillating import DampedCosine, Periodic, Wave
from spatialdiff.kernels.tails import Cauchy, GeneralizedCauchy, PoweredExponential, RationalQuadratic
from spatialdiff.kernels.wendland import GeneralizedWendland

__all__ = [
    "Askey",
    "Cauchy",
    "Circular",
    "Cubic",
    "DampedCosine",
    "Exponential",
    "Gaussian",
    "GeneralizedCauchy",
    "GeneralizedWendland",
    "Matern",
    "Nugget",
    "Periodic",
    "PoweredExponential",
    "Product",
    "RationalQuadratic",
    "SpatialKernel",
    "Spherical",
    "StationaryKernel",
    "Sum",
    "Wave",
    "at_lags",
    "at_pairs",
    "terms",
]
