"""`spatialdiff evaluate`: are these the right fields?"""

from __future__ import annotations

from spatialdiff.cli import train as training
from spatialdiff.cli.command import Command, arguments
from spatialdiff.data import FieldData
from spatialdiff.runs import RunFolder

COMMAND: Command


def data_of(run: str) -> FieldData:
    """The data that a training run was trained on."""
    folder = RunFolder.open(run, "config.yaml", "fit.pt")
    parser, config = training.COMMAND.parse(["--config", str(folder / "config.yaml")])
    others = [name for name in vars(config) if name not in ("data", "config")]
    data = arguments(parser, config, *others)["data"]
    assert isinstance(data, FieldData)
    return data
