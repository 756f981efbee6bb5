r"""Rows of ``W`` in ``Γ⁻¹ = Wᵀ W``: each site given its neighbours.

With ``N`` the neighbours of site ``i``, ``x_i | x_N ~ N(b x_N, d)``, ``b = k_iN K_NN⁻¹``, ``d = k_ii - b
k_Ni``, row ``i`` of ``W`` is ``(x_i - b x_N)/√d`` (Vecchia 1988; Katzfuss and Guinness 2021).
Let ``A`` be the covariance of ``(N, i)``, the site last, and ``A = L Lᵀ``; then the row is the last column
of ``L⁻ᵀ``, ``w = q/√q_m`` with ``q = A⁻¹ e_m``, and ``dq = -A⁻¹ dA q`` makes the derivative to ``A`` a
matrix of rank one.

Blocks are made and factorised a chunk of sites at a time, and made again for the derivative, so that memory
does not grow with ``n m²``. `isotropic_rows` is a second way for kernels ``σ² ρ(‖T h‖) + σ₀² 1{h=0}`` with
a ``ρ`` in closed
form: compiled in one loop, covariance included.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import gpytorch
import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spatialdiff.covariance.points.closed_forms import FAMILIES, family_of
from spatialdiff.covariance.points.triangular import SparsePattern, shared
from spatialdiff.kernels import Nugget, terms
from spatialdiff.kernels.anisotropy import Anisotropic
from spatialdiff.kernels.base import safe_sqrt

# of coordinates (..., d), (..., d), and whether they belong to different sites, (...) → (*batch, ...)
PairCovariance = Callable[[Tensor, Tensor, Tensor], Tensor]

# entries of the blocks that are made at once
_ENTRIES = 2_000_000


def conditional_rows(
    covariance: PairCovariance, sites: Tensor, pattern: SparsePattern, own: Tensor | None = None
) -> Tensor:
    """Rows ``(*batch, n, m + 1)`` for any covariance, differentiable twice in its parameters.

    Args:
        covariance: of coordinates ``(..., d)`` twice, and whether they belong to different sites, ``(...)``,
            → ``(*batch, ...)``.
        sites: coordinates ``(n, d)`` in their order, float64.
        pattern: the neighbours.
        own: the site of each row, where not ``0 … n-1``.

    Raises:
        ValueError: the covariance of a site and its neighbours is not positive definite.
    """
    n, m = pattern.neighbours.shape
    own = torch.arange(n, device=sites.device) if own is None else own
    size = max(1, _ENTRIES // ((m + 1) * (m + 2) // 2))

    def part(begin: int) -> Tensor:
        neighbours = pattern.neighbours[begin : begin + size].long()
        rest = own[begin : begin + size].unsqueeze(-1)
        block = sites[torch.cat([neighbours.clamp(min=0), rest], -1)]
        row, column = torch.tril_indices(m + 1, m + 1, device=sites.device)
        used = torch.nn.functional.pad(neighbours >= 0, (0, 1), value=True)
        entries = covariance(block[:, row], block[:, column], row != column)
        decoupled = (row == column).to(entries.dtype)
        entries = torch.where(used[:, row] & used[:, column], entries, decoupled)
        result: Tensor = _LastColumn.apply(entries, pattern.compiled)
        return result

    parts = []
    for begin in range(0, n, size):
        with_graph = torch.is_grad_enabled() and n > size
        rows = checkpoint(part, begin, use_reentrant=False) if with_graph else part(begin)
        check_rows(rows, begin, sites[own[begin : begin + size]], sites, pattern)
        parts.append(rows)
    return torch.cat(parts, -2)


def check_rows(rows: Tensor, begin: int, own: Tensor, sites: Tensor, pattern: SparsePattern) -> None:
    """Raise where a row is not finite, naming the site, of the list ``own``, and its nearest neighbour."""
    # a pivot that is NaN reaches the last
    bad = ~torch.isfinite(rows.detach()[..., -1])
    if not bool(bad.any()):
        return
    first = int(bad.reshape(-1, bad.shape[-1]).any(0).nonzero()[0])
    site = own[first]
    near = int(pattern.neighbours[begin + first, 0]) if pattern.neighbours.shape[1] else -1
    distance = float((site - sites[near]).norm()) if near >= 0 else math.nan
    raise ValueError(
        f"Γ is not positive definite: the covariance of {int(bad.sum())} of {bad.numel()} sites with their "
        f"neighbours has no Cholesky factor; the first is at {[round(v, 6) for v in site.tolist()]}, its "
        f"nearest neighbour {distance:.3g} away. Add a Nugget to the kernel, use a rougher or shorter one, "
        "or fewer neighbours."
    )


class _LastColumn(torch.autograd.Function):
    """Lower triangles ``(..., (m+1)(m+2)/2)`` → ``w = L⁻ᵀ e_m``, ``(..., m + 1)``; NaN where ``L`` does not
    exist.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, compiled: bool) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.compiled = compiled
        if not compiled:
            return _last_column(packed)[0]
        from spatialdiff.covariance.points import vecchia_compiled

        flat = packed.detach().reshape(-1, packed.shape[-1]).contiguous().numpy()
        rows = np.empty((len(flat), _block_size(packed.shape[-1])))
        shared(vecchia_compiled.packed_rows, len(flat), flat, rows)
        return torch.from_numpy(rows).reshape(*packed.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        if ctx.compiled and not torch.is_grad_enabled():
            from spatialdiff.covariance.points import vecchia_compiled

            flat = packed.reshape(-1, packed.shape[-1]).contiguous().numpy()
            grad = grads[0].reshape(len(flat), -1).contiguous().numpy()
            out = np.empty(flat.shape)
            shared(vecchia_compiled.packed_gradient, len(flat), flat, grad, out)
            return torch.from_numpy(out).reshape(packed.shape), None
        w, factor = _last_column(packed)
        last = w[..., -1:]
        q = w * last
        g = grads[0] / last
        correction = 0.5 * (grads[0] * w).sum(-1, keepdim=True) / last.square()
        g = torch.cat([g[..., :-1], g[..., -1:] - correction], -1)
        s = torch.cholesky_solve(g.unsqueeze(-1), factor).squeeze(-1)
        row, column = torch.tril_indices(w.shape[-1], w.shape[-1], device=w.device)
        both = s[..., row] * q[..., column] + s[..., column] * q[..., row]
        return -torch.where(row == column, 0.5 * both, both), None


def _block_size(entries: int) -> int:
    return (math.isqrt(8 * entries + 1) - 1) // 2


def _last_column(packed: Tensor) -> tuple[Tensor, Tensor]:
    p = _block_size(packed.shape[-1])
    row, column = torch.tril_indices(p, p, device=packed.device)
    place = torch.empty(p, p, dtype=torch.long, device=packed.device)
    place[row, column] = place[column, row] = torch.arange(len(row), device=packed.device)
    factor, info = torch.linalg.cholesky_ex(packed[..., place])
    factor = torch.where((info == 0)[..., None, None], factor, torch.nan)
    unit = torch.zeros(p, 1, dtype=packed.dtype, device=packed.device)
    unit[-1] = 1.0
    w = torch.linalg.solve_triangular(factor.mT, unit.expand(*factor.shape[:-1], 1), upper=True)
    return w.squeeze(-1), factor


# ---- isotropic kernels in closed form
class Isotropic:
    """``σ² ρ(‖T h‖)``, and ``σ₀²`` more for a site with itself: ``variance`` ``(H,)``, ``nugget`` ``(H,)``,
    ``transform`` ``(H, d, d)``, and ``family`` a place in `FAMILIES`: 0, 1, 2 (Matérn 1/2, 3/2, 5/2) or 3
    (Gaussian).
    """

    def __init__(self, family: int, variance: Tensor, nugget: Tensor, transform: Tensor) -> None:
        self.family, self.variance, self.nugget, self.transform = family, variance, nugget, transform

    def __call__(self, x1: Tensor, x2: Tensor, different: Tensor) -> Tensor:
        """The covariance in plain torch; see `PairCovariance`."""
        h = torch.einsum("hab,...b->h...a", self.transform, x1 - x2)
        r = safe_sqrt(h.square().sum(-1))
        s = math.sqrt(2 * self.family + 1) * r
        if self.family == 3:
            correlation = torch.exp(-r.square() / 2)
        else:
            correlation = (1.0, 1 + s, 1 + s + s.square() / 3)[self.family] * torch.exp(-s)
        shape = (-1, *(1,) * (r.dim() - 1))
        return self.variance.reshape(shape) * correlation + self.nugget.reshape(shape) * ~different


def as_isotropic(kernel: gpytorch.kernels.Kernel, d: int) -> Isotropic | None:
    """``kernel`` in that form, one continuous term, rotated or not, and any number of nuggets; None where
    it has another form.
    """
    parts = terms(kernel)
    smooth = [term for term in parts if type(term[0]) is not Nugget]
    if len(smooth) != 1 or any(len(term) > 1 for term in parts):
        return None
    outer = smooth[0][0]
    part = outer.kernel if type(outer) is Anisotropic else outer
    name = family_of(part)
    if name is None or part.lengthscale.shape[-1] not in (1, d):
        return None
    batch = kernel.batch_shape
    transform = torch.diag_embed((1 / part.lengthscale.squeeze(-2)).expand(*part.batch_shape, d))
    if outer is not part:
        turned = (outer.axes / outer.scales.unsqueeze(-2)).mT
        lead = outer.batch_shape
        transform = transform.expand(*lead, d, d) @ turned.expand(*lead, d, d)
    nugget = torch.zeros(batch, dtype=torch.float64, device=transform.device)
    for term in parts:
        if type(term[0]) is Nugget:
            nugget = nugget + term[0].variance
    return Isotropic(
        FAMILIES.index(name),
        part.variance.expand(batch).reshape(-1),
        nugget.reshape(-1),
        transform.expand(*batch, d, d).reshape(-1, d, d),
    )


def isotropic_rows(kernel: Isotropic, sites: Tensor, pattern: SparsePattern) -> Tensor:
    """Rows ``(H, n, m + 1)``, compiled; differentiable once there, and through `conditional_rows` beyond.

    Raises:
        ValueError: the covariance of a site and its neighbours is not positive definite.
    """
    rows: Tensor = _IsotropicRows.apply(
        kernel.variance, kernel.nugget, kernel.transform, kernel.family, sites, pattern
    )
    check_rows(rows, 0, sites, sites, pattern)
    return rows


class _IsotropicRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        variance: Tensor,
        nugget: Tensor,
        transform: Tensor,
        family: int,
        sites: Tensor,
        pattern: SparsePattern,
    ) -> Tensor:
        from spatialdiff.covariance.points import vecchia_compiled

        ctx.save_for_backward(variance, nugget, transform, sites)
        ctx.family, ctx.pattern = family, pattern
        n, m = pattern.neighbours.shape
        rows = np.empty((len(variance), n, m + 1))
        for h, out in enumerate(rows):
            arguments = _arguments(variance, nugget, transform, sites, pattern, h)
            shared(vecchia_compiled.isotropic_rows, n, *arguments, family, out)
        return torch.from_numpy(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        variance, nugget, transform, sites = ctx.saved_tensors
        if torch.is_grad_enabled():
            kernel = Isotropic(ctx.family, variance, nugget, transform)
            again = conditional_rows(kernel, sites, ctx.pattern)
            return (
                *torch.autograd.grad(again, (variance, nugget, transform), grads[0], create_graph=True),
                None,
                None,
                None,
            )
        from spatialdiff.covariance.points import vecchia_compiled

        n, d = len(sites), sites.shape[-1]
        totals = []
        for h, grad in enumerate(grads[0].contiguous().numpy()):
            arguments = _arguments(variance, nugget, transform, sites, ctx.pattern, h)
            function = functools.partial(_collect, vecchia_compiled.isotropic_gradient, 2 + d * d)
            totals.append(sum(shared(function, n, *arguments, ctx.family, grad)))
        total = torch.from_numpy(np.stack(totals))
        lower = total[:, 2:].reshape(-1, d, d)
        square = lower + lower.tril(-1).mT
        # d‖T h‖ = sᵀ dT h/‖s‖ with s = T h
        to_transform = -torch.linalg.solve(transform.mT, square, left=False)
        return total[:, 0], total[:, 1], to_transform, None, None, None


def _collect(function: Callable[..., None], size: int, *arguments: Any) -> np.ndarray[Any, Any]:
    from spatialdiff.covariance.points import vecchia_compiled

    total = np.zeros((size, vecchia_compiled.LANES))
    function(*arguments, total)
    result: np.ndarray[Any, Any] = total.sum(-1)
    return result


def _arguments(
    variance: Tensor, nugget: Tensor, transform: Tensor, sites: Tensor, pattern: SparsePattern, h: int
) -> tuple[Any, ...]:
    scaled = (sites @ transform[h].T).contiguous().numpy()
    return scaled, pattern.neighbours.numpy(), float(variance[h]), float(nugget[h])
