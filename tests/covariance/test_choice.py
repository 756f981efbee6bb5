"""What ``method="auto"`` takes: the cheapest exact structure by its stated costs, within limits;
approximations by name only where no exact one is left; the next one where an embedding is refused.
"""

from __future__ import annotations

import math

import gpytorch
import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import EmbeddingError, costs
from spatialdiff.covariance.choice import candidates, choose, ranking
from spatialdiff.covariance.costs import Candidate
from spatialdiff.domains import RectilinearGrid
from spatialdiff.kernels import Anisotropic, Exponential, Gaussian, Matern, Nugget, Wave

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")

KERNEL = Matern(1.5, 2.0).requires_grad_(False)
PRODUCT = (Gaussian(1.5) + Nugget(0.1)).requires_grad_(False)
VARYING = gpytorch.kernels.PolynomialKernel(2) + Nugget(1.0)


def half(n):
    return sd.Grid((n, n)).masked(torch.arange(n * n).reshape(n, n) % 3 > 0)


def scattered(n):
    return sd.Points(torch.rand(n, 2, generator=torch.Generator().manual_seed(0)) * 5)


def by_method(kernel, domain):
    return {c.method: c for c in candidates(kernel, domain)}


SMALL = {
    "line": (KERNEL, sd.Grid(12), {"dense", "circulant", "reflection", "vecchia"}),
    "plane": (KERNEL, sd.Grid((5, 4)), {"dense", "circulant", "reflection", "vecchia"}),
    "volume": (KERNEL, sd.Grid((3, 4, 3)), {"dense", "circulant", "reflection", "vecchia"}),
    "torus": (KERNEL, sd.Grid((6, 4), periodic=True), {"torus"}),
    "cylinder": (KERNEL, sd.Grid((8, 4), periodic=(True, False)), {"dense", "circulant", "reflection"}),
    "product": (PRODUCT, sd.Grid((5, 4)), {"dense", "circulant", "reflection", "kronecker", "vecchia"}),
    "product on a cylinder": (
        PRODUCT,
        sd.Grid((8, 4), periodic=(True, False)),
        {"dense", "circulant", "reflection", "kronecker"},
    ),
    "turned": (
        Anisotropic(Matern(1.5, 1.0), torch.tensor([0.5]), lengthscales=(2.0, 1.0)),
        sd.Grid((5, 4)),
        {"dense", "circulant", "reflection", "vecchia"},
    ),
    "rectilinear": (KERNEL, RectilinearGrid([[0.0, 1.0, 4.0], [1.0, 2.0]]), {"dense", "vecchia"}),
    "rectilinear product": (
        PRODUCT,
        RectilinearGrid([[0.0, 1.0, 4.0], [1.0, 2.0]]),
        {"dense", "kronecker", "vecchia"},
    ),
    "masked": (KERNEL, half(6), {"dense", "circulant", "vecchia"}),
    "masked torus": (
        KERNEL,
        sd.Grid((8, 8), periodic=True).masked(torch.arange(64).reshape(8, 8) % 3 > 0),
        {"dense", "torus"},
    ),
    "masked cylinder": (
        KERNEL,
        sd.Grid((8, 4), periodic=(True, False)).masked(torch.arange(32).reshape(8, 4) % 3 > 0),
        {"dense", "circulant"},
    ),
    "points": (KERNEL, scattered(20), {"dense", "vecchia"}),
    "not stationary": (VARYING, sd.Grid((4, 3)), {"dense", "vecchia"}),
    "white": (Nugget(2.0), sd.Grid((4, 3)), {"white"}),
    "mesh": (Matern(1.0, 2.0), sd.Mesh.from_grid(sd.Grid((5, 5))), {"spde"}),
    "mesh of another kernel": (PRODUCT, sd.Mesh.from_grid(sd.Grid((5, 5))), {"dense", "vecchia"}),
    "graph": (Matern(1.0, 2.0), sd.Graph.path(6), {"graph"}),
    "sphere": (Matern(1.5, 0.5), sd.Sphere((5, 8)), {"sphere"}),
    "sphere, anisotropic": (
        Matern(1.5, (0.5, 0.7, 0.9)),
        sd.Sphere((4, 6), poles=False),
        {"dense", "vecchia"},
    ),
    "batch": (
        Matern(1.5, 2.0, batch_shape=(3,)),
        sd.Grid((5, 4)),
        {"dense", "circulant", "reflection", "vecchia"},
    ),
}


