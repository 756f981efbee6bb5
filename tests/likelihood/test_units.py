"""Nats per site and bits per dimension: the conventions, checked against probabilities of integers."""

import math

import pytest
import torch

import spatialdiff.likelihood as lk
from spatialdiff.likelihood import Likelihood, dequantise


def result(value, sites, error=0.0):
    value = torch.as_tensor(value, dtype=torch.float64)
    return Likelihood(value, torch.full_like(value, error), sites)


@pytest.mark.parametrize(("levels", "scale", "offset"), [(256, 1.0, 0.0), (256, 2.0, -1.0), (17, 3.5, 0.2)])
def test_a_uniform_density_costs_log2_levels(levels, scale, offset):
    """Uniform data over the range: log2(levels) bits each, in any units."""
    values = torch.arange(levels).reshape(1, -1)
    x = dequantise(values, levels, scale=scale, offset=offset, dtype=torch.float64)
    assert float(x.min()) >= offset
    assert float(x.max()) < offset + scale
    # every integer has its own part of the range
    assert torch.equal(((x - offset) / scale * levels).floor().long(), values)
    log_density = -x[0].numel() * math.log(scale)
    bits = result([log_density], x[0].numel()).bits_per_dim(levels, scale=scale)
    assert float(bits) == pytest.approx(math.log2(levels))


def test_bits_bound_the_entropy_of_the_integers():
    """A density that is constant on every integer's part gives the code length of its probabilities."""
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    values = torch.multinomial(
        probabilities, 4000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    x = dequantise(values, 4, scale=2.0, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    density = probabilities[(x * 2).floor().long()] * 4 / 2.0
    bits = result([float(density.log().sum())], 4000).bits_per_dim(4, scale=2.0)
    assert float(bits) == pytest.approx(float(-probabilities.log2()[values].mean()))


def test_means_and_errors():
    made = result([-24.0, -48.0, -36.0], 12, error=6.0)
    assert made.nats_per_site.tolist() == [-2.0, -4.0, -3.0]
    assert made.mean == -3.0
    assert made.mean_standard_error == pytest.approx(1.0 / math.sqrt(3))
    assert made.bits_standard_error.tolist() == pytest.approx([0.5 / math.log(2)] * 3)
    assert result([-24.0], 12, error=6.0).mean_standard_error == 0.5
    assert "3 fields of 12 values" in repr(made)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: result([0.0], 1).bits_per_dim(1), "at least 2 levels"),
        (lambda: result([0.0], 1).bits_per_dim(scale=0.0), "scale > 0"),
        (lambda: dequantise(torch.tensor([256])), "from 0 to 255"),
        (lambda: dequantise(torch.tensor([0.5])), "whole numbers"),
        (lambda: dequantise(torch.tensor([0]), 1), "at least 2 levels"),
        (lambda: dequantise(torch.tensor([1]), scale=-1.0), "positive, finite scale"),
    ],
)
def test_bad_units(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_public_names():
    assert set(lk.__all__) == {"Likelihood", "dequantise", "evidence_bound", "probability_flow"}
