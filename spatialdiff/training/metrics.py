"""What a run measures, as a plain table `metrics.csv` and, where asked for, as TensorBoard events.

On resuming from step n the rows past n are dropped, so that the table is the one an uninterrupted run writes.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from spatialdiff.training.checkpoint import replace_atomically

COLUMNS = ("step", "epoch", "loss", "gradient_norm", "learning_rate", "seconds")


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of `metrics.csv`; a row that a killed process left half-written is not one."""
    text = Path(path).read_text()
    complete = text[: text.rfind("\n") + 1]
    return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(complete))]


def _text(rows: list[dict[str, float]], header: bool) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        writer.writerow({k: int(row[k]) if k in ("step", "epoch") else repr(float(row[k])) for k in COLUMNS})
    return out.getvalue()


class Metrics:
    """Append rows to `run_dir/metrics.csv` and scalars to `run_dir/tensorboard`, from `step` on."""

    def __init__(self, run_dir: Path, step: int, tensorboard: bool) -> None:
        path = run_dir / "metrics.csv"
        kept = [row for row in read_metrics(path) if row["step"] <= step] if path.exists() else []
        replace_atomically(path, _text(kept, header=True).encode())
        self.file = path.open("a")
        self.board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, float]) -> None:
        self.file.write(_text([row], header=False))
        self.file.flush()
        if self.board is not None:
            for name in COLUMNS[1:]:
                self.board.add_scalar(f"train/{name}", row[name], int(row["step"]))

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()
