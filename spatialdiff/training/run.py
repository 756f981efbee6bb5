"""A run as something that is kept: its configuration is told from others, its state is written and taken up
again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from spatialdiff.training.checkpoint import CheckpointDirectory, CheckpointError, read
from spatialdiff.training.fingerprint import differences
from spatialdiff.training.randomness import capture, isolated
from spatialdiff.training.schedule import learning_rate
from spatialdiff.training.stream import Stream, stream
from spatialdiff.version import __version__

FORMAT = 2


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or its gradient is not finite, or a step was broken off for good."""


class Run:
    """The state of a training run; `Trainer` adds the loop."""

    objective: nn.Module
    network: nn.Module
    ema: AveragedModel
    learned: nn.ParameterList  # what the process learns
    learned_ema: AveragedModel | None
    optimizer: Any  # Fabric's wrapper, which has the interface of an optimiser
    fabric: Any
    device: torch.device
    generator: torch.Generator
    run_dir: Path | None
    checkpoints: CheckpointDirectory | None
    batch_size: int
    seed: int
    schedule: str
    warmup: int | None
    resume: bool
    step: int
    seconds: float
    losses: list[float]  # since the last row of metrics
    _within: bool  # a step has begun and not ended
    _base_lr: list[float]
    _random: dict[str, Any]
    _setup: dict[str, Any]  # the configuration, as far as it is known before the data
    _fit: dict[str, Any] | None  # and what `fit` adds to it
    _loaded: dict[str, Any] | None  # a checkpoint whose position in the data is still to be taken up
    _stream: Stream | None
    _scheduler: LambdaLR | None

    def _prepare(self, data: Any, steps: int) -> None:
        """Lay out the data and the schedule, and go to where the run stands."""
        resumable = self.checkpoints is not None
        brief = steps // 10 if self.schedule == "cosine" else 100
        warmup = self.warmup if self.warmup is not None else min(100, brief)
        fresh = stream(
            data, batch_size=self.batch_size, seed=self.seed, device=self.device, resumable=resumable
        )
        setup: dict[str, Any] = {"warmup": warmup, **{f"data.{k}": v for k, v in fresh.describe().items()}}
        if self.schedule == "cosine":
            setup["steps"] = steps
        newest = None
        if self.run_dir is not None and self.checkpoints is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.checkpoints.clean()
            newest = self.checkpoints.latest()
        if self._within and newest is None:
            raise TrainingError(
                f"step {self.step + 1} was interrupted and there is no checkpoint to go back to: "
                "make a new Trainer"
            )
        if newest is not None and (self._within or (self.step == 0 and self._loaded is None)):
            if not self.resume and self.step == 0:
                raise CheckpointError(
                    f"{self.run_dir} already holds a run (its last checkpoint is {newest.name}) and "
                    f"resume=False. "
                    "Choose another run_dir, or remove the folder to start over"
                )
            state = self._read(newest)
            self._compare(state["fit"], setup, str(newest))
            self._apply(state)
        elif newest is not None and self._loaded is not None and newest.stem > f"step-{self.step:08d}":
            raise CheckpointError(
                f"{self.run_dir} holds a later checkpoint, {newest.name}, than the one loaded, of step "
                f"{self.step}. "
                "Remove the later ones to go on from there, or choose another run_dir"
            )
        if self._fit is not None:
            self._compare(self._fit, setup, "this run")
        if self._stream is None:
            self._stream = fresh
        if self._loaded is not None:
            self._stream = fresh
            with isolated(capture(self.device), self.device):
                fresh.resume(self._loaded["data"])
        if self._scheduler is None or self.schedule == "constant" or self._loaded is not None:
            inner = self.optimizer.optimizer
            for group, base in zip(inner.param_groups, self._base_lr, strict=True):
                group["initial_lr"] = base
            self._scheduler = LambdaLR(
                inner, learning_rate(self.schedule, warmup, steps), last_epoch=self.step - 1
            )
            if self._loaded is not None:
                self._scheduler.load_state_dict(self._loaded["scheduler"])
        self._fit, self._loaded = setup, None

    def _compare(self, saved: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
        lines = differences(saved, now)
        if lines:
            raise CheckpointError(
                f"{what} was made with another configuration:\n  "
                + "\n  ".join(lines)
                + "\nGive the same configuration to go on with it, or another run_dir to start a new run"
            )

    def _state(self) -> dict[str, Any]:
        """Everything the next step depends on, as plain data."""
        assert self._stream is not None, "a run that has not begun has no state"
        assert self._scheduler is not None
        network = {id(p) for p in (*self.network.parameters(), *self.network.buffers())}
        tensors = {
            k: v for k, v in self.objective.state_dict(keep_vars=True).items() if isinstance(v, Tensor)
        }
        return {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "losses": list(self.losses),
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "learned_ema": None if self.learned_ema is None else self.learned_ema.state_dict(),
            "objective": {k: v.detach() for k, v in tensors.items() if id(v) not in network},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "generator": self.generator.get_state(),
            "random": capture(self.device),
            "data": self._stream.state(),
            "setup": self._setup,
            "fit": self._fit,
            "versions": {"spatialdiff": __version__, "torch": str(torch.__version__)},
        }

    def _save(self) -> int:
        if self.checkpoints is not None:
            self.checkpoints.write(self.step, self._state())
        return self.step

    def load(self, path: str | Path) -> Self:
        """Go to a checkpoint: weights, average and optimiser now, position in the data at the next `fit`.

        Raises:
            CheckpointError: it is unreadable, or belongs to another configuration; says what differs.
        """
        self._apply(self._read(path))
        return self

    def _read(self, path: str | Path) -> dict[str, Any]:
        state = read(path, self.device)
        if state.get("format") != FORMAT:
            raise CheckpointError(f"{path} has format {state.get('format')!r}; this version reads {FORMAT}")
        self._compare(state["setup"], self._setup, str(path))
        return state

    def _apply(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        if self.learned_ema is not None:
            self.learned_ema.load_state_dict(state["learned_ema"])
        self.objective.load_state_dict(state["objective"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.generator.set_state(state["generator"].cpu())
        self._random = state["random"]
        self.step, self.seconds, self.losses = state["step"], state["seconds"], list(state["losses"])
        self._fit, self._loaded, self._within = state["fit"], state, False
