r"""Couplings: how the start ``x_0`` of a bridge goes with the data ``x_τ``, and the law that follows.

Where :math:`x_0 \mid x_\tau \sim N(m\,x_\tau + \mu_0,\; s^2\,\Gamma)`, the state of the bridge mixture given
the data end is

.. math:: X_t \mid x_\tau \sim N\big((c_\tau + c_0 m)\,x_\tau + c_0\mu_0,\; (c_0^2 s^2 + v_b)\,\Gamma\big).

- ``FixedPoint``: m = s = 0;  ``IndependentField``: m = 0;
- ``Noised``: μ_0 = 0, m and s those of a noise process at its horizon. Then the bridge mixture is the
  reverse-time SDE;
- ``Paired``: x_0 comes with the data (a coarse or kriged field), and no closed form exists given x_τ alone.

Couplings speak of the data variable. A bridge of several variables (``LinearBridge``) starts its auxiliary
ones from ``v_0 ~ N(0, V_0 ⊗ Γ)`` of its process, but for ``Noised``, whose m and s are then those of the
state: ``m ∈ R^K``, ``s`` a root of its K×K covariance.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from spatialdiff.processes.bridge_law import BridgeLaw, PairedLaw
from spatialdiff.processes.bridges import Bridge, Pinned
from spatialdiff.processes.law import Law
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.processes.pinned_law import PinnedLaw
from spatialdiff.processes.pinned_pairs import PairedPinnedLaw
from spatialdiff.processes.signal import SignalProcess
from spatialdiff.processes.starts import check_start, start_field, started_law


class Coupling(ABC):
    """How ``x_0`` is drawn for data ``x1``, and the law that results.

    ``needs_initial`` says that x_0 must be supplied with the data.
    """

    needs_initial: bool = False

    @abstractmethod
    def law(self, bridge: Pinned) -> Law:
        """The law of the state given x_τ."""

    @abstractmethod
    def draw(
        self,
        bridge: Pinned,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Starts for the data ``x1`` ``(B, C, *grid)``; ``x0`` only where the data are pairs.

        ``(B, C, *grid)``; of a ``LinearBridge`` the state ``(B, K*C, *grid)``.
        """

    def _refuse(self, x0: Tensor | None) -> None:
        if x0 is not None:
            raise ValueError(
                f"{type(self).__name__} draws x0 itself; pass x0 with the 'paired' coupling only"
            )

    def _state(
        self, bridge: Pinned, x0: Tensor, white: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """``(x_0, v_0)``, with auxiliary variables drawn where the bridge has any."""
        if not isinstance(bridge, LinearBridge) or bridge.variables == 1:
            return x0
        noise = _noise(bridge, x0, white, generator)
        fresh = bridge.mix(bridge.reference_process.initial_root, noise)
        return torch.cat([x0, fresh[:, x0.shape[1] :]], dim=1)


class FixedPoint(Coupling):
    """Every path starts from ``value``: a number, or a field ``(*grid)`` or ``(C, *grid)``."""

    def __init__(self, value: Tensor | float = 0.0) -> None:
        self.value = start_field(value, "the value of FixedPoint")

    def law(self, bridge: Pinned) -> BridgeLaw | PinnedLaw:
        check_start(self.value, bridge, "the value of FixedPoint")
        return started_law(bridge, self.value)

    def draw(
        self,
        bridge: Pinned,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self._refuse(x0)
        return self._state(bridge, self.value.to(x1).expand_as(x1), white, generator)

    def __repr__(self) -> str:
        return f"FixedPoint({self.value.item():g})" if self.value.ndim == 0 else "FixedPoint(<field>)"


class IndependentField(Coupling):
    """``x_0 ~ N(mean, std² Γ)``, independent of the data; has a probability flow.

    Args:
        std: standard deviation relative to Γ.
        mean: a number, or a field ``(*grid)`` or ``(C, *grid)``; with a kriged field for the mean and its
            kriging covariance for Γ paths start from conditional simulations.

    Raises:
        ValueError: a ``std`` that is not positive, a mean that is not finite; with a bridge on another grid.
    """

    def __init__(self, std: float = 1.0, mean: Tensor | float = 0.0) -> None:
        if not (math.isfinite(std) and std > 0.0):
            raise ValueError(f"std was {std!r}; it must be positive and finite (use FixedPoint for no noise)")
        self.std = float(std)
        self.mean = start_field(mean, "the mean of IndependentField")

    def law(self, bridge: Pinned) -> BridgeLaw | PinnedLaw:
        check_start(self.mean, bridge, "the mean of IndependentField")
        return started_law(bridge, self.mean, self.std)

    def draw(
        self,
        bridge: Pinned,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self._refuse(x0)
        noise = _noise(bridge, x1, white, generator)
        if not isinstance(bridge, LinearBridge):
            return self.mean.to(x1) + self.std * noise
        state = bridge.mix(bridge.start_root(self.std), noise)
        state[:, : x1.shape[1]] += self.mean.to(x1)
        return state

    def __repr__(self) -> str:
        known = f"mean={self.mean.item():g}" if self.mean.ndim == 0 else "mean=<field>"
        return (
            f"IndependentField(std={self.std:g})"
            if not self.mean.any()
            else f"IndependentField(std={self.std:g}, {known})"
        )


class Noised(Coupling):
    """``x_0 = signal x_τ + std η``: the start is the data after a noise process with those α_T and σ_T.

    With the bridge of the same process run backward (``time_reversal`` gives both) the bridge mixture is the
    reverse-time SDE: the view that unites denoising with bridge mixtures.

    Args:
        signal, std: numbers; for K variables φ_T ``([modes], K)`` and a root ``([modes], K, K)`` of Σ_T.
    """

    def __init__(self, signal: float | Tensor, std: float | Tensor) -> None:
        m, s = (torch.as_tensor(value, dtype=torch.float64) for value in (signal, std))
        finite = bool(torch.isfinite(m).all() and torch.isfinite(s).all())
        if m.ndim == s.ndim == 0 and not (finite and float(m) >= 0.0 and float(s) > 0.0):
            raise ValueError(
                f"signal was {signal!r} and std {std!r}; they must be finite, signal >= 0 and std > 0"
            )
        if not finite or (m.ndim and tuple(s.shape) != (*m.shape, m.shape[-1])):
            raise ValueError(
                f"signal has shape {tuple(m.shape)} and std {tuple(s.shape)}; they must be finite: two "
                "numbers, or ([modes], K) and a root ([modes], K, K)"
            )
        self.signal, self.std = m, s

    @classmethod
    def of(cls, process: NoiseProcess) -> Noised:
        """The law of the noised data at the horizon of ``process``."""
        with torch.no_grad():
            phi, root = process.marginal(process.horizon)[0], process.root(process.horizon)
        if isinstance(process, SignalProcess):
            return cls(phi[0], root[0, 0])
        return cls(phi, root)

    def law(self, bridge: Pinned) -> BridgeLaw | PinnedLaw:
        if isinstance(bridge, LinearBridge):
            known = self.signal.shape[-1] if self.signal.ndim else 1
            if known != bridge.variables:
                raise ValueError(
                    f"a bridge of {bridge.variables} variables needs the signal and the root of all of them; "
                    f"signal has shape {tuple(self.signal.shape)} (Noised.of(process) gives both)"
                )
            several = self.signal.ndim > 0
            signal = self.signal if several else self.signal[None]
            root = self.std if several else self.std[None, None]
            return PinnedLaw(bridge, signal=signal, root=root)
        assert isinstance(bridge, Bridge)
        if self.signal.ndim:
            raise ValueError(
                f"a bridge of one variable needs numbers; signal has shape {tuple(self.signal.shape)}"
            )
        return BridgeLaw(bridge, std=float(self.std), signal=float(self.signal))

    def draw(
        self,
        bridge: Pinned,
        x1: Tensor,
        x0: Tensor | None = None,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        self._refuse(x0)
        noise = _noise(bridge, x1, white, generator)
        if self.signal.ndim == 0:
            return self.signal.to(x1) * x1 + self.std.to(x1) * noise
        assert isinstance(bridge, LinearBridge)
        return bridge.mix(self.signal[..., None], x1) + bridge.mix(self.std, noise)

    def __repr__(self) -> str:
        if self.signal.ndim == 0:
            return f"Noised(signal={self.signal.item():g}, std={self.std.item():g})"
        return f"Noised(<{self.signal.shape[-1]} variables>)"


class Paired(Coupling):
    """``x_0`` comes with the data: pairs (start, data), for example (kriged or coarse field, fine field)."""

    needs_initial = True

    def law(self, bridge: Pinned) -> PairedLaw | PairedPinnedLaw:
        if isinstance(bridge, LinearBridge):
            return PairedPinnedLaw(bridge)
        assert isinstance(bridge, Bridge)
        return PairedLaw(bridge)

    def draw(
        self,
        bridge: Pinned,
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
        return self._state(bridge, x0, white, generator)

    def __repr__(self) -> str:
        return "Paired()"


def _noise(bridge: Pinned, x1: Tensor, white: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Coloured noise of the bridge's variables for data ``(B, C, *grid)``."""
    return bridge.draw(
        x1.shape[0], x1.shape[1], white=white, generator=generator, dtype=x1.dtype, device=x1.device
    )


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
