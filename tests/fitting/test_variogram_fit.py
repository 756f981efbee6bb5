"""Weighted least squares on variograms: R's gstat, recovery, errors, coregionalisation, pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import spatialdiff as sd
from spatialdiff.data import jura, meuse
from spatialdiff.domains import Points, Sphere
from spatialdiff.fitting.observations import observe
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.fitting.result import FitWarning
from spatialdiff.fitting.variograms.coregionalise import goulard_voltz, positive_matrices
from spatialdiff.fitting.variograms.empirical import Variogram, directional_variograms, variogram
from spatialdiff.fitting.variograms.initial import initial_values
from spatialdiff.fitting.variograms.least_squares import fit_observations, fit_variogram
from spatialdiff.fitting.variograms.maps import variogram_map
from spatialdiff.fitting.variograms.model import VariogramModel
from spatialdiff.fitting.variograms.uncertainty import GaussianSpread
from spatialdiff.kernels import (
    Anisotropic,
    Chordal,
    Coregionalization,
    Exponential,
    Gaussian,
    Matern,
    Nonstationary,
    Nugget,
    Spherical,
    SphericalExponential,
    Sum,
)

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "variogram.json").read_text())
GSTAT = {1: "n", 2: "n/gamma2", 6: "equal", 7: "n/h2"}
JURA_EDGES = torch.cat([torch.zeros(1), 0.003 + torch.arange(1, 16, dtype=torch.float64) / 10]).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def zinc() -> Variogram:
    table = meuse()
    return variogram(table["zinc"].log(), table.domain)


def sample(kernel: object, domain: object, number: int, seed: int = 0) -> Tensor:
    return sd.covariance(kernel, domain).sample(number, generator=generator(seed)).double()


@pytest.mark.parametrize("method", [1, 2, 6, 7])
@pytest.mark.parametrize("family", ["Sph", "Exp"])
@pytest.mark.parametrize("data", ["meuse", "jura"])
def test_as_gstat_fits(data: str, family: str, method: int) -> None:
    expected = ORACLE[data]["fits"][f"{family}{method}"]
    if data == "meuse":
        found = zinc()
        start = {"Sph": Spherical(500.0), "Exp": Exponential(200.0)}[family] + Nugget(0.1)
    else:
        table = jura("prediction")
        found = variogram(table["Co"], table.domain, JURA_EDGES)
        start = {"Sph": Spherical(0.5, 5.0), "Exp": Exponential(0.2, 5.0)}[family] + Nugget(1.0)
    fit = found.fit(start, GSTAT[method])
    assert fit.converged
    values, best = fit.parameters, expected["polished"]
    scale = best["psill"]
    assert values["variance"] == pytest.approx(best["psill"], rel=2e-6)
    assert values["lengthscale"] == pytest.approx(best["range"], rel=2e-6)
    assert values["nugget"] == pytest.approx(best["nugget"], rel=1e-5, abs=1e-6 * scale)
    assert fit.objective == pytest.approx(best["SSErr"], rel=1e-6)
    # gstat itself stops a little before the minimum
    assert values["lengthscale"] == pytest.approx(expected["range"], rel=5e-4)
    if method in (1, 6, 7):
        assert fit.objective <= expected["SSErr"] * (1 + 1e-9)
        assert fit.objective == pytest.approx(expected["SSErr"], rel=1e-5)


def test_iterated_weights_solve_the_estimating_equation() -> None:
    """``Jᵀ W(θ) (γ̂ - γ(θ)) = 0`` with the weights at the estimate."""
    v = zinc()
    fit = v.fit(Spherical(500.0) + Nugget(0.1), "n/gamma2")
    theta = fit.theta.clone().requires_grad_()
    gamma = VariogramModel(fit.model, v)(theta)
    pull = (v.counts / gamma.detach().square() * (v.gamma - gamma)).detach()
    (score,) = torch.autograd.grad(gamma @ pull, theta)
    relative = score / (pull.abs().sum() * gamma.detach().max())
    assert float(relative.abs().max()) < 1e-7


def test_parameters_are_recovered_and_errors_right() -> None:
    """Over 40 data sets of 12 fields: bias within 4 standard errors (and the curvature of the logarithm),
    reported errors within 40 % of the spread."""
    grid = sd.Grid((16, 16))
    kernel = Exponential(2.5, variance=2.0)
    x = sample(kernel, grid, 40 * 12, 1).reshape(40, 12, 16, 16)
    estimates, errors = [], []
    for fields in x:
        fit = variogram(fields, grid, 8, max_distance=8.0).fit(Exponential(1.0), starts=2)
        assert fit.source == "the spread of the fields"
        estimates.append([math.log(fit.parameters[p]) for p in ("lengthscale", "variance")])
        errors.append(fit.covariance.diagonal().sqrt().tolist())
    values = torch.tensor(estimates, dtype=torch.float64)
    truth = torch.tensor([2.5, 2.0], dtype=torch.float64).log()
    spread = values.std(0)
    assert ((values.mean(0) - truth).abs() < 4 * spread / math.sqrt(40) + 0.5 * spread.square()).all()
    ratio = torch.tensor(errors).double().square().mean(0).sqrt() / spread
    assert ((ratio > 0.6) & (ratio < 1.4)).all(), ratio


def test_errors_of_a_single_field_from_the_gaussian_covariance() -> None:
    """The covariance of semivariances against 4000 simulated fields, entry by entry."""
    points = Points(10.0 * torch.rand(70, 2, generator=generator(3), dtype=torch.float64))
    kernel = Exponential(2.0, variance=1.5) + Nugget(0.3)
    x = sample(kernel, points, 4000, 4)
    one = variogram(x[:1], points, 5, max_distance=5.0)
    fit = one.fit(kernel)
    assert fit.source == "the Gaussian covariance of the semivariances"
    model = KernelParameters(kernel)
    expected = GaussianSpread(model, [one], [one.counts > 0])(model.start())
    many = variogram(x, points, 5, max_distance=5.0)
    found = torch.cov(many.by_field.mT)
    d = expected.diagonal()
    # semivariances are skewed: their fourth moments exceed the Gaussian's
    tolerance = 5 * 2.0 * ((expected.square() + d[:, None] * d) / 4000).sqrt()
    assert ((found - expected).abs() < tolerance).all()
    assert ((found - 1.5 * expected).abs() > tolerance).any()
    # with independent fields the covariance is divided by their number
    few = variogram(x[:4], points, 5, max_distance=5.0)
    assert torch.allclose(GaussianSpread(model, [few], [few.counts > 0])(model.start()), expected / 4)


def test_generalised_weights_solve_their_estimating_equation() -> None:
    """``Jᵀ V(θ)^{-1} (γ̂ - γ(θ)) = 0``, and the errors are then ``(Jᵀ V^{-1} J)^{-1}``, less than of other
    weights."""
    points = Points(10.0 * torch.rand(80, 2, generator=generator(5), dtype=torch.float64))
    v = variogram(sample(Exponential(1.5), points, 4, 6), points, 8, max_distance=5.0)
    fit, other = v.fit(Exponential(1.0), "generalised"), v.fit(Exponential(1.0), "equal")
    assert fit.converged
    spread = GaussianSpread(fit.model, [v], [v.counts > 0])(fit.theta)
    theta = fit.theta.clone().requires_grad_()
    gamma = VariogramModel(fit.model, v)(theta)
    slope = torch.stack([torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gamma])
    gain = slope.mT @ torch.linalg.inv(spread)
    information = gain @ slope
    step = torch.linalg.solve(information, gain @ (v.gamma - gamma.detach()))
    assert float((step.square() * information.diagonal()).max()) < 1e-10
    torch.testing.assert_close(fit.covariance, torch.linalg.inv(information), rtol=1e-4, atol=0)
    assert fit.standard_errors["lengthscale"] < other.standard_errors["lengthscale"]


def test_many_lags_of_a_grid_are_averaged() -> None:
    """An isotropic kernel is evaluated at 32 distances per bin at most: the mean over all lags to 1e-4."""
    grid = sd.Grid((60, 50), (1.0, 1.3))
    v = variogram(torch.randn(60, 50, generator=generator(16), dtype=torch.float64), grid, 4)
    table = v.table
    assert table is not None
    h = table.lags.norm(dim=1)
    expected = table.average(1 - torch.exp(-h / 3.0), 4)[0]
    model = KernelParameters(Exponential(3.0))
    found = VariogramModel(model, v)
    assert len(found.lags) < 140 < len(torch.unique(h))
    torch.testing.assert_close(found(model.start()), expected, rtol=1e-4, atol=0)
    # few lags: exactly
    few = variogram(torch.randn(6, 5, generator=generator(17), dtype=torch.float64), sd.Grid((6, 5)), 3)
    assert few.table is not None
    exact = few.table.average(1 - torch.exp(-few.table.lags.norm(dim=1) / 3.0), 3)[0]
    torch.testing.assert_close(VariogramModel(model, few)(model.start()), exact, rtol=1e-13, atol=0)


def test_model_is_the_expectation_on_a_periodic_grid() -> None:
    """Fields on a torus have the variogram of the periodised kernel, not that of the kernel."""
    grid = sd.Grid((12, 8), (1.0, 1.5), (True, True))
    kernel = Exponential(4.0, variance=2.0)
    x = sample(kernel, grid, 300, 7)
    v = variogram(x, grid, 5)
    model = KernelParameters(kernel)
    expected = VariogramModel(model, v)(model.start())
    assert ((v.gamma - expected).abs() < 4.5 * v.standard_errors).all()
    flat = 2.0 * (1 - torch.exp(-v.lags / 4.0))
    assert ((v.gamma - flat).abs() > 4.5 * v.standard_errors).any()
    fit = v.fit(Exponential(1.0), starts=2)
    assert abs(math.log(fit.parameters["lengthscale"] / 4.0)) < 4.5 * math.sqrt(float(fit.covariance[0, 0]))


def test_anisotropy_from_directions_and_from_a_grid() -> None:
    grid = sd.Grid((24, 24))
    kernel = Anisotropic(Exponential(5.0), angles=0.6, ratios=0.4)
    x = sample(kernel, grid, 60, 8)
    start = Anisotropic(Exponential(2.0), angles=0.0, ratios=0.8)
    directions = directional_variograms(x, grid, (0.0, 45.0, 90.0, 135.0), max_distance=8.0)
    fit = fit_variogram(directions, start, bounds={"scales": (0.05, 1.0)})
    for name, value in (("angles", 0.6), ("scales", 0.4), ("lengthscale", 5.0), ("variance", 1.0)):
        assert abs(fit.parameters[name] - value) < 4.5 * fit.standard_errors[name], name
        assert fit.standard_errors[name] < 0.25 * value


def test_scattered_sites_and_several_structures() -> None:
    """Model values at mean distances: those of the kernel, averaged over directions where it has some."""
    v = zinc()
    model = KernelParameters(Sum(Matern(1.5, 300.0), Exponential(100.0, 0.5), Nugget(0.1)))
    s = math.sqrt(3) * v.lags / 300.0
    expected = 1.6 - (1 + s) * torch.exp(-s) - 0.5 * torch.exp(-v.lags / 100.0)
    torch.testing.assert_close(VariogramModel(model, v)(model.start()), expected)
    turned = KernelParameters(Anisotropic(Exponential(300.0), ratios=0.5))
    angle = torch.linspace(0, math.pi, 20001, dtype=torch.float64)[:-1]
    q = (angle.cos().square() + 4 * angle.sin().square()).sqrt()
    mean = 1 - torch.exp(-v.lags[:, None] * q / 300.0).mean(1)
    torch.testing.assert_close(VariogramModel(turned, v)(turned.start()), mean, rtol=2e-3, atol=0)
    table = meuse()
    towards = variogram(table["zinc"].log(), table.domain, direction=90.0)
    along = 1 - torch.exp(-towards.lags / 150.0)
    torch.testing.assert_close(VariogramModel(turned, towards)(turned.start()), along)


def test_on_the_sphere() -> None:
    sphere = Sphere((13, 24), radius=3.0)
    for kernel, start in (
        (SphericalExponential(0.6, 2.0), SphericalExponential(0.2)),
        (Chordal(Exponential(1.5, 2.0), radius=3.0), Chordal(Exponential(0.5), radius=3.0)),
    ):
        v = variogram(sample(kernel, sphere, 40, 9), sphere, 10)
        fit = v.fit(start)
        model = KernelParameters(kernel)
        truths = model.natural(model.start()).values()
        for (name, value), truth in zip(fit.parameters.items(), truths, strict=True):
            assert abs(value - truth) < 4.5 * fit.standard_errors[name]
    with pytest.raises(ValueError, match="great_circle"):
        zinc().fit(SphericalExponential(0.5))


def test_goulard_voltz_against_brute_force() -> None:
    """The convex minimum: no positive semi-definite change lowers the sum; where unconstrained least
    squares is positive semi-definite, it is that."""
    h = torch.linspace(0.1, 2.0, 12, dtype=torch.float64)
    shape = torch.stack([torch.ones_like(h), 1 - torch.exp(-h)])
    root = torch.randn(2, 3, 3, generator=generator(10), dtype=torch.float64)
    truth = root @ root.mT
    shapes = shape[:, :, None, None].expand(2, 12, 3, 3)
    exact = torch.einsum("qij,qbij->bij", truth, shapes)
    weight = torch.rand(12, 3, 3, generator=generator(11), dtype=torch.float64)
    weight = weight + weight.mT.transpose(1, 2) * 0 + weight.mT
    torch.testing.assert_close(goulard_voltz(exact, shapes, weight, 1e-16), truth, rtol=1e-3, atol=1e-3)
    noisy = exact + 2.0 * torch.randn(12, 3, 3, generator=generator(12), dtype=torch.float64)
    noisy = 0.5 * (noisy + noisy.mT)
    noisy[:, 0, 1] = noisy[:, 1, 0] = 4.0 * noisy[:, 0, 0].abs().sqrt()
    found = goulard_voltz(noisy, shapes, weight)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-12
    assert float(torch.linalg.eigvalsh(found).min()) < 1e-6

    def value(b: Tensor) -> float:
        return float((weight * (noisy - torch.einsum("qij,qbij->bij", b, shapes)).square()).sum())

    least = value(found)
    change = torch.randn(200, 2, 3, 3, generator=generator(13), dtype=torch.float64)
    for step in (1e-3, 1e-2, 0.1):
        for d in change:
            toward = d @ d.mT
            # towards any other positive semi-definite pair the sum rises
            assert value((1 - step) * found + step * toward) > least - 1e-9 * least


def test_coregionalisation_of_the_meuse_metals() -> None:
    """Where gstat's separate fits are positive semi-definite, they are the joint minimum as well."""
    table = meuse()
    metals = table.columns("cadmium", "copper", "lead", "zinc").log().T[None]
    v = variogram(metals, table.domain, cross=True)
    eye = torch.eye(4, dtype=torch.float64)
    kernel = Coregionalization([(eye, Nugget(1.0)), (eye, Spherical(900.0))])
    nugget, sill = positive_matrices(v, kernel)
    for found, name in ((nugget, "nugget"), (sill, "spherical")):
        expected = torch.tensor(ORACLE["meuse"]["lmc"][name], dtype=torch.float64).reshape(4, 4)
        assert float(torch.linalg.eigvalsh(expected).min()) > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    pair = variogram(metals[:, ::3], table.domain, cross=True)
    kernel = Coregionalization([(eye[:2, :2], Nugget(1.0)), (eye[:2, :2], Spherical(900.0))])
    fit = fit_variogram(pair, kernel, fixed={"lengthscale": 900.0}, starts=1)
    assert isinstance(fit.kernel, Coregionalization)
    for (found, _), expected in zip(fit.kernel.terms, (nugget, sill), strict=True):
        torch.testing.assert_close(found, expected[::3, ::3], rtol=1e-5, atol=1e-6)
    free = fit_variogram(pair, kernel, starts=1)
    assert free.objective < fit.objective
    assert 800 < free.parameters["lengthscale"] < 1200


