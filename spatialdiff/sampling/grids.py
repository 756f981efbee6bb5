r"""Time grids: `steps` intervals from a law's start to its end, in float64.

    "uniform"    t_i linear in t
    "quadratic"  the distance to the end is the square of an even spacing: short steps near the data
                 (Song, Meng, Ermon 2021, arXiv 2010.02502, appendix D.3)
    "log_snr"    log(α²/σ²) linear from the start to the value at σ/α = σ_min
    "edm"        (σ/α)^{1/7} linear from the start to σ_min   (Karras et al. 2022, arXiv 2206.00364, eq. 5)
    "fitted"     "log_snr" over the noise levels at which the fitted data emerge
    "optimised"  least exact Wasserstein-2 error of the solver on the fitted Gaussian (`optimised`)

`"log_snr"`, `"edm"` and `"fitted"` are laid out as if they ended at `σ/α = σ_min`; their last time is then
the end itself, where `σ = 0`. A start with no signal (`σ/α` infinite: `Cosine`, `Rectified`, bridges) is kept
as it is, and the rest laid out from `σ_max` on. Noise levels are those of Γ: with Γ of unit variance,
standard deviations at one site; for several variables those of the sufficient statistic. Where coefficients
differ from mode to mode each mode counts while it is between `σ_max` and `σ_min` (`processes.active_levels`):
the steps begin where the slowest mode is noise, end where all modes are data, and follow the fastest between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.processes import Law
from spatialdiff.processes.active_levels import ActiveLevels, active_levels

#: grids of a law alone, and those of a law and the fitted Gaussian law of the data
GRIDS = ("log_snr", "uniform", "quadratic", "edm")
FITTED = ("fitted", "optimised")
RHO = 7.0


def time_grid(
    law: Law,
    steps: int,
    grid: str | Tensor = "log_snr",
    *,
    start: float | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    model: GaussianModel | None = None,
    solver: str | None = None,
    options: Mapping[str, Any] | None = None,
    channels: int = 1,
) -> Tensor:
    """Times `(steps + 1,)` from `start` (the law's own by default) to the law's end, strictly monotone,
    float64.

    Args:
        law: the law of the state given the data.
        steps: number of intervals, at least 1; ignored where `grid` is a tensor.
        grid: `"log_snr"`, `"uniform"`, `"quadratic"`, `"edm"`, `"fitted"`, `"optimised"`, or the times
            themselves.
        start: the first time, e.g. `law.sde_start_time`.
        sigma_min: noise level `σ/α` at which the last network call is aimed.
        sigma_max: noise level from which the steps are spread; a start beyond it is left in the first step.
        model: the fitted Gaussian law of the data, for `"fitted"` (whose noise levels replace `sigma_min` and
            `sigma_max`) and `"optimised"`.
        solver, options, channels: of `"optimised"`: the solver whose error is least, its options, and C.

    Raises:
        ValueError: an unknown name, `steps < 1`, `sigma_min >= sigma_max`, a fitted grid without `model`, or
            times that do not lead from the start to the end.
    """
    first = law.start_time if start is None else start
    if isinstance(grid, Tensor):
        return check_times(grid.to(torch.float64), first, law.end_time)
    if grid not in (*GRIDS, *FITTED):
        raise ValueError(
            f"unknown time grid {grid!r}; the grids are {', '.join((*GRIDS, *FITTED))}, or a tensor of times"
        )
    if steps < 1 or int(steps) != steps:
        raise ValueError(f"steps={steps}; a sampler needs at least 1 step, and whole ones")
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min={sigma_min:g} and sigma_max={sigma_max:g}; needed 0 < sigma_min < sigma_max"
        )
    if grid in FITTED:
        if model is None:
            raise ValueError(
                f"grid={grid!r} needs the fitted Gaussian law of the data: build the Denoiser with data= the "
                "result of sd.fit, or choose grid='log_snr'"
            )
        if grid == "fitted":
            return fitted_grid(law, steps, first, model.noise_range())
        if solver is None:
            raise ValueError("grid='optimised' is the best for one solver; name it with solver=")
        from spatialdiff.sampling.optimised import optimised_for

        return optimised_for(law, model, channels, solver, steps, options or {})
    fractions = torch.arange(steps + 1, dtype=torch.float64) / steps
    if grid in ("uniform", "quadratic"):
        rest = 1.0 - fractions if grid == "uniform" else (1.0 - fractions).square()
        return law.end_time + (first - law.end_time) * rest
    active = None
    if law.basis is not None:
        active = active_levels(law, -2.0 * math.log(sigma_max), -2.0 * math.log(sigma_min))
    high = noise_level_at(law, first, sigma_max, active)
    if sigma_min >= high:
        raise ValueError(f"sigma_min={sigma_min:g} is not below the noise level at the start, {high:g}")
    inside = fractions[1:-1]
    if grid == "log_snr":
        sigma = high * (sigma_min / high) ** inside
    else:
        sigma = (high ** (1 / RHO) + inside * (sigma_min ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    return between(law, first, -2.0 * sigma.log(), active)


def fitted_grid(law: Law, steps: int, first: float, levels: tuple[float, float]) -> Tensor:
    """`"log_snr"` between two noise levels, the lower one kept below the noise at the start."""
    low, high = levels
    if law.basis is None:
        high = noise_level_at(law, first, high)
        low = min(low, 0.5 * high)
    return time_grid(law, steps, "log_snr", start=first, sigma_min=low, sigma_max=high)


def noise_level_at(law: Law, first: float, sigma_max: float, active: ActiveLevels | None = None) -> float:
    """`σ/α` from which steps are spread: that at the start, at most `sigma_max`."""
    if active is not None:
        start = torch.tensor(first, dtype=torch.float64, device=law.covariance.device)
        return math.exp(-0.5 * float(active.level(start)))
    return min(sigma_max, math.exp(min(-0.5 * float(law.log_snr(first)), 700.0)))


def between(law: Law, first: float, log_snr: Tensor, active: ActiveLevels | None = None) -> Tensor:
    """The start, the times of increasing levels of log-SNR `(steps - 1,)`, and the end; differentiable.

    The levels are the law's own, or the given ones.
    """
    inner = log_snr
    if len(log_snr):
        inner = law.time_of_log_snr(log_snr) if active is None else active.time(log_snr)
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
