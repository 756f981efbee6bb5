"""How probable fields are under a diffusion model: evidence bounds and the probability flow."""

from spatialdiff.likelihood.evidence import evidence_bound
from spatialdiff.likelihood.flow import probability_flow
from spatialdiff.likelihood.result import Likelihood, dequantise

__all__ = ["Likelihood", "dequantise", "evidence_bound", "probability_flow"]
