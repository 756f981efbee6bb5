"""Rankings of kernels: the numbers of the table, the right winner, and what may not be compared."""

from __future__ import annotations

import math
import warnings

import matplotlib
import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import DenseCovariance
from spatialdiff.fitting import FitWarning
from spatialdiff.fitting.inference.comparison import compare, compare_fits, label_of
from spatialdiff.fitting.inference.comparison_picture import model_semivariance
from spatialdiff.kernels import (
    Anisotropic,
    Coregionalization,
    Exponential,
    Gaussian,
    Matern,
    Nonstationary,
    Nugget,
    Separable,
)

matplotlib.use("Agg")
F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


POINTS = sd.Points(torch.rand(50, 2, dtype=F64, generator=generator()) * 8)


def simulate(kernel, number=8, seed=2, domain=POINTS):
    return DenseCovariance(kernel, domain).double().sample((number,), generator=generator(seed)).detach()


@pytest.fixture(scope="module")
def fields():
    return simulate(Matern(1.5, 1.2, 2.0) + Nugget(0.1))


@pytest.fixture(scope="module")
def comparison(fields):
    kernels = [Exponential() + Nugget(0.1), Matern(1.5) + Nugget(0.1), Matern(1.5), Matern(2.5) + Nugget(0.1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return compare(kernels, fields, POINTS, starts=2)


def test_table_holds_the_criteria(comparison, fields):
    rows = {row.name: row for row in comparison.table}
    assert set(rows) == {
        "Exponential + Nugget",
        "Matern(1.5) + Nugget",
        "Matern(1.5)",
        "Matern(2.5) + Nugget",
    }
    assert rows["Matern(1.5)"].parameters == 3
    assert rows["Matern(1.5) + Nugget"].parameters == 4
    for row in rows.values():
        assert row.aic == pytest.approx(2 * row.parameters - 2 * row.log_likelihood)
        assert row.bic == pytest.approx(row.parameters * math.log(400) - 2 * row.log_likelihood)
    assert [row.aic for row in comparison.table] == sorted(row.aic for row in comparison.table)
    differences = torch.tensor([row.difference for row in comparison.table], dtype=F64)
    assert float(differences[0]) == 0.0
    weights = torch.tensor([row.weight for row in comparison.table], dtype=F64)
    torch.testing.assert_close(weights, torch.softmax(-differences / 2, 0))
    # the same numbers as of a single fit
    alone = sd.fit(Matern(1.5) + Nugget(0.1), fields, POINTS, starts=2)
    row = rows["Matern(1.5) + Nugget"]
    assert row.log_likelihood == pytest.approx(alone.log_likelihood, abs=1e-3)
    assert row.effective_range == pytest.approx(alone.derived["effective_range"][0], rel=1e-3)
    assert row.nugget_share == pytest.approx(alone.derived["nugget/sill"][0], rel=1e-2)


def test_the_model_of_the_data_is_among_the_best(comparison):
    """Others win by little where they win, and a nugget that is there is worth its parameter."""
    rows = {row.name: row for row in comparison.table}
    assert comparison.best is comparison.results[comparison.table[0].name]
    assert rows["Matern(1.5) + Nugget"].difference < 4.0 < rows["Matern(1.5)"].difference


def test_print(comparison):
    lines = str(comparison).splitlines()
    assert len(lines) == 5
    assert all(
        word in lines[0] for word in ("log-lik.", "AIC", "BIC", "ΔAIC", "weight", "eff. range", "nugget")
    )
    for line, row in zip(lines[1:], comparison.table, strict=True):
        assert line.startswith(row.name)
        assert f"{row.difference:.2f}" in line


def test_bic_orders_by_bic(comparison):
    again = compare_fits(comparison.results, "bic")
    assert [row.bic for row in again.table] == sorted(row.bic for row in again.table)
    assert again.table[0].difference == 0.0
    assert "ΔBIC" in str(again)


def test_warnings_carry_the_name_of_the_kernel(fields):
    smooth = simulate(Exponential(1.5, 2.0), 5)
    with pytest.warns(FitWarning, match=r"^with: nugget") as caught:
        found = compare(
            {"with": Exponential() + Nugget(0.1), "without": Exponential()}, smooth, POINTS, starts=1
        )
    assert all(str(w.message).startswith("with: ") for w in caught if issubclass(w.category, FitWarning))
    assert next(row for row in found.table if row.name == "with").warnings > 0
    assert "warning" in str(found)


def test_kernels_that_cannot_be_fitted_are_listed():
    """A Gaussian without nugget on a fine line is numerically singular at every start."""
    line = sd.Points(torch.linspace(0, 1, 60, dtype=F64))
    x = simulate(Exponential(2.0), 3, domain=line)
    singular = Gaussian(1.0)
    with pytest.warns(FitWarning, match="gauss could not be fitted: .*numerically singular"):
        found = compare(
            {"gauss": singular, "exp": Exponential()}, x, line, starts=1, bounds={"lengthscale": (0.9, 1.1)}
        )
    assert list(found.results) == ["exp"]
    assert "gauss" in found.failed
    assert "failed: " in str(found)
    with pytest.raises(RuntimeError, match="none of the kernels"):
        compare([singular, Gaussian(1.05)], x, line, starts=1, bounds={"lengthscale": (0.9, 1.1)})


def test_means_are_compared_by_likelihood_but_not_restricted(fields):
    def fits(**options):
        return {
            mean: sd.fit(Matern(1.5), fields, POINTS, mean=mean, starts=1, **options)
            for mean in ("constant", "linear")
        }

    found = compare_fits(fits())
    assert found.table[0].parameters != found.table[1].parameters
    restricted = fits(restricted=True)
    with pytest.raises(ValueError, match="densities of different contrasts"):
        compare_fits(restricted)
    plain = sd.fit(Matern(1.5), fields, POINTS, starts=1)
    with pytest.raises(ValueError, match="one likelihood is restricted"):
        compare_fits({"a": restricted["constant"], "b": plain})


def test_other_data_and_methods_are_refused(fields):
    plain = sd.fit(Matern(1.5), fields, POINTS, starts=1)
    with pytest.raises(ValueError, match="fitted to different values"):
        compare_fits({"a": plain, "b": sd.fit(Matern(1.5), fields + 1e-3, POINTS, mean=None, starts=1)})
    with pytest.raises(ValueError, match="are other data than"):
        compare_fits({"a": plain, "b": sd.fit(Matern(1.5), fields[:4], POINTS, starts=1)})
    missing = fields.clone()
    missing[0, 0] = math.nan
    with pytest.raises(ValueError, match="400 values and the other to 399"):
        compare_fits({"a": plain, "b": sd.fit(Matern(1.5), missing, POINTS, missing="omit", starts=1)})
    grid = sd.Grid((9, 9))
    x = simulate(Matern(1.5, 1.5) + Nugget(0.1), 10, domain=grid)
    kernel = Matern(1.5) + Nugget(0.1)
    exact, whittle = (sd.fit(kernel, x, grid, method=m, starts=1) for m in ("exact", "whittle"))
    tapered = sd.fit(kernel, x, grid, method="whittle", taper=0.3, starts=1)
    for other in (exact, tapered):
        with pytest.raises(ValueError, match="fit both by the same method="):
            compare_fits({"a": whittle, "b": other})


def test_noise_that_hides_a_difference_is_refused(comparison):
    import dataclasses

    best, second = list(comparison.results.values())[:2]
    half = (second.aic - best.aic) / 2
    noisy = [dataclasses.replace(r, log_likelihood_error=half) for r in (best, second)]
    with pytest.raises(ValueError, match="cannot be ranked: half their difference in AIC is"):
        compare_fits(dict(zip("ab", noisy, strict=True)))
    quiet = [dataclasses.replace(r, log_likelihood_error=half / 10) for r in (best, second)]
    assert list(compare_fits(dict(zip("ab", quiet, strict=True))).results) == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([Matern()],), ValueError, "at least two kernels, got 1"),
        ((Matern(),), TypeError, "takes several kernels, got one Matern"),
        (([Matern(), Gaussian()], "dic"), ValueError, "criterion must be one of aic, bic"),
    ],
)
def test_bad_arguments(fields, arguments, error, match):
    kernels, *criterion = arguments
    with pytest.raises(error, match=match):
        compare(kernels, fields, POINTS, *criterion)


