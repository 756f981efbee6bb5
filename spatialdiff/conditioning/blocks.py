r"""Averages over blocks, ``x(v) = ∫_v x(s) ds/|v|``, by Gauss–Legendre nodes along each axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def block_nodes(block: float | Sequence[float] | None, nodes: int, d: int) -> tuple[Tensor, Tensor]:
    """Shifts ``(n, d)`` from the centre of a block with sides ``block``, and weights ``(n,)`` of sum 1; one
    node in the centre without a block.

    Raises:
        ValueError: sides that are not positive, or not one per axis; no node.
    """
    if block is None:
        return torch.zeros(1, d, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    sides = [float(block)] * d if isinstance(block, int | float) else [float(side) for side in block]
    if len(sides) != d or not all(math.isfinite(side) and side > 0 for side in sides):
        raise ValueError(f"block must be one positive side, or {d} of them, got {block!r}")
    if nodes < 1:
        raise ValueError(f"nodes must be at least 1, got {nodes}")
    import numpy as np

    places, weights = np.polynomial.legendre.leggauss(nodes)
    shifts = [
        [side * x / 2.0 for side, x in zip(sides, each, strict=True)]
        for each in itertools.product(places, repeat=d)
    ]
    products = [math.prod(each) / 2.0**d for each in itertools.product(weights, repeat=d)]
    return torch.tensor(shifts, dtype=torch.float64), torch.tensor(products, dtype=torch.float64)
