"""The pictures of the pages on fitting and kriging.

`make docs` draws them into ``docs/_static/fitting``, those that are not there yet; by hand: ``python
docs/fitting_pictures.py FOLDER``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch

import spatialdiff as sd
from spatialdiff.fitting import FitWarning, compare, diagnose
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget, Spherical

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def temperature() -> sd.data.FieldData:
    return sd.data.air_temperature((16, 24))


def right_and_wrong(kernel) -> Figure:
    """Diagnostics of a kernel fitted to anomalies of air temperature."""
    data = temperature()
    fit = sd.fit(kernel, data.train[::4], data.grid, method="whittle")
    return diagnose(fit, data.train[::4], data.grid, simulations=200)


def diagnosed_wrong() -> Figure:
    return right_and_wrong(Gaussian(5.0) + Nugget(0.01))


def diagnosed_better() -> Figure:
    return right_and_wrong(Matern(1.5, 5.0) + Gaussian(30.0) + Nugget(0.01))


def compared() -> Figure:
    """Four families on log zinc, with a drift in the distance to the river."""
    meuse = sd.data.meuse()
    kernels = [
        family + Nugget(0.05)
        for family in (
            Exponential(200.0, 0.2),
            Matern(1.5, 150.0, 0.2),
            Spherical(600.0, 0.2),
            Gaussian(150.0, 0.2),
        )
    ]
    return compare(
        kernels, meuse["zinc"].log(), meuse.points, mean=meuse.columns("dist").sqrt(), starts=2
    ).plot()


def maps() -> Figure:
    """Log zinc kriged over the flood plain, its standard deviation, and two conditional simulations."""
    meuse, flood = sd.data.meuse(), sd.data.meuse_grid()
    kernel = Spherical(897.0, 0.5906) + Nugget(0.0507)
    kriging = sd.Kriging(kernel, meuse.points, meuse["zinc"].log())
    mean, variance = kriging.predict(flood.domain)
    draws = kriging.simulate(2, flood.domain, generator=seeded())
    figure, axes = plt.subplots(1, 4, figsize=(11.0, 3.6), layout="constrained")
    extent = (0.0, 78 * 0.04, 0.0, 104 * 0.04)
    fields = {
        "kriged log zinc": mean,
        "standard deviation": variance.sqrt(),
        "one draw": draws[0],
        "another": draws[1],
    }
    x, y = (meuse.points.sites() / 1000.0).T
    for axis, (title, field) in zip(axes, fields.items(), strict=True):
        shown = flood.domain.fill(field).T
        limits = {} if title == "standard deviation" else {"vmin": 4.5, "vmax": 7.7}
        image = axis.imshow(shown, origin="lower", extent=extent, cmap="viridis", **limits)
        figure.colorbar(image, ax=axis, shrink=0.7)
        if title == "standard deviation":
            axis.scatter(x, y, s=1.5, c="white")
        axis.set(title=title, xlabel="km")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "diagnosed-wrong": diagnosed_wrong,
    "diagnosed-better": diagnosed_better,
    "compared": compared,
    "kriged-meuse": maps,
}


def draw(folder: Path) -> None:
    """Draw every picture that ``folder`` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        file = folder / f"{name}.png"
        if file.exists():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # what the pictures are to show
            figure = picture()
        figure.savefig(file, dpi=110)
        plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