def test_labels():
    assert label_of(Matern(2.5) + Nugget()) == "Matern(2.5) + Nugget"
    assert label_of(Matern(1.0, trainable_nu=True) * Exponential()) == "Matern(ν) * Exponential"
    assert label_of(Anisotropic(Gaussian(), 0.1, ratios=0.5)) == "Anisotropic(Gaussian)"
    assert label_of(Separable(Gaussian(), Exponential())) == "Separable(Gaussian, Exponential)"
    assert label_of(Coregionalization([(torch.eye(2), Gaussian())])) == "Σ B ⊗ Gaussian"


@pytest.mark.parametrize(
    "kernel", [Exponential(1.5, 2.0) + Nugget(0.3), Nonstationary(Exponential(1.5, 2.0), 1.0) + Nugget(0.3)]
)
def test_semivariance_of_a_model(kernel):
    """k(0) - k(h), whether averaged over directions or over pairs of sites in narrow bins."""
    lags, gamma = model_semivariance(
        kernel, sd.Points(torch.rand(400, 2, dtype=F64, generator=generator(3)) * 8), 4.0
    )
    expected = 2.3 - 2.0 * torch.exp(-lags / 1.5)
    torch.testing.assert_close(gamma, expected, rtol=0.0, atol=2e-3)


def test_picture(comparison):
    figure = comparison.plot()
    curves, bars = figure.axes
    assert len(bars.patches) == 4
    assert [patch.get_width() for patch in bars.patches] == [row.difference for row in comparison.table]
    # the data and a curve of each fit
    assert len(curves.get_lines()) == 5
    end = curves.get_lines()[1].get_ydata()[-1]
    kernel = comparison.best.kernel
    lag = torch.tensor([[curves.get_lines()[1].get_xdata()[-1], 0.0]], dtype=F64)
    assert end == pytest.approx((kernel.variance - kernel.at_lags(lag)).item())
