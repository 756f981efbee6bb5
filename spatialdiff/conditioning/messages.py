"""What kriging warns of."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from spatialdiff.domains import Grid
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
            stacklevel=3,
        )


def warn_of_constants(values: Tensor) -> None:
    """Warn of data sets ``(..., m)`` whose values are all equal."""
    flat = values.reshape(-1, values.shape[-1])
    constant = (flat == flat[:, :1]).all(dim=1)
    if values.shape[-1] > 1 and bool(constant.any()):
        which = "" if values.ndim == 1 else f" in {int(constant.sum())} of {len(flat)} data sets"
        warnings.warn(
            f"all {values.shape[-1]} values are equal ({float(flat[constant][0, 0]):.6g}){which}: the kriged "
            "field says as much, and the kriging variance comes from the kernel alone; check the data",
            KrigingWarning,
            stacklevel=3,
        )


def warn_of_extrapolation(targets: Tensor, sites: Tensor, torus: Grid | None) -> None:
    """Warn where targets lie outside the box of the observations by more than a tenth of its longest side;
    periodic axes have no outside.
    """
    low, high = sites.amin(dim=0), sites.amax(dim=0)
    longest = float((high - low).max())
    beyond = torch.maximum(low - targets, targets - high)
    if torus is not None:
        beyond = beyond[:, [axis for axis, wraps in enumerate(torus.periodic) if not wraps]]
    if beyond.numel() == 0:
        return
    beyond = beyond.amax(dim=1)
    outside = beyond > 0.1 * longest
    if bool(outside.any()):
        worst = int(beyond.argmax())
        warnings.warn(
            f"{int(outside.sum())} of {len(targets)} targets lie outside the box of the observations by more "
            f"than a tenth of its longest side ({longest:.6g}), the farthest, at "
            f"{[round(v, 6) for v in targets[worst].tolist()]}, by {float(beyond[worst]):.6g}: there the "
            "prediction is the drift, extrapolated",
            KrigingWarning,
            stacklevel=3,
        )
