"""How noise enters over time: schedules, processes, bridges, and the law of the state given the data."""

from spatialdiff.processes.auxiliary import ALDA, CLD, MALDA
from spatialdiff.processes.base import expand
from spatialdiff.processes.bridge_law import BridgeLaw, PairedLaw
from spatialdiff.processes.bridges import Bridge, BrownianBridge, OrnsteinUhlenbeckBridge, Pinned
from spatialdiff.processes.couplings import (
    Coupling,
    FixedPoint,
    IndependentField,
    Noised,
    Paired,
    as_coupling,
)
from spatialdiff.processes.law import Law
from spatialdiff.processes.learned import LearnedDiffusion
from spatialdiff.processes.learned_beta import LearnedBeta
from spatialdiff.processes.linear import LinearDiffusion
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.paths import CosinePath, LinearPath, RectifiedPath, SignalPath
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.processes.pinned_law import PinnedLaw
from spatialdiff.processes.pinned_pairs import PairedPinnedLaw
from spatialdiff.processes.reversal import time_reversal
from spatialdiff.processes.scalar import ScalarLaw
from spatialdiff.processes.schedules import (
    BetaSchedule,
    ConstantBeta,
    CosineBeta,
    GeometricBeta,
    LinearBeta,
    ReversedBeta,
)
from spatialdiff.processes.signal import (
    EDM,
    VE,
    VP,
    BrownianMotion,
    Cosine,
    OrnsteinUhlenbeck,
    Rectified,
    SignalProcess,
    SubVP,
)
from spatialdiff.processes.spectral import (
    FrequencyVP,
    HeatDissipation,
    SpectralDiffusion,
    StochasticHeat,
    laplacian_eigenvalues,
)
from spatialdiff.processes.starts import started_law

__all__ = [
    "ALDA",
    "CLD",
    "EDM",
    "MALDA",
    "VE",
    "VP",
    "BetaSchedule",
    "Bridge",
    "BridgeLaw",
    "BrownianBridge",
    "BrownianMotion",
    "ConstantBeta",
    "Cosine",
    "CosineBeta",
    "CosinePath",
    "Coupling",
    "FixedPoint",
    "FrequencyVP",
    "GeometricBeta",
    "HeatDissipation",
    "IndependentField",
    "Law",
    "LearnedBeta",
    "LearnedDiffusion",
    "LinearBeta",
    "LinearBridge",
    "LinearDiffusion",
    "LinearPath",
    "NoiseProcess",
    "Noised",
    "OrnsteinUhlenbeck",
    "OrnsteinUhlenbeckBridge",
    "Paired",
    "PairedLaw",
    "PairedPinnedLaw",
    "Pinned",
    "PinnedLaw",
    "Rectified",
    "RectifiedPath",
    "ReversedBeta",
    "ScalarLaw",
    "SignalPath",
    "SignalProcess",
    "SpectralDiffusion",
    "StochasticHeat",
    "SubVP",
    "as_coupling",
    "expand",
    "laplacian_eigenvalues",
    "started_law",
    "time_reversal",
]
