"""Γ from data: likelihoods, variograms and spectra; intervals, comparison, cross-validation, diagnostics."""

from __future__ import annotations

from spatialdiff.fitting.estimate import fit
from spatialdiff.fitting.inference.checks import ScaleCheck, checks
from spatialdiff.fitting.inference.comparison import Comparison, compare
from spatialdiff.fitting.inference.intervals import Profile, interval, profile
from spatialdiff.fitting.inference.pictures import diagnose
from spatialdiff.fitting.inference.scores import (
    energy_score,
    ensemble_crps,
    gaussian_crps,
    gaussian_interval_score,
    gaussian_log_score,
    gaussian_pit,
)
from spatialdiff.fitting.inference.validated import Validation
from spatialdiff.fitting.inference.validation import cross_validate
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
from spatialdiff.fitting.variograms.empirical import Variogram, directional_variograms, variogram
from spatialdiff.fitting.variograms.least_squares import VariogramFit, fit_variogram
from spatialdiff.fitting.variograms.maps import VariogramMap, variogram_map

__all__ = [
    "Comparison",
    "FitResult",
    "FitWarning",
    "LagWeights",
    "MeanShare",
    "Observations",
    "Profile",
    "ScaleCheck",
    "SpectrumBins",
    "Validation",
    "Variogram",
    "VariogramFit",
    "VariogramMap",
    "checks",
    "compare",
    "cross_validate",
    "diagnose",
    "directional_variograms",
    "embedding_weights",
    "energy_score",
    "ensemble_crps",
    "expected_weights",
    "fit",
    "fit_variogram",
    "gaussian_crps",
    "gaussian_interval_score",
    "gaussian_log_score",
    "gaussian_pit",
    "interval",
    "lattice_weights",
    "observe",
    "periodogram",
    "profile",
    "spectral_density",
    "variogram",
    "variogram_map",
]
