"""What a measure of difference between two sets of fields consists of.

A measure is computed in three steps, so that the costly one is done once per set and not once per split:
statistics of single fields; their summary over a (sub)sample; the distance of two summaries of *equally
large* samples. Most distances are biased upwards by an amount that depends on the sample size: that is why
sizes are matched, and what the floor is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from spatialdiff.domains import Grid


@dataclass(frozen=True)
class Metric:
    """One column of the table.

    Args:
        name: its head.
        statistics: fields `(N, C, *grid)` and their grid → one row per field, `(N, C, ...)`.
        summary: rows of a sample → its summary.
        distance: (summary of generated, summary of real) → a number, 0 for equal samples, smaller is better.
        meaning: one line for the legend.
        pooled: rows are unordered values of a field, of which a random part will do.
    """

    name: str
    statistics: Callable[[Tensor, Grid], Tensor]
    summary: Callable[[Tensor], Tensor]
    distance: Callable[[Tensor, Tensor], float]
    meaning: str = ""
    pooled: bool = False


def average(rows: Tensor) -> Tensor:
    """Mean over fields, `(N, C, ...)` → `(C, ...)`."""
    return rows.mean(0)
