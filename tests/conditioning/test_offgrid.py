"""Joint draws on a grid and between its cells: the linear map itself against the kernel, entry by entry."""

from __future__ import annotations

import pytest
import torch

import spatialdiff as sd
from spatialdiff.conditioning.offgrid import OffGridPrior
from spatialdiff.conditioning.stationary import lagged, split_nugget
from spatialdiff.covariance.grids.embedding import EmbeddingError
from spatialdiff.kernels import Anisotropic, Gaussian, Matern, Nugget, Spherical, at_pairs


def exponential(ell):
    return Matern(nu=0.5, lengthscale=ell)


def gram(prior):
    """``R Rᵀ`` of cells, then sites."""
    with torch.no_grad():
        field, values = prior.color(torch.eye(prior.factor_size, dtype=torch.float64))
    rows = torch.cat([field.reshape(len(field), -1), values], 1)
    return rows.T @ rows


def columns(prior):
    """Covariance of every cell and site with each site, without the whole matrix."""
    white = torch.zeros(prior.factor_size, dtype=torch.float64, requires_grad=True)
    values = prior.color(white)[1]
    rows = [torch.autograd.grad(v, white, retain_graph=True)[0] for v in values]
    with torch.no_grad():
        field, values = prior.color(torch.stack(rows))
    return torch.cat([field.reshape(len(field), -1), values], 1)


def dense(kernel, grid, sites):
    both = torch.cat([grid.sites(), sites])
    with torch.no_grad():
        return at_pairs(kernel, both[:, None], both[None]).double()


def scattered(grid, count, seed=0, margin=0.1):
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(grid.extent, dtype=torch.float64)
    unit = torch.rand(count, grid.ndim, generator=generator, dtype=torch.float64)
    return ((1 + 2 * margin) * unit - margin) * extent


LINE = sd.Grid(40, 0.7)
PLANE = sd.Grid((12, 9), (1.0, 0.6))


