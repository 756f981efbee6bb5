"""How noise enters over time: schedules, noise processes, bridges, and the law of the state given the data."""

from spatialdiff.processes.base import expand
from spatialdiff.processes.bridges import Bridge, BrownianBridge, OrnsteinUhlenbeckBridge
from spatialdiff.processes.couplings import (
    BridgeLaw,
    Coupling,
    FixedPoint,
    IndependentField,
    Noised,
    Paired,
    PairedLaw,
    as_coupling,
)
from spatialdiff.processes.law import Law
from spatialdiff.processes.noise import (
    VE,
    VP,
    BrownianMotion,
    Cosine,
    NoiseProcess,
    OrnsteinUhlenbeck,
    Rectified,
)
from spatialdiff.processes.paths import CosinePath, LinearPath, RectifiedPath, SignalPath
from spatialdiff.processes.schedules import BetaSchedule, ConstantBeta, GeometricBeta, LinearBeta

__all__ = [
    "VE",
    "VP",
    "BetaSchedule",
    "Bridge",
    "BridgeLaw",
    "BrownianBridge",
    "BrownianMotion",
    "ConstantBeta",
    "Cosine",
    "CosinePath",
    "Coupling",
    "FixedPoint",
    "GeometricBeta",
    "IndependentField",
    "Law",
    "LinearBeta",
    "LinearPath",
    "NoiseProcess",
    "Noised",
    "OrnsteinUhlenbeck",
    "OrnsteinUhlenbeckBridge",
    "Paired",
    "PairedLaw",
    "Rectified",
    "RectifiedPath",
    "SignalPath",
    "as_coupling",
    "expand",
]
