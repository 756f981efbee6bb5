"""Where a bridge starts: checks of the field given, and the law for a start independent of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.processes.bridge_law import BridgeLaw
from spatialdiff.processes.bridges import Bridge, Pinned
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.processes.pinned_law import PinnedLaw


def started_law(bridge: Pinned, value: Tensor | float = 0.0, std: float = 0.0) -> BridgeLaw | PinnedLaw:
    """The law of a bridge whose data variable starts from ``N(value, std² Γ)``, independent of the end.

    ``value`` is a number, ``(*grid)``, ``(C, *grid)`` or a batch ``(B, C, *grid)``, one for each field.
    """
    if isinstance(bridge, LinearBridge):
        return PinnedLaw(bridge, value=value, std=std)
    assert isinstance(bridge, Bridge)
    return BridgeLaw(bridge, value=value, std=std)


def start_field(value: Tensor | float, what: str) -> Tensor:
    """``value`` as a finite float64 tensor; else ``ValueError``."""
    field = torch.as_tensor(value, dtype=torch.float64)
    if not bool(torch.isfinite(field).all()):
        raise ValueError(
            f"{what} is not finite; it must be a finite number or field (fill or krige it first)"
        )
    return field


def check_start(value: Tensor, bridge: Pinned, what: str) -> None:
    """Raise ``ValueError`` unless ``value`` is a number or a field of the bridge's grid."""
    shape = tuple(bridge.covariance.domain.shape)
    if value.ndim not in (0, len(shape), len(shape) + 1) or (
        value.ndim and tuple(value.shape[-len(shape) :]) != shape
    ):
        raise ValueError(
            f"{what} has shape {tuple(value.shape)}; "
            f"it must be a number or a field (*grid) or (C, *grid) with grid {shape}"
        )
