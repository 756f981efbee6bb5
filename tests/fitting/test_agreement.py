"""Likelihoods and estimates for meuse, jura and sic97 against gpytorch, scikit-learn, nlme, gstat and fields.

The reference values are in tests/oracles/agreement.json (make_agreement.py) and agreement_r.json
(make_agreement.R); both say which versions wrote them.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

from spatialdiff import covariance, data
from spatialdiff.conditioning import Kriging
from spatialdiff.fitting import FitWarning, fit, variogram
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Exponential, Matern, Nugget, Spherical

ORACLES = Path(__file__).resolve().parents[1] / "oracles"
PEERS = json.loads((ORACLES / "agreement.json").read_text())["cases"]
R = json.loads((ORACLES / "agreement_r.json").read_text())


def sites_and_values(name):
    """What make_agreement.py and make_agreement.R analyse."""
    if name == "meuse":
        return data.meuse().points, data.meuse()["zinc"].log()
    if name == "jura":
        return data.jura("prediction").points, data.jura("prediction")["Co"]
    return data.sic97("prediction").points, data.sic97("prediction")["rainfall"].sqrt()


@pytest.mark.parametrize("case", PEERS, ids=lambda case: f"{case['data']}-{case['nu']}")
@pytest.mark.parametrize("peer", ["gpytorch", "scikit_learn"])
def test_the_exact_likelihood_and_its_gradient_are_those_of_gpytorch_and_scikit_learn(case, peer):
    points, z = sites_and_values(case["data"])
    z = z - z.mean()
    kernel = Matern(case["nu"], case["lengthscale"], case["variance"]) + Nugget(case["nugget"])
    model = KernelParameters(kernel)
    likelihood = DenseLikelihood(model, observe(z, points, None))
    theta = model.start().requires_grad_()
    value = likelihood(theta)
    value.backward()
    expected = case[peer]
    order = [model.names.index(name) for name in ("variance", "lengthscale", "nugget")]
    assert value.item() == pytest.approx(expected["log_likelihood"], abs=1e-9)
    assert theta.grad[order].tolist() == pytest.approx(expected["gradient"], rel=1e-8)
    assert covariance(kernel, points).log_prob(z).item() == pytest.approx(
        expected["log_likelihood"], abs=1e-9
    )


def estimates(*arguments, **options):
    """The fit from the kernel as given, whatever it warns of: one field says little of its parameters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return fit(*arguments, starts=1, **options)


def check_estimates(found, expected, restricted=False):
    """Estimates, their errors and the maximum against those of nlme's likelihood."""
    # nlme leaves the constant ½ log det XᵀX of Harville's (1974) restricted likelihood out
    maximum = expected["log_likelihood"] + (0.5 * expected["log_det_xx"] if restricted else 0.0)
    assert found.log_likelihood == pytest.approx(maximum, abs=1e-5)
    assert found.converged
    errors = dict(zip(("variance", "lengthscale", "nugget"), expected["relative_errors"], strict=True))
    for name, value in found.parameters.items():
        # a hundredth of a standard error, and the numerical Hessian of R's optimHess
        assert abs(math.log(value / expected[name])) < 0.01 * errors[name], name
        assert found.standard_errors[name] / value == pytest.approx(errors[name], rel=0.02), name


@pytest.mark.parametrize(("restricted", "which"), [(False, "drift_ml"), (True, "drift_reml")])
def test_meuse_with_a_drift_is_estimated_as_by_nlme(restricted, which):
    """gls(log(zinc) ~ sqrt(dist), correlation = corExp(nugget = TRUE)), by both methods."""
    points, z = sites_and_values("meuse")
    root = data.meuse()["dist"].sqrt().unsqueeze(-1)
    kernel = Exponential(200.0, 0.2) + Nugget(0.05)
    found = estimates(kernel, z, points, mean=root, restricted=restricted)
    check_estimates(found, R["meuse"][which], restricted)
    expected = R["meuse"][which]
    for (value, error), b, e in zip(
        found.coefficients.values(), expected["coefficients"], expected["coefficient_errors"], strict=True
    ):
        assert value == pytest.approx(b, abs=0.005 * e)
        assert error == pytest.approx(e, rel=0.01)


