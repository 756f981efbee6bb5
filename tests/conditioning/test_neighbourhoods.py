"""Kriging from neighbourhoods and Vecchia prediction: kriging with all neighbours, near it with few."""

from __future__ import annotations

import pytest
import torch

from spatialdiff.conditioning.neighbourhoods import local_kriging
from spatialdiff.conditioning.vecchia_prediction import VecchiaPrediction
from spatialdiff.kernels import Anisotropic, Gaussian, Matern, Nugget, at_pairs

KERNEL = Matern(nu=1.5, lengthscale=3.0)


def problem(n=60, t=25, seed=0, box=10.0):
    generator = torch.Generator().manual_seed(seed)
    sites = torch.rand(n, 2, generator=generator, dtype=torch.float64) * box
    targets = torch.rand(t, 2, generator=generator, dtype=torch.float64) * box
    values = torch.randn(n, generator=generator, dtype=torch.float64)
    targets[3] = sites[7]
    return sites, values, targets


def linear(x):
    return torch.cat([torch.ones(len(x), 1, dtype=torch.float64), x], 1)


def kriging(smooth, nugget, sites, values, targets, noise, f=None, g=None, wanted=True):
    """Mean and covariance by the textbook formulas, inverses and all."""
    with torch.no_grad():
        same = (sites[:, None] == targets).all(-1) * (nugget * wanted)
        k = at_pairs(smooth, sites[:, None], sites) + torch.diag(
            torch.zeros(len(sites)).double() + noise + nugget
        )
        c = at_pairs(smooth, sites[:, None], targets) + same
        own = at_pairs(smooth, targets[:, None], targets) + torch.diag(
            torch.full((len(targets),), nugget * wanted, dtype=torch.float64)
        )
    inverse = torch.linalg.inv(k.double())
    weights = inverse @ c
    mean, covariance = weights.T @ values, own - c.T @ weights
    if f is not None:
        s = torch.linalg.inv(f.T @ inverse @ f)
        rest = g - weights.T @ f
        mean = mean + rest @ (s @ f.T @ inverse @ values)
        covariance = covariance + rest @ s @ rest.T
    return mean, covariance


@pytest.mark.parametrize("nugget", [0.0, 0.25])
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("drift", [False, True])
@pytest.mark.parametrize("wanted", [True, False])
def test_with_all_neighbours_both_are_kriging(nugget, noise, drift, wanted):
    sites, values, targets = problem()
    f, g = (linear(sites), linear(targets)) if drift else (None, None)
    mean, covariance = kriging(KERNEL, nugget, sites, values, targets, noise, f, g, wanted)
    kernel = KERNEL + Nugget(nugget) if nugget else KERNEL
    options = {"design": f, "target_design": g, "noise": noise, "nugget": wanted}
    found, variance = local_kriging(kernel, sites, values, targets, neighbors=60, **options)
    assert torch.allclose(found, mean, rtol=0, atol=1e-9)
    assert torch.allclose(variance, covariance.diagonal(), rtol=0, atol=1e-9)
    joint = VecchiaPrediction(kernel, sites, values, targets, neighbors=84, **options)
    assert torch.allclose(joint.mean(), mean, rtol=0, atol=1e-9)
    assert torch.allclose(joint.variance(), covariance.diagonal(), rtol=0, atol=1e-9)
    assert torch.allclose(joint.covariance(), covariance, rtol=0, atol=1e-9)
    if noise == 0 and (wanted or not nugget):
        # the data are honoured
        assert float((found[3] - values[7]).abs()) < 1e-10
        assert joint.mean()[3] == values[7]
        assert joint.variance()[3] == 0