def test_from_observations() -> None:
    """What ``fit(..., method="variogram")`` calls."""
    table = meuse()
    data = observe(table["zinc"].log(), table.domain, "constant")
    model = KernelParameters(Spherical(500.0) + Nugget(0.1))
    fit = fit_observations(model, data)
    assert fit.parameters == pytest.approx(zinc().fit(Spherical(500.0) + Nugget(0.1)).parameters, rel=1e-6)
    assert len(fit_observations(model, data, directions=(0.0, 90.0), bins=8).variograms) == 2


def test_channels_share_a_kernel() -> None:
    grid = sd.Grid((12, 12))
    x = sample(Exponential(2.0), grid, 40, 14).reshape(20, 2, 12, 12)
    v = variogram(x, grid, 5, max_distance=5.0)
    fit = v.fit(Exponential(1.0), "n")
    assert v.gamma.shape == fit.gamma()[0].shape == (5, 2)
    joint = variogram(x.reshape(40, 12, 12), grid, 5, max_distance=5.0).fit(Exponential(1.0), "n")
    assert fit.parameters == pytest.approx(joint.parameters, rel=1e-6)


def test_held_tied_and_bounded_parameters() -> None:
    v, kernel = zinc(), Spherical(500.0) + Nugget(0.1)
    fit = fit_variogram(v, kernel, fixed={"nugget": 0.02})
    assert fit.parameters["nugget"] == 0.02
    assert fit.standard_errors["nugget"] == 0.0
    with pytest.warns(FitWarning, match="upper bound"):
        bounded = fit_variogram(v, kernel, bounds={"lengthscale": (100.0, 600.0)})
    assert bounded.parameters["lengthscale"] == pytest.approx(600.0, rel=1e-5)
    assert math.isnan(bounded.standard_errors["lengthscale"])
    assert bounded.objective > fit_variogram(v, kernel).objective
    before = {name: p.clone() for name, p in kernel.named_parameters()}
    assert all(torch.equal(p, before[name]) for name, p in kernel.named_parameters())


