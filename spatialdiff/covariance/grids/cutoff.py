r"""Cut-off embedding [Stein 2002; Gneiting et al. 2006, section 3]: beyond the diameter, ``x ≥ 1``,

``ψ(x) = b (R^a - x^a)^{2a}`` for ``x ≤ R``, 0 beyond, ``R^a = 1 - 2a² φ(1)/φ'(1)``, ``b = φ(1)/(R^a -
1)^{2a}``,

which joins ``φ`` with a continuous derivative. It is a covariance for rough families (powered exponential,
generalised Cauchy, Matérn of small smoothness) for the right ``a`` in {1/2, 1, 2}; the eigenvalues decide.
Its reach grows with the length scale, ``R ≈ (2a² ℓ/D)^{1/a}``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance.grids.radial import RadialTerm, derivatives, front, least_sizes, periodised_table
from spatialdiff.domains import Grid


def _constants(term: RadialTerm, a: float) -> tuple[Tensor, Tensor]:
    """``R^a`` and ``b``, ``(*batch,)``."""
    assert term.profile is not None
    value, slope = derivatives(term.profile, term.metric.shape[:-1], 2).unbind(-1)
    power = 1 - 2 * a * a * value / slope
    return power, value / (power - 1).pow(2 * a)


def cutoff_sizes(found: Sequence[RadialTerm], grid: Grid, a: float) -> tuple[int, ...] | None:
    """Sites per axis that the embedding needs; None where ``φ(1) ≤ 0`` or ``φ'(1) ≥ 0``."""
    reaches: list[Tensor | float] = []
    with torch.no_grad():
        for term in found:
            if term.profile is None:
                reaches.append(0.0)
                continue
            power, b = _constants(term, a)
            if not bool(((power > 1) & (b > 0) & torch.isfinite(power)).all()):
                return None
            reaches.append(power.pow(1 / a))
        if any(bool((torch.as_tensor(r) > 1e4).any()) for r in reaches):
            return None
        return least_sizes(found, grid, reaches)


def cutoff_table(
    found: Sequence[RadialTerm], grid: Grid, sizes: Sequence[int], a: float, device: torch.device | None
) -> Tensor:
    """The periodised cut-off covariance at lags ``0 … m/2`` per axis, ``(*batch, *(m/2+1))``."""
    constants = [None if term.profile is None else _constants(term, a) for term in found]

    def extension(number: int, inside: Tensor, x: Tensor) -> Tensor:
        given = constants[number]
        assert given is not None
        power, b = (front(v, x) for v in given)
        beyond = x > 1
        gap = (power - torch.where(beyond, x, 1.0).pow(a)).clamp_min(0.0)
        return torch.where(beyond, b * gap.pow(2 * a), inside)

    return periodised_table(found, grid, sizes, extension, device)
