"""Domains: shapes, coordinates, equality, lists of sites, and what they refuse."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import spatialdiff as sd
from spatialdiff.domains import Domain

MASK = torch.tensor([[True, False, True], [False, True, True]])
DOMAINS: list[Domain] = [
    sd.Grid((2, 3), spacing=(0.5, 2.0), periodic=(True, False)),
    sd.Grid((2, 3)).masked(MASK),
    sd.RectilinearGrid([[0.0, 1.0, 4.0], [-1.0, 2.0]]),
    sd.Points(torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 0.5]])),
    sd.Points(torch.tensor([0.0, 3.0])),
    sd.Sphere((4, 6), poles=False),
    sd.Sphere((4, 6), "gauss_legendre"),
    sd.Mesh.from_grid(sd.Grid((3, 2))),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_shapes_and_lists_of_sites(domain):
    coordinates = domain.coordinates()
    assert coordinates.dtype == torch.float64
    assert coordinates.shape == (*domain.shape, domain.dimension)
    assert domain.ndim == len(domain.shape) == len(domain.periodic)
    assert domain.sites().shape == (domain.size, domain.dimension)
    x = torch.randn(2, *domain.shape, dtype=torch.float64)
    values = domain.flatten(x)
    assert values.shape == (2, domain.size)
    torch.testing.assert_close(domain.flatten(domain.unflatten(values)), values)
    torch.testing.assert_close(domain.flatten(coordinates.movedim(-1, 0)).T, domain.sites())


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_equality_and_copies(domain):
    for other in (copy.deepcopy(domain), pickle.loads(pickle.dumps(domain))):
        assert other == domain
        assert hash(other) == hash(domain)
    assert sum(domain == other for other in DOMAINS) == 1
    assert domain != "a grid"


def test_masked_grid():
    grid = sd.Grid((2, 3))
    masked = grid.masked(MASK)
    x = torch.arange(6.0).reshape(2, 3)
    assert masked.size == 4
    assert masked.flatten(x).tolist() == [0.0, 2.0, 4.0, 5.0]
    assert masked.unflatten(torch.ones(4)).tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    assert torch.isnan(masked.fill(x)).sum() == 2
    assert masked.periodic == (False, False)
    with pytest.raises(ValueError, match="hides every cell"):
        grid.masked(torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match="must be bool"):
        grid.masked(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), got \(3, 2\)"):
        grid.masked(MASK.T)


def test_points():
    points = sd.Points(torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0], [0.0, 1.0], [2.0, 3.0]]))
    assert points.duplicates().tolist() == [[0, 2], [0, 3], [1, 4]]
    assert sd.Points(torch.rand(5, 2)).duplicates().shape == (0, 2)
    given = torch.zeros(3, 2)
    kept = sd.Points(given)
    given += 1
    kept.coordinates().add_(1)
    assert kept.coordinates().abs().max() == 0
    with pytest.raises(ValueError, match="at least one site"):
        sd.Points(torch.zeros(0, 2))
    with pytest.raises(
        ValueError, match="1 of 3 sites have NaN or infinite coordinates, the first at index 1"
    ):
        sd.Points(torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [0.0, 2.0]]))
    with pytest.raises(TypeError, match="real numbers"):
        sd.Points(torch.zeros(3, 2, dtype=torch.complex64))


def test_rectilinear_grid():
    grid = sd.RectilinearGrid([[0.0, 1.0, 4.0], [-1.0, 2.0]])
    assert grid.coordinates()[2, 1].tolist() == [4.0, 2.0]
    with pytest.raises(ValueError, match="axis 1 must be finite and increase strictly"):
        sd.RectilinearGrid([[0.0, 1.0], [2.0, 2.0]])
    with pytest.raises(ValueError, match="1, 2 or 3 axes, got 4"):
        sd.RectilinearGrid([[0.0]] * 4)
    with pytest.raises(ValueError, match="vector of coordinates"):
        sd.RectilinearGrid([torch.zeros(2, 2)])
