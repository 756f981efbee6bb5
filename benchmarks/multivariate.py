"""The multivariate paper's experiment (Singhal et al. 2023, arXiv 2302.07261) at the size of one core.

    python benchmarks/multivariate.py train       each row by `spatialdiff train --config`
    python benchmarks/multivariate.py evaluate    bounds of held-out images, and samples
    python benchmarks/multivariate.py carry       one network under every process
    python benchmarks/multivariate.py report      table and pictures for docs/multivariate.md

with `--out` for another folder than `runs/multivariate`. Rows are the files `configs/multivariate/*-*.yaml`,
each trained in two ways on equal budgets: with the residual to the Wiener filter, as the file says, and with
the paper's own network (`noise.yaml` over it). `--rows` and `--ways` name a part, so that two processes can
share the work. Every stage goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import spatialdiff as sd
from spatialdiff.cli import main as command
from spatialdiff.cli.evaluate import data_of
from spatialdiff.cli.files import read_fields, read_fit
from spatialdiff.cli.sample import trained_denoiser
from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.likelihood import evidence_bound
from spatialdiff.plotting import gallery
from spatialdiff.processes import Law, NoiseProcess
from spatialdiff.style import PALETTE, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIGS = Path(__file__).parents[1] / "configs" / "multivariate"
NAMES = ("vp", "cld", "malda-3", "learned-2", "learned-3")
NOISES = ("white", "fitted")
ROWS = tuple(f"{name}-{noise}" for noise in NOISES for name in NAMES)
WAYS = {"wiener": (), "paper": ("noise.yaml",)}
TITLES = {
    "vp": "VP",
    "cld": "CLD",
    "malda-3": "MALDA(3)",
    "learned-2": "learned, K = 2",
    "learned-3": "learned, K = 3",
}
# of the picture of samples
COLUMNS = 8
# further seeds of one row, against which differences between rows are to be seen
REPEATED, SEEDS = "vp", (1, 2)


def folder(out: Path, way: str, row: str, seed: int = 0) -> Path:
    """The run folder of a row."""
    return out / way / (row if seed == 0 else f"{row}-seed{seed}")


def run(*argv: str) -> None:
    """A command of `spatialdiff`; stops where it fails."""
    if command(argv):
        raise SystemExit(f"spatialdiff {' '.join(argv)} failed")


def train(out: Path, way: str, row: str, seed: int, steps: int | None) -> None:
    """Train a row by its configuration file."""
    files = [f"{row}.yaml", *WAYS[way]]
    configs = [part for name in files for part in ("--config", str(CONFIGS / name))]
    fit = out / "fit"  # one fit for all rows; that of a row alone is the same
    if not (fit / "fit.pt").exists():
        data = ["--data", "spatialdiff.data.fashion_mnist", "--data.size", "16"]
        run("fit", *data, "--method", "spectrum", "--mean", "field", "--run-dir", str(fit), "--overwrite")
    quiet = [
        "--trainer.progress",
        "false",
        "--trainer.tensorboard",
        "false",
        "--trainer.checkpoint_every",
        "250",
    ]
    length = [] if steps is None else ["--steps", str(steps)]
    place = ["--run-dir", str(folder(out, way, row, seed))]
    run("train", *configs, "--fit", str(fit), "--seed", str(seed), *quiet, *length, *place)


def evaluate(out: Path, way: str, row: str, seed: int, images: int, samples: int) -> None:
    """Bound the held-out images, and generate some; the draws are those of every other row."""
    trained = folder(out, way, row, seed)
    if not (trained / "report.html").exists():
        return
    bound, drawn = trained / "likelihood", trained / "samples"
    if not (bound / "report.html").exists():
        options = ["--n", str(images), "--samples", str(samples), "--run-dir", str(bound), "--overwrite"]
        run("likelihood", "--run", str(trained), *options)
    if seed == 0 and not (drawn / "report.html").exists():
        options = [
            "--n",
            "16",
            "--steps",
            "100",
            "--solver",
            "ancestral",
            "--run-dir",
            str(drawn),
            "--overwrite",
        ]
        run("sample", "--run", str(trained), *options)


class Carried(PosteriorMean):
    """A network trained under one process as the posterior mean under another with the same Γ.

    The statistic y of a state has the law of a scalar state of the same information I, so that
    `D(u, t) = D'(y, t')` with `I'(t') = I(t)`.
    """

    def __init__(self, trained: sd.Denoiser, process: NoiseProcess) -> None:
        super().__init__(trained.channels)
        self.trained, self.process = trained, process
        self.gaussian = trained.gaussian

    @property
    def law(self) -> Law:
        return self.process

    def forward(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        times = self.times(u, t)
        own = self.trained.law
        level = self.process.log_snr(times).clamp(min=float(own.log_snr(own.start_time)))
        return self.trained(self.process.reduce(u, times), own.time_of_log_snr(level), **condition)


def carry(out: Path, images: int, samples: int) -> None:
    """The network of the VP rows under every process, not trained again: `carried.csv`."""
    rows: list[dict[str, Any]] = []
    for noise in NOISES:
        vp = trained_denoiser(str(folder(out, "wiener", f"vp-{noise}")))
        data = data_of(str(folder(out, "wiener", f"vp-{noise}")))
        x = data.test[:images]
        for name in NAMES:
            process = trained_denoiser(str(folder(out, "wiener", f"{name}-{noise}"))).process
            assert isinstance(process, NoiseProcess)
            # draws of its own for every row: errors that rows share are not seen between them
            generator = torch.Generator().manual_seed(len(rows))
            found = evidence_bound(Carried(vp, process), x, samples=samples, generator=generator)
            bits = found.bits_per_dim(256, scale=data.scale)
            error = float(found.bits_standard_error.square().mean().sqrt()) / math.sqrt(len(x))
            rows.append({"row": f"{name}-{noise}", "bits": float(bits.mean()), "monte_carlo_error": error})
            print(rows[-1], flush=True)
    write(out / "carried.csv", rows)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


class Found:
    """What a trained row gave.

    Args:
        path: its run folder. scale: of the data's levels, for bits per dimension.
    """

    def __init__(self, path: Path, scale: float) -> None:
        with np.load(path / "likelihood" / "likelihood.npz") as arrays:
            value, gaussian = arrays["value"], arrays["gaussian"]
            self.sampling = arrays["standard_error"]
        self.rows = {row["law"]: row for row in read(path / "likelihood" / "metrics.csv")}
        pixels = round(float(value.mean()) / float(self.rows["model"]["nats_per_site"]))
        offset = math.log2(256) - math.log2(scale)
        self.bits = -value / (pixels * math.log(2)) + offset
        self.gaussian = -gaussian / (pixels * math.log(2)) + offset
        metrics = read(path / "metrics.csv")
        self.steps = int(metrics[-1]["step"])

    def line(self, other: Found | None = None) -> str:
        """Bits per dimension with the standard error over images, or the paired difference to another row."""
        bits = self.bits if other is None else self.bits - other.bits
        error = bits.std(ddof=1) / math.sqrt(len(bits))
        sign = "" if other is None else "+"
        return f"{bits.mean():{sign}.4f} ± {error:.4f}"


def report(out: Path, pictures: Path) -> None:
    """Print the tables, and draw the pictures."""
    data = data_of(str(folder(out, "wiener", "vp-white")))
    done = {
        (way, row): Found(folder(out, way, row), data.scale)
        for way in WAYS
        for row in ROWS
        if (folder(out, way, row) / "likelihood" / "report.html").exists()
    }
    first = done["wiener", "vp-white"]
    spread = first.gaussian.std(ddof=1) / math.sqrt(len(first.gaussian))
    lines = [
        f"{len(first.bits)} held-out images, {first.steps} steps; uniform law on the levels 8; "
        f"fitted Gaussian field {first.gaussian.mean():.4f} ± {spread:.4f}.",
        "",
        "| process | Γ | Wiener residual | minus VP | the paper's network | minus VP |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        name, noise = row.rsplit("-", 1)
        cells = []
        for way in WAYS:
            here, vp = done.get((way, row)), done.get((way, f"vp-{noise}"))
            cells += (
                ["–", "–"]
                if here is None
                else [here.line(), "" if name == "vp" or vp is None else here.line(vp)]
            )
        lines.append(f"| {TITLES[name]} | {noise} | {' | '.join(cells)} |")
    print("\n".join(lines))
    for way in WAYS:
        for noise in NOISES:
            paths = [folder(out, way, f"{REPEATED}-{noise}", seed) for seed in (0, *SEEDS)]
            values = [
                Found(path, data.scale).bits.mean()
                for path in paths
                if (path / "likelihood" / "report.html").exists()
            ]
            if len(values) > 1:
                listed = ", ".join(f"{value:.4f}" for value in values)
                print(f"{way}, {noise}: VP with seeds 0 to {len(values) - 1}: {listed}")
    if (out / "carried.csv").exists():
        print("\n| process | Γ | the VP network, not trained again | Monte-Carlo error |\n|---|---|---|---|")
        for each in read(out / "carried.csv"):
            name, noise = each["row"].rsplit("-", 1)
            bits, error = float(each["bits"]), float(each["monte_carlo_error"])
            print(f"| {TITLES[name]} | {noise} | {bits:.4f} | {error:.4f} |")
    pictures.mkdir(parents=True, exist_ok=True)
    information(out).savefig(pictures / "information.png", dpi=130)
    for way in WAYS:
        samples_of(out, way, data).savefig(pictures / f"samples-{way}.png", dpi=100)


def information(out: Path) -> Figure:
    """log I over time of every row, of the learned ones after training."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        for axes, noise in zip(figure.subplots(1, 2, sharey=True), NOISES, strict=True):
            for name, colour in zip(NAMES, PALETTE, strict=False):
                path = folder(out, "wiener", f"{name}-{noise}")
                if not (path / "report.html").exists():
                    continue
                law = trained_denoiser(str(path)).law
                share = torch.logspace(-4, 0, 200, dtype=torch.float64)
                with torch.no_grad():
                    levels = law.log_snr(share * law.horizon)
                axes.plot(share, levels, color=colour, label=TITLES[name])
            axes.set(xscale="log", xlabel="t / T", title=f"{noise} Γ")
        figure.axes[0].set_ylabel("log I(t)")
        figure.axes[0].legend()
    return figure