# ---- what is listed
@pytest.mark.parametrize("name", SMALL)
def test_every_candidate_can_be_built_and_is_exact_where_it_says_so(name):
    kernel, domain, expected = SMALL[name]
    found = candidates(kernel, domain)
    assert {c.method for c in found} == expected
    matrices = []
    for candidate in found:
        gamma = sd.covariance(kernel, domain, method=candidate.method).double().requires_grad_(False)
        field = gamma.sample((2,), generator=torch.Generator().manual_seed(0))
        assert field.shape == (2, *kernel.batch_shape, *domain.shape)
        assert candidate.setup >= 0 < candidate.draw < math.inf
        if candidate.exact:
            matrices.append(gamma.to_dense())
    for matrix in matrices[1:]:
        torch.testing.assert_close(matrix, matrices[0], rtol=0, atol=1e-9)


def test_nothing_applies():
    with pytest.raises(ValueError, match=r"PolynomialKernel is not stationary.*images"):
        candidates(gpytorch.kernels.PolynomialKernel(2), sd.Grid(8, periodic=True))
    with pytest.raises(ValueError, match="not isotropic"):
        candidates(Matern(1.5, (0.5, 0.7, 0.9)), sd.Sphere((5, 8)))


@pytest.mark.parametrize("kernel", [Matern(1.0, 2.0, trainable_nu=True), Matern(1.5, (2.0, 3.0))])
def test_a_mesh_with_a_matern_that_the_equation_does_not_take(kernel):
    """A trained ν has no derivative there, and length scales per axis are no scalar κ."""
    mesh = sd.Mesh.from_grid(sd.Grid((5, 5)))
    assert set(by_method(kernel, mesh)) == {"dense", "vecchia"}
    gamma = sd.covariance(kernel, mesh)
    assert gamma.method == "dense"
    assert "every pair of vertices" in gamma.report.choice
    with pytest.raises(ValueError, match="SPDECovariance"):
        sd.covariance(kernel, mesh, method="spde")
    gamma.double().log_prob(torch.ones(25, dtype=torch.float64)).backward()
    assert all(p.grad is not None for p in kernel.parameters())


def test_power_of_a_mesh_comes_from_its_elements():
    """α = ν + d/2 with the dimension of the elements, not of the space: 1/2 is 1 on segments in the plane and
    3/2 on triangles, which takes a rational function.
    """
    angle = torch.arange(12) * (math.pi / 12)
    line = sd.Mesh(
        torch.stack([angle.cos(), angle.sin()], -1), torch.stack([torch.arange(11), torch.arange(1, 12)], -1)
    )
    (rough,) = candidates(Matern(0.5, 1.0), line)
    assert "1 solves with 1 sparse factor" in rough.why
    (flat,) = candidates(Matern(0.5, 1.0), sd.Mesh.from_grid(sd.Grid((4, 3))))
    assert f"{costs.POLES} solves with {costs.POLES} sparse factors" in flat.why
    (smooth,) = candidates(Matern(3.0, 1.0), sd.Mesh.from_grid(sd.Grid((4, 3))))
    assert "2 solves with 1 sparse factor" in smooth.why
    assert flat.draw > smooth.draw
    assert not flat.exact


# ---- what is taken
@pytest.mark.parametrize("name", SMALL)
def test_the_cheapest_exact_one_is_taken(name):
    kernel, domain, _ = SMALL[name]
    found = candidates(kernel, domain)
    exact = [c for c in found if c.exact] or found
    least = min(c.setup + costs.FIELDS * c.draw for c in exact)
    (expected,) = (c for c in exact if c.setup + costs.FIELDS * c.draw == least)
    gamma = sd.covariance(kernel, domain)
    masked = isinstance(domain, sd.domains.MaskedGrid) and expected.method != "dense"
    assert gamma.method == ("masked" if masked else expected.method)
    assert gamma.choice.startswith(expected.why)
    assert gamma.report.choice == gamma.choice


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        # beyond 7 times torch.randn where it is dense, benchmarks/coloured_noise.py
        (sd.Grid((32, 32)), "reflection"),
        (sd.Grid((16, 16, 16)), "reflection"),
        (sd.Grid((128, 128)), "circulant"),
        (sd.Grid((8, 8)), "dense"),
        (scattered(2000), "dense"),
        (scattered(20_000), "vecchia"),
        (sd.Grid((64, 64)).masked(torch.arange(4096).reshape(64, 64) % 64 < 32), "circulant"),
    ],
)
def test_measured_choices(domain, expected):
    kernel = (Matern(1.5, 5.0) + Nugget(0.01)).requires_grad_(False)
    assert ranking(candidates(kernel, domain))[0].method == expected


def test_an_embedding_that_has_to_grow_costs_more():
    """ν = 1, ℓ = 0.42 on the unit square: 100 x 100 is no covariance, and what is costs more."""
    grid = sd.Grid((51, 51), 1 / 50)
    short, long = (
        by_method(Matern(1.0, ell).requires_grad_(False), grid)["circulant"] for ell in (0.05, 0.424)
    )
    assert "circulant matrix of 100 x 100" in short.why
    gamma = sd.covariance(Matern(1.0, 0.424).requires_grad_(False), grid, method="circulant")
    assert f"circulant matrix of {' x '.join(map(str, gamma.embedding))}" in long.why
    assert long.draw > 1.2 * short.draw


