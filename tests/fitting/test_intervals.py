"""Wald's intervals against their formula, profiles against brute force."""

from __future__ import annotations

import io
import math

import matplotlib
import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import DenseCovariance
from spatialdiff.fitting import FitResult, FitWarning
from spatialdiff.fitting.inference.intervals import interval, profile
from spatialdiff.kernels import Anisotropic, Coregionalization, Exponential, Matern, Nugget

matplotlib.use("Agg")
F64 = torch.float64
# standard normal and χ²₁ quantiles
Z95, Z80 = 1.959963984540054, 1.2815515655446004
CHI95 = 3.841458820694124


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


POINTS = sd.Points(torch.rand(40, 2, dtype=F64, generator=generator()) * 8)


def simulate(kernel, domain, number, seed=1):
    return DenseCovariance(kernel, domain).double().sample((number,), generator=generator(seed)).detach()


@pytest.fixture(scope="module")
def fitted():
    x = simulate(Matern(1.5, 1.2, 2.0) + Nugget(0.3), POINTS, 5)
    return sd.fit(Matern(1.5) + Nugget(0.1), x, POINTS, starts=2)


def brute_force(result, name, grid):
    """Profile by Nelder–Mead over the other parameters, at each value of a grid."""
    from scipy.optimize import minimize

    likelihood, theta = result.search.likelihood, result.search.optimum.theta
    i = likelihood.model.names.index(name)
    others = [j for j in range(len(theta)) if j != i]

    def at(t):
        def minus(free):
            point = theta.clone()
            point[i] = math.log(t)
            point[others] = torch.from_numpy(free)
            return -float(likelihood(point))

        options = {"xatol": 1e-3, "fatol": 1e-5}
        return -minimize(minus, theta[others].numpy(), method="Nelder-Mead", options=options).fun

    with torch.no_grad():
        return torch.tensor([at(t) for t in grid], dtype=F64)


@pytest.mark.parametrize("name", ["lengthscale", "nugget"])
def test_profile_is_that_by_brute_force(fitted, name):
    low, high = fitted.interval(name, kind="profile")
    expected = brute_force(fitted, name, [low, high])
    # the ends are where twice the fall is the quantile, to the tolerance of the search
    fall = 2.0 * (fitted.log_likelihood - expected)
    assert fall[0] == pytest.approx(CHI95, rel=5e-3)
    assert fall[1] == pytest.approx(CHI95, rel=5e-3)
    curve = profile(fitted, name, points=3)
    inside = brute_force(fitted, name, curve.values.tolist())
    torch.testing.assert_close(curve.log_likelihood, inside, rtol=0.0, atol=2e-4)
    assert curve.interval == pytest.approx((low, high), rel=1e-3)
    assert curve.maximum == pytest.approx(fitted.log_likelihood)


def test_wald_is_symmetric_in_the_logarithm(fitted):
    value, error = fitted.parameters["lengthscale"], fitted.standard_errors["lengthscale"]
    low, high = fitted.interval("lengthscale")
    assert low == pytest.approx(value * math.exp(-Z95 * error / value))
    assert high == pytest.approx(value * math.exp(Z95 * error / value))
    assert interval(fitted, "lengthscale", 0.8)[1] == pytest.approx(value * math.exp(Z80 * error / value))
    value, error = fitted.coefficients["intercept"]
    assert fitted.interval("intercept") == pytest.approx((value - Z95 * error, value + Z95 * error))
    assert fitted.interval("mean intercept") == fitted.interval("intercept")
    value, error = fitted.derived["effective_range"]
    assert fitted.interval("effective_range")[0] == pytest.approx(value * math.exp(-Z95 * error / value))


def test_with_much_data_both_intervals_agree():
    """Of a variance alone, N n values of which are as good as independent, both are Gaussian."""
    x = simulate(Exponential(1.0, 2.0), POINTS, 500)
    result = sd.fit(Exponential(1.0), x, POINTS, mean=None, fixed=["lengthscale"], starts=1)
    wald, likelihood = (result.interval("variance", kind=kind) for kind in ("wald", "profile"))
    assert likelihood == pytest.approx(wald, rel=1e-3)
    # σ̂² is a mean of N n squares of independent Gaussians: se = σ² √(2/(N n))
    error = result.parameters["variance"] * math.sqrt(2.0 / (500 * 40))
    assert result.standard_errors["variance"] == pytest.approx(error, rel=1e-3)
    # and the profile's ends are the roots of u - 1 - log u = χ²/(N n), u = σ̂²/σ²
    for end in likelihood:
        u = result.parameters["variance"] / end
        assert 500 * 40 * (u - 1.0 - math.log(u)) == pytest.approx(CHI95, rel=5e-3)


def test_a_nugget_that_is_not_there_has_a_one_sided_interval():
    x = simulate(Matern(0.5, 1.5, 2.0), POINTS, 4, seed=3)
    with pytest.warns(FitWarning, match="nugget"):
        result = sd.fit(Matern(0.5) + Nugget(0.1), x, POINTS, starts=2)
    low, high = result.interval("nugget", kind="profile")
    assert low == 0.0
    assert 0.0 < high < 1.0
    fall = 2.0 * (result.log_likelihood - brute_force(result, "nugget", [high]))
    assert float(fall) == pytest.approx(CHI95, rel=5e-3)