def test_initial_values_and_text() -> None:
    guess = initial_values(zinc())
    assert 0.0 <= guess["nugget"] < 0.12
    assert 0.55 < guess["sill"] < 0.7
    assert 400 < guess["range"] < 1100
    text = str(zinc().fit(Spherical(500.0) + Nugget(0.1)))
    assert "lengthscale" in text and "897" in text and "Gaussian covariance" in text  # noqa: PT018
    robust = variogram(meuse()["zinc"].log(), meuse().domain, estimator="dowd").fit(Spherical(500.0))
    assert robust.source.startswith("none (a robust estimator")
    assert all(math.isnan(e) for e in robust.standard_errors.values())


def test_bad_input() -> None:
    v, kernel = zinc(), Spherical(500.0) + Nugget(0.1)
    with pytest.raises(ValueError, match="weights must be one of"):
        v.fit(kernel, "n/h")
    with pytest.raises(ValueError, match="cannot be fitted to 2 semivariances"):
        variogram(meuse()["zinc"].log(), meuse().domain, 2).fit(kernel)
    with pytest.raises(ValueError, match="no parameter 'range'"):
        v.fit(kernel, fixed=["range"])
    with pytest.raises(ValueError, match="cross=True"):
        v.fit(Coregionalization([(torch.eye(2), Exponential(1.0))]))
    with pytest.raises(ValueError, match="not stationary"):
        v.fit(Nonstationary(Gaussian(100.0), lengthscale=lambda s: 1.0 + s[..., 0].abs()))
    with pytest.raises(ValueError, match="at least one variogram"):
        fit_variogram([], kernel)
    with pytest.raises(TypeError, match="gpytorch"):
        v.fit("spherical")  # type: ignore[arg-type]
    twice = Points(torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 5.0]))
    pairs = variogram(
        torch.tensor([1.0, 2.0, 0.0, 1.5, 3.0, 0.2]), twice, torch.tensor([0.0, 1e-9, 1, 2, 3, 5])
    )
    with pytest.raises(ValueError, match="distance 0"):
        pairs.fit(kernel)
    robust = variogram(meuse()["zinc"].log(), meuse().domain, estimator="cressie")
    with pytest.raises(ValueError, match="not available"):
        robust.fit(kernel, "generalised")


