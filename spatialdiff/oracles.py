"""What is known exactly: posterior means for Gaussian data and for a finite data set, and the error that a
sampler makes on Gaussian data.
"""

from __future__ import annotations

from spatialdiff.denoisers.empirical import EmpiricalDenoiser
from spatialdiff.denoisers.gaussian import GaussianDenoiser
from spatialdiff.sampling.transport import TransportError, gaussian_transport_error
from spatialdiff.sampling.transport_picture import transport_picture

__all__ = [
    "EmpiricalDenoiser",
    "GaussianDenoiser",
    "TransportError",
    "gaussian_transport_error",
    "transport_picture",
]
