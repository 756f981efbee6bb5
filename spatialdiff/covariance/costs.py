r"""What a structure costs: its set-up and `FIELDS` draws, in nanoseconds on one core.

``benchmarks/choice.py`` measures the constants below; their ratios decide which structure is taken, see
`spatialdiff.covariance.choice`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import gpytorch

from spatialdiff.domains import Graph, Grid, Mesh, RectilinearGrid, Sphere
from spatialdiff.kernels import Matern, Nugget, terms

# a Γ is made once and drawn from at every step of a training run
FIELDS = 10_000
MEMORY = 4e9  # bytes
SETUP = 120e9  # two minutes

# nanoseconds on one core, benchmarks/choice.py
ONCE = 2e6  # making Γ and its first field, however small
# a field of a batch of 64, however small
CALL = {
    "white": 600.0,
    "dense": 1200.0,
    "torus": 1700.0,
    "circulant": 2500.0,
    "reflection": 2800.0,
    "kronecker": 4300.0,
    "vecchia": 2800.0,
    "sphere": 4700.0,
    "spde": 3400.0,
}
NORMAL = 3.4  # a normal number, float32
PASS = 0.13  # reading and writing a value, float32
TRANSFORM = 0.165  # a real FFT, per value and binary digit of the size
PRODUCT = 0.026  # a multiplication and an addition in a matrix product, float32
CHOLESKY = 0.04  # the same in a Cholesky factorisation, float64
EIGEN = 0.5  # an eigendecomposition, float64, per cube of the size
ENTRY = 50.0  # an entry of Γ, float64, from a kernel in closed form
GATHER = 10.0  # an entry of Γ from a table of lags, float64
BESSEL = 75.0  # from a Matérn kernel of another order than 1/2, 3/2, 5/2, …, by its table
SITE = 13_000.0  # order and neighbours of a site, for Vecchia
ROW = 0.22  # m³ of a row of it
SPARSE = 0.8  # an entry of its triangular solve
VERTEX = 3_000.0  # a vertex of a mesh, before any factorisation
FACTOR = 0.8  # an operation in a sparse factorisation
SOLVE = 1.0  # an entry of a sparse factor, in a solve

IMAGES = 5.0  # of a kernel that is summed over the periods of an axis
VECCHIA_NEIGHBOURS = 30
# of the rational function for a fractional power, 8 to 22 of them
POLES = 8
# entries of a sparse factor: per vertex of segments, n log₂ n of triangles, n^(4/3) of tetrahedra
FILL = {1: 2.0, 2: 2.8, 3: 11.0}
# the polynomials of an intrinsic embedding are solved for by Cholesky up to so many sites, beyond with FFTs
BLOCK_SITES, SOLVED = 4096, 400.0
# sites of the smallest embedding up to which the one that will be used is looked for beforehand
KNOWN = 2**16


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

    @property
    def fits(self) -> bool:
        """Whether memory and set-up are within the limits."""
        return self.memory <= MEMORY and self.setup <= SETUP


def entry(kernel: gpytorch.kernels.Kernel) -> float:
    """Nanoseconds of an entry of Γ: `ENTRY`, or `BESSEL`, of every elementary kernel."""
    parts = {id(part): part for term in terms(kernel) for part in term if not isinstance(part, Nugget)}
    return sum((ENTRY if _is_closed(part) else BESSEL for part in parts.values()), start=0.0) or ENTRY


def _is_closed(kernel: gpytorch.kernels.Kernel) -> bool:
    if not isinstance(kernel, Matern):
        return True
    return isinstance(kernel.nu, float) and (kernel.nu + 0.5).is_integer()


# ---- structures
def white(n: int) -> Candidate:
    """``s² I``."""
    return Candidate("white", True, 0.0, CALL["white"] + NORMAL * n, 8.0, "a nugget alone is white noise")


def dense(n: int, each: float, sites: str = "sites") -> Candidate:
    """A product with ``L``, after its factorisation."""
    setup = ONCE + each * n**2 + CHOLESKY * n**3 / 3
    why = f"every pair of {sites}, Cholesky in float64"
    return Candidate("dense", True, setup, CALL["dense"] + NORMAL * n + PRODUCT * n**2, 24.0 * n**2, why)


def vecchia(n: int, each: float) -> Candidate:
    """A triangular solve with ``W``, after its rows."""
    m = min(VECCHIA_NEIGHBOURS, n - 1)
    return Candidate(
        "vecchia",
        m == n - 1,
        ONCE + n * (SITE + ROW * m**3 + (each - ENTRY) * m**2 / 2),
        CALL["vecchia"] + n * (NORMAL + SPARSE * m),
        60.0 * n * m,
        f"each site given its {m} nearest neighbours before it",
    )


def _fourier(values: int) -> float:
    """A real FFT."""
    return values * (PASS + TRANSFORM * math.log2(max(2, values)))


def torus(kernel: gpytorch.kernels.Kernel, grid: Grid, cut: str) -> Candidate:
    """There and back by FFT."""
    n = grid.size
    setup = ONCE + IMAGES**grid.ndim * entry(kernel) * n + 4 * _fourier(n)
    draw = CALL["torus"] + NORMAL * n + 2 * _fourier(n)
    why = f"periodic on every axis: diagonal in the Fourier basis{cut}"
    return Candidate("torus", True, setup, draw, 40.0 * n, why)


def circulant(kernel: gpytorch.kernels.Kernel, grid: Grid, cut: str) -> Candidate:
    """An FFT of the embedding."""
    sizes, modes = _embedding(kernel, grid)
    values, n = math.prod(sizes), grid.size
    each = entry(kernel) * IMAGES ** sum(grid.periodic)
    draw = CALL["circulant"] + NORMAL * values + _fourier(values) + 4 * PRODUCT * modes * n
    # the table is as large as the grid where the kernel is symmetric, and made a second time for the factor
    setup = ONCE + 2 * each * math.prod(m // 2 + 1 for m in sizes) + 8 * _fourier(values)
    if modes and n <= BLOCK_SITES:
        setup += CHOLESKY * n**3 / (3 * 4**grid.ndim)
    elif modes:
        setup += SOLVED * modes * _fourier(values)
    shape = " x ".join(map(str, sizes))
    why = f"stationary on a regular grid: a corner of a circulant matrix of {shape}{cut}"
    return Candidate("circulant", True, setup, draw, 40.0 * values, why)


def _embedding(kernel: gpytorch.kernels.Kernel, grid: Grid) -> tuple[tuple[int, ...], int]:
    """Sites per axis, and how many polynomials: of the embedding that will be used where the smallest one has
    at most `KNOWN` sites, else of the smallest one.
    """
    from spatialdiff.covariance.grids.embedding import EmbeddingError, plain_sizes
    from spatialdiff.covariance.grids.embedding import choose as embed
    from spatialdiff.covariance.periodic import reflection_symmetric

    smallest = plain_sizes(grid, 1.0, 0 if reflection_symmetric(kernel) else 1)
    if math.prod(smallest) > KNOWN:
        return smallest, 0
    try:
        plan, _ = embed(kernel, grid, option="auto", clip=False, max_growth=8.0, max_sites=2**26)
    except EmbeddingError:
        # building it meets the same error, and `choose` then says so
        return smallest, 0
    return plan.sizes, math.comb(grid.ndim + 2 * plan.order, grid.ndim) if plan.kind == "intrinsic" else 0


def reflection(kernel: gpytorch.kernels.Kernel, grid: Grid) -> Candidate:
    """Products with the factors of the blocks of even and odd parts."""
    from spatialdiff.covariance.periodic import reflection_symmetric

    parts = 2**grid.ndim if reflection_symmetric(kernel) else 2
    n, each = grid.size, entry(kernel) * IMAGES ** sum(grid.periodic)
    return Candidate(
        "reflection",
        True,
        ONCE + each * n + GATHER * n**2 / parts + CHOLESKY * n**3 / (3 * parts**2),
        CALL["reflection"] + n * (NORMAL + 2 * grid.ndim * PASS) + PRODUCT * n**2 / parts,
        24.0 * n**2 / parts,
        f"every pair of sites in {parts} blocks that reflections of the grid separate, Cholesky in float64",
    )


def kronecker(kernel: gpytorch.kernels.Kernel, domain: Grid | RectilinearGrid) -> Candidate | None:
    """None where the kernel is not separable."""
    from spatialdiff.covariance.grids.separation import Separation

    if domain.ndim == 1:
        return None
    try:
        separation = Separation(kernel, domain)
    except ValueError:
        return None
    sizes = [math.prod(domain.shape[axis] for axis in block.axes) for block in separation.blocks]
    n, each = domain.size, entry(kernel)
    nugget = ", plus a nugget" if separation.has_nugget else ""
    return Candidate(
        "kronecker",
        True,
        ONCE + sum(each * s**2 + EIGEN * s**3 for s in sizes) + 4 * PASS * n,
        # to the modes of the blocks and back
        CALL["kronecker"] + n * (NORMAL + PASS + 2 * PRODUCT * sum(sizes)),
        sum(40.0 * s**2 for s in sizes) + 24.0 * n,
        f"separable into blocks of {' x '.join(map(str, sizes))} sites{nugget}",
    )


def sphere(kernel: gpytorch.kernels.Kernel, domain: Sphere) -> Candidate:
    """FFTs along longitude and a product with half the latitudes, for every order and parity."""
    rows, columns = domain.shape
    n = rows * columns
    return Candidate(
        "sphere",
        True,
        ONCE + entry(kernel) * n * rows / 8 + CHOLESKY * n * rows**2 / 12,
        # of the real and the imaginary parts
        CALL["sphere"]
        + NORMAL * n
        + 2 * n * (10 * PASS + TRANSFORM * math.log2(columns))
        + 2 * PRODUCT * n * rows,
        5.0 * n * rows,
        "isotropic: diagonal in the order of the longitudes, a factor of latitudes for each",
    )


def _sparse(method: str, n: int, entries: float, power: float, exact: bool, why: str) -> Candidate:
    """``A^{-α/2}`` by solves with sparse factors of ``entries``."""
    integer = float(power).is_integer()
    solves = math.ceil(power / 2) if integer else math.floor(power / 2) + POLES
    factors = 1 if integer else solves
    return Candidate(
        method,
        exact,
        ONCE + VERTEX * n + factors * FACTOR * entries**2 / n,
        CALL["spde"] + NORMAL * n + solves * SOLVE * entries,
        32.0 * factors * entries + 400.0 * n,
        f"{why}; {solves} solves with {factors} sparse factor{'s' if factors > 1 else ''}",
    )


def spde(kernel: Matern, domain: Mesh) -> Candidate:
    """Solves on a mesh."""
    n, d = domain.size, domain.element_dimension
    power = float(kernel.nu) + d / 2
    growth = {1: 1.0, 2: math.log2(max(2, n)), 3: n ** (1 / 3)}[d]
    why = "the Matérn equation on the mesh by finite elements, which has a free boundary"
    return _sparse("spde", n, FILL[d] * n * growth, power, False, why)


def graph(kernel: gpytorch.kernels.Kernel, domain: Graph) -> Candidate:
    """Solves on a graph."""
    n, edges = domain.size, len(domain.edges)
    # as if it were planar
    entries = (n + edges) / 4 * FILL[2] * math.log2(max(2, n))
    power = float(kernel.nu) if isinstance(kernel, Matern) and isinstance(kernel.nu, float) else 1.0
    return _sparse("graph", n, entries, power, power.is_integer(), "the sparse precision of a graph")
