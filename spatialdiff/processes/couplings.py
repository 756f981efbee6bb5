r"""Couplings: how the start ``x_0`` of a bridge goes with the data ``x_τ``, and the law of the state that follows.

Where :math:`x_0 \mid x_\tau \sim N(m\,x_\tau + \mu_0,\; s^2\,\Gamma)`, the state of the bridge mixture given the data end is

.. math:: X_t \mid x_\tau \sim N\big((c_\tau + c_0 m)\,x_\tau + c_0\mu_0,\; (c_0^2 s^2 + v_b)\,\Gamma\big).

- ``FixedPoint``: m = s = 0;  ``IndependentField``: m = μ_0 = 0;
- ``Noised``: μ_0 = 0, m and s those of a noise process at its horizon. Then the bridge mixture is the reverse-time SDE;
- ``Paired``: x_0 comes with the data (a coarse or kriged field), and no closed form exists given x_τ alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.processes.base import Times
from spatialdiff.processes.bridges import Bridge
from spatialdiff.processes.law import Law

if TYPE_CHECKING:
    from spatialdiff.covariance import Covariance
    from spatialdiff.processes.noise import NoiseProcess


class BridgeLaw(Law):
    """The law of ``X_t`` given ``x_τ`` under ``x_0 | x_τ ~ N(signal x_τ + value, std² Γ)``; made by ``coupling.law``."""

    def __init__(
        self, bridge: Bridge, *, value: Tensor | float = 0.0, std: float = 0.0, signal: float = 0.0
    ) -> None:
        super().__init__(bridge.covariance, bridge.horizon, start_time=0.0, end_time=bridge.horizon)
        self._bridge = (bridge,)  # a tuple, so that Γ is not registered twice
        self.value: Tensor
        self.register_buffer("value", torch.as_tensor(value).to(torch.float64), persistent=False)
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
        # With w = v(t,τ)/(a(t,τ)² v(0,t)), a = a(0,τ), v = v(0,τ): c_0/c_τ = a w and v_b/c_τ² = v w, so 1/SNR = E is
        # (s²a² - E a²m²) w² + (v - 2 E a m) w - E = 0; its positive root, in the form that does not cancel.
        level = torch.as_tensor(log_snr).to(torch.float64)
        a, v = (end.to(level.device) for end in self._ends())
        if bool(2.0 * a * self.std**2 < self.signal * v):
            raise RuntimeError(
                f"the signal-to-noise ratio of this bridge is not monotone (signal {self.signal:g}, std {self.std:g}); "
                "name the time grid by times instead of log-SNR"
            )
        inverse = torch.exp(-level)
        linear = v - 2.0 * inverse * a * self.signal
        quadratic = a**2 * (self.std**2 - inverse * self.signal**2)
        root = (linear**2 + 4.0 * quadratic * inverse).clamp(min=0.0).sqrt()
        denominator = linear + root
        w = torch.where(denominator > 0, 2.0 * inverse / denominator, torch.full_like(inverse, math.inf))
        reached = v / (1.0 + w)  # a(t,τ)² v(0,t)
        theta = self.bridge.rate
        if theta != 0.0:
            total = self.bridge.schedule.integral(torch.as_tensor(self.horizon, dtype=torch.float64))
            reached = torch.log1p(2.0 * theta * torch.exp(2.0 * theta * total).to(w) * reached) / (
                2.0 * theta
            )
        return self.bridge.schedule.time_of_integral(reached).clamp(0.0, self.horizon)

    def step(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        return self.bridge.posterior(t, s)

    def diffusion(self, t: Times) -> Tensor:
        return self.bridge.diffusion(t)

    def reverse_drift(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """The drift of the bridge mixture, ``-θβ u + β a (D - a u)/v``."""
        return self.bridge.drift_target(u, data, t)


class PairedLaw(BridgeLaw):
    """The law of a paired bridge: coefficients given *both* ends, ``X_t ~ N(c_τ x_τ + c_0 x_0, v_b Γ)``.

    Steps, drifts and log-SNR need no more; ``mean``, ``gamma_score`` and ``velocity`` would need the law given x_τ alone,
    which has no closed form, and raise ``RuntimeError``.
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


