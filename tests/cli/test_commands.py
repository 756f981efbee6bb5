"""Each command in this process on small settings, and what it leaves for the next one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from spatialdiff.cli import COMMANDS, main

DATA = ["--data.patch", "16"]
SMALL = [
    *DATA,
    "--network.width",
    "8",
    "--network.depth",
    "1",
    "--trainer.tensorboard",
    "false",
    "--trainer.progress",
    "false",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a fit and two trained models."""
    root = tmp_path_factory.mktemp("runs")
    assert main(["fit", *DATA, "--method", "spectrum", "--run-dir", str(root / "fit")]) == 0
    train = ["train", *SMALL, "--fit", str(root / "fit"), "--steps", "6"]
    assert main([*train, "--run-dir", str(root / "denoising")]) == 0
    bridge = ["--process", "spatialdiff.BrownianBridge", "--objective", "spatialdiff.BridgeMixture"]
    assert (
        main([*train, *bridge, "--objective.coupling", "independent", "--run-dir", str(root / "bridge")]) == 0
    )
    return root


def config(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def arrays(folder):
    with np.load(folder / "fields.npz") as found:
        return {name: found[name] for name in found.files}


def test_usage_lists_the_commands(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert main(["--version"]) == 0
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_each_command(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--run_dir" in capsys.readouterr().out


def test_every_run_folder_says_what_it_is(home):
    for name in ("fit", "denoising", "bridge"):
        present = {path.name for path in (home / name).iterdir()}
        wanted = {
            "config.yaml",
            "seed.txt",
            "versions.json",
            "metrics.csv",
            "report.html",
            "command.txt",
            "fit.pt",
            "data.json",
        }
        assert wanted <= present
        assert any(path.suffix == ".png" for path in (home / name).iterdir())


def test_a_fit_by_likelihood_writes_a_kernel_that_can_be_simulated(tmp_path, capsys):
    fit = tmp_path / "fit"
    assert main(["fit", *DATA, "--method", "whittle", "--kernel.nu", "2.5", "--run-dir", str(fit)]) == 0
    assert "lengthscale" in capsys.readouterr().out
    kernel = yaml.safe_load((fit / "kernel.yaml").read_text())["kernel"]
    assert kernel["class_path"] == "spatialdiff.kernels.Matern"
    assert kernel["init_args"]["nu"] == 2.5
    shape = ["--shape", "[12,20]", "--method", "cosine", "--n", "3"]
    assert (
        main(["simulate", "--config", str(fit / "kernel.yaml"), *shape, "--run-dir", str(tmp_path / "a")])
        == 0
    )
    assert main(["simulate", "--fit", str(fit), *shape, "--run-dir", str(tmp_path / "b")]) == 0
    a, b = arrays(tmp_path / "a")["fields"], arrays(tmp_path / "b")["fields"]
    assert a.shape == b.shape == (3, 1, 12, 20)
    # one kernel, one seed; the fit adds its mean
    np.testing.assert_allclose(b - b.mean(), a - a.mean(), atol=1e-6)


@pytest.mark.parametrize("command", ["simulate", "fit", "sample"])
def test_the_written_configuration_repeats_the_run(command, home, tmp_path):
    first = {
        "simulate": [
            "--kernel",
            "spatialdiff.kernels.Exponential",
            "--kernel.lengthscale",
            "[2, 4]",
            "--shape",
            "[8, 9]",
            "--seed",
            "3",
        ],
        "fit": [*DATA, "--method", "whittle"],
        "sample": ["--run", str(home / "denoising"), "--n", "3", "--steps", "2", "--seed", "5"],
    }[command]
    assert main([command, *first, "--run-dir", str(tmp_path / "a")]) == 0
    assert (
        main([command, "--config", str(tmp_path / "a" / "config.yaml"), "--run-dir", str(tmp_path / "b")])
        == 0
    )
    assert config(tmp_path / "a") == config(tmp_path / "b")
    if command == "fit":
        assert (tmp_path / "a" / "parameters.csv").read_text() == (
            tmp_path / "b" / "parameters.csv"
        ).read_text()
    else:
        np.testing.assert_array_equal(arrays(tmp_path / "a")["fields"], arrays(tmp_path / "b")["fields"])


def test_one_line_changes_the_kernel(tmp_path):
    text = (
        "kernel:\n  class_path: spatialdiff.kernels.Matern\n  init_args: {lengthscale: 3.0}\n"
        "shape: [10, 10]\nmethod: dense\nn: 2\n"
    )
    fields = {}
    for kernel in (
        "spatialdiff.kernels.Matern",
        "spatialdiff.kernels.Exponential",
        "gpytorch.kernels.RBFKernel",
    ):
        file = tmp_path / "config.yaml"
        changed = text.replace("spatialdiff.kernels.Matern", kernel)
        if kernel.startswith("gpytorch"):
            changed = changed.replace("{lengthscale: 3.0}", "{}")
        file.write_text(changed)
        assert main(["simulate", "--config", str(file), "--run-dir", str(tmp_path / kernel)]) == 0
        fields[kernel] = arrays(tmp_path / kernel)["fields"]
    a, b, c = fields.values()
    assert not np.allclose(a, b)
    assert not np.allclose(a, c)


def test_a_list_of_kernels_is_their_sum(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "kernel:\n- class_path: spatialdiff.kernels.Matern\n  init_args: {lengthscale: 3.0, variance: 2.0}\n"
        "- class_path: spatialdiff.kernels.Nugget\n  init_args: {variance: 1.0}\nshape: [40, 40]\nmethod: "
        "dense\nn: 64\n"
    )
    assert main(["simulate", "--config", str(file), "--run-dir", str(tmp_path / "run")]) == 0
    fields = arrays(tmp_path / "run")["fields"][:, 0]
    step = np.diff(fields, axis=-1).reshape(len(fields), -1).var()
    # half the variance of a difference: 1 of the nugget, and 2 (1 - ρ(1)) of the Matérn 3/2
    s = np.sqrt(3) / 3
    expected = 2 * (1.0 + 2.0 * (1 - (1 + s) * np.exp(-s)))
    assert abs(step / expected - 1) < 5 * np.sqrt(2 / (64 * 40 * 39 / 4))


def test_sampling_inverts_the_standardisation(home, tmp_path):
    run = ["--run", str(home / "denoising"), "--n", "5", "--steps", "2", "--batch", "2"]
    assert main(["sample", *run, "--run-dir", str(tmp_path / "s")]) == 0
    found = arrays(tmp_path / "s")
    scale = yaml.safe_load((home / "denoising" / "data.json").read_text())
    assert found["fields"].shape == (5, 1, 16, 16)
    np.testing.assert_allclose(
        found["physical"], found["fields"] * scale["std"][0] + scale["mean"][0], rtol=1e-5
    )
    assert found["physical"].mean() > 50  # metres above the sea, not standard deviations


@pytest.mark.parametrize(
    ("model", "solver"), [("bridge", "bridge"), ("bridge", "gaussian"), ("denoising", "ddim")]
)
def test_solvers_by_name(home, tmp_path, model, solver):
    run = ["--run", str(home / model), "--n", "2", "--steps", "2", "--solver", solver]
    assert main(["sample", *run, "--run-dir", str(tmp_path / "s")]) == 0
    assert np.isfinite(arrays(tmp_path / "s")["fields"]).all()


def test_evaluate_writes_the_comparison(home, tmp_path, capsys):
    for name in ("denoising", "bridge"):
        run = ["--run", str(home / name), "--n", "16", "--steps", "2"]
        assert main(["sample", *run, "--run-dir", str(tmp_path / name)]) == 0
    files = f"[{tmp_path / 'denoising'}, {tmp_path / 'bridge' / 'fields.npz'}]"
    command = [
        "evaluate",
        "--run",
        str(home / "denoising"),
        "--generated",
        files,
        "--run-dir",
        str(tmp_path / "e"),
    ]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "denoising" in text
    assert "bridge" in text
    assert (tmp_path / "e" / "metrics.csv").read_text().count("\n") == 4
    assert "data:image/png;base64" in (tmp_path / "e" / "report.html").read_text()


def test_training_again_does_nothing_and_more_of_it_goes_on(home, capsys, tmp_path):
    train = [
        "train",
        *SMALL,
        "--fit",
        str(home / "fit"),
        "--trainer.schedule",
        "constant",
        "--run-dir",
        str(tmp_path / "t"),
    ]
    assert main([*train, "--steps", "3"]) == 0
    assert main([*train, "--steps", "3"]) == 0
    assert main([*train, "--steps", "5"]) == 0
    state = torch.load(tmp_path / "t" / "checkpoints" / "step-00000005.pt", weights_only=True)
    assert state["step"] == 5


def test_an_interrupted_run_resumes_to_the_same_weights(home, tmp_path, monkeypatch):
    from spatialdiff.training import Trainer

    train = ["train", *SMALL, "--fit", str(home / "fit"), "--steps", "6", "--trainer.checkpoint_every", "2"]
    assert main([*train, "--run-dir", str(tmp_path / "whole")]) == 0
    advance, made = Trainer._advance, []

    def interrupted(self):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(1)
        return advance(self)

    monkeypatch.setattr(Trainer, "_advance", interrupted)
    assert main([*train, "--run-dir", str(tmp_path / "broken")]) == 130
    monkeypatch.setattr(Trainer, "_advance", advance)
    assert main([*train, "--run-dir", str(tmp_path / "broken")]) == 0
    name = "checkpoints/step-00000006.pt"
    a, b = (torch.load(tmp_path / run / name, weights_only=True)["network"] for run in ("whole", "broken"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_unnamed_training_runs_find_their_folder_again(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", *SMALL, "--fit", str(home / "fit"), "--steps", "2"]
    assert main(train) == 0
    assert main(train) == 0
    assert main([*train, "--seed", "1"]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["simulate", "--shape", "[8, 8]"], "needs --kernel"),
        (
            [
                "simulate",
                "--kernel",
                "spatialdiff.kernels.Matern",
                "--kernel.lengthscale",
                "-1",
                "--shape",
                "[8, 8]",
            ],
            "positive",
        ),
        (
            ["simulate", "--kernel", "spatialdiff.kernels.Mattern", "--shape", "[8, 8]"],
            "no attribute 'Mattern'",
        ),
        (
            [
                "simulate",
                "--kernel",
                "spatialdiff.kernels.Matern",
                "--kernel.length",
                "1",
                "--shape",
                "[8, 8]",
            ],
            "'length' is not accepted",
        ),
        (["simulate", "--fit", "nowhere"], "no run folder"),
        (["fit", *DATA, "--kernel", "null", "--method", "whittle"], "needs a kernel"),
        (["sample", "--run", "nowhere"], "no run folder"),
        (["sample"], "run"),
        (["evaluate", "--generated", "nowhere.npz"], "no generated fields"),
        (["train", "--process", "spatialdiff.VPP"], "VPP"),
        (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_clear_message_and_no_folder(argv, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_mistakes_in_a_model(home, capsys, tmp_path):
    run = str(home / "denoising")
    cases = [
        (["sample", "--run", run, "--solver", "magic", "--run-dir", str(tmp_path / "a")], "unknown solver"),
        (["sample", "--run", str(home / "fit"), "--run-dir", str(tmp_path / "b")], "checkpoint"),
        (
            ["train", *SMALL, "--fit", str(home / "fit"), "--steps", "6", "--seed", "9", "--run-dir", run],
            "another configuration",
        ),
        (
            [
                "train",
                *SMALL,
                "--fit",
                str(home / "fit"),
                "--data.patch",
                "8",
                "--run-dir",
                str(tmp_path / "c"),
            ],
            "Fit these data",
        ),
        (["fit", *DATA, "--run-dir", str(home / "fit")], "--overwrite"),
        (
            [
                "train",
                *SMALL,
                "--fit",
                str(home / "fit"),
                "--process",
                "spatialdiff.BrownianBridge",
                "--run-dir",
                str(tmp_path / "d"),
            ],
            "BridgeMixture",
        ),
    ]
    for argv, says in cases:
        assert main(argv) == 2, argv
        assert says in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys):
    assert main(["simulate", "--fit", "nowhere", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
