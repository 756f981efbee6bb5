"""The optimiser: AdamW without weight decay, unless another is given, and what there is to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def make_optimizer(
    network: nn.Module,
    make: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
    lr: float,
    fused: bool,
    learned: Sequence[nn.Parameter] = (),
) -> Optimizer:
    """The optimiser of all weights that require a gradient, and of what is `learned` of the process;
    `make(parameters)`, or by default AdamW (Loshchilov & Hutter 2019)."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("the network has no parameters that require a gradient")
    trained += learned
    if make is not None:
        return make(trained)
    return torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=fused or None)


def describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Its class and its settings, as plain data."""
    out: dict[str, Any] = {"optimizer": type(optimizer).__qualname__}
    for name, value in optimizer.defaults.items():
        if isinstance(value, bool | int | float | str | None):
            out[f"optimizer.{name}"] = value
        elif isinstance(value, tuple):
            out[f"optimizer.{name}"] = list(value)
    return out
