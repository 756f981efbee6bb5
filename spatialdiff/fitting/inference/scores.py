r"""Proper scores of Gaussian forecasts and ensembles; smaller is better.

For the forecast :math:`N(\mu, \sigma^2)` of :math:`y`, with :math:`z = (y - \mu)/\sigma`:

- continuous ranked probability score :math:`\int (F(t) - 1\{t \ge y\})^2 dt
  = \sigma [z (2\Phi(z) - 1) + 2\varphi(z) - \pi^{-1/2}]`, in the unit of :math:`y`;
- logarithmic score :math:`-\log f(y)`, nats;
- interval score of the central interval :math:`[l, u]` of level :math:`1 - \alpha`,
  :math:`(u - l) + \tfrac2\alpha (l - y)_+ + \tfrac2\alpha (y - u)_+`;
- probability integral transform :math:`\Phi(z)`, uniform where the forecast is right.

For an ensemble :math:`x_1, \dots, x_m` of fields the energy score
:math:`\tfrac1m \sum \|x_i - y\| - \tfrac{1}{2m(m-1)} \sum_{ij} \|x_i - x_j\|` (unbiased in ``m``), which in
one dimension is the ranked probability score.

Source: Gneiting & Raftery 2007, equations 20, 21, 22, 43.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _standardised(mean: Tensor, deviation: Tensor, value: Tensor) -> Tensor:
    if bool((deviation.detach() <= 0.0).any()):
        raise ValueError(
            "scores need standard deviations above 0, the smallest is "
            f"{float(deviation.detach().min()):.3g}: a forecast without spread has no density"
        )
    return (value - mean) / deviation


def gaussian_crps(mean: Tensor, deviation: Tensor, value: Tensor) -> Tensor:
    """Continuous ranked probability score of ``N(mean, deviation²)``, elementwise.

    Raises:
        ValueError: a standard deviation that is not positive.
    """
    z = _standardised(mean, deviation, value)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    return deviation * (z * torch.erf(z / math.sqrt(2.0)) + 2.0 * density - 1.0 / math.sqrt(math.pi))


def gaussian_log_score(mean: Tensor, deviation: Tensor, value: Tensor) -> Tensor:
    """Negative log density of ``N(mean, deviation²)`` at ``value``, nats, elementwise.

    Raises:
        ValueError: a standard deviation that is not positive.
    """
    z = _standardised(mean, deviation, value)
    return 0.5 * z.square() + deviation.log() + 0.5 * math.log(2.0 * math.pi)


def gaussian_interval_score(mean: Tensor, deviation: Tensor, value: Tensor, level: float = 0.95) -> Tensor:
    """Interval score of the central interval of ``level``, in the unit of ``value``, elementwise.

    Raises:
        ValueError: a level outside (0, 1); a standard deviation that is not positive.
    """
    z, half = _standardised(mean, deviation, value), normal_quantile(level)
    beyond = (z.abs() - half).clamp(min=0.0)
    return deviation * (2.0 * half + 2.0 / (1.0 - level) * beyond)


def gaussian_pit(mean: Tensor, deviation: Tensor, value: Tensor) -> Tensor:
    """Probability integral transform ``Φ((value - mean)/deviation)``, elementwise."""
    found: Tensor = torch.special.ndtr(_standardised(mean, deviation, value))
    return found


def normal_quantile(level: float) -> float:
    """Half width of the central interval of ``level`` of a standard normal law.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is the probability of an interval, between 0 and 1, got {level}")
    return float(torch.special.ndtri(torch.tensor(0.5 + 0.5 * level, dtype=torch.float64)))


def energy_score(ensemble: Tensor, value: Tensor, dims: int = 1) -> Tensor:
    """Energy score of an ensemble, unbiased in its size.

    Args:
        ensemble: ``(m, ..., *event)``, ``m`` at least 2.
        value: ``(..., *event)``.
        dims: how many axes the event has, which the Euclidean norm is taken over; 0 for the ranked
            probability score of single numbers.

    Raises:
        ValueError: fewer than two members, or shapes that do not fit.
    """
    if len(ensemble) < 2 or ensemble.shape[1:] != value.shape:
        raise ValueError(
            f"energy_score needs an ensemble (m, *{tuple(value.shape)}) of at least 2 members, got "
            f"{tuple(ensemble.shape)}"
        )
    first = value.dim() - dims
    rows = ensemble.reshape(len(ensemble), *value.shape[:first], -1)
    truth = value.reshape(*value.shape[:first], -1)
    size = len(rows)
    near = (rows - truth).norm(dim=-1).mean(dim=0)
    # pair by pair of shifts: the whole table of differences would be m times the ensemble
    apart = torch.zeros_like(near)
    for shift in range(1, size):
        apart = apart + (rows[shift:] - rows[:-shift]).norm(dim=-1).sum(dim=0)
    score: Tensor = near - apart / (size * (size - 1))
    return score


def ensemble_crps(ensemble: Tensor, value: Tensor) -> Tensor:
    """Continuous ranked probability score of an ensemble ``(m, ...)``, elementwise, unbiased in ``m``."""
    return energy_score(ensemble, value, dims=0)
