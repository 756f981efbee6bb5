"""Latitude-longitude grids: coordinates, quadrature to the stated degree, poles."""

from __future__ import annotations

import math

import pytest
import torch

from spatialdiff.domains.sphere import Sphere

SPHERES = [
    Sphere((7, 8)),
    Sphere((8, 9)),
    Sphere((2, 3)),
    Sphere((8, 5), poles=False),
    Sphere((9, 4), poles=False, radius=3.0),
    Sphere((1, 3), poles=False),
    Sphere((6, 11), "gauss_legendre"),
    Sphere((7, 11), "gauss_legendre", radius=6371.0),
]


@pytest.mark.parametrize("sphere", SPHERES, ids=repr)
def test_quadrature(sphere):
    """Powers of the sine of latitude, up to the degree that the rule states, and the area."""
    rows = sphere.shape[0]
    degree = 2 * rows - 1 if sphere.grid == "gauss_legendre" else rows - 1
    area = 4 * math.pi * sphere.radius**2
    weights, sine = sphere.weights, sphere.latitudes.sin()[:, None]
    assert weights.shape == sphere.shape
    assert (weights > 0).all()
    for power in range(degree + 1):
        exact = 0.0 if power % 2 else area / (power + 1)
        assert (weights * sine**power).sum().item() == pytest.approx(exact, abs=1e-13 * area)


@pytest.mark.parametrize("sphere", SPHERES, ids=repr)
def test_coordinates(sphere):
    x = sphere.coordinates()
    assert x.shape == (*sphere.shape, 3)
    assert sphere.dimension == 3
    assert sphere.periodic == (False, False)
    assert len(torch.unique(x.reshape(-1, 3), dim=0)) == sphere.size
    torch.testing.assert_close(
        x.norm(dim=-1), torch.full(sphere.shape, sphere.radius).double(), rtol=1e-14, atol=0
    )
    latitudes = torch.asin((x[..., 2] / sphere.radius).clamp(-1, 1))
    torch.testing.assert_close(latitudes[:, 0], sphere.latitudes, rtol=0, atol=1e-7)
    assert (sphere.latitudes.diff() > 0).all()
    assert torch.equal(sphere.latitudes, -sphere.latitudes.flip(0))
    if sphere.poles:
        assert torch.equal(x[0], torch.tensor([0.0, 0.0, -sphere.radius]).double().expand(sphere.shape[1], 3))
    else:
        longitudes = torch.atan2(x[0, :, 1], x[0, :, 0]) % (2 * math.pi)
        torch.testing.assert_close(longitudes, sphere.longitudes, rtol=0, atol=1e-12)


def test_half_degree_grid():
    sphere = Sphere((361, 720))
    assert sphere.latitudes[[0, 1, 180, -1]].rad2deg().tolist() == pytest.approx([-90, -89.5, 0, 90])
    assert sphere.longitudes[[0, 1, -1]].rad2deg().tolist() == pytest.approx([0, 0.5, 359.5])
    assert sphere.size == 359 * 720 + 2
    assert Sphere((360, 720), poles=False).latitudes[0].rad2deg().item() == pytest.approx(-89.75)


def test_equality():
    assert Sphere((5, 6)) == Sphere([5, 6])
    assert hash(Sphere((5, 6))) == hash(Sphere((5, 6), poles=True))
    assert Sphere((5, 6)) != Sphere((5, 6), poles=False)
    assert Sphere((5, 6)) != Sphere((5, 6), radius=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((5,),), "latitudes, longitudes"),
        (((5, 0),), "whole numbers"),
        (((5, 2.5),), "whole numbers"),
        (((1, 6),), "poles=False"),
        (((5, 6), "healpix"), "gauss_legendre"),
        (((5, 6), "equiangular", 0.0), "radius"),
        (((5, 6), "equiangular", math.inf), "radius"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sphere(*arguments)
