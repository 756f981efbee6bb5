"""`spatialdiff train`: a network learns the posterior mean, by denoising or by bridge mixture."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpytorch.kernels import Kernel

from spatialdiff.cli.command import Command, absolute, arguments, resolved, say
from spatialdiff.cli.files import Setting, read_fit, write_fit
from spatialdiff.cli.fit import fit_data
from spatialdiff.cli.model import ModelConfig, NetworkOf, ObjectiveOf, ProcessOf
from spatialdiff.data import FieldData
from spatialdiff.plotting import training_curves
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder, digest
from spatialdiff.style import PALETTE
from spatialdiff.training import Trainer
from spatialdiff.training.metrics import read_metrics

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from spatialdiff.fitting import FitResult


def train(
    out: RunFolder,
    config: str,
    data: FieldData,
    process: ProcessOf,
    network: NetworkOf,
    objective: ObjectiveOf,
    trainer: dict[str, Any],
    fit: str | None = None,
    mean: Literal["constant", "linear", "field"] | None = "constant",
    noise: Literal["fit", "white"] | Kernel | list[Kernel] = "fit",
    noise_method: str = "auto",
    prediction: Literal["data", "noise", "white_noise", "velocity", "variable_noise"] = "data",
    preconditioning: Literal["none", "edm", "wiener"] = "wiener",
    steps: int = 2000,
    seed: int = 0,
) -> None:
    """Train a model; interrupted, the same command goes on from the last checkpoint.

    Args:
        data: source of the fields by class path, such as spatialdiff.data.terrain.
        process: noise process or bridge by class path, such as spatialdiff.VP, spatialdiff.CLD or
            spatialdiff.BrownianBridge.
        network: network by class path, called with the number of channels of the state (C for each variable
            of the process) and the grid.
        objective: spatialdiff.Denoising, spatialdiff.EvidenceBound (which trains what the process learns as
            well), or spatialdiff.BridgeMixture for a bridge.
        trainer: arguments of spatialdiff.Trainer.
        fit: run folder of `spatialdiff fit`; without it the spectrum of the data is fitted first.
        mean: of that fit: "constant" (one number per channel), "linear" (in the coordinates), "field" (one
            per site: right for images, whose middle is not like their margin), or null for zero.
        noise: Γ: "fit", "white", or a kernel by class path; a list is a sum.
        noise_method: structure of Γ for a kernel; "auto" is the torus on periodic grids, else the cosine
            basis.
        prediction: what the network predicts; variable_noise is the noise of each variable of the process.
        preconditioning: what the network is given, and what its output is the residual to.
        steps: optimiser steps.
        seed: seed of the first weights, of the order of the data and of the noise.
    """
    setting = Setting.of(data)
    fitted = _fit(out, data, setting, fit, mean)
    model = ModelConfig(noise, noise_method, process, network, objective, prediction, preconditioning)
    loop = Trainer(model.build(fitted, setting, seed), run_dir=out.path, seed=seed, **trainer)
    if not (out / "fit.pt").exists():
        write_fit(out, fitted, setting)
    found = out.describe(config, seed)
    loop.fit(data.train, steps=steps)
    rows = read_metrics(out / "metrics.csv")
    picture = training_curves(
        {setting.name: [(int(row["step"]), row["loss"]) for row in rows]}, {setting.name: PALETTE[0]}
    )
    drawn = out.write_picture("training.png", picture)
    page = Page(
        "Training",
        f"{steps} steps on {setting.name}, {len(data.train)} fields of shape {setting.grid.shape}.",
    )
    page.figure(drawn, "Loss, smoothed; the recorded values faintly behind.")
    page.pairs({"seconds": f"{rows[-1]['seconds']:.1f}", "last loss": f"{rows[-1]['loss']:.4g}"})
    page.provenance(config, seed, found).save(out / "report.html")
    say(f"trained to step {steps}: {out}", f"next: spatialdiff sample --run {out}")


def _fit(
    out: RunFolder, data: FieldData, setting: Setting, folder: str | None, mean: str | None
) -> FitResult:
    """The law of the data: of an interrupted run its own, of `folder` where one is given, else the smoothed
    spectrum."""
    if (out / "fit.pt").exists():
        return read_fit(out.path).fit
    if folder is None:
        fitted = fit_data(data, None, "spectrum", mean)
        say(str(fitted), "")
        return fitted
    saved = read_fit(folder)
    if saved.grid != setting.grid or saved.setting.channels != setting.channels:
        raise ValueError(
            f"The fit in {folder} is for {saved.setting.channels} channel(s) on {saved.grid}; the data have "
            f"{setting.channels} on {setting.grid}. Fit these data, or leave --fit out."
        )
    return saved.fit


def _add_trainer(parser: ArgumentParser) -> None:
    parser.add_class_arguments(Trainer, "trainer", skip={"objective", "run_dir", "seed"}, instantiate=False)


COMMAND = Command(
    "train",
    train,
    {
        "data": {"class_path": "spatialdiff.data.terrain"},
        "process": {"class_path": "spatialdiff.VP"},
        "network": {"class_path": "spatialdiff.networks.UNet"},
        "objective": {"class_path": "spatialdiff.Denoising"},
    },
    skip=("trainer",),
    extend=_add_trainer,
)


def folder(run_dir: str | None, text: str, root: str = "runs") -> RunFolder:
    """The run's folder: `run_dir`, or one named by the configuration, so that the same command finds it
    again.

    Raises:
        ValueError: the folder belongs to a run of another configuration; says what differs.
        FileExistsError: the folder holds something else.
    """
    path = Path(run_dir) if run_dir is not None else Path(root) / f"train-{digest(text)}"
    before = path / "config.yaml"
    if not before.exists():
        leftovers = (
            [item for item in path.iterdir() if not item.name.startswith(".")] if path.is_dir() else []
        )
        if {item.name for item in leftovers} - {"fit.pt", "data.json"}:
            raise FileExistsError(f"{path} holds files that are not a training run. Give another --run-dir.")
        return RunFolder(path)
    lines = difflib.unified_diff(before.read_text().splitlines(), text.splitlines(), lineterm="", n=0)
    changed = [line for line in list(lines)[2:] if line[0] in "+-" and not line[1:].startswith("steps:")]
    if changed:
        raise ValueError(
            f"{path} was trained with another configuration (- its own, + this one):\n  "
            + "\n  ".join(changed)
            + "\nGive the same configuration to go on with it, or another --run-dir to start a new run."
        )
    return RunFolder(path)


def main(argv: Sequence[str]) -> None:
    """Parse and run."""
    parser, config = COMMAND.parse(argv)
    config["fit"] = absolute(config["fit"])
    text = resolved(parser, config)
    out = folder(config["run_dir"], text)
    train(out, text, **arguments(parser, config))
