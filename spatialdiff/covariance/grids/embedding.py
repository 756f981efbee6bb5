r"""Circulant embeddings of a stationary covariance on a grid, and whether they are covariances.

A periodic covariance ``c`` with ``m`` sites per axis that equals ``k`` at every lag of the grid has the
grid's Γ as a corner of its circulant matrix, whose eigenvalues are ``λ = Σ_j c_j exp(-2πi jk/m)``. Three
choices of ``c`` beyond the lags of the grid:

- plain: ``c_j = k(min(j, m-j))``, ``m ≥ 2(n-1)`` [Dietrich & Newsam 1997; Wood & Chan 1994];
- cutoff: a compactly supported continuation, periodised, `spatialdiff.covariance.grids.cutoff`;
- intrinsic: the same of ``k`` plus a polynomial, which is taken off again,
  `spatialdiff.covariance.grids.intrinsic`.

None is a covariance for every kernel. The eigenvalues are computed and decide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.grids.cutoff import cutoff_sizes, cutoff_table
from spatialdiff.covariance.grids.intrinsic import intrinsic_sizes, intrinsic_table
from spatialdiff.covariance.grids.radial import NotRadialError, radial_terms
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.domains import Grid

Kind = Literal["plain", "cutoff", "intrinsic"]
KINDS: tuple[Kind, ...] = ("plain", "cutoff", "intrinsic")

# an eigenvalue between -TOLERANCE and 0 times the largest, or the variance, is the rounding of the FFT
TOLERANCE = 1e-12
GROWTH = (1.0, 1.125, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 11.0, 16.0, 22.0, 32.0, 45.0, 64.0)
# orders and reaches of the intrinsic embedding, exponents of the cut-off
INTRINSIC = tuple(itertools.product((1, 2, 3, 4), (1.2, 1.5)))
CUTOFF = (1.0, 2.0, 0.5)
# room for parameters that change a little after the embedding is chosen
SLACK = 1.03
# sites of the sublattice on which an embedding is tried first
COARSE = 2**14


class EmbeddingError(ValueError):
    """No circulant embedding within the limit is a covariance.

    Attributes:
        sizes: the last embedding that was tried.
        negative: number of its negative eigenvalues.
        smallest: its smallest eigenvalue.
    """

    def __init__(
        self, message: str, sizes: Sequence[int] = (), negative: int = 0, smallest: float = 0.0
    ) -> None:
        super().__init__(message)
        self.sizes, self.negative, self.smallest = tuple(sizes), negative, smallest


@dataclass(frozen=True)
class Embedding:
    """Which periodic covariance continues the kernel.

    Attributes:
        sizes: sites per axis.
        kind: see the module.
        order: ``q`` of the intrinsic embedding: the polynomial has degree ``2q``.
        shape: ``a`` of the cut-off, ``R`` of the intrinsic embedding.
    """

    sizes: tuple[int, ...]
    kind: Kind = "plain"
    order: int = 0
    shape: float = 0.0

    def __str__(self) -> str:
        detail = {"plain": "", "cutoff": f", a = {self.shape:g}", "intrinsic": f", degree {2 * self.order}"}
        return f"{'x'.join(map(str, self.sizes))} ({self.kind}{detail[self.kind]})"

    @property
    def cost(self) -> float:
        """What a field costs, in sites; the polynomial's coefficients are solved for besides."""
        weight = {"plain": 1.0, "cutoff": 1.2, "intrinsic": 4.0 + 2.0 * self.order}
        return math.prod(self.sizes) * weight[self.kind]


@dataclass(frozen=True)
class EmbeddingReport:
    """Eigenvalues of an embedding; of the worst member where the kernel holds a batch.

    Attributes:
        embedding: the embedding.
        negative: number of negative eigenvalues, beyond rounding.
        smallest: smallest eigenvalue.
        largest: largest eigenvalue.
        mass: share of ``Σ|λ|`` in negative eigenvalues.
    """

    embedding: Embedding
    negative: int
    smallest: float
    largest: float
    mass: float = field(default=0.0)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.embedding.sizes

    @property
    def is_covariance(self) -> bool:
        """Whether no eigenvalue is negative."""
        return self.negative == 0


