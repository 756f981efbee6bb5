"""The pictures of the page on sampling.

`make docs` draws them into ``docs/_static/sampling``, those that are not there yet; by hand: ``python
docs/sampling_pictures.py FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

import spatialdiff as sd
from spatialdiff.kernels import Exponential, Matern

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

GRID = sd.Grid((32, 32), periodic=True)
STEPS = [4, 8, 16, 32, 64]
SOLVERS = {
    "ancestral": ("ancestral", {}),
    "DDIM": ("ddim", {}),
    "exponential, order 2": ("exponential", {"order": 2}),
    "Heun": ("heun", {}),
    "Euler–Maruyama": ("euler_maruyama", {}),
}


def torus(kernel) -> sd.TorusCovariance:
    return sd.TorusCovariance(kernel, GRID).double().requires_grad_(False)


DATA = torus(Exponential(5.0))


def fitted_noise() -> Figure:
    """Noise close to the data."""
    process = sd.VP(torus(Matern(1.5, 3.0)))
    title = "Noise with a covariance close to that of the data"
    return sd.oracles.transport_picture(process, SOLVERS, STEPS, DATA, grid="fitted", title=title)


def white_noise() -> Figure:
    """White noise."""
    process = sd.VP(sd.white(GRID).double())
    return sd.oracles.transport_picture(process, SOLVERS, STEPS, DATA, grid="fitted", title="White noise")


PICTURES: dict[str, Callable[[], Figure]] = {
    "transport-coloured": fitted_noise,
    "transport-white": white_noise,
}


def draw(folder: Path) -> None:
    """Draw every picture that ``folder`` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        file = folder / f"{name}.png"
        if not file.exists():
            figure = picture()
            figure.savefig(file, dpi=110)
            plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
