r"""Couplings: how the start ``x_0`` of a bridge goes with the data ``x_τ``, and the law that follows.

Where :math:`x_0 \mid x_\tau \sim N(m\,x_\tau + \mu_0,\; s^2\,\Gamma)`, the state of the bridge mixture given
the data end is

.. math:: X_t \mid x_\tau \sim N\big((c_\tau + c_0 m)\,x_\tau + c_0\mu_0,\; (c_0^2 s^2 + v_b)\,\Gamma\big).

- ``FixedPoint``: m = s = 0;  ``IndependentField``: m = μ_0 = 0;
- ``Noised``: μ_0 = 0, m and s those of a noise process at its horizon. Then the bridge mixture is the
  reverse-time SDE;
- ``Paired``: x_0 comes with the data (a coarse or kriged field), and no closed form exists given x_τ alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from spatialdiff.processes.bridge_law import BridgeLaw, PairedLaw
from spatialdiff.processes.bridges import Bridge
from spatialdiff.processes.law import Law
from spatialdiff.processes.paths import LinearPath
from spatialdiff.processes.schedules import ReversedBeta
from spatialdiff.processes.signal import SignalProcess


class Coupling(ABC):
    """How ``x_0`` is drawn for data ``x1``, and the law that results.

    ``needs_initial`` says that x_0 must be supplied with the data.
    """

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
        self.value = torch.as_tensor(value, dtype=torch.float64)
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

    With the bridge of the same process run backward (``time_reversal`` gives both) the bridge mixture is the
    reverse-time SDE: the view that unites denoising with bridge mixtures.
    """

    def __init__(self, signal: float, std: float) -> None:
        if not (math.isfinite(signal) and math.isfinite(std) and signal >= 0.0 and std > 0.0):
            raise ValueError(
                f"signal was {signal!r} and std {std!r}; they must be finite, signal >= 0 and std > 0"
            )
        self.signal = float(signal)
        self.std = float(std)

    @classmethod
    def of(cls, process: SignalProcess) -> Noised:
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
    """A coupling by object or name: ``"fixed"``, ``"independent"``, ``"paired"``; else ``ValueError``."""
    if isinstance(coupling, Coupling):
        return coupling
    named: dict[str, Callable[[], Coupling]] = {
        "fixed": FixedPoint,
        "independent": IndependentField,
        "paired": Paired,
    }
    if coupling not in named:
        raise ValueError(
            f"unknown coupling {coupling!r}; known: {', '.join(sorted(named))}, or a Coupling object"
        )
    return named[coupling]()


def time_reversal(process: SignalProcess) -> tuple[Bridge, Noised]:
    r"""The bridge and the coupling whose mixture, at time T - t, is the reverse-time SDE of ``process``.

    The path from noised to clean data, given both, is a bridge of the same reference under the reversed β;
    and with :math:`\sigma_t^2 = (1 - \alpha_t^2)/(2\theta)` the drift of the mixture,
    :math:`-\theta\beta X + \beta\alpha_t(D - \alpha_t X)/\sigma_t^2`, is that of the reverse SDE,
    :math:`\theta\beta X + \beta(\alpha_t D - X)/\sigma_t^2`.

    Raises ``TypeError`` for ``Cosine`` and ``Rectified``, which no β schedule on a closed interval gives.
    """
    path = process.schedule
    if not isinstance(path, LinearPath):
        raise TypeError(
            f"{type(process).__name__} has no beta schedule; time_reversal needs VP, VE, BrownianMotion or "
            "OrnsteinUhlenbeck"
        )
    return Bridge(process.covariance, ReversedBeta(path.beta), path.theta), Noised.of(process)
