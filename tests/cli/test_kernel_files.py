"""Kernels as configuration: every kernel of the library is written, read by the parser, and the same."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from spatialdiff.cli.kernels import kernel_config, with_kernels_read
from spatialdiff.cli.objects import one_kernel
from spatialdiff.cli.simulate import COMMAND
from spatialdiff.kernels import (
    Anisotropic,
    Chordal,
    Exponential,
    Gaussian,
    Gneiting,
    GridField,
    LegendreMatern,
    LegendreSeries,
    Matern,
    Nonstationary,
    Nugget,
    Separable,
    SphericalAskey,
    SphericalExponential,
    SphericalMultiquadric,
    Sum,
)
from spatialdiff.kernels.catalogue import CATALOGUE

MATRICES = torch.tensor([[1.0, 0.2], [0.2, 0.5]]) * torch.tensor([[1.0, 2.0], [0.5, 1.5]])[..., None, None]
PLANE = [
    *(family.example() for family in CATALOGUE),
    Nugget(0.3),
    Matern(0.8, [1.0, 2.0], trainable_nu=True),
    Matern(1.5, 2.0, 0.7) + Nugget(0.1),
    Matern(1.5, 2.0) + Gaussian(0.5) + Nugget(0.1),
    Matern(0.5, 2.0) * Gaussian(3.0),
    (Matern(0.5, 2.0) + Nugget(0.2)) * Gaussian(3.0) + Exponential(9.0, 0.1),
    Anisotropic(Matern(2.2, 1.5), 0.4, ratios=0.3),
    Anisotropic(Matern(1.5, 1.0) + Nugget(0.1), 0.4, lengthscales=[1.0, 3.0]),
    Separable(Matern(0.5, 2.0), Gaussian(1.3), axes=[[1], [0]]),
    Nonstationary(Matern(1.5), 0.7, standard_deviation=1.2),
    Nonstationary(Matern(1.5), [0.7, 1.1], angles=0.3),
    Nonstationary(Gaussian(), anisotropy=GridField(MATRICES, [3.0, 3.0])),
    Nonstationary(
        Matern(1.5), GridField(torch.rand(6, 4, 1).double() + 0.1, [1.0, 2.0], -1.0, trainable=True)
    ),
]
SPACE_TIME = [Gneiting(Matern(1.5, 2.0), 1.5, 0.8, 0.5), Gneiting(Gaussian(2.0), 1.5, 0.8, 0.0, 0.4)]
SPHERE = [
    Chordal(Matern(1.5, 0.4), radius=6371.0),
    SphericalExponential(0.3, 2.0),
    SphericalAskey(2.5, 1.0),
    SphericalMultiquadric(0.4, 0.6),
    LegendreMatern(1.3, 0.4, lmax=40),
    LegendreSeries([0.5, 0.3, 0.2]) + Nugget(0.1),
]
SITES = {
    "plane": torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3,
    "space-time": torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3,
    "sphere": torch.nn.functional.normalize(
        torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=-1
    ),
}
CASES = (
    [("plane", k) for k in PLANE] + [("space-time", k) for k in SPACE_TIME] + [("sphere", k) for k in SPHERE]
)


def parsed(argv):
    parser, config = COMMAND.parse(argv)
    return one_kernel(parser.instantiate(config).kernel)


@pytest.mark.parametrize(("where", "kernel"), CASES, ids=lambda case: str(case)[:60])
def test_every_kernel_is_written_and_read_by_the_commands(where, kernel, tmp_path):
    text = yaml.safe_dump({"kernel": kernel_config(kernel)}, sort_keys=False)
    (tmp_path / "kernel.yaml").write_text(text)
    x = SITES[where] * (6371.0 if isinstance(kernel, Chordal) else 1.0)
    with torch.no_grad():
        expected = kernel(x, x).to_dense()
        for argv in (["--config", str(tmp_path / "kernel.yaml")], ["--kernel", str(tmp_path)]):
            again = parsed(argv)
            torch.testing.assert_close(again(x, x).to_dense(), expected, rtol=1e-12, atol=1e-14)
    kept = [(name, tuple(p.shape)) for name, p in kernel.named_parameters()]
    assert [(name, tuple(p.shape)) for name, p in again.named_parameters()] == kept
    assert kernel_config(again) == yaml.safe_load(text)["kernel"] or not isinstance(again, Sum)


def test_what_no_configuration_can_name_is_refused():
    with pytest.raises(ValueError, match="batch of hyperparameters"):
        kernel_config(Matern(1.5, batch_shape=(2,)))
    with pytest.raises(ValueError, match="network or a function"):
        kernel_config(Nonstationary(Matern(1.5), lambda x: 1.0 + x[..., :1].abs()))


def test_files_and_folders_stand_for_the_kernel_in_them(tmp_path):
    (tmp_path / "kernel.yaml").write_text(
        yaml.safe_dump({"kernel": kernel_config(Matern(1.5, 2.0) + Nugget(0.1))})
    )
    for value in (["--noise", str(tmp_path)], [f"--noise={tmp_path}/kernel.yaml"]):
        (item,) = with_kernels_read(value)
        parts = yaml.safe_load(item.removeprefix("--noise="))
        assert [part["class_path"].rpartition(".")[2] for part in parts] == ["Matern", "Nugget"]
        assert math.isclose(parts[1]["init_args"]["variance"], 0.1)
    unchanged = ["--noise", "white", "--kernel", "spatialdiff.kernels.Matern", "--kernel.nu", "1.5"]
    assert " ".join(with_kernels_read(unchanged)).replace("=", " ") == " ".join(unchanged)
    with pytest.raises(FileNotFoundError, match="no kernel at"):
        with_kernels_read(["--kernel", str(tmp_path / "other.yaml")])
    (tmp_path / "empty.yaml").write_text("fit: 3\n")
    with pytest.raises(ValueError, match="names no kernel"):
        with_kernels_read(["--kernel", str(tmp_path / "empty.yaml")])