def test_meuse_with_a_constant_mean_is_estimated_as_by_nlme():
    """A length scale of half the region: known within a factor 2.8 only, and said so."""
    points, z = sites_and_values("meuse")
    with pytest.warns(FitWarning, match="lengthscale .* poorly identified"):
        found = fit(Exponential(300.0, 0.5) + Nugget(0.05), z, points)
    check_estimates(found, R["meuse"]["ml"])


@pytest.mark.parametrize(("restricted", "which"), [(False, "ml"), (True, "reml")])
def test_jura_is_estimated_as_by_nlme(restricted, which):
    points, z = sites_and_values("jura")
    found = estimates(Exponential(0.5, 10.0) + Nugget(1.0), z, points, restricted=restricted)
    check_estimates(found, R["jura"][which], restricted)


@pytest.mark.parametrize(("restricted", "which"), [(False, "ml"), (True, "reml")])
def test_sic97_is_estimated_as_by_nlme(restricted, which):
    """nlme finds no nugget: so the kernel has none."""
    points, z = sites_and_values("sic97")
    found = estimates(Exponential(50.0, 20.0), z, points, restricted=restricted)
    check_estimates(found, R["sic97"][which], restricted)


@pytest.mark.parametrize("name", ["meuse", "jura", "sic97"])
def test_with_a_linear_trend_the_maximum_is_that_of_fields(name):
    """spatialProcess of fields, Matérn 3/2: its optimiser stops early (for sic97 before the nugget is at
    zero), so ours must be no lower, and near."""
    points, z = sites_and_values(name)
    expected = R[name]["linear_matern32"]
    start = Matern(1.5, expected["lengthscale"], expected["variance"]) + Nugget(expected["nugget"])
    model = KernelParameters(start)
    likelihood = DenseLikelihood(model, observe(z, points, "linear"))
    with torch.no_grad():
        at_theirs = float(likelihood(model.start()))
    assert at_theirs == pytest.approx(expected["log_likelihood"], abs=1e-6)
    found = estimates(start, z, points, mean="linear")
    assert at_theirs - 1e-8 <= found.log_likelihood < at_theirs + (0.2 if name == "sic97" else 0.01)


def test_the_variogram_fit_of_meuse_is_the_published_one_of_gstat():
    """Pebesma's tutorial to gstat: log(zinc), nugget 0.0507, partial sill 0.5906, range 897 m."""
    points, z = sites_and_values("meuse")
    expected = R["meuse"]["variogram"]["fitted_by_counts_over_squared_lag"]
    assert round(expected["lengthscale"]) == 897
    kernel = Spherical(900.0, 1.0) + Nugget(1.0)
    found = variogram(z, points).fit(kernel).parameters
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4), name


def test_kriging_of_the_meuse_grid_is_that_of_gstat():
    """krige() of gstat: ordinary, and with the root of the distance to the river as external drift."""
    points, z = sites_and_values("meuse")
    flood, expected = data.meuse_grid(), R["meuse"]["grid"]
    # gstat's rows are those of meuse.grid: they are found by their coordinates on the map
    there = torch.tensor([expected["x"], expected["y"]], dtype=torch.float64).T
    at = torch.cdist(there, flood.map_coordinates).argmin(1)

    def told(values):
        return torch.tensor(expected[values], dtype=torch.float64)

    spherical = Spherical(897.0044, 0.59060463) + Nugget(0.05066017)
    mean, variance = Kriging(spherical, points, z).predict(flood.points)
    torch.testing.assert_close(mean[at], told("ordinary"), rtol=1e-9, atol=0)
    torch.testing.assert_close(variance[at], told("ordinary_variance"), rtol=1e-9, atol=0)
    assert float(mean.mean()) == pytest.approx(expected["ordinary_mean_of_all"], rel=1e-9)

    exponential = Exponential(340.3, 0.1507) + Nugget(0.0571)
    root, roots = data.meuse()["dist"].sqrt(), flood.domain.flatten(flood["dist"]).sqrt()
    drift = Kriging(exponential, points, z, drift=root.unsqueeze(-1))
    mean, variance = drift.predict(flood.points, drift=roots.unsqueeze(-1))
    torch.testing.assert_close(mean[at], told("drift"), rtol=1e-8, atol=0)
    torch.testing.assert_close(variance[at], told("drift_variance"), rtol=1e-8, atol=0)
