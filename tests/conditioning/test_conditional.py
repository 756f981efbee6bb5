"""The covariance of a field given observations: as a matrix, through draws, and as the Γ of a bridge."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.conditioning import ConditionalCovariance, Kriging
from spatialdiff.kernels import Coregionalization, Exponential, Gaussian, Matern, Nugget, at_pairs

# targets are where they are needed
pytestmark = pytest.mark.filterwarnings("ignore:.*outside the box:UserWarning")
G = torch.Generator().manual_seed(0)
POINTS = torch.rand(12, 2, generator=G, dtype=torch.float64) * 4.0
VALUES = torch.randn(12, generator=G, dtype=torch.float64)
SCATTERED = torch.cat((torch.rand(9, 2, generator=G, dtype=torch.float64) * 4.0, POINTS[:2]))
GRID = sd.Grid((5, 6), spacing=(1.0, 0.8))
MASK = torch.rand(GRID.shape, generator=G) > 0.3
NOISE = torch.linspace(0.0, 0.5, 12, dtype=torch.float64)
KERNEL = Matern(nu=1.5, lengthscale=1.2, variance=1.4)


def gamma(kernel, a, b):
    return at_pairs(kernel, a[:, None], b[None]).detach()


def closed_form(kernel, points, noise, targets, f, g):
    """``K_tt - K_to A⁻¹ K_ot + r (FᵀA⁻¹F)⁻¹ rᵀ``."""
    inverse = torch.linalg.inv(gamma(kernel, points, points) + torch.diag(noise))
    cross = gamma(kernel, targets, points)
    result = gamma(kernel, targets, targets) - cross @ inverse @ cross.T
    if f is not None:
        rest = g - cross @ inverse @ f
        result = result + rest @ torch.linalg.inv(f.T @ inverse @ f) @ rest.T
    return result


def linear(sites):
    return torch.cat((torch.ones(len(sites), 1, dtype=torch.float64), sites), dim=1)


def spread_of(exact):
    """Variance of a product of two entries, 0 where rounding leaves less."""
    diagonal = exact.diagonal().clamp(min=0.0)
    return exact.square() + diagonal[:, None] * diagonal[None]


def factor_matrix(covariance):
    """``R Rᵀ`` of the map of white noise to fields."""
    size = covariance.factor_shape.numel()
    root = covariance.double().color(torch.eye(size, dtype=torch.float64)).reshape(size, -1)
    return root.T @ root


@pytest.mark.parametrize("noise", [0.0, NOISE], ids=["exact", "noisy"])
@pytest.mark.parametrize("kernel", [KERNEL, Exponential(2.0) + Nugget(0.3)], ids=["smooth", "nugget"])
@pytest.mark.parametrize("drift", [0.0, "linear"])
@pytest.mark.parametrize(
    "domain", [sd.Points(SCATTERED), GRID, GRID.masked(MASK)], ids=["points", "grid", "masked"]
)
def test_every_way_to_the_kriging_covariance_is_the_closed_form(noise, kernel, drift, domain):
    k = Kriging(kernel, POINTS, VALUES, drift, noise)
    targets = domain.sites()
    f, g = (linear(POINTS), linear(targets)) if drift == "linear" else (None, None)
    exact = closed_form(kernel, POINTS, torch.as_tensor(noise).double().expand(12), targets, f, g)
    covariance = k.covariance(domain)
    kept = covariance._kept()
    for found in (factor_matrix(covariance), covariance.to_dense()):
        torch.testing.assert_close(found[kept][:, kept], exact, rtol=0.0, atol=1e-9)
    variance = domain.flatten(covariance.variance())
    torch.testing.assert_close(variance, exact.diagonal(), rtol=0.0, atol=1e-9)


def test_channels():
    kernel = Coregionalization([([[1.0, 0.4], [0.4, 2.0]], KERNEL), ([[0.3, 0.1], [0.1, 0.2]], Nugget(1.0))])
    values = torch.stack((VALUES, VALUES.sin()))
    values[0, 3] = torch.nan
    k = Kriging(kernel, POINTS, values, "constant", missing="omit")
    covariance = k.covariance(GRID)
    assert covariance.event_shape == (2, 5, 6)
    dense = covariance.to_dense()
    torch.testing.assert_close(factor_matrix(covariance), dense, rtol=0.0, atol=1e-9)
    variance = k.predict(GRID).variance
    torch.testing.assert_close(dense.diagonal().reshape(2, 5, 6), variance, rtol=0.0, atol=1e-9)
    drawn = k.simulate(3, GRID, generator=torch.Generator().manual_seed(1))
    assert drawn.shape == (3, 2, 5, 6)


def test_a_datum_between_two_sites_screens_them():
    """For an exponential field on a line, ``Cov(x(-1), x(1) | x(0)) = 0``; scaled prior draws have it not."""
    kernel, number = Exponential(1.0), 40_000
    k = Kriging(kernel, torch.zeros(1, 1).double(), torch.tensor([0.7]).double(), drift=0.0)
    targets = sd.Points(torch.tensor([-1.0, 0.0, 1.0]).double())
    exact = closed_form(
        kernel, torch.zeros(1, 1).double(), torch.zeros(1).double(), targets.sites(), None, None
    )
    assert abs(float(exact[0, 2])) < 1e-15
    drawn = k.simulate(number, targets, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn[:, 1], torch.full((number,), 0.7).double(), rtol=0.0, atol=1e-12)
    centred = drawn - k.predict(targets).mean
    products = centred[:, 0] * centred[:, 2]
    error = float(products.std()) / math.sqrt(number)
    assert abs(float(products.mean())) < 5.0 * error
    # the control: the kriging standard deviation times a prior draw
    prior = (
        sd.covariance(kernel, targets).double().sample((number,), generator=torch.Generator().manual_seed(1))
    )
    scaled = prior.detach() * k.predict(targets).standard_deviation
    assert abs(float((scaled[:, 0] * scaled[:, 2]).mean())) > 20.0 * error


def test_sample_covariance_on_an_irregular_set():
    number = 40_000
    k = Kriging(KERNEL, POINTS, VALUES, "constant", NOISE)
    exact = closed_form(
        KERNEL, POINTS, NOISE, SCATTERED, torch.ones(12, 1).double(), torch.ones(11, 1).double()
    )
    drawn = k.simulate(number, SCATTERED, generator=torch.Generator().manual_seed(2))
    mean = k.predict(SCATTERED).mean
    error = (exact.diagonal() / number).sqrt()
    assert bool(((drawn.mean(0) - mean).abs() <= 5.0 * error + 1e-9).all())
    centred = drawn - mean
    sample = centred.T @ centred / number
    spread = (spread_of(exact) / number).sqrt()
    assert bool(((sample - exact).abs() <= 5.0 * spread + 1e-9).all())


def test_draws_honour_data_off_the_grid():
    """Draws on a grid and between its cells are of one field: kriged back to the data it returns them."""
    grid = sd.Grid((40, 40), spacing=0.1)
    k = Kriging(KERNEL, POINTS, VALUES, drift=0.0)
    drawn = k.simulate(2, grid, generator=torch.Generator().manual_seed(3))
    back = Kriging(KERNEL, grid, drawn, drift=0.0, noise=1e-10).predict(POINTS)
    inside = (POINTS < 3.8).all(-1)
    # the grid determines a smooth field between its cells up to the kriging error
    assert float((back.mean - VALUES)[:, inside].abs().max()) < 5.0 * float(
        back.variance[inside].max().sqrt()
    )
    assert float(back.variance[inside].max().sqrt()) < 0.02


def test_draws_repeat_with_the_seed():
    k = Kriging(KERNEL, POINTS, VALUES)
    first, again = (k.simulate(2, GRID, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)


def test_vecchia_draws_have_the_law_of_the_whole():
    number = 20_000
    k = Kriging(KERNEL + Nugget(0.2), POINTS, VALUES, method="vecchia", neighbors=30)
    drawn = k.simulate(number, SCATTERED, generator=torch.Generator().manual_seed(5))
    ones = torch.ones(12, 1).double()
    exact = closed_form(
        KERNEL + Nugget(0.2), POINTS, torch.zeros(12).double(), SCATTERED, ones, torch.ones(11, 1).double()
    )
    centred = drawn - k.predict(SCATTERED).mean
    spread = (spread_of(exact) / number).sqrt()
    assert bool(((centred.T @ centred / number - exact).abs() <= 5.0 * spread + 1e-9).all())


def test_it_is_the_noise_of_a_bridge():
    k = Kriging(KERNEL, POINTS, VALUES, noise=0.1)
    bridge = sd.BrownianBridge(k.covariance(GRID).double())
    kriged = k.predict(GRID).mean
    x_t, _ = bridge.perturb(
        kriged.expand(4, 1, 5, 6),
        k.simulate(4, GRID, generator=torch.Generator().manual_seed(6)).unsqueeze(1),
        0.5,
        generator=torch.Generator().manual_seed(7),
    )
    assert x_t.shape == (4, 1, 5, 6)


def test_what_is_singular_or_too_large_says_so():
    covariance = Kriging(KERNEL, POINTS, VALUES).covariance(SCATTERED)
    with pytest.raises(ValueError, match="not positive definite"):
        covariance.solve(torch.ones(11).double())
    assert isinstance(covariance, ConditionalCovariance)
    far = torch.rand(7000, 2, generator=G)
    with pytest.raises(ValueError, match="vecchia"):
        Kriging(Gaussian(0.5), POINTS, VALUES, noise=0.1).simulate(1, far)


def test_the_kernel_stays_as_it_was():
    kernel = Matern(nu=1.5, lengthscale=1.2, variance=1.4)
    covariance = Kriging(kernel, POINTS, VALUES, noise=0.1).covariance(GRID).double()
    applied = covariance.matmul(torch.ones(GRID.shape, dtype=torch.float64))
    assert all(parameter.requires_grad for parameter in kernel.parameters())
    assert not applied.requires_grad
    assert not covariance.sample(generator=torch.Generator().manual_seed(8)).requires_grad