def fast_size(least: int) -> int:
    """Smallest even number at least ``least`` whose prime factors are 2, 3 and 5; 1 for 1."""
    if least <= 1:
        return 1
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


def plain_sizes(grid: Grid, growth: float, extra: int) -> tuple[int, ...]:
    """``growth · 2(n-1)`` per axis that is not periodic, rounded up to a product of 2, 3 and 5."""
    return tuple(
        n if wraps else fast_size(math.ceil(growth * (2 * (n - 1) + extra)))
        for n, wraps in zip(grid.shape, grid.periodic, strict=True)
    )


def candidates(
    kernel: gpytorch.kernels.Kernel, grid: Grid, option: str, max_growth: float, max_sites: int
) -> tuple[list[Embedding], str]:
    """Embeddings to try, cheapest first, and why some kinds are not among them."""
    found: list[Embedding] = []
    reason = ""
    if option in ("auto", "plain"):
        extra = 0 if reflection_symmetric(kernel) else 1
        found += [Embedding(plain_sizes(grid, g, extra)) for g in GROWTH if g <= max_growth]
    if option != "plain":
        try:
            terms = radial_terms(kernel, grid)
        except NotRadialError as error:
            terms, reason = [], str(error)
        if terms and option in ("auto", "cutoff"):
            for a in CUTOFF:
                least = cutoff_sizes(terms, grid, a)
                if least is not None:
                    found.append(Embedding(_roomy(least), "cutoff", 0, a))
                elif not reason:
                    reason = "the cut-off needs a covariance that is positive and decreasing at the diameter"
        if terms and option in ("auto", "intrinsic"):
            for order, reach in INTRINSIC:
                sizes = _roomy(intrinsic_sizes(terms, grid, reach))
                found.append(Embedding(sizes, "intrinsic", order, reach))
    largest = tuple(max_growth * max(1, 2 * (n - 1)) for n in grid.shape)
    unique = [
        e
        for i, e in enumerate(found)
        if e not in found[:i]
        and (
            (e.kind == "plain" and i == 0)
            or (
                math.prod(e.sizes) <= max_sites
                and (e.kind == "plain" or all(m <= most for m, most in zip(e.sizes, largest, strict=True)))
            )
        )
    ]
    return sorted(unique, key=lambda e: e.cost), reason


def _roomy(least: Sequence[int]) -> tuple[int, ...]:
    return tuple(fast_size(math.ceil(SLACK * m)) if m > 1 else 1 for m in least)


