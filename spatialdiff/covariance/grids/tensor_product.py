r"""``f(⊗_b Γ_b + s² I) x`` through the eigenvectors of the blocks, with derivatives that need no gaps.

With ``Γ_b = Q_b Λ_b Q_bᵀ``, ``Q = ⊗ Q_b`` and ``d = ⊗ Λ_b + s²``: ``f(Γ) = Q f(d) Qᵀ``, one small matrix
product per block each way. Its derivative along ``dΓ`` is ``Q (f[d, d] ∘ Qᵀ dΓ Q) Qᵀ`` with the divided
differences ``f[d_i, d_j] = (f(d_i) - f(d_j))/(d_i - d_j)`` [Higham 2008, theorem 3.11], which stay finite
where eigenvalues coincide. Since ``dΓ = Σ_b dΓ_b ⊗ (⊗_{c≠b} Γ_c)``, only pairs of modes that differ in one
block matter: the derivative costs as much as the products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Power = Literal["root", "inverse_root", "inverse"]
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Layout:
    """Axes of a field grouped into blocks.

    Attributes:
        shape: the axes of a field.
        blocks: the axes of each block; together, every axis once.
        batch: number of leading axes of the matrices.
    """

    shape: tuple[int, ...]
    blocks: tuple[tuple[int, ...], ...]
    batch: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sites per block."""
        return tuple(math.prod(self.shape[a] for a in block) for block in self.blocks)

    def _order(self) -> list[int]:
        return [axis for block in self.blocks for axis in block]

    def fold(self, x: Tensor) -> Tensor:
        """``(..., *shape)`` → ``(..., *sizes)``."""
        lead, order = x.dim() - len(self.shape), self._order()
        if order != sorted(order):
            x = x.permute(*range(lead), *(lead + a for a in order))
        return x.reshape(*x.shape[:lead], *self.sizes)

    def unfold(self, x: Tensor) -> Tensor:
        """Inverse of `fold`."""
        lead, order = x.dim() - len(self.blocks), self._order()
        x = x.reshape(*x.shape[:lead], *(self.shape[a] for a in order))
        if order != sorted(order):
            x = x.permute(*range(lead), *(lead + order.index(a) for a in range(len(order))))
        return x

    def apply(self, matrices: Sequence[Tensor], x: Tensor) -> Tensor:
        """``(⊗ M_b) x`` of a folded ``x`` ``(..., *batch, *sizes)``; ``M_b`` is ``(*batch, n_b, n_b)``."""
        for number, matrix in enumerate(matrices):
            x = self._along(matrix, x, number)
        return x

    def _along(self, matrix: Tensor, x: Tensor, number: int) -> Tensor:
        count = len(self.sizes)
        shape, axis = x.shape, number - count
        if matrix.dim() == 2:
            if axis == -1:
                return x @ matrix.mT
            result: Tensor = (matrix @ x.flatten(axis + 1)).reshape(shape)
            return result
        after = math.prod(shape[axis + 1 :]) if axis < -1 else 1
        batch = matrix.shape[:-2]
        lead = shape[: len(shape) - count - len(batch)]
        x = x.expand(*lead, *batch, *shape[-count:])
        flat = x.reshape(lead.numel(), batch.numel(), -1, shape[axis], after)
        product = torch.einsum("hij,fhpjr->fhpir", matrix.reshape(-1, *matrix.shape[-2:]), flat)
        return product.reshape(*lead, *batch, *shape[-count:])

    def product(self, values: Sequence[Tensor]) -> Tensor:
        """``⊗ v_b`` of vectors ``(*batch, n_b)`` → ``(*batch, *sizes)``."""
        total = values[0]
        for value in values[1:]:
            total = total.unsqueeze(-1) * value.reshape(
                *value.shape[:-1], *(1,) * (total.dim() - value.dim() + 1), value.shape[-1]
            )
        return total


def at(values: Tensor, power: Power) -> Tensor:
    """``f(d)``."""
    if power == "root":
        return values.sqrt()
    return values.rsqrt() if power == "inverse_root" else values.reciprocal()


def _divided(a: Tensor, b: Tensor, power: Power) -> Tensor:
    """``f[a, b]``; where both are 0, which only a root reaches, no first-order change is seen: 0."""
    if power == "inverse":
        return -1 / (a * b)
    total = a.sqrt() + b.sqrt()
    if power == "root":
        return torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)
    return -1 / ((a * b).sqrt() * total)


