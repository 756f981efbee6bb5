"""Spectra of fields with gaps: the draws against dense conditioning, the estimate against the truth."""

from __future__ import annotations

import math

import pytest
import torch

import spatialdiff as sd
from spatialdiff.covariance import CosineBasis, CosineCovariance, FourierBasis, TorusCovariance
from spatialdiff.fitting import observe
from spatialdiff.fitting.nonparametric.gaps import estimate_spectrum_with_gaps, impute
from spatialdiff.fitting.nonparametric.spectrum import estimate_spectrum

F64 = torch.float64
GRID = sd.Grid((16, 14), spacing=0.5)
PERIODIC = sd.Grid((16, 14), spacing=0.5, periodic=True)
CASES = [
    pytest.param(GRID, "cosine", CosineBasis, CosineCovariance, id="cosine"),
    pytest.param(PERIODIC, "torus", FourierBasis, TorusCovariance, id="torus"),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def steep(basis):
    """Five decades: what leaks through a mask would bury the short waves."""
    k = basis.wavenumbers
    return 50.0 / (1.0 + (k / 0.1).square()).pow(2.5) + 1e-4


def simulate(grid, basis, family, number, seed=0):
    spectrum = steep(basis(grid))
    return spectrum, family.from_spectrum(grid, spectrum).double().sample(
        (number,), generator=generator(seed)
    )


@pytest.mark.parametrize(("grid", "name", "basis", "family"), CASES)
def test_draws_have_the_conditional_law(grid, name, basis, family):
    small = sd.Grid((5, 4), periodic=grid.periodic)
    truth = steep(basis(small)) + 0.05
    gamma = family.from_spectrum(small, truth).double()
    matrix, y = gamma.to_dense(), gamma.sample((1,), generator=generator(1))[0]
    seen = torch.rand(5, 4, generator=generator(2)) < 0.6
    count = 20_000
    values, mask = (v.expand(count, 1, 5, 4).clone() for v in (y, seen))
    drawn = impute(values, mask, truth.unsqueeze(0), basis(small), generator(3))
    out, kept = (~seen).flatten(), seen.flatten()
    assert torch.equal(drawn[:, 0][:, seen], values[:, 0][:, seen])
    inverse = torch.linalg.inv(matrix[kept][:, kept])
    mean = matrix[out][:, kept] @ inverse @ y.flatten()[kept]
    covariance = matrix[out][:, out] - matrix[out][:, kept] @ inverse @ matrix[kept][:, out]
    x = drawn.flatten(1)[:, out]
    scale = covariance.diagonal().sqrt()
    assert float(((x.mean(0) - mean) / scale).abs().max()) < 5.0 / math.sqrt(count)
    centred = (x - mean) / scale
    error = centred.T @ centred / count - covariance / (scale[:, None] * scale)
    assert float(error.abs().max()) < 5.0 * math.sqrt(2.0 / count)


def masks(kind, count):
    if kind == "scattered":
        return torch.rand(16, 14, generator=generator(4)).expand(count, 16, 14) < 0.6
    if kind == "different":
        return torch.rand(count, 16, 14, generator=generator(5)) < 0.6
    block = torch.ones(16, 14, dtype=torch.bool)
    block[3:10, 4:11] = False
    return block.expand(count, 16, 14)


COSINE, TORUS = (case.values for case in CASES)


@pytest.mark.parametrize(
    ("grid", "name", "basis", "family", "kind"),
    [(*COSINE, "scattered"), (*COSINE, "block"), (*TORUS, "different")],
)
def test_spectrum_is_recovered_through_gaps(grid, name, basis, family, kind):
    truth, whole = simulate(grid, basis, family, 40)
    x = torch.where(masks(kind, 40), whole, math.nan)
    data = observe(x, grid, None, missing="omit")
    found = estimate_spectrum_with_gaps(data, name, 0.15, True)
    full = estimate_spectrum(observe(whole, grid, None), basis(grid), 0.15, True)
    naive = observe(torch.where(torch.isfinite(x), x, 0.0), grid, None)
    leaked = estimate_spectrum(naive, basis(grid), 0.15, True)
    error, best, worst = (
        float((e.spectrum[0] / truth).log().square().mean().sqrt()) for e in (found, full, leaked)
    )
    # nearly as good as from whole fields
    assert error < 2.5 * best + 0.06
    assert worst > 5.0 * error
    assert float(found.spectrum.min()) > 0.0


def test_full_spectrum_is_recovered_through_gaps():
    first, second = (torch.arange(n, dtype=F64) / n for n in GRID.shape)
    truth = 10.0 / (1.0 + (first[:, None] / 0.3).square() + (second[None, :] / 0.08).square()).pow(1.5) + 0.05
    gamma = CosineCovariance.from_spectrum(GRID, truth).double()
    x = gamma.sample((60,), generator=generator(8))
    data = observe(torch.where(masks("block", 60), x, math.nan), GRID, None, missing="omit")
    whole = estimate_spectrum(observe(x, GRID, None), CosineBasis(GRID), 0.15, False)
    full = estimate_spectrum_with_gaps(data, "cosine", 0.15, False)
    radial = estimate_spectrum_with_gaps(data, "cosine", 0.15, True)
    errors = [float((e.spectrum[0] / truth).log().square().mean().sqrt()) for e in (full, radial, whole)]
    assert errors[0] < errors[2] + 0.1
    assert errors[1] > 2.0 * errors[0]
    again = estimate_spectrum_with_gaps(data, "cosine", 0.15, False)
    torch.testing.assert_close(again.spectrum, full.spectrum, rtol=0, atol=0)


def test_log_likelihood_is_that_of_the_observed_values():
    small = sd.Grid((7, 6))
    truth = steep(CosineBasis(small)) + 0.1
    x = CosineCovariance.from_spectrum(small, truth).double().sample((30,), generator=generator(6))
    x[:10, 2, 3], x[10:, 5, 1:4] = math.nan, math.nan
    found = estimate_spectrum_with_gaps(observe(x, small, None, missing="omit"), "cosine", 0.3, True)
    dense = CosineCovariance.from_spectrum(small, found.spectrum[0]).double().to_dense()
    total = 0.0
    for row in x.flatten(1):
        kept = torch.isfinite(row)
        law = torch.distributions.MultivariateNormal(
            torch.zeros(int(kept.sum())).double(), dense[kept][:, kept]
        )
        total += float(law.log_prob(row[kept]))
    assert found.log_likelihood == pytest.approx(total, rel=1e-9)


def test_a_masked_grid_and_channels():
    _, x = simulate(GRID, CosineBasis, CosineCovariance, 40)
    masked = GRID.masked(masks("block", 1)[0])
    both = torch.stack((x, 2.0 * x), dim=1)
    found = estimate_spectrum_with_gaps(observe(both, masked, "constant"), "cosine", 0.15, True)
    assert found.spectrum.shape == (2, 16, 14)
    ratio = (found.spectrum[1] / found.spectrum[0]).log() - math.log(4.0)
    # two draws of the same gaps
    assert float(ratio.abs().max()) < 0.25
    assert found.bins.dof[1:].sum() == pytest.approx(40 * (224 - 1) * 175 / 224)


def test_without_gaps_it_is_the_spectrum_and_few_cells_are_refused():
    _, x = simulate(GRID, CosineBasis, CosineCovariance, 10)
    data = observe(x, GRID, None)
    whole = estimate_spectrum(data, CosineBasis(GRID), 0.15, True)
    torch.testing.assert_close(
        estimate_spectrum_with_gaps(data, "cosine", 0.15, True).spectrum, whole.spectrum
    )
    x[:, torch.rand(16, 14, generator=generator(7)) < 0.95] = math.nan
    with pytest.raises(ValueError, match="as sd"):
        estimate_spectrum_with_gaps(observe(x, GRID, None, missing="omit"), "cosine", 0.15, True)
    points = sd.Points(torch.rand(9, 2))
    with pytest.raises(TypeError, match="on a grid"):
        estimate_spectrum_with_gaps(observe(torch.randn(3, 9), points, None), "cosine", 0.15, True)
