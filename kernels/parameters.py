"""Shape parameters on a bounded interval, and functions of many arguments in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from gpytorch.constraints import Interval
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spatialdiff.kernels.base import SpatialKernel, batched, positive

_ENTRIES = 4_000_000


class UpTo(Interval):
    """``(0, upper]`` as ``upper / (1 + exp(-raw))``; raw numbers from 37 on are ``upper`` exactly."""

    def __init__(self, upper: float) -> None:
        super().__init__(0.0, upper)
        self.double()

    def inverse_transform(self, transformed_tensor: Tensor) -> Tensor:
        share = transformed_tensor / self.upper_bound.to(transformed_tensor)
        return torch.logit(share).clamp(max=37.0)


def register_up_to(
    kernel: SpatialKernel, name: str, value: float | Sequence[float] | Tensor, upper: float
) -> None:
    """A parameter ``raw_<name>`` with ``0 < name ≤ upper``, shape ``(*batch,)``, read by
    ``kernel._positive(name)``.
    """
    title = f"{type(kernel).__name__}: {name}"
    initial = batched(positive(value, title), kernel.batch_shape, title)
    if bool((initial > upper).any()):
        raise ValueError(f"{title} must be in (0, {upper:g}], got {value!r}.")
    constraint = UpTo(upper)
    kernel.register_parameter(f"raw_{name}", torch.nn.Parameter(constraint.inverse_transform(initial)))
    kernel.register_constraint(f"raw_{name}", constraint)


def in_parts(function: Callable[..., Tensor], nodes: int, *arguments: Tensor) -> Tensor:
    """``function`` of 1-D tensors of one length, ``nodes`` temporaries per entry, a part at a time.

    With gradients, a part's temporaries are computed again in the backward pass instead of kept.
    """
    length = len(arguments[0])
    rows = max(1, _ENTRIES // nodes)
    if length <= rows:
        return function(*arguments)
    parts = zip(*(a.split(rows) for a in arguments), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(function, *part, use_reentrant=False) for part in parts])
    return torch.cat([function(*part) for part in parts])


def surface(d: int) -> float:
    """``2π^{d/2}/Γ(d/2)``, the area of the unit sphere in ``d`` dimensions."""
    return float(2 * math.pi ** (d / 2) / math.gamma(d / 2))
