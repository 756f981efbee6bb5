"""Few-step sampling on terrain and air temperature: every solver, white and fitted Γ, with and without Wiener.

    python benchmarks/few_steps.py train --out runs/few-steps       24 networks on equal budgets, three seeds
    python benchmarks/few_steps.py sample --out runs/few-steps      fields by every solver at 4, 8, 16, 64 steps
    python benchmarks/few_steps.py report --out runs/few-steps      table and picture for docs/few-steps.md

Every stage goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from pathlib import Path

import torch

import spatialdiff as sd

SOURCES = ("terrain", "temperature")
NOISES = ("white", "fitted")
PRECONDITIONINGS = ("edm", "wiener")
SEEDS = (0, 1, 2)
TRAINING_STEPS = 1500


def load(source: str) -> sd.data.FieldData:
    """Training and held-out fields."""
    if source == "terrain":
        return sd.data.terrain(patch=32, stride=4, flips=True)
    return sd.data.air_temperature()


def fitted(data: sd.data.FieldData) -> sd.FitResult:
    """The smoothed spectrum of the training fields in the cosine basis."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.fitting.FitWarning)
        return sd.fit(None, data.train, data.grid, method="spectrum", basis="cosine")


def denoiser(data: sd.data.FieldData, fit: sd.FitResult, noise: str, preconditioning: str) -> sd.Denoiser:
    """An untrained denoiser for VP noise."""
    gamma = (sd.white(data.grid) if noise == "white" else fit.covariance).float()
    network = sd.networks.UNet(1, data.grid, width=16, depth=2)
    law = (fit.mean, fit.covariance)
    return sd.Denoiser(network, sd.VP(gamma), preconditioning=preconditioning, data=law, channels=1)


def train(out: Path, source: str) -> None:
    """Train every model of one source that is not there yet."""
    data = load(source)
    fit = fitted(data)
    for seed, noise, preconditioning in itertools.product(SEEDS, NOISES, PRECONDITIONINGS):
        path = out / f"{source}-{noise}-{preconditioning}-{seed}.pt"
        if path.exists():
            continue
        begun = time.perf_counter()
        torch.manual_seed(seed)
        objective = sd.Denoising(denoiser(data, fit, noise, preconditioning), times="fitted")
        trainer = sd.Trainer(
            objective, batch_size=16, lr=2e-3, ema_decay=0.995, warmup=50, seed=seed, tensorboard=False,
            progress=False,
        ).fit(data.train, steps=TRAINING_STEPS)  # fmt: skip
        partial = path.with_suffix(".part")
        torch.save(trainer.ema_denoiser().network.state_dict(), partial)
        partial.rename(path)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s", flush=True)


def main() -> None:
    """Parse and run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train",))
    parser.add_argument("--out", type=Path, default=Path("runs/few-steps"))
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for source in arguments.sources:
        train(arguments.out, source)


if __name__ == "__main__":
    main()
