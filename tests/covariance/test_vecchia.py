"""Vecchia's approximation against dense conditionals written from the definition, and against dense Γ."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys

import gpytorch
import pytest
import torch
from covariance_case import CovarianceCase, pairwise
from torch import Tensor

from spatialdiff.covariance.dense import DenseCovariance
from spatialdiff.covariance.points import conditionals, triangular
from spatialdiff.covariance.points.triangular import SparsePattern, choose_engine, substitution_levels
from spatialdiff.covariance.points.vecchia import VecchiaCovariance
from spatialdiff.domains import Domain, Grid, MaskedGrid, Mesh, Points, RectilinearGrid, Sphere
from spatialdiff.kernels import Anisotropic, Exponential, Gaussian, Matern, Nugget

ENGINES = ["torch", *(["numba"] if choose_engine("auto") == "numba" else [])]


def scattered(n: int, d: int = 2, seed: int = 5, extent: float = 4.0) -> Points:
    return Points(
        extent * torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


def vecchia_dense(covariance: Tensor, order: list[int], sets: list[list[int]]) -> Tensor:
    """``Γ = ((I - B)ᵀ D⁻¹ (I - B))⁻¹`` with ``b_i = k_iN K_NN⁻¹``, ``d_i = k_ii - b_i k_Ni``, from the
    definition; ``sets[k]`` are the sites on which site ``order[k]`` is conditioned.
    """
    n = covariance.shape[-1]
    rows, scales = [], []
    for site, given in zip(order, sets, strict=True):
        index = torch.tensor(given, dtype=torch.long)
        cross = covariance[..., site, index]
        weights = torch.linalg.solve(covariance[..., index[:, None], index], cross.unsqueeze(-1)).squeeze(-1)
        row = torch.zeros(*covariance.shape[:-2], n, dtype=torch.float64)
        row = row.index_add(-1, index, -weights)
        row = row.index_add(-1, torch.tensor([site]), torch.ones_like(row[..., :1]))
        rows.append(row)
        scales.append(covariance[..., site, site] - (weights * cross).sum(-1))
    unit, d = torch.stack(rows, -2), torch.stack(scales, -1)
    return torch.linalg.inv(unit.mT @ (unit / d.unsqueeze(-1))).contiguous()


def brute_sets(domain: Domain, order: list[int], m: int) -> list[list[int]]:
    sites = domain.coordinates().reshape(-1, domain.dimension)
    sets = []
    for k, site in enumerate(order):
        before = sorted(order[:k], key=lambda j, s=site: float((sites[j] - sites[s]).norm()))
        sets.append(before[:m])
    return sets


class VecchiaCase(CovarianceCase):
    engine = "auto"
    neighbors = 6

    def build(self, kernel):
        return VecchiaCovariance(
            kernel,
            self.grid,
            self.channels,
            neighbors=self.neighbors,
            ordering=self.order(),
            engine=self.engine,
        )

    def order(self) -> Tensor:
        return torch.randperm(self.grid.size, generator=torch.Generator().manual_seed(2))

    def spatial(self, kernel):
        covariance = pairwise(kernel, self.grid)
        order = self.order().tolist()
        return vecchia_dense(covariance, order, brute_sets(self.grid, order, self.neighbors))


class TestPlain(VecchiaCase):
    grid = scattered(24)
    engine = "torch"


if "numba" in ENGINES:

    class TestClosedForm(VecchiaCase):
        """The fused loop: kernel, factor and row in one."""

        grid = scattered(24)
        engine = "numba"

    class TestPacked(VecchiaCase):
        """A kernel without a fused loop: blocks from torch, factors compiled."""

        grid = scattered(23)
        engine = "numba"

        def kernel(self):
            first = Matern(nu=2.5, lengthscale=1.1, variance=0.7)
            return first + Gaussian(lengthscale=0.6, variance=1.0) + Nugget(0.2)

        def batched_kernel(self):
            batch = (3,)
            first = Matern(nu=2.5, lengthscale=torch.tensor([[0.9], [1.1], [1.3]]), batch_shape=batch)
            second = Gaussian(lengthscale=0.6, variance=torch.tensor([1.0, 0.5, 2.0]), batch_shape=batch)
            return first + second + Nugget(torch.tensor([0.2, 0.3, 0.1]), batch_shape=batch)


class TestChannels(VecchiaCase):
    grid = scattered(14, d=3)
    channels = [[1.0, 0.4], [0.4, 2.0]]  # noqa: RUF012


class TestRectilinear(VecchiaCase):
    grid = RectilinearGrid([[0.0, 0.31, 0.97, 1.2], [0.0, 0.53, 1.13, 1.9, 2.6]])
    channels = 2


class TestAllNeighbours(VecchiaCase):
    """As many neighbours as there are sites before: Γ itself."""

    grid = Grid((4, 5), spacing=(1.0, 0.7))
    neighbors = 40

    def spatial(self, kernel):
        return pairwise(kernel, self.grid)


MASK = torch.ones(4, 6, dtype=torch.bool)
MASK[1:3, 2:4] = False
MASK[0, 5] = False


class TestMasked(VecchiaCase):
    grid = MaskedGrid(Grid((4, 6)), MASK)
    neighbors = 40

    def spatial(self, kernel):
        return pairwise(kernel, self.grid)


# ---- exactness
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ordering", ["maximin", "coordinate", "random", torch.arange(69, -1, -1)])
def test_all_neighbours_are_exact(ordering, engine):
    """``m = n - 1``, in every order."""
    kernel, points = Matern(nu=2.5, lengthscale=[0.9, 1.7], variance=1.3), scattered(70)
    gamma = VecchiaCovariance(kernel, points, neighbors=69, ordering=ordering, engine=engine)
    dense = DenseCovariance(kernel, points)
    x = torch.randn(4, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(gamma.to_dense(), dense.to_dense(), rtol=0, atol=1e-10)
    torch.testing.assert_close(gamma.log_prob(x), dense.log_prob(x), rtol=1e-8, atol=0)
    assert gamma.log_det().item() == pytest.approx(dense.log_det().item(), abs=1e-8)
    assert gamma.report.exact
    assert gamma.kl_divergence().abs().item() < 1e-8


def varying() -> gpytorch.kernels.Kernel:
    """A kernel that is not stationary: a Gaussian of a warped coordinate plus a linear trend."""
    foreign = gpytorch.kernels
    kernel = foreign.ScaleKernel(foreign.MaternKernel(nu=1.5)) + foreign.LinearKernel()
    return kernel.double()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "kernel",
    [
        Exponential(lengthscale=1.5, variance=0.4) + Nugget(0.01),
        Matern(nu=0.7, lengthscale=1.5),
        Gaussian(lengthscale=[0.5, 1.0]) + Nugget(0.1) + Nugget(0.2),
        Matern(nu=1.5, lengthscale=1.0) * Exponential(lengthscale=2.0) + Nugget(0.1),
        Anisotropic(Matern(nu=2.5, lengthscale=0.5), angles=0.6, lengthscales=[1.0, 3.0]),
        Anisotropic(Exponential(lengthscale=0.5) + Nugget(0.3), angles=0.6, ratios=2.0),
        varying(),
    ],
    ids=lambda k: type(k).__name__,
)
def test_any_kernel(kernel, engine):
    points = scattered(40)
    gamma = VecchiaCovariance(kernel, points, neighbors=7, engine=engine).requires_grad_(False)
    covariance = DenseCovariance(kernel, points).to_dense().detach()
    order = gamma.order.tolist()
    sets = [[order[j] for j in row if j >= 0] for row in gamma.neighbours.tolist()]
    expected = vecchia_dense(covariance, order, sets)
    torch.testing.assert_close(gamma.to_dense(), expected, rtol=0, atol=2e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_repeated_sites_share_all_but_the_nugget(engine):
    sites = scattered(30).coordinates()
    points = Points(torch.cat([sites, sites[:4], sites[:1]]))
    for kernel in (
        Matern(nu=0.5, lengthscale=1.0) + Nugget(0.3),
        Matern(nu=1.5, lengthscale=1.0) + Exponential(0.5) + Nugget(0.3),
    ):
        gamma = VecchiaCovariance(kernel, points, neighbors=34, engine=engine)
        dense = DenseCovariance(kernel, points)
        torch.testing.assert_close(gamma.to_dense(), dense.to_dense(), rtol=0, atol=1e-10)
        parameters = list(kernel.parameters())
        x = torch.linspace(-1, 1, 35, dtype=torch.float64)
        found = torch.autograd.grad(gamma.log_prob(x), parameters)
        expected = torch.autograd.grad(dense.log_prob(x), parameters)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_domains():
    """Every domain with coordinates."""
    kernel = Matern(nu=1.5, lengthscale=1.0) + Nugget(0.1)
    vertices = scattered(20).coordinates()
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[2, 1:3] = False
    domains: list[Domain] = [
        Grid(12, spacing=0.4),
        Grid((3, 4, 2)),
        Grid((4, 5)).masked(mask),
        RectilinearGrid([[0.0, 0.5, 2.0], [0.0, 1.0, 1.5]]),
        Mesh(vertices, torch.tensor([[i, i + 1, i + 2] for i in range(18)])),
        Points(torch.tensor([[0.3, 0.4]])),
        Sphere((4, 6), grid="gauss_legendre"),
        Sphere((4, 6), poles=False, radius=2.0),
    ]
    for domain in domains:
        gamma = VecchiaCovariance(kernel, domain, neighbors=domain.size)
        torch.testing.assert_close(gamma.to_dense(), pairwise(kernel, domain), rtol=0, atol=1e-10)
        assert gamma.sample((2,)).shape == (2, *domain.shape)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("nu", "value"), [(0.5, 238.83600301475693), (1.5, 237.0573524339726), (2.5, 243.1031648852626)]
)
def test_likelihood_of_gpboost(nu, value, engine):
    """Negative log-likelihoods by GPBoost 1.8.0: gp_approx="vecchia", num_neighbors=10,
    vecchia_ordering="none", cov_pars = (0.3, 1.4, 0.2) for nugget, variance, length scale.
    """
    i = torch.arange(1, 201, dtype=torch.float64)
    sites = torch.stack([(i * 0.7548776662466927) % 1, (i * 0.5698402909980532) % 1], -1)
    kernel = Matern(nu=nu, lengthscale=0.2, variance=1.4) + Nugget(0.3)
    gamma = VecchiaCovariance(kernel, Points(sites), neighbors=10, ordering=torch.arange(200), engine=engine)
    assert -gamma.log_prob(torch.cos(3 * i) + sites[:, 0]).item() == pytest.approx(value, rel=1e-11)


# ---- the engines and the chunks
def outcome(gamma: VecchiaCovariance, kernel: gpytorch.kernels.Kernel) -> list[Tensor]:
    parameters = list(kernel.parameters())
    n = gamma.domain.size
    x = torch.linspace(-1, 1, 2 * n, dtype=torch.float64).cos().reshape(2, n)
    values = [gamma.log_prob(x), gamma.color(x), gamma.matmul(x), gamma.solve(x), gamma.variance()]
    result = [v.detach() for v in values]
    for v in values:
        weight = torch.arange(v.numel(), dtype=torch.float64).sin().reshape(v.shape)
        result += torch.autograd.grad((weight * v).sum(), parameters, retain_graph=True)
    first = torch.autograd.grad(values[0].sum() + values[1].sum(), parameters, create_graph=True)
    for gradient in first:
        result += torch.autograd.grad(gradient.sum(), parameters, retain_graph=True)
    return result


@pytest.mark.parametrize(
    "kernel",
    [
        Exponential(lengthscale=[0.9, 1.4], variance=1.7) + Nugget(0.2),
        Matern(nu=1.5, lengthscale=[0.9, 1.4], variance=1.7) + Nugget(0.2),
        Matern(nu=2.5, lengthscale=0.9, variance=1.7) + Nugget(0.2),
        Gaussian(lengthscale=0.9, variance=1.7) + Nugget(0.2),
        Anisotropic(Matern(nu=1.5, lengthscale=0.7), angles=0.4, ratios=2.0) + Nugget(0.2),
    ],
    ids=["exponential", "matern32", "matern52", "gaussian", "rotated"],
)
def test_closed_forms_and_chunks(kernel, monkeypatch):
    """Values, gradients and second derivatives: in one piece, in many, and compiled, on several threads."""
    points = scattered(90)
    options = {"neighbors": 8, "ordering": "maximin"}
    plain = outcome(VecchiaCovariance(kernel, points, engine="torch", **options), kernel)
    assert conditionals.as_isotropic(kernel, 2) is not None
    monkeypatch.setattr(conditionals, "_ENTRIES", 600)
    monkeypatch.setattr(triangular, "_GATHER", 500)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for engine in ENGINES:
            found = outcome(VecchiaCovariance(kernel, points, engine=engine, **options), kernel)
            for a, b in zip(found, plain, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("engine", ENGINES)
def test_sparse_operations(engine):
    """Against the dense triangular matrix; derivatives of every operation by finite differences, twice."""
    g = torch.Generator().manual_seed(1)
    n, m = 7, 3
    neighbours = torch.full((n, m), -1, dtype=torch.int32)
    for i in range(1, n):
        chosen = torch.randperm(i, generator=g)[:m]
        neighbours[i, : len(chosen)] = chosen.to(torch.int32)
    pattern = SparsePattern(neighbours, engine)
    used = pattern.entries()
    rows = (torch.randn(2, n, m + 1, generator=g, dtype=torch.float64) * used).requires_grad_()
    with torch.no_grad():
        rows[..., -1] = rows[..., -1].abs() + 0.5
    x = torch.randn(2, n, 2, generator=g, dtype=torch.float64, requires_grad=True)
    dense = torch.zeros(2, n, n, dtype=torch.float64)
    for i in range(n):
        dense[:, i, i] = rows[:, i, -1]
        for j in range(m):
            if neighbours[i, j] >= 0:
                dense[:, i, neighbours[i, j]] = rows[:, i, j]
    expected = {
        "product": dense @ x,
        "product_transposed": dense.mT @ x,
        "solve": torch.linalg.solve(dense, x),
        "solve_transposed": torch.linalg.solve(dense.mT, x),
    }
    for operation, value in expected.items():
        torch.testing.assert_close(pattern.apply(operation, rows, x), value, rtol=0, atol=1e-11)

        def operate(r: Tensor, v: Tensor, operation: str = operation) -> Tensor:
            return pattern.apply(operation, torch.where(used, r, 0.0), v)

        assert torch.autograd.gradcheck(operate, (rows, x))
        assert torch.autograd.gradgradcheck(operate, (rows, x))
    norms = torch.linalg.inv(dense).square().sum(-1)
    torch.testing.assert_close(pattern.square_norms(rows), norms, rtol=1e-11, atol=0)
    assert torch.autograd.gradcheck(lambda r: pattern.square_norms(torch.where(used, r, 0.0)), (rows,))


def test_levels():
    neighbours = torch.tensor([[-1, -1], [0, -1], [0, -1], [1, 2], [0, -1]], dtype=torch.int32)
    assert [level.tolist() for level in substitution_levels(neighbours.numpy())] == [[0], [1, 2, 4], [3]]


def test_neighbours_follow_the_kernel():
    """Distances are those in which the kernel falls off alike in all directions."""
    points = scattered(300)
    turned = Anisotropic(Matern(nu=1.5, lengthscale=1.0), angles=0.5, lengthscales=[0.5, 3.0])
    for kernel in (Matern(nu=1.5, lengthscale=[0.5, 3.0]), turned):
        gamma = VecchiaCovariance(kernel, points, neighbors=5)
        with torch.no_grad():
            correlation = pairwise(kernel, Points(gamma.sites))
        for i in range(1, 300):
            expected = correlation[i, :i].sort(descending=True).values[:5]
            chosen = gamma.neighbours[i][gamma.neighbours[i] >= 0].long()
            torch.testing.assert_close(correlation[i, chosen], expected, rtol=1e-9, atol=0)


# ---- the error, and what is said about it
def test_error_falls_with_neighbours():
    kernel, points = Matern(nu=1.5, lengthscale=0.8).requires_grad_(False), scattered(400)
    exact = DenseCovariance(kernel, points).log_det()
    divergences, errors = [], []
    for m in (2, 8, 32, 128):
        gamma = VecchiaCovariance(kernel, points, neighbors=m)
        divergence = gamma.kl_divergence()
        assert divergence.item() == pytest.approx(0.5 * (gamma.log_det() - exact).item(), abs=1e-7)
        divergences.append(divergence.item())
        errors.append(gamma.report.error_bound)
        difference = gamma.to_dense() - pairwise(kernel, points)
        assert gamma.report.error_bound == pytest.approx(difference.abs().max().item(), rel=1e-6)
        assert not gamma.report.exact
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[0] > 10
    assert 0 <= divergences[-1] < 1e-3
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_estimates_beyond_the_sizes_of_dense():
    kernel, points = Matern(nu=1.5, lengthscale=0.8).requires_grad_(False), scattered(2100)
    gamma = VecchiaCovariance(kernel, points, neighbors=6)
    bound, error = gamma.kl_estimate(sites=400)
    divergence = gamma.kl_divergence()
    # a lower bound in expectation, and close to the divergence with 48 neighbours against 6
    assert 0.5 * divergence < bound < divergence + 5 * error
    assert gamma.report.error_bound is None
    assert "estimates" in gamma.report.reason
    assert "6 of the 2099 others" in gamma.report.reason


def test_variance_is_that_of_the_approximation():
    """Not the kernel's: conditionals on few neighbours do not keep it."""
    kernel, points = Matern(nu=2.5, lengthscale=1.5).requires_grad_(False), scattered(500)
    gamma = VecchiaCovariance(kernel, points, neighbors=4)
    variance = gamma.variance()
    torch.testing.assert_close(variance, gamma.to_dense().diagonal(), rtol=1e-10, atol=0)
    assert (variance - 1).abs().max() > 1e-3


