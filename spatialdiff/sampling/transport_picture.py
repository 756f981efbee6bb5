"""The picture of exact transport errors over solvers and numbers of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatialdiff.sampling.transport import gaussian_transport_error


def transport_picture(
    process: Any,
    solvers: Mapping[str, tuple[str, Mapping[str, Any]]] | list[str],
    steps: list[int],
    data_spectrum: Any,
    *,
    grid: str = "log_snr",
    title: str = "Transport error",
    **options: Any,
) -> Any:
    """The relative transport error of several solvers against the number of steps, a matplotlib figure.

    Args:
        process, data_spectrum, grid, options: as for ``gaussian_transport_error``.
        solvers: names, or labels with ``(name, options)``.
        steps: the numbers of steps. title: above the picture.

    Raises ``ValueError`` where ``gaussian_transport_error`` does.
    """
    import matplotlib.pyplot as plt

    from spatialdiff.style import PALETTE, style

    named = solvers if isinstance(solvers, Mapping) else {name: (name, {}) for name in solvers}
    with style():
        figure, axes = plt.subplots(figsize=(5.0, 3.6), layout="constrained")
        for i, (label, (name, own)) in enumerate(named.items()):
            values = [
                gaussian_transport_error(
                    process, name, count, data_spectrum, **{"grid": grid, **options, **own}
                ).relative
                for count in steps
            ]
            axes.loglog(steps, values, marker="o", markersize=3, color=PALETTE[i % len(PALETTE)], label=label)
        axes.set(xlabel="steps", ylabel="W₂ error relative to the data", title=title)
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.minorticks_off()
        axes.legend()
    return figure
