"""How an objective stands while it is trained, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def training(
    objective: nn.Module, network: nn.Module, wrapped: nn.Module, learned: Iterable[nn.Parameter] = ()
) -> Iterator[None]:
    """For the time of training: the network in the device's precision, in training mode, nothing else with a
    gradient but what is `learned` of the process.

    Only the network runs in mixed precision; noise and loss, which come from outside it, stay in full. A
    covariance whose parameters need no gradient is factorised once instead of at every step.
    """
    denoiser: Any = objective.denoiser
    trained = {id(p) for p in (*network.parameters(), *learned)}
    frozen = [p for p in objective.parameters() if p.requires_grad and id(p) not in trained]
    modes = [(module, module.training) for module in objective.modules()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    objective.train()
    denoiser.network = wrapped
    try:
        yield
    finally:
        denoiser.network = network
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode
