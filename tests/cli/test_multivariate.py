"""Processes of several variables from the command line, what they learn, and how likely held-out data are."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from spatialdiff.cli import main
from spatialdiff.cli import train as training
from spatialdiff.cli.sample import trained_denoiser

CONFIGS = Path(__file__).parents[2] / "configs"
ROWS = sorted((CONFIGS / "multivariate").glob("*-*.yaml"))
OVERLAYS = [
    CONFIGS / "multivariate" / "noise.yaml",
    *sorted((CONFIGS / "multivariate" / "paper").glob("*.yaml")),
]
SMALL = [
    *["--data", "spatialdiff.data.digits", "--network.width", "8", "--network.depth", "1"],
    *["--trainer.tensorboard", "false", "--trainer.progress", "false", "--trainer.batch_size", "8"],
]
BOUND = ["--objective", "spatialdiff.EvidenceBound"]


def train(folder, *argv):
    return main(["train", *SMALL, *argv, "--run-dir", str(folder)])


def table(folder):
    with (folder / "metrics.csv").open() as file:
        return {row["law"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a fit to the digits and a model whose process learns, for a few steps."""
    root = tmp_path_factory.mktemp("runs")
    fit = ["--data", "spatialdiff.data.digits", "--method", "spectrum", "--mean", "field"]
    assert main(["fit", *fit, "--run-dir", str(root / "fit")]) == 0
    process = ["--process", "spatialdiff.LearnedDiffusion", "--process.learn", "[Q, D, S, beta]"]
    argv = [*BOUND, *process, "--fit", str(root / "fit"), "--noise", "white", "--steps", "3"]
    assert train(root / "learned", *argv) == 0
    return root


@pytest.mark.parametrize(
    ("process", "prediction", "preconditioning"),
    [
        (["spatialdiff.CLD", "--process.mass", "0.5"], "data", "wiener"),
        (["spatialdiff.ALDA"], "velocity", "edm"),
        (["spatialdiff.MALDA", "--process.variables", "4"], "variable_noise", "none"),
        (
            ["spatialdiff.StochasticHeat", "--process.diffusivity", "1", "--process.damping", "1"],
            "data",
            "wiener",
        ),
        (["spatialdiff.FrequencyVP", "--process.weights", f"{__name__}.alike"], "noise", "edm"),
        (["spatialdiff.SubVP"], "white_noise", "none"),
        (["spatialdiff.EDM"], "noise", "wiener"),
        (
            [
                "spatialdiff.LinearDiffusion",
                *["--process.A", "[[0, 4], [-1, -8]]", "--process.G", "[[0, 0], [0, 4]]"],
                *[
                    "--process.beta",
                    "spatialdiff.processes.schedules.LinearBeta",
                    "--process.beta.beta_max",
                    "9",
                ],
            ],
            "data",
            "wiener",
        ),
    ],
    ids=lambda value: value[0].split(".")[1] if isinstance(value, list) else value,
)
def test_processes_by_name_train_and_sample(home, tmp_path, process, prediction, preconditioning):
    given = ["--process", *process, "--prediction", prediction, "--preconditioning", preconditioning]
    assert train(tmp_path / "t", *given, *BOUND, "--fit", str(home / "fit"), "--steps", "2") == 0
    run = ["--run", str(tmp_path / "t"), "--n", "2", "--steps", "2", "--solver", "ancestral"]
    assert main(["sample", *run, "--run-dir", str(tmp_path / "s")]) == 0
    with np.load(tmp_path / "s" / "fields.npz") as found:
        assert found["fields"].shape == (2, 1, 8, 8)
        assert np.isfinite(found["fields"]).all()
    again = tmp_path / "again"  # the resolved configuration repeats the run
    assert main(["train", "--config", str(tmp_path / "t" / "config.yaml"), "--run-dir", str(again)]) == 0
    weights = [
        torch.load(folder / "checkpoints" / "step-00000002.pt", weights_only=True)["network"]
        for folder in (tmp_path / "t", again)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_the_process_learned_is_loaded(home):
    folder = home / "learned"
    state = torch.load(folder / "checkpoints" / "step-00000003.pt", weights_only=True)
    last = trained_denoiser(str(folder), averaged=False).process
    for name, value in state["objective"].items():
        if name.startswith("denoiser.process."):
            assert torch.equal(last.state_dict()[name.removeprefix("denoiser.process.")], value), name
    mean = trained_denoiser(str(folder)).process
    for i, parameter in enumerate(mean.learned_parameters()):
        assert torch.equal(parameter, state["learned_ema"][f"module.{i}"])
    # three steps have moved Q, D and S from their start, and the average lags behind
    start = mean.__class__(mean.covariance, 2, ("Q", "D", "S", "beta"))
    for before, after, average in zip(
        start.learned_parameters(), last.learned_parameters(), mean.learned_parameters(), strict=True
    ):
        assert not torch.equal(before, after)
        assert not torch.equal(after, average)


def test_an_untrained_model_has_the_likelihood_of_the_fitted_gaussian(home, tmp_path):
    """Under the Wiener preconditioning the network adds nothing to begin with, and the bound is tight."""
    argv = [
        "--process",
        "spatialdiff.CLD",
        "--fit",
        str(home / "fit"),
        "--steps",
        "1",
        "--trainer.lr",
        "1e-12",
    ]
    assert train(tmp_path / "t", *BOUND, *argv) == 0
    run = ["--run", str(tmp_path / "t"), "--n", "40", "--samples", "4", "--batch", "16"]
    assert main(["likelihood", *run, "--run-dir", str(tmp_path / "l")]) == 0
    rows = table(tmp_path / "l")
    model, gaussian = (float(rows[law]["nats_per_site"]) for law in ("model", "fitted Gaussian"))
    assert model < gaussian
    assert gaussian - model < 2e-3
    data = yaml.safe_load((tmp_path / "t" / "data.json").read_text())
    bits = -model / math.log(2) + math.log2(data["std"][0])
    assert math.isclose(float(rows["model"]["bits_per_dim"]), bits, rel_tol=1e-6)
    with np.load(tmp_path / "l" / "likelihood.npz") as found:
        assert math.isclose(float(found["value"].mean()) / 64, model, rel_tol=1e-6)
        terms = sum(found[name] for name in found.files if name.startswith("term_"))
        np.testing.assert_allclose(terms, found["value"], rtol=1e-9)
        spread = found["value"].std(ddof=1) / 64 / math.sqrt(40)
    assert math.isclose(float(rows["model"]["nats_error"]), spread, rel_tol=1e-6)


def test_likelihood_of_a_learned_process_and_of_training_images(home, tmp_path, capsys):
    run = ["--run", str(home / "learned"), "--n", "6", "--samples", "2", "--part", "train"]
    assert main(["likelihood", *run, "--run-dir", str(tmp_path / "l")]) == 0
    assert "bits per dimension" in capsys.readouterr().out
    assert main(["likelihood", *run, "--options", "{decoder: magic}", "--run-dir", str(tmp_path / "m")]) == 2
    assert "magic" in capsys.readouterr().err


def test_continuous_fields_are_reported_in_nats(tmp_path, capsys):
    fields = torch.randn(24, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "fields.npy", fields.numpy())
    data = ["--data", "spatialdiff.data.from_file", "--data.path", str(tmp_path / "fields.npy")]
    argv = ["train", *SMALL, *data, "--steps", "1", "--run-dir", str(tmp_path / "t")]
    assert main(argv) == 0
    capsys.readouterr()
    run = ["--run", str(tmp_path / "t"), "--samples", "2"]
    assert main(["likelihood", *run, "--run-dir", str(tmp_path / "l")]) == 0
    text = capsys.readouterr().out
    assert "nats per site" in text
    assert "bits" not in text
    assert "bits_per_dim" not in table(tmp_path / "l")["model"]


def test_a_network_without_out_channels_is_refused_for_several_variables(tmp_path, capsys):
    network = ["--network", f"{__name__}.Plain"]
    argv = ["train", "--data", "spatialdiff.data.digits", *network, "--process", "spatialdiff.CLD"]
    assert main([*argv, "--steps", "1", "--run-dir", str(tmp_path / "t")]) == 2
    assert "it needs an argument out_channels" in capsys.readouterr().err


def alike(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Weights of the frequencies that make them all diffuse alike."""
    return torch.ones_like(eigenvalues)


class Plain(torch.nn.Module):
    """A network that returns what it is given."""

    def __init__(self, channels: int, grid: object) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, channels, 1)


@pytest.mark.parametrize("row", ROWS, ids=lambda path: path.stem)
def test_rows_of_the_experiment_differ_in_process_and_noise_only(row):
    first = yaml.safe_load(ROWS[0].read_text())
    here = yaml.safe_load(row.read_text())
    shared = {name: value for name, value in here.items() if name not in ("process", "noise")}
    assert shared == {name: value for name, value in first.items() if name not in ("process", "noise")}
    _, config = training.COMMAND.parse(["--config", str(row)])
    assert config["process"]["class_path"] == here["process"]["class_path"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlays_keep_the_process_of_a_row(overlay):
    row = CONFIGS / "multivariate" / "malda-3-white.yaml"
    _, config = training.COMMAND.parse(["--config", str(row), "--config", str(overlay)])
    assert config["process"]["init_args"]["variables"] == 3
    assert config["noise"] == "white"
    assert config["prediction"] == "variable_noise"