def test_noise_may_differ_between_observations_and_values_be_many():
    sites, values, targets = problem()
    noise = torch.linspace(0.0, 2.0, 60, dtype=torch.float64)
    both = torch.stack([values, values.flip(0)])
    found, variance = local_kriging(KERNEL, sites, both, targets, neighbors=60, noise=noise)
    for row, data in zip(found, both, strict=True):
        mean, covariance = kriging(KERNEL, 0.0, sites, data, targets, noise)
        assert torch.allclose(row, mean, rtol=0, atol=1e-9)
        joint = VecchiaPrediction(KERNEL, sites, data, targets, neighbors=84, noise=noise)
        assert torch.allclose(joint.mean(), mean, rtol=0, atol=1e-9)
    assert torch.allclose(variance, covariance.diagonal(), rtol=0, atol=1e-9)


def test_two_data_on_one_site_have_nuggets_of_their_own():
    sites, values, targets = problem(20, 6)
    sites[1] = sites[0]
    targets[3] = targets[0]
    mean, covariance = kriging(KERNEL, 0.3, sites, values, targets, 0.0)
    kernel = KERNEL + Nugget(0.3)
    found, variance = local_kriging(kernel, sites, values, targets, neighbors=20)
    assert torch.allclose(found, mean, rtol=0, atol=1e-9)
    assert torch.allclose(variance, covariance.diagonal(), rtol=0, atol=1e-9)
    joint = VecchiaPrediction(kernel, sites, values, targets, neighbors=26)
    assert torch.allclose(joint.mean(), mean, rtol=0, atol=1e-9)
    # equal targets are one target
    drawn = joint.simulate(4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], drawn[:, 3])
    with pytest.raises(ValueError, match="repeat the site"):
        VecchiaPrediction(KERNEL, sites, values, targets)
    with pytest.raises(ValueError, match="no Cholesky factor"):
        local_kriging(KERNEL, sites, values, targets, neighbors=20)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_more_neighbours_come_closer_to_kriging(noise):
    sites, values, targets = problem(1200, 100)
    with torch.no_grad():
        root = torch.linalg.cholesky(at_pairs(KERNEL, sites[:, None], sites).double())
    values = root @ values
    mean, covariance = kriging(KERNEL, 0.0, sites, values, targets, noise)
    local, joint = [], []
    for m in (5, 15, 45):
        found, variance = local_kriging(KERNEL, sites, values, targets, neighbors=m, noise=noise)
        local.append(float((found - mean).std()))
        # fewer data cannot predict better
        assert float((variance - covariance.diagonal()).min()) > -1e-6
        vecchia = VecchiaPrediction(KERNEL, sites, values, targets, neighbors=m, noise=noise)
        joint.append(float((vecchia.mean() - mean).std()))
    assert local[0] > 1.4 * local[1] > 2 * local[2]
    assert joint[0] > 1.4 * joint[1] > 2 * joint[2]
    scale = float(mean.std())
    assert max(local[2], joint[2]) < 0.03 * scale


def test_neighbours_are_chosen_in_the_kernels_metric():
    # data far in x are nearer for the kernel than data close by in y
    generator = torch.Generator().manual_seed(3)
    sites = torch.rand(400, 2, generator=generator, dtype=torch.float64) * 10
    targets = torch.rand(50, 2, generator=generator, dtype=torch.float64) * 10
    values = torch.randn(400, generator=generator, dtype=torch.float64)
    kernel = Anisotropic(Matern(nu=0.5, lengthscale=1.0), 0.7, lengthscales=(8.0, 0.4))
    _, covariance = kriging(kernel, 0.0, sites, values, targets, 0.0)
    _, variance = local_kriging(kernel, sites, values, targets, neighbors=10)
    from scipy.spatial import cKDTree

    index = torch.from_numpy(cKDTree(sites.numpy()).query(targets.numpy(), 10)[1])
    plain = torch.stack(
        [
            kriging(kernel, 0.0, sites[i], values[i], target[None], 0.0)[1][0, 0]
            for i, target in zip(index, targets, strict=True)
        ]
    )
    excess, plain_excess = (float((v - covariance.diagonal()).mean()) for v in (variance, plain))
    assert excess < 0.5 * plain_excess


