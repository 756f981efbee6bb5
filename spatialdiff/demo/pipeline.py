"""The demo's work: data, Γ, three models on equal budgets, samples, comparison."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.covariance import Covariance, covariance, white
from spatialdiff.data import FieldData, terrain
from spatialdiff.demo.config import DemoConfig
from spatialdiff.denoisers import Denoiser
from spatialdiff.domains import Grid
from spatialdiff.evaluation import compare
from spatialdiff.fitting import FitResult, FitWarning, fit
from spatialdiff.kernels import Matern, Sum
from spatialdiff.networks import UNet
from spatialdiff.objectives import BridgeMixture, Denoising
from spatialdiff.processes import VP, BrownianBridge
from spatialdiff.sampling import sample
from spatialdiff.style import PALETTE
from spatialdiff.training import Trainer
from spatialdiff.training.metrics import read_metrics

if TYPE_CHECKING:
    from spatialdiff.demo.progress import Stages
    from spatialdiff.evaluation import Report

WHITE, CORRELATED, BRIDGE = (
    "white-noise denoising",
    "correlated-noise denoising",
    "correlated-noise bridge mixture",
)
MODELS = (WHITE, CORRELATED, BRIDGE)
COLORS = dict(zip(MODELS, PALETTE, strict=False))
GAUSSIAN_FIELD = "fitted Gaussian field"
STAGES = 4 + 2 * len(MODELS)


@dataclass
class DemoResult:
    """Everything the report shows.

    Args:
        data: train and held-out terrain.
        spectrum: Γ by the smoothed spectrum.
        parametric: the kernel by maximum likelihood.
        gamma: Γ of the correlated models.
        gaussian: fields drawn from the fitted Gaussian law.
        curves: model → (step, loss).
        fields: (model, sampling steps) → fields.
        sampling: (model, sampling steps) → seconds.
        training: model → seconds.
        parameters: number of weights of the network.
        comparison: all of them against held-out terrain.
        seconds: stage → seconds.
    """

    data: FieldData
    spectrum: FitResult
    parametric: FitResult
    gamma: Covariance
    gaussian: Tensor
    curves: dict[str, list[tuple[int, float]]]
    fields: dict[tuple[str, int], Tensor]
    sampling: dict[tuple[str, int], float]
    training: dict[str, float]
    parameters: int
    comparison: Report
    seconds: dict[str, float]


def label(model: str, steps: int) -> str:
    """The name of a row."""
    return f"{model}, {steps} steps"


def folder_name(model: str) -> str:
    """Where a model's checkpoints are, inside the run folder."""
    return model.replace(" ", "-")


def demo_kernel(config: DemoConfig, grid: Grid) -> Kernel:
    """The kernel to fit: a Matérn unless the configuration names another."""
    if isinstance(config.kernel, Kernel):
        return config.kernel
    if config.kernel is None or config.kernel == []:
        return Matern(nu=1.5, lengthscale=min(grid.extent) / 6)
    return config.kernel[0] if len(config.kernel) == 1 else Sum(*config.kernel)


def objective_for(
    model: str, config: DemoConfig, gamma: Covariance, law: tuple[Tensor, Covariance]
) -> torch.nn.Module:
    """The objective of one of the three models, with a new network inside."""
    grid = gamma.domain
    if not isinstance(grid, Grid):
        raise TypeError(f"the demo runs on a grid, got {grid!r}.")
    network = UNet(1, grid, width=config.width, depth=config.depth)
    options: dict[str, Any] = {
        "prediction": config.prediction,
        "preconditioning": config.preconditioning,
        "data": law,
    }
    if model == BRIDGE:
        bridge = Denoiser(network, BrownianBridge(gamma), channels=1, **options)
        return BridgeMixture(bridge, coupling="independent", times="fitted")
    return Denoising(Denoiser(network, VP(gamma), channels=1, **options), times="fitted")


def run(config: DemoConfig, folder: Path, seed: int, stages: Stages) -> DemoResult:
    """Do it all; checkpoints and training metrics go into `folder`."""
    with stages.stage("reading terrain"):
        data = terrain(patch=config.patch, stride=config.stride, flips=config.flips)
        train, test, grid = data.train, data.test, data.grid
    with stages.stage("fitting Γ"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # they are in the printed result
        spectrum = fit(None, train, grid, method="spectrum", basis="cosine")
        parametric = fit(demo_kernel(config, grid), train, grid, method=config.fit_method)
    stages.say(str(parametric) + "\n")
    with stages.stage("simulating Γ"):
        data_covariance = spectrum.covariance
        if config.noise == "kernel":
            assert parametric.kernel is not None
            gamma = covariance(parametric.kernel, grid, method="cosine")
        else:
            gamma = spectrum.covariance
        # the white draws that the models start from, so that what differs from this field is what they
        # learned
        white_draws = torch.Generator().manual_seed(seed + 1)
        gaussian = data_covariance.float().sample((config.samples, 1), generator=white_draws)
        gaussian = gaussian + spectrum.mean.float()
    curves, training, fields, sampling = {}, {}, {}, {}
    denoisers: dict[str, Denoiser] = {}
    parameters = 0
    for model in MODELS:
        with stages.stage(f"training: {model}"):
            torch.manual_seed(seed)
            noise = white(grid) if model == WHITE else gamma
            objective = objective_for(model, config, noise.float(), (spectrum.mean, data_covariance))
            home = folder / folder_name(model)
            trainer = Trainer(
                objective,
                run_dir=home,
                batch_size=config.batch,
                lr=config.lr,
                ema_decay=config.ema,
                warmup=config.warmup,
                checkpoint_every=max(config.train_steps, 1),
                log_every=max(1, config.train_steps // 100),
                seed=seed,
                tensorboard=False,
                progress=model if stages.show else False,
            ).fit(train, steps=config.train_steps)
            rows = read_metrics(home / "metrics.csv")
            curves[model] = [(int(row["step"]), row["loss"]) for row in rows]
            training[model] = trainer.seconds
            denoisers[model] = trainer.ema_denoiser()
            parameters = sum(p.numel() for p in denoisers[model].network.parameters())
    for model, denoiser in denoisers.items():
        with stages.stage(f"sampling: {model}"):
            solver = config.bridge_solver if model == BRIDGE else config.solver
            bar = stages.steps(sum(config.sample_steps), "sampling")
            for steps in config.sample_steps:
                begun = time.perf_counter()
                fields[model, steps] = sample(
                    denoiser,
                    config.samples,
                    steps=steps,
                    solver=solver,
                    grid=config.solver_grid,
                    generator=torch.Generator().manual_seed(seed + 1),
                    **config.solver_options,
                )
                sampling[model, steps] = time.perf_counter() - begun
                bar.update(steps)
            bar.close()
    with stages.stage("comparing with held-out terrain"):
        generated = {GAUSSIAN_FIELD: gaussian}
        generated |= {label(model, steps): drawn for (model, steps), drawn in fields.items()}
        comparison = compare(generated, test, grid, training=train)
    return DemoResult(
        data,
        spectrum,
        parametric,
        gamma,
        gaussian,
        curves,
        fields,
        sampling,
        training,
        parameters,
        comparison,
        stages.seconds,
    )
