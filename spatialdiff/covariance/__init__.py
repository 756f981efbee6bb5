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
from spatialdiff.covariance.blocks import BlockCovariance
from spatialdiff.covariance.checks import SpatialWarning
from spatialdiff.covariance.circulant import CirculantCovariance
from spatialdiff.covariance.coregionalized import CoregionalizedCovariance
from spatialdiff.covariance.cosine import CosineCovariance
from spatialdiff.covariance.dense import DenseCovariance
from spatialdiff.covariance.embedding import EmbeddingError, EmbeddingReport, embedding_report
from spatialdiff.covariance.factory import covariance
from spatialdiff.covariance.graph_matern import GraphMaternCovariance
from spatialdiff.covariance.joint import joint_spectrum
from spatialdiff.covariance.kronecker import KroneckerCovariance
from spatialdiff.covariance.low_rank import LowRankCovariance
from spatialdiff.covariance.masked import MaskedCovariance
from spatialdiff.covariance.matrix_free import MatrixFreeCovariance
from spatialdiff.covariance.moving_average import MovingAverage
from spatialdiff.covariance.reflection import ReflectionCovariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.scaled import ScaledCovariance
from spatialdiff.covariance.spde import SPDECovariance
from spatialdiff.covariance.sphere import SphereCovariance
from spatialdiff.covariance.sums import SumCovariance
from spatialdiff.covariance.torus import TorusCovariance
from spatialdiff.covariance.unbounded import UnboundedField
from spatialdiff.covariance.vecchia import VecchiaCovariance
from spatialdiff.covariance.white import WhiteCovariance, white

__all__ = [
    "Basis",
    "BlockCovariance",
    "ChannelBasis",
    "CirculantCovariance",
    "CoregionalizedCovariance",
    "CosineBasis",
    "CosineCovariance",
    "Covariance",
    "CovarianceReport",
    "DenseCovariance",
    "EmbeddingError",
    "EmbeddingReport",
    "FactorBasis",
    "FourierBasis",
    "GraphMaternCovariance",
    "KroneckerCovariance",
    "LowRankCovariance",
    "MaskedCovariance",
    "MatrixFreeCovariance",
    "MovingAverage",
    "PencilBasis",
    "ReflectionCovariance",
    "SPDECovariance",
    "ScaledCovariance",
    "SpatialWarning",
    "SphereCovariance",
    "SumCovariance",
    "TorusCovariance",
    "UnboundedField",
    "VecchiaCovariance",
    "WhiteCovariance",
    "covariance",
    "embedding_report",
    "joint_spectrum",
    "white",
]
