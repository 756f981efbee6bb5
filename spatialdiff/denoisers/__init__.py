"""The posterior mean of the data given the state: from a network, for Gaussian data, for a finite data
set.
"""

from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.denoiser import Denoiser
from spatialdiff.denoisers.empirical import EmpiricalDenoiser
from spatialdiff.denoisers.gaussian import GaussianDenoiser, GaussianModel
from spatialdiff.denoisers.preconditioning import PRECONDITIONINGS
from spatialdiff.denoisers.predictions import PREDICTIONS, convert

__all__ = [
    "PRECONDITIONINGS",
    "PREDICTIONS",
    "Denoiser",
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "GaussianModel",
    "PosteriorMean",
    "convert",
]
