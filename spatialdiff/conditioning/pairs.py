"""A continuous kernel between two lists of sites: where numba is installed compiled for closed forms, term by
term, else the kernel itself.
"""

from __future__ import annotations

import numpy as np
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.covariance.points.closed_forms import _FACTOR, FAMILIES
from spatialdiff.covariance.points.conditionals import as_isotropic
from spatialdiff.covariance.points.triangular import choose_engine, shared
from spatialdiff.kernels import Product, at_pairs, terms

# fewer pairs are not worth loading compiled code for
_FEW = 50_000


def between_lists(kernel: Kernel, rows: Tensor, columns: Tensor) -> Tensor:
    """``k(x_i, y_j)`` of coordinates ``(t, d)`` and ``(n, d)``, ``(t, n)`` float64, without gradients."""
    with torch.no_grad():
        if len(rows) * len(columns) < _FEW:
            return at_pairs(kernel, rows.unsqueeze(-2), columns.unsqueeze(-3)).double()
        total: Tensor | None = None
        for factors in terms(kernel):
            part = factors[0] if len(factors) == 1 else Product(*factors)
            value = _term(part, rows, columns)
            total = value if total is None else total.add_(value)
    assert total is not None
    return total


def _term(kernel: Kernel, rows: Tensor, columns: Tensor) -> Tensor:
    form = as_isotropic(kernel, rows.shape[1])
    if form is None or choose_engine("auto") == "torch":
        return at_pairs(kernel, rows.unsqueeze(-2), columns.unsqueeze(-3)).double()
    from spatialdiff.conditioning import pairs_compiled

    transform = _FACTOR[FAMILIES[form.family]] * form.transform[0]
    scaled = (transform @ torch.cat((rows, columns)).T.double()).contiguous().numpy()
    out = np.empty((len(rows), len(columns)))
    shared(pairs_compiled.fill, len(rows), scaled, form.family, float(form.variance[0]), out)
    return torch.from_numpy(out)