def samples_of(out: Path, way: str, data: sd.data.FieldData) -> Figure:
    """Held-out images, fields of the fitted Gaussian, and samples of each row."""
    fit = read_fit(out / "fit").fit
    drawn = fit.covariance.sample((COLUMNS,), generator=torch.Generator().manual_seed(0)).double()
    shown = {
        "held out": data.test[:COLUMNS],
        "Gaussian": (drawn.reshape(COLUMNS, 1, *data.grid.shape) + torch.as_tensor(fit.mean)),
    }
    for row in ROWS:
        path = folder(out, way, row) / "samples"
        if (path / "fields.npz").exists():
            name, noise = row.rsplit("-", 1)
            shown[f"{TITLES[name]}, {noise}"] = read_fields(path)[:COLUMNS]
    units = {
        name: data.standardisation.invert(fields.float()).clamp(0, 256) for name, fields in shown.items()
    }
    return gallery(units, columns=COLUMNS)


def main() -> None:
    """Parse and run a stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("train", "evaluate", "carry", "report"))
    parser.add_argument("--out", type=Path, default=Path("runs/multivariate"))
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--ways", nargs="+", default=tuple(WAYS), choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="of training, in place of those of the file")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--pictures", type=Path, default=Path("docs/_static/multivariate"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.stage == "carry":
        carry(given.out, given.images, given.samples)
    elif given.stage == "report":
        report(given.out, given.pictures)
    else:
        for seed in given.seeds:
            for way in given.ways:
                for row in given.rows:
                    if given.stage == "train":
                        train(given.out, way, row, seed, given.steps)
                    else:
                        evaluate(given.out, way, row, seed, given.images, given.samples)


if __name__ == "__main__":
    main()
