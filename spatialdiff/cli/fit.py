"""`spatialdiff fit`: the covariance Γ of fields, as a kernel with parameters or as a smoothed spectrum."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import yaml
from gpytorch.kernels import Kernel

from spatialdiff.cli.command import Command, arguments, resolved, say
from spatialdiff.cli.files import Setting, write_fit
from spatialdiff.cli.kernels import kernel_config
from spatialdiff.cli.objects import basis_of, one_kernel, seeded, with_channel
from spatialdiff.data import FieldData
from spatialdiff.fitting import FitResult, FitWarning
from spatialdiff.fitting import fit as fit_fields
from spatialdiff.plotting import gallery
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder

Method = Literal["auto", "exact", "whittle", "spectrum"]


def fit_data(
    data: FieldData, kernel: Kernel | list[Kernel] | None, method: Method, mean: str | None = "constant"
) -> FitResult:
    """Fit the training part of the data.

    Raises:
        ValueError: a method that needs a kernel, without one.
    """
    if method != "spectrum" and (kernel is None or kernel == []):
        raise ValueError(
            f"method {method} needs a kernel, such as --kernel spatialdiff.kernels.Matern --kernel.nu 1.5; "
            "--method spectrum needs none."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # they are in the table of the result, which is printed
        if method == "spectrum":
            basis = basis_of(data.grid, "auto")
            return fit_fields(None, data.train, data.grid, method="spectrum", mean=mean, basis=basis)
        assert kernel is not None
        return fit_fields(one_kernel(kernel), data.train, data.grid, method=method, mean=mean)


def fit(
    out: RunFolder,
    config: str,
    data: FieldData,
    kernel: Kernel | list[Kernel] | None = None,
    method: Method = "auto",
    mean: Literal["constant", "field"] | None = "constant",
    draws: int = 8,
    seed: int = 0,
) -> None:
    """Fit the covariance of fields: a kernel by maximum likelihood, or the smoothed spectrum.

    Args:
        data: source of the fields by class path, such as spatialdiff.data.terrain.
        kernel: covariance function by class path, its values the first guess; a list is a sum. Not used by
            "spectrum".
        method: "exact", "whittle", "auto" (whichever the size allows) or "spectrum" (non-parametric).
        mean: "constant" (one number per channel), "field" (one per site), or null for zero.
        draws: fields to simulate for the picture.
        seed: seed of these.
    """
    setting = Setting.of(data)
    result = fit_data(data, kernel, method, mean)
    found = out.describe(config, seed)
    write_fit(out, result, setting)
    if result.kernel is not None:
        out.write_text(
            "kernel.yaml", yaml.safe_dump({"kernel": kernel_config(result.kernel)}, sort_keys=False)
        )
    rows = [
        {
            "parameter": name,
            "estimate": value,
            "standard_error": result.standard_errors.get(name, float("nan")),
        }
        for name, value in result.parameters.items()
    ]
    out.write_csv("parameters.csv", rows)
    summary = {
        "method": result.method,
        "log_likelihood": result.log_likelihood,
        "aic": result.aic,
        "bic": result.bic,
        "converged": result.converged,
    }
    out.write_csv("metrics.csv", [{"metric": name, "value": value} for name, value in summary.items()])
    with torch.no_grad():
        drawn = with_channel(result.covariance.sample((draws,), generator=seeded(seed)), setting.grid)
        drawn = drawn.double() + torch.as_tensor(result.mean).double()
    picture = gallery({"data": data.test[:draws], "fitted Γ": drawn}, columns=draws)
    written = out.write_picture("fields.png", picture)
    page = Page(
        f"Fit to {setting.name}",
        f"{len(data.train)} fields of shape {setting.grid.shape}, method {result.method}.",
    )
    page.code(str(result))
    page.figure(written, "Held-out data, and fields drawn from the fitted covariance, on one colour scale.")
    page.provenance(config, seed, found).save(out / "report.html")
    say(str(result), "", f"fit: {out}", f"next: spatialdiff train --fit {out}")


COMMAND = Command(
    "fit",
    fit,
    {
        "data": {"class_path": "spatialdiff.data.terrain"},
        "kernel": {"class_path": "spatialdiff.kernels.Matern", "init_args": {"nu": 1.5, "lengthscale": 1.0}},
    },
)


def main(argv: Sequence[str]) -> None:
    """Parse and run."""
    parser, config = COMMAND.parse(argv)
    text, objects = resolved(parser, config), arguments(parser, config)
    fit(RunFolder.create("fit", config["run_dir"], overwrite=config["overwrite"]), text, **objects)
