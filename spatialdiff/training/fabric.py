"""The device and the precision, by Lightning Fabric, without its announcements."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(n) for n in ("lightning_fabric", "lightning_utilities", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _automatic(network: nn.Module, accelerator: str) -> str:
    if any(p.dtype == torch.float64 for p in network.parameters()):
        return "64-true"
    if accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "32-true"


def make_fabric(network: nn.Module, accelerator: str, precision: str) -> Any:
    """A Fabric on one device; precision `"auto"` is that of the weights on a CPU, and mixed on a CUDA
    device."""
    with _quiet():
        from lightning_fabric import Fabric

        if precision == "auto":
            precision = _automatic(network, accelerator)
        if precision.startswith("16") and (accelerator == "cpu" or not torch.cuda.is_available()):
            raise ValueError(
                f"precision={precision!r} needs a CUDA device; a CPU has 'bf16-mixed', '32-true' and "
                f"'64-true'"
            )
        return Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
