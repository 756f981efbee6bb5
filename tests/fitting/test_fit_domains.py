"""``sd.fit`` on every domain and by every method: recovery, agreement between methods, files, bad input."""

from __future__ import annotations

import io
import warnings

import pytest
import torch

import spatialdiff as sd
from spatialdiff.fitting import FitResult, FitWarning
from spatialdiff.fitting.likelihoods.monte_carlo import MonteCarloError
from spatialdiff.kernels import Chordal, Exponential, Matern, Nugget, Separable

G = torch.Generator().manual_seed(0)
POINTS = sd.Points(torch.rand(250, 2, generator=G, dtype=torch.float64))
KERNEL = Matern(nu=1.5, lengthscale=0.15) + Nugget(0.2)


def simulate(kernel, domain, number, seed=1):
    gamma = sd.covariance(kernel, domain).double()
    return gamma.sample((number,), generator=torch.Generator().manual_seed(seed)).detach()


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        return sd.fit(*args, **options)


def near(fit, truth, errors=4.5):
    """Every parameter within so many of its own standard errors."""
    for name, value in truth.items():
        error = fit.standard_errors[name]
        assert abs(fit.parameters[name] - value) < errors * error, (name, fit.parameters[name], error)


DOMAINS = [
    ("points", POINTS, KERNEL, "exact", 6),
    (
        "masked",
        sd.Grid((14, 15)).masked(torch.rand(14, 15, generator=G) > 0.2),
        Exponential(3.0),
        "exact",
        12,
    ),
    ("mesh", sd.Mesh.from_grid(sd.Grid((12, 12))), Matern(nu=1.0, lengthscale=3.0), "exact", 8),
    ("sphere", sd.Sphere((8, 16), poles=False), Chordal(Exponential(0.5)), "exact", 12),
    ("poles", sd.Sphere((9, 16)), Chordal(Exponential(0.5)), "exact", 12),
    (
        "space-time",
        sd.RectilinearGrid([[0.0, 1.0, 2.5, 3.0, 4.5], [0.0, 0.5, 2.0, 3.0, 3.5, 5.0]]),
        Separable(Exponential(2.0), Matern(nu=1.5, lengthscale=1.5), axes=((0,), (1,))),
        "exact",
        60,
    ),
]


@pytest.mark.parametrize(
    ("domain", "kernel", "method", "number"), [d[1:] for d in DOMAINS], ids=[d[0] for d in DOMAINS]
)
def test_recovery(domain, kernel, method, number):
    x = simulate(kernel, domain, number)
    fit = quiet(
        kernel, x, domain, starts=2, fixed=["exponential.variance"] if "Separable" in repr(kernel) else ()
    )
    assert fit.method == method
    assert fit.converged
    truth = {name: value for name, value in quiet_values(kernel).items() if name not in fit.held}
    near(fit, truth)
    assert fit.covariance.sample((2,)).shape == (2, *domain.shape)
    file = io.BytesIO()
    torch.save(fit.state_dict(), file)
    file.seek(0)
    again = FitResult.from_state(torch.load(file, weights_only=True))
    assert again.domain == domain
    assert again.parameters == fit.parameters


def quiet_values(kernel):
    from spatialdiff.fitting.parameters import KernelParameters

    model = KernelParameters(kernel)
    return model.natural(model.start())


def test_methods_agree_on_scattered_points():
    x = simulate(KERNEL, POINTS, 4) + 2.0
    fits = {m: quiet(KERNEL, x, POINTS, method=m, starts=2) for m in ("exact", "vecchia", "iterative")}
    for name, exact in fits["exact"].parameters.items():
        error = fits["exact"].standard_errors[name]
        assert abs(fits["vecchia"].parameters[name] - exact) < 0.25 * error
        # the probes add at most a twentieth to the variance
        assert abs(fits["iterative"].parameters[name] - exact) < 1.0 * error
    assert abs(fits["iterative"].log_likelihood - fits["exact"].log_likelihood) < 4.0 * max(
        fits["iterative"].log_likelihood_error, 0.05
    )
    assert fits["exact"].coefficients["intercept"][0] == pytest.approx(2.0, abs=1.0)
    near(quiet(KERNEL, x, POINTS, method="variogram"), {"lengthscale": 0.15, "variance": 1.0})


def test_too_few_probes_are_refused():
    x = simulate(KERNEL, POINTS, 30)
    with pytest.raises(MonteCarloError, match="probes"):
        quiet(KERNEL, x, POINTS, method="iterative", probes=2, neighbors=1, starts=1)