@pytest.mark.parametrize(
    ("grid", "kernel"),
    [
        (LINE, exponential(5.0)),
        (LINE, exponential(60.0)),
        (LINE, Matern(nu=1.5, lengthscale=5.0)),
        (LINE, Gaussian(lengthscale=3.0)),
        (LINE, Spherical(lengthscale=9.0)),
        (PLANE, exponential(3.0)),
        (PLANE, exponential((3.0, 2.0))),
        (PLANE, Matern(nu=2.5, lengthscale=1.5)),
        (PLANE, Gaussian(lengthscale=1.2)),
        (PLANE, Anisotropic(Matern(nu=1.5, lengthscale=1.0), angles=0.5, lengthscales=(2.0, 1.0))),
        (sd.Grid((6, 5, 4), (1.0, 0.8, 1.2)), exponential(1.5)),
    ],
)
def test_the_map_on_the_torus_has_exactly_the_kernels_covariance(grid, kernel):
    sites = scattered(grid, 9)  # some of them outside the grid's extent
    sites[0], sites[1] = -0.3 * torch.tensor(grid.spacing), torch.tensor(grid.extent) + 0.2
    prior = OffGridPrior(kernel, grid, sites, route="torus", max_growth=16.0)
    assert prior.error < 1e-11
    assert torch.allclose(gram(prior), dense(kernel, grid, sites), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", [exponential(90.0), Matern(nu=1.5, lengthscale=30.0)])
def test_where_no_torus_is_valid_a_small_grid_is_dense_and_as_exact(kernel):
    sites = scattered(PLANE, 9)
    with pytest.raises(EmbeddingError, match="periodic extension"):
        OffGridPrior(kernel, PLANE, sites, route="torus", max_growth=1.0)
    prior = OffGridPrior(kernel, PLANE, sites, max_growth=1.0)
    assert prior.route == "dense"
    assert torch.allclose(gram(prior), dense(kernel, PLANE, sites), rtol=0, atol=1e-10)


@pytest.mark.parametrize("periodic", [(True, True), (True, False)])
def test_periodic_axes_wrap(periodic):
    # sites at half cells are cells of the grid of half the spacing, whose dense Γ is periodised elsewhere
    grid, fine = sd.Grid((8, 6), 1.0, periodic), sd.Grid((16, 12), 0.5, periodic)
    kernel = Matern(nu=1.5, lengthscale=1.3)
    index = torch.tensor([[1, 3], [15, 0], [7, 7], [3, 10]])
    prior = OffGridPrior(kernel, grid, index * 0.5, route="torus")
    cells = (2 * grid.coordinates()).reshape(-1, 2).long()
    flat = torch.cat([cells, index]) @ torch.tensor([12, 1])
    wanted = sd.covariance(kernel, fine, method="dense").to_dense()[flat][:, flat]
    assert torch.allclose(gram(prior), wanted, rtol=0, atol=1e-10)
    # a period farther is the same site
    shift = torch.tensor([8.0 if periodic[0] else 0.0, 6.0 if periodic[1] else 0.0])
    again = OffGridPrior(kernel, grid, index * 0.5 + shift, route="torus")
    assert torch.allclose(gram(again), wanted, rtol=0, atol=1e-10)


def test_differences_between_cells_of_a_periodic_grid_are_periodised():
    grid = sd.Grid((8, 6), 1.0, (True, False))
    kernel = Matern(nu=1.5, lengthscale=2.0) + exponential(1.0)
    sites = grid.sites()
    wanted = sd.covariance(kernel, grid, method="dense").to_dense()
    assert torch.allclose(lagged(kernel, grid, sites[:, None] - sites), wanted, rtol=0, atol=1e-11)


def test_sites_on_cells_are_read_off_and_a_nugget_is_white():
    grid = sd.Grid((6, 5), 1.0)
    kernel = Matern(nu=1.5, lengthscale=2.0) + Nugget(0.3)
    # on a cell, on it again, between cells, there again, and beyond the grid
    sites = torch.tensor([[2.0, 3.0], [2.0, 3.0], [1.4, 2.2], [1.4, 2.2], [6.5, -1.0], [7.0, 1.0]])
    prior = OffGridPrior(kernel, grid, sites)
    field, values = prior.sample(3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(values[:, 0], field[:, 2, 3])
    smooth, nugget = split_nugget(kernel)
    wanted = dense(smooth, grid, sites.double())
    wanted += nugget * torch.eye(len(wanted), dtype=torch.float64)
    cell = 2 * 5 + 3
    wanted[30, cell] += nugget
    wanted[cell, 30] += nugget
    assert torch.allclose(gram(prior), wanted, rtol=0, atol=1e-10)
    assert torch.allclose(
        gram(OffGridPrior(Nugget(0.3), grid, sites))[30:, 30:], 0.3 * torch.eye(6, dtype=torch.float64)
    )


def test_sites_on_cells_only_take_any_structure():
    grid = sd.Grid((6, 5), 1.0)
    kernel = Matern(nu=1.5, lengthscale=2.0)
    sites = torch.tensor([[2.0, 3.0], [5.0, 4.0]]).double()
    prior = OffGridPrior(kernel, grid, sites)
    assert torch.allclose(gram(prior), dense(kernel, grid, sites), rtol=0, atol=1e-10)


def test_windows_on_a_line_are_as_exact_as_rounding_for_a_markov_field():
    sites = scattered(LINE, 9)
    prior = OffGridPrior(exponential(5.0), LINE, sites, route="window")
    assert prior.error < 1e-12
    assert torch.allclose(gram(prior), dense(exponential(5.0), LINE, sites), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kernel", [Matern(nu=1.5, lengthscale=20.0), exponential(30.0)])
def test_windows_in_the_plane_keep_to_the_error_they_report(kernel):
    grid = sd.Grid((70, 60), 1.0)
    sites = scattered(grid, 12, margin=0.0)
    sites[1] = sites[0] + 0.4
    prior = OffGridPrior(kernel, grid, sites, route="window")
    assert prior.error < 2e-7
    found, wanted = columns(prior), dense(kernel, grid, sites)[grid.size :]
    # against cells; residuals of sites beyond the range are left out besides
    error = (found - wanted).detach().abs()
    assert float(error[:, : grid.size].max()) <= 2 * prior.error
    assert float(error[:, grid.size :].max()) <= 10 * prior.error


def test_samples_have_the_joint_covariance():
    grid, sites, kernel = sd.Grid(12, 1.0), torch.tensor([2.5, 7.2, 12.3]), exponential(3.0)
    prior = OffGridPrior(kernel, grid, sites)
    count = 40_000
    white = torch.randn(
        count, prior.factor_size, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    field, values = prior.color(white)
    found = torch.cat([field, values], 1)
    found = found.T @ found / count
    wanted = dense(kernel, grid, sites.double()[:, None])
    # Var of a mean of products: (σ_ii σ_jj + σ_ij²)/n
    error = ((1 + wanted.square()) / count).sqrt()
    assert float(((found - wanted) / error).abs().max()) < 4.5


def test_the_covariance_of_both_sides_of_a_datum_between_cells_is_zero():
    """A 1-D exponential field is Markov: given x(0), x(-1) and x(1) are independent."""
    grid = sd.Grid(5, 1.0)
    joint = gram(OffGridPrior(exponential(2.0), grid, torch.tensor([2.5]), route="torus"))
    given = joint[:5, :5] - torch.outer(joint[:5, 5], joint[5, :5]) / joint[5, 5]
    assert float(given[:3, 3:].abs().max()) < 1e-12
    # scaled by the kriging standard deviation a prior draw would not be independent
    assert float(joint[1, 4]) > 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OffGridPrior(exponential(2.0), LINE, torch.zeros(3, 2)), "2 coordinates"),
        (lambda: OffGridPrior(exponential(2.0), LINE, torch.zeros(3), route="best"), "route must be"),
        (
            lambda: OffGridPrior(
                Matern(nu=0.5, lengthscale=[[1.0], [2.0]], batch_shape=(2,)), LINE, torch.rand(3)
            ),
            "one covariance at a time",
        ),
        (lambda: OffGridPrior(exponential(2.0), LINE, torch.tensor([float("nan")])), "NaN"),
        (
            lambda: OffGridPrior(Spherical(lengthscale=20.0), PLANE, scattered(PLANE, 3), route="window"),
            "covariance error",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_kernel_that_is_not_stationary_is_refused():
    import gpytorch

    with pytest.raises(ValueError, match="stationary"):
        OffGridPrior(gpytorch.kernels.LinearKernel(), LINE, torch.rand(3))
