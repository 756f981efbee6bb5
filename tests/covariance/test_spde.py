"""Matérn fields on meshes against the precision written out element by element, and against the Matérn
kernel.
"""

from __future__ import annotations

import functools
import importlib
import math
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from covariance_case import CovarianceCase

import spatialdiff as sd
from spatialdiff.covariance.meshes.finite_elements import lumped_mass, stiffness_root
from spatialdiff.covariance.meshes.rational import fractional_power
from spatialdiff.covariance.meshes.selected_inverse import selected_diagonal
from spatialdiff.covariance.meshes.spde import SPDECovariance
from spatialdiff.domains.mesh import Mesh
from spatialdiff.kernels import Exponential, Gaussian, Matern, Nugget

# `spatialdiff.covariance` as an attribute is the factory
power = importlib.import_module("spatialdiff.covariance.meshes.power")
sparse = importlib.import_module("spatialdiff.covariance.meshes.sparse")

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")


def cotangent(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b) - float(a @ b) ** 2)


def element_matrices(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    """Lumped mass and stiffness by a loop over elements: segments and triangles by their classical formulas
    (the cotangent formula), tetrahedra by the inverse of the matrix of barycentric coordinates.
    """
    n = mesh.size
    mass, stiffness = torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for element in mesh.elements.tolist():
        x = mesh.vertices[element]
        k = len(element)
        local = torch.zeros(k, k, dtype=torch.float64)
        if k == 2:
            volume = float((x[1] - x[0]).norm())
            local += torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64) / volume
        elif k == 3:
            a, b = x[1] - x[0], x[2] - x[0]
            volume = 0.5 * math.sqrt(float(a @ a) * float(b @ b) - float(a @ b) ** 2)
            for i in range(3):
                j, m = (i + 1) % 3, (i + 2) % 3
                w = 0.5 * cotangent(x[j] - x[i], x[m] - x[i])
                for row, column, sign in ((j, m, -1), (m, j, -1), (j, j, 1), (m, m, 1)):
                    local[row, column] += sign * w
        else:
            barycentric = torch.cat([torch.ones(4, 1, dtype=torch.float64), x], dim=1)
            volume = abs(float(torch.linalg.det(barycentric))) / 6
            gradients = torch.linalg.inv(barycentric)[1:]
            local += volume * gradients.T @ gradients
        for i in range(k):
            mass[element[i]] += volume / k
            for j in range(k):
                stiffness[element[i], element[j]] += local[i, j]
    return mass, stiffness


