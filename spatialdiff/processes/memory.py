"""What is worked out from a law alone, kept for the next call while the law has the same values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from spatialdiff.processes.law import Law
from spatialdiff.processes.levels import same_values

T = TypeVar("T")
#: how many results are kept for one law
ENTRIES = 4


class Memory(Generic[T]):
    """Results by law and key, each with the tensors it was made from; the oldest are forgotten."""

    def __init__(self) -> None:
        self.laws: WeakKeyDictionary[Law, dict[Hashable, tuple[list[Tensor], T]]] = WeakKeyDictionary()

    def recall(self, law: Law, key: Hashable, state: Sequence[Tensor]) -> T | None:
        """The result for `key`, if it was made from what `state` holds now."""
        known = self.laws.get(law, {}).get(key)
        return known[1] if known is not None and same_values(known[0], state) else None

    def keep(self, law: Law, key: Hashable, state: Sequence[Tensor], result: T) -> None:
        """Remember `result` for `key` and the values of `state`."""
        entries = self.laws.setdefault(law, {})
        entries.pop(key, None)
        entries[key] = ([value.detach().clone() for value in state], result)
        while len(entries) > ENTRIES:
            entries.pop(next(iter(entries)))


def law_state(law: Law, times: Tensor) -> list[Tensor]:
    """Tensors that change where the law does."""
    return [times, *law.marginal(times), *law.parameters(), *law.buffers()]


def learns(state: Sequence[Tensor]) -> bool:
    """Whether gradients are wanted of what is made from `state`."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in state)
