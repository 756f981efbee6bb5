r"""Distance to the nearest training field: are generated fields copies?

.. math:: \text{ratio} = \frac{\operatorname{median}_i \min_j \|x_i - t_j\|}
   {\operatorname{median}_i \min_j \|y_i - t_j\|}, \qquad
   x \text{ generated}, \; y \text{ held out}, \; t \text{ training},

near 1 for new fields of the right kind, far below 1 for copies. It is not an error: fields that are too
smooth are nearer to everything, fields that are too rough further away, so read it beside the spectrum.
Copies among many new fields leave the median alone; the *share of close fields*, nearer to a training
field than 99 % of the held-out ones are, shows them.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 512


def nearest_distance(fields: Tensor, training: Tensor) -> Tensor:
    """Distance `(N,)` of each field `(N, ...)` to the nearest of `training` `(M, ...)`.

    The nearest is found in single precision, about the mean of `training` so that fields far from zero lose
    no digits; its distance is then computed in double, so that it is exactly 0 for a copy.
    """
    x, t = fields.flatten(1), training.flatten(1)
    centre = t.double().mean(0)
    single = (t - centre).float()
    parts = []
    for chunk in x.split(CHUNK):
        index = torch.cdist((chunk - centre).float(), single).argmin(1)
        parts.append(torch.linalg.vector_norm(chunk.double() - t[index].double(), dim=1))
    return torch.cat(parts)


def copying(generated: Tensor, held_out: Tensor) -> dict[str, float]:
    """The numbers of this module from the distances of generated and of held-out fields to the training set.

    Returns:
        `distance` (median), `ratio` to that of the held-out fields, and `close`, the share of close fields
        (about 0.01 is expected of new ones).
    """
    median, usual = float(generated.median()), float(held_out.median())
    ratio = median / usual if usual > 0 else (1.0 if median == 0 else float("inf"))
    limit = float(held_out.quantile(0.01))
    return {"distance": median, "ratio": ratio, "close": float((generated < limit).double().mean())}
