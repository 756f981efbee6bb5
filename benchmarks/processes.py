"""What processes of several variables, the denoiser and the samplers add to the work that is needed anyway.

(a) `perturb` of a `(256, 3, 32, 32)` batch with K = 3 variables, transitions automatic (exp(Ab) and its
integral for every time of the batch), against the analytic scalar VP perturbation of a state with the same
number of values, `(256, 9, 32, 32)`: at most 1.5 times. Times are new in every call.

(b) A denoiser's call and a sampler's step over the bare call of its network, a U-Net of a million parameters
or more: at most 5 %. The network's own time is taken inside of the same calls, so that a disturbance of the
machine meets both. The coefficients of a path depend on no state, and are made in its first call for a law;
what that adds to the first call is given beside.

Ratios are of medians over repeats that take turns, in one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from timing import medians
from torch import Tensor, nn

import spatialdiff as sd
from spatialdiff.kernels import Matern, Nugget
from spatialdiff.sampling import SOLVERS
from spatialdiff.sampling.base import Noise
from spatialdiff.sampling.grids import time_grid

PERTURB_TARGET, OVERHEAD_TARGET = 1.5, 0.05
GRID = (32, 32)


def noises(periodic: bool = True) -> dict[str, sd.Covariance]:
    """Γ on the grid, fixed as in training with parameters that are not trained."""
    kernel = (Matern(1.5, 5.0) + Nugget(0.01)).requires_grad_(False)
    grid = sd.Grid(GRID, periodic=periodic)
    return {"white": sd.white(grid), "Matérn": sd.covariance(kernel, grid)}


def perturbation(repeats: int) -> dict[str, float]:
    """(a): ratios by name."""
    batch, channels = 256, 3
    ratios = {}
    print(f"\n(a) perturb, ({batch}, {channels}, {GRID[0]}, {GRID[1]}), float32")
    print(f"{'':34s} {'ms':>8s} {'x VP':>6s}")
    for name, gamma in noises().items():
        x, wide = torch.randn(batch, channels, *GRID), torch.randn(batch, 3 * channels, *GRID)
        vp = sd.VP(gamma)
        processes = {
            "ALDA": sd.ALDA(gamma),
            "MALDA(3)": sd.MALDA(gamma, variables=3),
            "learned, K = 3": sd.LearnedDiffusion(gamma, variables=3).requires_grad_(False),
        }
        tasks: dict[str, Callable[[], object]] = {
            f"{name}, VP, 9 channels": lambda vp=vp, wide=wide: vp.perturb(wide, torch.rand(batch))  # type: ignore[misc]
        }
        for title, process in processes.items():
            tasks[f"{name}, {title}"] = lambda p=process, x=x: p.perturb(x, torch.rand(batch))  # type: ignore[misc]
        timings = medians(tasks, repeats)
        floor = next(iter(timings.values()))
        for title, seconds in timings.items():
            print(f"{title:34s} {1e3 * seconds:8.2f} {seconds / floor:6.2f}")
            ratios[title] = seconds / floor
    return ratios


class Timed(nn.Module):
    """A network that keeps what its calls take."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seconds = 0.0

    def forward(self, u: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        start = time.perf_counter()
        output: Tensor = self.network(u, t, **condition)
        self.seconds += time.perf_counter() - start
        return output


def overhead(network: Timed, task: Callable[[], object], repeats: int) -> float:
    """Median over repeats of (whole - network)/network."""
    shares = []
    for i in range(repeats + 1):
        network.seconds = 0.0
        start = time.perf_counter()
        task()
        whole = time.perf_counter() - start
        if i:  # the first is a warm-up
            shares.append(whole / network.seconds - 1.0)
    return statistics.median(shares)


def calls(repeats: int, batch: int, steps: int) -> dict[str, float]:
    """(b): overheads by name."""
    found = {}
    grid = sd.Grid(GRID, periodic=True)
    kernel = (Matern(1.5, 5.0) + Nugget(0.01)).requires_grad_(False)
    data = sd.covariance(Matern(2.5, 8.0).requires_grad_(False), grid)
    gamma = sd.covariance(kernel, grid)
    processes = {"VP": sd.VP(gamma), "CLD": sd.CLD(gamma), "MALDA(3)": sd.MALDA(gamma, variables=3)}
    print(f"\n(b) over the network alone, batch of {batch} on {GRID[0]} x {GRID[1]}")
    for title, process in processes.items():
        torch.manual_seed(0)
        unet = sd.networks.UNet(process.variables, grid, width=48, blocks=2, out_channels=1)
        network = Timed(unet).requires_grad_(False).eval()
        size = sum(p.numel() for p in unet.parameters())
        u, t = torch.randn(batch, process.variables, *GRID), torch.rand(batch)
        for preconditioning in ("none", "wiener"):
            denoiser = sd.Denoiser(
                network,
                process,
                preconditioning=preconditioning,
                data=data if preconditioning == "wiener" else None,
            )

            def call(denoiser: sd.Denoiser = denoiser, u: Tensor = u, t: Tensor = t) -> Tensor:
                with torch.no_grad():
                    return denoiser(u, t)  # type: ignore[no-any-return]

            name = f"{title}, {preconditioning}: one call ({size / 1e6:.1f} M)"
            found[name] = overhead(network, call, repeats)
            print(f"{name:44s} {found[name]:7.2%}", flush=True)
            for solver in (
                ("ancestral", "exponential", "gaussian") if preconditioning == "wiener" else ("ancestral",)
            ):

                def walk(denoiser: sd.Denoiser = denoiser, solver: str = solver) -> Tensor:
                    return sd.sample(denoiser, batch, steps=steps, solver=solver)

                name = f"{title}, {preconditioning}: {steps} steps, {solver}"
                found[name] = overhead(network, walk, max(3, repeats // 3))
                print(f"{name:44s} {found[name]:7.2%}", flush=True)
                if preconditioning == "wiener" and solver == "gaussian":
                    added = first_path(denoiser, steps)
                    print(f"{'':8s}its first path, once: {1e3 * added:.0f} ms", flush=True)
    return found


def first_path(denoiser: sd.Denoiser, steps: int) -> float:
    """Seconds for the coefficients of the Gaussian solver's path, as nothing is kept."""
    from spatialdiff.processes.flow import flow_steps

    method = SOLVERS["gaussian"](denoiser, Noise(denoiser.law, 1, 1), {})
    times = time_grid(denoiser.law, steps, "log_snr")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        flow_steps(denoiser.law, times, method.ratios())  # type: ignore[attr-defined]
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {options.repeats}")
    slowest = max(perturbation(options.repeats).values())
    largest = max(calls(options.repeats, options.batch, options.steps).values())
    print(f"\nperturb: at most {slowest:.2f} x VP (target {PERTURB_TARGET})")
    print(f"overhead: at most {largest:.1%} (target {OVERHEAD_TARGET:.0%})")


if __name__ == "__main__":
    main()
