r"""Distribution of the values at a site, pooled over sites and fields.

The distance is the 1-Wasserstein distance, for equally large samples the mean difference of order statistics,

.. math:: W_1 = \int |F^{-1}(p) - F_{\text{real}}^{-1}(p)| \, dp = \operatorname{mean}_i |x_{(i)} - y_{(i)}|,

in standard deviations of the reference. Skewness and kurtosis are reported beside it: of a Gaussian 0 and 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.domains import Grid
from spatialdiff.evaluation.metric import Metric


def values(fields: Tensor, grid: Grid) -> Tensor:
    """All values of each field, `(N, C, n)`."""
    return fields.flatten(2)


def ordered(rows: Tensor) -> Tensor:
    """Order statistics of each channel, `(N, C, m)` → `(C, N m)`."""
    return rows.transpose(0, 1).flatten(1).sort(-1).values


def wasserstein(generated: Tensor, real: Tensor) -> float:
    r"""1-Wasserstein distance of equally large samples `(C, M)` of order statistics, averaged over channels.

    Raises:
        ValueError: samples of different size.
    """
    if generated.shape != real.shape:
        raise ValueError(
            f"The samples have shapes {tuple(generated.shape)} and {tuple(real.shape)}; needed the same."
        )
    return float((generated - real).abs().mean(dtype=torch.float64))


def relative_wasserstein(generated: Tensor, real: Tensor) -> float:
    """1-Wasserstein distance of each channel over the root mean square of the real sample, averaged."""
    size = real.square().mean(-1, keepdim=True, dtype=torch.float64).sqrt().to(real.dtype)
    least = torch.finfo(real.dtype).tiny
    return wasserstein(generated / size.clamp_min(least), real / size.clamp_min(least))


def moments(rows: Tensor) -> dict[str, float]:
    """Mean, standard deviation, skewness, kurtosis of pooled values `(N, C, m)`; the mean of channels."""
    flat = rows.double().transpose(0, 1).flatten(1)
    mean = flat.mean(1, keepdim=True)
    centred = flat - mean
    std = centred.square().mean(1, keepdim=True).sqrt()
    shape = centred / std.clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "mean": float(mean.mean()),
        "std": float(std.mean()),
        "skewness": float(shape.pow(3).mean()),
        "kurtosis": float(shape.pow(4).mean()),
    }


MARGINAL = Metric(
    "marginal",
    values,
    ordered,
    wasserstein,
    "Wasserstein distance of values, in standard deviations",
    pooled=True,
)
