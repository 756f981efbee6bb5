"""Covariance functions, each a `gpytorch.kernels.Kernel` with a spectral density."""

from __future__ import annotations

from spatialdiff.kernels.algebra import Product, Sum, at_lags, at_pairs, terms
from spatialdiff.kernels.anisotropy import Anisotropic
from spatialdiff.kernels.base import SpatialKernel, StationaryKernel
from spatialdiff.kernels.chordal import Chordal
from spatialdiff.kernels.compact import Askey, Circular, Cubic, Spherical
from spatialdiff.kernels.coregionalization import Coregionalization
from spatialdiff.kernels.families import Exponential, Gaussian, Matern, Nugget
from spatialdiff.kernels.local import GridField
from spatialdiff.kernels.nonstationary import Nonstationary
from spatialdiff.kernels.oscillating import DampedCosine, Periodic, Wave
from spatialdiff.kernels.space_time import Gneiting, Separable
from spatialdiff.kernels.spherical_domain import SphericalKernel, great_circle_angle, legendre_coefficients
from spatialdiff.kernels.spherical_families import (
    SphericalAskey,
    SphericalCompact,
    SphericalExponential,
    SphericalMultiquadric,
    SphericalPoweredExponential,
    SphericalSinePower,
)
from spatialdiff.kernels.spherical_spectrum import LegendreMatern, LegendreSeries
from spatialdiff.kernels.tails import Cauchy, GeneralizedCauchy, PoweredExponential, RationalQuadratic
from spatialdiff.kernels.wendland import GeneralizedWendland

__all__ = [
    "Anisotropic",
    "Askey",
    "Cauchy",
    "Chordal",
    "Circular",
    "Coregionalization",
    "Cubic",
    "DampedCosine",
    "Exponential",
    "Gaussian",
    "GeneralizedCauchy",
    "GeneralizedWendland",
    "Gneiting",
    "GridField",
    "LegendreMatern",
    "LegendreSeries",
    "Matern",
    "Nonstationary",
    "Nugget",
    "Periodic",
    "PoweredExponential",
    "Product",
    "RationalQuadratic",
    "Separable",
    "SpatialKernel",
    "Spherical",
    "SphericalAskey",
    "SphericalCompact",
    "SphericalExponential",
    "SphericalKernel",
    "SphericalMultiquadric",
    "SphericalPoweredExponential",
    "SphericalSinePower",
    "StationaryKernel",
    "Sum",
    "Wave",
    "at_lags",
    "at_pairs",
    "great_circle_angle",
    "legendre_coefficients",
    "terms",
]
