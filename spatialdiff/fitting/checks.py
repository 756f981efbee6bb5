"""Whether coordinates are what a planar kernel takes them for."""

from __future__ import annotations

from torch import Tensor


def looks_like_degrees(sites: Tensor) -> bool:
    """Whether ``sites`` ``(n, 2)`` look like longitudes and latitudes in degrees.

    One column within ±90, the other within -180 to 360, and either most of a hemisphere or a region away from
    the origin: a unit square, or an image in pixels, starts at 0 and is not flagged.
    """
    if sites.ndim != 2 or sites.shape[1] != 2 or len(sites) < 3:
        return False
    low, high = (side.tolist() for side in (sites.amin(dim=0), sites.amax(dim=0)))
    for longitude, latitude in ((0, 1), (1, 0)):
        within = low[longitude] >= -180.0 and high[longitude] <= 360.0
        within = within and low[latitude] >= -90.0 and high[latitude] <= 90.0
        if not within:
            continue
        spans = high[longitude] - low[longitude], high[latitude] - low[latitude]
        wide = spans[0] > 180.0 and spans[1] > 60.0
        negative = low[longitude] < -1.0 or low[latitude] < -1.0
        away = _away(low[latitude], high[latitude]) > 5.0 and _away(low[longitude], high[longitude]) > 0.5
        if wide or (away and (negative or max(spans) < 60.0)):
            return True
    return False


def _away(low: float, high: float) -> float:
    """Distance of an interval from 0."""
    return max(low, -high, 0.0)
