"""`spatialdiff fit`: the covariance Γ of fields, as a kernel with parameters or as a smoothed spectrum."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import yaml
from gpytorch.kernels import Kernel

from spatialdiff.cli.command import Command, arguments, resolved, say
from spatialdiff.cli.files import Setting, write_fit
from spatialdiff.cli.kernels import kernel_config
from spatialdiff.cli.objects import basis_of, one_kernel, seeded, with_channel
from spatialdiff.data import FieldData
from spatialdiff.fitting import Comparison, FitResult, FitWarning, diagnose
from spatialdiff.fitting import compare as compare_fits
from spatialdiff.fitting import fit as fit_fields
from spatialdiff.plotting import gallery
from spatialdiff.report import Page
from spatialdiff.runs import RunFolder

Method = Literal[
    "auto", "exact", "whittle", "vecchia", "iterative", "variogram", "spectrum", "shrinkage", "eof"
]

# the methods that need no kernel
FREE = ("spectrum", "eof")


def fit_data(
    data: FieldData,
    kernel: Kernel | list[Kernel] | None,
    method: Method,
    mean: str | None = "constant",
    restricted: bool = False,
    options: Mapping[str, Any] | None = None,
) -> FitResult:
    """Fit the training part of the data; warnings are in the table of the result.

    Raises:
        ValueError: a method that needs a kernel, without one.
    """
    given = dict(options or {})
    if method not in FREE and (kernel is None or kernel == []):
        raise ValueError(
            f"method {method} needs a kernel, such as --kernel spatialdiff.kernels.Matern --kernel.nu 1.5; "
            "--method spectrum needs none."
        )
    if method == "spectrum":
        given.setdefault("basis", basis_of(data.grid, "auto"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        family = None if method in FREE or kernel is None else one_kernel(kernel)
        return fit_fields(
            family, data.train, data.grid, method=method, mean=mean, restricted=restricted, **given
        )


def compare_kernels(
    data: FieldData,
    kernel: Kernel | list[Kernel] | None,
    others: Sequence[Kernel | list[Kernel]],
    method: Method,
    mean: str | None,
    restricted: bool,
    options: Mapping[str, Any] | None,
) -> Comparison:
    """Fit several kernels to the training part of the data, and rank them.

    Raises:
        ValueError: no kernel, a method without a family, likelihoods that cannot be compared.
    """
    if method in FREE or kernel is None or kernel == []:
        raise ValueError(f"compare needs --kernel, and a method that fits it; got --method {method}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return compare_fits(
            [one_kernel(each) for each in (kernel, *others)],
            data.train,
            data.grid,
            method=method,
            mean=mean,
            restricted=restricted,
            **dict(options or {}),
        )


def fit(
    out: RunFolder,
    config: str,
    data: FieldData,
    kernel: Kernel | list[Kernel] | None = None,
    compare: list[Kernel | list[Kernel]] | None = None,
    method: Method = "auto",
    mean: Literal["constant", "linear", "field"] | None = "constant",
    restricted: bool = False,
    options: dict[str, Any] | None = None,
    draws: int = 8,
    seed: int = 0,
) -> None:
    """Fit the covariance of fields: a kernel by likelihood or variogram, or Γ without a family.

    Args:
        data: source of the fields by class path, such as spatialdiff.data.terrain.
        kernel: covariance function by class path, its values the first guess; a list is a sum; a kernel.yaml
            or the run folder of a fit is read. Not used by "spectrum" and "eof".
        compare: further kernels, of which each may be a list, fitted by the same method; the one of least
            AIC is kept.
        method: "exact", "whittle", "vecchia", "iterative", "variogram", "auto" (whichever likelihood the size
            allows); without a family "spectrum" and "eof", or "shrinkage" towards the kernel.
        mean: "constant" (one number per channel), "linear" (in the coordinates), "field" (one per site), or
            null for zero.
        restricted: maximise the restricted likelihood (REML).
        options: of the method, such as {neighbors: 20} of "vecchia".
        draws: fields to simulate for the picture.
        seed: seed of these.
    """
    setting = Setting.of(data)
    comparison = None
    if compare:
        comparison = compare_kernels(data, kernel, compare, method, mean, restricted, options)
        result = comparison.best
    else:
        result = fit_data(data, kernel, method, mean, restricted, options)
    found = out.describe(config, seed)
    write_fit(out, result, setting)
    if result.kernel is not None:
        kept = {"kernel": kernel_config(result.kernel)}
        out.write_text("kernel.yaml", yaml.safe_dump(kept, sort_keys=False))
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
    if comparison is not None:
        page.code(str(comparison))
        drawn_too = out.write_picture("comparison.png", comparison.plot())
        page.figure(drawn_too, "Semivariances of the data and of every fit, and the differences of AIC.")
    page.figure(written, "Held-out data, and fields drawn from the fitted covariance, on one colour scale.")
    diagnosed = out.write_picture("diagnostics.png", diagnose(result, data.train, data.grid, mean=mean))
    page.figure(
        diagnosed, "Data in the envelope of fields drawn from the fit: variogram, spectrum, residuals."
    )
    page.provenance(config, seed, found).save(out / "report.html")
    said = [] if comparison is None else ["", str(comparison)]
    say(str(result), *said, "", f"fit: {out}", f"next: spatialdiff train --fit {out}")


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
