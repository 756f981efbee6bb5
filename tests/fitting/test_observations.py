"""Fields in any layout, their linear means, and values that are missing."""

from __future__ import annotations

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting.observations import observe

GRID = sd.Grid((5, 6), spacing=(0.5, 2.0))
G = torch.Generator().manual_seed(0)
POINTS = sd.Points(torch.rand(30, 2, generator=G, dtype=torch.float64) * 1000 + 180_000.0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("domain", [GRID, POINTS], ids=str)
def test_layouts(domain):
    many, channels, one = (normal(*lead, *domain.shape) for lead in ((3,), (3, 2), ()))
    assert observe(many, domain).values.shape == (3, 1, *domain.shape)
    assert observe(channels, domain).values.shape == (3, 2, *domain.shape)
    assert observe(one, domain).values.shape == (1, 1, *domain.shape)
    assert observe(one, domain).n_values == domain.size


def test_linear_mean_is_least_squares_in_natural_units():
    sites = POINTS.sites()
    x = normal(4, 30) + 3.0 + 0.01 * sites[:, 0] - 0.02 * sites[:, 1]
    data = observe(x, POINTS, "linear")
    columns = torch.cat((torch.ones(30, 1), sites - sites.mean(0)), dim=1).double()
    best = torch.linalg.lstsq(columns, x.mean(0).unsqueeze(1)).solution
    torch.testing.assert_close(data.mean, (columns @ best)[:, 0], rtol=1e-9, atol=0.0)
    torch.testing.assert_close(data.values[:, 0], x - data.mean, rtol=0.0, atol=1e-9)
    coefficients = data.natural_coefficients(None)
    assert data.design_names == ("intercept", "x0", "x1")
    torch.testing.assert_close(coefficients[0, 1:], best[1:, 0], rtol=1e-6, atol=1e-9)


def test_covariates_get_an_intercept_unless_they_span_one():
    z = normal(30, 2, seed=1)
    x = normal(2, 30)
    added = observe(x, POINTS, z)
    assert added.design_names == ("intercept", "covariate0", "covariate1")
    groups = torch.stack([(z[:, 0] > 0).double(), (z[:, 0] <= 0).double()], dim=1)
    spanned = observe(x, POINTS, groups)
    assert spanned.design_names == ("covariate0", "covariate1")
    first = x[:, z[:, 0] > 0].mean()
    torch.testing.assert_close(spanned.natural_coefficients(None)[0, 0], first)


def test_function_of_coordinates_equals_covariates():
    x = normal(2, *GRID.shape)
    by_function = observe(x, GRID, lambda s: s[:, :1].square())
    covariates = GRID.coordinates()[..., :1].square()
    torch.testing.assert_close(by_function.values, observe(x, GRID, covariates).values)


def test_known_mean_and_mean_per_site():
    x = normal(3, 2, *GRID.shape)
    known = normal(2, 1, 1, seed=2)
    torch.testing.assert_close(observe(x, GRID, known).values, x - known)
    each = observe(x, GRID, "field")
    torch.testing.assert_close(each.values, x - x.mean(0))
    assert (each.count, each.total) == (2, 3)


def test_the_same_sites_missing_everywhere_make_a_smaller_domain():
    mask = torch.ones(GRID.shape, dtype=torch.bool)
    mask[1, 2:4] = False
    x = normal(3, *GRID.shape)
    gaps = torch.where(mask, x, torch.nan)
    data, masked = observe(gaps, GRID, "linear", "omit"), observe(x, GRID.masked(mask), "linear")
    assert data.observed is None
    assert data.domain == GRID.masked(mask)
    assert data.given == GRID
    torch.testing.assert_close(data.values, masked.values)
    assert bool(torch.isfinite(data.mean).all())
    y = normal(2, 30)
    y[:, 5] = torch.nan
    kept = observe(y, POINTS, "constant", "omit")
    assert kept.domain == sd.Points(torch.cat((POINTS.sites()[:5], POINTS.sites()[6:])))


def test_patterns_that_differ_are_kept_and_do_not_enter_the_mean():
    x = normal(3, 2, 30)
    gaps = x.clone()
    gaps[0, 0, :4], gaps[2, 1, 7] = torch.nan, torch.nan
    data = observe(gaps, POINTS, "constant", "omit")
    assert data.n_values == 3 * 2 * 30 - 5
    torch.testing.assert_close(data.natural_coefficients(None)[:, 0], gaps.nanmean(dim=(0, 2)))
    assert float(data.values[0, 0, :4].abs().max()) == 0.0
    spread = torch.stack([v[~v.isnan()].var(correction=0) for v in gaps.unbind(1)])
    torch.testing.assert_close(data.variance(), spread)


def test_masked_cells_are_ignored():
    mask = torch.rand(GRID.shape, generator=torch.Generator().manual_seed(3)) > 0.3
    x = normal(2, *GRID.shape)
    with_junk = torch.where(mask, x, torch.inf)
    data = observe(with_junk, GRID.masked(mask))
    torch.testing.assert_close(data.natural_coefficients(None)[0, 0], x[:, mask].mean())


GAPS = torch.full((2, 30), 1.0)
GAPS[0, 3] = torch.nan


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fields": GAPS}, "missing='omit'"),
        ({"fields": GAPS, "missing": "skip"}, "raise, omit"),
        ({"fields": torch.where(GAPS.isnan(), torch.inf, GAPS), "missing": "omit"}, "infinite"),
        (
            {"fields": normal(2, 2, 30).index_fill(1, torch.tensor([1]), torch.nan), "missing": "omit"},
            "channel 1",
        ),
        ({"mean": normal(30, 30)}, "30 coefficients|could be"),
        ({"mean": normal(7)}, "does not broadcast"),
        ({"mean": torch.ones(30, 2)}, "linearly dependent"),
        ({"mean": torch.full((30, 1), torch.nan)}, "missing or infinite at 30 of 30"),
        ({"mean": lambda s: s[:3]}, r"\(30, 2\) to \(30, q\)"),
        (
            {"mean": "field", "fields": torch.cat((GAPS, GAPS * normal(2, 30))), "missing": "omit"},
            "number of replicates",
        ),
        ({"fields": normal(30), "mean": "field"}, "at least two"),
    ],
)
def test_bad_input(change, match):
    arguments = {"fields": normal(2, 30), "domain": POINTS, **change}
    with pytest.raises(ValueError, match=match):
        observe(**arguments)
