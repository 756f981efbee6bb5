r"""Which structure ``method="auto"`` takes: the cheapest exact one, by measured costs.

The cost of a structure is its set-up, plus `FIELDS` draws, in nanoseconds on one core of the machine of
``benchmarks/choice.py``, which measures the constants below; only their ratios matter. Exact structures
come first, those whose set-up fits in `MEMORY` and `SETUP`; Vecchia's approximation is taken where none is
left, and says so in the report.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch

from spatialdiff.domains import Domain, Graph, Grid, MaskedGrid, Mesh, RectilinearGrid, Sphere
from spatialdiff.kernels import Matern, Nugget

# a Γ is made once and drawn from at every step of a training run
FIELDS = 10_000
MEMORY = 4e9
SETUP = 120e9  # two minutes

# nanoseconds on one core, benchmarks/choice.py
NORMAL = 4.0  # a normal number, float32
TRANSFORM = 1.0  # a real FFT, per value and binary digit of the size
PRODUCT = 0.04  # a multiplication and an addition in a matrix product, float32
CHOLESKY = 0.12  # the same in a Cholesky factorisation, float64
ENTRY = 30.0  # an entry of Γ from the kernel
ROW = 0.35  # Vecchia: m³ of a row
SPARSE = 4.0  # an entry of a sparse triangular solve
VECCHIA_NEIGHBOURS = 30


@dataclass(frozen=True)
class Candidate:
    """A structure that could represent Γ.

    Attributes:
        method: its name.
        exact: whether it is the covariance that was asked for.
        setup: nanoseconds once.
        draw: nanoseconds per field.
        memory: bytes.
        why: what it is, for the report.
    """

    method: str
    exact: bool
    setup: float
    draw: float
    memory: float
    why: str

    @property
    def cost(self) -> float:
        """Nanoseconds of the set-up and `FIELDS` draws."""
        return self.setup + FIELDS * self.draw


def _dense(n: int, why: str) -> Candidate:
    setup = ENTRY * n**2 + CHOLESKY * n**3 / 3
    return Candidate("dense", True, setup, NORMAL * n + PRODUCT * n**2, 24.0 * n**2, why)


def _transform(method: str, values: int, why: str) -> Candidate:
    draw = NORMAL * values + TRANSFORM * values * math.log2(max(2, values))
    return Candidate(method, True, ENTRY * values + 3 * draw, draw, 40.0 * values, why)


def _vecchia(n: int) -> Candidate:
    m = min(VECCHIA_NEIGHBOURS, n - 1)
    return Candidate(
        "vecchia",
        False,
        ROW * n * m**3 + 20_000.0 * n,
        n * (NORMAL + SPARSE * m),
        60.0 * n * m,
        f"each site given its {m} nearest neighbours before it",
    )


def _kronecker(kernel: gpytorch.kernels.Kernel, domain: Grid | RectilinearGrid) -> Candidate | None:
    from spatialdiff.covariance.separation import Separation

    if domain.ndim == 1:
        return None
    try:
        blocks = Separation(kernel, domain).blocks
    except ValueError:  # not separable: not a candidate
        return None
    sizes = [math.prod(domain.shape[axis] for axis in block.axes) for block in blocks]
    n = domain.size
    return Candidate(
        "kronecker",
        True,
        sum(ENTRY * s**2 + 10 * CHOLESKY * s**3 for s in sizes),
        NORMAL * n + PRODUCT * n * sum(sizes),
        sum(32.0 * s**2 for s in sizes) + 16 * n,
        f"separable into blocks of {' x '.join(map(str, sizes))} sites",
    )


def candidates(kernel: gpytorch.kernels.Kernel, domain: Domain) -> list[Candidate]:
    """Every structure that applies, with its cost.

    Raises:
        ValueError: none applies.
    """
    n = domain.size
    if isinstance(kernel, Nugget):
        return [Candidate("white", True, 0.0, NORMAL * n, 8.0, "a nugget alone is white noise")]
    if isinstance(domain, Graph):
        why = "the sparse precision of a graph"
        return [Candidate("graph", True, 1e3 * n, SPARSE * 30 * n, 500.0 * n, why)]
    if isinstance(domain, Mesh):
        return _on_mesh(kernel, domain)
    if isinstance(domain, Sphere):
        rows, columns = domain.shape
        draw = NORMAL * n + TRANSFORM * n * math.log2(columns) + PRODUCT * n * rows
        why = "isotropic: diagonal in the order of the longitudes, a factor of latitudes for each"
        setup = ENTRY * n * rows + CHOLESKY * n * rows**2
        return [Candidate("sphere", True, setup, draw, 12.0 * n * rows, why)]
    if isinstance(domain, Grid) and all(domain.periodic):
        if kernel.is_stationary:
            return [_transform("torus", n, "periodic on every axis: diagonal in the Fourier basis")]
        raise ValueError(
            f"covariance: {type(kernel).__name__} is not stationary, and the grid is periodic on every axis, "
            "where a kernel is summed over its images. Use a stationary one or a grid that is not periodic."
        )
    found = [_dense(n, "every pair of sites, Cholesky in float64")]
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    if isinstance(grid, Grid) and kernel.is_stationary:
        values = math.prod(
            size if wraps else 2 * size for size, wraps in zip(grid.shape, grid.periodic, strict=True)
        )
        cut = ", cut to the valid cells" if isinstance(domain, MaskedGrid) else ""
        why = f"stationary on a regular grid: a corner of a circulant matrix{cut}"
        found.append(_transform("circulant", values, why))
    if isinstance(domain, Grid | RectilinearGrid) and not any(domain.periodic):
        separable = _kronecker(kernel, domain)
        found += [separable] if separable else []
    if not any(domain.periodic):
        found.append(_vecchia(n))
    return found


def _on_mesh(kernel: gpytorch.kernels.Kernel, domain: Mesh) -> list[Candidate]:
    n = domain.size
    if isinstance(kernel, Matern) and kernel.lengthscale.shape[-1] == 1:
        fill = n * math.log2(max(2, n))
        why = "the Matérn equation on the mesh by finite elements, which has a free boundary"
        return [Candidate("spde", False, 1e3 * fill, SPARSE * 10 * fill, 100 * fill, why)]
    return [_dense(n, "every pair of vertices, Cholesky in float64"), _vecchia(n)]


def choose(kernel: gpytorch.kernels.Kernel, domain: Domain) -> tuple[str, str]:
    """The method for ``"auto"``, and why."""
    found = candidates(kernel, domain)
    within = [c for c in found if c.exact and c.memory <= MEMORY and c.setup <= SETUP]
    pool = within or [c for c in found if not c.exact] or found
    best = min(pool, key=lambda c: c.cost)
    reason = f"{best.why}; about {_seconds(best.setup)} once and {_seconds(best.draw)} per field"
    others = [f"{c.method} {_seconds(c.setup)} and {_seconds(c.draw)}" for c in found if c is not best]
    if others:
        reason += f" (against {', '.join(others)})"
    if not best.exact and any(c.exact for c in found):
        reason += "; the exact ones are beyond the limits of memory and time, name one to have it anyway"
    return best.method, reason


def _seconds(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.2g} {unit}"
    return f"{nanoseconds:.2g} ns"
