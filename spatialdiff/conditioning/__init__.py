"""Fields given observations: kriging, conditional simulation, filling of missing cells."""

from __future__ import annotations

from spatialdiff.conditioning.conditional import ConditionalCovariance
from spatialdiff.conditioning.coupling import KrigedStart
from spatialdiff.conditioning.filling import Filled, fill
from spatialdiff.conditioning.kriging import Kriging
from spatialdiff.conditioning.messages import KrigingWarning
from spatialdiff.conditioning.offgrid import OffGridPrior
from spatialdiff.conditioning.prediction import Prediction

__all__ = [
    "ConditionalCovariance",
    "Filled",
    "KrigedStart",
    "Kriging",
    "KrigingWarning",
    "OffGridPrior",
    "Prediction",
    "fill",
]
