"""An endless stream of batches whose position is data: where it stands can be saved, and it goes on exactly
from there.

Tensors and map-style data sets are read in a random order of their own: epoch e is the permutation of a
generator seeded with (seed, e), epochs follow each other without a gap, and batch k is items kB … (k+1)B−1 of
that sequence. The position is (epoch, index).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from spatialdiff.training.randomness import capture, restore

_REPLAYABLE = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Stream(ABC):
    """Batches without end, from a position that can be saved and restored."""

    epoch: int

    @abstractmethod
    def next(self) -> Any:
        """The next batch."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The position, as plain data."""

    @abstractmethod
    def resume(self, state: dict[str, Any]) -> None:
        """Go to a saved position; may leave the global random generators changed."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the data are, to tell another data set from this one."""


def _check_tensor(x: Tensor, name: str) -> None:
    if x.is_floating_point() or x.is_complex():
        bad = ~torch.isfinite(x)
        if bad.any():
            first = tuple(int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"{name} holds {int(bad.sum())} values that are not finite, the first at index {first}. Fill "
                f"or drop them before training"
            )


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()[
        :16
    ]


class ItemStream(Stream):
    """Batches of `batch_size` items of a tensor, of tensors of equal length, or of a map-style data set."""

    def __init__(self, data: Tensor | Sequence[Tensor] | Dataset[Any], batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.tensors: tuple[Tensor, ...] | None = None
        if isinstance(data, Tensor):
            self.tensors, self.single = (data,), True
        elif isinstance(data, list | tuple):
            self.tensors, self.single = tuple(data), False
        self.data = data
        if self.tensors is not None:
            lengths = [len(x) if x.ndim else 0 for x in self.tensors]
            if len(set(lengths)) != 1:
                raise ValueError(
                    f"tensors that are read side by side must be equally long, got lengths {lengths}"
                )
            self.length = lengths[0]
            for i, x in enumerate(self.tensors):
                _check_tensor(x, "the data" if self.single else f"tensor {i} of the data")
        else:
            self.length = len(data)  # type: ignore[arg-type]
        if self.length == 0:
            raise ValueError("the data are empty: there is nothing to train on")
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.index = 0
        self.order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        return torch.randperm(self.length, generator=generator)

    def next(self) -> Any:
        parts, missing = [], self.batch_size
        while missing:
            part = self.order[self.index : self.index + missing]
            parts.append(part)
            missing -= len(part)
            self.index += len(part)
            if self.index == self.length:
                self.epoch, self.index = self.epoch + 1, 0
                self.order = self._permutation()
        indices = torch.cat(parts)
        if self.tensors is None:
            return default_collate([self.data[i] for i in indices.tolist()])
        batch = tuple(x[indices.to(x.device)] for x in self.tensors)
        return batch[0] if self.single else batch

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "index": self.index}

    def resume(self, state: dict[str, Any]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]
        self.order = self._permutation()

    def describe(self) -> dict[str, Any]:
        about: dict[str, Any] = {"length": self.length, "batch_size": self.batch_size}
        if self.tensors is None:
            return about | {"class": type(self.data).__qualname__}
        for i, x in enumerate(self.tensors):
            about |= {f"{i}.shape": list(x.shape), f"{i}.dtype": str(x.dtype), f"{i}.sha256": _digest(x)}
        return about


class LoaderStream(Stream):
    """Batches of a user's `DataLoader`, epoch after epoch.

    The position is the random state at the start of the epoch and the number of batches read since: on
    resuming, the epoch is started from that state and the batches already seen are read again and dropped.
    That is exact for a map-style data set under torch's own samplers. A loader for which it is not is refused
    where `resumable` is asked for.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device, resumable: bool) -> None:
        if resumable:
            _check_replayable(loader)
        self.loader = loader
        self.device = device
        self.epoch = 0
        self.batches = 0
        self.start: dict[str, Any] = {}
        self.iterator: Iterator[Any] | None = None

    def _open(self) -> Iterator[Any]:
        generators = _generators(self.loader)
        if not self.start:
            self.start = {"global": capture(self.device), "generators": [g.get_state() for g in generators]}
        self.batches = 0
        return iter(self.loader)

    def next(self) -> Any:
        if self.iterator is None:
            self.iterator = self._open()
        batch = next(self.iterator, self)
        if batch is self:
            if self.batches == 0:
                raise ValueError(
                    "the data loader gives no batches: its data set is empty, or smaller than a batch with "
                    "drop_last=True"
                )
            self.epoch += 1
            self.start = {}
            self.iterator = None
            return self.next()
        self.batches += 1
        return batch

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batches": self.batches, "start": self.start}

    def resume(self, state: dict[str, Any]) -> None:
        self.epoch, self.start, self.iterator = state["epoch"], state["start"], None
        if not self.start:
            return
        restore(self.start["global"], self.device)
        for generator, saved in zip(_generators(self.loader), self.start["generators"], strict=True):
            generator.set_state(saved.cpu())
        self.iterator = self._open()
        for _ in range(state["batches"]):
            self.next()

    def describe(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "class": type(self.loader.dataset).__qualname__,
            "sampler": type(self.loader.sampler).__qualname__,
            "batch_size": self.loader.batch_size,
            "drop_last": self.loader.drop_last,
            "num_workers": self.loader.num_workers,
        }
        if not isinstance(self.loader.dataset, IterableDataset):
            about["length"] = len(self.loader.dataset)  # type: ignore[arg-type]
        return about


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    candidates = [loader.generator, getattr(loader.sampler, "generator", None)]
    return list({id(g): g for g in candidates if isinstance(g, torch.Generator)}.values())


def _check_replayable(loader: DataLoader[Any]) -> None:
    reason = None
    if isinstance(loader.dataset, IterableDataset):
        reason = "its data set is an IterableDataset, whose position is unknown"
    elif type(loader.sampler) not in _REPLAYABLE or type(loader.batch_sampler) is not BatchSampler:
        sampler = loader.sampler if type(loader.sampler) not in _REPLAYABLE else loader.batch_sampler
        reason = f"the order of its sampler {type(sampler).__name__} cannot be replayed"
    elif loader.persistent_workers:
        reason = "persistent_workers=True carries the workers' random state from one epoch to the next"
    elif not getattr(loader, "in_order", True):
        reason = "in_order=False makes the order of its batches a matter of timing"
    if reason:
        raise ValueError(
            f"a run with checkpoints must resume exactly, and this DataLoader cannot: {reason}. Pass the "
            f"tensor or the map-style Dataset "
            "itself, use one of torch's samplers with shuffle=True or a generator, or train without run_dir"
        )


def stream(data: Any, *, batch_size: int, seed: int, device: torch.device, resumable: bool) -> Stream:
    """The stream over a tensor, a tuple of tensors, a map-style `Dataset` or a `DataLoader`."""
    if isinstance(data, DataLoader):
        return LoaderStream(data, device, resumable)
    if isinstance(data, IterableDataset):
        raise TypeError("an IterableDataset has no length and no order to shuffle: wrap it in a DataLoader")
    if isinstance(data, Tensor | Dataset) or (
        isinstance(data, list | tuple) and data and all(isinstance(x, Tensor) for x in data)
    ):
        return ItemStream(data, batch_size, seed)
    raise TypeError(
        f"data must be a tensor, a tuple of tensors, a Dataset or a DataLoader, got {type(data).__name__}"
    )