def test_pictures() -> None:
    table = meuse()
    v, kernel = zinc(), Spherical(897.0, 0.59) + Nugget(0.05)
    figure = v.plot(kernel)
    line = figure.axes[0].lines[-1].get_xydata()
    assert float(line[0, 1]) == pytest.approx(0.05, rel=1e-3)
    assert float(line[-1, 1]) == pytest.approx(0.64, rel=1e-6)
    drawn = figure.axes[0].collections[0].get_offsets()
    torch.testing.assert_close(torch.tensor(drawn.tolist()).double()[:, 1], v.gamma, rtol=1e-6, atol=0)
    assert "57" in [t.get_text() for t in figure.axes[0].texts]
    four = directional_variograms(table["zinc"].log(), table.domain)
    assert len(fit_variogram(four, kernel).plot().axes) == 4
    metals = table.columns("cadmium", "zinc").log().T[None]
    cross = variogram(metals, table.domain, cross=True)
    assert sum(a.get_visible() for a in cross.plot().axes) == 3
    grid = sd.Grid((8, 8))
    x = sample(Exponential(2.0), grid, 3, 15)
    image = variogram_map(x, grid).plot().axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (9, 9)
    with pytest.raises(TypeError, match="kernel or of a fit"):
        v.plot("spherical")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two dimensions"):
        variogram_map(x[:, 0], sd.Grid(8)).plot()


@pytest.mark.filterwarnings("ignore::spatialdiff.fitting.result.FitWarning")
def test_white_noise_has_no_standard_errors_where_the_length_scale_does_not_matter():
    grid = sd.Grid((20, 24))
    white = torch.randn(6, 1, 20, 24, generator=torch.Generator().manual_seed(2))
    found = sd.fit(Matern(1.5, 2.0) + Nugget(0.1), white, grid, method="variogram")
    assert math.isnan(found.standard_errors["lengthscale"])
    assert abs(found.parameters["nugget"] + found.parameters["variance"] - 1.0) < 0.5
