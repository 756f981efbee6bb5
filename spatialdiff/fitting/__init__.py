"""Γ from data: maximum likelihood and smoothed spectra."""

from __future__ import annotations

from spatialdiff.fitting.estimate import fit
from spatialdiff.fitting.likelihoods.spectra import (
    LagWeights,
    embedding_weights,
    expected_weights,
    lattice_weights,
    periodogram,
    spectral_density,
)
from spatialdiff.fitting.nonparametric.smoothing import SpectrumBins
from spatialdiff.fitting.observations import Observations, observe
from spatialdiff.fitting.result import FitResult, FitWarning, MeanShare

__all__ = [
    "FitResult",
    "FitWarning",
    "LagWeights",
    "MeanShare",
    "Observations",
    "SpectrumBins",
    "embedding_weights",
    "expected_weights",
    "fit",
    "lattice_weights",
    "observe",
    "periodogram",
    "spectral_density",
]