@functools.cache
def matrices(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    return element_matrices(mesh)


def discrete(mesh: Mesh, nu: float, ell: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Γ from its definition, with a dense precision for integer α and dense eigenvectors otherwise; ``ell``
    and ``variance`` are numbers or one value per vertex.
    """
    d = mesh.element_dimension
    alpha = nu + d / 2
    c, g = matrices(mesh)
    kappa = (math.sqrt(2 * nu) / ell).expand(mesh.size)
    tau2 = math.gamma(nu) / (math.gamma(alpha) * (4 * math.pi) ** (d / 2) * kappa ** (2 * nu) * variance)
    tau = torch.diag(tau2.sqrt().expand(mesh.size))
    k, inverse_c = torch.diag(c * kappa**2) + g, torch.diag(1 / c)
    if alpha == int(alpha):
        precision = k
        for _ in range(int(alpha) - 1):
            precision = precision @ inverse_c @ k
        return torch.linalg.inv(tau @ precision @ tau).contiguous()
    half = torch.diag(c.rsqrt())
    values, vectors = torch.linalg.eigh(half @ k @ half)
    power = half @ vectors @ torch.diag(values**-alpha) @ vectors.T @ half
    return torch.diag(1 / tau.diagonal()) @ power @ torch.diag(1 / tau.diagonal())


@functools.cache
def scattered(side: int, d: int) -> Mesh:
    """The mesh of a grid with its vertices moved: irregular, yet without slivers."""
    mesh = Mesh.from_grid(sd.Grid((side,) * d))
    generator = torch.Generator().manual_seed(side)
    move = torch.rand(mesh.size, d, generator=generator, dtype=torch.float64) - 0.5
    return Mesh(mesh.vertices + 0.4 * move, mesh.elements)


class MeshCase(CovarianceCase):
    """α = ν + d/2."""

    grid = scattered(16, 1)
    nu = 1.5
    options: ClassVar[dict] = {}

    def kernel(self):
        return Matern(self.nu, lengthscale=1.9, variance=1.7)

    def build(self, kernel):
        return SPDECovariance(kernel, self.grid, self.channels, **self.options)

    def spatial(self, kernel):
        return discrete(self.grid, self.nu, kernel.lengthscale.reshape(()), kernel.variance)


class TestLine1(MeshCase):
    """Exponential, α = 1: the rectangular root."""

    invertible_root = False

    def kernel(self):
        return Exponential(1.9, 1.7)

    nu = 0.5


class TestLine1Symmetric(TestLine1):
    """The same Γ with a square root, by a rational function."""

    options: ClassVar = {"root": "symmetric", "tolerance": 1e-12}
    invertible_root = True


class TestLine2Channels(MeshCase):
    """α = 2."""

    channels: ClassVar = [[1.0, 0.3], [0.3, 0.5]]


class TestLine3Channels(MeshCase):
    """α = 3."""

    nu = 2.5
    channels = 2
    invertible_root = False
    # the reference inverts a precision of condition 1e6
    tolerance = 1e-10


class TestTriangles(MeshCase):
    """α = 2."""

    grid = scattered(5, 2)
    nu = 1.0


class TestTrianglesFractional(MeshCase):
    """α = 5/2."""

    grid = scattered(5, 2)
    options: ClassVar = {"tolerance": 1e-12}
    channels = 2


class TestTrianglesRough(MeshCase):
    """α = 3/2."""

    grid = Mesh.from_grid(sd.Grid((4, 5), spacing=(1.0, 0.8)))
    nu = 0.5
    options: ClassVar = {"tolerance": 1e-12}


class TestTetrahedra(MeshCase):
    """α = 3."""

    grid = scattered(3, 3)
    invertible_root = False


class TestSurface(MeshCase):
    """A sphere, α = 2: no boundary."""

    grid = Mesh.sphere(1, radius=2.0)
    nu = 1.0


class TestNormalized(MeshCase):
    """Variance σ² everywhere."""

    grid = scattered(4, 2)
    options: ClassVar = {"tolerance": 1e-12, "normalize": "site"}

    def spatial(self, kernel):
        plain = discrete(self.grid, self.nu, kernel.lengthscale.reshape(()), kernel.variance)
        scale = (kernel.variance / plain.diagonal()).sqrt()
        return scale[:, None] * plain * scale


# ---- fields of parameters
def varying(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    x = mesh.coordinates()[:, 0]
    return 1.5 + 0.5 * torch.sin(x), 1.0 + 0.3 * torch.cos(0.7 * x)


@pytest.mark.parametrize(
    ("mesh", "nu"), [(scattered(16, 1), 0.5), (scattered(4, 2), 1.0), (scattered(4, 2), 0.5)]
)
def test_fields_of_parameters_and_their_gradients(mesh, nu):
    """Every operation against the dense definition, and its gradient in every vertex's ℓ and σ²."""
    ell, variance = (torch.nn.Parameter(v) for v in varying(mesh))
    kernel = Matern(nu).requires_grad_(False)
    gamma = SPDECovariance(kernel, mesh, lengthscale=ell, variance=variance, tolerance=1e-12)
    assert {id(p) for p in gamma.parameters() if p.requires_grad} == {id(ell), id(variance)}
    dense = discrete(mesh, nu, ell, variance)
    z = torch.randn(3, *gamma.factor_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = z[:, : mesh.size]
    law = torch.distributions.MultivariateNormal(torch.zeros(mesh.size, dtype=torch.float64), dense)
    pairs = {
        "log_prob": (gamma.log_prob(x).sum(), law.log_prob(x).sum()),
        "log_det": (gamma.log_det(), torch.logdet(dense)),
        "matmul": ((x * gamma.matmul(x)).sum(), (x * (x @ dense)).sum()),
        "solve": ((x * gamma.solve(x)).sum(), (x * torch.linalg.solve(dense, x.T).T).sum()),
        "variance": ((gamma.variance() * x[0]).sum(), (dense.diagonal() * x[0]).sum()),
    }
    for name, (value, expected) in pairs.items():
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8, msg=name)
        got = torch.autograd.grad(value, [ell, variance], retain_graph=True)
        want = torch.autograd.grad(expected, [ell, variance], retain_graph=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)

    def sampled(*fields):
        one = SPDECovariance(kernel, mesh, lengthscale=fields[0], variance=fields[1], tolerance=1e-12)
        return one.color(z[0])

    assert torch.autograd.gradcheck(sampled, (ell, variance), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_fields_of_parameters_in_a_batch():
    """A field of ℓ for each member of the batch against members alone."""
    mesh = scattered(4, 2)
    ell, _ = varying(mesh)
    fields = torch.stack([ell, 1.3 * ell])
    gamma = SPDECovariance(
        Matern(1.0, variance=torch.tensor([1.0, 2.0]), batch_shape=(2,)), mesh, lengthscale=fields
    )
    for i, variance in enumerate((1.0, 2.0)):
        alone = SPDECovariance(Matern(1.0, variance=variance), mesh, lengthscale=fields[i])
        torch.testing.assert_close(gamma.to_dense()[i], alone.to_dense(), rtol=1e-12, atol=0)
        assert gamma.log_det()[i].item() == pytest.approx(alone.log_det().item(), rel=1e-12)


def test_kappa_is_the_same_field():
    mesh = scattered(16, 1)
    ell, _ = varying(mesh)
    kernel = Matern(1.5)
    by_length = SPDECovariance(kernel, mesh, lengthscale=ell)
    by_kappa = SPDECovariance(kernel, mesh, kappa=math.sqrt(3) / ell)
    torch.testing.assert_close(by_length.to_dense(), by_kappa.to_dense(), rtol=1e-13, atol=0)


def test_second_derivatives_of_the_likelihood():
    """Hessian of the log-likelihood in log ℓ and log σ², against that of the dense definition."""
    mesh = scattered(16, 1)
    x = torch.randn(mesh.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    hessians = []
    for dense in (True, False):
        kernel = Matern(1.5, 2.0, 1.3)
        if dense:
            matrix = discrete(mesh, 1.5, kernel.lengthscale.reshape(()), kernel.variance)
            value = torch.distributions.MultivariateNormal(torch.zeros_like(x), matrix).log_prob(x)
        else:
            value = SPDECovariance(kernel, mesh).log_prob(x)
        parameters = [kernel.raw_lengthscale, kernel.raw_variance]
        first = torch.autograd.grad(value, parameters, create_graph=True)
        rows = [torch.autograd.grad(g.sum(), parameters, retain_graph=True, allow_unused=True) for g in first]
        hessians.append([[float(v.sum()) for v in row] for row in rows])
    np.testing.assert_allclose(hessians[1], hessians[0], rtol=1e-7)


# ---- finite elements
@pytest.mark.parametrize(
    "mesh",
    [scattered(9, 1), scattered(4, 2), scattered(3, 3), Mesh.sphere(0), Mesh.from_grid(sd.Grid((3, 3, 3)))],
)
def test_mass_and_stiffness(mesh):
    c, g = matrices(mesh)
    root = stiffness_root(mesh)
    torch.testing.assert_close(lumped_mass(mesh), c, rtol=1e-13, atol=0)
    np.testing.assert_allclose(
        (root.T @ root).toarray(), g.numpy(), rtol=0, atol=1e-12 * float(g.abs().max())
    )
    assert float(lumped_mass(mesh).sum()) == pytest.approx(float(mesh.volumes().sum()), rel=1e-13)


def test_stiffness_of_linear_functions():
    """``uᵀGu = ∫‖∇u‖²``: for ``u = a·x`` it is ``‖a‖²`` times the volume."""
    for mesh in (scattered(4, 2), scattered(3, 3)):
        a = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)[: mesh.dimension]
        energy = np.square(stiffness_root(mesh) @ (mesh.coordinates() @ a).numpy()).sum()
        assert energy == pytest.approx(float(a @ a * mesh.volumes().sum()), rel=1e-12)


# ---- towards the Matérn kernel as the mesh is refined
def interior_errors(d: int, n: int, coarse: int, extent: float, nu: float, ell: float) -> tuple[float, float]:
    """Difference between Γ and the kernel for the site in the middle: its variance, and the largest in
    covariances with the sites of a coarse grid between ``ℓ/2`` and ``2ℓ`` away.
    """
    grid = sd.Grid((n,) * d, extent / (n - 1))
    kernel = Matern(nu, ell).requires_grad_(False)
    gamma = SPDECovariance(kernel, Mesh.from_grid(grid))
    sites = grid.coordinates()
    h = sites - sites[(n // 2,) * d]
    unit = torch.zeros(grid.shape, dtype=torch.float64)
    unit[(n // 2,) * d] = 1.0
    error = (gamma.matmul(unit.reshape(-1)).reshape(grid.shape) - kernel.at_lags(h)).abs()
    common = (slice(None, None, (n - 1) // (coarse - 1)),) * d
    r = h.norm(dim=-1)[common]
    return float(error[(n // 2,) * d]), float(error[common][(r >= ell / 2) & (r <= 2 * ell)].max())


@pytest.mark.parametrize(
    ("d", "nu", "sizes", "orders"),
    [
        (1, 0.5, (161, 321, 641), (2.0, 2.0)),
        (1, 1.5, (161, 321, 641), (2.0, 2.0)),
        (1, 2.5, (161, 321, 641), (2.0, 2.0)),
        # the variance of what a mesh cannot hold is h^{2ν}, so more than h² for ν < 1; h² log(1/h) for ν = 1
        (2, 0.5, (31, 121, 241), (0.83, 2.0)),
        (2, 1.0, (31, 61, 121), (1.6, 2.0)),
        (2, 1.5, (31, 61, 121), (2.0, 2.0)),
        (2, 2.0, (31, 61, 121), (2.0, 2.0)),
        (3, 1.5, (17, 17, 33), (1.9, 2.0)),
    ],
)
def test_converges_to_the_matern_kernel(d, nu, sizes, orders):
    """Order of the error between the two finest of the meshes, measured: 2 for the covariance of different
    sites.
    """
    coarse, middle, fine = sizes
    extent, ell = {1: (32.0, 1.0), 2: (12.0, 1.0), 3: (8.0, 1.2)}[d]
    a, b = (interior_errors(d, n, coarse, extent, nu, ell) for n in (middle, fine))
    for first, second, order in zip(a, b, orders, strict=True):
        measured = math.log2(first / second)
        assert abs(measured - order) < 0.2, (measured, a, b)


def test_boundary_effect():
    """Exponential on a line: ``σ²(1 + e^{-2√(2ν) r/ℓ})`` at distance r from a free end (twice σ² at the end),
    and the variance asked for where it is normalised.
    """
    grid = sd.Grid(801, 0.02)
    kernel = Exponential(1.0, 1.5).requires_grad_(False)
    variance = SPDECovariance(kernel, Mesh.from_grid(grid)).variance()
    r = grid.coordinates()[:, 0]
    expected = 1.5 * (1 + torch.exp(-2 * r) + torch.exp(-2 * (16 - r)))
    torch.testing.assert_close(variance, expected, rtol=1e-3, atol=0)
    even = SPDECovariance(kernel, Mesh.from_grid(grid), normalize="site")
    torch.testing.assert_close(even.variance(), torch.full_like(variance, 1.5), rtol=1e-10, atol=0)
    mean = SPDECovariance(kernel, Mesh.from_grid(grid), normalize="mean")
    assert float(mean.variance().mean()) == pytest.approx(1.5, rel=1e-10)
    assert float(mean.variance()[0] / mean.variance()[400]) == pytest.approx(2.0, rel=1e-2)


def test_sphere_has_equal_variance_everywhere():
    """Nothing tells one place on a sphere from another: variance within the mesh's own irregularity."""
    variance = SPDECovariance(Matern(1.0, 0.4).requires_grad_(False), Mesh.sphere(4)).variance()
    assert variance.max() / variance.min() < 1.03


# ---- rational functions
@pytest.mark.parametrize("beta", [0.05, 0.25, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("ratio", [3.0, 1e3, 1e6])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-10])
def test_rational_function_keeps_its_tolerance(beta, ratio, tolerance):
    """Away from the sites it was fitted at, with its exact inverse, at any scale."""
    low = 0.37
    r = fractional_power(beta, low, low * ratio, tolerance)
    x = low * np.exp(np.random.default_rng(0).uniform(0, math.log(ratio), 5000))
    value = r.constant + sum(w / (x + t) for w, t in zip(r.weights, r.poles, strict=True))
    inverse = r.inverse_at_zero + x * sum(
        v / (x + s) for v, s in zip(r.inverse_weights, r.zeros, strict=True)
    )
    assert np.abs(value * x**beta - 1).max() <= tolerance
    assert r.error <= tolerance
    np.testing.assert_allclose(value * inverse, 1.0, rtol=0, atol=1e-11)
    assert min(*r.weights, *r.poles, *r.zeros, *r.inverse_weights, r.constant, r.inverse_at_zero) > 0


def test_rational_function_that_cannot_be_had():
    with pytest.raises(RuntimeError, match=r"at best.*tolerance="):
        fractional_power(0.5, 1.0, 1e4, 1e-16)


def test_few_poles_give_the_error_that_the_report_states():
    mesh = scattered(7, 2)
    kernel = Matern(0.5, 2.0).requires_grad_(False)
    exact = discrete(mesh, 0.5, torch.tensor(2.0, dtype=torch.float64), torch.ones(()))
    for tolerance in (1e-2, 1e-4, 1e-6):
        gamma = SPDECovariance(kernel, mesh, tolerance=tolerance)
        values = torch.linalg.eigvals(torch.linalg.solve(exact, gamma.to_dense())).real
        worst = (values - 1).abs().max().item()
        assert worst <= 2.1 * gamma._rational().error
        assert f"relative error {gamma._rational().error:.1e}" in gamma.report.reason
        assert not gamma.report.exact


# ---- large meshes
def test_selected_inverse():
    """Diagonal of the inverse against a dense inverse, for patterns with entries that cancel to 0 in the
    factor.
    """
    from scipy.sparse import csc_matrix, random_array
    from scipy.sparse.linalg import splu

    for seed in range(5):
        rng = np.random.default_rng(seed)
        b = random_array(
            (60, 40), density=0.06, rng=rng, data_sampler=lambda size: np.sign(np.arange(size) % 3 - 0.5)
        )
        matrix = csc_matrix(b.T @ b + np.eye(40))
        lu = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        found = selected_diagonal(lu.L, lu.U.diagonal())[lu.perm_c]
        np.testing.assert_allclose(found, np.linalg.inv(matrix.toarray()).diagonal(), rtol=1e-12)


@pytest.mark.parametrize("nu", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_variance_of_a_large_mesh(nu, monkeypatch):
    """Selected inverses and partial fractions (large meshes) against whole inverses (small ones)."""
    mesh = scattered(20, 2)
    gamma = SPDECovariance(Matern(nu, 3.0, 1.3).requires_grad_(False), mesh)
    expected = gamma.variance()
    monkeypatch.setattr(power, "DENSE_SITES", 10)
    monkeypatch.setattr(sparse, "DENSE_SITES", 10)
    large = SPDECovariance(Matern(nu, 3.0, 1.3), mesh)
    value = large.variance()
    torch.testing.assert_close(
        value.detach(), expected, rtol=1e-6 if nu in (0.5, 1.5, 2.5) else 1e-10, atol=0
    )
    with pytest.raises(RuntimeError, match="which is formed for up to"):
        value.sum().backward()


def test_log_det_gradient_of_a_large_mesh():
    mesh = scattered(50, 2)
    kernel = Matern(1.0, 3.0)
    gamma = SPDECovariance(kernel, mesh)
    gamma.log_det().backward()
    step, values = 1e-4, []
    for sign in (1, -1):
        with torch.no_grad():
            kernel.raw_lengthscale += sign * step
            values.append(float(gamma.log_det()))
            kernel.raw_lengthscale -= sign * step
    assert kernel.raw_lengthscale.grad.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


def test_many_nodes():
    """100,000 nodes: seconds, and the law asked for: variance and a lag within five standard errors."""
    grid = sd.Grid((317, 317))
    kernel = Matern(1.0, 6.0, 2.0).requires_grad_(False)
    gamma = SPDECovariance(kernel, Mesh.from_grid(grid)).double()
    start = time.perf_counter()
    x = gamma.sample((4,), generator=torch.Generator().manual_seed(0)).reshape(4, 317, 317)[:, 30:-30, 30:-30]
    assert time.perf_counter() - start < 30.0
    h = torch.stack(
        torch.meshgrid(torch.arange(-40, 41.0), torch.arange(-40, 41.0), indexing="ij"), -1
    ).double()
    covariance = kernel.at_lags(h)
    spread = (2 * covariance.square().sum().item() / x.numel()) ** 0.5
    assert abs(x.square().mean().item() - 2.0) < 5 * spread
    lag = float(kernel.at_lags(torch.tensor([3.0, 0.0], dtype=torch.float64)))
    assert abs((x[:, 3:] * x[:, :-3]).mean().item() - lag) < 5 * spread
    assert "factor fill" in gamma.report.reason


# ---- what is kept, what is refused
def test_factors_are_kept_until_a_parameter_changes():
    mesh = scattered(4, 2)
    kernel = Matern(1.0, 2.0).requires_grad_(False)
    gamma = SPDECovariance(kernel, mesh)
    gamma.sample()
    held = list(gamma.operator._factors.values())
    gamma.sample((3,))
    assert [a[1] for a in gamma.operator._factors.values()] == [a[1] for a in held]
    before = gamma.to_dense()
    kernel.lengthscale = 2.5
    assert float((gamma.to_dense() - before).abs().max()) > 1e-3


def test_report_states_power_boundary_and_error():
    text = str(SPDECovariance(Matern(1.5, 2.0), scattered(5, 2)).report)
    for part in (
        "α = 2.5",
        "boundary",
        "exact fractional power",
        "poles, relative error",
        "factor fill",
        "(edge/ℓ)²",
    ):
        assert part in text


def test_warns():
    with pytest.warns(UserWarning, match="finer mesh"):
        SPDECovariance(Matern(1.5, 0.1), scattered(4, 2))
    with pytest.warns(UserWarning, match="beyond the extent"):
        SPDECovariance(Matern(1.5, 100.0), scattered(4, 2))


def test_refuses():
    mesh = scattered(4, 2)
    with pytest.raises(TypeError, match="needs a Mesh, got Grid"):
        SPDECovariance(Matern(1.5), sd.Grid(4))
    for kernel in (Gaussian(2.0), Matern(1.5, 2.0) + Nugget(0.1)):
        with pytest.raises(ValueError, match="Matern kernel"):
            SPDECovariance(kernel, mesh)
    with pytest.raises(ValueError, match="one length scale"):
        SPDECovariance(Matern(1.5, [1.0, 2.0]), mesh)
    with pytest.raises(ValueError, match="trainable_nu"):
        SPDECovariance(Matern(1.5, trainable_nu=True), mesh)
    with pytest.raises(ValueError, match="one value per vertex"):
        SPDECovariance(Matern(1.5), mesh, kappa=torch.ones(3))
    with pytest.raises(ValueError, match="positive and finite, it is not at 1 of 16"):
        SPDECovariance(Matern(1.5), mesh, kappa=torch.ones(16).index_fill(0, torch.tensor(2), -1.0))
    with pytest.raises(ValueError, match="give the kernel a batch_shape"):
        SPDECovariance(Matern(1.5), mesh, kappa=torch.ones(2, 16))
    with pytest.raises(ValueError, match="not both"):
        SPDECovariance(Matern(1.5), mesh, kappa=torch.ones(16), lengthscale=torch.ones(16))
    for option, value in (("root", "cholesky"), ("normalize", "max"), ("tolerance", 0.0)):
        with pytest.raises(ValueError, match=option):
            SPDECovariance(Matern(1.5), mesh, **{option: value})
    with pytest.raises(RuntimeError, match="not positive definite to working precision"):
        SPDECovariance(Matern(1.5, 1e9), mesh).sample()
