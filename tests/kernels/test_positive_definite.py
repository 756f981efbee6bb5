"""Positive definiteness over parameters, dimensions and random sites, and its loss where families refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdiff.kernels import (
    Askey,
    Cauchy,
    Circular,
    Cubic,
    DampedCosine,
    Exponential,
    Gaussian,
    GeneralizedCauchy,
    GeneralizedWendland,
    Matern,
    Periodic,
    PoweredExponential,
    RationalQuadratic,
    Spherical,
    Wave,
)

F64 = torch.float64


def between(low, high):
    return st.floats(low, high, allow_nan=False)


def wendland(d, excess, kappa):
    return GeneralizedWendland(kappa, (d + 1) / 2 + kappa + excess)


# strategies of kernels that are valid in d dimensions
ANYWHERE = {
    "Exponential": lambda d: st.just(Exponential()),
    "Matern": lambda d: between(0.05, 30).map(Matern),
    "Gaussian": lambda d: st.just(Gaussian()),
    "PoweredExponential": lambda d: between(0.05, 2).map(PoweredExponential),
    "RationalQuadratic": lambda d: between(0.05, 30).map(RationalQuadratic),
    "Cauchy": lambda d: between(0.05, 30).map(Cauchy),
    "GeneralizedCauchy": lambda d: st.builds(GeneralizedCauchy, between(0.05, 2), between(0.05, 30)),
    "Spherical": lambda d: st.just(Spherical()),
    "Circular": lambda d: st.just(Circular()),
    "Cubic": lambda d: st.just(Cubic()),
    "Askey": lambda d: between((d + 1) / 2, 12).map(Askey),
    "GeneralizedWendland": lambda d: st.builds(
        wendland, st.just(d), between(0, 6), between(0, 4) | st.sampled_from([0.0, 1.0, 2.0, 3.0])
    ),
    "Wave": lambda d: st.just(Wave()),
    "DampedCosine": lambda d: between(max(1 / math.tan(math.pi / (2 * d)), 1e-3), 10).map(DampedCosine),
    "Periodic": lambda d: st.builds(Periodic, between(0.3, 5), between(0.2, 3)),
}
LARGEST = {"Spherical": 3, "Circular": 2, "Cubic": 3, "Wave": 3}


def smallest_eigenvalue(kernel, sites, scale):
    """Of the correlation matrix of sites ``(n, d)`` stretched by ``scale`` length scales."""
    x = torch.from_numpy(sites) * scale
    with torch.no_grad():
        matrix = kernel.correlation(kernel.scaled_distance(x[:, None] - x[None]))
    return torch.linalg.eigvalsh(matrix)[0].item()


@pytest.mark.parametrize("name", ANYWHERE)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_positive_definite_where_allowed(name, data):
    d = data.draw(st.integers(1, LARGEST.get(name, 4)))
    kernel = data.draw(ANYWHERE[name](d))
    kernel.check_dimension(d)
    n = data.draw(st.integers(2, 40))
    scale = data.draw(st.sampled_from([0.1, 0.7, 2.0, 6.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    if data.draw(st.booleans()):
        sites = rng.random((n, d))
    else:  # part of a lattice, the hardest sites for kernels of compact support
        side = math.ceil(n ** (1 / d)) + 1
        sites = np.stack(np.unravel_index(rng.permutation(side**d)[:n], (side,) * d), -1) / side
    assert smallest_eigenvalue(kernel, sites, scale) >= -1e-10 * n


def torus_eigenvalue(kernel, d, side, spacing):
    """The smallest eigenvalue, relative to the largest, on a torus that the correlation has left before it
    meets
    itself: a positive definite function has none below 0.
    """
    axis = torch.minimum(torch.arange(side), side - torch.arange(side)).double() * spacing
    r = torch.stack(torch.meshgrid(*[axis] * d, indexing="ij"), -1).square().sum(-1).sqrt()
    with torch.no_grad():
        eigenvalues = torch.fft.fftn(kernel.correlation(r)).real
    return (eigenvalues.min() / eigenvalues.abs().max()).item()


BEYOND = [
    (Circular(), 3, 48, 0.06),
    (DampedCosine(0.9), 2, 256, 0.25),
    (DampedCosine(1.5), 3, 64, 0.4),
    (Askey(1.3), 2, 512, 0.02),
    (Askey(1.3), 3, 96, 0.04),
    (GeneralizedWendland(1, 2.2), 2, 512, 0.02),
]


@pytest.mark.parametrize(
    ("kernel", "d", "side", "spacing"), BEYOND, ids=[f"{k!r}-{d}" for k, d, *_ in BEYOND]
)
def test_what_is_refused_is_not_positive_definite(kernel, d, side, spacing):
    """In a dimension that the family refuses there is a negative eigenvalue, in the largest it allows there
    is none.
    """
    assert torus_eigenvalue(kernel, d, side, spacing) < -1e-9
    assert torus_eigenvalue(kernel, int(kernel.max_dimension), side, spacing) > -1e-15
    with pytest.raises(ValueError, match="positive definite"):
        kernel.at_lags(torch.zeros(1, d, dtype=F64))


def test_wave_is_not_positive_definite_in_four_dimensions():
    sites = np.stack(np.meshgrid(*[np.arange(4.0)] * 4, indexing="ij"), -1).reshape(-1, 4)
    assert smallest_eigenvalue(Wave(), sites, 2.3) < -1e-3
    with pytest.raises(ValueError, match="positive definite"):
        Wave().at_lags(torch.zeros(1, 4))
