r"""The law of the state of a bridge mixture given the data end.

Where :math:`x_0 \mid x_\tau \sim N(m\,x_\tau + \mu_0,\; s^2\,\Gamma)`, the bridge
:math:`N(c_0 x_0 + c_\tau x_\tau, v_b\,\Gamma)` gives

.. math:: X_t \mid x_\tau \sim N\big((c_\tau + c_0 m)\,x_\tau + c_0\mu_0,\; (c_0^2 s^2 + v_b)\,\Gamma\big).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.processes.base import Times
from spatialdiff.processes.bridges import Bridge
from spatialdiff.processes.scalar import ScalarLaw


class BridgeLaw(ScalarLaw):
    """The law of ``X_t`` given ``x_τ`` where ``x_0 | x_τ ~ N(signal x_τ + value, std² Γ)``."""

    def __init__(
        self, bridge: Bridge, *, value: Tensor | float = 0.0, std: float = 0.0, signal: float = 0.0
    ) -> None:
        super().__init__(bridge.covariance, bridge.horizon, start_time=0.0, end_time=bridge.horizon)
        self._bridge = (bridge,)  # a tuple, so that Γ is not registered twice
        self.value: Tensor
        self.register_buffer("value", torch.as_tensor(value, dtype=torch.float64), persistent=False)
        self.std = std
        self.signal = signal
        self.deterministic_flow = std > 0.0

    @property
    def bridge(self) -> Bridge:
        return self._bridge[0]

    def alpha(self, t: Times) -> Tensor:
        c_0, c_1, _ = self.bridge.coefficients(t)
        return c_1 + self.signal * c_0

    def variance(self, t: Times) -> Tensor:
        c_0, _, v = self.bridge.coefficients(t)
        return self.std**2 * c_0**2 + v

    def alpha_rate(self, t: Times) -> Tensor:
        rate_0, rate_1, _ = self.bridge.coefficient_rates(t)
        return rate_1 + self.signal * rate_0

    def sigma_rate(self, t: Times) -> Tensor:
        rate_0, _, rate_v = self.bridge.coefficient_rates(t)
        c_0 = self.bridge.coefficients(t)[0]
        return (self.std**2 * c_0 * rate_0 + 0.5 * rate_v) / self.sigma(t)

    def offset(self, t: Times) -> Tensor:
        return self._offset(self.bridge.coefficients(t)[0])

    def offset_rate(self, t: Times) -> Tensor:
        return self._offset(self.bridge.coefficient_rates(t)[0])

    def _offset(self, coefficient: Tensor) -> Tensor:
        # one trailing axis per axis of (C, *grid), after the batch axis of the coefficient
        fields = len(self.covariance.domain.shape) + 1
        value = self.value.to(coefficient.device)
        if coefficient.ndim == 0:
            return coefficient * value
        return coefficient.reshape(-1, *([1] * fields)) * value

    def _ends(self) -> tuple[Tensor, Tensor]:
        return self.bridge.reference(0.0, self.horizon)

    def log_snr(self, t: Times) -> Tensor:
        c_0, c_1, v = self.bridge.coefficients(t)
        total = self.std**2 * c_0**2 + v
        level = 2.0 * torch.log(c_1 + self.signal * c_0) - torch.log(total)
        # a fixed point at t = 0 has neither signal nor noise; the limit of c_τ²/v_b is 0
        return torch.where((c_1 == 0) & (total == 0), torch.full_like(level, -math.inf), level)

    def time_of_log_snr(self, log_snr: Times) -> Tensor:
        # With w = v(t,τ)/(a(t,τ)² v(0,t)), a = a(0,τ), v = v(0,τ): c_0/c_τ = a w and v_b/c_τ² = v w, so 1/SNR
        # = E is (s²a² - E a²m²) w² + (v - 2 E a m) w - E = 0; its positive root, in the form that does not
        # cancel.
        level = torch.as_tensor(log_snr, dtype=torch.float64)
        a, v = (end.to(level.device) for end in self._ends())
        if bool(2.0 * a * self.std**2 < self.signal * v):
            raise RuntimeError(
                f"the signal-to-noise ratio of this bridge is not monotone "
                f"(signal {self.signal:g}, std {self.std:g}); name the time grid by times instead of log-SNR"
            )
        # no level is below the one at the start; without a signal that is -∞, where 1e280 stands for 1/SNR
        largest = (self.std / self.signal) ** 2 if self.signal > 0.0 else 1e280
        inverse = torch.exp(-level).clamp(max=largest)
        linear = v - 2.0 * inverse * a * self.signal
        quadratic = a**2 * (self.std**2 - inverse * self.signal**2)
        root = (linear**2 + 4.0 * quadratic * inverse).clamp(min=0.0).sqrt()
        denominator = linear + root
        w = torch.where(denominator > 0, 2.0 * inverse / denominator, torch.full_like(inverse, math.inf))
        reached = v / (1.0 + w)  # a(t,τ)² v(0,t)
        theta, total = self.bridge.rate, self.bridge.path.total.to(reached.device)
        if theta != 0.0:
            growth = 2.0 * theta * torch.exp(2.0 * theta * total)
            reached = torch.log1p(growth * reached) / (2.0 * theta)
        return self.bridge.schedule.time_of_integral(reached.clamp(max=total)).clamp(0.0, self.horizon)

    def step(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        return self.bridge.posterior(t, s)

    def diffusion(self, t: Times) -> Tensor:
        return self.bridge.diffusion(t)

    def reverse_drift(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """The drift of the bridge mixture, ``-θβ u + β a (D - a u)/v``."""
        return self.bridge.drift_target(u, data, t)


class PairedLaw(BridgeLaw):
    """The law of a paired bridge: coefficients given *both* ends, ``X_t ~ N(c_τ x_τ + c_0 x_0, v_b Γ)``.

    Steps, drifts and log-SNR need no more; ``mean``, ``gamma_score`` and ``velocity`` would need the law
    given x_τ alone, which has no closed form, and raise ``RuntimeError``.
    """

    closed_form = False

    def offset(self, t: Times) -> Tensor:
        raise RuntimeError(
            "the law of a paired bridge given the data alone has no closed form: its mean depends on x0. Use "
            "prediction='data' with preconditioning='none', and the 'bridge' or 'euler_maruyama' solver"
        )

    def offset_rate(self, t: Times) -> Tensor:
        return self.offset(t)

    def start(
        self,
        shape: int | Sequence[int],
        channels: int,
        *,
        time: float | None = None,
        data: tuple[Tensor | float, Covariance | None] | None = None,
        initial: Tensor | None = None,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The given ``initial`` fields x_0 ``(*shape, C, *grid)``; raises ``ValueError`` without them."""
        lead = (shape,) if isinstance(shape, int) else tuple(shape)
        needed = (*lead, channels, *self.covariance.domain.shape)
        if initial is None or tuple(initial.shape) != needed:
            given = "nothing" if initial is None else f"a field of shape {tuple(initial.shape)}"
            raise ValueError(f"a paired bridge starts from given fields x0 of shape {needed}; got {given}")
        if time not in (None, 0.0):
            raise ValueError(f"a paired bridge starts from x0 at time 0; got time={time!r}")
        return initial.to(device=device or initial.device, dtype=dtype or initial.dtype)
