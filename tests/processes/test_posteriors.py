"""Posterior steps of K variables against 60-digit arithmetic, down to times at which Σ_t is singular in
float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import spatialdiff as sd
from spatialdiff.processes import ALDA, CLD, MALDA, ConstantBeta, LinearDiffusion

mpmath = pytest.importorskip("mpmath")
F64 = torch.float64
GAMMA = sd.white(sd.Grid((2, 2))).double()
BETA = ConstantBeta(1.0, 4.0)
PROCESSES = {
    "CLD": CLD(GAMMA, beta=BETA),
    "CLD from rest": CLD(GAMMA, beta=BETA, initial=[0.0]),
    "ALDA": ALDA(GAMMA, beta=BETA),
    "ALDA nearly from rest": ALDA(GAMMA, beta=BETA, initial=[1e-6, 1e-6]),
    "ALDA from rest": ALDA(GAMMA, beta=BETA, initial=[0.0, 0.0]),
    "MALDA(4)": MALDA(GAMMA, 4, beta=BETA),
}


def exact(process: LinearDiffusion, s: float, t: float) -> tuple[Any, Any, Any]:
    """A, b and V by conditioning the joint law of u_s and u_t on u_t, at 60 digits and more."""
    mp = mpmath.mp.clone()
    mp.dps = 120
    k = process.variables
    drift, diffusion, start = (mp.matrix(part.tolist()) for part in process.matrices())

    def moments(b: Any) -> tuple[Any, Any]:
        block = mp.matrix(2 * k, 2 * k)
        for i in range(k):
            for j in range(k):
                block[i, j], block[k + i, k + j] = -drift[i, j], drift[j, i]
                block[i, k + j] = diffusion[i, j]
        e = mp.expm(block * b, method="taylor")
        phi = mp.matrix([[e[k + j, k + i] for j in range(k)] for i in range(k)])
        return phi, phi * mp.matrix([[e[i, k + j] for j in range(k)] for i in range(k)])

    first, noise = moments(mp.mpf(s))
    step, later = moments(mp.mpf(t) - mp.mpf(s))
    early = noise + first * start * first.T
    late = later + step * early * step.T
    gain = early * step.T * mp.inverse(late)
    pull = first[:, 0] - gain * (step * first)[:, 0]
    return gain, pull, early - gain * step * early


def gap(found: Tensor, wanted: Any, rows: list[float], columns: list[float]) -> float:
    """The largest error of an entry, in units of itself or, where that is larger, of its row and column."""
    worst = 0.0
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            error = abs(mpmath.mpf(float(found[i, j])) - wanted[i, j])
            worst = max(worst, float(error / max(abs(wanted[i, j]), row * column)))
    return worst


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
@pytest.mark.parametrize("t", [1e-6, 1e-4, 1e-2, 0.2, 3.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_steps_keep_their_digits(name, t, share):
    process = PROCESSES[name]
    s = t * share
    gain, pull, spread = process.posterior(t, s)
    wanted = exact(process, s, t)
    deviations = [math.sqrt(float(wanted[2][i, i])) for i in range(process.variables)]
    # the later state varies by its own noise
    phi, sigma = process.marginal(t)
    varied = [1.0 / size for size in sigma.diagonal().sqrt().tolist()]
    assert gap(gain, wanted[0], deviations, varied) < 1e-8
    # b = φ_s - A φ_t is known as well as A is: its terms, and entries of A that vanish by symmetry
    strength = 1e-4 * float(phi.abs() @ torch.tensor(varied, dtype=F64))
    terms = (gain.abs() @ phi.abs()).tolist()
    carried = [max(d, size, d * strength) for d, size in zip(deviations, terms, strict=True)]
    assert gap(pull[:, None], wanted[1], carried, [1.0]) < 1e-8
    assert gap(spread, wanted[2], deviations, deviations) < 1e-6