class _SpectralFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        nugget: Tensor | None,
        layout: Layout,
        power: Power,
        vectors: Callable[[torch.dtype], Sequence[Tensor]],
        values: Sequence[Tensor],
        total: Tensor,
        multiplier: Tensor,
        *matrices: Tensor,
    ) -> Tensor:
        ctx.saved = (layout, power, vectors, values, total, multiplier)
        ctx.save_for_backward(x)
        q = vectors(x.dtype)
        return layout.apply(q, multiplier * layout.apply([v.mT for v in q], x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "KroneckerCovariance gives first derivatives only, and create_graph=True asks for more; use "
                'method="dense" for second ones.'
            )
        (grad,) = grads
        layout, power, vectors, values, total, multiplier = ctx.saved
        (x,) = ctx.saved_tensors
        q = vectors(x.dtype)
        transposed = [v.mT for v in q]
        modes = layout.apply(transposed, grad)
        to_x = layout.apply(q, multiplier * modes) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[8:]) and not ctx.needs_input_grad[1]:
            return to_x, *(None,) * (7 + len(values))
        count, batch = len(layout.sizes), total.shape[: layout.batch]
        left = _fields_first(modes.double(), batch, count)
        right = _fields_first(layout.apply(transposed, x).double(), batch, count)
        to_nugget = None
        if ctx.needs_input_grad[1]:
            slope = _divided(total, total, power).reshape(-1, *layout.sizes)
            each = (left * right).sum(0) * slope
            to_nugget = each.flatten(1).sum(1).reshape(batch)
        basis = vectors(torch.float64)
        to_matrices = [
            _block_gradient(layout, number, left, right, total, values, basis, power)
            for number in range(count)
        ]
        return to_x, to_nugget, *(None,) * 6, *to_matrices


def _fields_first(x: Tensor, batch: torch.Size, count: int) -> Tensor:
    """``(..., *batch, *sizes)`` → ``(fields, batch members, *sizes)``."""
    return x.reshape(-1, batch.numel(), *x.shape[x.dim() - count :])


def _block_gradient(
    layout: Layout,
    number: int,
    left: Tensor,
    right: Tensor,
    total: Tensor,
    values: Sequence[Tensor],
    vectors: Sequence[Tensor],
    power: Power,
) -> Tensor:
    """Gradient to ``Γ_b``: ``Q_b [Σ_rest λ_rest f[d_i, d_j] Σ_fields ĝ_i x̂_j] Q_bᵀ``, symmetrised."""
    sizes = layout.sizes
    n, members = sizes[number], left.shape[1]

    def rows(x: Tensor) -> Tensor:
        # (fields, members, rest, n)
        return x.movedim(2 + number, -1).reshape(x.shape[0], members, -1, n)

    others = [torch.ones_like(v) if i == number else v for i, v in enumerate(values)]
    weight = rows(layout.product(others).expand_as(total).reshape(1, members, *sizes))[0, ..., 0]
    d = rows(total.reshape(1, members, *sizes))[0]
    g, c = (rows(x).permute(1, 2, 3, 0) for x in (left, right))
    inner = torch.zeros(members, n, n, dtype=torch.float64, device=d.device)
    step = max(1, _CHUNK // (n * n * members))
    for start in range(0, d.shape[1], step):
        part = slice(start, start + step)
        pairs = g[:, part] @ c[:, part].mT
        slopes = _divided(d[:, part, :, None], d[:, part, None, :], power)
        inner = inner + (weight[:, part, None, None] * slopes * pairs).sum(1)
    q = vectors[number].reshape(-1, n, n)
    outer = q @ inner @ q.mT
    outer = (outer + outer.mT) / 2
    return outer.reshape(*total.shape[: layout.batch], n, n)


def spectral_function(
    x: Tensor,
    layout: Layout,
    power: Power,
    *,
    matrices: Sequence[Tensor],
    nugget: Tensor | None,
    vectors: Callable[[torch.dtype], Sequence[Tensor]],
    values: Sequence[Tensor],
    total: Tensor,
    multiplier: Tensor,
) -> Tensor:
    """``f(⊗ Γ_b + s²) x`` of a folded ``x``.

    Args:
        x: ``(..., *batch, *sizes)``.
        layout: how axes are grouped.
        power: ``f``: "root" ``√d``, "inverse_root" ``1/√d``, "inverse" ``1/d``.
        matrices: ``Γ_b``, ``(*batch, n_b, n_b)`` float64; gradients go to these.
        nugget: ``s²``, ``(*batch,)``, or None.
        vectors: ``Q_b`` in a data type, detached.
        values: ``Λ_b``, ``(*batch, n_b)`` float64, detached.
        total: ``d``, ``(*batch, *sizes)`` float64, detached.
        multiplier: ``f(d)``, ``(*batch, *sizes)``, in the data type of ``x``.
    """
    result: Tensor = _SpectralFunction.apply(
        x, nugget, layout, power, vectors, values, total, multiplier, *matrices
    )
    return result
