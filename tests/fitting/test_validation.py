"""Cross-validation against R's gstat, and against kriging each fold by hand; scores against quadrature."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import scipy.integrate
import scipy.stats
import torch

import spatialdiff as sd
from spatialdiff.fitting.inference.scores import (
    energy_score,
    ensemble_crps,
    gaussian_crps,
    gaussian_interval_score,
    gaussian_log_score,
    gaussian_pit,
)
from spatialdiff.fitting.inference.validation import DENSE_VALUES, cross_validate
from spatialdiff.kernels import Coregionalization, Exponential, Matern, Nugget

F64 = torch.float64
ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "cross_validation.json").read_text())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, seed=0):
    return sd.Points(torch.rand(n, 2, generator=generator(seed), dtype=F64))


def kernel():
    return Matern(nu=1.5, lengthscale=0.3, variance=1.2) + Nugget(0.15)


def draw(domain, number, seed=1):
    return sd.covariance(kernel(), domain).double().sample((number,), generator=generator(seed)).detach()


# ---- R gstat
@pytest.mark.parametrize("case", ["ordinary", "folds", "universal"])
def test_agrees_with_gstat_on_meuse(case):
    sites = torch.tensor([ORACLE["x"], ORACLE["y"]], dtype=F64).T
    value = torch.tensor(ORACLE["zinc"], dtype=F64).log()
    drift = torch.tensor(ORACLE["dist"], dtype=F64).sqrt().unsqueeze(1)
    model = Exponential(lengthscale=ORACLE["lengthscale"], variance=ORACLE["variance"])
    found = cross_validate(
        (model + Nugget(ORACLE["nugget"])).double(),
        value,
        sd.Points(sites),
        mean=drift if case == "universal" else "constant",
        folds=torch.tensor(ORACLE["labels"]).long() if case == "folds" else "loo",
    )
    expected = {name: torch.tensor(values, dtype=F64) for name, values in ORACLE[case].items()}
    for name, values in (
        ("prediction", found.mean),
        ("variance", found.variance),
        ("residual", found.errors),
        ("zscore", found.standardised),
    ):
        torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-8)


# ---- brute force
def by_hand(gamma, design, values, seen, labels):
    """Universal kriging of each fold from what is outside it, all fields together, dense."""
    count = len(values)
    whole = torch.block_diag(*[gamma] * count)
    columns = design.repeat(count, 1)
    y, observed, fold = values.reshape(-1), seen.reshape(-1), labels.repeat(count)
    errors, variances = torch.full_like(y, math.nan), torch.full_like(y, math.nan)
    for label in labels[labels >= 0].unique():
        out = (observed & (fold == label)).nonzero().squeeze(-1)
        kept = (observed & (fold != label)).nonzero().squeeze(-1)
        if len(out) == 0:
            continue
        inverse = torch.linalg.inv(whole[kept[:, None], kept])
        x, cross = columns[kept], whole[out[:, None], kept]
        information = x.T @ inverse @ x
        beta = torch.linalg.solve(information, x.T @ inverse @ y[kept])
        prediction = columns[out] @ beta + cross @ inverse @ (y[kept] - x @ beta)
        rest = columns[out] - cross @ inverse @ x
        variance = whole[out[:, None], out] - cross @ inverse @ cross.T
        variance = variance + rest @ torch.linalg.solve(information, rest.T)
        errors[out], variances[out] = y[out] - prediction, variance.diagonal()
    return errors.reshape(values.shape), variances.reshape(values.shape)


DESIGNS = {
    "constant": lambda s: torch.ones(len(s), 1, dtype=F64),
    "linear": lambda s: torch.cat((torch.ones(len(s), 1, dtype=F64), s), dim=1),
}


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("mean", ["constant", "linear"])
@pytest.mark.parametrize("folds", ["loo", 4, "blocks"])
def test_equals_kriging_of_every_fold(mean, folds, gaps):
    domain, noise = points(30), torch.linspace(0.0, 0.3, 30, dtype=F64)
    x = draw(domain, 3) + 5.0
    if gaps:
        x[0, 4], x[1, 7:12], x[2, 4] = math.nan, math.nan, math.nan
    options = {"block_size": 0.4} if folds == "blocks" else {}
    found = cross_validate(kernel(), x, domain, mean=mean, folds=folds, noise=noise, **options)
    sites = domain.sites()
    gamma = sd.covariance(kernel(), domain, method="dense").to_dense().detach() + torch.diag(noise)
    errors, variances = by_hand(gamma, DESIGNS[mean](sites), x.nan_to_num(), torch.isfinite(x), found.folds)
    torch.testing.assert_close(found.errors, errors, rtol=0, atol=1e-9, equal_nan=True)
    torch.testing.assert_close(found.variance, variances, rtol=1e-9, atol=0, equal_nan=True)
    assert found.count == int(torch.isfinite(x).sum())


@pytest.mark.parametrize("known", [None, torch.tensor(5.0, dtype=F64)])
def test_known_mean_is_simple_kriging(known):
    domain = points(20)
    x = draw(domain, 1) + (0.0 if known is None else 5.0)
    found = cross_validate(kernel(), x, domain, mean=known)
    gamma = sd.covariance(kernel(), domain, method="dense").to_dense().detach()
    centred = x - (0.0 if known is None else known)
    precision = torch.linalg.inv(gamma)
    torch.testing.assert_close(found.errors, centred @ precision / precision.diagonal())
    torch.testing.assert_close(found.variance[0], 1.0 / precision.diagonal())


def test_masked_grids_labels_and_channels():
    grid = sd.Grid((6, 5), spacing=0.2)
    masked = grid.masked(torch.arange(30).reshape(6, 5) % 4 != 1)
    x = sd.covariance(kernel(), grid).double().sample((2, 3), generator=generator(3)).detach()
    x = torch.where(masked.valid, x, torch.nan)
    labels = (torch.arange(30).reshape(6, 5) % 3) - 1
    found = cross_validate(kernel(), x, masked, folds=labels)
    assert found.errors.shape == x.shape
    predicted = torch.isfinite(found.errors)
    assert torch.equal(predicted, (masked.valid & (labels >= 0)).expand(x.shape))
    alone = cross_validate(kernel(), x[:, 1], masked, folds=labels)
    torch.testing.assert_close(found.errors[:, 1], alone.errors, equal_nan=True)
    sites = sd.Points(masked.sites())
    flat = cross_validate(kernel(), masked.flatten(x), sites, folds=masked.flatten(labels))
    torch.testing.assert_close(masked.flatten(found.errors), flat.errors, equal_nan=True)


def test_coregionalised_channels_are_predicted_jointly_and_left_out_together():
    domain = points(15)
    b = torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=F64)
    model = Coregionalization([(b, Exponential(0.4) + Nugget(0.1))]).double()
    x = sd.covariance(model, domain).double().sample((2,), generator=generator(5)).detach()
    found = cross_validate(model, x, domain)
    gamma = sd.covariance(model, domain).to_dense().detach()
    design = torch.block_diag(torch.ones(15, 1, dtype=F64), torch.ones(15, 1, dtype=F64))
    errors, variances = by_hand(
        gamma, design, x.flatten(1), torch.ones(2, 30, dtype=torch.bool), torch.arange(15).repeat(2)
    )
    torch.testing.assert_close(found.errors.flatten(1), errors, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.variance.flatten(1), variances)
    one = cross_validate(sd.covariance(model, domain), x, domain)
    torch.testing.assert_close(one.errors, found.errors)


def test_a_covariance_and_a_fit_are_models_as_well():
    grid = sd.Grid((7, 6))
    x = sd.covariance(Exponential(2.0) + Nugget(0.1), grid).double().sample((30,), generator=generator(2))
    fit = sd.fit(Exponential(2.0) + Nugget(0.1), x.detach(), grid, fixed={"nugget": 0.1}, starts=1)
    from_fit = cross_validate(fit, x.detach(), grid)
    from_kernel = cross_validate(fit.kernel, x.detach(), grid)
    from_gamma = cross_validate(fit.covariance, x.detach(), grid)
    torch.testing.assert_close(from_fit.errors, from_kernel.errors)
    torch.testing.assert_close(from_fit.errors, from_gamma.errors)


def test_a_pole_is_left_out_once():
    sphere = sd.Sphere((5, 6))
    gamma = sd.covariance(Exponential(1.5) + Nugget(0.05), sphere).double().requires_grad_(False)
    x = gamma.sample((2,), generator=generator(4))
    found = cross_validate(gamma, x, sphere, mean=None)
    assert found.count == 2 * sphere.size
    sites = torch.cat((sphere.coordinates()[[0, -1], 0], sphere.coordinates()[1:-1].reshape(-1, 3)))
    flat = torch.cat((x[:, [0, -1], 0], x[:, 1:-1].flatten(1)), dim=1)
    other = cross_validate(Exponential(1.5) + Nugget(0.05), flat, sd.Points(sites), mean=None)
    torch.testing.assert_close(found.errors[:, 1:-1].flatten(1), other.errors[:, 2:], rtol=1e-6, atol=1e-8)


def test_without_noise_the_variance_is_that_of_the_field():
    domain = points(25)
    x = draw(domain, 1)
    whole = cross_validate(kernel(), x, domain, noise=0.2)
    field = cross_validate(kernel(), x, domain, noise=0.2, noise_free=True)
    torch.testing.assert_close(whole.variance - field.variance, torch.full_like(x, 0.35), rtol=0, atol=1e-7)
    torch.testing.assert_close(whole.standardised, field.standardised)
    assert whole.crps == field.crps


def test_is_calibrated_where_the_model_is_right_and_says_where_it_is_not():
    domain = points(200)
    x = draw(domain, 20)
    found = cross_validate(kernel(), x, domain)
    # 4000 errors, neighbours weakly correlated: 5 standard errors of as many independent ones
    assert abs(found.standardised_variance - 1.0) < 5.0 * math.sqrt(2.0 / 4000)
    for level in (0.5, 0.8, 0.95):
        assert abs(found.coverage(level) - level) < 5.0 * math.sqrt(level * (1 - level) / 4000)
    assert abs(found.bias) < 5.0 * found.rmse / math.sqrt(4000)
    wrong = cross_validate(Matern(1.5, 0.3, 0.3) + Nugget(0.15 / 4), x, domain)
    torch.testing.assert_close(wrong.errors, found.errors)
    assert wrong.standardised_variance == pytest.approx(4.0 * found.standardised_variance)
    assert wrong.crps > found.crps
    assert wrong.log_score > found.log_score
    assert wrong.interval_score() > found.interval_score()
    for text in ("one site left out", "CRPS", "coverage of 95%"):
        assert text in str(found)


def test_blocks_are_harder_than_single_sites():
    domain = points(150)
    x = draw(domain, 2)
    single = cross_validate(kernel(), x, domain)
    blocks = cross_validate(kernel(), x, domain, folds="blocks", block_size=0.3)
    assert blocks.rmse > single.rmse
    assert abs(blocks.standardised_variance - 1.0) < 0.5
    again = cross_validate(kernel(), x, domain, folds=5, seed=3)
    torch.testing.assert_close(again.errors, cross_validate(kernel(), x, domain, folds=5, seed=3).errors)


def test_refuses_what_cannot_be_validated():
    domain, x = points(12), draw(points(12), 2)
    grid = sd.Grid((4, 4))
    for options, match in (
        ({"mean": "field"}, "mean='field'"),
        ({"folds": 1}, "between 2"),
        ({"folds": "tiles"}, "'loo', 'blocks'"),
        ({"folds": "blocks"}, "block_size"),
        ({"folds": "blocks", "block_size": -1.0}, "positive"),
        ({"block_size": 1.0}, "for folds='blocks'"),
        ({"folds": torch.zeros(12).long()}, "one fold"),
        ({"folds": torch.zeros(11).long()}, "labels"),
        ({"noise": -0.1}, "negative"),
        ({"noise": torch.ones(3)}, "one per site"),
        ({"mean": "linear", "folds": torch.arange(12).clamp(max=1) * 1}, "cannot be estimated"),
    ):
        with pytest.raises(ValueError, match=match):
            cross_validate(kernel(), x, domain, **options)
    big = sd.Grid((101, 100))
    assert big.size > DENSE_VALUES
    with pytest.raises(ValueError, match="limit is"):
        cross_validate(kernel(), torch.randn(101, 100), big)
    with pytest.raises(ValueError, match="positive definite"):
        cross_validate(sd.kernels.Gaussian(8.0), torch.randn(3, 12, 12), sd.Grid((12, 12)), mean=None)
    with pytest.raises(ValueError, match="noise_free"):
        cross_validate(sd.covariance(kernel(), domain), x, domain, noise_free=True)
    with pytest.raises(ValueError, match="the fields on"):
        cross_validate(sd.covariance(Exponential(2.0), grid), x, domain)
    with pytest.raises(TypeError, match="kernel, a covariance or a fit"):
        cross_validate("matern", x, domain)


# ---- scores
CASES = [(0.0, 1.0, 0.3), (2.0, 0.5, -1.0), (-1.0, 3.0, 4.0)]


@pytest.mark.parametrize(("mean", "deviation", "value"), CASES)
def test_scores_against_quadrature(mean, deviation, value):
    law = scipy.stats.norm(mean, deviation)
    tensors = [torch.tensor(v, dtype=F64) for v in (mean, deviation, value)]
    far = 40.0 * deviation + abs(value)
    below = scipy.integrate.quad(lambda t: law.cdf(t) ** 2, mean - far, value, epsabs=1e-12)[0]
    above = scipy.integrate.quad(lambda t: law.sf(t) ** 2, value, mean + far, epsabs=1e-12)[0]
    assert float(gaussian_crps(*tensors)) == pytest.approx(below + above, abs=1e-9)
    assert float(gaussian_log_score(*tensors)) == pytest.approx(-law.logpdf(value), abs=1e-12)
    assert float(gaussian_pit(*tensors)) == pytest.approx(law.cdf(value), abs=1e-12)
    low, high = law.interval(0.9)
    outside = max(low - value, 0.0) + max(value - high, 0.0)
    expected = high - low + 20.0 * outside
    assert float(gaussian_interval_score(*tensors, 0.9)) == pytest.approx(expected, abs=1e-9)


def test_ensemble_scores_are_unbiased():
    """The mean of small ensembles' scores is that of the law, within 5 standard errors."""
    members = torch.randn(4, 20_000, generator=generator(1), dtype=F64)
    value = torch.full((20_000,), 0.7, dtype=F64)
    scores = ensemble_crps(members, value)
    exact = float(gaussian_crps(torch.zeros(()).double(), torch.ones(()).double(), value[0]))
    assert abs(float(scores.mean()) - exact) < 5.0 * float(scores.std()) / math.sqrt(20_000)


def test_energy_score_by_definition():
    members = torch.randn(6, 2, 3, 4, generator=generator(2), dtype=F64)
    value = torch.randn(2, 3, 4, generator=generator(3), dtype=F64)
    found = energy_score(members, value, dims=2)
    for batch in range(2):
        rows, y = members[:, batch].flatten(1), value[batch].flatten()
        expected = (rows - y).norm(dim=1).mean() - torch.cdist(rows, rows).sum() / (2 * 6 * 5)
        torch.testing.assert_close(found[batch], expected)


def test_scores_refuse_a_forecast_without_spread():
    zero = torch.zeros(3, dtype=F64)
    with pytest.raises(ValueError, match="above 0"):
        gaussian_crps(zero, zero, zero)
    with pytest.raises(ValueError, match="between 0 and 1"):
        gaussian_interval_score(zero, zero + 1, zero, 95.0)
    with pytest.raises(ValueError, match="at least 2"):
        energy_score(zero.unsqueeze(0), zero)
