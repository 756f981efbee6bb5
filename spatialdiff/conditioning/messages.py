"""What kriging warns of."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from spatialdiff.fitting.checks import looks_like_degrees


class KrigingWarning(UserWarning):
    """A prediction that should not be trusted as it is: targets beyond the data, coordinates in degrees."""


def warn_of_degrees(sites: Tensor, planar: bool) -> None:
    """Warn where a planar kernel is given longitudes and latitudes."""
    if planar and looks_like_degrees(sites):
        warnings.warn(
            "the coordinates look like longitudes and latitudes in degrees, but the kernel takes them for a "
            "plane: project them, or use points on a sphere (coordinates in R³ and kernels.Chordal)",
            KrigingWarning,
            stacklevel=4,
        )


def warn_of_extrapolation(targets: Tensor, sites: Tensor) -> None:
    """Warn where targets lie outside the box of the observations by more than a tenth of its side."""
    low, high = sites.amin(dim=0), sites.amax(dim=0)
    side = (high - low).clamp(min=1e-300)
    beyond = (torch.maximum(low - targets, targets - high) / side).amax(dim=1)
    outside = beyond > 0.1
    if bool(outside.any()):
        worst = int(beyond.argmax())
        warnings.warn(
            f"{int(outside.sum())} of {len(targets)} targets lie outside the box of the observations by more "
            f"than a tenth of its side, the farthest, at {[round(v, 6) for v in targets[worst].tolist()]}, "
            f"by {float(beyond[worst]):.2g} of it: there the prediction is the drift, extrapolated",
            KrigingWarning,
            stacklevel=4,
        )
