"""What a comparison found: as numbers, as a table, as pictures, in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.evaluation.curves import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE, TRAINING, FLOOR = "held-out data", "training data", "floor: real against real"
NEAREST = "nearest training"


@dataclass(frozen=True)
class Report:
    """The result of `compare`.

    Args:
        names: the generated sets.
        size, splits: fields per sample, and number of splits that every error is averaged over.
        counts: set → number of fields.
        scores: set (and "training data") → metric → error.
        floor: metric → what two halves of the real data differ by.
        floor_spread: its standard deviation over splits.
        meanings: metric → what it is.
        energy: set → unbiased energy distance of all fields, in the reference's standard deviations, and its
            standard error.
        nearest: set → distance to the nearest training field (median), `ratio` to that of held-out fields,
        and
            share of `close` ones; empty without training fields.
        moments: set → "values", "slopes", "curvature" → mean, standard deviation, skewness, kurtosis.
        curves: metric → the diagram behind it; lengths in units of the grid, values standardised.
        fields: set → a few standardised fields, evenly spaced in the order given.
        grid: where they live.
    """

    names: Sequence[str]
    size: int
    splits: int
    counts: Mapping[str, int]
    scores: Mapping[str, Mapping[str, float]]
    floor: Mapping[str, float]
    floor_spread: Mapping[str, float]
    meanings: Mapping[str, str]
    energy: Mapping[str, Mapping[str, float]]
    nearest: Mapping[str, Mapping[str, float]]
    moments: Mapping[str, Mapping[str, Mapping[str, float]]]
    curves: Mapping[str, Panel] = field(repr=False)
    fields: Mapping[str, Tensor] = field(repr=False)
    grid: Grid

    def errors(self, name: str | None = None) -> dict[str, float]:
        """Metric → error of a set, smaller is better; the name may be left out where there is one set.

        Raises:
            KeyError: no such set.
        """
        if name is None and len(self.names) == 1:
            name = self.names[0]
        if name is None or name not in self.scores:
            raise KeyError(f"There is no set {name!r} in this report; it has {', '.join(self.scores)}.")
        return dict(self.scores[name])

    @property
    def training(self) -> dict[str, float] | None:
        """Metric → error of the training data, the floor for a model of them; None where none were given."""
        return dict(self.scores[TRAINING]) if TRAINING in self.scores else None

    @property
    def numbers(self) -> dict[str, Any]:
        """All numbers, nested, of plain types: what `numbers.json` holds."""
        return {
            "grid": {
                "shape": list(self.grid.shape),
                "spacing": list(self.grid.spacing),
                "periodic": list(self.grid.periodic),
            },
            "fields per sample": self.size,
            "splits": self.splits,
            "fields": dict(self.counts),
            "errors": {name: self.errors(name) for name in self.names},
            "training data": self.training,
            "floor": dict(self.floor),
            "floor spread": dict(self.floor_spread),
            "energy distance": {name: dict(found) for name, found in self.energy.items()},
            "nearest training field": {name: dict(found) for name, found in self.nearest.items()},
            "moments": {name: {k: dict(v) for k, v in by.items()} for name, by in self.moments.items()},
        }

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows; the smallest error of each column among several sets has a star."""
        metrics = list(self.floor)
        best = {m: min(self.names, key=lambda name, m=m: self.scores[name][m]) for m in metrics}  # type: ignore[misc]
        rows = [[FLOOR, *(f"{self.floor[m]:.3g}" for m in metrics)]]
        if self.training is not None:
            rows.append([TRAINING, *(f"{self.training[m]:.3g}" for m in metrics)])
        for name in self.names:
            stars = ["*" if len(self.names) > 1 and best[m] == name else "" for m in metrics]
            rows.append(
                [name, *(f"{self.scores[name][m]:.3g}{s}" for m, s in zip(metrics, stars, strict=True))]
            )
        if self.nearest:
            ratios = {name: f"{self.nearest[name]['ratio']:.2f}" for name in self.names}
            rows = [[*row, ratios.get(row[0], "1.00" if row[0] == FLOOR else "")] for row in rows]
        return ["", *metrics, *([NEAREST] if self.nearest else [])], rows

    def _notes(self) -> list[str]:
        notes = [
            "Every error is a distance to the held-out data: smaller is better"
            + (", * the smallest of a column." if len(self.names) > 1 else "."),
            f"Floor: two halves of the held-out data. All by {self.splits} splits "
            f"into samples of {self.size} fields.",
        ]
        if self.nearest:
            notes.append(
                "Nearest training field: distance over that of held-out fields; near 1 is good, "
                "far below 1 is copying."
            )
        return notes

    def table(self) -> str:
        """The errors as text, one row per set."""
        head, rows = self._cells()
        widths = [max(len(row[j]) for row in [head, *rows]) for j in range(len(head))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in [head, *rows]
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines.insert(2 + len(rows) - len(self.names), "")
        return "\n".join([*(line.rstrip() for line in lines), "", *self._notes()])

    def markdown(self) -> str:
        """The same as a Markdown table."""
        head, rows = self._cells()
        lines = [
            "| " + " | ".join(cell.replace("*", r"\*").replace("|", r"\|") for cell in row) + " |"
            for row in [head, *rows]
        ]
        lines.insert(1, "|---" + "|---:" * (len(head) - 1) + "|")
        return "\n".join([*lines, "", " ".join(note.replace("*", r"\*") for note in self._notes())])

    def __str__(self) -> str:
        return self.table()

    def plot(self) -> Figure:
        """Spectrum and variogram with their ratio to the real data, and the distributions; the grey band is
        where halves of the real data lie."""
        from spatialdiff import plotting

        return plotting.panels(list(self.curves.values()), plotting.colors([REFERENCE, *self.names]))

    def plot_fields(self, columns: int = 8) -> Figure:
        """Some fields of each set, none chosen, on the colour scale of the real ones."""
        from spatialdiff import plotting

        return plotting.gallery(self.fields, columns, label="standard deviations", grid=self.grid)

    def save(self, folder: Path | str) -> Path:
        """Write `numbers.json`, `table.txt`, `table.md`, `curves.json`, `curves.png` and `fields.png`.

        Each file appears whole or not at all; files of an earlier comparison are replaced.
        """
        from spatialdiff.runs import RunFolder

        out = RunFolder(folder)
        out.write_json("numbers.json", self.numbers)
        out.write_text("table.txt", self.table() + "\n")
        out.write_text("table.md", self.markdown() + "\n")
        drawn = {
            name: {k: [list(x), list(y)] for k, (x, y) in p.curves.items()} for name, p in self.curves.items()
        }
        out.write_json("curves.json", drawn)
        out.write_picture("curves.png", self.plot())
        out.write_picture("fields.png", self.plot_fields())
        return out.path
