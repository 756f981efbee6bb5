"""The pictures of the gallery: every family of covariance functions, every kind of domain.

`make docs` draws them into ``docs/_static/gallery``, those that are not there yet; by hand: ``python
docs/gallery.py FOLDER``.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import torch

import spatialdiff as sd
from spatialdiff.kernels import (
    Anisotropic,
    Chordal,
    Coregionalization,
    Exponential,
    Gneiting,
    LegendreMatern,
    Matern,
    Nonstationary,
    Nugget,
    Separable,
    SphericalAskey,
    SphericalCompact,
    SphericalExponential,
    SphericalMultiquadric,
    SphericalPoweredExponential,
    SphericalSinePower,
)
from spatialdiff.kernels.catalogue import CATALOGUE, Family

mpl.use("Agg")
import matplotlib.pyplot as plt

SIZE = 96
F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(axis: plt.Axes, field: torch.Tensor, title: str = "") -> None:
    axis.imshow(field.detach(), origin="lower", interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_title(title, fontsize=9)


def family(entry: Family) -> plt.Figure:
    """Correlation, spectral densities, and a sample whose effective range is a quarter of its side."""
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained")
    kernel = entry.example().requires_grad_(False)
    reach = float(kernel.effective_range.max()) if entry.name != "Periodic" else 1.0
    r = torch.linspace(0, 2 * reach, 400, dtype=F64)
    first.plot(r, kernel.at_lags(r.unsqueeze(-1)))
    first.axhline(0, color="0.7", lw=0.6)
    first.axhline(0.05, color="0.7", lw=0.6, ls=":")
    first.axvline(reach, color="0.7", lw=0.6, ls=":")
    first.set_xlabel("distance / ℓ")
    first.set_title("correlation", fontsize=9)
    omega = torch.logspace(-1, 2, 300, dtype=F64) / reach * 2
    for d in entry.spectrum:
        values = kernel.spectral_density(torch.cat([omega[:, None], torch.zeros(300, d - 1, dtype=F64)], -1))
        second.loglog(omega, values.where(values > 1e-12 * values.max(), torch.nan), label=f"d = {d}")
    second.set_xlabel("ℓ × frequency")
    second.set_title("spectral density" if entry.spectrum else "a line spectrum: no density", fontsize=9)
    if entry.spectrum:
        second.legend(fontsize=7, frameon=False)
    # shape parameters that the dimension asks for are those of the example
    scaled = entry.example(lengthscale=SIZE / 4 / reach) if entry.name != "Periodic" else None
    if scaled is None:
        scaled = entry.example(period=SIZE / 3)
    plane = scaled.max_dimension >= 2
    small = entry.name in ("Wave", "Gaussian", "Periodic", "RationalQuadratic", "Cauchy")
    n = 48 if small else SIZE
    if small:
        scaled = (
            entry.example(lengthscale=n / 4 / reach)
            if entry.name != "Periodic"
            else entry.example(period=n / 3)
        ) + Nugget(1e-8)
    grid = sd.Grid((n, n)) if plane else sd.Grid(4 * n)
    gamma = sd.covariance(scaled.requires_grad_(False), grid, method="dense" if small else "circulant")
    field = gamma.double().sample(generator=seeded(1))
    if plane:
        image(third, field, "a sample")
    else:
        third.plot(field)
        third.set_title("a sample", fontsize=9)
    return figure


def anisotropy() -> plt.Figure:
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    grid = sd.Grid((SIZE, SIZE))
    for axis, angle in zip(axes, (0.0, math.pi / 6, math.pi / 2), strict=True):
        kernel = Anisotropic(Matern(1.5, 14.0), angle, ratios=0.25).requires_grad_(False)
        image(
            axis,
            sd.covariance(kernel, grid, method="circulant").sample(generator=seeded()),
            f"angle {angle:.2f}",
        )
    return figure


def nonstationary() -> plt.Figure:
    """A length scale that grows from left to right, and one that a network gives."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    n = 48
    grid = sd.Grid((n, n))
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1), torch.nn.Softplus()
    ).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(3), dtype=F64))
    scales: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: 1.5 + 12 * (x[..., 1:] / n).square(),
        lambda x: 1.5 + 1.2 * net(x / n * 4 - 2),
    ]
    for axis, scale, title in zip(axes, scales, ("longer to the right", "by a network"), strict=True):
        kernel = Nonstationary(Matern(1.5, 1.0), scale).requires_grad_(False)
        image(axis, sd.covariance(kernel, grid, method="dense").sample(generator=seeded(2)), title)
    return figure


