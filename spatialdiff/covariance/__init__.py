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
from spatialdiff.covariance.compositions.blocks import BlockCovariance
from spatialdiff.covariance.compositions.coregionalized import CoregionalizedCovariance
from spatialdiff.covariance.compositions.low_rank import LowRankCovariance
from spatialdiff.covariance.compositions.scaled import ScaledCovariance
from spatialdiff.covariance.compositions.sums import SumCovariance
from spatialdiff.covariance.dense import DenseCovariance
from spatialdiff.covariance.factory import covariance
from spatialdiff.covariance.grids.circulant import CirculantCovariance
from spatialdiff.covariance.grids.cosine import CosineCovariance
from spatialdiff.covariance.grids.embedding import EmbeddingError, EmbeddingReport, embedding_report
from spatialdiff.covariance.grids.kronecker import KroneckerCovariance
from spatialdiff.covariance.grids.masked import MaskedCovariance
from spatialdiff.covariance.grids.reflection import ReflectionCovariance
from spatialdiff.covariance.grids.torus import TorusCovariance
from spatialdiff.covariance.joint import joint_spectrum
from spatialdiff.covariance.meshes.graph_basis import GraphBasis
from spatialdiff.covariance.meshes.graph_matern import GraphMaternCovariance
from spatialdiff.covariance.meshes.spde import SPDECovariance
from spatialdiff.covariance.points.matrix_free import MatrixFreeCovariance
from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.spheres.sphere import SphereCovariance
from spatialdiff.covariance.spheres.sphere_basis import SphereBasis
from spatialdiff.covariance.unbounded.field import UnboundedField
from spatialdiff.covariance.unbounded.moving_average import MovingAverage
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
    "GraphBasis",
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
    "SphereBasis",
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
