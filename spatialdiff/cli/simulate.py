"""`spatialdiff simulate`: draw fields from N(μ, Γ)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from gpytorch.kernels import Kernel

from spatialdiff.cli.command import Command, absolute, arguments, resolved, say
from spatialdiff.cli.files import read_fit
from spatialdiff.cli.objects import one_kernel, seeded, with_channel
from spatialdiff.covariance import Covariance, covariance
from spatialdiff.domains import Grid
from spatialdiff.plotting import gallery
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder


def simulate(
    out: RunFolder,
    config: str,
    kernel: Kernel | list[Kernel] | None = None,
    fit: str | None = None,
    shape: list[int] | None = None,
    spacing: float | list[float] = 1.0,
    periodic: bool | list[bool] = False,
    method: str = "auto",
    n: int = 16,
    dtype: Literal["float32", "float64"] = "float64",
    seed: int = 0,
) -> None:
    """Draw fields from a kernel on a grid, or from a fit.

    Args:
        kernel: covariance function by class path; a list is a sum.
        fit: run folder of `spatialdiff fit`, in place of a kernel.
        shape: sites per axis, such as [64, 96]; with a fit, its own grid when not given.
        spacing: distance between sites, one value or one per axis.
        periodic: whether an axis wraps around, one value or one per axis.
        method: structure of Γ: auto, dense, torus, cosine, circulant.
        n: number of fields.
        dtype: precision of the fields.
        seed: seed of the draws.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    mean: torch.Tensor | float = 0.0
    if fit is not None:
        if kernel is not None:
            raise ValueError("Give --kernel or --fit, not both.")
        saved = read_fit(fit)
        gamma: Covariance = saved.fit.covariance
        grid, mean, named = saved.grid, saved.fit.mean, f"the fit in {fit}"
        if shape is not None:
            if saved.fit.kernel is None:
                raise ValueError(
                    f"The fit in {fit} is a spectrum on a grid of shape {grid.shape}: it has no kernel for "
                    f"shape {shape}. "
                    "Leave --shape out, or fit a kernel (--method whittle)."
                )
            grid = Grid(shape, spacing, periodic)
            gamma = covariance(saved.fit.kernel, grid, channels=gamma.channels, method=method)
    else:
        if kernel is None or shape is None:
            raise ValueError(
                "simulate needs --kernel and --shape, such as --kernel spatialdiff.kernels.Matern "
                "--kernel.lengthscale 8 "
                "--shape [64,64], or --fit RUN_FOLDER."
            )
        grid = Grid(shape, spacing, periodic)
        gamma = covariance(one_kernel(kernel), grid, method=method)
        named = repr(gamma.kernel)
    gamma = gamma.to(getattr(torch, dtype))
    with torch.no_grad():
        fields = with_channel(gamma.sample((n,), generator=seeded(seed)), grid)
        fields = fields + torch.as_tensor(mean).to(fields)
    out.write_arrays("fields.npz", fields=fields)
    found = out.describe(config, seed)
    variances = [float(fields[:, c].var()) for c in range(fields.shape[1])]
    out.write_csv("metrics.csv", [{"channel": c, "variance": v} for c, v in enumerate(variances)])
    picture = gallery({"": fields[:8]}, columns=min(8, n))
    drawn = out.write_picture("fields.png", picture)
    page = Page("Simulated fields", f"{n} fields of shape {grid.shape} from {named}.").figure(drawn)
    page.pairs(
        {
            "variance over sites and fields": ", ".join(f"{v:.3f}" for v in variances),
            "structure of Γ": str(gamma.report),
        }
    )
    page.provenance(config, seed, found).save(out / "report.html")
    say(
        f"{n} fields of shape {tuple(fields.shape[1:])} from {named}",
        str(gamma.report),
        f"→ {out / 'fields.npz'}",
    )


COMMAND = Command("simulate", simulate, {})


def main(argv: Sequence[str]) -> None:
    """Parse and run."""
    parser, config = COMMAND.parse(argv)
    config["fit"] = absolute(config["fit"])
    out = RunFolder.create("simulate", config["run_dir"], overwrite=config["overwrite"])
    simulate(out, resolved(parser, config), **arguments(parser, config))
