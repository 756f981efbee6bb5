"""The non-parametric spectrum against a known one, and against the case it was made for."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
import spatialdiff.fitting
from spatialdiff.covariance import CosineBasis, CosineCovariance, FourierBasis, TorusCovariance
from spatialdiff.fitting.likelihoods.spectra import full_spectrum
from spatialdiff.fitting.nonparametric.smoothing import bin_index, smooth_radial, smooth_ratio

GRID = sd.Grid((32, 40), spacing=0.5)
PERIODIC = sd.Grid((32, 40), spacing=0.5, periodic=True)


def power_law(basis, zero):
    """A bent power law of |k| with a domain mean that fits no neighbour."""
    k = basis.wavenumbers
    spectrum = 10.0 / (1.0 + (k / 0.15).square()).pow(1.5) + 0.01
    spectrum.reshape(-1)[0] = zero
    return spectrum


CASES = [
    pytest.param(GRID, "cosine", CosineBasis, CosineCovariance, id="cosine"),
    pytest.param(PERIODIC, "torus", FourierBasis, TorusCovariance, id="torus"),
    pytest.param(PERIODIC, "cosine", CosineBasis, CosineCovariance, id="cosine-on-a-torus"),
]


def simulate(grid, basis, family, number, zero=200.0, seed=0):
    spectrum = power_law(basis(grid), zero)
    law = family.from_spectrum(grid, spectrum).double()
    return spectrum, law.sample((number,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize(("grid", "name", "basis", "family"), CASES)
def test_known_spectrum_is_recovered(grid, name, basis, family, isotropic):
    truth, x = simulate(grid, basis, family, 50)
    result = sd.fit(None, x, grid, method="spectrum", basis=name, mean=None, isotropic=isotropic)
    bins = result.bins
    weights, k = basis(grid).weights, basis(grid).wavenumbers
    index, number = bin_index(k.reshape(-1)[1:], 0.075)
    total = torch.zeros(number, dtype=torch.float64).index_add_(0, index, (weights * truth).reshape(-1)[1:])
    size = torch.zeros(number, dtype=torch.float64).index_add_(0, index, weights.reshape(-1)[1:])
    expected = torch.cat((truth.reshape(-1)[:1], total / size))
    # the bins' raw powers: chi-square errors, the largest of some 60 of them
    raw = (bins.power[0] - expected) / bins.standard_error[0]
    assert float(raw.abs().max()) < 4.5
    # the smooth spectrum: its own errors, and up to 2 % of smoothing bias
    smooth = (bins.smooth[0] - expected).abs()
    assert bool((smooth < 4.5 * bins.smooth_standard_error[0] + 0.02 * expected).all())
    # smoothing pays: the smooth errors are smaller where there are few modes
    assert float(bins.smooth_standard_error[0, 1:8].mean()) < float(bins.standard_error[0, 1:8].mean())
    assert float(result.spectrum.min()) > 0.0


@pytest.mark.parametrize("mean", [None, "constant", "field"])
@pytest.mark.parametrize(("grid", "name", "basis", "family"), CASES)
def test_total_variance_and_mean_share_are_those_of_the_data(grid, name, basis, family, mean):
    _, x = simulate(grid, basis, family, 20)
    x = x + 3.0
    result = sd.fit(None, x, grid, method="spectrum", basis=name, mean=mean)
    modelled = float((basis(grid).weights * result.spectrum).sum()) / grid.size
    assert result.parameters["variance"] == pytest.approx(modelled)
    assert float(result.covariance.variance().mean()) == pytest.approx(modelled)
    offset = {None: 0.0, "constant": x.mean(), "field": x.mean(0)}[mean]
    centred, freedom = x - offset, {None: 20, "constant": 19, "field": 19}[mean]
    at_zero = float(centred.flatten(1).mean(1).square().sum()) / freedom
    rest = float((centred - centred.mean(dim=(1, 2), keepdim=True)).square().sum()) / grid.size
    rest = rest / (19 if mean == "field" else 20)
    assert modelled == pytest.approx(at_zero + rest)
    assert result.parameters["mean_share"] == pytest.approx(at_zero / (at_zero + rest))


def test_standard_errors_cover_variance_and_share():
    squares = []
    truth = power_law(CosineBasis(GRID), 200.0)
    variance = float(truth.mean())
    share = 200.0 / float(truth.sum())
    for seed in range(60):
        _, x = simulate(GRID, CosineBasis, CosineCovariance, 50, seed=seed)
        result = sd.fit(None, x, GRID, method="spectrum", mean=None)
        squares.append(
            [
                ((result.parameters[name] - value) / result.standard_errors[name]) ** 2
                for name, value in (("variance", variance), ("mean_share", share))
            ]
        )
    # the average of 60 squared normal scores has standard deviation √(2/60), with room for the skewness of
    # χ²₅₀
    assert float((torch.tensor(squares).mean(0) - 1.0).abs().max()) < 5.0 * math.sqrt(2.0 / 60)


def test_log_likelihood_is_that_of_the_covariance():
    _, x = simulate(GRID, CosineBasis, CosineCovariance, 10)
    result = sd.fit(None, x, GRID, method="spectrum", mean=None)
    assert result.log_likelihood == pytest.approx(float(result.covariance.double().log_prob(x).sum()))
    assert result.kernel is None
    assert (result.method, result.basis) == ("spectrum", "cosine")
    assert sd.fit(None, x, PERIODIC, method="spectrum").basis == "torus"


def test_channels_have_spectra_of_their_own():
    truth, x = simulate(GRID, CosineBasis, CosineCovariance, 40)
    both = torch.stack((x, 3.0 * x), dim=1)
    result = sd.fit(None, both, GRID, method="spectrum")
    alone = sd.fit(None, x, GRID, method="spectrum")
    assert result.spectrum.shape == (2, *GRID.shape)
    torch.testing.assert_close(result.spectrum[0], alone.spectrum)
    torch.testing.assert_close(result.spectrum[1], 9.0 * alone.spectrum)
    assert result.covariance.event_shape == (2, *GRID.shape)
    assert result.mean.shape == (2, 1, 1)
    assert truth.shape == GRID.shape


def test_anisotropy_is_kept_only_when_asked_for():
    basis = CosineBasis(GRID)
    first, second = (torch.arange(n, dtype=torch.float64) / (2 * n * 0.5) for n in GRID.shape)
    truth = 10.0 / (1.0 + (first[:, None] / 0.3).square() + (second[None, :] / 0.08).square()).pow(1.5) + 0.01
    x = (
        CosineCovariance.from_spectrum(GRID, truth)
        .double()
        .sample((200,), generator=torch.Generator().manual_seed(4))
    )
    full = sd.fit(None, x, GRID, method="spectrum", mean=None, isotropic=False)
    radial = sd.fit(None, x, GRID, method="spectrum", mean=None)
    error = lambda fit: (fit.spectrum.log() - truth.log()).square().mean().sqrt()  # noqa: E731
    assert float(error(full)) < 0.15
    assert float(error(radial)) > 3.0 * float(error(full))
    assert full.log_likelihood > radial.log_likelihood
    k = basis.wavenumbers.reshape(-1)
    order = k.argsort(stable=True)
    same = (k[order].diff() < 1e-12).nonzero().reshape(-1)
    values = radial.spectrum.reshape(-1)[order]
    torch.testing.assert_close(values[same], values[same + 1])


@pytest.mark.filterwarnings("ignore::spatialdiff.fitting.FitWarning")
def test_few_fields_are_smoothed_more():
    _, x = simulate(GRID, CosineBasis, CosineCovariance, 400, seed=9)
    few, many = (sd.fit(None, x[:n], GRID, method="spectrum", mean=None) for n in (2, 400))
    assert few.derived["effective_parameters"][0] < many.derived["effective_parameters"][0]


def test_single_field_takes_the_mean_from_the_longest_waves_and_says_so():
    _, x = simulate(GRID, CosineBasis, CosineCovariance, 1)
    with pytest.warns(sd.fitting.FitWarning, match="mean over the domain"):
        result = sd.fit(None, x, GRID, method="spectrum")
    assert float(result.spectrum.min()) > 0.0
    assert math.isnan(result.standard_errors["mean_share"])


def test_fields_without_a_domain_mean_keep_an_invertible_covariance():
    _, x = simulate(GRID, CosineBasis, CosineCovariance, 20)
    x = x - x.mean(dim=(1, 2), keepdim=True)
    with pytest.warns(sd.fitting.FitWarning, match="taken off every field"):
        result = sd.fit(None, x, GRID, method="spectrum", mean=None)
    assert float(result.spectrum.min()) > 0.0
    assert math.isfinite(result.log_likelihood)
    torch.testing.assert_close(result.covariance.double().solve(result.covariance.matmul(x[0])), x[0])


def test_a_domain_mean_from_three_fields_is_called_poorly_identified():
    _, x = simulate(GRID, CosineBasis, CosineCovariance, 3)
    with pytest.warns(sd.fitting.FitWarning, match="poorly identified"):
        sd.fit(None, x, GRID, method="spectrum", mean="constant")


def test_works_in_one_and_three_dimensions():
    for grid in (sd.Grid((200,)), sd.Grid((12, 10, 8)), sd.Grid((9, 7, 11), periodic=True)):
        x = torch.randn(30, *grid.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        result = sd.fit(None, x, grid, method="spectrum", mean=None)
        bins = result.bins
        assert float(((bins.smooth[0] - 1.0).abs() / bins.smooth_standard_error[0]).max()) < 5.0
        assert result.derived["effective_range"][0] < 1.5


@pytest.mark.parametrize("grid", [GRID, PERIODIC])
def test_effective_range_of_an_exponential(grid):
    kernel = sd.kernels.Exponential(lengthscale=0.8)
    x = (
        sd.covariance(kernel, grid)
        .double()
        .sample((300,), generator=torch.Generator().manual_seed(1))
        .detach()
    )
    result = sd.fit(None, x, grid, method="spectrum", mean=None)
    # 3 ℓ; half a grid spacing for the interpolation and the basis' boundary
    assert abs(result.derived["effective_range"][0] - 3.0 * 0.8) < 0.25 + 0.1


def test_bad_options():
    x = torch.randn(3, *GRID.shape)
    for options, match in (
        ({"smoothing": 0.0}, "positive"),
        ({"basis": "wavelet"}, "cosine, torus"),
        ({"basis": "torus"}, "periodic along every axis"),
    ):
        with pytest.raises(ValueError, match=match):
            sd.fit(None, x, GRID, method="spectrum", **options)
    with pytest.raises(ValueError, match="at least 4 sites"):
        sd.fit(None, torch.randn(5, 3), sd.Grid((3,)), method="spectrum")


def test_local_likelihood_reproduces_a_power_law_exactly_and_positively():
    k = torch.linspace(1.0, 40.0, 400, dtype=torch.float64)
    power = 7.0 * k.pow(-3.0)
    smooth = smooth_radial(power, k, torch.full_like(k, 10.0), 0.2)
    # bins average a convex function, a few tenths of a percent
    torch.testing.assert_close(smooth.spectrum, power, rtol=0.02, atol=0.0)
    power[50] = 0.0
    assert float(smooth_radial(power, k, torch.full_like(k, 1.0), 0.2).spectrum.min()) > 0.0


def test_local_likelihood_keeps_the_arithmetic_mean():
    """A geometric mean of a scattered spectrum would be too low: log-normal scatter with variance 1, by a
    factor 0.6."""
    k = torch.linspace(1.0, 2.0, 4000, dtype=torch.float64)
    scatter = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    smooth = smooth_radial(scatter, k, torch.full_like(k, 1.0), 5.0)
    assert float(smooth.spectrum.mean()) == pytest.approx(float(scatter.mean()), rel=0.02)


@pytest.mark.parametrize("circular", [True, False])
def test_smooth_ratio_keeps_a_constant_and_ignores_what_has_no_weight(circular):
    ratio, weight = torch.ones(9, 6, dtype=torch.float64), torch.ones(9, 6, dtype=torch.float64)
    ratio[0, 0], weight[0, 0] = 1e6, 0.0
    torch.testing.assert_close(smooth_ratio(ratio, weight, 2.0, [circular] * 2), torch.ones(9, 6).double())


@pytest.mark.parametrize("shape", [(6,), (7,), (5, 6), (4, 5, 6), (4, 6, 7)])
def test_full_spectrum_from_its_half(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = torch.fft.rfftn(x).abs().square()
    torch.testing.assert_close(full_spectrum(half, shape), torch.fft.fftn(x).abs().square())


@pytest.mark.filterwarnings("ignore::spatialdiff.fitting.FitWarning")
def test_temperature_anomalies_where_an_exponential_invents_a_domain_mean():
    """Winter-to-winter anomalies over North America (A1B run): the story the spectrum method was made for."""
    h5py = pytest.importorskip("h5py")
    samples = pytest.importorskip("iris_sample_data")
    with h5py.File(f"{samples.path}/A1B_north_america.nc") as file:
        x = torch.from_numpy(file["air_temperature"][:, 2:34, :48]).double()
    years = torch.linspace(-1.0, 1.0, len(x), dtype=torch.float64)
    trend = torch.stack([years**power for power in range(4)], dim=1)
    x = x - (trend @ torch.linalg.lstsq(trend, x.flatten(1)).solution).reshape(x.shape)
    x = x / x.std(0).mean()
    grid = sd.Grid((32, 48))
    with pytest.warns(sd.fitting.FitWarning, match="into the mean over the domain"):
        family = sd.fit(sd.kernels.Exponential(8.0), x, grid, method="whittle", mean="field", starts=2)
    smooth = sd.fit(None, x, grid, method="spectrum", mean="field")
    assert smooth.warnings == []
    assert 0.1 < smooth.mean_share.data < 0.25
    assert smooth.mean_share.model == pytest.approx(smooth.mean_share.data)
    assert family.mean_share.model > 2.5 * family.mean_share.data
    # right at every scale: every bin of 1000 replicated modes within a factor 1.5 (the corners of the
    # spectrum), 10 % on average
    well = smooth.bins.dof > 1000
    off = (smooth.bins.smooth[0, well] / smooth.bins.power[0, well]).log()
    assert float(off.abs().max()) < math.log(1.5)
    assert float(off.square().mean().sqrt()) < 0.1
