"""Empirical variograms against double loops, R's gstat, and expectations."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import spatialdiff as sd
from spatialdiff.data import jura, meuse
from spatialdiff.domains import MaskedGrid, Points, RectilinearGrid, Sphere
from spatialdiff.fitting.variograms.empirical import Variogram, directional_variograms, variogram
from spatialdiff.fitting.variograms.maps import variogram_map
from spatialdiff.kernels import Anisotropic, Exponential, Nugget

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "variogram.json").read_text())

JURA_EDGES = torch.cat([torch.zeros(1), 0.003 + torch.arange(1, 16, dtype=torch.float64) / 10]).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def differences(domain: sd.Grid | Points, i: int, j: int) -> list[np.ndarray]:
    """The lag between two sites, to every nearest image on periodic axes."""
    sites = domain.sites().numpy()
    h = sites[j] - sites[i]
    if not any(domain.periodic):
        return [h]
    choices = []
    for x, period, wraps in zip(h, domain.extent, domain.periodic, strict=True):
        near = x - period * round(x / period) if wraps else x
        twins = [near, -near] if wraps and abs(abs(near) - period / 2) < 1e-9 else [near]
        choices.append(twins)
    return [np.array(h) for h in itertools.product(*choices)]


def loop(
    values: np.ndarray,
    domain: sd.Grid | Points,
    edges: np.ndarray,
    estimator: str,
    u: np.ndarray | None,
    tolerance: float,
    bandwidth: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lags, semivariances and counts of one field by a double loop; NaN is missing."""
    found: list[list[tuple[float, float, float]]] = [[] for _ in edges[1:]]
    for i, j in itertools.combinations(range(len(values)), 2):
        images = differences(domain, i, j)
        for h in images:
            distance = float(np.linalg.norm(h))
            if u is not None:
                along = abs(float(h @ u))
                if along < distance * math.cos(math.radians(tolerance)) - 1e-9:
                    continue
                if bandwidth is not None and math.sqrt(max(distance**2 - along**2, 0)) > bandwidth + 1e-9:
                    continue
            for k in range(len(edges) - 1):
                if edges[k] + 1e-9 < distance <= edges[k + 1] + 1e-9 or (k == 0 and distance == edges[0]):
                    y = values[j] - values[i]
                    if not math.isnan(y):
                        found[k].append((distance, y, 1 / len(images)))
    lags, gamma, counts = (np.full(len(found), np.nan) for _ in range(3))
    for k, rows in enumerate(found):
        counts[k] = sum(w for *_, w in rows)
        if not rows:
            continue
        h, y, w = (np.array(column) for column in zip(*rows, strict=True))
        lags[k] = (w * h).sum() / w.sum()
        n = w.sum()
        if estimator == "matheron":
            gamma[k] = 0.5 * (w * y**2).sum() / n
        elif estimator == "cressie":
            gamma[k] = 0.5 * ((w * np.sqrt(abs(y))).sum() / n) ** 4 / (0.457 + 0.494 / n + 0.045 / n**2)
        elif estimator == "dowd":
            gamma[k] = 0.5 * 2.198 * np.median(abs(y)) ** 2
        else:
            apart = np.sort([abs(a - b) for a, b in itertools.combinations(y, 2)])
            half = len(y) // 2 + 1
            gamma[k] = 0.5 * (2.2191 * apart[half * (half - 1) // 2 - 1]) ** 2 if len(y) > 1 else np.nan
    return lags, gamma, counts


def agrees(found: Variogram, expected: tuple[np.ndarray, np.ndarray, np.ndarray], rtol: float = 1e-9) -> None:
    for got, want in zip((found.lags, found.gamma, found.counts), expected, strict=True):
        np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("estimator", ["matheron", "cressie", "dowd", "genton"])
@pytest.mark.parametrize("direction", [None, 30.0])
def test_points_against_a_double_loop(estimator: str, direction: float | None) -> None:
    points = Points(torch.rand(60, 2, generator=generator(1), dtype=torch.float64))
    values = normal(60)
    edges = np.array([0.05, 0.12, 0.3, 0.55])
    u = None if direction is None else np.array([math.cos(math.pi / 6), 0.5])
    bandwidth = None if direction is None else 0.1
    found = variogram(
        values,
        points,
        torch.from_numpy(edges),
        estimator=estimator,
        direction=direction,
        tolerance=35.0,
        bandwidth=bandwidth,
    )
    agrees(found, loop(values.numpy(), points, edges, estimator, u, 35.0, bandwidth))


@pytest.mark.parametrize("estimator", ["matheron", "cressie", "dowd", "genton"])
@pytest.mark.parametrize("periodic", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("masked", [False, True])
def test_grids_against_a_double_loop(estimator: str, periodic: tuple[bool, bool], masked: bool) -> None:
    if estimator == "genton" and (periodic[0] or masked):
        periodic = (False, False)
    grid = sd.Grid((6, 7), (1.0, 0.5), periodic)
    mask = torch.rand(6, 7, generator=generator(2)) > 0.3
    values = normal(6, 7, seed=3)
    edges = np.array([0.0, 0.5, 1.0, 1.6, 2.5])
    u = np.array([math.cos(math.radians(20.0)), math.sin(math.radians(20.0))])
    where = grid.masked(mask) if masked else grid
    found = variogram(
        values, where, torch.from_numpy(edges), estimator=estimator, direction=20.0, tolerance=50.0
    )
    gaps = values.clone()
    if masked:
        gaps[~mask] = torch.nan
    agrees(found, loop(gaps.reshape(-1).numpy(), grid, edges, estimator, u, 50.0))


def test_wraps_around() -> None:
    """On a circle of 8 cells lag 3 has 8 pairs, those of lag 5, and lag 4 has 4."""
    values = normal(8)
    found = variogram(values, sd.Grid(8, 1.0, True), torch.tensor([0.0, 1, 2, 3, 4]))
    assert found.counts.tolist() == [8, 8, 8, 4]
    expected = [0.5 * float((values.roll(-k) - values).square().mean()) for k in (1, 2, 3, 4)]
    assert found.gamma.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_missing_values_and_cross_variograms_on_grids_and_points(masked: bool) -> None:
    grid = sd.Grid((9, 8), (1.0, 0.7))
    mask = torch.rand(9, 8, generator=generator(4)) > 0.2 if masked else torch.ones(9, 8, dtype=torch.bool)
    values = normal(3, 2, 9, 8, seed=5)
    values[torch.rand(values.shape, generator=generator(6)) > 0.75] = torch.nan
    where = grid.masked(mask) if masked else grid
    options = {"max_distance": 4.0, "cross": True, "missing": "omit"}
    found = variogram(values, where, 6, **options)
    sites = Points(grid.sites()[mask.reshape(-1)])
    other = variogram(values[..., mask], sites, 6, **options)
    assert found.gamma.shape == (6, 2, 2)
    assert found.by_field.shape == (3, 6, 2, 2)
    for a, b in ((found.gamma, other.gamma), (found.lags, other.lags), (found.counts, other.counts)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(found.by_field, other.by_field, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert (found.counts > 0).sum() >= 20
    # the cross-variogram itself, written out
    x, at, edges = values[..., mask], sites.sites(), found.edges
    sums, number = 0.0, 0
    for i, j in itertools.combinations(range(len(at)), 2):
        if edges[1] < (at[i] - at[j]).norm() <= edges[2]:
            product = (x[:, 0, i] - x[:, 0, j]) * (x[:, 1, i] - x[:, 1, j])
            known = ~product.isnan()
            sums, number = sums + float(product[known].sum()), number + int(known.sum())
    assert float(found.gamma[1, 0, 1]) == pytest.approx(0.5 * sums / number, rel=1e-10)
    assert torch.equal(found.gamma[1:], found.gamma[1:].mT)


def test_the_tree_finds_the_pairs_that_blocks_find() -> None:
    """Above a thousand sites near pairs come from a k-d tree, far ones from blocks; duplicates included."""
    sites = torch.rand(1500, 2, generator=generator(7), dtype=torch.float64)
    sites[700:710] = sites[:10]
    values = normal(1500)
    points = Points(sites)
    near = variogram(values, points, torch.tensor([0.0, 0.02, 0.05], dtype=torch.float64))
    far = variogram(values, points, torch.tensor([0.0, 0.02, 0.05, 1.0], dtype=torch.float64))
    distance = torch.cdist(sites, sites, compute_mode="donot_use_mm_for_euclid_dist").triu(1)
    squares = (values[:, None] - values).square()
    upper = torch.ones_like(squares).triu(1).bool()
    for k, (low, high) in enumerate([(-1.0, 0.02), (0.02, 0.05), (0.05, 1.0)]):
        use = upper & (distance > low) & (distance <= high)
        for v in (near, far) if k < 2 else (far,):
            assert int(v.counts[k]) == int(use.sum())
            assert float(v.gamma[k]) == pytest.approx(0.5 * float(squares[use].mean()), rel=1e-10)


def test_a_hundred_thousand_sites() -> None:
    sites = torch.rand(100_000, 2, generator=generator(8), dtype=torch.float64)
    found = variogram(normal(100_000), Points(sites), 4, max_distance=0.008)
    # white noise: γ = 1; pairs share sites, which the factor 10 is for
    assert ((found.gamma - 1.0).abs() < 10 * (2.0 / found.counts).sqrt()).all()
    assert float(found.counts.sum()) == pytest.approx(1e10 / 2 * math.pi * 0.008**2, rel=0.02)


def test_great_circles() -> None:
    sphere = Sphere((9, 16), radius=2.0)
    values = normal(9, 16)
    values[0], values[-1] = values[0, 0], values[-1, 0]
    found = variogram(values, sphere, 5)
    assert float(found.edges[-1]) == pytest.approx(2.0 * math.pi / 3)
    # each pole once
    kept = torch.cat([torch.arange(1), torch.arange(16, 7 * 16 + 16), torch.tensor([143])])
    sites, z = sphere.sites()[kept], sphere.flatten(values)[kept]
    distance = 2.0 * torch.acos((sites @ sites.mT / 4.0).clamp(-1, 1))
    upper = torch.ones_like(distance).triu(1).bool()
    for k in range(5):
        use = upper & (distance > found.edges[k] + 1e-7) & (distance <= found.edges[k + 1] + 1e-7)
        assert int(found.counts[k]) == int(use.sum())
        assert float(found.gamma[k]) == pytest.approx(0.5 * float((z[:, None] - z).square()[use].mean()))
    same = variogram(z, Points(sites), 5, metric="great_circle")
    torch.testing.assert_close(found.gamma, same.gamma)


def test_other_domains_and_layouts() -> None:
    axes = RectilinearGrid([torch.tensor([0.0, 1.0, 2.5]), torch.tensor([0.0, 0.5, 2.0, 3.0])])
    x = normal(4, 2, 3, 4)
    found = variogram(x, axes, 3)
    same = variogram(x.flatten(2), Points(axes.sites()), 3)
    torch.testing.assert_close(found.gamma, same.gamma, equal_nan=True)
    assert found.gamma.shape == (3, 2)
    one = variogram(x[:, 0], axes, 3)
    torch.testing.assert_close(one.gamma, found.gamma[:, 0], equal_nan=True)
    torch.testing.assert_close(one.standard_errors, one.by_field.std(0) / 2.0, equal_nan=True)
    assert variogram(x[0, 0], axes, 3).standard_errors.isnan().all()


def test_map_is_symmetric_and_holds_every_lag() -> None:
    grid = sd.Grid((5, 6), (1.0, 2.0))
    x = normal(2, 5, 6)
    found = variogram_map(x, grid, max_distance=20.0)
    assert found.gamma.shape == (9, 11)
    assert torch.equal(found.lags[1], 2.0 * torch.arange(-5, 6, dtype=torch.float64))
    torch.testing.assert_close(found.gamma, found.gamma.flip(0, 1))
    y = x[:, 1:, :-2] - x[:, :-1, 2:]
    assert float(found.gamma[5, 3]) == pytest.approx(0.5 * float(y.square().mean()), rel=1e-12)
    assert int(found.counts[5, 3]) == y.numel()
    assert variogram_map(x[:, None], grid).gamma.shape == (1, 5, 7)


def test_expectation_is_the_variogram() -> None:
    """Means over 400 fields within 4.5 standard errors of γ at every lag, with gaps and without."""
    grid = sd.Grid((12, 10), 1.0)
    kernel = Exponential(2.0, variance=1.5) + Nugget(0.2)
    x = sd.covariance(kernel, grid).sample(400, generator=generator(9)).double()
    x[:, 3:5, 2:7] = torch.nan
    found = variogram(x, grid, torch.arange(0.5, 5.0), missing="omit")
    table = found.table
    assert table is not None
    h = table.lags.norm(dim=1)
    expected = table.average(1.5 * (1 - torch.exp(-h / 2.0)) + 0.2, 4)[0]
    assert ((found.gamma - expected).abs() < 4.5 * found.standard_errors).all()
    # a wrong nugget is seen
    assert ((found.gamma - expected - 0.05).abs() > 4.5 * found.standard_errors).any()


def test_robust_estimators_are_consistent_and_robust() -> None:
    sites = Points(200.0 * torch.rand(400, 2, generator=generator(10), dtype=torch.float64))
    x = normal(20, 400, seed=11)
    spoilt = x.clone()
    spoilt[:, ::100] += 30.0
    for estimator in ("matheron", "cressie", "dowd", "genton"):
        clean, dirty = (
            variogram(z, sites, torch.tensor([0.0, 8.0]), estimator=estimator) for z in (x, spoilt)
        )
        assert float((clean.gamma - 1.0).abs()) < max(5 * float(clean.standard_errors), 0.03), estimator
        bias = float(dirty.gamma - clean.gamma)
        assert bias > 5.0 if estimator == "matheron" else bias < 0.6, estimator


def test_residuals_of_a_trend() -> None:
    """Agreement with gstat's residual variogram, ordinary least squares."""
    table = meuse()
    for name, mean in (("linear", "linear"), ("root_distance", table["dist"].sqrt()[:, None])):
        found = variogram(table["zinc"].log(), table.domain, mean=mean)
        assert_gstat(found, ORACLE["meuse"][name])


def assert_gstat(
    found: Variogram, expected: dict[str, list[float]], factor: float | np.ndarray = 1.0
) -> None:
    use = found.counts > 0
    assert found.counts[use].tolist() == expected["np"]
    np.testing.assert_allclose(found.lags[use].numpy(), expected["dist"], rtol=1e-10)
    np.testing.assert_allclose(found.gamma[use].numpy(), np.array(expected["gamma"]) * factor, rtol=1e-9)


def test_meuse_as_gstat_has_it() -> None:
    table = meuse()
    z = table["zinc"].log()
    assert_gstat(variogram(z, table.domain), ORACLE["meuse"]["default"])
    edges = torch.linspace(0, 1000, 21, dtype=torch.float64)
    assert_gstat(variogram(z, table.domain, edges), ORACLE["meuse"]["narrow"])
    # gstat leaves out the term 0.045/N² of Cressie & Hawkins
    n = np.array(ORACLE["meuse"]["cressie"]["np"], dtype=float)
    factor = (0.457 + 0.494 / n) / (0.457 + 0.494 / n + 0.045 / n**2)
    assert_gstat(variogram(z, table.domain, estimator="cressie"), ORACLE["meuse"]["cressie"], factor)


def test_directions_as_gstat_has_them() -> None:
    table = meuse()
    # gstat's angles are clockwise from the second axis
    for azimuth, expected in ORACLE["meuse"]["directions"].items():
        found = variogram(table["zinc"].log(), table.domain, direction=90.0 - float(azimuth))
        assert_gstat(found, expected)
    cobalt, edges = jura("prediction"), JURA_EDGES
    angles = [90.0 - float(azimuth) for azimuth in ORACLE["jura"]["directions"]]
    found_all = directional_variograms(cobalt["Co"], cobalt.domain, angles, edges)
    for found, expected in zip(found_all, ORACLE["jura"]["directions"].values(), strict=True):
        assert_gstat(found, expected)


def test_cross_variograms_as_gstat_has_them() -> None:
    table, metals = meuse(), ["cadmium", "copper", "lead", "zinc"]
    found = variogram(table.columns(*metals).log().T[None], table.domain, cross=True)
    check_cross(found, metals, ORACLE["meuse"]["cross"])
    table2, metals = jura("prediction"), ["Cd", "Ni", "Zn"]
    edges = JURA_EDGES
    found = variogram(table2.columns(*metals).T[None], table2.domain, edges, cross=True)
    check_cross(found, metals, ORACLE["jura"]["cross"])


def check_cross(found: Variogram, names: list[str], expected: dict[str, dict[str, list[float]]]) -> None:
    for (a, first), (b, second) in itertools.combinations_with_replacement(enumerate(names), 2):
        key = first if a == b else f"{first}.{second}"
        np.testing.assert_allclose(found.gamma[:, a, b].numpy(), expected[key]["gamma"], rtol=1e-8)
        # gstat counts the pairs of two variables both ways
        assert ((1 + (a != b)) * found.counts[:, a, b]).tolist() == expected[key]["np"]


def test_jura_cobalt_as_gstat_has_it() -> None:
    table, edges = jura("prediction"), JURA_EDGES
    assert_gstat(variogram(table["Co"], table.domain, edges), ORACLE["jura"]["cobalt"])


def test_anisotropy_shows() -> None:
    grid = sd.Grid((40, 40), 1.0)
    kernel = Anisotropic(Exponential(5.0), angles=math.pi / 4, ratios=0.3)
    x = sd.covariance(kernel, grid).sample(20, generator=generator(12)).double()
    along, across = (variogram(x, grid, 8, direction=a, max_distance=8.0) for a in (45.0, 135.0))
    assert (across.gamma[1:] > 1.15 * along.gamma[1:]).all()


def test_bad_input() -> None:
    grid, x = sd.Grid((5, 5)), normal(2, 2, 5, 5)
    points = Points(torch.rand(10, 3, generator=generator(13), dtype=torch.float64))
    for match, options in [
        ("estimator must be one of", {"estimator": "median"}),
        ("products of increments", {"estimator": "dowd", "cross": True}),
        ("increasing", {"bins": [0.0, 2.0, 1.0]}),
        ("at least 1", {"bins": 0}),
        ("at least 0", {"bins": [-1.0, 1.0]}),
        ("not both", {"bins": [0.0, 1.0], "max_distance": 1.0}),
        ("max_distance must be positive", {"max_distance": -1.0}),
        ("tolerance must be", {"direction": 0.0, "tolerance": 0.0}),
        ("give direction=", {"bandwidth": 1.0}),
        ("vector of 2 numbers", {"direction": (1.0, 0.0, 0.0)}),
        ("metric must be", {"metric": "manhattan"}),
        ("needs sites in R³", {"metric": "great_circle"}),
        ("no pair of sites", {"bins": [0.1, 0.2]}),
        ("missing must be", {"missing": "drop"}),
    ]:
        with pytest.raises(ValueError, match=match):
            variogram(x, grid, **options)
    with pytest.raises(ValueError, match="angle in a plane"):
        variogram(normal(10), points, direction=30.0)
    with pytest.raises(ValueError, match="on one sphere"):
        variogram(normal(10), points, metric="great_circle")
    with pytest.raises(ValueError, match="on a sphere variograms are of all"):
        variogram(
            normal(10),
            Points(points.sites() / points.sites().norm(dim=1, keepdim=True)),
            metric="great_circle",
            direction=(1.0, 0.0, 0.0),
        )
    with pytest.raises(ValueError, match="missing"):
        variogram(torch.full((5, 5), torch.nan), grid)
    with pytest.raises(ValueError, match="constant"):
        variogram(torch.ones(5, 5), grid)
    with pytest.raises(ValueError, match="coincide"):
        variogram(normal(4), Points(torch.zeros(4, 2)))
    with pytest.raises(ValueError, match="all at once"):
        variogram(normal(300, 300), sd.Grid((300, 300)), estimator="dowd")
    with pytest.raises(TypeError, match="needs a Grid"):
        variogram_map(normal(10), points)  # type: ignore[arg-type]


def test_masked_domain_is_kept() -> None:
    grid = sd.Grid((5, 5))
    x = normal(5, 5)
    x[2, 2] = torch.nan
    assert isinstance(variogram(x, grid, missing="omit").domain, MaskedGrid)
