"""Orders and nearest previous neighbours against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spatialdiff.covariance.points.neighbours import previous_neighbours
from spatialdiff.covariance.points.ordering import order_sites


def cloud(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lattice(n: int) -> Tensor:
    axis = torch.arange(n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def naive_maximin(sites: Tensor) -> list[int]:
    """From the definition, ``O(n²)``."""
    x = sites.numpy()
    order = [int(np.argmin(((x - x.mean(0)) ** 2).sum(1)))]
    nearest = ((x - x[order[0]]) ** 2).sum(1)
    while len(order) < len(x):
        candidates = nearest.copy()
        candidates[order] = -1.0
        order.append(int(np.argmax(candidates)))
        nearest = np.minimum(nearest, ((x - x[order[-1]]) ** 2).sum(1))
    return order


@pytest.mark.parametrize(
    "sites", [cloud(1500, 2), cloud(700, 1), cloud(900, 3), lattice(25), cloud(5, 2), cloud(1, 2)]
)
def test_maximin_is_the_definition(sites):
    assert order_sites("maximin", sites).tolist() == naive_maximin(sites)


def test_maximin_puts_repeated_sites_last():
    sites = torch.cat([cloud(400, 2), cloud(3, 2)])
    order = order_sites("maximin", sites).tolist()
    assert sorted(order) == list(range(403))
    assert sorted(v % 400 for v in order[-3:]) == [0, 1, 2]


def test_coordinate_order_follows_the_longest_axis():
    sites = cloud(200, 3) * torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    order = order_sites("coordinate", sites)
    assert (sites[order, 1].diff() > 0).all()
    grid = lattice(4) * torch.tensor([1.0, 2.0], dtype=torch.float64)
    moved = grid[order_sites("coordinate", grid)]
    assert moved[:5].tolist() == [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 2.0]]


def test_random_order_is_fixed():
    order = order_sites("random", cloud(100, 2))
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, order_sites("random", cloud(100, 2, seed=1)))
    assert order.tolist() != list(range(100))


def test_given_order():
    given = torch.tensor([2, 0, 1], dtype=torch.int32)
    order = order_sites(given, cloud(3, 2))
    assert order.dtype == torch.int64
    assert order.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("hilbert", "must be one of 'maximin'"),
        (torch.tensor([0, 1, 1]), "1 sites are missing and 1 appear more than once"),
        (torch.tensor([0, 1, 3]), "1 sites are missing and 0"),
        (torch.tensor([0, 1, -1]), "not a permutation"),
        (torch.tensor([0, 1]), r"shape \(3,\), got \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "integers"),
    ],
)
def test_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        order_sites(given, cloud(3, 2))


@pytest.mark.parametrize("order", ["maximin", "coordinate", "random"])
@pytest.mark.parametrize(("n", "d", "m"), [(900, 2, 9), (700, 3, 25), (500, 1, 4), (40, 2, 39), (30, 2, 100)])
def test_nearest_previous(order, n, d, m):
    sites = cloud(n, d)
    sites = sites[order_sites(order, sites)]
    found = previous_neighbours(sites, m)
    m = min(m, n - 1)
    assert found.shape == (n, m)
    distance = torch.cdist(sites, sites, compute_mode="donot_use_mm_for_euclid_dist")
    for i in range(n):
        expected = distance[i, :i].argsort()[:m].tolist()
        assert found[i].tolist() == expected + [-1] * (m - len(expected))


def test_nearest_previous_on_a_lattice():
    """Ties: any choice, but the distances are the smallest there are."""
    sites = lattice(20)
    sites = sites[order_sites("maximin", sites)]
    found = previous_neighbours(sites, 12)
    distance = torch.cdist(sites, sites, compute_mode="donot_use_mm_for_euclid_dist")
    for i in range(1, len(sites)):
        chosen = found[i][found[i] >= 0].long()
        assert len(set(chosen.tolist())) == min(i, 12)
        assert (chosen < i).all()
        torch.testing.assert_close(distance[i, chosen], distance[i, :i].sort().values[: len(chosen)])


def test_one_site():
    assert previous_neighbours(cloud(1, 2), 5).shape == (1, 0)
