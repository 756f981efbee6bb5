r"""Intrinsic embedding: Γ as a corner of a circulant plus a polynomial of low rank [Stein 2002; Gneiting et
al. 2006, section 4; Stein 2012, for fields with derivatives].

With ``x = ‖h/ℓ‖/D ≤ 1`` on the grid, choose

``ψ(x) = φ(x) + p(x)``, ``p(x) = Σ_{j≤q} a_j x^{2j}``, for ``x ≤ 1``;  ``b (R - x)^{2q+1}/x`` for ``x ≤ R``,

joined with ``q + 1`` continuous derivatives, which determines ``a`` and ``b``. The polynomial takes the long
waves out of ``φ``, so that ``ψ`` is a covariance on a small torus however long the length scale is: ``q =
1`` for powered exponential families, ``q = 2`` for Matérn 3/2. Then ``Γ = C - p(x_i - x_j) = C + Q M Qᵀ``
with the corner ``C`` of the circulant, ``Q`` orthonormal polynomials of degree up to ``2q`` on the grid, and
a small indefinite ``M = M₊ - M₋``. With ``q = 1`` and nothing but the linear part of ``M`` this is the random
plane of Stein (2002), which has the increments of the field and not its covariance; here all of ``M``
counts.

Root: ``S = C + Q M₊ Qᵀ`` is coloured by adding a random polynomial, and ``Γ = S - V Vᵀ``, ``V = Q M₋^{1/2}``,
by ``η = s - V T Vᵀ S⁻¹ s``, ``T = (I + (I - G)^{1/2})⁻¹``, ``G = Vᵀ S⁻¹ V ≼ I``: then ``2T - T G T = I`` and
``Cov η = S - V Vᵀ``. ``H = C⁻¹ Q`` is solved for once; ``Qᵀ S⁻¹ = (I + Qᵀ H M₊)⁻¹ Hᵀ``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance.grids.radial import (
    RadialTerm,
    derivatives,
    edges,
    front,
    least_sizes,
    periodised_table,
)
from spatialdiff.domains import Grid

_RANK = 1e-13


def intrinsic_sizes(found: Sequence[RadialTerm], grid: Grid, reach: float) -> tuple[int, ...]:
    """Sites per axis that the embedding needs."""
    with torch.no_grad():
        return least_sizes(found, grid, [0.0 if t.profile is None else reach for t in found])


def _constants(term: RadialTerm, order: int, reach: float) -> tuple[Tensor, Tensor]:
    """``a_0 … a_q``, ``(*batch, q+1)``, and ``b``, ``(*batch,)``."""
    assert term.profile is not None
    count = order + 2
    given = derivatives(term.profile, term.metric.shape[:-1], count)
    system = torch.zeros(count, count, dtype=torch.float64)
    for j, i in itertools.product(range(order + 1), range(count)):
        system[i, j] = math.perm(2 * j, i) if i <= 2 * j else 0.0
    # Taylor series of (R - 1 - t)^p / (1 + t)
    series = torch.zeros(count, dtype=torch.float64)
    p = 2 * order + 1
    for i in range(count):
        series[i] = sum(
            math.comb(p, m) * (reach - 1) ** (p - m) * (-1.0) ** m * (-1.0) ** (i - m) for m in range(i + 1)
        ) * math.factorial(i)
    system[:, -1] = -series
    solution = -given @ torch.linalg.inv(system).T.to(given)
    return solution[..., :-1], solution[..., -1]


def intrinsic_table(
    found: Sequence[RadialTerm],
    grid: Grid,
    sizes: Sequence[int],
    order: int,
    reach: float,
    device: torch.device | None,
) -> Tensor:
    """The periodised ``ψ`` at lags ``0 … m/2`` per axis, ``(*batch, *(m/2+1))``."""
    constants = [None if term.profile is None else _constants(term, order, reach) for term in found]

    def extension(number: int, inside: Tensor, x: Tensor) -> Tensor:
        given = constants[number]
        assert given is not None
        a, b = given
        x2, power = x.square(), torch.ones_like(x)
        for j in range(order + 1):
            inside = inside + front(a[..., j], x) * power
            power = power * x2
        beyond = x > 1
        outer = torch.where(beyond, x, 1.0)
        tail = front(b, x) * (reach - outer).clamp_min(0.0).pow(2 * order + 1) / outer
        return torch.where(beyond, tail, inside)

    return periodised_table(found, grid, sizes, extension, device)


def _indices(ndim: int, degree: int) -> list[tuple[int, ...]]:
    return [i for i in itertools.product(range(degree + 1), repeat=ndim) if sum(i) <= degree]


def _axis_bases(grid: Grid, degree: int) -> list[tuple[Tensor, Tensor]]:
    """Per axis: orthonormal polynomials ``(n, c)`` and ``(c, degree+1)``, monomials of ``t`` in them."""
    bases = []
    for n in grid.shape:
        t = torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
        bases.append(torch.linalg.qr(t[:, None] ** torch.arange(degree + 1)))
    return bases


def polynomials(grid: Grid, order: int) -> Tensor:
    """``Q``: orthonormal polynomials of degree up to ``2q`` on the grid, ``(c, *shape)``."""
    bases = _axis_bases(grid, 2 * order)
    letters = "xyz"[: grid.ndim]
    rule = ",".join(letters) + "->" + letters
    return torch.stack([torch.einsum(rule, *columns) for columns in _columns(bases, grid, 2 * order)])


def _columns(bases: list[tuple[Tensor, Tensor]], grid: Grid, degree: int) -> list[list[Tensor]]:
    return [
        [q[:, g] for (q, _), g in zip(bases, index, strict=True)]
        for index in _indices(grid.ndim, degree)
        if all(g < q.shape[1] for (q, _), g in zip(bases, index, strict=True))
    ]


def correction(found: Sequence[RadialTerm], grid: Grid, order: int, reach: float) -> Tensor:
    """``M`` of ``Γ = C + Q M Qᵀ``, ``(*batch, c, c)``."""
    degree = 2 * order
    index = _indices(grid.ndim, degree)
    place = {i: number for number, i in enumerate(index)}
    half = torch.tensor([e / 2 if e > 0 else 1.0 for e in edges(grid)], dtype=torch.float64)
    total: Tensor | None = None
    for term in found:
        if term.profile is None:
            continue
        a, _ = _constants(term, order, reach)
        weight = (half.to(term.metric) / term.metric).square()
        batch = a.shape[:-1]
        entries: dict[tuple[int, int], Tensor] = {}
        for k in itertools.product(range(order + 1), repeat=grid.ndim):
            j = sum(k)
            if j > order:
                continue
            count = math.factorial(j) / math.prod(map(math.factorial, k))
            coefficient = a[..., j] * count * weight.pow(torch.tensor(k, device=weight.device)).prod(-1)
            # x^{2k} of a difference, (t - t')^{2k}, by the binomial theorem in every axis
            for beta in itertools.product(*(range(2 * m + 1) for m in k)):
                gamma = tuple(2 * m - b for m, b in zip(k, beta, strict=True))
                sign = (-1.0) ** sum(gamma) * math.prod(
                    math.comb(2 * m, b) for m, b in zip(k, beta, strict=True)
                )
                entries[place[beta], place[gamma]] = -sign * coefficient
        zero = torch.zeros(batch, dtype=torch.float64, device=a.device)
        rows = [
            torch.stack([entries.get((r, c), zero) for c in range(len(index))], -1) for r in range(len(index))
        ]
        part = torch.stack(rows, -2)
        total = part if total is None else total + part
    assert total is not None
    change = _change_of_basis(grid, degree).to(total)
    return change @ total @ change.T


def _change_of_basis(grid: Grid, degree: int) -> Tensor:
    """Monomials in the orthonormal polynomials, ``(c, monomials)``."""
    bases = _axis_bases(grid, degree)
    index = _indices(grid.ndim, degree)
    kept = [i for i in index if all(g < q.shape[1] for (q, _), g in zip(bases, i, strict=True))]
    change = torch.zeros(len(kept), len(index), dtype=torch.float64)
    for (row, g), (column, b) in itertools.product(enumerate(kept), enumerate(index)):
        change[row, column] = math.prod(float(r[i, j]) for (_, r), i, j in zip(bases, g, b, strict=True))
    return change


class _Spectral(torch.autograd.Function):
    """``f(M)`` of a symmetric matrix; the derivative by divided differences, so that equal eigenvalues do no
    harm (Daleckii & Krein 1965).
    """

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, f: Callable[[Tensor], Tensor], df: Callable[[Tensor], Tensor]
    ) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        images = f(values)
        ctx.save_for_backward(values, vectors, images, df(values))
        result: Tensor = (vectors * images.unsqueeze(-2)) @ vectors.mT
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        values, vectors, images, slopes = ctx.saved_tensors
        gap = values.unsqueeze(-1) - values.unsqueeze(-2)
        close = gap.abs() <= 1e-7 * values.abs().amax(-1)[..., None, None]
        quotient = (images.unsqueeze(-1) - images.unsqueeze(-2)) / torch.where(close, 1.0, gap)
        mean = (slopes.unsqueeze(-1) + slopes.unsqueeze(-2)) / 2
        inner = vectors.mT @ ((grads[0] + grads[0].mT) / 2) @ vectors
        return vectors @ (inner * torch.where(close, mean, quotient)) @ vectors.mT, None, None


def positive_root(matrix: Tensor) -> Tensor:
    """``M₊^{1/2}``; eigenvalues that are 0 to rounding, of polynomials that do not occur, count as 0."""

    def kept(v: Tensor) -> Tensor:
        return v > _RANK * v.abs().amax(-1, keepdim=True)

    result: Tensor = _Spectral.apply(
        matrix,
        lambda v: torch.where(kept(v), v, 0.0).sqrt(),
        lambda v: torch.where(kept(v), 0.5 * torch.where(kept(v), v, 1.0).rsqrt(), 0.0),
    )
    return result


def downdate(gain: Tensor) -> Tensor:
    """``T = (I + (I - G)^{1/2})⁻¹``."""
    result: Tensor = _Spectral.apply(
        gain,
        lambda v: 1 / (1 + (1 - v).clamp_min(0.0).sqrt()),
        lambda v: 0.5 / ((1 - v).clamp_min(1e-300).sqrt() * (1 + (1 - v).clamp_min(0.0).sqrt()).square()),
    )
    return result