def space_time() -> plt.Figure:
    """Five times of a separable field above, of Gneiting's below."""
    figure, axes = plt.subplots(2, 5, figsize=(9, 3.8), layout="constrained")
    grid = sd.Grid((28, 28, 5))
    kernels = (
        Separable(Matern(1.5, 5.0), Exponential(3.0)),
        Gneiting(Exponential(6.0), timescale=2.0, alpha=0.8, beta=1.0),
    )
    for row, kernel, method in zip(axes, kernels, ("kronecker", "dense"), strict=True):
        field = sd.covariance(kernel.requires_grad_(False), grid, method=method).sample(generator=seeded(4))
        for time, axis in enumerate(row):
            image(axis, field[..., time], f"time {time}")
    axes[0, 0].set_ylabel("separable")
    axes[1, 0].set_ylabel("Gneiting")
    return figure


def channels() -> plt.Figure:
    """Two channels that share their large scales and not their small ones."""
    figure, axes = plt.subplots(1, 2, figsize=(6.5, 3.2), layout="constrained")
    shared = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
    model = Coregionalization([(shared, Matern(1.5, 16.0)), (torch.eye(2), Exponential(2.0, 0.15))])
    gamma = sd.covariance(model, sd.Grid((SIZE, SIZE), periodic=True)).requires_grad_(False)
    field = gamma.sample(generator=seeded(5))
    for number, axis in enumerate(axes):
        image(axis, field[number], f"channel {number}")
    return figure


def masked() -> plt.Figure:
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    domain = sd.Grid((SIZE, SIZE)).masked((x**2 + y**2 < 1) & ((x - 0.3) ** 2 + (y + 0.2) ** 2 > 0.06))
    gamma = sd.covariance(Matern(1.5, 10.0).requires_grad_(False), domain)
    figure, axis = plt.subplots(figsize=(3.4, 3.4), layout="constrained")
    image(axis, domain.fill(gamma.sample(generator=seeded())))
    return figure


def points() -> plt.Figure:
    sites = torch.rand(20_000, 2, generator=seeded(), dtype=F64)
    gamma = sd.covariance(Matern(1.5, 0.08).requires_grad_(False), sd.Points(sites), method="vecchia")
    figure, axis = plt.subplots(figsize=(4, 3.6), layout="constrained")
    axis.scatter(sites[:, 0], sites[:, 1], c=gamma.sample(generator=seeded(1)), s=3, linewidths=0)
    axis.set_aspect("equal")
    return figure


