r"""Time grids: `steps` intervals from a law's start to its end, in float64.

    "uniform"   t_i linear in t
    "log_snr"   log(α²/σ²) linear from the start to the value at σ/α = σ_min
    "edm"       (σ/α)^{1/7} linear from the start to σ_min        (Karras et al. 2022, arXiv 2206.00364, eq.
    5)

The last two are laid out as if they ended at `σ/α = σ_min`; their last time is then the end itself, where `σ
= 0`. A start with no signal (`σ/α` infinite: `Cosine`, `Rectified`, bridges) is kept as it is, and the rest
laid out from `σ_max` on. The
noise levels are those of Γ: with Γ of unit variance, standard deviations at one site.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.processes import Law

GRIDS = ("log_snr", "uniform", "edm")
RHO = 7.0


def time_grid(
    law: Law,
    steps: int,
    grid: str | Tensor = "log_snr",
    *,
    start: float | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Tensor:
    """Times `(steps + 1,)` from `start` (the law's own by default) to the law's end, strictly monotone,
    float64.

    Args:
        law: the law of the state given the data.
        steps: number of intervals, at least 1; ignored where `grid` is a tensor.
        grid: `"log_snr"`, `"uniform"`, `"edm"`, or the times themselves.
        start: the first time, e.g. `law.sde_start_time`.
        sigma_min: noise level `σ/α` at which the last network call is aimed.
        sigma_max: noise level from which the steps are spread; a start beyond it is left in the first step.

    Raises:
        ValueError: an unknown name, `steps < 1`, `sigma_min >= sigma_max`, or times that do not lead from the
            start to the end.
    """
    first = law.start_time if start is None else start
    if isinstance(grid, Tensor):
        return check_times(grid.to(torch.float64), first, law.end_time)
    if grid not in GRIDS:
        raise ValueError(
            f"unknown time grid {grid!r}; the grids are {', '.join(GRIDS)}, or a tensor of times"
        )
    if steps < 1:
        raise ValueError(f"steps={steps}; a sampler needs at least 1 step")
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g}; needed 0 < sigma_min < sigma_max"
        )
    if grid == "uniform":
        return torch.linspace(first, law.end_time, steps + 1, dtype=torch.float64)
    fractions = torch.arange(1, steps, dtype=torch.float64) / steps
    high = min(sigma_max, math.exp(min(-0.5 * float(law.log_snr(first)), 700.0)))
    if sigma_min >= high:
        raise ValueError(f"sigma_min={sigma_min:g} is not below the noise level at the start, {high:g}")
    if grid == "log_snr":
        sigma = high * (sigma_min / high) ** fractions
    else:
        sigma = (high ** (1 / RHO) + fractions * (sigma_min ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    inner = law.time_of_log_snr(-2.0 * sigma.log())
    return torch.cat([inner.new_tensor([first]), inner, inner.new_tensor([law.end_time])])


def check_times(times: Tensor, first: float, last: float) -> Tensor:
    steps = times.diff() if times.ndim == 1 else times
    if times.ndim != 1 or len(times) < 2 or not bool((steps * (last - first) > 0).all()):
        raise ValueError(
            f"times of shape {tuple(times.shape)}; needed at least two, strictly monotone from {first:g} to "
            f"{last:g}"
        )
    if not math.isclose(float(times[0]), first, abs_tol=1e-12) or not math.isclose(
        float(times[-1]), last, abs_tol=1e-12
    ):
        raise ValueError(
            f"times run from {float(times[0]):g} to {float(times[-1]):g}; this solver runs from {first:g} "
            f"to {last:g}"
        )
    return times