def table(
    kernel: gpytorch.kernels.Kernel,
    grid: Grid,
    embedding: Embedding,
    device: torch.device | None = None,
    step: Sequence[int] | None = None,
) -> Tensor:
    """The periodic covariance ``c``, float64: lags ``0 … m/2`` per axis ``(*batch, *(m/2+1))`` where it is
    symmetric in every axis, all of them ``(*batch, *m)`` otherwise; with ``step``, which divides ``m``, of
    every ``step``-th site.
    """
    sizes, lattice = embedding.sizes, grid
    if step is not None:
        sizes = tuple(m // c for m, c in zip(sizes, step, strict=True))
        spacing = [h * c for h, c in zip(grid.spacing, step, strict=True)]
        lattice = Grid(grid.shape, spacing, grid.periodic)
    if embedding.kind == "cutoff":
        terms = radial_terms(kernel, grid)
        _check_room(cutoff_sizes(terms, grid, embedding.shape), embedding, kernel)
        return cutoff_table(terms, lattice, sizes, embedding.shape, device)
    if embedding.kind == "intrinsic":
        terms = radial_terms(kernel, grid)
        _check_room(intrinsic_sizes(terms, grid, embedding.shape), embedding, kernel)
        return intrinsic_table(terms, lattice, sizes, embedding.order, embedding.shape, device)
    if reflection_symmetric(kernel):
        lags = [torch.arange(m // 2 + 1) for m in sizes]
        return stationary_at(kernel, lattice, lags, device)[0]
    lags = []
    for m, wraps in zip(sizes, grid.periodic, strict=True):
        j = torch.arange(m)
        lags.append(j if wraps else torch.where(j <= m // 2, j, j - m))
    row, _ = stationary_at(kernel, lattice, lags, device)
    # the lag m/2 stands for both of its signs, which the corner never uses
    axes = list(range(-grid.ndim, 0))
    return (row + row.flip(axes).roll([1] * grid.ndim, axes)) / 2


def _check_room(least: tuple[int, ...] | None, embedding: Embedding, kernel: gpytorch.kernels.Kernel) -> None:
    if least is None or any(need > m for need, m in zip(least, embedding.sizes, strict=True)):
        raise EmbeddingError(
            f"The embedding {embedding} is too small for the kernel's present parameters, {kernel!r}: "
            + ("no size fits." if least is None else f"it needs {'x'.join(map(str, least))}. ")
            + " Build the covariance anew after changing the kernel.",
            embedding.sizes,
        )


def spectrum(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Eigenvalues of the circulant with the `table` ``values``, real, same layout."""
    axes = range(-len(sizes), 0)
    if tuple(values.shape[-len(sizes) :]) == tuple(sizes) and any(m > 2 for m in sizes):
        full: Tensor = torch.fft.fftn(values, dim=tuple(axes)).real
        return full
    for axis, m in zip(axes, sizes, strict=True):
        values = torch.fft.hfft(values, n=m, dim=axis).narrow(axis, 0, m // 2 + 1)
    return values


def unfold(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """A `table` or `spectrum` as ``(*batch, *sizes)``."""
    for axis, m in zip(range(-len(sizes), 0), sizes, strict=True):
        if values.shape[axis] != m:
            j = torch.arange(m, device=values.device)
            values = values.index_select(axis, torch.minimum(j, m - j))
    return values


def multiplicity(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """How often each entry of a `spectrum` occurs, shape of its last axes."""
    weights = torch.ones((), dtype=torch.float64, device=values.device)
    for axis, m in zip(range(-len(sizes), 0), sizes, strict=True):
        kept = values.shape[axis]
        one = torch.ones(kept, dtype=torch.float64, device=values.device)
        if kept != m:
            one[1 : (m + 1) // 2] = 2.0
        weights = weights[..., None] * one
    return weights


def judge(values: Tensor, embedding: Embedding, variance: Tensor) -> EmbeddingReport:
    """Whether the eigenvalues of an embedding are those of a covariance; ``variance`` is ``k(0)``,
    ``(*batch,)``.
    """
    lead = values.shape[: values.dim() - len(embedding.sizes)]
    flat = values.detach().reshape(lead.numel(), -1)
    weights = multiplicity(values, embedding.sizes).reshape(-1)
    smallest, largest = flat.amin(-1), flat.amax(-1)
    scale = torch.maximum(largest, variance.detach().to(flat).expand(lead).reshape(-1))
    negative = ((flat < -TOLERANCE * scale[:, None]) * weights).sum(-1)
    mass = (flat.clamp_max(0.0).abs() * weights).sum(-1) / (flat.abs() * weights).sum(-1)
    worst = int((smallest / scale).argmin())
    if not bool(torch.isfinite(flat).all()):
        return EmbeddingReport(embedding, flat.shape[-1], -math.inf, math.inf, 1.0)
    return EmbeddingReport(
        embedding,
        int(negative[worst]),
        float(smallest[worst]),
        float(largest[worst]),
        float(mass[worst]) if negative[worst] else 0.0,
    )


def embedding_report(
    kernel: gpytorch.kernels.Kernel, grid: Grid, sizes: Sequence[int] | None = None
) -> EmbeddingReport:
    r"""Eigenvalues of the plain circulant embedding of ``kernel`` on ``grid``.

    Args:
        kernel: a stationary kernel.
        grid: the grid, in the kernel's unit of length.
        sizes: sites of the embedding per axis, at least ``2(n-1)`` (``n`` on periodic axes); the smallest
            fast ones by default.

    Raises:
        ValueError: sizes that do not hold the grid.
    """
    extra = 0 if reflection_symmetric(kernel) else 1
    least = tuple(
        n if wraps else max(1, 2 * (n - 1) + extra)
        for n, wraps in zip(grid.shape, grid.periodic, strict=True)
    )
    chosen = plain_sizes(grid, 1.0, extra) if sizes is None else tuple(sizes)
    fits = len(chosen) == grid.ndim and all(
        m == need if wraps else m >= need for m, need, wraps in zip(chosen, least, grid.periodic, strict=True)
    )
    if not fits:
        raise ValueError(f"embedding_report: {grid} needs sizes of at least {least}, got {chosen}.")
    embedding = Embedding(chosen)
    with torch.no_grad():
        values = table(kernel, grid, embedding)
        origin = values.flatten(-grid.ndim)[..., 0]
        return judge(spectrum(values, chosen), embedding, origin)


def choose(
    kernel: gpytorch.kernels.Kernel,
    grid: Grid,
    *,
    option: str,
    clip: bool,
    max_growth: float,
    max_sites: int,
    device: torch.device | None = None,
) -> tuple[Embedding, list[EmbeddingReport]]:
    """The cheapest embedding that is a covariance for every member, and the reports of all that were tried.

    Raises:
        EmbeddingError: none is, and not ``clip``, which takes the plain one with least negative mass.
    """
    options, reason = candidates(kernel, grid, option, max_growth, max_sites)
    tried: list[EmbeddingReport] = []

    def examine(embedding: Embedding, step: tuple[int, ...] | None = None) -> EmbeddingReport:
        sizes = (
            embedding.sizes
            if step is None
            else tuple(m // c for m, c in zip(embedding.sizes, step, strict=True))
        )
        values = spectrum(table(kernel, grid, embedding, device, step), sizes)
        return judge(values, embedding, variance)

    with torch.no_grad():
        origin = stationary_at(kernel, grid, [torch.arange(1)] * grid.ndim, device)[0]
        variance = origin.reshape(origin.shape[: origin.dim() - grid.ndim])
        for embedding in options:
            # a covariance is one on every sublattice, which is cheap to see
            step = None if clip else _coarse(embedding, grid)
            if step is not None:
                report = examine(embedding, step)
                if report.smallest < -100 * TOLERANCE * max(report.largest, float(variance.max())):
                    tried.append(report)
                    continue
            tried.append(examine(embedding))
            if tried[-1].is_covariance:
                return embedding, tried
        if tried and not clip:
            last = max(tried, key=lambda r: math.prod(r.sizes))
            tried[tried.index(last)] = examine(last.embedding)
    plain = [r for r in tried if r.embedding.kind == "plain"]
    if clip and plain:
        return min(plain, key=lambda r: r.mass).embedding, tried
    raise refusal(kernel, grid, tried, reason, option)


def _coarse(embedding: Embedding, grid: Grid) -> tuple[int, ...] | None:
    """Steps that leave a sublattice of at most `COARSE` sites, where there are many more."""
    step = [1] * grid.ndim
    while math.prod(m // c for m, c in zip(embedding.sizes, step, strict=True)) > COARSE:
        left = [
            (m // c, axis)
            for axis, (m, c) in enumerate(zip(embedding.sizes, step, strict=True))
            if not grid.periodic[axis] and m // c > 4
        ]
        if not left:
            break
        m, axis = max(left)
        step[axis] *= next((p for p in (2, 3, 5) if m % p == 0), m)
    small = math.prod(m // c for m, c in zip(embedding.sizes, step, strict=True))
    return tuple(step) if 4 * small <= math.prod(embedding.sizes) else None


def refusal(
    kernel: gpytorch.kernels.Kernel, grid: Grid, tried: list[EmbeddingReport], reason: str, option: str
) -> EmbeddingError:
    """The error that says what was tried, what was found and what to do."""
    advice = (
        "Use a shorter length scale or a rougher kernel, a larger max_growth or max_sites, "
        'method="cosine" or (few sites) "dense"; or on_negative="clip", which reports the covariance error '
        "that it causes."
    )
    if not tried:
        because = f": {reason}" if reason else " within max_growth and max_sites"
        return EmbeddingError(f'embedding="{option}": no such embedding of {kernel!r}{because}. {advice}')
    last = max(tried, key=lambda r: math.prod(r.sizes))
    shown = ", ".join(str(r.embedding) for r in tried)
    return EmbeddingError(
        f"The circulant embedding of {kernel!r} on {grid} is not a covariance: at {last.embedding} its "
        f"smallest eigenvalue is {last.smallest:.6g} (largest {last.largest:.6g}), {last.negative} of "
        f"{math.prod(last.sizes)} are negative; tried {shown}"
        + (f" ({reason})" if reason else "")
        + f". {advice}",
        last.sizes,
        last.negative,
        last.smallest,
    )
