"""`spatialdiff evaluate`: are these the right fields?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spatialdiff.cli import train as training
from spatialdiff.cli.command import Command, absolute, arguments, resolved, say
from spatialdiff.cli.files import Setting, read_fields
from spatialdiff.data import FieldData
from spatialdiff.evaluation import compare
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder


def data_of(run: str) -> FieldData:
    """The data that a training run was trained on.

    Raises:
        FileNotFoundError: `run` is not a training run.
    """
    folder = RunFolder.open(run, "config.yaml", "fit.pt", "data.json")
    parser, config = training.COMMAND.parse(["--config", str(folder / "config.yaml")])
    others = [name for name in vars(config) if name not in ("data", "config")]
    data = arguments(parser, config, *others)["data"]
    assert isinstance(data, FieldData)
    return data


def name_of(path: str) -> str:
    """What a set of fields is called: its file, or the folder of a `fields.npz`."""
    file = Path(path)
    return file.resolve().parent.name if file.name == "fields.npz" else file.stem


def evaluate(
    out: RunFolder,
    config: str,
    generated: list[str] | dict[str, str] | str,
    run: str | None = None,
    data: FieldData | None = None,
    splits: int = 8,
    seed: int = 0,
) -> None:
    """Compare generated fields with held-out data.

    Args:
        generated: files `fields.npz` (or the folders that hold them): one, a list, or by name.
        run: run folder of `spatialdiff train`, whose data are the reference.
        data: source of the reference by class path, where there is no run.
        splits: random halves of the real data that the errors are averaged over.
        seed: seed of the halves.
    """
    import torch

    if isinstance(generated, str):
        generated = [generated]
    named = generated if isinstance(generated, dict) else {name_of(path): path for path in generated}
    if len(named) < len(generated):
        raise ValueError(f"Two of {generated} have the same name; give them as {{name: path}}.")
    fields = {name: read_fields(path) for name, path in named.items()}
    if run is not None:
        data = data_of(run)
    if data is None:
        raise ValueError(
            "evaluate needs the real data: --run RUN_FOLDER of a training run, or --data CLASS_PATH."
        )
    found = compare(
        fields,
        data.test,
        data.grid,
        training=data.train,
        splits=splits,
        generator=torch.Generator().manual_seed(seed),
    )
    versions = out.describe(config, seed)
    Setting.of(data).write(out)
    found.save(out.path)
    lines = [{"fields": name, **found.errors(name)} for name in found.names]
    out.write_csv("metrics.csv", [{"fields": "floor", **found.floor}, *lines])
    page = Page(
        f"Comparison with {data.name}", f"{len(data.test)} held-out fields of shape {data.grid.shape}."
    )
    page.code(found.table())
    page.figure(out / "fields.png", "Fields of each set on one colour scale.")
    page.figure(out / "curves.png", "Spectra, variograms and distributions.")
    page.provenance(config, seed, versions).save(out / "report.html")
    say(found.table(), "", f"report: {out / 'report.html'}")


COMMAND = Command("evaluate", evaluate, {})


def main(argv: Sequence[str]) -> None:
    """Parse and run."""
    parser, config = COMMAND.parse(argv)
    config["run"] = absolute(config["run"])
    paths = config["generated"]
    if isinstance(paths, str):
        config["generated"] = absolute(paths)
    elif isinstance(paths, list):
        config["generated"] = [absolute(path) for path in paths]
    else:
        names = list(vars(paths)) if not isinstance(paths, dict) else list(paths)
        config["generated"] = {name: absolute(paths[name]) for name in names}
    out = RunFolder.create("evaluate", config["run_dir"], overwrite=config["overwrite"])
    evaluate(out, resolved(parser, config), **arguments(parser, config))
