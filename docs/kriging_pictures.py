"""The pictures of kriging: forecasts of gauges that were held out, and what a joint conditional law is.

`make docs` draws them into ``docs/_static/kriging``, those that are not there yet; by hand: ``python
docs/kriging_pictures.py FOLDER``, which prints the scores as well.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from torch import Tensor

import spatialdiff as sd
from spatialdiff.conditioning import Kriging, KrigingWarning
from spatialdiff.fitting import FitWarning
from spatialdiff.fitting.inference.scores import ensemble_crps, gaussian_crps, gaussian_pit
from spatialdiff.kernels import Anisotropic, Exponential, Matern, Nugget

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class HeldOut:
    """Forecasts ``N(mean, deviation²)`` of the root of the rainfall at 367 gauges from 100 others."""

    name: str
    mean: Tensor
    deviation: Tensor
    root: Tensor

    @property
    def errors(self) -> Tensor:
        """Standardised errors."""
        return (self.root - self.mean) / self.deviation

    def scores(self) -> dict[str, float]:
        """In 0.1 mm of rain for the errors, on the scale of the root for the calibration."""
        rain = self.root.square()
        draws = self.mean + self.deviation * torch.randn(400, len(rain), generator=seeded(), dtype=rain.dtype)
        expected = self.mean.square() + self.deviation.square()
        return {
            "bias": float((expected - rain).mean()),
            "RMSE": float((expected - rain).square().mean().sqrt()),
            "MAE": float((draws.clamp(min=0).square().median(0).values - rain).abs().mean()),
            "CRPS": float(ensemble_crps(draws.clamp(min=0).square(), rain).mean()),
            "CRPS of the root": float(gaussian_crps(self.mean, self.deviation, self.root).mean()),
            "mean error": float(self.errors.mean()),
            "variance of errors": float(self.errors.square().mean()),
            "95 % coverage": float((self.errors.abs() < 1.96).double().mean()),
        }


def held_out() -> list[HeldOut]:
    """By kernels fitted to the 100 gauges alone, and without any kriging."""
    seen, kept = sd.data.sic97("prediction"), sd.data.sic97("validation")
    root, truth = seen["rainfall"].sqrt(), kept["rainfall"].sqrt()
    number = len(truth)
    found = [HeldOut("mean of the gauges", root.mean().expand(number), root.std().expand(number), truth)]
    kernels = {
        "exponential": Exponential(40.0, variance=30.0) + Nugget(0.5),
        "Matérn 3/2 + nugget": Matern(1.5, lengthscale=25.0, variance=30.0) + Nugget(0.5),
        "anisotropic exponential": Anisotropic(Exponential(70.0, variance=30.0), 0.7, ratios=0.4)
        + Nugget(0.5),
    }
    for name, kernel in kernels.items():
        fit = sd.fit(kernel, root, seen.points, starts=2)
        mean, variance = Kriging(fit, seen.points, root).predict(kept.points)
        found.append(HeldOut(name, mean, variance.sqrt(), truth))
    return found


def gauges() -> Figure:
    """Forecasts against the truth, the transform of each, and how many fall in intervals of any level."""
    forecasts = held_out()[1:]
    best = forecasts[0]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    seen, kept = sd.data.sic97("prediction"), sd.data.sic97("validation")
    limit = float(best.errors.abs().max())
    sites = kept.points.sites()
    shown = left.scatter(*sites.T, c=best.errors, s=12, cmap="RdBu_r", vmin=-limit, vmax=limit)
    left.plot(*seen.points.sites().T, "k+", ms=4, lw=0.5)
    left.set(title="Standardised errors (+ gauges given)", xlabel="km", ylabel="km", aspect="equal")
    figure.colorbar(shown, ax=left, shrink=0.7)
    half = 1.96 * best.deviation
    middle.errorbar(best.mean, best.root, xerr=half, fmt="o", ms=2.5, lw=0.4, color="C0", ecolor="0.8")
    middle.axline((12, 12), slope=1, color="k", lw=0.8)
    middle.set(
        title="Held-out gauges, $\\sqrt{0.1\\,mm}$", xlabel="kriged, with 95 % intervals", ylabel="measured"
    )
    levels = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    spread = 2 * (levels * (1 - levels) / len(best.mean)).sqrt()
    right.fill_between(levels, levels - spread, levels + spread, color="0.88", label="2 s.e. if independent")
    right.plot([0, 1], [0, 1], "k", lw=0.8)
    for one in forecasts:
        away = 2 * (gaussian_pit(one.mean, one.deviation, one.root) - 0.5).abs()
        right.plot(levels, (away[:, None] <= levels).double().mean(0), label=one.name)
    right.set(title="Calibration", xlabel="level of the interval", ylabel="share of the 367 gauges inside")
    right.legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def joint_law() -> Figure:
    """Values at -1 and 1 of an exponential field given the one at 0: independent, unlike a scaled draw's."""
    kernel = Exponential(3.0)
    kriging = Kriging(kernel, torch.zeros(1, 1), torch.tensor([0.7]), drift=None)
    pair = sd.Points(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    mean, variance = kriging.predict(pair)
    drawn = kriging.simulate(20_000, pair, generator=seeded())
    prior = sd.covariance(kernel, pair).double().sample(20_000, generator=seeded(1)).detach()
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 4.2), layout="constrained")
    titles = ("Conditional draws", "Prior draws × kriging deviation")
    for axis, values, title in zip(axes, (drawn, mean + prior * variance.sqrt()), titles, strict=True):
        correlation = float(torch.corrcoef(values.T)[0, 1])
        axis.plot(*values[:3000].T, ".", ms=1.5, alpha=0.5)
        axis.set(
            title=f"{title}\ncorrelation {correlation:.2f}",
            xlabel="x(-1) given x(0)",
            xlim=(-3, 4),
            ylim=(-3, 4),
        )
    axes[0].set_ylabel("x(1) given x(0)")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {"held-out-gauges": gauges, "joint-law": joint_law}


def draw(folder: Path) -> None:
    """Draw what is not in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # gauges at the border, and weakly identified parameters, are no news here
        warnings.simplefilter("ignore", KrigingWarning)
        warnings.simplefilter("ignore", FitWarning)
        for name, make in PICTURES.items():
            path = folder / f"{name}.png"
            if not path.exists():
                figure = make()
                figure.savefig(path, dpi=110)
                plt.close(figure)


def table() -> str:
    """Scores of the held-out gauges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [(one.name, one.scores()) for one in held_out()]
    names = list(rows[0][1])
    lines = [f"| forecast | {' | '.join(names)} |", f"| --- |{' ---: |' * len(names)}"]
    lines += [f"| {name} | {' | '.join(f'{scores[n]:.3g}' for n in names)} |" for name, scores in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "_static" / "kriging"))
    print(table())