def test_restriction_gives_a_larger_variance_and_less_bias():
    kernel = Exponential(0.3)
    x = simulate(kernel, POINTS, 1)
    columns = torch.cat([POINTS.sites() ** k for k in (1, 2, 3)], dim=1)
    plain, restricted = (
        quiet(kernel, x, POINTS, mean=columns, restricted=r, starts=2) for r in (False, True)
    )
    assert restricted.parameters["variance"] > plain.parameters["variance"]
    assert "restricted log-likelihood" in str(restricted)


def test_missing_values_do_not_move_the_estimate_much():
    x = simulate(KERNEL, POINTS, 6)
    gaps = torch.where(torch.rand(6, 250, generator=torch.Generator().manual_seed(2)) < 0.15, torch.nan, x)
    near(
        quiet(KERNEL, gaps, POINTS, missing="omit", starts=2),
        {"lengthscale": 0.15, "variance": 1.0, "nugget": 0.2},
    )
    grid = sd.Grid((24, 24))
    y = simulate(Exponential(3.0) + Nugget(0.2), grid, 4)
    gaps = torch.where(torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) < 0.2, torch.nan, y)
    found = quiet(Exponential(1.0) + Nugget(0.1), gaps, grid, method="whittle", missing="omit", starts=2)
    assert "imputed" in found.reason
    near(found, {"lengthscale": 3.0, "variance": 1.0, "nugget": 0.2})


@pytest.mark.parametrize("method", ["spectrum", "shrinkage", "eof"])
def test_without_a_family(method):
    grid = sd.Grid((10, 12))
    x = simulate(Exponential(3.0), grid, 60)
    fit = quiet(None, x, grid, method=method)
    gamma = fit.covariance
    assert float(gamma.variance().mean()) == pytest.approx(float(x.var(0).mean()), rel=0.1)
    again = FitResult.from_state(fit.state_dict())
    torch.testing.assert_close(again.covariance.to_dense(), gamma.to_dense())
    assert "log-likelihood nan" not in str(fit)


def test_without_a_family_on_other_domains():
    sphere = sd.Sphere((9, 16))
    x = simulate(Chordal(Exponential(0.5)), sphere, 40)
    fit = quiet(None, x, sphere, method="spectrum")
    assert fit.covariance.report.method == "sphere"
    assert float(fit.covariance.variance().mean()) == pytest.approx(fit.parameters["variance"], rel=1e-6)
    y = simulate(KERNEL, POINTS, 60)
    assert quiet(KERNEL, y, POINTS, method="shrinkage", starts=1).parameters["weight"] > 0.5
    assert quiet(None, y, POINTS, method="eof").covariance.sample((1,)).shape == (1, 250)
    with pytest.raises(TypeError, match="eof"):
        sd.fit(None, y, POINTS, method="spectrum")


def test_pictures_and_checks_come_with_the_result():
    x = simulate(KERNEL, POINTS, 4)
    fit = quiet(KERNEL, x, POINTS, starts=1)
    assert not fit.check().suspicious
    assert len(fit.plot().axes) >= 3
    low, high = fit.interval("lengthscale")
    assert low < fit.parameters["lengthscale"] < high
    loaded = FitResult.from_state(fit.state_dict())
    with pytest.raises(ValueError, match="give the"):
        loaded.check()
    assert not loaded.check(x).suspicious


# ---- bad input
def test_fewer_data_than_parameters():
    with pytest.raises(ValueError, match=r"2.*3|3.*2"):
        sd.fit(KERNEL, torch.tensor([0.1, 0.5]).double(), sd.Points(torch.rand(2, 2)), mean=None)


def test_coinciding_sites_need_a_nugget():
    sites = torch.cat((POINTS.sites(), POINTS.sites()[:1]))
    x = torch.randn(251, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"sites 0 and 250.*Nugget"):
        sd.fit(Exponential(0.2), x, sd.Points(sites))
    assert quiet(Exponential(0.2) + Nugget(0.1), x, sd.Points(sites), starts=1).n_fields == 1


def test_degrees_given_to_a_plane():
    sites = torch.stack([-10.0 + 5 * POINTS.sites()[:, 0], 51.0 + 4 * POINTS.sites()[:, 1]], dim=1)
    x = simulate(Exponential(1.0) + Nugget(0.1), sd.Points(sites), 2)
    with pytest.warns(FitWarning, match="degrees"):
        sd.fit(Exponential(1.0) + Nugget(0.1), x, sd.Points(sites), starts=1)


def test_constant_data_and_several_kernels():
    with pytest.raises(ValueError, match="constant"):
        sd.fit(KERNEL, torch.ones(250).double(), POINTS)
    with pytest.raises(TypeError, match="compare"):
        sd.fit([KERNEL, Exponential(0.2)], torch.randn(250).double(), POINTS)
