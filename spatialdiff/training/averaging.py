"""The exponential moving average of the weights, θ̄ ← d θ̄ + (1 − d) θ, with d = min(decay, (1 + n)/(10 + n))
at update n.

A fixed decay of 0.999 would remember the initial weights for thousands of steps; the warm-up averages over
the last tenth of a short run.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of `network` whose `update_parameters(network)` makes the average above."""

    def update(averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, weights, count)

    average = AveragedModel(network, multi_avg_fn=update)  # type: ignore[arg-type]
    average.requires_grad_(False)
    return average.eval()