def test_kernels_without_a_closed_form_cost_more():
    assert costs.entry(Matern(1.5)) == costs.entry(Gaussian(1.0)) == costs.ENTRY
    assert costs.entry(Matern(0.8)) == costs.entry(Matern(1.5, trainable_nu=True)) == costs.BESSEL
    assert costs.entry(Matern(0.8) + Matern(2.5) + Nugget(0.1)) == costs.BESSEL + costs.ENTRY
    assert costs.entry(gpytorch.kernels.RBFKernel()) == costs.ENTRY


def test_a_batch_costs_as_many_times_as_much():
    one, many = (by_method(Matern(1.5, 2.0, batch_shape=b), sd.Grid((9, 9))) for b in ((), (2, 3)))
    for method, candidate in one.items():
        for name in ("setup", "draw", "memory"):
            assert getattr(many[method], name) == pytest.approx(6 * getattr(candidate, name))


# ---- limits
def test_limits_of_memory_and_set_up(monkeypatch):
    grid, points = sd.Grid((12, 12)), scattered(40)
    assert sd.covariance(KERNEL, grid).method == "dense"
    found = by_method(KERNEL, grid)
    for smaller in ("reflection", "circulant"):
        largest = max(c.memory for c in found.values() if c.exact)
        found = {method: c for method, c in found.items() if c.memory < largest}
        with monkeypatch.context() as limits:
            limits.setattr(costs, "MEMORY", largest * 0.99)
            assert sd.covariance(KERNEL, grid).method == smaller
    with monkeypatch.context() as limits:
        limits.setattr(costs, "CHOLESKY", 1e9)
        assert not by_method(KERNEL, grid)["dense"].fits
        assert sd.covariance(KERNEL, grid).method == "circulant"
        gamma = sd.covariance(KERNEL, points)
        assert gamma.method == "vecchia"
        assert not gamma.report.exact
        assert "30 nearest neighbours" in gamma.choice
        assert "exact ones are beyond the limits" in gamma.choice
    with monkeypatch.context() as limits:
        # an exact one all the same where there is no approximation
        limits.setattr(costs, "MEMORY", 0.0)
        assert sd.covariance(KERNEL, sd.Grid((8, 4), periodic=(True, False))).report.exact
    monkeypatch.setattr(costs, "FIELDS", 0)
    monkeypatch.setattr(costs, "SETUP", 0.0)
    assert sd.covariance(KERNEL, points).method == "vecchia"


def test_order_of_candidates(monkeypatch):
    """Exact within the limits by cost, then approximations however cheap, then exact ones beyond."""
    monkeypatch.setattr(costs, "SETUP", 10.0)
    monkeypatch.setattr(costs, "FIELDS", 1)
    rows = [
        ("far", True, 11.0, 0.0),
        ("near", False, 0.0, 0.0),
        ("slow", True, 9.0, 9.0),
        ("fast", True, 9.0, 1.0),
    ]
    found = [Candidate(name, exact, setup, draw, 0.0, "") for name, exact, setup, draw in rows]
    assert [c.method for c in ranking(found)] == ["fast", "slow", "near", "far"]
    assert found[2].cost == 18.0


# ---- a structure that cannot be had
def test_the_next_exact_one_where_no_embedding_is_a_covariance(monkeypatch):
    kernel = (Wave(3.0) + Nugget(0.1)).requires_grad_(False)
    grid = sd.Grid((36, 36))
    with pytest.raises(EmbeddingError):
        sd.covariance(kernel, grid, method="circulant")
    monkeypatch.setattr(costs, "PRODUCT", 1.0)
    assert ranking(candidates(kernel, grid))[0].method == "circulant"
    gamma = sd.covariance(kernel, grid)
    assert gamma.method == "reflection"
    assert gamma.report.exact
    assert "not circulant: no embedding within its limits is a covariance" in gamma.report.choice
    assert "circulant" not in gamma.choice.split("(against")[1].split(")")[0]
    assert gamma.sample().shape == (36, 36)


def test_an_approximation_where_no_embedding_is_a_covariance_and_others_are_too_large(monkeypatch):
    monkeypatch.setattr(costs, "MEMORY", 5e6)
    gamma = sd.covariance(Wave(3.0) + Nugget(0.1), sd.Grid((36, 36)))
    assert gamma.method == "vecchia"
    assert "not circulant" in gamma.choice
    assert "beyond the limits" in gamma.choice


