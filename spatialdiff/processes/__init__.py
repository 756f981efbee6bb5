"""How noise enters over time: schedules, processes, bridges, and the law of the state given the data."""

from spatialdiff.processes.base import expand
from spatialdiff.processes.bridge_law import BridgeLaw, PairedLaw
from spatialdiff.processes.bridges import Bridge, BrownianBridge, OrnsteinUhlenbeckBridge
from spatialdiff.processes.couplings import (
    Coupling,
    FixedPoint,
    IndependentField,
    Noised,
    Paired,
    as_coupling,
    time_reversal,
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
from spatialdiff.processes.schedules import (
    BetaSchedule,
    ConstantBeta,
    GeometricBeta,
    LinearBeta,
    ReversedBeta,
)

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
    "ReversedBeta",
    "SignalPath",
    "as_coupling",
    "expand",
    "time_reversal",
]
