"""Φ and Σ of linear dynamics against 60-digit arithmetic (``tests/oracles/linear_moments.json``)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from moments import dense_gamma, generator, normal

from spatialdiff.processes import ALDA, LinearDiffusion
from spatialdiff.processes.moments import cholesky_root, linear_moments, lower, psd_root
from spatialdiff.processes.schedules import ConstantBeta

F64 = torch.float64
ROWS = {
    row["process"]: row
    for row in json.loads(
        (Path(__file__).parents[1] / "oracles" / "linear_moments.json").read_text(encoding="utf-8")
    )
}


def matrix(entries) -> torch.Tensor:
    return torch.tensor(entries, dtype=F64)


def exact(row) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """b ``(n,)``, Φ and Σ ``(n, K, K)``."""
    values = row["values"]
    b = matrix([value["b"] for value in values])
    phi = matrix([[[float(x) for x in line] for line in value["phi"]] for value in values])
    sigma = torch.zeros_like(phi)
    for n, value in enumerate(values):
        for i, line in enumerate(value["sigma"]):
            for j, x in enumerate(line):
                sigma[n, i, j] = sigma[n, j, i] = float(x)
    return b, phi, sigma


@pytest.mark.parametrize("name", ROWS)
def test_every_entry_agrees_with_sixty_digits(name):
    """All lengths in one batch: each entry of Σ to 1e-11 of √(Σ_ii Σ_jj), to 1e-13 of itself where b is
    short; Φ to 1e-11 of its largest value on the way.
    """
    row = ROWS[name]
    b, phi, sigma = exact(row)
    found = linear_moments(matrix(row["A"]), matrix(row["G"]), b)
    assert found[0].shape == found[1].shape == phi.shape
    assert found[0].dtype == found[1].dtype == F64
    deviation = sigma.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = deviation[:, :, None] * deviation[:, None]
    assert bool((sigma.diagonal(dim1=-2, dim2=-1) > 0).all())
    assert float(((found[1] - sigma).abs() / scale).max()) < 1e-11
    short = b <= 1e-2
    relative = (found[1] - sigma).abs()[short] / sigma.abs()[short]
    assert float(relative.max()) < 1e-13
    assert (
        float(((found[0] - phi).abs() / phi.abs().amax((-2, -1), keepdim=True).clamp(min=1.0)).max()) < 1e-11
    )
    assert float((found[0] - phi).abs()[short].max()) < 1e-15 * max(1.0, float(phi.abs().max()))
    torch.testing.assert_close(found[1], found[1].mT, rtol=0, atol=0)


def test_reference_value_of_the_theory():
    phi, sigma = linear_moments(
        matrix([[0, 4], [-1, -8]]), matrix([[0, 0], [0, 4]]), torch.tensor(1e-4, dtype=F64)
    )
    assert phi.shape == (2, 2)
    expected = matrix([[2.13205379e-11, 7.99360288e-08], [7.99360288e-08, 3.99680165e-04]])
    torch.testing.assert_close(sigma, expected, rtol=3e-9, atol=0)


def test_the_usual_ways_would_fail_here():
    """What the doubling is for: the block exponential and S - ΦSΦᵀ lose what is asked for above."""
    row = ROWS["ALDA"]
    b, phi, sigma = exact(row)
    A, G = matrix(row["A"]), matrix(row["G"])
    block = torch.zeros(6, 6, dtype=F64)
    block[:3, :3], block[:3, 3:], block[3:, 3:] = -A, G, A.mT
    exponential = torch.linalg.matrix_exp(b[0] * block)
    van_loan = exponential[3:, 3:].mT @ exponential[:3, 3:]
    assert abs(van_loan[0, 0] / sigma[0, 0, 0] - 1.0) > 1e-2
    law = torch.diag(matrix([1.0, 0.25, 0.25]))
    assert abs((law - phi[0] @ law @ phi[0].mT)[0, 0] / sigma[0, 0, 0] - 1.0) > 1e-2
    assert not torch.isfinite(torch.linalg.matrix_exp(b[-1] * block)).all()


def test_batches_of_times_and_of_modes():
    """``(*t, *modes, K, K)``, each entry as alone."""
    names = ("ALDA", "MALDA(3)")
    A = torch.stack([matrix(ROWS[name]["A"]) for name in names])
    G = torch.stack([matrix(ROWS[name]["G"]) for name in names])
    b = matrix([[0.0, 1e-5, 0.3], [2.0, 40.0, 900.0]])
    phi, sigma = linear_moments(A, G, b)
    assert phi.shape == sigma.shape == (2, 3, 2, 3, 3)
    for i in range(2):
        for j in range(3):
            for m in range(2):
                alone = linear_moments(A[m], G[m], b[i, j])
                torch.testing.assert_close(phi[i, j, m], alone[0], rtol=1e-13, atol=1e-15)
                torch.testing.assert_close(sigma[i, j, m], alone[1], rtol=1e-13, atol=1e-300)
    assert torch.equal(phi[0, 0, 0], torch.eye(3, dtype=F64))
    assert not sigma[0, 0].any()


@pytest.mark.parametrize("name", ["VP", "CLD", "ALDA", "random K=4", "twice integrated Brownian motion"])
@pytest.mark.parametrize("b", [0.03, 1.7])
def test_gradients(name, b):
    """Of Φ and Σ in A, G and b, first and second order, against finite differences."""
    row = ROWS[name]
    A, G = matrix(row["A"]).requires_grad_(), matrix(row["G"]).requires_grad_()
    length = torch.tensor([b, 2.0 * b], dtype=F64, requires_grad=True)

    def moments(A, G, length):
        return linear_moments(A, 0.5 * (G + G.mT), length)

    assert torch.autograd.gradcheck(moments, (A, G, length))
    if len(A) < 3:
        assert torch.autograd.gradgradcheck(moments, (A, G, length))


def test_gradient_at_no_time():
    """dΦ/db = A and dΣ/db = G at b = 0."""
    row = ROWS["CLD"]
    A, G = matrix(row["A"]), matrix(row["G"])
    b = torch.zeros((), dtype=F64, requires_grad=True)
    phi, sigma = linear_moments(A, G, b)
    for value, rate in ((phi, A), (sigma, G)):
        for i in range(2):
            for j in range(2):
                (slope,) = torch.autograd.grad(value[i, j], b, retain_graph=True)
                assert slope.item() == pytest.approx(rate[i, j].item(), abs=1e-15)


def test_a_float32_state_gets_them_cast():
    process = ALDA(dense_gamma(), beta=ConstantBeta(1.0, horizon=2.0))
    x, t = normal(2, 1, 2, 3, seed=1), torch.tensor([1e-3, 1.2])
    phi, sigma = process.transition(torch.zeros(2), t)
    assert phi.dtype == sigma.dtype == F64
    exact_time = linear_moments(process.A, process.G, t.double())
    torch.testing.assert_close(sigma, exact_time[1], rtol=1e-13, atol=0)
    white = normal(2, 3, 2, 3, seed=2)
    single, noise = process.perturb(x.float(), t, white=white.float())
    assert single.dtype == noise.dtype == torch.float32
    double, _ = process.perturb(x, t, white=white)
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_a_singular_chain_is_a_process():
    """Noise that reaches the data only through two integrations, and no stationary law."""
    row = ROWS["twice integrated Brownian motion"]
    process = LinearDiffusion(dense_gamma(), row["A"], row["G"], beta=ConstantBeta(1.0, 1.0))
    assert process.stationary is None
    for b in (1e-4, 0.5, 1.0):
        u, _ = process.perturb(normal(1, 1, 2, 3), b, generator=generator(1))
        assert torch.isfinite(u).all()
        _, sigma = process.marginal(b)
        closed = [
            [b**5 / 20, b**4 / 8, b**3 / 6],
            [b**4 / 8, b**3 / 3, b**2 / 2],
            [b**3 / 6, b**2 / 2, b],
        ]
        torch.testing.assert_close(sigma, matrix(closed), rtol=1e-13, atol=0)
        # φ is the first unit vector: the data stay where they were
        carried = torch.linalg.inv(matrix(closed))[0, 0]
        torch.testing.assert_close(process.information(b), carried, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in ROWS if len(ROWS[name]["A"]) > 1])
def test_roots(name):
    """L Lᵀ = Σ to 1e-15 of every pair of deviations, by each of the three factorisations."""
    _, _, sigma = exact(ROWS[name])
    deviation = sigma.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = deviation[:, :, None] * deviation[:, None]
    root = psd_root(sigma)
    assert float(((root @ root.mT - sigma).abs() / scale).max()) < 1e-14
    conditioned = torch.linalg.cond(sigma / scale) < 1e12
    assert bool(conditioned.any())
    for factor in (cholesky_root(sigma[conditioned]), lower(root)[conditioned]):
        assert not factor.triu(1).any()
        assert bool((factor.diagonal(dim1=-2, dim2=-1) > 0).all())
        error = (factor @ factor.mT - sigma[conditioned]).abs() / scale[conditioned]
        assert float(error.max()) < 1e-14


def test_root_of_what_is_singular():
    sigma = matrix([[0.0, 0.0, 0.0], [0.0, 4.0, 2.0], [0.0, 2.0, 1.0]])
    root = psd_root(sigma)
    torch.testing.assert_close(root @ root.mT, sigma, rtol=1e-14, atol=1e-14)
    assert not root[0].any()
    with pytest.raises(ValueError, match="the noise does not reach all of them"):
        cholesky_root(sigma)
