"""`spatialdiff sample`: fields from a trained model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from spatialdiff.cli import train as training
from spatialdiff.cli.command import Command, absolute, arguments, resolved, say
from spatialdiff.cli.files import read_fit, write_fields
from spatialdiff.cli.model import ModelConfig
from spatialdiff.cli.objects import seeded
from spatialdiff.denoisers import Denoiser
from spatialdiff.plotting import gallery
from spatialdiff.processes.base import Dynamics
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder
from spatialdiff.sampling import sample as draw
from spatialdiff.training import load_weights
from spatialdiff.training.checkpoint import CheckpointDirectory, CheckpointError, read


def trained_denoiser(folder: str, averaged: bool = True) -> Denoiser:
    """The denoiser of a training run, with its newest weights, and what its process learned.

    Raises:
        FileNotFoundError: `folder` is not a training run.
        CheckpointError: it has no checkpoint, or one of another configuration.
    """
    out = RunFolder.open(folder, "config.yaml", "fit.pt", "data.json")
    saved = read_fit(folder)
    parser, config = training.COMMAND.parse(["--config", str(out / "config.yaml")])
    parts = arguments(parser, config, "data", "trainer")
    named = {name: parts[name] for name in ModelConfig.__dataclass_fields__}
    denoiser = ModelConfig(**named).build(saved.fit, saved.setting, parts["seed"]).denoiser
    assert isinstance(denoiser, Denoiser)
    load_weights(out.path, denoiser.network, ema=averaged)
    load_learned(out.path, denoiser.process, averaged)
    return denoiser.requires_grad_(False).eval()


def load_learned(folder: Path, process: Dynamics, averaged: bool) -> None:
    """Load what the process of a training run learned from its newest checkpoint, in place.

    Raises:
        CheckpointError: there is no checkpoint, or it holds the parameters of another process.
    """
    learned = process.learned_parameters()
    if not learned:
        return
    newest = CheckpointDirectory(folder / "checkpoints").latest()
    if newest is None:
        raise CheckpointError(f"there is no checkpoint in {folder / 'checkpoints'}")
    state = read(newest)
    prefix = "denoiser.process."
    own = {
        name.removeprefix(prefix): value
        for name, value in state["objective"].items()
        if name.startswith(prefix)
    }
    try:
        process.load_state_dict(own)
        means = [state["learned_ema"][f"module.{i}"] for i in range(len(learned))] if averaged else []
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{newest} holds the parameters of another process: {error}") from error
    with torch.no_grad():
        for parameter, mean in zip(learned, means, strict=False):
            parameter.copy_(mean)


def sample(
    out: RunFolder,
    config: str,
    run: str,
    n: int = 64,
    steps: int = 32,
    solver: str = "gaussian",
    time_grid: Literal["fitted", "optimised", "log_snr", "uniform", "quadratic", "edm"] = "log_snr",
    options: dict[str, Any] | None = None,
    weights: Literal["ema", "last"] = "ema",
    batch: int = 256,
    seed: int = 0,
) -> None:
    """Generate fields with a trained model.

    Args:
        run: run folder of `spatialdiff train`.
        n: number of fields.
        steps: sampling steps.
        solver: of the SDE ancestral, bridge, euler_maruyama, gaussian_sde, predictor_corrector or splitting;
            of the probability flow adaptive, ddim, euler, exponential, gaussian or heun.
        time_grid: spacing of the times; optimised is the best for the fitted Gaussian law and this solver.
        options: further options of the solver, such as {order: 2} of gaussian.
        weights: the averaged weights, or the last ones.
        batch: fields generated at once.
        seed: seed of the draws.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"n and batch must be at least 1, got n={n} and batch={batch}.")
    setting = read_fit(run).setting
    denoiser = trained_denoiser(run, weights == "ema")
    generator = seeded(seed)
    begun = time.perf_counter()
    parts = [
        draw(
            denoiser,
            min(batch, n - first),
            steps=steps,
            solver=solver,
            grid=time_grid,
            generator=generator,
            progress=True,
            **(options or {}),
        )
        for first in range(0, n, batch)
    ]
    fields = torch.cat(parts)
    seconds = time.perf_counter() - begun
    write_fields(out, fields, setting)
    found = out.describe(config, seed)
    out.write_csv("metrics.csv", [{"metric": "seconds", "value": seconds}, {"metric": "fields", "value": n}])
    units = f" ({setting.units})" if setting.units else ""
    picture = gallery({"": setting.physical(fields[:8])}, columns=min(8, n), label=setting.name + units)
    drawn = out.write_picture("fields.png", picture)
    page = Page(
        "Generated fields",
        f"{n} fields of shape {setting.grid.shape}, {steps} steps of {solver}, {seconds:.1f} s.",
    )
    page.figure(drawn, f"The first {min(8, n)} fields, in the units of the data.")
    page.provenance(config, seed, found).save(out / "report.html")
    say(
        f"{n} fields in {seconds:.1f} s: {out / 'fields.npz'} (fields: standardised; physical: in the units "
        f"of the data)",
        f"next: spatialdiff evaluate --run {run} --generated {out}",
    )


COMMAND = Command("sample", sample, {})


def main(argv: Sequence[str]) -> None:
    """Parse and run."""
    parser, config = COMMAND.parse(argv)
    config["run"] = absolute(config["run"])
    out = RunFolder.create("sample", config["run_dir"], overwrite=config["overwrite"])
    sample(out, resolved(parser, config), **arguments(parser, config))
