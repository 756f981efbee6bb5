"""A sparse triangular matrix ``W`` whose rows have at most ``m + 1`` entries: ``Wx``, ``Wᵀx``, ``W⁻¹x``,
``W⁻ᵀx``.

Row ``i`` holds ``W_ij`` for the sites ``j < i`` in ``neighbours[i]`` and, last, ``W_ii``. Each operation is
linear in its field, and its derivatives are the others again, so that they can be taken to every order: ``u
= W⁻¹x`` has ``∂/∂x = W⁻ᵀ ∂/∂u`` and ``∂/∂W_ij = -(W⁻ᵀ ∂/∂u)_i u_j``.

Substitution is sequential. Compiled (numba) it runs site after site; in plain torch it runs level by level,
where the level of a site is one more than the highest of its neighbours: some 400 levels for 100,000 sites
in maximin or random order, thousands in coordinate order.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ENGINES = ("auto", "numba", "torch")
# entries that a plain operation gathers at once
_GATHER = 8_000_000
_TRANSPOSED = {
    "product": "product_transposed",
    "product_transposed": "product",
    "solve": "solve_transposed",
    "solve_transposed": "solve",
}


def choose_engine(engine: str) -> str:
    """``"numba"`` or ``"torch"``; ``"auto"`` takes numba where it is installed.

    Raises:
        ValueError: another name.
        ImportError: numba is asked for and not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}.")
    installed = importlib.util.find_spec("numba") is not None
    if engine == "numba" and not installed:
        raise ImportError('engine="numba" needs numba, which is not installed: pip install numba.')
    return ("numba" if installed else "torch") if engine == "auto" else engine


