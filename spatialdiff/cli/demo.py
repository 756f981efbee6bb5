"""`spatialdiff demo`: the main job on real terrain, start to end."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spatialdiff.cli.command import Command, arguments, resolved, say
from spatialdiff.demo.config import QUICK, DemoConfig
from spatialdiff.runs import RunFolder

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def demo(
    out: RunFolder,
    config: str,
    settings: DemoConfig,
    quick: bool = False,
    progress: bool = True,
    seed: int = 0,
) -> None:
    """Fit Γ to terrain, train three models on equal budgets, sample, compare, report.

    Args:
        settings: what to do.
        quick: take the small settings: under a minute, and models that are barely trained.
        progress: show progress bars.
        seed: seed of everything.
    """
    from spatialdiff.demo.page import write
    from spatialdiff.demo.pipeline import MODELS, STAGES, folder_name, run
    from spatialdiff.demo.progress import Stages

    begun = time.perf_counter()
    for model in MODELS:  # of a run that is being replaced
        shutil.rmtree(out / folder_name(model), ignore_errors=True)
    found = out.describe(config, seed)
    stages = Stages(STAGES + 1, "spatialdiff demo", progress)
    result = run(settings, out.path, seed, stages)
    with stages.stage("writing the report"):
        report = write(result, settings, out, config, seed, found, quick)
    stages.close()
    say("", result.comparison.table(), "", f"{time.perf_counter() - begun:.0f} s in all. Report: {report}")


def _add_settings(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="Small settings: under a minute, barely trained."
    )
    parser.add_class_arguments(DemoConfig, instantiate=False)


COMMAND = Command("demo", demo, {}, skip=("settings", "quick"), extend=_add_settings)


def main(argv: Sequence[str]) -> None:
    """Parse and run."""
    parser, config = COMMAND.parse(argv)
    if config["quick"]:
        parser, config = COMMAND.parse(argv, QUICK)
    text, values = resolved(parser, config), arguments(parser, config)
    settings = DemoConfig(**{field.name: values.pop(field.name) for field in dataclasses.fields(DemoConfig)})
    demo(RunFolder.create("demo", config["run_dir"], overwrite=config["overwrite"]), text, settings, **values)