def test_a_joint_draw_has_the_joint_law():
    sites, values, targets = problem(40, 8)
    f, g = linear(sites), linear(targets)
    mean, covariance = kriging(KERNEL, 0.1, sites, values, targets, 0.2, f, g)
    joint = VecchiaPrediction(
        KERNEL + Nugget(0.1), sites, values, targets, noise=0.2, neighbors=48, design=f, target_design=g
    )
    count = 40_000
    drawn = joint.simulate(count, generator=torch.Generator().manual_seed(2)) - mean
    found = drawn.T @ drawn / count
    variance = covariance.diagonal()
    error = ((variance[:, None] * variance + covariance.square()) / count).sqrt()
    assert float(((found - covariance) / error).abs().max()) < 4.5
    assert float((drawn.mean(0) / (variance / count).sqrt()).abs().max()) < 4.5


def test_the_engines_agree_and_a_nugget_may_be_all_there_is():
    sites, values, targets = problem(200, 50)
    kernel = KERNEL + Nugget(0.1)
    one, two = (
        VecchiaPrediction(kernel, sites, values, targets, neighbors=12, engine=e) for e in ("numba", "torch")
    )
    assert torch.allclose(one.mean(), two.mean(), rtol=0, atol=1e-10)
    assert torch.allclose(one.variance(), two.variance(), rtol=0, atol=1e-10)
    white = VecchiaPrediction(Nugget(0.5), sites, values, targets, neighbors=5)
    apart = torch.arange(50) != 3
    assert torch.equal(white.mean()[apart], torch.zeros(49, dtype=torch.float64))
    assert torch.allclose(white.variance()[apart], torch.tensor(0.5, dtype=torch.float64))
    found, variance = local_kriging(Nugget(0.5), sites, values, targets, neighbors=5)
    assert torch.allclose(found, white.mean(), rtol=0, atol=1e-12)
    assert torch.allclose(variance, white.variance(), rtol=0, atol=1e-12)


def test_a_trend_in_coordinates_far_from_the_origin():
    sites, values, targets = problem(80, 20)
    far = torch.tensor([4e5, 5e6], dtype=torch.float64)
    values = values + 0.5 * sites[:, 0]
    near = local_kriging(
        KERNEL, sites, values, targets, neighbors=20, design=linear(sites), target_design=linear(targets)
    )
    moved = local_kriging(
        KERNEL,
        sites + far,
        values,
        targets + far,
        neighbors=20,
        design=linear(sites + far),
        target_design=linear(targets + far),
    )
    keep = torch.arange(20) != 3
    assert torch.allclose(near[0][keep], moved[0][keep], rtol=0, atol=1e-5)


SITES, VALUES, TARGETS = problem(30, 5)
ONES, FEW = torch.ones(30, 1).double(), torch.ones(5, 1).double()


@pytest.mark.parametrize("predict", [local_kriging, VecchiaPrediction])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": TARGETS[:, :1]}, "coordinates|do not fit"),
        ({"values": VALUES[:-1]}, "values|do not fit"),
        ({"neighbors": 0}, "whole number from 1"),
        ({"design": ONES}, "both or neither"),
        ({"design": ONES.repeat(1, 2), "target_design": FEW.repeat(1, 2)}, "linearly dependent"),
        ({"kernel": Gaussian(lengthscale=1e3)}, "Cholesky"),
        ({"sites": SITES * float("nan")}, "NaN"),
    ],
)
def test_bad_input(predict, change, message):
    given = {"kernel": KERNEL, "sites": SITES, "values": VALUES, "targets": TARGETS, "neighbors": 10} | change
    with pytest.raises(ValueError, match=message):
        predict(given.pop("kernel"), given.pop("sites"), given.pop("values"), given.pop("targets"), **given)


def test_a_neighbourhood_too_small_for_the_drift():
    with pytest.raises(ValueError, match="3 drift coefficients"):
        local_kriging(
            KERNEL, SITES, VALUES, TARGETS, neighbors=3, design=linear(SITES), target_design=linear(TARGETS)
        )
