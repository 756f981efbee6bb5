"""What coloured noise costs.

(a) A `(128, 3, 32, 32)` batch against `torch.randn` of that shape, for every structure, and as a share of a
training step of the default U-Net. (b) One 1024 x 1024 non-periodic Matérn field against half of one
`randn` and complex FFT of its embedding (which gives two fields), and against GSTools for the same field.
(c) The forms of the cosine transform, which set `MATRIX_LIMIT`, and dense against circulant, which set
`DENSE_SITES`.

Times are medians over repeats that take turns, so that a disturbance of the machine meets all of them alike.
Factors are cached, as they are in training with parameters that are not trained; set-up is timed apart.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from timing import medians

import spatialdiff as sd
from spatialdiff.covariance.numerics.dct import cosine_matrix, fourier_dct
from spatialdiff.kernels import Matern, Nugget

Timings = dict[str, float]


def table(title: str, timings: Timings, floor: str) -> None:
    print(f"\n{title}")
    print(f"{'':44s} {'ms':>9s} {'x floor':>8s}")
    for name, seconds in timings.items():
        print(f"{name:44s} {1e3 * seconds:9.3f} {seconds / timings[floor]:8.2f}")


def batch(repeats: int) -> None:
    shape, plain, torus = (128, 3, 32, 32), sd.Grid((32, 32)), sd.Grid((32, 32), periodic=True)
    kernel = (Matern(1.5, 5.0) + Nugget(0.01)).requires_grad_(False)
    mixed = [[1.0, 0.4, 0.1], [0.4, 1.0, 0.2], [0.1, 0.2, 1.0]]
    structures = {
        "white": sd.white(torus),
        "torus": sd.covariance(kernel, torus),
        "torus, channel matrix": sd.covariance(kernel, torus, channels=mixed),
        "cosine": sd.covariance(kernel, plain, method="cosine"),
        "dense": sd.covariance(kernel, plain, method="dense"),
        "reflection": sd.covariance(kernel, plain, method="reflection"),
        "circulant": sd.covariance(kernel, plain, method="circulant"),
    }
    tasks: dict[str, Callable[[], object]] = {"torch.randn": lambda: torch.randn(shape)}
    for name, gamma in structures.items():
        lead = shape[:1] if gamma.channels else shape[:2]
        tasks[name] = lambda gamma=gamma, lead=lead: gamma.sample(lead)  # type: ignore[misc]
    timings = medians(tasks, repeats)
    table(f"(a) coloured batch {shape}, float32", timings, "torch.randn")
    step = training_step(shape)
    taken = sd.covariance(kernel, plain).method
    share = timings[taken] / step
    print(f"a training step of the default U-Net on that batch takes {step:.2f} s;")
    print(f"{taken}, which auto takes, {share:.2%} of that")


def training_step(shape: tuple[int, ...]) -> float:
    """Seconds of one forward and backward pass and update of the default U-Net, the smaller of two."""
    network = sd.networks.UNet(shape[1], sd.Grid(shape[2:]))
    optimiser = torch.optim.Adam(network.parameters())
    seconds = []
    for _ in range(2):
        x, t = torch.randn(shape), torch.rand(shape[0])
        start = time.perf_counter()
        optimiser.zero_grad()
        (network(x, t) - x).square().mean().backward()
        optimiser.step()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def field(repeats: int, peers: bool) -> None:
    kernel, grid = Matern(1.5, 30.0).requires_grad_(False), sd.Grid((1024, 1024))
    start = time.perf_counter()
    gamma = sd.covariance(kernel, grid, method="circulant")
    gamma.sample()
    setup = time.perf_counter() - start
    cosine = sd.covariance(kernel, grid, method="cosine")
    embedding = gamma.factor_shape

    def real() -> object:
        return torch.fft.rfftn(torch.randn(embedding))

    def two() -> object:
        return torch.fft.fftn(torch.randn(embedding, dtype=torch.complex64))

    tasks: dict[str, Callable[[], object]] = {
        f"randn + complex FFT of {tuple(embedding)}": two,
        f"randn + real FFT of {tuple(embedding)}": real,
        "circulant (exact)": lambda: gamma.sample(),
        "cosine (closest in that basis)": lambda: cosine.sample(),
    }
    timings = medians(tasks, repeats)
    timings["circulant, first field with set-up"] = setup
    if peers:
        timings |= gstools(grid, 30.0)
    floor = "half of randn + complex FFT"
    timings = {floor: timings[next(iter(tasks))] / 2, **timings}
    table("(b) one 1024 x 1024 non-periodic Matérn 3/2 field, float32", timings, floor)


def gstools(grid: sd.Grid, lengthscale: float) -> Timings:
    """The same covariance: GSTools' Matérn has ``√ν h/ℓ`` inside where ours has ``√(2ν) h/ℓ``."""
    try:
        import gstools as gs
    except ImportError:
        print("\nGSTools is not installed (pip install gstools): its times are left out")
        return {}
    axes = [range(n) for n in grid.shape]
    timings: Timings = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = gs.Matern(dim=2, var=1.0, len_scale=lengthscale / 2**0.5, nu=1.5)
        randomisation = gs.SRF(model, mode_no=1000, seed=1)
        fourier = gs.SRF(
            model, generator="Fourier", period=[2.0 * n for n in grid.shape], mode_no=[32, 32], seed=1
        )
        for name, generator in {
            "GSTools randomisation, 1000 modes": randomisation,
            "GSTools Fourier, 32 x 32 modes": fourier,
        }.items():
            start = time.perf_counter()
            generator.structured(axes)
            timings[name] = time.perf_counter() - start
    return timings


def forms(repeats: int) -> None:
    for n in (32, 64, 128, 256, 512):
        x = torch.randn(64, n, n)
        matrix = cosine_matrix(n, x.dtype, x.device)
        tasks: dict[str, Callable[[], object]] = {
            "matrix product": lambda x=x, m=matrix: m @ x @ m.T,  # type: ignore[misc]
            "FFT": lambda x=x: fourier_dct(fourier_dct(x).mT).mT,  # type: ignore[misc]
        }
        table(f"(c) 2-D cosine transform of 64 fields {n} x {n}", medians(tasks, repeats), "matrix product")
    kernel = (Matern(1.5, 4.0) + Nugget(0.01)).requires_grad_(False)
    for n in (16, 24, 32, 48, 64):
        structures = {m: sd.covariance(kernel, sd.Grid((n, n)), method=m) for m in ("dense", "circulant")}
        for count in (1, 128):
            tasks = {
                name: lambda g=g, count=count: g.sample((count,))  # type: ignore[misc]
                for name, g in structures.items()
            }
            table(f"(c) {count} fields {n} x {n}", medians(tasks, repeats), "dense")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--forms", action="store_true", help="also the forms of (c)")
    parser.add_argument("--no-peers", action="store_true", help="leave GSTools out")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.repeats}")
    batch(options.repeats)
    field(options.repeats, not options.no_peers)
    if options.forms:
        forms(options.repeats)


if __name__ == "__main__":
    main()