def test_a_length_scale_beyond_the_domain_has_no_upper_end():
    x = simulate(Exponential(500.0, 1.0), sd.Grid((6, 6)), 3)
    with pytest.warns(FitWarning):
        result = sd.fit(Exponential(), x, sd.Grid((6, 6)), mean="constant", starts=2)
    low, high = result.interval("lengthscale", kind="profile")
    assert low > 1.0
    assert high == math.inf


def test_whittles_profile_is_widened_as_its_standard_errors_are():
    grid = sd.Grid((16, 16))
    x = simulate(Matern(1.5, 2.0, 1.0) + Nugget(0.1), grid, 30)
    result = sd.fit(Matern(1.5) + Nugget(0.1), x, grid, method="whittle", taper=0.5, mean=None, starts=1)
    curve = result.profile("lengthscale", points=3)
    information = result.search.optimum.information
    i = result.search.likelihood.model.names.index("lengthscale")
    assert curve.scale == pytest.approx(
        float(result.search.covariance[i, i] / torch.linalg.inv(information)[i, i])
    )
    assert curve.scale > 1.5
    assert curve.interval == pytest.approx(result.interval("lengthscale"), rel=0.05)


def test_profile_of_a_tied_parameter_is_that_of_both():
    x = simulate(Matern(1.5, 1.2, 2.0), POINTS, 3)
    tied = sd.fit(Matern(1.5, [1.0, 1.0]), x, POINTS, ties=["lengthscale"], starts=1)
    plain = sd.fit(Matern(1.5, 1.0), x, POINTS, starts=1)
    expected = plain.interval("lengthscale", kind="profile")
    for axis in (0, 1):
        assert tied.interval(f"lengthscale[{axis}]", kind="profile") == pytest.approx(expected, rel=1e-3)
        assert tied.interval(f"lengthscale[{axis}]") == pytest.approx(plain.interval("lengthscale"), rel=1e-3)


def test_an_angle_that_the_data_do_not_know():
    x = simulate(Matern(1.5, 1.5, 1.0), POINTS, 1)
    kernel = Anisotropic(Matern(1.5, 1.5), 0.3, ratios=0.999)
    with pytest.warns(FitWarning, match="angles"):
        result = sd.fit(kernel, x, POINTS, mean=None, fixed=["scales", "lengthscale"], starts=1)
    low, high = result.interval("angles", kind="profile")
    assert high - low == pytest.approx(math.pi)


def test_matrices_and_correlations_have_intervals():
    matrix = torch.tensor([[2.0, 1.3], [1.3, 1.0]], dtype=F64)
    root = torch.linalg.cholesky(matrix)
    x = torch.einsum("cd,ids->ics", root, simulate(Exponential(1.0), POINTS, 12).reshape(6, 2, 40))
    result = sd.fit(Coregionalization([(torch.eye(2), Exponential(1.0))]), x, POINTS, mean=None, starts=1)
    low, high = result.interval("correlation[0,1]")
    assert -1.0 < low < result.derived["correlation[0,1]"][0] < high < 1.0
    value, error = result.derived["B[0,1]"]
    assert result.interval("B[0,1]") == pytest.approx((value - Z95 * error, value + Z95 * error))
    value, error = result.derived["B[1,1]"]
    assert result.interval("B[1,1]")[1] == pytest.approx(value * math.exp(Z95 * error / value))
    low, high = result.interval("L[1,0]", kind="profile")
    assert low < result.parameters["L[1,0]"] < high


def test_a_saved_result_has_walds_intervals_only(fitted):
    buffer = io.BytesIO()
    torch.save(fitted.state_dict(), buffer)
    buffer.seek(0)
    again = FitResult.from_state(torch.load(buffer, weights_only=True))
    assert again.interval("nugget") == pytest.approx(fitted.interval("nugget"))
    with pytest.raises(ValueError, match="a profile needs the likelihood"):
        again.interval("nugget", kind="profile")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("range",), "the fit has no 'range'; it has lengthscale"),
        (("nugget", 95.0), "level must be between 0 and 1"),
        (("nugget", 0.95, "bayes"), "kind must be one of wald, profile"),
        (
            ("effective_range", 0.95, "profile"),
            "a profile needs a parameter of the kernel that was estimated",
        ),
    ],
)
def test_bad_arguments(fitted, arguments, match):
    with pytest.raises(ValueError, match=match):
        fitted.interval(*arguments)


def test_noise_refuses_a_profile(fitted, monkeypatch):
    monkeypatch.setattr(fitted.search.likelihood, "standard_error", lambda theta: 1.3)
    with pytest.raises(ValueError, match=r"Monte-Carlo error of the log-likelihood, 1\.3, is too large"):
        fitted.profile("nugget")


def test_picture(fitted):
    axes = fitted.profile("nugget", points=4).plot()
    assert axes.get_xlabel() == "nugget"
    # the threshold is drawn at half the quantile below the maximum
    assert any(line.get_ydata()[0] == pytest.approx(-CHI95 / 2.0) for line in axes.get_lines())
    with pytest.raises(ValueError, match="at least 3 points"):
        fitted.profile("nugget", points=2)
