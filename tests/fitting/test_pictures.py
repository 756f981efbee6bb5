"""Pictures show what they should: points, envelopes, what is flagged; on every kind of domain."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting import observe
from spatialdiff.fitting.inference.checks import checks
from spatialdiff.fitting.inference.panels import WRONG
from spatialdiff.fitting.inference.pictures import (
    diagnose,
    quantile_picture,
    residual_map,
    spectrum_picture,
    variogram_picture,
)
from spatialdiff.fitting.inference.residuals import decorrelated
from spatialdiff.fitting.inference.validation import cross_validate
from spatialdiff.kernels import Exponential, Matern, Nugget

pytestmark = pytest.mark.filterwarnings(
    "ignore::spatialdiff.covariance.SpatialWarning", "ignore::spatialdiff.fitting.FitWarning"
)
F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kernel():
    return Matern(nu=1.5, lengthscale=2.5, variance=1.5) + Nugget(0.1)


def simulate(domain, number, seed=1):
    return sd.covariance(kernel(), domain).double().sample((number,), generator=generator(seed)).detach()


def fitted(domain, x, mean="constant"):
    return sd.fit(kernel(), x, domain, mean=mean, starts=1, fixed=("lengthscale", "nugget"))


GRID = sd.Grid((10, 9))
DOMAINS = [
    pytest.param(GRID, 4, id="grid"),
    pytest.param(sd.Grid((40,)), 4, id="line"),
    pytest.param(sd.Grid((6, 5, 4)), 4, id="volume"),
    pytest.param(GRID.masked(torch.arange(90).reshape(10, 9) % 4 != 0), 4, id="masked"),
    pytest.param(sd.Points(10.0 * torch.rand(80, 2, generator=generator(2), dtype=F64)), 3, id="points"),
    pytest.param(sd.Sphere((7, 14), radius=5.0), 4, id="sphere"),
]


@pytest.mark.parametrize(("domain", "panels"), DOMAINS)
def test_every_domain_has_its_panels(domain, panels, tmp_path):
    x = simulate(domain, 6)
    result = fitted(domain, x)
    figure = diagnose(result)
    drawn = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert len(drawn) == panels
    titles = " ".join(axis.get_title(loc="left") for axis in drawn)
    for word in ("Variogram", "Q–Q", "Root mean square") + (("Spectrum",) if panels == 4 else ()):
        assert word in titles
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_one_field_shows_its_residuals_and_needs_no_fields_again():
    x = simulate(GRID, 1)[0]
    figure = diagnose(fitted(GRID, x))
    assert any("Residual over" in axis.get_title(loc="left") for axis in figure.axes)


def test_a_fit_without_its_data_asks_for_them():
    x = simulate(GRID, 20)
    result = sd.fit(None, x, GRID, method="spectrum")
    with pytest.raises(ValueError, match="give the fields"):
        diagnose(result)
    assert len(diagnose(result, x, GRID).axes) >= 4


def test_points_are_the_data_and_flags_are_red():
    x = simulate(GRID, 30)
    wrong = (Exponential(0.4, 1.6)).double()
    data = observe(x, GRID, None)
    result = sd.fit(wrong, x, GRID, mean=None, fixed=["lengthscale"], starts=1)
    check = checks(result, data)
    for picture, kind in ((variogram_picture, "variogram"), (spectrum_picture, "spectrum")):
        axis = picture(check).axes[0]
        index = [i for i, s in enumerate(check.scales) if s.kind == kind]
        drawn = torch.cat(
            [
                torch.as_tensor(line.get_ydata(), dtype=F64)
                for line in axis.lines
                if line.get_linestyle() == "None" and len(line.get_ydata())
            ]
        )
        torch.testing.assert_close(drawn.sort().values, check.data[0, index].sort().values)
        red = sum(len(line.get_ydata()) for line in axis.lines if line.get_color() == WRONG)
        assert red == int(check.flagged[0, index].sum()) > 0
        low, high = check.envelope(0.95)
        bands = torch.cat([torch.as_tensor(band.get_paths()[0].vertices[:, 1]) for band in axis.collections])
        assert float(bands.max()) == pytest.approx(float(high[0, index].max()))
        assert float(bands.min()) == pytest.approx(float(low[0, index].min()))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("mean", [None, "linear", "field"])
@pytest.mark.parametrize(("domain", "panels"), DOMAINS)
def test_decorrelated_residuals_are_standard_normal(domain, panels, mean, gaps):
    if gaps and (mean == "field" or isinstance(domain, sd.Sphere)):
        return
    x = simulate(domain, 12, seed=3)
    if mean == "linear":
        x = x + domain.coordinates()[..., 0] * 0.3 + 2.0
    if gaps:
        x[:, ..., 2] = math.nan
        x[torch.rand(x.shape, generator=generator(4)) < 0.1] = math.nan
    data = observe(x, domain, mean, missing="omit")
    result = fitted(domain, torch.where(torch.isfinite(x), x, 0.0), None)
    result.kernel = kernel().double().requires_grad_(False)
    z = decorrelated(result, data)
    m = len(z)
    assert panels > 2
    assert m > 400
    assert abs(float(z.square().mean()) - 1.0) < 5.0 * math.sqrt(2.0 / m) + 5.0 / m
    assert abs(float(z.mean())) < 5.0 / math.sqrt(m)


def test_many_values_are_thinned_and_large_parts_cut():
    grid = sd.Grid((50, 40))
    x = simulate(grid, 150, seed=5)
    result = sd.fit(None, x, grid, method="spectrum", mean=None)
    z = decorrelated(result, observe(x, grid, None))
    assert 150_000 < len(z) <= 200_000
    gaps = x[:2].clone()
    gaps[0, 3, 3] = math.nan
    few = decorrelated(result, observe(gaps, grid, None, missing="omit"))
    assert 1550 < len(few) <= 1600
    assert abs(float(few.square().mean()) - 1.0) < 0.2


def test_quantiles_of_a_normal_sample_lie_in_the_band():
    axis = quantile_picture(torch.randn(5000, generator=generator(6), dtype=F64), 0.999).axes[0]
    points = next(line for line in axis.lines if line.get_linestyle() == "None")
    at = torch.as_tensor(points.get_xdata(), dtype=F64)
    value = torch.as_tensor(points.get_ydata(), dtype=F64)
    # the ends are free, the middle is within a few hundredths
    middle = at.abs() < 1.5
    assert float((value - at)[middle].abs().max()) < 0.1
    assert "5000 values" in axis.get_title(loc="left")


def test_map_and_cross_validation():
    x = simulate(GRID, 40, seed=7)
    x[:, :3] *= 3.0
    result = fitted(GRID, x)
    figure = residual_map(result, observe(x, GRID, "constant"))
    image = torch.as_tensor(figure.axes[0].images[0].get_array().data)
    assert float(image[:3].mean()) > 2.0 * float(image[3:].mean())
    found = cross_validate(result, x, GRID)
    picture = found.plot()
    assert len(picture.axes) == 3
    assert "Coverage" in picture.axes[2].get_title(loc="left")
