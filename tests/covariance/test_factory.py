"""Which structure `covariance` takes, its refusals, channels, caching, and two covariances in one basis."""

from __future__ import annotations

import gpytorch
import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import (
    CirculantCovariance,
    CosineCovariance,
    DenseCovariance,
    GraphMaternCovariance,
    KroneckerCovariance,
    MaskedCovariance,
    MatrixFreeCovariance,
    SPDECovariance,
    SphereCovariance,
    TorusCovariance,
    VecchiaCovariance,
    WhiteCovariance,
    joint_spectrum,
)
from spatialdiff.domains import RectilinearGrid
from spatialdiff.kernels import Coregionalization, Exponential, Gaussian, Matern, Nugget

KERNEL = Matern(1.5, 2.0).requires_grad_(False)
NOISY = (Matern(0.5, 3.0, 1.5) + Nugget(0.1)).requires_grad_(False)
TORUS = sd.Grid((4, 6), periodic=True)


@pytest.mark.parametrize(
    ("kernel", "grid", "expected"),
    [
        (Nugget(2.0), sd.Grid(8), WhiteCovariance),
        (KERNEL, TORUS, TorusCovariance),
        (KERNEL, sd.Grid((16, 16)), DenseCovariance),
        (KERNEL, sd.Grid((64, 64)), CirculantCovariance),
        (KERNEL, sd.Grid((64, 64), periodic=(True, False)), CirculantCovariance),
        (gpytorch.kernels.LinearKernel() + Nugget(1.0), sd.Grid(2000), DenseCovariance),
        (gpytorch.kernels.RBFKernel(), TORUS, TorusCovariance),
        (Gaussian(2.0) + Nugget(0.1), sd.Grid((64, 64)), KroneckerCovariance),
        (Gaussian(2.0) + Nugget(0.1), RectilinearGrid([range(60), range(0, 180, 3)]), KroneckerCovariance),
        (KERNEL, RectilinearGrid([[0.0, 1.0, 4.0], [1.0, 2.0]]), DenseCovariance),
        (KERNEL, sd.Grid((64, 64)).masked(torch.arange(4096).reshape(64, 64) % 3 > 0), MaskedCovariance),
        (KERNEL, sd.Grid((6, 6)).masked(torch.arange(36).reshape(6, 6) % 3 > 0), DenseCovariance),
        (KERNEL, sd.Points(torch.arange(50.0)), DenseCovariance),
        (KERNEL, sd.Points(torch.arange(20_000.0)), VecchiaCovariance),
        (KERNEL, sd.Mesh.from_grid(sd.Grid((5, 5))), SPDECovariance),
        (Exponential(2.0) + Nugget(1.0), sd.Mesh.from_grid(sd.Grid((5, 5))), DenseCovariance),
        (Matern(1.0, 2.0), sd.Graph.path(5), GraphMaternCovariance),
        (Matern(1.5, 0.5), sd.Sphere((8, 12)), SphereCovariance),
    ],
)
@pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")
def test_auto(kernel, grid, expected):
    assert type(sd.covariance(kernel, grid)) is expected


def test_auto_says_why():
    """What was taken, its cost, and what else there was; an approximation names itself."""
    small, large = (sd.covariance(KERNEL, sd.Points(torch.arange(float(n)))) for n in (50, 20_000))
    assert "every pair of sites" in str(small.report)
    assert "against vecchia" in small.report.choice
    assert small.report.exact
    assert "30 nearest neighbours" in large.report.choice
    assert "beyond the limits of memory and time" in large.report.choice
    assert not large.report.exact
    assert sd.covariance(KERNEL, TORUS, method="torus").report.choice == ""