def shared(function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """``function(*arguments, begin, end)`` on as many ranges of ``0 … count-1`` as torch has threads."""
    workers = max(1, min(torch.get_num_threads(), count))
    edges = [count * k // workers for k in range(workers + 1)]
    if workers == 1:
        return [function(*arguments, 0, count)]
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(function, *arguments, a, b) for a, b in itertools.pairwise(edges)]
        return [job.result() for job in jobs]


class SparsePattern:
    """Where ``W`` has entries, and the operations with its rows.

    Rows have shape ``(H, n, m + 1)``, fields ``(H, n, S)``, both float64; ``H`` is the batch of
    hyperparameters.

    Args:
        neighbours: int32 ``(n, m)``, indices below the row's, then -1.
        engine: ``"numba"`` (on the CPU) or ``"torch"``.
    """

    def __init__(self, neighbours: Tensor, engine: str) -> None:
        self.neighbours = neighbours
        self.engine = engine
        self._levels: list[Tensor] | None = None

    @property
    def compiled(self) -> bool:
        return self.engine == "numba" and self.neighbours.device.type == "cpu"

    def apply(self, operation: str, rows: Tensor, x: Tensor) -> Tensor:
        """``operation`` is ``"product"``, ``"solve"`` or one of them ``"_transposed"``."""
        result: Tensor = _Operation.apply(rows, x, self, operation)
        return result

    def outer(self, x: Tensor, y: Tensor) -> Tensor:
        """``Σ_f x_if y_jf`` at every entry ``(i, j)`` of ``W``, ``(H, n, m + 1)``."""
        result: Tensor = _Outer.apply(x, y, self)
        return result

    def square_norms(self, rows: Tensor) -> Tensor:
        """``‖W⁻ᵀ e_i‖²``, the diagonal of ``(WᵀW)⁻¹``, ``(H, n)``.

        ``W⁻ᵀ e_i`` is 0 but at the ancestors of ``i``: some 10,000 of 100,000 sites in the plane in maximin
        order. Compiled it costs that many rows per site, in plain torch all ``n``.
        """
        if self.compiled:
            result: Tensor = _SquareNorms.apply(rows, self)
            return result
        n = rows.shape[1]
        parts = []
        for columns in torch.arange(n, device=rows.device).split(max(1, _GATHER // (len(rows) * n))):
            unit = rows.new_zeros(len(rows), n, len(columns))
            unit[:, columns, torch.arange(len(columns), device=rows.device)] = 1.0
            parts.append(self.apply("solve_transposed", rows, unit).square().sum(1))
        return torch.cat(parts, -1)

    def entries(self) -> Tensor:
        """Where a row has an entry, bool ``(n, m + 1)``."""
        return torch.nn.functional.pad(self.neighbours >= 0, (0, 1), value=True)

    # ---- compiled
    def _run(self, operation: str, rows: Tensor, x: Tensor) -> Tensor:
        if not self.compiled:
            plain: Tensor = getattr(self, f"_{operation}")(rows, x)
            return plain
        from spatialdiff.covariance.points import triangular_compiled

        function, neighbours = getattr(triangular_compiled, operation), self.neighbours.numpy()
        weights = rows.detach().contiguous().numpy()
        if operation.startswith("solve"):
            result = x.detach().clone(memory_format=torch.contiguous_format).numpy()
            for weight, field in zip(weights, result, strict=True):
                shared(function, x.shape[-1], weight, neighbours, field)
            return torch.from_numpy(result)
        fields = x.detach().contiguous().numpy()
        result = np.zeros(fields.shape)
        for weight, field, out in zip(weights, fields, result, strict=True):
            shared(function, x.shape[-1], weight, neighbours, field, out)
        return torch.from_numpy(result)

    def _run_outer(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.compiled:
            return self._outer(x, y)
        from spatialdiff.covariance.points import triangular_compiled

        n, m = self.neighbours.shape
        result = np.zeros((len(x), n, m + 1))
        pairs = (t.detach().contiguous().numpy() for t in (x, y))
        for first, second, out in zip(*pairs, result, strict=True):
            shared(triangular_compiled.outer, n, self.neighbours.numpy(), first, second, out)
        return torch.from_numpy(result)

    # ---- plain
    def _pieces(self, sites: Tensor, width: int) -> tuple[Tensor, ...]:
        size = max(1, _GATHER // max(1, width * self.neighbours.shape[1]))
        pieces: tuple[Tensor, ...] = sites.split(size)
        return pieces

    def _product(self, rows: Tensor, x: Tensor) -> Tensor:
        out = rows[..., -1:] * x
        for sites in self._pieces(torch.arange(x.shape[1], device=x.device), len(x) * x.shape[-1]):
            index, weights = self._entries(rows, sites)
            out[:, sites] += torch.einsum("hij,hijf->hif", weights, x[:, index])
        return out

    def _product_transposed(self, rows: Tensor, x: Tensor) -> Tensor:
        out = rows[..., -1:] * x
        for sites in self._pieces(torch.arange(x.shape[1], device=x.device), len(x) * x.shape[-1]):
            self._scatter(out, rows, sites, x[:, sites])
        return out

    def _solve(self, rows: Tensor, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for level in self.levels():
            for sites in self._pieces(level, len(x) * x.shape[-1]):
                index, weights = self._entries(rows, sites)
                known = torch.einsum("hij,hijf->hif", weights, out[:, index])
                out[:, sites] = (x[:, sites] - known) / rows[:, sites, -1:]
        return out

    def _solve_transposed(self, rows: Tensor, x: Tensor) -> Tensor:
        out = x.clone()
        for level in reversed(self.levels()):
            for sites in self._pieces(level, len(x) * x.shape[-1]):
                out[:, sites] /= rows[:, sites, -1:]
                self._scatter(out, rows, sites, -out[:, sites])
        return out

    def _outer(self, x: Tensor, y: Tensor) -> Tensor:
        n, m = self.neighbours.shape
        out = x.new_empty(len(x), n, m + 1)
        out[..., -1] = (x * y).sum(-1)
        for sites in self._pieces(torch.arange(n, device=x.device), len(x) * x.shape[-1]):
            used = self.neighbours[sites] >= 0
            index = self.neighbours[sites].long().clamp(min=0)
            out[:, sites, :-1] = torch.einsum("hif,hijf->hij", x[:, sites], y[:, index]) * used
        return out

    def _entries(self, rows: Tensor, sites: Tensor) -> tuple[Tensor, Tensor]:
        # slots without a neighbour carry the weight 0
        return self.neighbours[sites].long().clamp(min=0), rows[:, sites, :-1]

    def _scatter(self, out: Tensor, rows: Tensor, sites: Tensor, x: Tensor) -> None:
        index, weights = self._entries(rows, sites)
        parts = weights.unsqueeze(-1) * x.unsqueeze(-2)
        out.index_add_(1, index.reshape(-1), parts.reshape(len(x), -1, x.shape[-1]))

    def levels(self) -> list[Tensor]:
        """Sites that can be substituted together, level after level."""
        if self._levels is None:
            groups = substitution_levels(self.neighbours.cpu().numpy())
            self._levels = [torch.from_numpy(group).to(self.neighbours.device) for group in groups]
        return self._levels


def substitution_levels(neighbours: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Sites by ``level(i) = 1 + max_j level(j)`` over the neighbours ``j`` of ``i``."""
    n = len(neighbours)
    missing = (neighbours >= 0).sum(1)
    child = np.repeat(np.arange(n), missing)
    parent = neighbours[neighbours >= 0]
    child = child[np.argsort(parent, kind="stable")]
    start = np.concatenate([[0], np.cumsum(np.bincount(parent, minlength=n))])
    level, groups = np.flatnonzero(missing == 0), []
    while len(level):
        groups.append(level)
        lengths = start[level + 1] - start[level]
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        freed, times = np.unique(child[np.repeat(start[level], lengths) + offsets], return_counts=True)
        missing[freed] -= times
        level = freed[missing[freed] == 0]
    return groups


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, x: Tensor, pattern: SparsePattern, operation: str) -> Tensor:
        result = pattern._run(operation, rows, x)
        ctx.pattern, ctx.operation = pattern, operation
        ctx.save_for_backward(rows, result if operation.startswith("solve") else x)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, kept = ctx.saved_tensors
        pattern, operation, grad = ctx.pattern, ctx.operation, grads[0]
        to_x = pattern.apply(_TRANSPOSED[operation], rows, grad)
        if not ctx.needs_input_grad[0]:
            return None, to_x, None, None
        left = to_x if operation.startswith("solve") else grad
        pair = (kept, left) if operation.endswith("transposed") else (left, kept)
        to_rows = pattern.outer(*pair)
        return (-to_rows if operation.startswith("solve") else to_rows), to_x, None, None


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, pattern: SparsePattern) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(x, y)
        return pattern._run_outer(x, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        # the gradient is a matrix with the pattern of W
        weights = torch.where(ctx.pattern.entries(), grads[0], 0.0)
        return (
            ctx.pattern.apply("product", weights, y),
            ctx.pattern.apply("product_transposed", weights, x),
            None,
        )


class _SquareNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, pattern: SparsePattern) -> Tensor:
        from spatialdiff.covariance.points import triangular_compiled

        ctx.pattern = pattern
        ctx.save_for_backward(rows)
        weights, neighbours = rows.detach().contiguous().numpy(), pattern.neighbours.numpy()
        result = np.empty(weights.shape[:2])
        for weight, out in zip(weights, result, strict=True):
            shared(triangular_compiled.variances, len(weight), weight, neighbours, out)
        return torch.from_numpy(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        from spatialdiff.covariance.points import triangular_compiled

        (rows,) = ctx.saved_tensors
        neighbours = ctx.pattern.neighbours.numpy()

        def collect(weight: Any, grad: Any, begin: int, end: int) -> Any:
            out = np.zeros(weight.shape)
            triangular_compiled.variances_gradient(weight, neighbours, grad, out, begin, end)
            return out

        pairs = zip(rows.contiguous().numpy(), grads[0].contiguous().numpy(), strict=True)
        result = [sum(shared(collect, len(weight), weight, grad)) for weight, grad in pairs]
        return torch.from_numpy(np.stack(result)), None
