"""Shrinkage and empirical orthogonal functions against dense linear algebra and known covariances."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import BlockCovariance, DenseCovariance, LowRankCovariance
from spatialdiff.fitting import observe
from spatialdiff.fitting.nonparametric.eof import estimate_eof
from spatialdiff.fitting.nonparametric.shrinkage import estimate_shrinkage, shrunk_covariance
from spatialdiff.kernels import Exponential, Matern, Nugget

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_normal(x, gamma):
    law = torch.distributions.MultivariateNormal(torch.zeros(len(gamma), dtype=F64), gamma)
    return law.log_prob(x)


# ---- shrinkage
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("mean", [None, "field"])
def test_leave_out_likelihood_is_that_of_dense_matrices(mean, block):
    grid = sd.Grid((3, 4))
    target = DenseCovariance(Exponential(1.5), grid).double().requires_grad_(False)
    x = torch.randn(10, 3, 4, generator=generator(), dtype=F64) + 0.3
    found = estimate_shrinkage(observe(x, grid, mean), target, block=block)
    matrix, flat = target.to_dense(), x.flatten(1)
    for index in (0, 25, 50):
        w = float(found.weights[index])
        total = 0.0
        for start in range(0, 10, block):
            inside = torch.ones(10, dtype=torch.bool)
            inside[start : start + block] = False
            train, test = flat[inside], flat[~inside]
            if mean is None:
                empirical = train.T @ train / len(train)
                total += float(log_normal(test, (1 - w) * empirical + w * matrix).sum())
                continue
            # the held-out fields about the mean of the others, as one vector: I + 11ᵀ/m times Γ
            centred = train - train.mean(0)
            gamma = (1 - w) * centred.T @ centred / (len(train) - 1) + w * matrix
            joint = torch.eye(len(test), dtype=F64) + 1.0 / len(train)
            total += float(log_normal((test - train.mean(0)).flatten(), torch.kron(joint, gamma)))
            # the change of variables from residuals to contrasts of unit size
            total += 0.5 * flat.shape[1] * float(torch.logdet(joint))
        assert float(found.curve[index]) == pytest.approx(total / 10, rel=1e-9)
    assert found.weight == pytest.approx(float(found.weights[int(found.curve.argmax())]), rel=0.13)


def test_shrunk_covariance_is_the_weighted_sum():
    grid = sd.Grid((4, 5))
    target = DenseCovariance(Matern(1.5, 2.0) + Nugget(0.05), grid).double().requires_grad_(False)
    x = torch.randn(6, 4, 5, generator=generator(1), dtype=F64)
    found = estimate_shrinkage(observe(x, grid, "constant"), target, weight=0.4)
    centred = (x - x.mean()).flatten(1)
    expected = 0.6 * centred.T @ centred / 6 + 0.4 * target.to_dense()
    torch.testing.assert_close(found.covariance.to_dense(), expected)
    assert found.log_likelihood == pytest.approx(float(log_normal(centred, expected).sum()))
    again = shrunk_covariance(target, found.factors, found.weight)
    torch.testing.assert_close(again.to_dense(), expected)


def test_weight_is_one_for_the_truth_and_small_for_a_wrong_target():
    grid = sd.Grid((8, 8))
    right = sd.covariance(Exponential(3.0) + Nugget(0.1), grid).double().requires_grad_(False)
    wrong = sd.covariance(Exponential(1.0), grid).double().requires_grad_(False)
    x = right.sample((300,), generator=generator(2))
    data = observe(x, grid, None)
    assert estimate_shrinkage(data, right).weight > 0.9
    assert estimate_shrinkage(data, wrong).weight < 0.5
    assert estimate_shrinkage(data, wrong).gain > 1.0


def test_shrinkage_predicts_other_fields_better_than_either_part():
    """Stationary fields plus two patterns that are tied to places."""
    grid = sd.Grid((10, 10))
    base = sd.covariance(Exponential(3.0) + Nugget(0.1), grid).double().requires_grad_(False)
    patterns = torch.randn(2, 10, 10, generator=generator(3), dtype=F64)
    x = base.sample((80,), generator=generator(4))
    x = x + torch.tensordot(torch.randn(80, 2, generator=generator(5), dtype=F64), patterns, dims=1)
    train, test = x[:40], x[40:]
    target = sd.fit(None, train, grid, method="spectrum", mean=None).covariance.double()
    found = estimate_shrinkage(observe(train, grid, None), target)
    assert 0.02 < found.weight < 0.98
    held_out = float(found.covariance.log_prob(test).mean())
    assert held_out > float(target.log_prob(test).mean()) + 5.0
    # what the curve promised, within the scatter of 40 fields
    scatter = float(found.covariance.log_prob(test).std()) / math.sqrt(40)
    assert abs(held_out - float(found.curve.max())) < 5.0 * math.sqrt(2.0) * scatter


@pytest.mark.filterwarnings("ignore::spatialdiff.fitting.result.FitWarning")
def test_shrinkage_leaves_the_precision_of_its_target():
    grid = sd.Grid((8, 10))
    white = torch.randn(12, 1, 8, 10, generator=generator())  # no structure: the target alone, weight 1
    found = sd.fit(Matern(1.5, 2.0) + Nugget(0.1), white, grid, method="shrinkage")
    assert found.parameters["weight"] == 1.0
    assert found.covariance.sample((1,)).dtype == torch.float32


def test_shrinkage_of_channels_keeps_their_covariance():
    grid = sd.Grid((5, 4))
    one = torch.randn(30, 5, 4, generator=generator(6), dtype=F64)
    x = torch.stack((one, one + 0.3 * torch.randn(30, 5, 4, generator=generator(7), dtype=F64)), dim=1)
    part = DenseCovariance(Exponential(1.0), grid)
    target = BlockCovariance(part, DenseCovariance(Exponential(1.0), grid)).double().requires_grad_(False)
    found = estimate_shrinkage(observe(x, grid, None), target)
    cross = found.covariance.to_dense()[:20, 20:].diagonal()
    assert float(cross.mean()) > 0.3 * (1.0 - found.weight)
    assert found.covariance.event_shape == (2, 5, 4)


def test_shrinkage_on_a_sphere_counts_a_pole_once():
    sphere = sd.Sphere((6, 10))
    target = sd.covariance(Exponential(1.5) + Nugget(0.2), sphere).double().requires_grad_(False)
    x = target.sample((40,), generator=generator(8))
    found = estimate_shrinkage(observe(x, sphere, None), target)
    assert found.weight > 0.8
    kept = torch.ones(6, 10, dtype=torch.bool)
    kept[[0, -1], 1:] = False
    index = kept.flatten().nonzero().squeeze(-1)
    matrix = estimate_shrinkage(observe(x, sphere, None), target, weight=0.5).covariance
    dense = matrix.to_dense()[index[:, None], index]
    expected = log_normal(x.flatten(1)[:, index], dense)
    torch.testing.assert_close(matrix.log_prob(x), expected)


def test_shrinkage_refuses():
    grid = sd.Grid((3, 4))
    target = DenseCovariance(Exponential(1.0), grid)
    x = torch.randn(6, 3, 4, generator=generator(), dtype=F64)
    with pytest.raises(ValueError, match="weight is the share"):
        estimate_shrinkage(observe(x, grid, None), target, weight=0.0)
    with pytest.raises(ValueError, match="at least 2 others"):
        estimate_shrinkage(observe(x, grid, None), target, block=5)
    with pytest.raises(ValueError, match="the target is on"):
        estimate_shrinkage(observe(x, grid, None), DenseCovariance(Exponential(1.0), sd.Grid((4, 3))))
    with pytest.raises(ValueError, match="channels"):
        estimate_shrinkage(observe(torch.stack((x, x), 1), grid, None), target)
    x[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="observed at the same sites"):
        estimate_shrinkage(observe(x, grid, None, missing="omit"), target)


# ---- empirical orthogonal functions
def low_rank_fields(number, rank=3, noise=0.2):
    grid = sd.Grid((9, 8))
    patterns = torch.linalg.qr(torch.randn(72, rank, generator=generator(9), dtype=F64))[0].T
    size = torch.tensor([12.0, 8.0, 5.0, 3.0][:rank], dtype=F64)
    gamma = LowRankCovariance(grid, (patterns * size[:, None]).reshape(rank, 9, 8), noise).double()
    return grid, gamma, gamma.sample((number,), generator=generator(10))


def test_rank_is_that_of_the_truth():
    grid, gamma, x = low_rank_fields(200)
    found = estimate_eof(observe(x, grid, None))
    assert found.rank == 3
    assert found.separated >= 3
    _, _, test = low_rank_fields(400)
    loss = float((gamma.log_prob(test[200:]) - found.covariance.log_prob(test[200:])).mean())
    # about half a nat per estimated number and 200 fields
    assert loss < found.parameters / 200.0


@pytest.mark.parametrize("mean", [None, "constant", "field"])
def test_variance_of_every_site_is_that_of_the_data(mean):
    grid, _, x = low_rank_fields(40)
    x = x + 2.0
    found = estimate_eof(observe(x, grid, mean))
    offset = {None: 0.0, "constant": x.mean(), "field": x.mean(0)}[mean]
    count = 39 if mean == "field" else 40
    expected = (x - offset).square().sum(0) / count
    torch.testing.assert_close(found.covariance.variance(), expected)
    weighted = float((found.covariance.factors.square().sum()) / expected.sum())
    assert found.share == pytest.approx(weighted)


def test_given_rank_is_that_of_from_data():
    grid, _, x = low_rank_fields(30)
    found = estimate_eof(observe(x, grid, "field"), rank=4)
    expected = LowRankCovariance.from_data(x, grid, 4)
    torch.testing.assert_close(found.covariance.to_dense(), expected.to_dense())


def test_cross_validated_likelihood_by_hand():
    grid, _, x = low_rank_fields(20)
    found = estimate_eof(observe(x, grid, None), folds=4)
    total = 0.0
    for fold in torch.arange(20).chunk(4):
        inside = torch.ones(20, dtype=torch.bool)
        inside[fold] = False
        train = x[inside]
        _, s, vt = torch.linalg.svd(train.flatten(1), full_matrices=False)
        factors = s[:2, None] / math.sqrt(15) * vt[:2]
        left = train.flatten(1).square().mean(0) - factors.square().sum(0)
        total += float(log_normal(x[fold].flatten(1), factors.T @ factors + torch.diag(left)).sum())
    assert float(found.curve[1]) == pytest.approx(total / 20)


def test_area_weights_move_the_functions_and_keep_the_variances():
    sphere = sd.Sphere((8, 12), poles=False)
    gamma = sd.covariance(Exponential(1.5) + Nugget(0.05), sphere).double().requires_grad_(False)
    x = gamma.sample((60,), generator=generator(11))
    data = observe(x, sphere, None)
    plain, weighted = estimate_eof(data, rank=5), estimate_eof(data, rank=5, weights=sphere.weights)
    torch.testing.assert_close(weighted.covariance.variance(), plain.covariance.variance())
    assert not torch.allclose(weighted.covariance.factors, plain.covariance.factors)

    def explained(estimate):
        left = x.flatten(1).square().mean(0) - estimate.covariance.factors.square().sum(0).flatten()
        return 1.0 - float((sphere.weights.flatten() * left).sum())

    assert explained(weighted) > explained(plain)
    scaled = x * sphere.weights.sqrt()
    values = torch.linalg.svdvals(scaled.flatten(1)).square() / 60
    torch.testing.assert_close(weighted.eigenvalues, values)


def test_masked_cells_and_channels():
    grid = sd.Grid((6, 6)).masked(torch.arange(36).reshape(6, 6) % 5 != 0)
    patterns = torch.randn(2, 2, 6, 6, generator=generator(12), dtype=F64)
    x = torch.tensordot(torch.randn(50, 2, generator=generator(13), dtype=F64), patterns, dims=1)
    x = x + 0.1 * torch.randn(50, 2, 6, 6, generator=generator(14), dtype=F64)
    found = estimate_eof(observe(torch.where(grid.valid, x, math.nan), grid, None))
    assert found.rank == 2
    variance = found.covariance.variance()
    torch.testing.assert_close(grid.flatten(variance), grid.flatten(x.square().mean(0)))
    assert math.isfinite(found.log_likelihood)


def test_eof_refuses():
    grid, _, x = low_rank_fields(12)
    data = observe(x, grid, None)
    for options, match in (
        ({"rank": 0}, "rank must be"),
        ({"rank": 13}, "rank must be"),
        ({"folds": 13}, "folds"),
        ({"weights": torch.ones(3)}, "shape of the domain"),
        ({"weights": torch.zeros(9, 8)}, "positive"),
    ):
        with pytest.raises(ValueError, match=match):
            estimate_eof(data, **options)
    sphere = sd.Sphere((6, 10))
    with pytest.raises(ValueError, match="pole"):
        estimate_eof(observe(torch.ones(5, 6, 10).double() * torch.randn(5, 1, 1), sphere, None))


# ---- what it was made for
def test_shrinkage_beats_the_spectrum_and_the_functions_on_held_out_temperatures():
    """Years of two climate runs that are held out in blocks; neighbouring years depend on one another."""
    pytest.importorskip("h5py")
    pytest.importorskip("iris_sample_data")
    fields = sd.data.air_temperature((16, 24))
    x, test, grid = fields.train[:, 0].double(), fields.test[:, 0].double(), fields.grid
    data = observe(x, grid, None)
    smooth = sd.fit(None, x, grid, method="spectrum", mean=None).covariance.double()
    shrunk, functions = estimate_shrinkage(data, smooth), estimate_eof(data)
    scores = [
        float(g.double().log_prob(test).mean()) for g in (shrunk.covariance, smooth, functions.covariance)
    ]
    assert scores[0] > max(scores[1:]) + 20.0
    assert 0.05 < shrunk.weight < 0.95