def test_linear_model_of_coregionalization():
    """Built from its description, in one basis and side by side: ``Σ_q B_q ⊗ Γ_q``, with trained roots."""
    b = [torch.tensor([[1.0, 0.5], [0.5, 0.25]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)]
    kernels = [Matern(1.5, 2.0), Exponential(1.0, 0.5)]
    model = Coregionalization(list(zip(b, kernels, strict=True)))
    for grid in (TORUS, sd.Grid((3, 4))):
        gamma = sd.covariance(model, grid)
        parts = [sd.covariance(k, grid).to_dense().detach() for k in kernels]
        expected = sum(torch.kron(m, p) for m, p in zip(b, parts, strict=True))
        torch.testing.assert_close(gamma.to_dense(), expected, rtol=0, atol=1e-10)
        assert gamma.event_shape == (2, *grid.shape)
        gamma.log_prob(torch.randn(2, *grid.shape, dtype=torch.float64)).backward()
        assert all(root.grad is not None for root in model.roots)


def test_methods_by_name():
    masked = sd.Grid((4, 6)).masked(torch.arange(24).reshape(4, 6) > 2)
    assert type(sd.covariance(KERNEL, masked, method="circulant")) is MaskedCovariance
    assert type(sd.covariance(KERNEL, masked, method="vecchia", neighbors=3)) is VecchiaCovariance
    assert type(sd.covariance(KERNEL, masked, method="matrix_free", backend="plain")) is MatrixFreeCovariance
    assert type(sd.covariance(KERNEL, TORUS, method="cosine")) is CosineCovariance
    assert type(sd.covariance(KERNEL, TORUS, method="dense")) is DenseCovariance
    assert sd.covariance(Nugget(2.0), TORUS, method="white").variance()[0, 0].item() == pytest.approx(2.0)
    assert sd.white(TORUS, 3).event_shape == (3, 4, 6)


def test_refuses():
    with pytest.raises(ValueError, match="unknown method 'kriging'; known methods"):
        sd.covariance(KERNEL, TORUS, method="kriging")
    with pytest.raises(TypeError, match=r"domain.*got tuple"):
        sd.covariance(KERNEL, (4, 6))
    with pytest.raises(TypeError, match="gpytorch kernel"):
        sd.covariance("matern", TORUS)
    with pytest.raises(ValueError, match="not both"):
        sd.covariance(KERNEL, TORUS, spectrum=torch.ones(4, 4))
    with pytest.raises(ValueError, match="spectrum needs method"):
        sd.covariance(domain=TORUS, spectrum=torch.ones(4, 4))
    with pytest.raises(ValueError, match="Nugget"):
        sd.covariance(KERNEL, TORUS, method="white")
    for channels in (0, torch.ones(2, 3), [[1.0, 0.9], [0.2, 1.0]]):
        with pytest.raises(ValueError, match="channel"):
            sd.covariance(KERNEL, TORUS, channels=channels)
    with pytest.raises(ValueError, match=r"positive definite.*-1"):
        sd.covariance(KERNEL, TORUS, channels=[[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="stationary"):
        sd.covariance(gpytorch.kernels.PolynomialKernel(2), sd.Grid(8), method="circulant")
    with pytest.raises(ValueError, match=r"stationary.*images"):
        sd.covariance(gpytorch.kernels.PolynomialKernel(2), TORUS)
    points = sd.Points(torch.rand(5, 2))
    for method in ("torus", "cosine", "circulant", "kronecker", "spde", "graph", "sphere"):
        with pytest.raises(ValueError, match=r"not take a Points; methods for it: white, dense, matrix_free"):
            sd.covariance(KERNEL, points, method=method)
    with pytest.raises(ValueError, match="does not take a Graph; methods for it: white, graph"):
        sd.covariance(KERNEL, sd.Graph.path(4), method="dense")
    spherical = sd.covariance(domain=sd.Sphere((6, 8), poles=False), spectrum=torch.ones(4))
    assert spherical.variance()[0, 0].item() == pytest.approx(
        sum(2 * n + 1 for n in range(4)) / (4 * torch.pi)
    )
    with pytest.raises(ValueError, match="needs a Grid, got Points"):
        sd.covariance(domain=points, spectrum=torch.ones(5), method="torus")
    with pytest.raises(TypeError, match=r"method='vecchia' has no option neighbours; its options: neighbors"):
        sd.covariance(KERNEL, points, method="vecchia", neighbours=5)
    with pytest.raises(TypeError, match=r"method='dense' has no option neighbors; its options: none"):
        sd.covariance(KERNEL, points, neighbors=5)
    with pytest.raises(ValueError, match=r"9000000 sites are more than the 40000"):
        sd.covariance(KERNEL, sd.Grid((3000, 3000)), method="dense")
    with pytest.raises(TypeError, match="Matern: variance must be a number, got a Nugget"):
        Matern(1.5, 2.0, Nugget(0.1))
    for operation in ("log_prob", "quad_form"):
        with pytest.raises(ValueError, match=rf"{operation}: needs shape \(..., 5\)"):
            getattr(sd.covariance(KERNEL, points), operation)(torch.randn(4))
    model = Coregionalization([(torch.eye(2), Exponential(2.0))])
    with pytest.raises(ValueError, match="brings its channels"):
        sd.covariance(model, TORUS, channels=3)


def test_dense_says_when_it_is_not_positive_definite():
    from spatialdiff.kernels import Gaussian

    gamma = sd.covariance(Gaussian(8.0), sd.Grid((16, 16)), method="dense")
    with pytest.raises(ValueError, match=r"smallest eigenvalue .* Add a Nugget"):
        gamma.sample()
    with pytest.raises(ValueError, match="not symmetric"):
        DenseCovariance(torch.tensor([[1.0, 0.5], [0.2, 1.0]]), sd.Grid(2))
    with pytest.raises(ValueError, match=r"\(3, 3\) matrix"):
        DenseCovariance(torch.eye(2), sd.Grid(3))
    given = DenseCovariance(torch.eye(3) * 2, sd.Grid(3))
    assert given.log_det().item() == pytest.approx(3 * torch.tensor(2.0).log().item())


def test_without_channels_leading_axes_are_independent():
    gamma = sd.covariance(KERNEL, TORUS)
    z = torch.randn(5, 3, 4, 6)
    torch.testing.assert_close(gamma.color(z)[2, 1], gamma.color(z[2, 1]))
    assert gamma.log_prob(z).shape == (5, 3)


@pytest.mark.parametrize("method", ["dense", "circulant"])
def test_a_number_of_samples(method):
    gamma = sd.covariance(KERNEL, sd.Grid((4, 6)), channels=2, method=method).requires_grad_(False)
    draw = [gamma.sample(n, generator=torch.Generator().manual_seed(0)) for n in (3, (3,))]
    assert draw[0].shape == (3, 2, 4, 6)
    assert torch.equal(*draw)


def test_kernels_that_only_claim_to_be_stationary_are_found_out():
    class Warped(gpytorch.kernels.RBFKernel):
        def forward(self, x1, x2, diag=False, **params):
            return super().forward(x1.square(), x2.square(), diag=diag, **params)

    with pytest.raises(ValueError, match="claims to be stationary"):
        sd.covariance(Warped(), sd.Grid(16), method="circulant")


def test_factors_are_computed_once(monkeypatch):
    gamma = sd.covariance(Matern(1.5, 2.0), TORUS)
    calls = []
    original = type(gamma)._kernel_eigenvalues
    monkeypatch.setattr(type(gamma), "_kernel_eigenvalues", lambda self: calls.append(1) or original(self))
    with torch.no_grad():
        gamma.sample()
        gamma.matmul(torch.randn(4, 6))
        gamma.double().sample()
        gamma.sample()
    # once before the change of type, once after
    assert len(calls) == 2
    gamma.sample()
    assert len(calls) == 3  # a gradient is wanted: nothing is reused
    with torch.inference_mode():
        gamma.sample()
    gamma.requires_grad_(False)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    gamma.matmul(x).sum().backward()  # factors first made in inference mode can enter a graph
    assert x.grad is not None


def test_precision_survives_a_change_of_type():
    gamma = sd.covariance(
        Matern(1.5, 2.3456789), TORUS, channels=[[1.0, 1 / 3], [1 / 3, 1.0]]
    ).requires_grad_(False)
    before = gamma.to_dense()
    after = gamma.float().to_dense()
    assert after.dtype == torch.float64
    assert torch.equal(before, after)
    assert gamma.sample().dtype == torch.float32


def test_gpytorch_distribution_takes_the_operator():
    """Exact where gpytorch's own path is a Lanczos estimate (beyond 800 rows)."""
    gamma = sd.covariance(NOISY, sd.Grid((32, 32), periodic=True)).double().requires_grad_(False)
    x = gamma.sample(generator=torch.Generator().manual_seed(0))
    law = gpytorch.distributions.MultivariateNormal(
        torch.zeros(1024, dtype=torch.float64), gamma.to_linear_operator()
    )
    assert law.log_prob(x.flatten()).item() == pytest.approx(gamma.log_prob(x).item(), rel=1e-10)


# ---- two covariances in one basis
# --------------------------------------------------------------------------------------

B = [[1.0, 0.4], [0.4, 2.0]]
PAIRS = {
    "torus": (sd.covariance(KERNEL, TORUS), sd.covariance(NOISY, TORUS)),
    "cosine": (
        sd.covariance(KERNEL, sd.Grid((4, 5)), method="cosine"),
        sd.covariance(NOISY, sd.Grid((4, 5)), method="cosine"),
    ),
    "white and torus": (sd.white(TORUS), sd.covariance(NOISY, TORUS)),
    "cosine and white": (sd.covariance(KERNEL, TORUS, method="cosine"), sd.white(TORUS)),
    "white": (sd.white(TORUS, 2), sd.white(TORUS, variance=3.0)),
    "channel counts": (sd.covariance(KERNEL, TORUS), sd.covariance(NOISY, TORUS, 2)),
    "channel matrices": (
        sd.covariance(KERNEL, TORUS, B),
        sd.covariance(NOISY, TORUS, [[2.0, -0.5], [-0.5, 1.0]]),
    ),
    "one channel matrix": (sd.white(TORUS, 2), sd.covariance(NOISY, TORUS, B)),
    "dense": (sd.covariance(KERNEL, sd.Grid((4, 5))), sd.covariance(NOISY, sd.Grid((4, 5)), method="cosine")),
    "dense with channels": (
        sd.covariance(KERNEL, sd.Grid((3, 4)), B),
        sd.covariance(NOISY, sd.Grid((3, 4)), method="cosine"),
    ),
    "spectra per channel": (
        sd.covariance(KERNEL, TORUS, B),
        TorusCovariance.from_spectrum(TORUS, torch.rand(2, 1, 4).expand(2, 4, 4) + 0.1, channels=2),
    ),
}


def dense(gamma, channels):
    matrix = gamma.to_dense()
    return torch.block_diag(*[matrix] * channels) if channels and gamma.channels is None else matrix


@pytest.mark.parametrize("name", PAIRS)
def test_joint_spectrum(name):
    """The posterior gain ``C (C + s Γ)⁻¹`` is one multiplication in the common basis."""
    gamma, data = PAIRS[name]
    basis, g, c = joint_spectrum(gamma, data)
    channels = gamma.channels or data.channels
    event = (channels, *gamma.domain.shape) if channels else gamma.domain.shape
    first, second = dense(gamma, channels), dense(data, channels)
    x = torch.randn(3, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gain = second @ torch.linalg.inv(second + 0.7 * first)
    expected = (x.flatten(1) @ gain.T).reshape(x.shape)
    torch.testing.assert_close(basis.multiply(x, c / (c + 0.7 * g)), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(basis.synthesize(basis.analyze(x)), x)
    assert g.dtype == c.dtype == torch.float64
    lead = (channels,) if channels else ()
    assert torch.broadcast_shapes(g.shape, c.shape, (*lead, *basis.modes)) == (*lead, *basis.modes)


def test_joint_spectrum_refuses():
    big = sd.Grid((80, 80))
    with pytest.raises(ValueError, match=r"no common basis.*6400"):
        joint_spectrum(sd.covariance(Exponential(4.0), big), sd.covariance(NOISY, big, method="cosine"))
    with pytest.raises(ValueError, match="lives on"):
        joint_spectrum(sd.white(TORUS), sd.white(sd.Grid(3)))
    with pytest.raises(ValueError, match="2 channels, the data 3"):
        joint_spectrum(sd.white(TORUS, 2), sd.white(TORUS, 3))
    basis, _, _ = joint_spectrum(*PAIRS["dense"])
    with pytest.raises(ValueError, match="wavenumbers"):
        _ = basis.wavenumbers
