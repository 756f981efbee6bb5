r"""Sub-VP and EDM as signal and noise over time.

.. math:: \alpha = e^{-B/2},\; \sigma = 1 - e^{-B} \quad\text{(sub-VP)}, \qquad
          \alpha = 1,\; \sigma = t \quad\text{(EDM)}.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.processes.paths import SignalPath
from spatialdiff.processes.schedules import BetaSchedule, positive


class SubVPPath(SignalPath):
    r"""α = e^{-B/2}, σ = 1 - e^{-B}: less noise than VP at every t (Song et al. 2021, arXiv 2011.13456).

    Equation 27 there: ``du = -β/2 u dt + √(β(1 - e^{-2B})) Γ^{1/2} dW``. With b = B(t) - B(s),
    ``Σ(s, t) = (1 - e^{-b})(1 - e^{-B(s) - B(t)})``.
    """

    def __init__(self, beta: BetaSchedule) -> None:
        super().__init__(beta.horizon)
        self.beta = beta

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.beta.integral(t))

    def variance(self, t: Tensor) -> Tensor:
        return torch.expm1(-self.beta.integral(t)).square()

    def alpha_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.rate(t) * self.alpha(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return self.beta.rate(t) * torch.exp(-self.beta.integral(t))

    def log_snr(self, t: Tensor) -> Tensor:
        b = self.beta.integral(t)
        return -b - 2.0 * torch.log(-torch.expm1(-b))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        # σ/α = 2 sinh(B/2)
        b = 2.0 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr))
        return self.beta.time_of_integral(torch.minimum(b, self.beta.total.to(b.device)))

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self.beta.between(s, t)
        both = self.beta.integral(s) + self.beta.integral(t)
        return torch.exp(-0.5 * b), torch.expm1(-b) * torch.expm1(-both)

    def drift_rate(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta.rate(t)

    def rate(self, t: Tensor) -> Tensor:
        return -self.beta.rate(t) * torch.expm1(-2.0 * self.beta.integral(t))

    def integral(self, t: Tensor) -> Tensor:
        # B - (1 - e^{-2B})/2, which cancels for small B
        b = self.beta.integral(t)
        small = b < 0.1
        near = torch.where(small, b, torch.zeros_like(b))
        series = torch.ones_like(b)
        for k in range(12, 2, -1):
            series = 1.0 - 2.0 * near / k * series
        series = near.square() * series
        return torch.where(small, series, b + 0.5 * torch.expm1(-2.0 * b))

    def __repr__(self) -> str:
        return f"SubVPPath({self.beta!r})"


class EDMPath(SignalPath):
    """α = 1, σ = t on ``[0, σ_max]``: time is the noise (Karras et al. 2022, arXiv 2206.00364, table 1).

    ``g² = 2t``, ``Σ(s, t) = (t - s)(t + s)``.
    """

    def __init__(self, sigma_max: float = 80.0) -> None:
        super().__init__(positive("sigma_max", sigma_max))

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 + 0.0 * t  # a function of t also for autograd

    def variance(self, t: Tensor) -> Tensor:
        return t.square()

    def alpha_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_rate(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2.0 * torch.log(t)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), (t - s) * (t + s)

    def drift_rate(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def rate(self, t: Tensor) -> Tensor:
        return 2.0 * t

    def integral(self, t: Tensor) -> Tensor:
        return t.square()

    def __repr__(self) -> str:
        return f"EDMPath(sigma_max={self.horizon:g})"
