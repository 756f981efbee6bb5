"""Are these the right fields? Distances between generated and real fields, each with the floor that real
fields give."""

from spatialdiff.evaluation.compare import METRICS, compare
from spatialdiff.evaluation.curves import Panel
from spatialdiff.evaluation.energy import energy_distance
from spatialdiff.evaluation.metric import Metric
from spatialdiff.evaluation.nearest import nearest_distance
from spatialdiff.evaluation.report import Report
from spatialdiff.evaluation.spectrum import spectrum
from spatialdiff.evaluation.variogram import variogram

__all__ = [
    "METRICS",
    "Metric",
    "Panel",
    "Report",
    "compare",
    "energy_distance",
    "nearest_distance",
    "spectrum",
    "variogram",
]
