r"""Radially averaged power spectrum.

For the coefficients :math:`\hat x_k` of a field in an orthonormal basis, and rings :math:`r` of wavenumber
:math:`|k|`,

.. math:: P_r = \operatorname{mean}_{k \in r} |\hat x_k|^2, \qquad
   \text{error} = \sqrt{\operatorname{mean}_r \ln^2 (\bar P_r / \bar P_r^{\text{real}})}.

On periodic grids the basis is Fourier's. On others it is the cosine basis: a Fourier transform would see
the jump between opposite edges, whose :math:`|k|^{-2}` leakage buries the small scales of a smooth field;
the reflection that the cosine basis implies has no jump. Rings are equally wide in :math:`\log|k|`, so
that every scale counts the same; the domain mean is a ring of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis, CosineBasis, FourierBasis
from spatialdiff.domains import Grid
from spatialdiff.evaluation.metric import Metric, average

RINGS = 16
# power below this share of the mean power is rounding, not signal
SMALLEST = 1e-12


def basis_for(grid: Grid) -> Basis:
    """Fourier where every axis is periodic, cosine otherwise."""
    return FourierBasis(grid) if all(grid.periodic) else CosineBasis(grid)


def rings(grid: Grid, number: int = RINGS) -> tuple[Tensor, Tensor]:
    """Ring of each mode, and mean wavenumber of each ring.

    Args:
        grid: the grid.
        number: rings beside the domain mean, before empty ones are left out.

    Returns:
        indices of shape `modes` (0: the domain mean), and wavenumbers `(R,)` in cycles per unit length, the
        first 0.
    """
    basis = basis_for(grid)
    wavenumber = basis.wavenumbers.flatten()
    positive = wavenumber[wavenumber > 0]
    low, high = float(positive.min()), float(positive.max())
    edges = torch.logspace(math.log10(low), math.log10(high), number + 1, dtype=torch.float64)[1:-1]
    ring = torch.where(wavenumber > 0, torch.bucketize(wavenumber, edges) + 1, 0)
    ring = ring.unique(return_inverse=True)[1]
    weights = basis.weights.flatten()
    count = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, weights)
    place = torch.zeros_like(count).index_add_(0, ring, wavenumber * weights) / count
    return ring.reshape(basis.modes), place


def spectrum(fields: Tensor, grid: Grid, number: int = RINGS) -> tuple[Tensor, Tensor]:
    r"""Radially averaged power :math:`P_r` of each field.

    Args:
        fields: `(N, C, *grid)`.
        grid: where they live.
        number: rings.

    Returns:
        wavenumbers `(R,)` in cycles per unit length, the first 0 (the domain mean), and power `(N, C, R)`;
        the power of white noise of variance 1 is 1 in every ring.
    """
    basis = basis_for(grid)
    ring, place = rings(grid, number)
    weights = basis.weights.flatten()
    averaging = torch.zeros(weights.numel(), place.numel(), dtype=torch.float64)
    averaging[torch.arange(weights.numel()), ring.flatten()] = weights
    averaging /= averaging.sum(0)
    power = basis.analyze(fields.double()).abs().square().flatten(2)
    return place, power @ averaging


def log_ratio(generated: Tensor, real: Tensor) -> float:
    """Root mean square over channels and rings of the log ratio of two mean spectra `(C, R)`."""
    least = SMALLEST * real.mean(-1, keepdim=True)
    return float((generated.maximum(least).log() - real.maximum(least).log()).square().mean().sqrt())


SPECTRUM = Metric(
    "spectrum",
    lambda fields, grid: spectrum(fields, grid)[1],
    average,
    log_ratio,
    "log ratio of the power per ring of wavenumber, root mean square",
)
