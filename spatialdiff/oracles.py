"""Posterior means that are known exactly: for Gaussian data, and for a finite data set."""

from __future__ import annotations

from spatialdiff.denoisers.empirical import EmpiricalDenoiser
from spatialdiff.denoisers.gaussian import GaussianDenoiser

__all__ = ["EmpiricalDenoiser", "GaussianDenoiser"]
