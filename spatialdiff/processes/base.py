"""What noise processes, bridges and laws share: Γ, the range of times, and the drawing of coloured noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.checks import check_finite
from spatialdiff.processes.schedules import as_times

Times = Tensor | float


def expand(coefficient: Tensor, field: Tensor) -> Tensor:
    """Shape a coefficient, ``()`` or ``(B,)``, so that it multiplies a field ``(B, K*C, *grid)``.

    The result has the dtype and device of ``field``. Raises ``ValueError`` for any other shape.
    """
    value = coefficient.to(device=field.device, dtype=field.dtype)
    if value.ndim == 0:
        return value
    if value.ndim != 1 or value.shape[0] not in (1, field.shape[0]):
        raise ValueError(
            f"t has shape {tuple(value.shape)} for a field of shape {tuple(field.shape)}; "
            f"it must be a scalar or have shape ({field.shape[0]},), one time per batch entry"
        )
    return value.reshape(-1, *([1] * (field.ndim - 1)))


class Dynamics(nn.Module):
    """A spatial covariance Γ (submodule ``covariance``) and the times ``[0, horizon]``."""

    variables: int = 1

    def __init__(self, covariance: Covariance, horizon: float) -> None:
        super().__init__()
        if not isinstance(covariance, Covariance):
            raise TypeError(
                f"{type(self).__name__} needs a Covariance, got {type(covariance).__name__}; "
                "build one with spatialdiff.covariance(kernel, grid)"
            )
        self.covariance = covariance
        self.horizon = float(horizon)

    def learned_parameters(self) -> list[nn.Parameter]:
        """What is trained with the network, through the evidence bound: of a learned schedule, or more."""
        schedule = getattr(self, "schedule", None)
        return list(schedule.parameters()) if isinstance(schedule, nn.Module) else []

    def white_shape(self, shape: int | Sequence[int], channels: int) -> tuple[int, ...]:
        """The shape of the white noise z behind a state of ``channels`` channels.

        ``(*shape, K*C, *factor_shape)``; where Γ itself has the channels ``(*shape, K, *factor_shape)``, or
        ``(*shape, *factor_shape)`` for K = 1. Raises ``ValueError`` where ``channels`` contradict Γ.
        """
        lead = (shape,) if isinstance(shape, int) else tuple(shape)
        own = self.covariance.channels
        if own is None:
            return (*lead, self.variables * channels, *self.covariance.factor_shape)
        if own != channels:
            raise ValueError(
                f"the field has {channels} channel(s) and the covariance acts on {own}; "
                f"build it with channels={channels} (or channels=None for independent channels)"
            )
        several = () if self.variables == 1 else (self.variables,)
        return (*lead, *several, *self.covariance.factor_shape)

    def draw(
        self,
        shape: int | Sequence[int],
        channels: int,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Coloured noise η = (I ⊗ R) z, shape ``(*shape, K*C, *grid)``; z is ``white``, or drawn.

        z has the shape ``white_shape``. Raises ``ValueError`` where ``channels`` or the shape of ``white``
        contradict Γ.
        """
        needed = self.white_shape(shape, channels)
        if white is None:
            white = torch.randn(
                needed,
                generator=generator,
                dtype=dtype or self.covariance.dtype,
                device=device or self.covariance.device,
            )
        elif tuple(white.shape) != needed:
            raise ValueError(
                f"white has shape {tuple(white.shape)}; this covariance colours white noise of {needed}"
            )
        return self._flat(self.covariance.color(white), channels)

    def _flat(self, field: Tensor, channels: int) -> Tensor:
        """Variables and channels on one axis: ``(*shape, K*C, *grid)``."""
        if self.variables == 1 or self.covariance.channels is None:
            return field
        grid = tuple(self.covariance.domain.shape)
        lead = field.shape[: field.ndim - len(grid) - 2]
        return field.reshape(*lead, self.variables * channels, *grid)

    def times(self, t: Times, name: str = "t") -> Tensor:
        """``t`` as float64 in ``[0, horizon]``; raises ``ValueError`` outside."""
        return as_times(t, self.horizon, name)

    def ordered(self, first: Times, second: Times, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Two broadcast times, the first not after the second; raises ``ValueError`` otherwise."""
        early, late = self.times(first, names[0]), self.times(second, names[1])
        device = late.device if early.device.type == "cpu" else early.device
        early, late = torch.broadcast_tensors(early.to(device), late.to(device))
        if bool((early > late).any()):
            raise ValueError(
                f"{names[0]} must not exceed {names[1]}; got {names[0]}={early.max().item():g} "
                f"and {names[1]}={late.min().item():g}"
            )
        return early, late

    def increasing(self, times: Tensor | Sequence[float]) -> Tensor:
        """Increasing times ``(T,)`` as float64; raises ``ValueError`` for another shape or order."""
        grid = self.times(torch.as_tensor(times, dtype=torch.float64), "times")
        if grid.ndim != 1 or grid.numel() == 0 or bool((grid.diff() < 0).any()):
            raise ValueError(
                f"times has shape {tuple(grid.shape)}; "
                "it must be a non-empty, non-decreasing vector of shape (T,)"
            )
        return grid

    def check_field(self, x: Tensor, name: str = "x") -> None:
        """Raise unless ``x`` is a finite floating-point field ``(B, C, *grid)`` of Γ's domain."""
        shape = tuple(self.covariance.domain.shape)
        if x.ndim != len(shape) + 2 or tuple(x.shape[2:]) != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be (B, C, *grid) with grid {shape}")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; it must be a floating-point field")
        check_finite(x, name)
