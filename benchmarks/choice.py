"""What ``method="auto"`` decides by: the constants of its cost model, and how well it chooses.

(a) The constants of `spatialdiff.covariance.costs`, measured on the structures themselves, beside the values
in the module. (b) For a set of domains: set-up and draw of every applicable structure, predicted and
measured, the one that is taken, and its regret: its measured cost (set-up and 10,000 draws) over that of the
cheapest one that is as exact.

Times are those of the processor, one thread, the least of some repeats, so that other processes matter
little; draws are in batches of 64 fields, float32.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from gpytorch.kernels import Kernel

import spatialdiff as sd
from spatialdiff.covariance import choice, costs
from spatialdiff.covariance.meshes.spde import SPDECovariance
from spatialdiff.domains import Domain, RectilinearGrid
from spatialdiff.kernels import Gaussian, Matern, Nugget

BATCH = 64
# a structure whose set-up is longer is not measured where it is predicted to cost many times the one taken
LONG, MANY = 3e9, 5.0
# values of a batch, above which it is drawn in a smaller one
VALUES = 2**25


def matern(lengthscale: float, nu: float = 1.5) -> Matern:
    return Matern(nu, lengthscale).requires_grad_(False)


def least(task: Callable[[], object], repeats: int) -> float:
    """Least nanoseconds of ``task``."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        task()
        times.append(time.process_time() - start)
    return 1e9 * min(times)


