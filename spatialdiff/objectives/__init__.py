"""What is minimised: each objective is a module whose call is a scalar loss, so that any training loop can
use it.
"""

from spatialdiff.objectives.bridge_mixture import BridgeMixture
from spatialdiff.objectives.denoising import Denoising
from spatialdiff.objectives.times import DISTRIBUTIONS, TimeDistribution
from spatialdiff.objectives.weighting import WEIGHTINGS

__all__ = ["DISTRIBUTIONS", "WEIGHTINGS", "BridgeMixture", "Denoising", "TimeDistribution"]
