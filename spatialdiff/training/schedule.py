"""The learning rate over the steps, as a factor of its base value.

f(n) = min(1, (n+1)/w) · c(n), with w warm-up steps, and c(n) = 1 or the cosine ½(1 + cos π(n−w)/(N−w)) from w
to the last step N.
"""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES = ("cosine", "constant")


def learning_rate(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """The factor as a function of the number of steps done; the cosine is that of Loshchilov & Hutter (2017),
    equation 5."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        if schedule == "constant" or step < warmup:
            return rise
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