def draw(gamma: sd.Covariance, repeats: int) -> float:
    """Nanoseconds per field."""
    count = max(1, min(BATCH, VALUES // gamma.factor_shape.numel()))
    return least(lambda: gamma.sample((count,)), repeats) / count


def uniform(n: int) -> sd.Points:
    return sd.Points(torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


# ---- (a) constants
def call(repeats: int) -> dict[str, float]:
    """Structures of next to no sites."""
    stationary, plain = matern(2.0), sd.Grid((3, 3))
    product = Gaussian(0.5).requires_grad_(False)
    tiny: dict[str, tuple[Kernel, Domain]] = {
        "white": (Nugget(1.0).requires_grad_(False), plain),
        "dense": (stationary, plain),
        "torus": (matern(0.5), sd.Grid((3, 3), periodic=True)),
        "circulant": (stationary, plain),
        "reflection": (stationary, sd.Grid((4, 4))),
        "kronecker": (product, plain),
        "vecchia": (stationary, plain),
        "sphere": (matern(0.5), sd.Sphere((3, 4))),
        "spde": (matern(2.0, 1.0), sd.Mesh.from_grid(plain)),
    }
    found, once = {}, []
    measure(["vecchia"], stationary, uniform(50), 1)  # compiles
    for method, (kernel, domain) in tiny.items():
        ((setup, per_field),) = measure([method], kernel, domain, 10 * repeats).values()
        found[f"CALL[{method}]"] = per_field
        once.append(setup)
    white = torch.empty(BATCH, 64, 64)
    return found | {
        "ONCE": sum(once) / len(once),
        "NORMAL": least(lambda: white.normal_(), repeats) / white.numel(),
    }


def transforms(known: dict[str, float], grids: list[sd.Grid], repeats: int) -> dict[str, float]:
    """A multiplication of fields by one field; and what of a draw by circulant embedding is left."""
    fields, one = torch.randn(BATCH, 64, 64), torch.randn(64, 64)
    each = least(lambda: fields * one, repeats) / fields.numel()
    rest = []
    for grid in grids:
        gamma = sd.covariance(matern(2.0), grid, method="circulant")
        gamma.sample()
        m = gamma.factor_shape.numel()
        per_value = (draw(gamma, repeats) - known["CALL[circulant]"]) / m
        rest.append((per_value - known["NORMAL"] - each) / math.log2(m))
    return {"PASS": each, "TRANSFORM": sum(rest) / len(rest)}


def first(task: Callable[[], object]) -> float:
    """What the first time takes more than the second."""
    return least(task, 1) - least(task, 1)


def matrices(known: dict[str, float], side: int, repeats: int) -> dict[str, float]:
    n, small = side**2, side**2 // 4
    gamma, x = sd.covariance(matern(4.0), sd.Grid((side, side)), method="dense"), torch.randn(n)
    other = sd.covariance(matern(0.1, 0.8), uniform(small), method="dense")
    return {
        "ENTRY": first(lambda: gamma.matmul(x.reshape(side, side))) / n**2,
        "CHOLESKY": 3 * first(gamma.sample) / n**3,
        "PRODUCT": (draw(gamma, repeats) - known["CALL[dense]"] - known["NORMAL"] * n) / n**2,
        "BESSEL": first(lambda: other.matmul(x[:small])) / small**2,
    }


def blocks(known: dict[str, float], n: int) -> dict[str, float]:
    gamma = sd.covariance(
        (Gaussian(2.0) + Nugget(0.1)).requires_grad_(False), sd.Grid((n, n)), method="kronecker"
    )
    once = first(gamma.sample)
    return {"EIGEN": (once - 2 * known["ENTRY"] * n**2) / (2 * n**3)}


def vecchia(known: dict[str, float], n: int, repeats: int) -> dict[str, float]:
    m = costs.VECCHIA_NEIGHBOURS
    start = time.process_time()
    gamma = sd.covariance(matern(0.1), uniform(n), method="vecchia")
    built = 1e9 * (time.process_time() - start)
    once = first(gamma.sample)
    per_site = (draw(gamma, repeats) - known["CALL[vecchia]"]) / n
    return {"SITE": built / n, "ROW": once / (n * m**3), "SPARSE": (per_site - known["NORMAL"]) / m}


def meshes(known: dict[str, float], side: int, repeats: int) -> dict[str, float]:
    """α = 2: one factor, one solve."""
    mesh = sd.Mesh.from_grid(sd.Grid((side, side)))
    n = mesh.size
    start = time.process_time()
    gamma = sd.covariance(matern(5.0, 1.0), mesh, method="spde")
    built = 1e9 * (time.process_time() - start)
    once = first(gamma.sample)
    entries = fill(gamma)
    per_field = draw(gamma, repeats) - known["CALL[spde]"] - known["NORMAL"] * n
    cube = sd.Mesh.from_grid(sd.Grid((round(side ** (2 / 3)),) * 3))
    solid = sd.covariance(matern(4.0, 0.5), cube, method="spde")
    return {
        "VERTEX": built / n,
        "FACTOR": once * n / entries**2,
        "SOLVE": per_field / entries,
        "FILL[2]": entries / (n * math.log2(n)),
        "FILL[3]": fill(solid) / cube.size ** (4 / 3),
    }


def fill(gamma: sd.Covariance) -> float:
    """Entries of the sparse factors."""
    assert isinstance(gamma, SPDECovariance)
    return float(gamma.operator.factor(gamma._factor("shift").numpy()).nnz)


def constants(quick: bool, repeats: int) -> None:
    grids = [sd.Grid((24, 24)), sd.Grid(1000)]
    if not quick:
        grids += [
            sd.Grid((32, 32)),
            sd.Grid((64, 64)),
            sd.Grid((256, 256)),
            sd.Grid(10_000),
            sd.Grid((16,) * 3),
        ]
    known = call(repeats)
    known |= transforms(known, grids, repeats)
    known |= matrices(known, 20 if quick else 45, repeats)
    known |= blocks(known, 48 if quick else 256)
    known |= vecchia(known, 500 if quick else 10_000, repeats)
    known |= meshes(known, 20 if quick else 100, repeats)
    print("(a) constants, nanoseconds (FILL: a number)")
    print(f"{'':16s} {'measured':>10s} {'in module':>10s}")
    for name, value in known.items():
        base, _, index = name.rstrip("]").partition("[")
        held = getattr(costs, base)
        if index:
            held = held[int(index) if index.isdigit() else index]
        print(f"{name:16s} {value:10.4g} {held:10.4g}")


# ---- (b) choices
def half(n: int) -> Domain:
    """Every cell of one half of a grid, with an uneven coast."""
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    return sd.Grid((n, n)).masked(x + 3 * torch.sin(y / 3.0) < n / 2)


def domains(quick: bool) -> dict[str, tuple[Callable[[], Domain], Kernel]]:
    plain, product = matern(4.0), (Gaussian(3.0) + Nugget(0.1)).requires_grad_(False)
    sides = (8, 16) if quick else (8, 16, 24, 32, 48, 64, 256)
    cases: dict[str, tuple[Callable[[], Domain], Kernel]] = {}
    for n in sides:
        cases[f"grid {n} x {n}"] = (lambda n=n: sd.Grid((n, n)), plain)  # type: ignore[misc]
    for n in (100, 1000) if quick else (100, 1000, 10_000):
        cases[f"line {n}"] = (lambda n=n: sd.Grid(n), plain)  # type: ignore[misc]
    for n in sides[1::2]:
        cases[f"torus {n} x {n}"] = (lambda n=n: sd.Grid((n, n), periodic=True), plain)  # type: ignore[misc]
        cases[f"cylinder {n} x {n}"] = (lambda n=n: sd.Grid((n, n), periodic=(True, False)), plain)  # type: ignore[misc]
        cases[f"grid {n} x {n}, Gaussian + nugget"] = (lambda n=n: sd.Grid((n, n)), product)  # type: ignore[misc]
    cases["rectilinear 16 x 20"] = (lambda: RectilinearGrid([range(16), [i**1.1 for i in range(20)]]), plain)
    cases["rectilinear 60 x 60, Gaussian + nugget"] = (
        lambda: RectilinearGrid([range(60), [i**1.1 for i in range(60)]]),
        product,
    )
    cases["grid 24 x 24, Matérn 0.8"] = (lambda: sd.Grid((24, 24)), matern(4.0, 0.8))
    for n in (16,) if quick else (16, 32, 64, 256):
        cases[f"masked {n} x {n}, half"] = (lambda n=n: half(n), plain)  # type: ignore[misc]
    for n in (500,) if quick else (500, 2000, 5000, 20_000):
        cases[f"points {n}"] = (lambda n=n: uniform(n), matern(0.1))  # type: ignore[misc]
    side = 10 if quick else 70
    mesh = sd.Mesh.from_grid(sd.Grid((side, side)))
    for nu in (1.0, 2.0, 1.5):
        cases[f"mesh {side} x {side}, Matérn {nu:g}"] = (lambda: mesh, matern(4.0, nu))
    cases["sphere"] = (lambda: sd.Sphere((9, 18) if quick else (45, 90)), matern(0.5))
    if not quick:
        cases["grid 16 x 16 x 16"] = (lambda: sd.Grid((16, 16, 16)), plain)
        cases["grid 24 x 24, Matérn 3/2, long"] = (lambda: sd.Grid((24, 24)), matern(20.0))
        cases["grid 64 x 64, Matérn 5/2, long"] = (lambda: sd.Grid((64, 64)), matern(40.0, 2.5))
    return cases


def built(method: str, kernel: Kernel, domain: Domain) -> tuple[float, sd.Covariance]:
    """Nanoseconds of the set-up and one field, the less of two where that is quick; and Γ."""

    def build() -> sd.Covariance:
        gamma = sd.covariance(kernel, domain, method=method)
        gamma.sample()
        return gamma

    start = time.process_time()
    gamma = build()
    once = 1e9 * (time.process_time() - start)
    return (min(once, least(build, 2)) if once < 1e9 else once), gamma


def measure(
    methods: Sequence[str], kernel: Kernel, domain: Domain, repeats: int
) -> dict[str, tuple[float, float]]:
    """Nanoseconds of the set-up, and per field, of structures that take turns."""
    made = {method: built(method, kernel, domain) for method in methods}
    fields = dict.fromkeys(methods, math.inf)
    for _ in range(repeats):
        for method, (_, gamma) in made.items():
            fields[method] = min(fields[method], draw(gamma, 1))
    return {method: (max(0.0, made[method][0] - fields[method]), fields[method]) for method in methods}


def choices(quick: bool, repeats: int) -> None:
    print("\n(b) choices; * is taken, µs per field and ms once: predicted, measured")
    print(f"{'':40s} {'':12s} {'µs':>9s} {'µs':>9s} {'ms':>9s} {'ms':>9s}  regret")
    measure(["vecchia"], matern(0.1), uniform(50), 1)  # compiles
    worst = 1.0
    for name, (make, kernel) in domains(quick).items():
        domain = make()
        ranked = choice.ranking(choice.candidates(kernel, domain))
        taken = ranked[0]
        short = [c for c in ranked if c.fits and not (c.setup > LONG and c.cost > MANY * taken.cost)]
        measured = measure([c.method for c in short], kernel, domain, repeats)
        total = {method: setup + costs.FIELDS * field for method, (setup, field) in measured.items()}
        regret = total[taken.method] / min(total[c.method] for c in short if c.exact == taken.exact)
        worst = max(worst, regret)
        for c in sorted(ranked, key=lambda c: c.method):
            setup, field = ("-", "-")
            if c.method in measured:
                setup, field = (f"{measured[c.method][k] / unit:.4g}" for k, unit in ((0, 1e6), (1, 1e3)))
            line = f"{name:40s} {c.method + (' *' if c is taken else ''):12s} {c.draw / 1e3:9.4g} {field:>9s}"
            line += f" {c.setup / 1e6:9.4g} {setup:>9s}" + (f" {regret:7.2f}" if c is taken else "")
            print(line, flush=True)
    print(f"\nlargest regret {worst:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small domains only")
    parser.add_argument("--part", choices=("a", "b"), help="one part")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    repeats = 3 if arguments.quick else arguments.repeats
    if arguments.part != "b":
        constants(arguments.quick, repeats)
    if arguments.part != "a":
        choices(arguments.quick, repeats)


if __name__ == "__main__":
    main()