class Coupling(ABC):
    """How ``x_0`` is drawn for data ``x1``, and the law that results; ``needs_initial``: x_0 must be supplied."""

    needs_initial: bool = False

    @abstractmethod
    def law(self, bridge: Bridge) -> Law:
        """The law of X_t given x_τ."""

    @abstractmethod
    def draw(
        self,
        bridge: Bridge,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Starts x_0 for the data ``x1``, of the same shape; ``x0`` only where the data are pairs."""

    def _refuse(self, x0: Tensor | None) -> None:
        if x0 is not None:
            raise ValueError(
                f"{type(self).__name__} draws x0 itself; pass x0 with the 'paired' coupling only"
            )


class FixedPoint(Coupling):
    """Every path starts from ``value``: a number, or a field ``(*grid)`` or ``(C, *grid)``."""

    def __init__(self, value: Tensor | float = 0.0) -> None:
        self.value = torch.as_tensor(value).to(torch.float64)
        if not bool(torch.isfinite(self.value).all()):
            raise ValueError("the value of FixedPoint is not finite; it must be a finite number or field")

    def law(self, bridge: Bridge) -> BridgeLaw:
        shape = tuple(bridge.covariance.domain.shape)
        if self.value.ndim not in (0, len(shape), len(shape) + 1) or (
            self.value.ndim and tuple(self.value.shape[-len(shape) :]) != shape
        ):
            raise ValueError(
                f"the value of FixedPoint has shape {tuple(self.value.shape)}; "
                f"it must be a number or a field (*grid) or (C, *grid) with grid {shape}"
            )
        return BridgeLaw(bridge, value=self.value)

    def draw(
        self,
        bridge: Bridge,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self._refuse(x0)
        return self.value.to(device=x1.device, dtype=x1.dtype).expand_as(x1)

    def __repr__(self) -> str:
        return f"FixedPoint({self.value.item():g})" if self.value.ndim == 0 else "FixedPoint(<field>)"


class IndependentField(Coupling):
    """``x_0 ~ N(0, std² Γ)``, independent of the data; has a probability flow."""

    def __init__(self, std: float = 1.0) -> None:
        if not (math.isfinite(std) and std > 0.0):
            raise ValueError(f"std was {std!r}; it must be positive and finite (use FixedPoint for no noise)")
        self.std = float(std)

    def law(self, bridge: Bridge) -> BridgeLaw:
        return BridgeLaw(bridge, std=self.std)

    def draw(
        self,
        bridge: Bridge,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self._refuse(x0)
        noise = bridge.draw(
            x1.shape[0], x1.shape[1], white=white, generator=generator, dtype=x1.dtype, device=x1.device
        )
        return self.std * noise

    def __repr__(self) -> str:
        return f"IndependentField(std={self.std:g})"


class Noised(Coupling):
    """``x_0 = signal x_τ + std η``: the start is the data after a noise process with those α_T and σ_T.

    With the bridge of the same process reversed in time (for VP, ``OrnsteinUhlenbeckBridge`` with rate 0.5 and the β of the
    reversed time) the bridge mixture is the reverse-time SDE: the view that unites denoising with bridge mixtures.
    """

    def __init__(self, signal: float, std: float) -> None:
        if not (math.isfinite(signal) and math.isfinite(std) and signal >= 0.0 and std > 0.0):
            raise ValueError(
                f"signal was {signal!r} and std {std!r}; they must be finite, signal >= 0 and std > 0"
            )
        self.signal = float(signal)
        self.std = float(std)

    @classmethod
    def of(cls, process: NoiseProcess) -> Noised:
        """The law of the noised data at the horizon of ``process``."""
        return cls(process.alpha(process.horizon).item(), process.sigma(process.horizon).item())

    def law(self, bridge: Bridge) -> BridgeLaw:
        return BridgeLaw(bridge, std=self.std, signal=self.signal)

    def draw(
        self,
        bridge: Bridge,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self._refuse(x0)
        noise = bridge.draw(
            x1.shape[0], x1.shape[1], white=white, generator=generator, dtype=x1.dtype, device=x1.device
        )
        return self.signal * x1 + self.std * noise

    def __repr__(self) -> str:
        return f"Noised(signal={self.signal:g}, std={self.std:g})"


class Paired(Coupling):
    """``x_0`` comes with the data: pairs (start, data), for example (kriged or coarse field, fine field)."""

    needs_initial = True

    def law(self, bridge: Bridge) -> PairedLaw:
        return PairedLaw(bridge)

    def draw(
        self,
        bridge: Bridge,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if x0 is None:
            raise ValueError("the paired coupling needs x0 for every x1; pass batches (x1, x0)")
        if x0.shape != x1.shape:
            raise ValueError(f"x0 has shape {tuple(x0.shape)} and x1 {tuple(x1.shape)}; pairs must match")
        return x0

    def __repr__(self) -> str:
        return "Paired()"


def as_coupling(coupling: Coupling | str) -> Coupling:
    """A coupling by object or by name: ``"fixed"``, ``"independent"``, ``"paired"``; raises ``ValueError`` otherwise."""
    if isinstance(coupling, Coupling):
        return coupling
    named = {"fixed": FixedPoint, "independent": IndependentField, "paired": Paired}
    if coupling not in named:
        raise ValueError(
            f"unknown coupling {coupling!r}; known: {', '.join(sorted(named))}, or a Coupling object"
        )
    return named[coupling]()
