r"""``A(w) = diag(w) + S``, ``S = BᵀB`` sparse: products, solves, determinants, each differentiable in the
vector ``w > 0``.

``A`` depends on ``w`` through its diagonal alone, so every derivative is a vector: ``d(A⁻¹x) = A⁻¹(dx - dw ∘
A⁻¹x)`` and ``d log det A = Σ_i (A⁻¹)_ii dw_i``. Factors are sparse ``L D Lᵀ`` of a permuted ``A`` (SuperLU in
symmetric mode with minimum-degree ordering), in float64 on the CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spatialdiff.covariance.meshes.selected_inverse import selected_diagonal

# up to this size whole inverses are formed, with derivatives of every order
DENSE_SITES = 1024
# factors are kept, least recently used first out, up to this many bytes (one is always kept)
_CACHE_BYTES = 2**31


class ShiftedOperator:
    """``A(w) = diag(w) + BᵀB`` on fields ``(n,)``, with its factors.

    Every method takes ``w`` of shape ``(*batch, n)`` and fields ``(..., *batch, n)`` in float64.

    Args:
        root: ``B``, scipy sparse ``(rows, n)``.
    """

    def __init__(self, root: Any) -> None:
        from scipy.sparse import identity

        self.root = root.tocsr()
        symmetric = (self.root.T @ self.root).tocsc()
        symmetric.eliminate_zeros()
        self.matrix = symmetric
        self.rows, self.size = self.root.shape
        self.norm = float(np.abs(symmetric).sum(axis=1).max()) if symmetric.nnz else 0.0
        # minimum degree is found once: shifts do not change the pattern
        self.order = np.argsort(
            symmetric_factor((symmetric + (1 + self.norm) * identity(self.size)).tocsc()).perm_c
        )
        self._ordered, self._places = _with_diagonal(symmetric[self.order][:, self.order])
        self._factors: OrderedDict[int, tuple[Any, Any]] = OrderedDict()
        self._held = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_factors": OrderedDict(), "_held": 0}

    def __deepcopy__(self, memo: dict[int, Any]) -> ShiftedOperator:
        # the matrices never change
        copy = ShiftedOperator.__new__(ShiftedOperator)
        copy.__dict__.update(self.__getstate__())
        return copy

    # ---- factors
    def assembled(self, w: Any) -> Any:
        """``A(w)`` as a scipy CSC matrix, for one ``w`` as an array ``(n,)``."""
        from scipy.sparse import diags

        return (self.matrix + diags(w)).tocsc()

    def factor(self, w: Any) -> Any:
        """SuperLU factor of ``A(w)`` with its rows and columns in the order `order`, for one ``w`` as an
        array ``(n,)``, cached.
        """
        key = hash(w.tobytes())
        held = self._factors.get(key)
        if held is not None and np.array_equal(held[0], w):
            self._factors.move_to_end(key)
            return held[1]
        if w.min() <= self.size * np.finfo(np.float64).eps * self.norm:
            raise RuntimeError(_singular(self.size, f"eigenvalues from {w.min():.3g} to {self.norm:.3g}"))
        shifted = self._ordered.copy()
        shifted.data[self._places] += w[self.order]
        lu = symmetric_factor(shifted, "NATURAL")
        self._factors[key] = (w.copy(), lu)
        self._held += _bytes(lu)
        while self._held > _CACHE_BYTES and len(self._factors) > 1:
            _, (_, old) = self._factors.popitem(last=False)
            self._held -= _bytes(old)
        return lu

    def solve_rows(self, w: Any, rows: Any) -> Any:
        """``A(w)⁻¹`` of every row of ``(m, n)``, arrays, for one ``w``."""
        solution = np.empty(rows.shape)
        solution[:, self.order] = self.factor(w).solve(np.asfortranarray(rows[:, self.order].T)).T
        return solution

    # ---- differentiable operations
    def apply(self, w: Tensor, x: Tensor) -> Tensor:
        """``A x``."""
        return w * x + _multiply(x, self.matrix)

    def solve(self, w: Tensor, b: Tensor) -> Tensor:
        """``A⁻¹ b``."""
        shape = torch.broadcast_shapes(w.shape, b.shape)
        result: Tensor = _Solve.apply(w, b.expand(shape), self)
        return result

    def log_det(self, w: Tensor) -> Tensor:
        """``log det A``, shape ``(*batch,)``."""
        result: Tensor = _LogDet.apply(w, self)
        return result

    def inverse_diagonal(self, w: Tensor) -> Tensor:
        """``diag(A⁻¹)``, shape ``(*batch, n)``. Differentiable up to `DENSE_SITES` sites; beyond, a backward
        pass raises RuntimeError.
        """
        if self.size <= DENSE_SITES:
            eye = torch.eye(self.size, dtype=torch.float64, device=w.device)
            eye = eye.reshape(self.size, *(1,) * (w.dim() - 1), self.size)
            return self.solve(w, eye).movedim(0, -2).diagonal(dim1=-2, dim2=-1)
        return self.large_diagonal(w, 1)

    def large_diagonal(self, w: Tensor, power: int) -> Tensor:
        """``diag(A^{-power})`` from the selected inverse of the sparse matrix ``A^power``; without
        derivatives.
        """
        result: Tensor = _LargeDiagonal.apply(w, self, power)
        return result


def multiply(x: Tensor, matrix: Any) -> Tensor:
    """``M x`` on the last axis for a sparse ``M`` (scipy), differentiable in ``x``."""
    return _multiply(x, matrix)


def symmetric_factor(matrix: Any, ordering: Literal["MMD_AT_PLUS_A", "NATURAL"] = "MMD_AT_PLUS_A") -> Any:
    """SuperLU factor ``P A Pᵀ = L U``, ``U = D Lᵀ``, of a symmetric positive definite CSC matrix, by default
    in minimum-degree order.

    Raises:
        RuntimeError: the matrix is singular to working precision.
    """
    from scipy.sparse.linalg import splu

    lu = splu(matrix, permc_spec=ordering, diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    if not np.array_equal(lu.perm_r, lu.perm_c):
        raise RuntimeError(_singular(matrix.shape[0], "a pivot is 0"))
    return lu


def _with_diagonal(matrix: Any) -> tuple[Any, Any]:
    """``matrix`` as CSC with every diagonal entry stored, and where those are in its data."""
    from scipy.sparse import coo_array

    coo, n = matrix.tocoo(), matrix.shape[0]
    rows, columns = np.append(coo.row, np.arange(n)), np.append(coo.col, np.arange(n))
    stored = coo_array((np.append(coo.data, np.zeros(n)), (rows, columns)), shape=(n, n)).tocsc()
    stored.sort_indices()
    places = np.flatnonzero(stored.indices == np.repeat(np.arange(n), np.diff(stored.indptr)))
    return stored, places


def _pivots(lu: Any) -> Any:
    pivots = lu.U.diagonal()
    if not (pivots > 0).all():
        raise RuntimeError(
            _singular(len(pivots), f"smallest pivot {pivots.min():.3g}, largest {pivots.max():.3g}")
        )
    return pivots


def _singular(n: int, why: str) -> str:
    return (
        f"The sparse matrix of {n} sites is not positive definite to working precision ({why}): length "
        "scales are too long for the mesh, or its elements too flat."
    )


def _bytes(lu: Any) -> int:
    return int(lu.nnz) * 16


def _inverse_diagonal(lu: Any) -> Any:
    found = selected_diagonal(lu.L, _pivots(lu))
    return found[lu.perm_c]


def _multiply(x: Tensor, matrix: Any) -> Tensor:
    result: Tensor = _Multiply.apply(x, matrix)
    return result


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Any) -> Tensor:
        ctx.matrix = matrix
        flat = x.detach().cpu().reshape(-1, x.shape[-1]).numpy()
        product = np.ascontiguousarray((matrix @ flat.T).T)
        return torch.from_numpy(product).reshape(*x.shape[:-1], matrix.shape[0]).to(x.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _multiply(grads[0], ctx.matrix.T), None


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, b: Tensor, operator: ShiftedOperator) -> Tensor:
        n, sets = operator.size, w[..., 0].numel()
        shifts = w.detach().cpu().reshape(sets, n).numpy()
        rows = b.detach().cpu().reshape(-1, sets, n).numpy()
        solution = np.empty(rows.shape)
        for s in range(sets):
            solution[:, s] = operator.solve_rows(shifts[s], rows[:, s])
        result = torch.from_numpy(solution).reshape(b.shape).to(b.device)
        ctx.operator = operator
        ctx.save_for_backward(w, result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        w, solution = ctx.saved_tensors
        adjoint = ctx.operator.solve(w, grads[0])
        to_w = None
        if ctx.needs_input_grad[0]:
            to_w = -(adjoint * solution).reshape(-1, *w.shape).sum(0)
        return to_w, adjoint, None


class _LogDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, operator: ShiftedOperator) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(w)
        shifts = w.detach().cpu().reshape(-1, operator.size).numpy()
        values = [float(np.log(_pivots(operator.factor(row))).sum()) for row in shifts]
        return torch.tensor(values, dtype=torch.float64, device=w.device).reshape(w.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return grads[0].unsqueeze(-1) * ctx.operator.inverse_diagonal(w), None


class _LargeDiagonal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, operator: ShiftedOperator, power: int) -> Tensor:
        shifts = w.detach().cpu().reshape(-1, operator.size).numpy()
        rows = []
        for row in shifts:
            if power == 1:
                found = np.empty(operator.size)
                found[operator.order] = _inverse_diagonal(operator.factor(row))
            else:
                base = operator.assembled(row)
                matrix = base
                for _ in range(power - 1):
                    matrix = (matrix @ base).tocsc()
                found = _inverse_diagonal(symmetric_factor(matrix))
            rows.append(found)
        return torch.from_numpy(np.stack(rows)).reshape(w.shape).to(w.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        raise RuntimeError(
            "The derivative of the variance needs every entry of Γ, which is formed for up to "
            f"{DENSE_SITES} sites; use torch.no_grad(), a smaller mesh, or sums of squares of samples (they "
            "have derivatives)."
        )
