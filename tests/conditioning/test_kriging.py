"""Kriging against gstat, against linear algebra written out, and on gauges that were held out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import spatialdiff as sd
from spatialdiff.conditioning import Kriging, KrigingWarning
from spatialdiff.kernels import Coregionalization, Exponential, Matern, Nugget, Spherical, at_pairs

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "kriging.json").read_text())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


MEUSE = sd.data.meuse()
SITES = MEUSE.map_coordinates
CELLS = torch.stack([tensor(ORACLE["cells"]["x"]), tensor(ORACLE["cells"]["y"])], dim=1)
DIST = tensor(ORACLE["cells"]["dist"])
ZINC = MEUSE["zinc"].log()
MODEL = Exponential(300.0, variance=0.55) + Nugget(0.05)


def agrees(prediction, name):
    mean, variance = prediction
    torch.testing.assert_close(mean, tensor(ORACLE[name]["mean"]), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(variance, tensor(ORACLE[name]["variance"]), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "drift"),
    [("simple", 5.9), ("ordinary", "constant"), ("universal", "linear"), ("quadratic", "quadratic")],
)
def test_gstat(name, drift):
    agrees(Kriging(MODEL, SITES, ZINC, drift).predict(CELLS), name)


def test_gstat_external_drift():
    kernel = Spherical(900.0, variance=0.2) + Nugget(0.05)
    k = Kriging(kernel, SITES, ZINC, MEUSE["dist"].sqrt())
    agrees(k.predict(CELLS, drift=DIST.sqrt()), "external")
    with pytest.raises(ValueError, match=r"predict\(targets, drift="):
        k.predict(CELLS)


def test_gstat_blocks():
    agrees(Kriging(Exponential(300.0, variance=0.55), SITES, ZINC).predict(CELLS, block=40.0), "block")
    agrees(Kriging(MODEL, SITES, ZINC).predict(CELLS, block=(100.0, 60.0)), "block_nugget")


def test_gstat_measurement_error():
    agrees(Kriging(Exponential(300.0, variance=0.55), SITES, ZINC, noise=0.05).predict(CELLS), "error")


def test_gstat_neighbourhoods():
    agrees(Kriging(MODEL, SITES, ZINC, method="local", neighbors=20).predict(CELLS), "local")


def coregionalised(family, nugget, sill, lengthscale):
    return Coregionalization([(sill, family(lengthscale)), (nugget, Nugget(1.0))])


def test_gstat_cokriging_of_channels_observed_at_different_sites():
    kernel = coregionalised(Spherical, [[0.4, 0.15], [0.15, 0.1]], [[0.9, 0.6], [0.6, 0.6]], 800.0)
    values = torch.stack([MEUSE["cadmium"].log(), ZINC])
    values[1, 1::2] = torch.nan
    mean, variance = Kriging(kernel, SITES, values, missing="omit").predict(CELLS)
    agrees((mean[0], variance[0]), "co_cd")
    agrees((mean[1], variance[1]), "co_zn")


def test_gstat_jura():
    seen, held = sd.data.jura("prediction"), sd.data.jura("validation")
    k = Kriging(Spherical(1.2, variance=11.0) + Nugget(1.5), seen.points, seen["Co"])
    agrees(k.predict(held.points), "jura_co")
    kernel = coregionalised(Exponential, [[0.3, 0.6], [0.6, 12.0]], [[0.5, 3.0], [3.0, 60.0]], 0.4)
    sites = torch.cat((seen.points.sites(), held.points.sites()))
    cadmium = torch.cat((seen["Cd"], torch.full_like(held["Cd"], torch.nan)))
    values = torch.stack([cadmium, torch.cat((seen["Ni"], held["Ni"]))])
    mean, variance = Kriging(kernel, sites, values, missing="omit").predict(held.points)
    agrees((mean[0], variance[0]), "jura_cokriging")


def test_gstat_sic97():
    seen, held = sd.data.sic97("prediction"), sd.data.sic97("validation")
    k = Kriging(Spherical(85.0, variance=15_000.0), seen.points, seen["rainfall"], noise=500.0)
    agrees(k.predict(held.points), "sic97")


# ---- against equations written out
G = torch.Generator().manual_seed(0)
POINTS = torch.rand(30, 2, generator=G, dtype=torch.float64)
VALUES = torch.randn(30, generator=G, dtype=torch.float64)
TARGETS = torch.rand(8, 2, generator=G, dtype=torch.float64)
KERNEL = Matern(nu=1.5, lengthscale=0.3, variance=1.4)


def gamma(kernel, a, b):
    return at_pairs(kernel, a[:, None], b[None]).detach()


def test_universal_kriging_by_the_bordered_system():
    noise = torch.linspace(0.1, 0.4, 30, dtype=torch.float64)
    f = torch.cat((torch.ones(30, 1).double(), POINTS), dim=1)
    g = torch.cat((torch.ones(8, 1).double(), TARGETS), dim=1)
    system = torch.zeros(33, 33, dtype=torch.float64)
    system[:30, :30] = gamma(KERNEL, POINTS, POINTS) + torch.diag(noise)
    system[:30, 30:], system[30:, :30] = f, f.T
    right = torch.cat((gamma(KERNEL, POINTS, TARGETS), g.T))
    weights = torch.linalg.solve(system, right)
    mean, variance = Kriging(KERNEL, POINTS, VALUES, "linear", noise).predict(TARGETS)
    torch.testing.assert_close(mean, weights[:30].T @ VALUES, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(variance, 1.4 - (weights * right).sum(0), rtol=1e-9, atol=1e-10)


def test_data_are_honoured_exactly_without_noise():
    for kernel in (KERNEL, KERNEL + Nugget(0.3)):
        mean, variance = Kriging(kernel, POINTS, VALUES).predict(POINTS)
        torch.testing.assert_close(mean, VALUES, rtol=0.0, atol=1e-10)
        assert float(variance.abs().max()) == 0.0
    noisy = Kriging(KERNEL, POINTS, VALUES, noise=0.2).predict(POINTS)
    assert float((noisy.mean - VALUES).abs().max()) > 0.1
    assert float(noisy.variance.min()) > 0.01


def test_domains_batches_and_masked_cells():
    grid = sd.Grid((6, 5), spacing=0.2)
    mask = torch.ones(grid.shape, dtype=torch.bool)
    mask[0, 0] = mask[3] = False
    many = torch.stack((VALUES, VALUES.square()))
    mean, variance = Kriging(KERNEL, sd.Points(POINTS), many).predict(grid.masked(mask))
    assert mean.shape == (2, 6, 5)
    assert variance.shape == (6, 5)
    assert torch.equal(mean.isnan(), ~mask.expand(2, 6, 5))
    each = Kriging(KERNEL, POINTS, VALUES.square()).predict(grid.coordinates()[mask])
    torch.testing.assert_close(mean[1][mask], each.mean)
    # the other way: a masked grid as the observations
    observed = torch.randn(grid.shape, generator=G, dtype=torch.float64)
    k = Kriging(KERNEL, grid.masked(mask), observed, drift=0.3)
    plain = Kriging(KERNEL, grid.coordinates()[mask], observed[mask], drift=0.3)
    torch.testing.assert_close(k.predict(TARGETS).mean, plain.predict(TARGETS).mean)


def test_channels_that_are_independent_do_not_see_each_other():
    kernel = Coregionalization([([[1.0, 0.0], [0.0, 2.0]], KERNEL)])
    both = Kriging(kernel, POINTS, torch.stack((VALUES, VALUES.sin()))).predict(TARGETS)
    alone = Kriging(KERNEL, POINTS, VALUES.sin()).predict(TARGETS)
    torch.testing.assert_close(both.mean[1], alone.mean)
    torch.testing.assert_close(both.variance[1], 2.0 * alone.variance)


def test_local_and_vecchia_with_all_observations_are_the_whole():
    whole = Kriging(KERNEL + Nugget(0.1), POINTS, VALUES, "linear").predict(TARGETS)
    for method in ("local", "vecchia"):
        near = Kriging(KERNEL + Nugget(0.1), POINTS, VALUES, "linear", method=method, neighbors=37)
        mean, variance = near.predict(TARGETS)
        torch.testing.assert_close(mean, whole.mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(variance, whole.variance, rtol=1e-8, atol=1e-8)


def test_a_fit_says_how_to_krige():
    fit = sd.fit(KERNEL + Nugget(0.1), ZINC, sd.Points(SITES / 1000.0), starts=2)
    by_fit = Kriging(fit, SITES / 1000.0, ZINC).predict(CELLS / 1000.0)
    by_kernel = Kriging(fit.kernel, SITES / 1000.0, ZINC).predict(CELLS / 1000.0)
    torch.testing.assert_close(by_fit.mean, by_kernel.mean)


# ---- calibration
def test_unbiased_and_calibrated_on_simulated_fields():
    field = sd.covariance(KERNEL, sd.Points(torch.cat((POINTS, TARGETS)))).double()
    draws = field.sample((4000,), generator=torch.Generator().manual_seed(1)).detach() + 2.0
    mean, variance = Kriging(KERNEL, POINTS, draws[:, :30]).predict(TARGETS)
    scores = (draws[:, 30:] - mean) / variance.sqrt()
    # standard normal: means within 5 standard errors, variances too
    assert float(scores.mean(0).abs().max()) < 5.0 / math.sqrt(4000)
    assert float((scores.square().mean(0) - 1.0).abs().max()) < 5.0 * math.sqrt(2.0 / 4000)


def test_held_out_gauges_of_sic97_are_calibrated():
    seen, held = sd.data.sic97("prediction"), sd.data.sic97("validation")
    # a fit to the 100 gauges alone
    fit = sd.fit(Exponential(50.0), seen["rainfall"].sqrt(), seen.points)
    mean, variance = Kriging(fit, seen.points, seen["rainfall"].sqrt()).predict(held.points)
    truth = held["rainfall"].sqrt()
    scores = (truth - mean) / variance.sqrt()
    assert abs(float(scores.mean())) < 0.25
    assert 0.7 < float(scores.square().mean()) < 1.4
    inside = float((scores.abs() < 1.96).double().mean())
    assert 0.90 < inside < 0.99
    error = float((truth - mean).square().mean().sqrt())
    assert error < 0.55 * float(truth.std())


# ---- bad input
REPEATED = torch.cat((POINTS, POINTS[:1]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"values": torch.where(VALUES > 1.5, torch.nan, VALUES)}, "missing='omit'"),
        ({"values": VALUES[:5]}, "need shape"),
        ({"points": REPEATED, "values": torch.cat((VALUES, VALUES[:1]))}, "sites 0 and 30.*noise="),
        ({"drift": "cubic"}, "quadratic"),
        ({"drift": torch.ones(30, 2)}, "linearly dependent"),
        ({"points": POINTS[:4], "values": VALUES[:4], "drift": "quadratic"}, "6 functions and there are 4"),
        ({"noise": -1.0}, "negative"),
        ({"noise": torch.ones(7)}, "one per observation"),
        ({"method": "exact"}, "dense, local, vecchia"),
        ({"neighbors": 5}, "name the method"),
        ({"kernel": sd.kernels.Gaussian(50.0)}, "singular"),
        ({"missing": "skip"}, "omit"),
    ],
)
def test_bad_input(change, match):
    arguments = {"kernel": KERNEL, "points": POINTS, "values": VALUES, **change}
    with pytest.raises(ValueError, match=match):
        Kriging(**arguments)


def test_repeated_sites_with_a_nugget_or_noise_are_fine():
    values = torch.cat((VALUES, VALUES[:1] + 0.5))
    for kernel, noise in ((KERNEL, 0.1), (KERNEL + Nugget(0.1), 0.0)):
        mean, _ = Kriging(kernel, REPEATED, values, noise=noise).predict(TARGETS)
        assert bool(torch.isfinite(mean).all())


def test_warnings():
    with pytest.warns(KrigingWarning, match="outside the box.*farthest"):
        Kriging(KERNEL, POINTS, VALUES).predict(POINTS + torch.tensor([2.0, 0.0]))
    degrees = torch.stack([POINTS[:, 0] * 5 - 10.0, 51.0 + 4 * POINTS[:, 1]], dim=1)
    with pytest.warns(KrigingWarning, match="degrees"):
        Kriging(KERNEL, degrees, VALUES)
    with pytest.raises(ValueError, match="3 coordinates"):
        Kriging(KERNEL, POINTS, VALUES).predict(torch.zeros(2, 3))
