"""Fields of one's own: what is refused, what the message says, and the standardisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spatialdiff as sd
from spatialdiff.data import Standardisation, check_fields, from_arrays, from_file

GRID = sd.Grid((4, 6), spacing=(0.5, 2.0), periodic=(True, False))


def draw(count, *shape, seed=0):
    return np.random.default_rng(seed).normal(7.0, 3.0, (count, *shape))


def test_missing_and_infinite_values_are_counted_and_placed():
    fields = draw(5, 4, 6)
    fields[1, 2, 3] = np.nan
    fields[1, 3, 0] = np.inf
    fields[4, 0, 5] = -np.inf
    message = (
        r"train has 3 missing or infinite values of 120, in 2 of 5 fields, "
        r"the first at \(1, 2, 3\), \(1, 3, 0\), \(4, 0, 5\)"
    )
    for values in (fields, torch.from_numpy(fields), fields.tolist()):
        with pytest.raises(ValueError, match=message):
            from_arrays(values, grid=GRID)
    with pytest.raises(ValueError, match="test has 3 missing"):
        from_arrays(draw(2, 4, 6), fields, grid=GRID)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_masked_entries_are_missing(dtype):
    """Whatever lies under the mask; integers too, which have no NaN to be filled with."""
    fields = np.ma.array(draw(3, 4, 6).astype(dtype))
    assert torch.equal(
        check_fields(fields, "x"), torch.from_numpy(fields.data.astype(dtype)).to(torch.float64)
    )
    fields[2, 1, 4] = np.ma.masked
    for values in (fields, list(fields)):
        with pytest.raises(ValueError, match=r"1 missing .* in 1 of 3 fields, the first at \(2, 1, 4\)"):
            check_fields(values, "x")


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4", "<f8", ">i2", "u1", "u2", "f2", "?", "longdouble"])
def test_real_types_byte_orders_and_strides_are_read(dtype):
    fields = draw(3, 4, 6).astype(dtype)[:, ::-1]  # as latitudes that were stored from north to south
    read = check_fields(fields, "x")
    assert read.dtype == (torch.float32 if dtype[1:] == "f4" else torch.float64)
    assert np.array_equal(read.numpy(), fields.astype(np.float64))


@pytest.mark.parametrize(
    "values", [draw(2, 4, 6) + 1j, torch.ones(2, 4, 6, dtype=torch.cfloat), [["a"], ["b"]]]
)
def test_other_types_are_refused(values):
    with pytest.raises(TypeError, match=r"train holds values of type .*; needed real numbers"):
        from_arrays(values, grid=GRID)


def test_what_was_given_is_not_changed():
    for values in (draw(5, 4, 6), torch.from_numpy(draw(5, 4, 6)).requires_grad_()):
        before = values[:].tolist()
        data = from_arrays(values, grid=GRID)
        data.train.zero_()
        assert values.tolist() == before
        assert not data.train.requires_grad


def test_empty_constant_and_single_values_are_refused():
    with pytest.raises(ValueError, match=r"train is empty \(shape \(0, 4, 6\)\); needed at least one field"):
        from_arrays(np.zeros((0, 4, 6)), grid=GRID)
    with pytest.raises(ValueError, match="test is empty"):
        from_arrays(draw(3, 4, 6), [], grid=GRID)
    for number in (1.0, float("nan")):
        with pytest.raises(ValueError, match="train is a single number"):
            from_arrays(number, grid=GRID)
    fields = draw(5, 3, 4, 6)
    for constant in (0.0, 0.1, 1e6 / 3.0):
        fields[:, 1] = constant
        for dtype in (np.float64, np.float32):
            with pytest.raises(ValueError, match=r"Channel\(s\) \[1\] of the training fields are constant"):
                from_arrays(fields.astype(dtype), grid=GRID)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"train has shape \(5, 6, 4\); needed \(N, 4, 6\) or \(N, C, 4, 6\)"
    ):
        from_arrays(draw(5, 6, 4), grid=GRID)
    with pytest.raises(ValueError, match=r"train has shape \(4, 6\)"):
        from_arrays(draw(4, 6), grid=GRID)
    with pytest.raises(ValueError, match=r"test has shape \(5, 3, 6\)"):
        from_arrays(draw(5, 4, 6), draw(5, 3, 6), grid=GRID)
    with pytest.raises(ValueError, match=r"test has 3 channel\(s\) and train 2"):
        from_arrays(draw(5, 2, 4, 6), draw(5, 3, 4, 6), grid=GRID)
    with pytest.raises(ValueError, match=r"train has shape \(5,\); needed \(N, \*grid\)"):
        from_arrays(draw(5))


def test_without_a_grid_the_last_axes_are_one():
    assert from_arrays(draw(5, 4, 6)).grid == sd.Grid((4, 6))
    assert from_arrays(draw(5, 3, 4, 6)).train.shape == (5, 1, 3, 4, 6)


def test_standardised_by_the_training_part_only():
    train, test = draw(50, 2, 4, 6), draw(20, 2, 4, 6, seed=1) * 5.0
    train[:, 1] = train[:, 1] * 100.0 - 4000.0
    data = from_arrays(train, test, grid=GRID, name="rain", units="mm", origin={"train": torch.arange(50)})
    assert (data.name, data.units, data.grid, len(data.origin["train"])) == ("rain", "mm", GRID, 50)
    assert np.allclose(data.standardisation.mean, train.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(data.standardisation.std, train.std((0, 2, 3)), rtol=1e-12)
    for part, values in ((data.train, train), (data.test, test)):
        assert part.dtype == torch.float32
        by_hand = (values - train.mean((0, 2, 3), keepdims=True)) / train.std((0, 2, 3), keepdims=True)
        assert np.allclose(part, by_hand, rtol=2.0**-23, atol=1e-12)  # one rounding to float32
    alone = from_arrays(train, grid=GRID)
    assert torch.equal(alone.train, data.train)
    assert alone.test.shape == (0, 2, 4, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standardisation_there_and_back(dtype):
    fields = torch.from_numpy(draw(10, 2, 4, 6)).to(dtype)
    scale = Standardisation.of(fields)
    back = scale.invert(scale.apply(fields))
    assert back.dtype == dtype
    # two roundings, one of them of a standardised value of at most ten, scaled by s
    eps = torch.finfo(dtype).eps
    assert float((back - fields).abs().max()) <= 2.0 * eps * float(
        fields.abs().max() + 10.0 * scale.std.max()
    )
    with pytest.raises(ValueError, match=r"shape \(10, 3, 4, 6\); needed \(N, 2, \*grid\)"):
        scale.apply(torch.zeros(10, 3, 4, 6))


def test_a_file_of_one_array_is_split_by_the_share_held_out(tmp_path):
    fields = draw(10, 4, 6)
    path = tmp_path / "rain.npy"
    np.save(path, fields)
    for held_out, count in ((0.2, 2), (0.25, 2), (0.5, 5), (0.01, 0), (0.0, 0)):
        data = from_file(path, spacing=(0.5, 2.0), periodic=(True, False), held_out=held_out)
        assert (len(data.train), len(data.test)) == (10 - count, count)
        both = data.standardisation.invert(torch.cat([data.train, data.test]).double())
        assert np.allclose(both[:, 0], fields, atol=1e-5)
        assert (data.name, data.grid) == ("rain", GRID)
    for held_out in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"needed a share of at least 0 and below 1"):
            from_file(path, held_out=held_out)
    with pytest.raises(ValueError, match="train is empty"):
        from_file(path, held_out=0.99)


def test_a_file_with_both_parts_keeps_them(tmp_path):
    train, test = draw(10, 2, 4, 6), draw(3, 2, 4, 6, seed=1)
    path = tmp_path / "both.npz"
    np.savez(path, train=train, test=test)
    data = from_file(str(path), channels=True, name="wind", units="m/s", held_out=0.5)
    assert (data.train.shape, data.test.shape) == ((10, 2, 4, 6), (3, 2, 4, 6))
    assert (data.name, data.units, data.grid) == ("wind", "m/s", sd.Grid((4, 6)))
    assert from_file(path).grid == sd.Grid((2, 4, 6))  # without `channels`, every axis is one of the grid
    np.savez(path, train=train)
    assert len(from_file(path, channels=True, held_out=0.3).test) == 3


def test_files_that_hold_no_fields_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of fields at .*absent"):
        from_file(tmp_path / "absent.npy")
    path = tmp_path / "other.npz"
    np.savez(path, rain=draw(3, 4, 6), snow=draw(3, 4, 6))
    with pytest.raises(ValueError, match="has no array 'train'; it holds rain, snow"):
        from_file(path)
    text = tmp_path / "fields.csv"
    for content in (b"1,2,3\n", b"", path.read_bytes()[:100]):
        text.write_bytes(content)
        with pytest.raises(ValueError, match=r"fields.csv is no whole .npy or .npz file of numbers"):
            from_file(text)
    for array, channels, needed in (
        (np.array(3.0), False, "N"),
        (draw(3), False, "N"),
        (draw(3, 6), True, "N, C"),
    ):
        np.save(tmp_path / "flat.npy", array)
        with pytest.raises(ValueError, match=rf"needed \({needed}, \*grid\)"):
            from_file(tmp_path / "flat.npy", channels=channels)
