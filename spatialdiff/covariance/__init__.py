"""Γ as an operator: one file per structure, one factory."""

from __future__ import annotations

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.basis import (
    Basis,
    ChannelBasis,
    CosineBasis,
    FactorBasis,
    FourierBasis,
    PencilBasis,
)
from spatialdiff.covariance.checks import SpatialWarning
from spatialdiff.covariance.circulant import CirculantCovariance, EmbeddingError
from spatialdiff.covariance.cosine import CosineCovariance
from spatialdiff.covariance.dense import DenseCovariance
from spatialdiff.covariance.factory import covariance
from spatialdiff.covariance.joint import joint_spectrum
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.torus import TorusCovariance
from spatialdiff.covariance.white import WhiteCovariance, white

__all__ = [
    "Basis",
    "ChannelBasis",
    "CirculantCovariance",
    "CosineBasis",
    "CosineCovariance",
    "Covariance",
    "CovarianceReport",
    "DenseCovariance",
    "EmbeddingError",
    "FactorBasis",
    "FourierBasis",
    "PencilBasis",
    "SpatialWarning",
    "TorusCovariance",
    "WhiteCovariance",
    "covariance",
    "joint_spectrum",
    "white",
]
