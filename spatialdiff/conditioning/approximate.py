"""Which observations a prediction takes, and kriging from some of them: neighbourhoods, Vecchia."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from spatialdiff.conditioning.law import Law
from spatialdiff.conditioning.neighbourhoods import local_kriging
from spatialdiff.conditioning.vecchia_prediction import VecchiaPrediction

if TYPE_CHECKING:
    from spatialdiff.conditioning.kriging import Kriging

METHODS = ("auto", "dense", "local", "vecchia")
# beyond so many observations "auto" takes neighbourhoods
AUTO_DENSE = 5000
# 3 GB for the matrix, and as much for its factor
MOST_DENSE = 20_000


def chosen(method: str, number: int, law: Law) -> str:
    """The method for ``number`` observations.

    Raises:
        ValueError: another method; too many observations for "dense"; channels or periodic axes with a method
            that has none.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    together = law.channels is not None or law.torus is not None
    if method == "auto":
        method = "dense" if number <= AUTO_DENSE or together else "local"
    if method != "dense" and law.channels is not None:
        raise ValueError(f"co-kriging takes all observations together: method='dense', got {method!r}")
    if method != "dense" and law.torus is not None:
        raise ValueError(
            f"method={method!r} measures distances that do not wrap around: on periodic axes use "
            "method='dense', or conditioning.fill for the missing cells of a large grid"
        )
    if method == "dense" and number > MOST_DENSE:
        raise ValueError(
            f"method='dense' factorises the covariance of {number} observations; the limit is {MOST_DENSE}: "
            "use method='local' or 'vecchia'"
        )
    return method


def predict_local(kriging: Kriging, sites: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``(..., t)`` and variance ``(t,)`` from the neighbours of each target."""
    own, at = _designs(kriging, columns)
    mean, variance = local_kriging(
        kriging.law.kernel,
        kriging.sites,
        kriging.values - kriging.drift.mean,
        sites,
        neighbors=min(kriging.neighbors, len(kriging.place)),
        design=own,
        target_design=at,
        noise=kriging.noise,
    )
    return mean + kriging.drift.mean, variance


def vecchia(kriging: Kriging, sites: Tensor, columns: Tensor) -> VecchiaPrediction:
    """The joint approximation at ``sites`` ``(t, d)``; a known mean is taken off."""
    own, at = _designs(kriging, columns)
    if kriging.values.ndim > 1:
        raise ValueError("method='vecchia' takes one data set at a time, values of shape points.shape")
    return VecchiaPrediction(
        kriging.law.kernel,
        kriging.sites,
        kriging.values - kriging.drift.mean,
        sites,
        design=own,
        target_design=at,
        noise=kriging.noise,
        neighbors=kriging.neighbors,
    )


def _designs(kriging: Kriging, columns: Tensor) -> tuple[Tensor | None, Tensor | None]:
    if kriging.drift.number == 0:
        return None, None
    return kriging.drift.columns, columns
