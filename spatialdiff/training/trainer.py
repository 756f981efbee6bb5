"""One loop for every objective: θ ← θ − lr(n) · optimiser(clip(∇ loss(batch; θ))), θ̄ ← EMA(θ).

Noise and times are drawn from the trainer's own generator, everything else that is random from global
generators that the run has to itself, and batches from a stream with a position. All of them are in the
checkpoint, so that a run that is killed at any moment and resumed makes bit for bit the steps of one that was
not (on the same machine, with the same number of threads and versions).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spatialdiff.processes.base import Dynamics
from spatialdiff.training.averaging import moving_average
from spatialdiff.training.checkpoint import CheckpointDirectory
from spatialdiff.training.fabric import make_fabric
from spatialdiff.training.fingerprint import describe
from spatialdiff.training.metrics import Metrics
from spatialdiff.training.modes import training
from spatialdiff.training.optimizers import describe_optimizer, make_optimizer
from spatialdiff.training.randomness import isolated, seeded
from spatialdiff.training.run import Run, TrainingError
from spatialdiff.training.schedule import SCHEDULES


class Trainer(Run):
    """Train `objective.denoiser.network` by minimising `objective(batch, generator=...)`.

    What a process learns (`process.learned_parameters()`: the matrices of `sd.LearnedDiffusion`, a
    `LearnedBeta`, Γ's own parameters) is trained and averaged with the network.

    Args:
        objective: a module whose call is a scalar loss, `sd.Denoising` or `sd.BridgeMixture` or your own,
            with `.denoiser.network`.
        run_dir: folder for checkpoints (`checkpoints/`), `metrics.csv` and TensorBoard events
            (`tensorboard/`). None writes nothing.
        batch_size: items per step, where the data are not a `DataLoader`.
        lr: learning rate after the warm-up.
        optimizer: a function from parameters to an optimiser, which then brings its own learning rate; by
            default AdamW without decay.
        ema_decay: decay of the moving average of the weights; see `spatialdiff.training.averaging`.
        clip: largest norm of the gradient; None does not clip.
        warmup: steps over which the learning rate rises; by default 100, or under the cosine a tenth of the
            run if less.
        schedule: `"cosine"` to zero at the last step, or `"constant"`, which alone lets a run be extended.
        precision: of the network, in Lightning's words; `"auto"` is full on a CPU, and mixed (bf16, or else
            16) on a CUDA device.
        accelerator: `"auto"`, `"cpu"`, `"cuda"`; the objective is moved to it.
        checkpoint_every: steps between checkpoints; one is also written at the end.
        keep: how many checkpoints are kept, the newest ones; None keeps all.
        log_every: steps per row of metrics.
        seed: of the order of the data, the noise and the times.
        resume: go on from the newest checkpoint in `run_dir`. False raises if there is one.
        tensorboard: whether to write TensorBoard events, where there is a `run_dir`.
        progress: show a progress bar, with this name if it is a string.
    """

    def __init__(
        self,
        objective: nn.Module,
        *,
        run_dir: str | Path | None = None,
        batch_size: int = 32,
        lr: float = 1e-3,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        ema_decay: float = 0.999,
        clip: float | None = 1.0,
        warmup: int | None = None,
        schedule: str = "cosine",
        precision: str = "auto",
        accelerator: str = "auto",
        checkpoint_every: int = 500,
        keep: int | None = 2,
        log_every: int = 10,
        seed: int = 0,
        resume: bool = True,
        tensorboard: bool = True,
        progress: bool | str = True,
    ) -> None:
        network = getattr(getattr(objective, "denoiser", None), "network", None)
        if not isinstance(objective, nn.Module) or not isinstance(network, nn.Module):
            raise TypeError(
                "the objective must be a module with a trainable `.denoiser.network`, like "
                f"sd.Denoising(sd.Denoiser(network, process)); got {type(objective).__name__}"
            )
        for name, positive in (("lr", lr), ("log_every", log_every), ("checkpoint_every", checkpoint_every)):
            if not positive > 0:
                raise ValueError(f"{name} must be positive, got {positive}")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, or None for no clipping; got {clip}")
        if keep is not None and keep < 1:
            raise ValueError(f"keep must be at least 1, or None to keep all checkpoints; got {keep}")
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")

        self.objective = objective
        self.network = network
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.checkpoints = (
            None if run_dir is None else CheckpointDirectory(Path(run_dir) / "checkpoints", keep)
        )
        self.batch_size, self.seed, self.clip = batch_size, seed, clip
        self.warmup, self.schedule = warmup, schedule
        self.checkpoint_every, self.log_every = checkpoint_every, log_every
        self.resume, self.tensorboard, self.progress = resume, tensorboard, progress

        self.fabric = make_fabric(network, accelerator, precision)
        self.device = self.fabric.device
        objective.to(self.device)
        self._wrapped = self.fabric.setup_module(network)
        self.ema = moving_average(network, ema_decay)
        self.learned = nn.ParameterList(learned_parameters(objective))
        self.learned_ema = moving_average(self.learned, ema_decay) if len(self.learned) else None
        # 16-mixed scales the loss: its scaler skips steps that overflow, and a fused step could not be
        # clipped
        self._scaled = self.fabric.strategy.precision.precision == "16-mixed"
        made = make_optimizer(
            network,
            optimizer,
            lr,
            fused=self.device.type == "cpu" and not self._scaled,
            learned=list(self.learned),
        )
        self.optimizer = self.fabric.setup_optimizers(made)
        self._base_lr = [group["lr"] for group in made.param_groups]
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.step = 0
        self._within = False
        self.seconds = 0.0
        self._rate = 0.0  # of the last step
        self.losses = []
        self._random = seeded(seed, self.device)
        self._loaded = None
        self._stream = None
        self._fit = None
        self._scheduler = None
        self._setup = {
            **describe(objective, network),
            **describe_optimizer(made),
            "ema_decay": ema_decay,
            "clip": clip,
            "schedule": schedule,
            "seed": seed,
            "precision": str(self.fabric.strategy.precision.precision),
        }

    def fit(self, data: Any, steps: int, time_limit: float | None = None) -> Trainer:
        """Train until `steps` steps have been made in all, and return the trainer.

        A run that was interrupted goes on from its newest checkpoint; one that is complete is loaded and left
        as it is.

        Args:
            data: a tensor `(N, C, *grid)`; a tuple of tensors, or a `Dataset` of tuples, whose parts are the
                arguments of the objective in order; or a `DataLoader` (with a `run_dir` only one that can be
                resumed exactly). Dicts are passed by keyword.
            steps: the last step.
            time_limit: seconds of training, those before an interruption included, after which to stop at the
                step reached. The learning rate follows `steps` all the same, and where the run stops depends
                on the machine.

        Raises:
            TrainingError: the loss or its gradient is not finite; says at which step and what the last
                checkpoint is.
            CheckpointError: a checkpoint is unreadable or belongs to another configuration; says what
                differs.
            ValueError: the data are empty or not finite, or cannot be resumed exactly.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self._prepare(data, steps)
        if self.step > steps:
            raise ValueError(f"the run has already made {self.step} steps, more than the {steps} asked for")
        if self.step == steps:
            return self
        metrics = None if self.run_dir is None else Metrics(self.run_dir, self.step, self.tensorboard)
        saved = self.step if self.checkpoints is not None and self.checkpoints.latest() is not None else -1
        try:
            with (
                isolated(self._random, self.device),
                training(self.objective, self.network, self._wrapped, self.learned),
                self._bar(steps) as bar,
            ):
                start = time.perf_counter() - self.seconds
                while self.step < steps and (time_limit is None or self.seconds < time_limit):
                    loss, norm = self._advance()
                    self.seconds = time.perf_counter() - start
                    self.losses.append(loss)
                    if self.step % self.log_every == 0 or self.step == steps:
                        mean = math.fsum(self.losses) / len(self.losses)
                        self.losses.clear()
                        bar.set_postfix(loss=f"{mean:.4g}", refresh=False)
                        if metrics is not None:
                            metrics.write(self._row(mean, norm))
                    bar.update()
                    if self.step % self.checkpoint_every == 0:
                        saved = self._save()
                if saved != self.step:
                    self._save()
        finally:
            if metrics is not None:
                metrics.close()
        return self

    def _advance(self) -> tuple[float, float]:
        """Make one step; returns the loss and the norm of its gradient before clipping."""
        assert self._stream is not None
        assert self._scheduler is not None
        self._within = True
        batch = self.fabric.to_device(self._stream.next())
        if isinstance(batch, Mapping):
            loss = self.objective(**batch, generator=self.generator)
        elif isinstance(batch, list | tuple):
            loss = self.objective(*batch, generator=self.generator)
        else:
            loss = self.objective(batch, generator=self.generator)
        if not isinstance(loss, Tensor) or loss.ndim:
            given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the objective must return a scalar tensor, got {given}")
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(self._diverged("the loss", value))
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self._wrapped,
            self.optimizer,
            max_norm=math.inf if self.clip is None else self.clip,
            error_if_nonfinite=False,
        ).item()
        if not math.isfinite(norm) and not self._scaled:
            raise TrainingError(self._diverged("the norm of the gradient", norm))
        self._rate = float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self._scheduler.step()
        self.ema.update_parameters(self.network)
        if self.learned_ema is not None:
            self.learned_ema.update_parameters(self.learned)
        self.step += 1
        self._within = False
        return value, norm

    def _diverged(self, what: str, value: float) -> str:
        newest = None if self.checkpoints is None else self.checkpoints.latest()
        where = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        return (
            f"{what} is {value} at step {self.step + 1}; {where}. Look for values out of range in the data, "
            f"lower "
            f"lr (now {self.optimizer.param_groups[0]['lr']:.3g}), or clip more tightly (clip={self.clip})"
        )

    def _row(self, loss: float, norm: float) -> dict[str, float]:
        assert self._stream is not None
        return {
            "step": self.step,
            "epoch": self._stream.epoch,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": self._rate,
            "seconds": self.seconds,
        }

    def _bar(self, steps: int) -> Any:
        from tqdm import tqdm

        name = self.progress if isinstance(self.progress, str) else "train"
        return tqdm(
            total=steps,
            initial=self.step,
            desc=name,
            unit="step",
            disable=not self.progress,
            dynamic_ncols=True,
        )

    def ema_denoiser(self) -> Any:
        """A copy of the denoiser with the averaged weights, for sampling: in evaluation mode, without
        gradients."""
        denoiser: Any = copy.deepcopy(self.objective.denoiser)
        averaged: nn.Module = self.ema.module
        denoiser.network.load_state_dict(averaged.state_dict())
        if self.learned_ema is not None:
            means = list(self.learned_ema.module.parameters())
            for parameter, mean in zip(learned_parameters(self.objective, denoiser), means, strict=True):
                parameter.data.copy_(mean)
        denoiser.requires_grad_(False)
        return denoiser.eval()


def learned_parameters(objective: nn.Module, denoiser: Any = None) -> list[nn.Parameter]:
    """What the process of the denoiser learns, in a fixed order; nothing for most processes."""
    process = getattr(denoiser if denoiser is not None else objective.denoiser, "process", None)
    return process.learned_parameters() if isinstance(process, Dynamics) else []
