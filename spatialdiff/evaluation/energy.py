r"""Energy distance between whole fields,

.. math:: \mathcal{E} = 2\,E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\| \ge 0,

zero for equal laws only. Its unbiased estimate (U-statistics: no field is paired with itself) has mean zero
for equal laws and can be negative; the column of the table is
:math:`\sqrt{\max(\mathcal{E}, 0) / E\|Y - Y'\|}` with :math:`Y` real.

Source: Székely & Rizzo, *Energy statistics*, J. Stat. Plan. Inference 143 (2013).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.evaluation.metric import Metric


def _within(x: Tensor) -> Tensor:
    """Mean distance of each row to the others."""
    return torch.cdist(x, x).sum(1) / (len(x) - 1)


def energy_distance(generated: Tensor, real: Tensor) -> tuple[float, float]:
    r"""Unbiased estimate of :math:`\mathcal{E}` and its standard error.

    Args:
        generated, real: `(N, ...)` and `(M, ...)`, at least two of each; every field counts as one vector.

    Returns:
        the estimate, and its standard error from the influence of single fields (the first-order term
        of Hoeffding's decomposition, with the sampling noise of the influences in it; for equal laws,
        where the first-order term vanishes, it is of the right order and not exact).

    Raises:
        ValueError: fewer than two fields in a set.
    """
    x, y = generated.detach().flatten(1).double(), real.detach().flatten(1).double()
    if min(len(x), len(y)) < 2:
        raise ValueError(
            f"The energy distance needs at least two fields in each set, got {len(x)} and {len(y)}."
        )
    cross = torch.cdist(x, y)
    xx, yy = _within(x), _within(y)
    value = 2 * cross.mean() - xx.mean() - yy.mean()
    influence_x, influence_y = 2 * (cross.mean(1) - xx), 2 * (cross.mean(0) - yy)
    variance = influence_x.var() / len(x) + influence_y.var() / len(y)
    return float(value), math.sqrt(float(variance))


def vectors(fields: Tensor, grid: Grid) -> Tensor:
    """Each field as one vector, `(N, C n)`."""
    return fields.flatten(1)


def relative_energy(generated: Tensor, real: Tensor) -> float:
    r""":math:`\sqrt{\max(\mathcal{E}, 0) / E\|Y - Y'\|}` for vectors `(N, n)`, `(M, n)`."""
    within = float(_within(real.double()).mean())
    if within == 0.0:
        return math.inf if energy_distance(generated, real)[0] > 0 else 0.0
    return math.sqrt(max(energy_distance(generated, real)[0], 0.0) / within)


ENERGY = Metric(
    "energy distance",
    vectors,
    lambda rows: rows,
    relative_energy,
    "between whole fields, square root, over the mean distance of real ones",
)
