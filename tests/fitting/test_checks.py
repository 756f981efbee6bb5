"""Are wrong scales flagged, and right ones not? On grids, masked grids, points and spheres."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting import observe
from spatialdiff.fitting.inference.checks import checks
from spatialdiff.fitting.inference.scales import Scales
from spatialdiff.fitting.result import FitResult, MeanShare
from spatialdiff.kernels import Exponential, Matern, Nugget

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def result_of(kernel, domain, number):
    """A fit that found ``kernel``."""
    nan = math.nan
    return FitResult(
        method="exact",
        reason="given",
        domain=domain,
        channels=None,
        mean=torch.zeros(()),
        parameters={},
        standard_errors={},
        log_likelihood=nan,
        aic=nan,
        bic=nan,
        converged=True,
        message="",
        n_evaluations=0,
        n_fields=number,
        mean_share=MeanShare(nan, nan, nan, nan),
        kernel=kernel,
    )


def kernel():
    return (Matern(nu=1.5, lengthscale=2.5, variance=1.5) + Nugget(0.1)).double().requires_grad_(False)


GRID = sd.Grid((14, 12))
DOMAINS = [
    pytest.param(GRID, id="grid"),
    pytest.param(sd.Grid((14, 12), periodic=True), id="torus"),
    pytest.param(GRID.masked(torch.arange(168).reshape(14, 12) % 5 != 0), id="masked"),
    pytest.param(sd.Points(12.0 * torch.rand(150, 2, generator=generator(1), dtype=F64)), id="points"),
    pytest.param(sd.Sphere((9, 18), radius=6.0), id="sphere"),
    pytest.param(sd.Sphere((9, 18), "gauss_legendre", radius=6.0), id="gauss-sphere"),
]


def draw(domain, number, seed):
    return sd.covariance(kernel(), domain).double().sample((number,), generator=generator(seed))


@pytest.mark.parametrize("mean", [None, "constant"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_right_law_is_inside_and_wrong_ones_are_flagged(domain, mean):
    x = draw(domain, 30, 2) + (0.0 if mean is None else 4.0)
    data = observe(x, domain, mean)
    right = checks(result_of(kernel(), domain, 30), data)
    assert not bool(right.outside.any())
    assert "no scale is flagged" in str(right)
    rough = (Exponential(0.4, 1.6)).double().requires_grad_(False)
    wrong = checks(result_of(rough, domain, 30), data)
    assert wrong.suspicious
    assert "not the model's at every scale" in wrong.complaint()
    kinds = {right.scales[i].kind for i in wrong.flagged[0].nonzero().squeeze(-1).tolist()}
    assert "variogram" in kinds
    if not isinstance(domain, sd.Points):
        assert "spectrum" in kinds


def test_envelopes_hold_what_they_say():
    """200 data sets of 4 fields from the model, 20 % envelopes left on either side."""
    domain = sd.Grid((10, 10), periodic=True)
    result = result_of(kernel(), domain, 4)
    first = checks(result, observe(draw(domain, 4, 0), domain, None))
    low, high = first.envelope(0.6)
    statistics = Scales(domain)
    x = draw(domain, 800, 5).reshape(200, 4, 10, 10)
    means = torch.stack([statistics(rows.unsqueeze(1)).mean(0)[0] for rows in x])
    inside = ((means >= low) & (means <= high)).double().mean(0)
    # 5 standard errors of 200 draws, and the scatter of the 400 that the envelope is from
    assert float((inside - 0.6).abs().max()) < 5.0 * math.sqrt(0.24 / 200) * 1.5


def test_simultaneous_level_over_many_data_sets():
    domain = sd.Grid((8, 8))
    result = result_of(kernel(), domain, 10)
    false = sum(
        bool(checks(result, observe(draw(domain, 10, 100 + s), domain, None), level=0.9).outside.any())
        for s in range(40)
    )
    # expected at most 4 of 40
    assert false <= 4 + 5.0 * math.sqrt(3.6)


def test_one_field_with_a_trend_and_gaps():
    points = sd.Points(20.0 * torch.rand(200, 2, generator=generator(3), dtype=F64))
    x = draw(points, 1, 4)[0] + points.sites() @ torch.tensor([0.5, -0.2], dtype=F64)
    x[::9] = math.nan
    data = observe(x, points, "linear", missing="omit")
    found = checks(result_of(kernel(), points, 1), data)
    assert not found.suspicious
    # the domain mean was taken off with the trend
    assert not bool(found.used[0, 0])
    assert "not compared" in str(found)
    low, high = found.envelope(0.9)
    assert bool((low < high)[found.used].all())


def test_gaps_that_differ_between_fields():
    x = draw(GRID, 20, 6)
    x[torch.rand(x.shape, generator=generator(7)) < 0.2] = math.nan
    data = observe(x, GRID, "constant", missing="omit")
    assert data.observed is not None
    assert not bool(checks(result_of(kernel(), GRID, 20), data).outside.any())
    other = (Matern(1.5, 2.5, 3.0) + Nugget(0.2)).double().requires_grad_(False)
    assert checks(result_of(other, GRID, 20), data).suspicious


def test_channels_are_told_apart():
    x = torch.stack((draw(GRID, 30, 8), 3.0 * draw(GRID, 30, 9)), dim=1)
    data = observe(x, GRID, None)
    found = checks(result_of(kernel(), GRID, 30), data)
    assert not bool(found.flagged[0].any())
    assert bool(found.flagged[1].all())
    assert "channel 1" in found.complaint()


def test_statistics_by_hand():
    grid = sd.Grid((5, 4), spacing=(2.0, 1.0))
    x = torch.randn(2, 1, 5, 4, generator=generator(), dtype=F64)
    statistics = Scales(grid)
    values = statistics(x)
    torch.testing.assert_close(values[..., 0], x.mean((-2, -1)).square())
    lag = [s for s in statistics.scales if s.kind == "variogram"][1]
    assert lag.place == 4.0
    index = statistics.scales.index(lag)
    expected = 0.5 * (x[..., 2:, :] - x[..., :-2, :]).square().mean((-2, -1))
    torch.testing.assert_close(values[..., index], expected)
    ring = [i for i, s in enumerate(statistics.scales) if s.kind == "spectrum"]
    white = statistics(torch.randn(4000, 1, 5, 4, generator=generator(1), dtype=F64)).mean(0)[0]
    assert float((white[ring] - 1.0).abs().max()) < 5.0 * math.sqrt(2.0 / 4000)


def test_refuses():
    data = observe(draw(GRID, 5, 1), GRID, None)
    result = result_of(kernel(), GRID, 5)
    with pytest.raises(ValueError, match="at least 99"):
        checks(result, data, simulations=20)
    with pytest.raises(ValueError, match="between 0 and 1"):
        checks(result, data, level=2.0)
    spectral = sd.fit(None, draw(GRID, 40, 1), GRID, method="spectrum", mean=None)
    with pytest.raises(ValueError, match="fit to these data"):
        checks(spectral, observe(torch.randn(3, 6, 6).double(), sd.Grid((6, 6)), None))


def test_the_exponential_that_invents_a_domain_mean_is_caught():
    """The story of the spectrum method: 68 % of the variance in the domain mean, where the data have 11 %."""
    pytest.importorskip("h5py")
    pytest.importorskip("iris_sample_data")
    fields = sd.data.air_temperature((24, 36))
    x, grid = fields.train[:, 0].double(), fields.grid
    data = observe(x, grid, "field")
    with pytest.warns(sd.fitting.FitWarning):
        family = sd.fit(Exponential(8.0), x, grid, method="whittle", mean="field", starts=1)
    found = checks(family, data)
    assert found.suspicious
    assert bool(found.flagged[0, 0])
    assert found.shares[1] > 3.0 * found.shares[0]
    assert "the domain mean holds" in found.complaint()
    smooth = checks(sd.fit(None, x, grid, method="spectrum", mean="field"), data)
    assert not bool(smooth.flagged[0, 0])
    assert int(smooth.flagged.sum()) < int(found.flagged.sum()) / 4
