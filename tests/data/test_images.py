"""Images as fields: the files, the levels, the noise between them, and what a density says of the levels."""

from __future__ import annotations

import gzip
import math
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import spatialdiff as sd
from spatialdiff.data import dequantise, digits, fashion_mnist, from_codes, redequantised
from spatialdiff.data.images import _resized, read_idx

ROOT = Path(__file__).parents[2]


def write_idx(path, array, zipped=True):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def folder(tmp_path):
    """The files of Fashion-MNIST with eight and three random images."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 8), ("t10k", 3)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", rng.integers(0, 256, (count, 28, 28)))
    return tmp_path


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read_as_they_were_written(tmp_path, zipped):
    array = np.random.default_rng(1).integers(0, 256, (4, 3, 5))
    write_idx(tmp_path / "a", array, zipped)
    np.testing.assert_array_equal(read_idx(tmp_path / "a").numpy(), array)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no idx file"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01aaaa", "no idx file"),
        (b"\x00\x00\x08\x02\x00\x00\x00\x02\x00\x00\x00\x02abc", "needed 4"),
        (b"\x00\x00\x08\x02\x00\x00", "for 2 axes"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x01a", mtime=0)[:-6], "gzip"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path, content, says):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_idx(tmp_path / "a")


def test_codes_come_back_from_the_fields(folder):
    data = fashion_mnist(folder=folder)
    assert data.levels == 256
    assert data.train.shape == (8, 1, 28, 28)
    assert data.test.shape == (3, 1, 28, 28)
    raw = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    assert torch.equal(data.codes["test"][:, 0], raw)
    within = data.standardisation.invert(data.test.double()) - data.codes["test"]
    # float32 fields: a level is some 1e-2 of a standard deviation, and they reach to 2 of them
    assert float(within.min()) > -1e-4
    assert float(within.max()) < 1 + 1e-4
    assert float(data.train.double().mean().abs()) < 1e-6
    assert math.isclose(float(data.train.double().std(correction=0)), 1.0, rel_tol=1e-6)


def test_padding_and_area_averages():
    image = torch.arange(28 * 28).reshape(1, 28, 28).remainder(251).to(torch.uint8)
    padded = _resized(image, 32)
    assert torch.equal(padded[:, 2:30, 2:30], image)
    assert int(padded.sum()) == int(image.sum())
    halves = image.double().reshape(1, 14, 2, 14, 2).mean((2, 4)).round()
    assert torch.equal(_resized(image, 14).double(), halves)
    # 16 pixels of 7/4: each original pixel in 4 parts, 7 of which make a new one
    parts = image.double().repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(_resized(image, 16).double(), parts.reshape(1, 16, 7, 16, 7).mean((2, 4)).round())


def test_noise_is_uniform_between_levels():
    codes = torch.full((100_000,), 7)
    noise = dequantise(codes, generator=torch.Generator().manual_seed(0)) - 7
    assert float(noise.min()) >= 0.0
    assert float(noise.max()) < 1.0
    error = math.sqrt(1 / 12 / len(codes))
    assert abs(float(noise.mean()) - 0.5) < 5 * error
    # fourth central moment of a uniform variable 1/80
    assert abs(float(noise.var()) - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / len(codes))


def test_same_seed_same_fields_and_new_noise_keeps_the_codes(folder):
    a, b, c = fashion_mnist(folder=folder), fashion_mnist(folder=folder), fashion_mnist(folder=folder, seed=1)
    assert torch.equal(a.train, b.train)
    assert not torch.equal(a.train, c.train)
    again = redequantised(a, "train", generator=torch.Generator().manual_seed(5))
    assert not torch.equal(again, a.train)
    before, after = (a.standardisation.invert(f.double()) for f in (a.train, again))
    assert float((before - after).abs().max()) < 1 + 1e-3


def test_a_density_of_fields_bounds_the_probability_of_codes():
    """One pixel with four levels and a normal density: the bound by quadrature is below the exact value."""
    codes = torch.arange(4).repeat(50)
    data = from_codes(codes[:, None], codes[:100, None], levels=4)
    mean, std = data.standardisation.mean, data.standardisation.std
    law = torch.distributions.Normal(mean, std)
    exact = (law.cdf(codes[:4] + 1.0) - law.cdf(codes[:4].double())).log()
    fields = torch.stack(
        [redequantised(data, generator=torch.Generator().manual_seed(s)) for s in range(400)]
    )
    log_density = torch.distributions.Normal(0.0, 1.0).log_prob(fields.double()) - std.log()
    bound = log_density[:, :4, 0, 0].mean(0)
    error = log_density[:, :4, 0, 0].std(0) / math.sqrt(400)
    assert bool((bound < exact + 4 * error).all())
    assert bool((bound > exact - 0.1).all())  # and not far below: the density is nearly flat over a level


def test_first_images_only(folder):
    assert len(fashion_mnist(train=5, test=2, folder=folder).train) == 5
    with pytest.raises(ValueError, match="train=9"):
        fashion_mnist(train=9, folder=folder)
    with pytest.raises(ValueError, match="size=0"):
        fashion_mnist(0, folder=folder)


def test_absent_files_name_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset-fashion-mnist.*make data"):
        fashion_mnist(folder=tmp_path)


def test_make_data_never_fails(tmp_path):
    """Where there is no apt-get, it says what to do."""
    make = ["make", "--no-print-directory", "data", f"FASHION={tmp_path}/none", "APT=false"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "apt-get install dataset-fashion-mnist" in done.stdout


def test_digits():
    data = digits(held_out=97)
    assert data.train.shape == (1700, 1, 8, 8)
    assert data.test.shape == (97, 1, 8, 8)
    assert data.levels == 17
    assert int(data.codes["train"].max()) == 16
    with pytest.raises(ValueError, match="held_out=1797"):
        digits(held_out=1797)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        digits()


@pytest.mark.parametrize(
    ("codes", "levels", "error", "says"),
    [
        (torch.rand(3, 4), 4, TypeError, "integers"),
        (torch.tensor([[0, 4]]), 4, ValueError, "from 0 to 4; needed from 0 to 3"),
        (torch.tensor([[0, -1]]), 4, ValueError, "needed from 0"),
        (torch.tensor([[0, 1]]), 300, ValueError, "levels=300"),
    ],
)
def test_wrong_codes(codes, levels, error, says):
    with pytest.raises(error, match=says):
        from_codes(codes, codes, levels=levels)


def test_continuous_fields_have_no_levels():
    fields = sd.data.from_arrays(torch.randn(4, 3, 3))
    assert fields.levels is None
    with pytest.raises(ValueError, match="continuous"):
        redequantised(fields)


def test_channels_and_grid_of_codes():
    codes = torch.randint(0, 9, (6, 2, 4, 5), generator=torch.Generator().manual_seed(0))
    data = from_codes(codes[:4], codes[4:], levels=9, grid=sd.Grid((4, 5), periodic=True))
    assert data.train.shape == (4, 2, 4, 5)
    assert torch.equal(data.codes["test"], codes[4:].to(torch.uint8))
    assert data.standardisation.std.shape == (2,)


def test_codes_from_a_file(tmp_path):
    rng = np.random.default_rng(2)
    train, test = (rng.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8) for n in (5, 2))
    np.savez(tmp_path / "images.npz", train=train, test=test)
    data = sd.data.from_file(tmp_path / "images.npz", channels=True, levels=256)
    assert data.levels == 256
    np.testing.assert_array_equal(data.codes["test"].numpy(), test)
    assert data.train.shape == (5, 3, 4, 4)
    np.savez(tmp_path / "fields.npz", train=train / 255)
    with pytest.raises(TypeError, match="levels= needs integers"):
        sd.data.from_file(tmp_path / "fields.npz", channels=True, levels=256)


def test_the_scale_is_that_of_bits_per_dimension(folder):
    """A normal density with the moments of the data, in levels and in standardised units: the same bits."""
    data = fashion_mnist(folder=folder)
    n = 28 * 28
    levels = data.standardisation.invert(data.test.double())
    mean, std = data.standardisation.mean, data.standardisation.std
    direct = -torch.distributions.Normal(mean, std).log_prob(levels).flatten(1).sum(1) / (n * math.log(2))
    value = torch.distributions.Normal(0.0, 1.0).log_prob(data.test.double()).flatten(1).sum(1)
    found = sd.likelihood.Likelihood(value, torch.zeros_like(value), n).bits_per_dim(256, scale=data.scale)
    torch.testing.assert_close(found, direct, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="nats per site"):
        _ = sd.data.from_arrays(torch.randn(4, 3, 3)).scale