# ---- bad input, and manners
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbors": 0}, "whole number from 1, got 0"),
        ({"neighbors": 2.5}, "whole number from 1"),
        ({"ordering": "z"}, "must be one of 'maximin'"),
        ({"ordering": torch.tensor([0, 0, 1])}, "shape"),
        ({"engine": "cuda"}, "engine must be one of"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        VecchiaCovariance(Matern(), scattered(20), **options)


def test_refuses():
    with pytest.raises(ValueError, match="torus"):
        VecchiaCovariance(Matern(), Grid((4, 4), periodic=True))
    sites = scattered(20).coordinates()
    with pytest.raises(ValueError, match=r"2 of 22 sites repeat .* \(such as sites [34] and 2[01]\)"):
        VecchiaCovariance(Matern(), Points(torch.cat([sites, sites[3:5]])))
    with pytest.raises(ValueError, match="14 sites 24 times"):
        VecchiaCovariance(Matern(), Sphere((4, 6)))
    with pytest.raises(TypeError, match="gpytorch kernel"):
        VecchiaCovariance(torch.eye(3), scattered(3))
    with pytest.raises(ValueError, match="length scales"):
        VecchiaCovariance(Matern(lengthscale=[1.0, 2.0, 3.0]), scattered(20))
    smooth = VecchiaCovariance(Gaussian(lengthscale=50.0), scattered(60), neighbors=30)
    with pytest.raises(ValueError, match=r"not positive definite.*Nugget"):
        smooth.log_det()
    with pytest.raises(ValueError, match="kl_estimate"):
        VecchiaCovariance(Matern(), scattered(5001), neighbors=2, ordering="random").kl_divergence()


@pytest.mark.parametrize("engine", ENGINES)
def test_not_positive_definite_in_closed_form_and_not(engine):
    for kernel in (Gaussian(lengthscale=50.0), Gaussian(lengthscale=50.0) + Gaussian(lengthscale=60.0)):
        with pytest.raises(ValueError, match=r"not positive definite.*nearest neighbour"):
            VecchiaCovariance(kernel, scattered(60), neighbors=30, engine=engine).log_det()


def test_import_compiles_nothing():
    code = "import sys, spatialdiff, spatialdiff.covariance.points.vecchia; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _draw(gamma: VecchiaCovariance, queue: multiprocessing.Queue) -> None:
    queue.put(float(gamma.sample(generator=torch.Generator().manual_seed(0)).sum()))


def test_works_after_a_fork():
    """Workers of a data loader are forks of a process that may have sampled already."""
    gamma = VecchiaCovariance(Matern(), scattered(50), neighbors=5).requires_grad_(False)
    expected = float(gamma.sample(generator=torch.Generator().manual_seed(0)).sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_draw, args=(gamma, queue))
    child.start()
    assert queue.get(timeout=60) == pytest.approx(expected)
    child.join(timeout=60)
    assert child.exitcode == 0
