"""What the maximisation asks of a log-likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters


class NotPositiveDefiniteError(RuntimeError):
    """The covariance is numerically singular at these parameters, or too wide to be summed over the images of
    the grid."""


class Likelihood(ABC):
    """A log-likelihood in nats as a differentiable function of the vector of free parameters.

    Calls raise `NotPositiveDefiniteError` where Γ is singular to working precision.
    """

    model: KernelParameters
    data: Observations

    @abstractmethod
    def __call__(self, theta: Tensor) -> Tensor:
        """``ℓ(θ)`` of ``(p,)``, profiled over the coefficients of the mean."""

    @abstractmethod
    def mean_variance(self, theta: Tensor) -> tuple[float, float]:
        """Model variance of the domain mean, and of a site averaged over the domain."""

    def score_covariance(self, theta: Tensor) -> Tensor | None:
        """Covariance ``(p, p)`` of the gradient under the model, where it is not the information; else
        ``None``."""
        return None

    def information(self, theta: Tensor) -> Tensor | None:
        """Expected (Fisher) information ``(p, p)``, where it costs little more than the gradient: the search
        then is Fisher scoring; else ``None``."""
        return None

    def coefficients(self, theta: Tensor) -> Tensor | None:
        """Generalised-least-squares coefficients of the mean ``(C, q)``, in addition to the ordinary ones
        that the data were centred by; ``None`` where the mean has no design."""
        return None

    def coefficient_covariance(self, theta: Tensor) -> Tensor | None:
        """Covariance of the coefficients, ``(C, q, q)``, or ``(q, q)`` where it is that of every channel:
        ``(Xᵀ Γ⁻¹ X)⁻¹/N``."""
        return None

    def standard_error(self, theta: Tensor) -> float:
        """Monte-Carlo standard error of the value, nats."""
        return 0.0