def mesh() -> plt.Figure:
    """A disc with a short length scale in its middle."""
    angle, radius = torch.rand(2, 3000, generator=seeded(), dtype=F64)
    sites = radius.sqrt()[:, None] * torch.stack(
        [(2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()], -1
    )
    domain = sd.Mesh.delaunay(sites)
    local = 0.08 + 0.5 * domain.coordinates().square().sum(-1)
    gamma = sd.covariance(Matern(1.0, 0.3).requires_grad_(False), domain, method="spde", lengthscale=local)
    figure, axis = plt.subplots(figsize=(3.8, 3.6), layout="constrained")
    x = domain.coordinates()
    axis.tripcolor(x[:, 0], x[:, 1], domain.elements, gamma.sample(generator=seeded(2)), shading="gouraud")
    axis.set_aspect("equal")
    return figure


def graph() -> plt.Figure:
    """A ring of rings."""
    edges, place = [], []
    for ring in range(8):
        for node in range(12):
            edges.append((12 * ring + node, 12 * ring + (node + 1) % 12))
            around, turn = 2 * math.pi * ring / 8, 2 * math.pi * node / 12
            place.append(
                (3 * math.cos(around) + 0.8 * math.cos(turn), 3 * math.sin(around) + 0.8 * math.sin(turn))
            )
        edges.append((12 * ring, 12 * ((ring + 1) % 8) + 6))
    domain = sd.Graph.from_edges(torch.tensor(edges), 96)
    gamma = sd.covariance(Matern(2.0, 4.0).requires_grad_(False), domain, method="graph", normalize="mean")
    values = gamma.sample(generator=seeded(2))
    figure, axis = plt.subplots(figsize=(3.8, 3.6), layout="constrained")
    for i, j in edges:
        axis.plot(*zip(place[i], place[j], strict=True), color="0.7", lw=0.8, zorder=0)
    axis.scatter(*zip(*place, strict=True), c=values, s=26)
    axis.set_aspect("equal")
    axis.axis("off")
    return figure


def sphere() -> plt.Figure:
    domain = sd.Sphere((91, 180))
    gamma = sd.covariance(Matern(1.5, 0.25).requires_grad_(False), domain)
    field = gamma.sample(generator=seeded(3))
    figure, axis = plt.subplots(
        figsize=(6, 3.2), subplot_kw={"projection": "mollweide"}, layout="constrained"
    )
    longitude = torch.cat([domain.longitudes, domain.longitudes[:1] + 2 * math.pi]) - math.pi
    axis.pcolormesh(
        longitude, domain.latitudes, torch.cat([field, field[:, :1]], 1), shading="gouraud", rasterized=True
    )
    axis.set_xticks([])
    axis.set_yticks([])
    return figure


def sphere_families() -> plt.Figure:
    """The families of the angle: correlation, angular power, and a sample of each."""
    families = (
        LegendreMatern(1.5, 0.3, lmax=256),
        SphericalExponential(0.4),
        SphericalPoweredExponential(0.6, 0.4),
        SphericalCompact(1.2),
        SphericalAskey(2.0, 1.2),
        SphericalSinePower(1.0),
        SphericalMultiquadric(0.7, 0.5),
        Chordal(Matern(1.5, 0.3)),
    )
    figure, axes = plt.subplots(2, 5, figsize=(11, 4), layout="constrained")
    theta = torch.linspace(0, math.pi, 300, dtype=F64)
    domain = sd.Sphere((46, 90))
    for kernel, axis in zip(families, axes[:, 1:].flat, strict=True):
        kernel.requires_grad_(False)
        name = type(kernel).__name__
        axes[0, 0].plot(theta, kernel.at_angles(theta))
        axes[1, 0].loglog(range(1, 61), kernel.legendre_coefficients(60)[1:].clamp_min(1e-12), label=name)
        image(axis, sd.covariance(kernel, domain).sample(generator=seeded(3)), name)
    axes[0, 0].set_title("correlation against the angle", fontsize=9)
    axes[1, 0].set_title("angular power against degree", fontsize=9)
    axes[1, 0].legend(fontsize=4, frameon=False)
    return figure


PICTURES: dict[str, Callable[[], plt.Figure]] = {
    "anisotropy": anisotropy,
    "nonstationary": nonstationary,
    "space_time": space_time,
    "channels": channels,
    "masked": masked,
    "points": points,
    "mesh": mesh,
    "graph": graph,
    "sphere": sphere,
    "sphere_families": sphere_families,
    **{entry.name: (lambda entry=entry: family(entry)) for entry in CATALOGUE},
}


def draw(folder: Path) -> list[Path]:
    """Draw what is not in ``folder`` yet; returns the paths of all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, make in PICTURES.items():
        path = folder / f"{name}.png"
        if not path.exists():
            with warnings.catch_warnings(), torch.random.fork_rng():
                warnings.simplefilter("ignore", UserWarning)
                figure = make()
            figure.savefig(path, dpi=100)
            plt.close(figure)
        paths.append(path)
    return paths


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "_static" / "gallery"))
