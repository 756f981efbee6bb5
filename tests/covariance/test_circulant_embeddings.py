"""Which circulant embeddings are covariances, and that those that are represent Γ exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from covariance_case import pairwise

import spatialdiff as sd
from spatialdiff.covariance.grids import circulant as circulant_module
from spatialdiff.covariance.grids import embedding as embedding_module
from spatialdiff.covariance.grids.circulant import CirculantCovariance, EmbeddingError, embedding_report
from spatialdiff.covariance.grids.cutoff import cutoff_table
from spatialdiff.covariance.grids.embedding import Embedding, choose, multiplicity, spectrum, table, unfold
from spatialdiff.covariance.grids.radial import derivatives, radial_terms
from spatialdiff.kernels import Anisotropic, Exponential, Gaussian, Matern, Nugget, PoweredExponential

pytestmark = pytest.mark.filterwarnings("ignore::spatialdiff.covariance.SpatialWarning")


def represented(gamma: CirculantCovariance, every: int = 1) -> torch.Tensor:
    """Every ``every``-th row of ``R Rᵀ``: the transpose of `color` by automatic differentiation."""
    units = torch.eye(gamma.event_shape.numel(), dtype=torch.float64)[::every]
    z = torch.zeros(len(units), *gamma.factor_shape, dtype=torch.float64, requires_grad=True)
    fields = units.reshape(-1, *gamma.event_shape)
    (transposed,) = torch.autograd.grad((gamma.color(z) * fields).sum(), z)
    return gamma.color(transposed).flatten(1)


# Matérn, ν = 1, ρ = (r/ℓ) K₁(r/ℓ) with ℓ = 0.3 on 51 x 51 sites of the unit square
REFERENCE = Matern(nu=1.0, lengthscale=0.3 * math.sqrt(2)).requires_grad_(False)
SQUARE = sd.Grid((51, 51), spacing=1 / 50)


def test_reference_case_is_detected():
    report = embedding_report(REFERENCE, SQUARE, (128, 128))
    assert report.sizes == (128, 128)
    assert report.negative == 318
    assert report.smallest == pytest.approx(-0.58283, abs=5e-6)
    assert not report.is_covariance
    # the same numbers from scipy's Bessel function and numpy's FFT
    lag = np.minimum(np.arange(128), 128 - np.arange(128)) / 50
    r = np.hypot(lag[:, None], lag[None]) / 0.3
    r[0, 0] = 1.0
    row = r * scipy.special.k1(r)
    row[0, 0] = 1.0
    values = np.fft.fft2(row).real
    assert (values < 0).sum() == report.negative
    assert values.min() == pytest.approx(report.smallest, rel=1e-9)
    assert values.max() == pytest.approx(report.largest, rel=1e-12)


def test_reference_case_is_refused_with_its_numbers():
    with pytest.raises(EmbeddingError, match="318 of 16384 are negative") as error:
        CirculantCovariance(REFERENCE, SQUARE, embedding="plain", max_growth=1.25)
    assert error.value.sizes == (128, 128)
    assert error.value.negative == 318
    assert error.value.smallest == pytest.approx(-0.58283, abs=5e-6)


@pytest.mark.parametrize("kind", ["plain", "cutoff", "intrinsic"])
def test_reference_case_is_repaired_and_exact(kind):
    gamma = CirculantCovariance(REFERENCE, SQUARE, embedding=kind)
    assert gamma.plan.kind == kind
    assert gamma.report.exact
    assert min(gamma.embedding) > 128
    sites = SQUARE.coordinates().reshape(-1, 2)
    exact = REFERENCE.at_lags(sites[::37, None] - sites)
    torch.testing.assert_close(represented(gamma, every=37), exact, rtol=0, atol=1e-11)
    if kind != "intrinsic":
        # the circulant's covariance at every lag of the grid: all pairs of sites
        row = torch.fft.fft2(gamma._factor("root").square()).real[:51, :51]
        lagged = REFERENCE.at_lags(SQUARE.coordinates())
        torch.testing.assert_close(row, lagged, rtol=0, atol=1e-11)


LONG = [
    (PoweredExponential(alpha=1.5, lengthscale=3.0), "cutoff"),
    (PoweredExponential(alpha=1.5, lengthscale=3.0), "intrinsic"),
    (PoweredExponential(alpha=1.5, lengthscale=300.0), "intrinsic"),
    (Matern(1.5, 3.0), "intrinsic"),
    (Matern(1.5, 30.0) + Nugget(0.01), "intrinsic"),
    (Matern(2.5, 3.0), "intrinsic"),
    (Exponential(5.0) * Matern(1.5, 5.0), "intrinsic"),
]


@pytest.mark.parametrize(("kernel", "kind"), LONG, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("shape", [(25,), (10, 8), (5, 4, 3)], ids=str)
def test_long_length_scales(kernel, kind, shape):
    """Length scales of many times the extent, all pairs of sites."""
    kernel.requires_grad_(False)
    grid = sd.Grid(shape, spacing=1 / (max(shape) - 1))
    if kind == "cutoff" and len(shape) == 3:
        # the cut-off of so smooth a family is a covariance in at most two dimensions
        with pytest.raises(EmbeddingError, match="negative"):
            CirculantCovariance(kernel, grid, embedding=kind)
        return
    gamma = CirculantCovariance(kernel, grid, embedding=kind)
    assert gamma.plan.kind == kind
    assert kind in gamma.report.reason
    torch.testing.assert_close(represented(gamma), pairwise(kernel, grid), rtol=0, atol=2e-11)


@pytest.mark.parametrize(
    "kernel", [PoweredExponential(1.5, 3.0), Matern(1.5, 3.0), Matern(2.5, 3.0)], ids=str
)
def test_padding_alone_fails_for_long_length_scales(kernel):
    """No padding up to eight times is a covariance; the automatic choice finds one that is."""
    kernel.requires_grad_(False)
    grid = sd.Grid((10, 8), spacing=1 / 9)
    with pytest.raises(EmbeddingError, match="plain") as error:
        CirculantCovariance(kernel, grid, embedding="plain")
    assert error.value.negative > 0
    assert error.value.smallest < 0
    assert CirculantCovariance(kernel, grid).plan.kind in ("cutoff", "intrinsic")


def test_cutoff_of_matern_three_halves():
    """A fifth of the diameter: the tail joins the covariance with a continuous derivative, and ends at R."""
    kernel, grid = Matern(1.5, 0.2), sd.Grid(33, spacing=1 / 32)
    kernel.requires_grad_(False)
    gamma = CirculantCovariance(kernel, grid, embedding="cutoff")
    torch.testing.assert_close(represented(gamma), pairwise(kernel, grid), rtol=0, atol=1e-12)
    terms = radial_terms(kernel, grid)
    fine = sd.Grid(4000, spacing=1 / 1000)
    for a in (0.5, 1.0, 2.0):
        row = cutoff_table(terms, fine, (8000,), a, None)
        slope = row.diff() * 1000
        assert (slope[1001:1003] - slope[996:998]).abs().max().item() < 0.02 * slope.abs().max().item()
        assert row[-1].item() == 0.0
        assert bool((row.diff() <= 0).all())


def test_nothing_works_for_a_long_gaussian():
    with pytest.raises(EmbeddingError) as error:
        CirculantCovariance(Gaussian(3.0), sd.Grid((12, 12), spacing=1 / 11))
    message = str(error.value)
    for part in ("plain", "cutoff", "intrinsic, degree 8", "cosine", "on_negative"):
        assert part in message
    assert error.value.smallest < 0


def test_extensions_say_what_they_need():
    turned = Anisotropic(Matern(1.5, 3.0), angles=0.5, ratios=0.3)
    with pytest.raises(EmbeddingError, match="scaled distance"):
        CirculantCovariance(turned, sd.Grid((8, 8)), embedding="intrinsic")
    with pytest.raises(EmbeddingError, match="without periodic axes"):
        CirculantCovariance(Matern(1.5, 3.0), sd.Grid((8, 8), periodic=(True, False)), embedding="cutoff")
    with pytest.raises(EmbeddingError, match="different anisotropy"):
        CirculantCovariance(Exponential((3.0, 1.0)) * Exponential(2.0), sd.Grid((8, 8)), embedding="cutoff")
    with pytest.raises(ValueError, match="embedding must be"):
        CirculantCovariance(Matern(1.5, 3.0), sd.Grid(8), embedding="padded")
    with pytest.raises(ValueError, match="at least"):
        embedding_report(Matern(1.5, 3.0), sd.Grid((8, 8)), (16, 10))
    with pytest.raises(TypeError, match="needs a Grid"):
        CirculantCovariance(Matern(1.5, 3.0), sd.Points(torch.rand(5, 2)))


def test_rotated_kernel_is_exact_by_plain_padding():
    turned = Anisotropic(Matern(1.5, 1.2), angles=0.5, ratios=0.5).requires_grad_(False)
    gamma = CirculantCovariance(turned, sd.Grid((6, 7)))
    torch.testing.assert_close(represented(gamma), pairwise(turned, sd.Grid((6, 7))), rtol=0, atol=1e-11)


def test_derivatives_of_a_profile():
    (term,) = radial_terms(Matern(1.5, 0.7, 2.0), sd.Grid((9, 7), spacing=0.1))
    diameter = math.hypot(0.8, 0.6) / 0.7
    s = math.sqrt(3) * diameter * (1 + 1e-9)
    e = 2.0 * math.exp(-s)
    exact = [e * (1 + s), -e * s * s, e * s * s * (s - 1), e * s**3 * (2 - s)]
    found = derivatives(term.profile, torch.Size(), 4).tolist()
    assert found == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("sizes", [(8,), (9,), (2, 5), (6, 1, 4), (7, 2)], ids=str)
def test_spectrum_of_a_symmetric_table(sizes):
    g = torch.Generator().manual_seed(0)
    half = torch.randn(3, *(m // 2 + 1 for m in sizes), generator=g, dtype=torch.float64)
    values = spectrum(half, sizes)
    axes = tuple(range(-len(sizes), 0))
    full = torch.fft.fftn(unfold(half, sizes), dim=axes).real
    torch.testing.assert_close(unfold(values, sizes), full, rtol=0, atol=1e-12)
    assert multiplicity(values, sizes).sum().item() == math.prod(sizes)


def test_sublattices_only_save_time(monkeypatch):
    cases = [
        (Matern(1.5, 9.0), (24, 20)),
        (PoweredExponential(1.5, 40.0), (24, 20)),
        (Matern(1.5, 60.0), (70,)),
    ]
    for kernel, shape in cases:
        plans = []
        for coarse in (16, 64, 2**30):
            monkeypatch.setattr(embedding_module, "COARSE", coarse)
            plan, _ = choose(
                kernel, sd.Grid(shape), option="auto", clip=False, max_growth=8.0, max_sites=2**26
            )
            plans.append(plan)
        assert plans[0] == plans[1] == plans[2]


def test_a_sublattice_is_a_restriction():
    kernel, grid = Matern(1.5, 9.0), sd.Grid((13, 9), spacing=(1.0, 0.5))
    for embedding in (
        Embedding((36, 24)),
        Embedding((120, 120), "cutoff", 0, 2.0),
        Embedding((60, 60), "intrinsic", 2, 1.2),
    ):
        with torch.no_grad():
            whole = table(kernel, grid, embedding)
            part = table(kernel, grid, embedding, step=(3, 2))
        torch.testing.assert_close(part, whole[::3, ::2], rtol=0, atol=1e-12)


def test_one_embedding_for_a_batch():
    kernel = Matern(1.5, torch.tensor([[0.5], [2.0], [40.0]]), batch_shape=(3,)).requires_grad_(False)
    grid = sd.Grid((7, 6))
    gamma = CirculantCovariance(kernel, grid).double()
    report = embedding_report(kernel, grid)
    # the member whose negative eigenvalue is largest beside its largest
    worst = embedding_report(Matern(1.5, 2.0), grid)
    assert (report.negative, report.smallest) == (worst.negative, pytest.approx(worst.smallest))
    assert gamma.sample((2,)).shape == (2, 3, 7, 6)
    # each member by its own root: the transpose of `color` acts on all members at once
    exact = pairwise(kernel, grid)
    units = torch.eye(42, dtype=torch.float64).reshape(42, 1, 7, 6).expand(42, 3, 7, 6)
    z = torch.zeros(42, 3, *gamma.factor_shape, dtype=torch.float64, requires_grad=True)
    (transposed,) = torch.autograd.grad((gamma.color(z) * units).sum(), z)
    found = gamma.color(transposed).flatten(2).movedim(1, 0)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-11)


def test_many_large_fields_are_the_same_fields(monkeypatch):
    gamma = CirculantCovariance(Exponential(2.0).requires_grad_(False), sd.Grid((9, 9)), channels=2)
    whole = gamma.sample((3, 2), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(circulant_module, "_BUFFER", 600)
    apart = gamma.sample((3, 2), generator=torch.Generator().manual_seed(1))
    assert apart.shape == whole.shape == (3, 2, 2, 9, 9)
    torch.testing.assert_close(apart, whole, rtol=0, atol=1e-6)


def test_state_of_older_versions():
    gamma = CirculantCovariance(Exponential(2.0), sd.Grid((9, 9)))
    gamma.set_extra_state(torch.tensor([18, 20]))
    assert gamma.plan == Embedding((18, 20))
    assert gamma.sample().shape == (9, 9)


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        (Matern(1.5, 300.0), (2**20,)),
        (Matern(1.5, 8.0), (1024, 1024)),
        (Matern(1.5, 4.0), (100, 100, 100)),
    ],
    ids=["1-D", "2-D", "3-D"],
)
def test_million_sites(kernel, shape):
    """Variance and a lag's covariance within five times the spread that Γ itself implies."""
    kernel.requires_grad_(False)
    gamma = CirculantCovariance(kernel, sd.Grid(shape))
    x = gamma.sample(generator=torch.Generator().manual_seed(1)).double()
    lag = int(kernel.lengthscale)
    shift = torch.zeros(len(shape), dtype=torch.float64)
    shift[0] = lag
    rho = float(kernel.at_lags(shift))
    # Var(mean of x²) = 2 Σ_h ρ(h)²/n; the integral of ρ² is below (2 range)^d
    spread = math.sqrt(2 * (4 * lag) ** len(shape) / x.numel())
    assert abs(x.square().mean().item() - 1) < 5 * spread
    assert abs((x[lag:] * x[:-lag]).mean().item() - rho) < 5 * spread
    assert rho > 5 * spread
