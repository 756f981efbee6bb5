r"""The interval of times that an evidence bound integrates over, and its measure.

The integral is over the information I of the state, for every process: `½ ∫ E‖x - D‖²_{Γ⁻¹} dI`. It runs from
`t1`, where the state is noise, to `t0`, close to the data. It is laid out in `λ = log I` (for coefficients
per mode its mean over the modes), which grows steadily on the way to the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.processes import Law

#: σ/α at which a bound ends by default: where the training of denoisers ends too
SMALLEST = 0.002
#: log I below which nothing is integrated: an information of 1e-13 tells nothing of data of any scale in use
LOWEST = -30.0
#: halvings by which the time is found where the last of the modes is that low
HALVINGS = 60


@dataclass(frozen=True)
class Interval:
    """Times `t0` near the data and `t1` at the noise, with `λ = log I` from `low` (at t1) to `high` (t0)."""

    t0: float
    t1: float
    low: float
    high: float


def interval_of(law: Law, t0: float | None = None, t1: float | None = None) -> Interval:
    """The interval between times `t0`, by default where `σ/α = 0.002`, and `t1`, by default the noise end.

    Raises:
        ValueError: the law is known only given the start of its bridge; times out of order.
    """
    if not law.closed_form:
        raise ValueError(
            f"{type(law).__name__} of pairs has no law of the state given the data alone, and so no bound; "
            "use a bridge from a fixed point or an independent field, or a noise process"
        )
    with torch.no_grad():
        far = law.times(law.start_time if t1 is None else t1)
        if t0 is None:
            default = -2.0 * torch.tensor(SMALLEST, dtype=torch.float64).log()
            near = law.time_of_log_snr(default.to(law.covariance.device))
        else:
            near = law.times(t0)
        high = float(law.log_snr(near))
        low = lowest_level(law, near, far)
    if not low < high < float("inf"):
        raise ValueError(
            f"t0={float(near):g} (log SNR {high:g}) must lie strictly between the data at "
            f"{law.end_time:g} and t1={float(far):g} (log SNR {low:g})"
        )
    return Interval(float(near), float(far), low, high)


def lowest_level(law: Law, near: Tensor, far: Tensor) -> float:
    """λ at `far`, or where nothing is left to tell from there on: in any mode, not in the mean of them."""
    low = float(law.log_snr(far))
    if law.basis is None or low >= LOWEST:
        return max(low, LOWEST)
    if float(law.information(far).max()) >= math.exp(LOWEST):
        return low
    inside, outside = near, far
    for _ in range(HALVINGS):
        middle = 0.5 * (inside + outside)
        told = float(law.information(middle).max()) >= math.exp(LOWEST)
        inside, outside = (middle, outside) if told else (inside, middle)
    return float(law.log_snr(inside))


def measure(law: Law, t: Tensor, density: Tensor) -> Tensor:
    """`|dI/dt| / (density of t)` `(*t, [modes])`, where `density` is that of λ; differentiable in the law.

    What an integrand over I is multiplied by at a time drawn with this density; the density itself carries no
    gradient, since an expectation does not depend on it. Without modes it is `I/density`.
    """
    with torch.no_grad():
        speed = law.log_snr_rate(t).abs() * density
    rate = law.information_rate(t).abs()
    return rate / speed.reshape((*speed.shape, *[1] * (rate.ndim - speed.ndim)))
