"""What is minimised: each objective is a module whose call is a scalar loss, so that any training loop can
use it.
"""

from spatialdiff.objectives.bridge_mixture import BridgeMixture
from spatialdiff.objectives.denoising import Denoising
from spatialdiff.objectives.evidence_bound import EvidenceBound
from spatialdiff.objectives.proposals import (
    PROPOSALS,
    AnalyticProposal,
    LearnedProposal,
    Proposal,
    TimeProposal,
    UniformProposal,
)
from spatialdiff.objectives.times import DISTRIBUTIONS, TimeDistribution
from spatialdiff.objectives.weighting import NORMS, WEIGHTINGS

__all__ = [
    "DISTRIBUTIONS",
    "NORMS",
    "PROPOSALS",
    "WEIGHTINGS",
    "AnalyticProposal",
    "BridgeMixture",
    "Denoising",
    "EvidenceBound",
    "LearnedProposal",
    "Proposal",
    "TimeDistribution",
    "TimeProposal",
    "UniformProposal",
]
