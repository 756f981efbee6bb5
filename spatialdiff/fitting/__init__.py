"""Γ from data: maximum likelihood and smoothed spectra."""

from __future__ import annotations

from spatialdiff.fitting.estimate import fit
from spatialdiff.fitting.replicates import Replicates, replicates
from spatialdiff.fitting.result import FitResult, FitWarning, MeanShare
from spatialdiff.fitting.smoothing import SpectrumBins
from spatialdiff.fitting.spectra import (
    LagWeights,
    embedding_weights,
    expected_weights,
    lattice_weights,
    periodogram,
    spectral_density,
)

__all__ = [
    "FitResult",
    "FitWarning",
    "LagWeights",
    "MeanShare",
    "Replicates",
    "SpectrumBins",
    "embedding_weights",
    "expected_weights",
    "fit",
    "lattice_weights",
    "periodogram",
    "replicates",
    "spectral_density",
]
