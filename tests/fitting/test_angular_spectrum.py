"""The non-parametric spectrum on spheres: both grids, with poles and without, against known spectra."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import SphereCovariance
from spatialdiff.covariance.spheres.harmonics import Harmonics
from spatialdiff.fitting import observe
from spatialdiff.fitting.kernel_state import kernel_from_state, kernel_state
from spatialdiff.fitting.nonparametric.angular import Coupling, estimate_angular_spectrum
from spatialdiff.kernels import LegendreSeries, Nugget

F64 = torch.float64
GRIDS = [
    pytest.param(sd.Sphere((15, 30), "gauss_legendre"), id="gauss-legendre"),
    pytest.param(sd.Sphere((15, 30)), id="poles"),
    pytest.param(sd.Sphere((14, 29), radius=3.0, poles=False), id="no-poles"),
]


def highest(sphere):
    return min(sphere.shape[0] - 1, (sphere.shape[1] - 1) // 2)


def truth(sphere, first=3.0):
    degree = torch.arange(highest(sphere) + 1, dtype=F64)
    spectrum = 2.0 / (1.0 + degree).pow(2.5)
    spectrum[0] = first
    return spectrum


def simulate(sphere, number, nugget=0.05, seed=0, first=3.0):
    gamma = SphereCovariance(LegendreSeries(truth(sphere, first)) + Nugget(nugget), sphere).double()
    return gamma.sample((number,), generator=torch.Generator().manual_seed(seed)).detach()


@pytest.mark.parametrize("sphere", GRIDS)
def test_expected_power_is_that_of_all_harmonics(sphere):
    """``M`` and ``b`` from the field of every single harmonic and of every single site."""
    lmax = 6
    coupled = Coupling(sphere, lmax)
    harmonics = Harmonics(sphere, lmax)
    size = (lmax + 1) ** 2
    eye = torch.eye(size, dtype=F64).reshape(size, lmax + 1, lmax + 1)
    power = coupled.power(harmonics.synthesis(eye))
    expected = torch.zeros(lmax + 1, lmax + 1, dtype=F64)
    expected.index_add_(1, harmonics.degrees.flatten(), power.T.contiguous())
    torch.testing.assert_close(coupled.matrix, expected)
    sites = sphere.shape[0] * sphere.shape[1]
    each = coupled.power(torch.eye(sites, dtype=F64).reshape(sites, *sphere.shape)).sum(0)
    torch.testing.assert_close(each, torch.full_like(each, coupled.white))


def test_power_is_that_of_the_quadrature_where_it_is_exact():
    sphere = sd.Sphere((9, 17), "gauss_legendre")
    x = torch.randn(3, 9, 17, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(Coupling(sphere, 8).power(x), Harmonics(sphere, 8).power(x))
    torch.testing.assert_close(Coupling(sphere, 8).matrix, torch.eye(9, dtype=F64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("nugget", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("sphere", GRIDS)
def test_known_spectrum_and_nugget_are_recovered(sphere, nugget):
    count = 200
    x = simulate(sphere, count, nugget) if nugget else simulate(sphere, count, 1e-9)
    found = estimate_angular_spectrum(observe(x, sphere, None))
    expected, degree = truth(sphere), torch.arange(highest(sphere) + 1, dtype=F64)
    # chi-square of the degree's own power, white noise included, and 7 % of smoothing at the ends
    error = (expected + nugget * 0.04) * (2.0 / ((2.0 * degree + 1.0) * count)).sqrt()
    assert bool(((found.spectrum[0] - expected).abs() < 4.5 * error + 0.07 * expected).all())
    # the white part is what is left of the total, whose chi-square error is that of the degrees
    weight = (2.0 * degree + 1.0) / (4.0 * math.pi)
    spread = float((weight * error)[1:].square().sum().sqrt()) + nugget * math.sqrt(2.0 / (count * 400))
    assert abs(float(found.nugget[0]) - nugget) < 5.0 * spread
    bins = found.bins
    assert bins.wavenumber[0] == 0.0
    assert float(bins.power[0, 0]) == pytest.approx(
        float(x.mul(sphere.weights / sphere.radius**2).sum((1, 2)).square().mean()) / (4.0 * math.pi),
        rel=1e-9,
    )


@pytest.mark.parametrize("mean", [None, "constant", "field"])
@pytest.mark.parametrize("sphere", GRIDS)
def test_variance_is_that_of_the_data_at_every_latitude(sphere, mean):
    x = simulate(sphere, 25, seed=2) + 2.0
    data = observe(x, sphere, mean)
    found = estimate_angular_spectrum(data)
    gamma = sd.covariance(found.kernel(), sphere).double()
    variance = gamma.variance()
    torch.testing.assert_close(variance, torch.full_like(variance, found.variance))
    area = sphere.weights / sphere.weights.sum()
    at_mean = (data.values[:, 0] * area).sum((1, 2)).square().sum()
    total = (data.values[:, 0].square() * area).sum() / data.count
    other = float(total - at_mean / data.count)
    # the mean over the sphere as it is, less what white noise and other degrees leave in it
    assert found.variance == pytest.approx(other + float(at_mean) / data.count_at_zero, rel=0.02)
    assert found.share == pytest.approx(float(at_mean) / data.count_at_zero / found.variance, rel=0.05)
    assert math.isfinite(float(gamma.log_prob(x).detach().sum()))


def test_white_noise_has_no_spectrum():
    sphere = sd.Sphere((12, 24))
    gamma = SphereCovariance(Nugget(1.5) + Nugget(0.5), sphere).double()
    x = gamma.sample((100,), generator=torch.Generator().manual_seed(3)).detach()
    found = estimate_angular_spectrum(observe(x, sphere, None))
    share = (2.0 * torch.arange(found.spectrum.shape[1], dtype=F64) + 1.0) / (4.0 * math.pi)
    assert float(found.nugget[0]) == pytest.approx(2.0, abs=5.0 * 2.0 * math.sqrt(2.0 / (100 * 150)))
    assert float(found.spectrum[0] @ share) < 0.05 * 2.0


def test_errors_cover_variance_and_share():
    sphere = sd.Sphere((10, 20), "gauss_legendre")
    expected = truth(sphere)
    weight = (2.0 * torch.arange(len(expected), dtype=F64) + 1.0) / (4.0 * math.pi)
    variance = float(expected @ weight) + 0.05
    share = float(expected[0] * weight[0]) / variance
    squares = []
    for seed in range(60):
        found = estimate_angular_spectrum(observe(simulate(sphere, 40, seed=seed), sphere, None))
        squares.append(
            [
                ((found.variance - variance) / found.variance_error) ** 2,
                ((found.share - share) / found.share_error) ** 2,
            ]
        )
    # the average of 60 squared normal scores, with room for the skewness of chi-square
    assert float((torch.tensor(squares).mean(0) - 1.0).abs().max()) < 5.0 * math.sqrt(2.0 / 60)


def test_channels_have_spectra_of_their_own():
    sphere = sd.Sphere((10, 20))
    x = simulate(sphere, 30)
    both = estimate_angular_spectrum(observe(torch.stack((x, 2.0 * x), dim=1), sphere, None))
    alone = estimate_angular_spectrum(observe(x, sphere, None))
    torch.testing.assert_close(both.spectrum[0], alone.spectrum[0])
    torch.testing.assert_close(both.spectrum[1], 4.0 * alone.spectrum[0])
    torch.testing.assert_close(both.nugget, torch.tensor([1.0, 4.0]) * alone.nugget)


def test_the_kernel_is_written_and_read():
    sphere = sd.Sphere((8, 16))
    found = estimate_angular_spectrum(observe(simulate(sphere, 10), sphere, None))
    again = kernel_from_state(kernel_state(found.kernel()))
    first, second = (sd.covariance(k, sphere).double().to_dense() for k in (found.kernel(), again))
    torch.testing.assert_close(first, second)


def test_single_field_takes_the_mean_from_the_longest_waves():
    sphere = sd.Sphere((12, 24))
    found = estimate_angular_spectrum(observe(simulate(sphere, 1), sphere, "constant"))
    assert float(found.spectrum[0, 0]) == pytest.approx(float(found.spectrum[0, 1]))
    assert math.isnan(found.share_error)
    x = simulate(sphere, 20)
    x = x - (x * sphere.weights).sum((1, 2), keepdim=True) / sphere.weights.sum()
    none = estimate_angular_spectrum(observe(x, sphere, None))
    assert none.at_floor
    assert float(none.spectrum.min()) > 0.0


def test_refuses():
    sphere = sd.Sphere((8, 16))
    x = simulate(sphere, 4)
    with pytest.raises(ValueError, match="positive"):
        estimate_angular_spectrum(observe(x, sphere, None), smoothing=0.0)
    with pytest.raises(TypeError, match="Sphere"):
        estimate_angular_spectrum(observe(x, sd.Grid((8, 16)), None))
    with pytest.raises(ValueError, match="along a pole"):
        estimate_angular_spectrum(observe(torch.randn(4, 8, 16).double(), sphere, None))
    with pytest.raises(ValueError, match="too coarse"):
        estimate_angular_spectrum(
            observe(torch.ones(5, 2, 4) * torch.randn(5, 1, 1), sd.Sphere((2, 4)), None)
        )
    gaps = x.clone()
    gaps[0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="every site observed"):
        estimate_angular_spectrum(observe(gaps, sphere, None, missing="omit"))