@pytest.mark.parametrize("kernel", [Gaussian(5.0), Gaussian(20.0), Gaussian(5.0, batch_shape=(2,))])
@pytest.mark.parametrize("grid", [sd.Grid(100), sd.Grid(100).masked(torch.arange(100) % 7 > 0)])
def test_a_transform_where_gamma_is_singular_to_working_precision(kernel, grid):
    """The Cholesky factors, which are cheaper, do not exist in float64."""
    with pytest.raises(ValueError, match="not positive definite"):
        sd.covariance(kernel, grid, method="dense").sample()
    assert ranking(candidates(kernel, grid))[0].method == "dense"
    gamma = sd.covariance(kernel, grid).double()
    assert "not dense: Γ is singular to working precision" in gamma.choice
    assert gamma.report.exact
    x = gamma.sample((3,)).detach()
    assert torch.isfinite(x).all()
    expected = kernel(torch.arange(100.0).double()[:, None]).to_dense()[..., :5, :5].detach()
    if isinstance(grid, sd.Grid):
        torch.testing.assert_close(gamma.to_dense()[..., :5, :5].detach(), expected, rtol=0, atol=1e-9)


def test_the_advice_of_the_cholesky_factor_where_nothing_else_is_left():
    """No embedding, no positive definite matrix: Γ is made, and its first use says what to do."""
    gamma = sd.covariance(Gaussian(30.0), sd.Grid((8, 8)).masked(torch.eye(8) < 1))
    assert gamma.method == "dense"
    assert "not circulant" in gamma.choice
    with pytest.raises(ValueError, match="Add a Nugget"):
        gamma.sample()


def test_the_error_of_the_embedding_where_nothing_is_left():
    def refuse(method):
        raise EmbeddingError(f"no {method}")

    with pytest.raises(EmbeddingError, match="no dense"):
        choose(KERNEL, sd.Grid((4, 4)), refuse)


def test_other_errors_are_not_passed_over():
    with pytest.raises(ValueError, match=r"Circular.*dimension"):
        sd.covariance(sd.kernels.Circular(2.0), sd.Grid((3, 3, 3)))
    with pytest.raises(TypeError, match="no_such_option"):
        sd.covariance(KERNEL, sd.Grid((4, 4)), no_such_option=1)


# ---- how costs grow
def exponent(name, kernel, make, sizes):
    """Of the last two sizes, without the constant parts."""
    method, field = name.split()
    values, sites = [], []
    for size in sizes:
        domain = make(size)
        candidate = by_method(kernel, domain)[method]
        fixed = {"setup": costs.ONCE, "draw": costs.CALL.get(method, 0.0), "memory": 0.0}[field]
        values.append(getattr(candidate, field) - fixed)
        sites.append(domain.size)
    return math.log(values[-1] / values[-2]) / math.log(sites[-1] / sites[-2])


def square(n):
    return sd.Grid((n, n))


GROWTH = {
    "dense setup": (KERNEL, square, (1000, 2000), 3.0),
    "dense draw": (KERNEL, square, (100, 200), 2.0),
    "dense memory": (KERNEL, square, (100, 200), 2.0),
    "circulant setup": (KERNEL, square, (512, 1024), 1.0),
    "circulant draw": (KERNEL, square, (512, 1024), 1.0),
    "circulant memory": (KERNEL, square, (512, 1024), 1.0),
    "torus draw": (KERNEL, lambda n: sd.Grid((n, n), periodic=True), (512, 1024), 1.0),
    "reflection setup": (KERNEL, square, (1000, 2000), 3.0),
    "reflection draw": (KERNEL, square, (200, 400), 2.0),
    "reflection memory": (KERNEL, square, (100, 200), 2.0),
    "kronecker setup": (PRODUCT, square, (1000, 2000), 1.5),
    "kronecker draw": (PRODUCT, square, (2000, 4000), 1.5),
    "vecchia setup": (KERNEL, square, (100, 200), 1.0),
    "vecchia draw": (KERNEL, square, (100, 200), 1.0),
    "sphere setup": (Matern(1.5, 0.5), lambda n: sd.Sphere((n, 2 * n)), (8000, 16_000), 2.0),
    "sphere draw": (Matern(1.5, 0.5), lambda n: sd.Sphere((n, 2 * n)), (2000, 4000), 1.5),
    "spde draw": (Matern(1.0, 2.0), lambda n: sd.Mesh.from_grid(square(n)), (16, 32), 1.0),
    "graph draw": (Matern(1.0, 2.0), sd.Graph.path, (1000, 2000), 1.0),
}


@pytest.mark.parametrize("name", GROWTH)
def test_growth(name):
    kernel, make, sizes, stated = GROWTH[name]
    # logarithms and lower terms
    assert exponent(name, kernel, make, sizes) == pytest.approx(stated, abs=0.2)


def test_exponential_of_one_axis_is_never_kronecker():
    assert set(by_method(Exponential(2.0), sd.Grid(50))) == {"dense", "circulant", "reflection", "vecchia"}
