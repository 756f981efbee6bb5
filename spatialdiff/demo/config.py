"""What the demo does, in one place: every number that decides its time and its quality."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gpytorch.kernels import Kernel

SOLVER = Literal["ancestral", "bridge", "ddim", "euler", "euler_maruyama", "gaussian", "gaussian_sde", "heun"]


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demo; the same budget (network, steps, batch, rate) for each of the three models.

    Args:
        patch: side of the terrain patches, in grid cells; a multiple of 2**depth.
        stride: distance between training patches, in cells; they overlap where it is below `patch`.
        flips: add the mirror images of the training patches.
        noise: Γ of the correlated models: "spectrum" (smoothed spectrum of the data) or "kernel" (the fitted
            kernel).
        kernel: covariance function fitted by maximum likelihood, a Matérn where none is named; a list is a
            sum.
        fit_method: likelihood of the kernel's fit.
        preconditioning: what the network is given and what it predicts: "wiener", "edm" or "none".
        prediction: with "none" and "edm": "data", "noise", "white_noise" or "velocity".
        width: channels of the U-Net at full resolution.
        depth: how often the U-Net halves the resolution.
        train_steps: optimiser steps of each model.
        batch: patches per step.
        lr: learning rate.
        warmup: steps over which the rate rises to it.
        ema: decay of the averaged weights that are sampled from.
        sample_steps: numbers of sampling steps to compare.
        samples: fields generated for each model and number of steps.
        solver: sampler of the two denoising models.
        bridge_solver: sampler of the bridge mixture.
        solver_grid: time grid of the sampler.
        solver_options: further options of the sampler, such as {"order": 2} of "gaussian".
        shown: fields in each row of the pictures.
    """

    patch: int = 32
    stride: int = 4
    flips: bool = True
    noise: Literal["spectrum", "kernel"] = "spectrum"
    kernel: Kernel | list[Kernel] | None = None
    fit_method: Literal["auto", "exact", "whittle"] = "auto"
    preconditioning: Literal["wiener", "edm", "none"] = "wiener"
    prediction: Literal["data", "noise", "white_noise", "velocity"] = "data"
    width: int = 16
    depth: int = 2
    train_steps: int = 1500
    batch: int = 16
    lr: float = 2e-3
    warmup: int = 50
    ema: float = 0.995
    sample_steps: tuple[int, ...] = (4, 8, 16, 64)
    samples: int = 192
    solver: SOLVER = "gaussian"
    bridge_solver: SOLVER = "gaussian"
    solver_grid: Literal["fitted", "log_snr", "uniform", "edm"] = "fitted"
    solver_options: dict[str, Any] = field(default_factory=lambda: {"order": 2})
    shown: int = 8

    def __post_init__(self) -> None:
        for name in ("patch", "width", "train_steps", "batch", "samples", "shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.patch % 2**self.depth:
            raise ValueError(
                f"patch={self.patch} cannot be halved {self.depth} times; give a multiple of "
                f"{2**self.depth}, or another depth."
            )
        if not self.sample_steps or any(steps < 1 for steps in self.sample_steps):
            raise ValueError(
                f"sample_steps must name numbers of steps of at least 1, got {self.sample_steps}."
            )


# What --quick changes: everything still happens, too briefly for the models to be good.
QUICK: dict[str, Any] = {
    "fit_method": "whittle",
    "train_steps": 120,
    "warmup": 10,
    "ema": 0.95,
    "samples": 64,
    "sample_steps": (4, 16),
}
