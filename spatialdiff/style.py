"""The look of every picture: colours and settings of matplotlib, which stand below everything that draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

REAL, GAUSSIAN = "#1d2329", "#9aa5b1"
PALETTE = ("#3b78b5", "#d9762b", "#2a9074", "#9b5fb0", "#b8485e", "#8a7a2e")

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.labelcolor": "#39424b",
    "axes.edgecolor": "#8a949e",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.6,
    "xtick.color": "#5d6873",
    "ytick.color": "#5d6873",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.5,
    "figure.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of every picture, left behind on exit."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        yield


def colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: the first, the reference, in ink; the others from the palette in turn."""
    return {name: PALETTE[(i - 1) % len(PALETTE)] if i else REAL for i, name in enumerate(names)}
