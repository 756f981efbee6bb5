"""`spatialdiff fit`: methods, comparison of kernels, and the kernel that `train` takes unchanged for its
noise."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from spatialdiff.cli import main
from spatialdiff.cli.files import read_fit

KERNEL = """
- class_path: spatialdiff.kernels.Matern
  init_args: {nu: 1.5, lengthscale: 1.0}
- class_path: spatialdiff.kernels.Nugget
  init_args: {variance: 0.01}
"""
DATA = {
    "terrain": ["--data.patch", "8"],
    "temperature": ["--data", "spatialdiff.data.air_temperature", "--data.shape", "[8, 12]"],
}
NETWORK = ["--network.width", "8", "--network.depth", "1", "--steps", "2"]
QUIET = ["--trainer.tensorboard", "false", "--trainer.progress", "false"]


@pytest.fixture(scope="module", params=DATA)
def fitted(request, tmp_path_factory):
    """The arguments of a data source, and the folder of a fit of a Matérn with a nugget to it."""
    folder = tmp_path_factory.mktemp(request.param) / "fit"
    data = DATA[request.param]
    assert main(["fit", *data, "--kernel", KERNEL, "--method", "whittle", "--run-dir", str(folder)]) == 0
    return data, folder


def test_train_takes_the_fitted_kernel_unchanged(fitted, tmp_path):
    """By file, by folder and through the fit: the configuration holds the fitted kernel, and the first
    loss, under one seed, is the same whichever way Γ was named."""
    data, fit = fitted
    kernel = yaml.safe_load((fit / "kernel.yaml").read_text())["kernel"]
    saved = read_fit(fit)
    assert kernel[0]["init_args"]["lengthscale"] == pytest.approx(
        saved.fit.parameters["lengthscale"], rel=1e-9
    )
    assert kernel[1]["init_args"]["variance"] == pytest.approx(saved.fit.parameters["nugget"], rel=1e-6)
    losses = {}
    for name, noise in {
        "file": ["--noise", str(fit / "kernel.yaml")],
        "folder": ["--noise", str(fit)],
        "fit": [],
    }.items():
        run = tmp_path / name
        assert main(["train", *data, *NETWORK, *QUIET, "--fit", str(fit), *noise, "--run-dir", str(run)]) == 0
        losses[name] = (run / "metrics.csv").read_text().splitlines()[1].split(",")[:3]
        if noise:
            written = yaml.safe_load((run / "config.yaml").read_text())["noise"]
            for part, of_fit in zip(written, kernel, strict=True):
                assert part["class_path"] == of_fit["class_path"]
                assert of_fit["init_args"].items() <= part["init_args"].items()
    assert losses["file"] == losses["folder"]
    first = {name: float(values[-1]) for name, values in losses.items()}
    assert math.isclose(first["fit"], first["file"], rel_tol=1e-4)


def test_the_kernel_file_is_a_configuration_of_the_other_commands(fitted, tmp_path):
    data, fit = fitted
    draw = ["simulate", "--config", str(fit / "kernel.yaml"), "--shape", "[6, 7]", "--n", "2"]
    assert main([*draw, "--run-dir", str(tmp_path / "s")]) == 0
    # the fit goes on from its own answer and stays there
    again = ["fit", *data, "--kernel", str(fit), "--method", "whittle", "--run-dir", str(tmp_path / "f")]
    assert main(again) == 0
    before, after = (read_fit(folder).fit.parameters for folder in (fit, tmp_path / "f"))
    assert after["lengthscale"] == pytest.approx(before["lengthscale"], rel=1e-3)


def test_kernels_are_compared_and_the_best_is_kept(tmp_path, capsys):
    others = "[{class_path: spatialdiff.kernels.Exponential}, {class_path: spatialdiff.kernels.Gaussian}]"
    command = ["fit", *DATA["temperature"], "--kernel", KERNEL, "--compare", others, "--method", "whittle"]
    assert main([*command, "--run-dir", str(tmp_path / "f")]) == 0
    text = capsys.readouterr().out
    table = text[text.index("log-lik.") :].splitlines()[1:4]
    names = [line.split("  ")[0] for line in table]
    assert set(names) == {"Matern(1.5) + Nugget", "Exponential", "Gaussian"}
    kept = read_fit(tmp_path / "f").fit
    assert names[0].split(" ")[0].split("(")[0] in str(kept.kernel)
    assert f"{kept.log_likelihood:.6g}" in table[0]
    report = (tmp_path / "f" / "report.html").read_text()
    assert names[1] in report
    assert (tmp_path / "f" / "comparison.png").stat().st_size > 10_000
    refused = ["fit", *DATA["temperature"], "--compare", others, "--method", "spectrum"]
    assert main([*refused, "--run-dir", str(tmp_path / "g")]) == 2
    assert "compare needs --kernel" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--mean", "field"], ["--options", "{taper: 0.1}"]])
def test_means_and_options_of_the_method_reach_the_fit(options, tmp_path):
    command = ["fit", *DATA["temperature"], "--kernel", KERNEL, "--method", "whittle", *options]
    assert main([*command, "--run-dir", str(tmp_path / "f")]) == 0
    result = read_fit(tmp_path / "f").fit
    if "field" in options:
        assert result.mean.shape[-2:] == torch.Size([8, 12])
    else:
        assert "taper" in result.reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "whittle", "--options", "{neighbors: 3}"], "option of"),
        (["--method", "whittle", "--restricted", "true"], "restricted"),
        (["--method", "vechia"], "vechia"),
        (["--kernel", "nowhere/kernel.yaml"], "no kernel at"),
    ],
)
def test_mistakes_are_one_clear_message(options, says, capsys, tmp_path):
    command = ["fit", *DATA["temperature"], "--kernel", KERNEL, *options]
    assert main([*command, "--run-dir", str(tmp_path / "f")]) == 2
    assert says in capsys.readouterr().err


def test_a_compared_kernel_may_be_a_sum(tmp_path):
    nugget = "{class_path: spatialdiff.kernels.Nugget, init_args: {variance: 0.1}}"
    others = "[[{class_path: spatialdiff.kernels.Exponential}, " + nugget + "]]"
    command = ["fit", *DATA["temperature"], "--kernel", KERNEL, "--compare", others, "--method", "whittle"]
    assert main([*command, "--run_dir", str(tmp_path / "fit")]) == 0
    assert (tmp_path / "fit" / "comparison.png").exists()
