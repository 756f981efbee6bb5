"""From what a user gives (a process, a bridge and a coupling, a fit) to the law, the channels and the data's
moments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.processes import Coupling, Law, Pinned, as_coupling


def resolve_law(process: Any, coupling: Coupling | str | None = None) -> Law:
    """The law of the state given the data endpoint, of a noise process or of a bridge with a coupling.

    Raises:
        RuntimeError: a bridge without a coupling: the law of its state depends on where it starts.
        ValueError: a coupling with a noise process, which starts from the data.
        TypeError: anything else.
    """
    if isinstance(process, Pinned):
        if coupling is None:
            raise RuntimeError(
                f"{type(process).__name__} has no coupling yet: the law of its state depends on where it "
                f"starts; pass "
                "coupling='fixed', 'independent' or 'paired' (or an instance), or wrap the denoiser in "
                "sd.BridgeMixture"
            )
        return as_coupling(coupling).law(process)
    if not isinstance(process, Law):
        raise TypeError(f"{type(process).__name__} is neither a noise process, nor a bridge, nor a Law")
    if coupling is not None:
        raise ValueError(
            f"coupling given with {type(process).__name__}, which has none: couplings belong to bridges"
        )
    return process


def resolve_channels(
    gamma: Covariance, data: Covariance | None, mean: Tensor | float | None, channels: int | None
) -> int:
    """Number of channels: from the covariances or the mean, checked against `channels` where several say it;
    else 1.
    """
    known = {
        "channels": channels,
        "Γ": gamma.channels,
        "the data's covariance": data.channels if data else None,
    }
    axes = len(gamma.domain.shape)
    if isinstance(mean, Tensor) and mean.ndim > axes and mean.shape[-axes - 1] > 1:
        known["the mean"] = mean.shape[-axes - 1]
    given = {name: number for name, number in known.items() if number is not None}
    if len(set(given.values())) > 1:
        said = ", ".join(f"{number} from {name}" for name, number in given.items())
        raise ValueError(f"the number of channels disagrees: {said}")
    return next(iter(given.values()), 1)


def data_law(data: Any) -> tuple[Tensor | float | None, Covariance]:
    """Mean and covariance from a `FitResult`, a pair `(mean, Covariance)`, or a `Covariance` (mean zero)."""
    if isinstance(data, Covariance):
        return None, data
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Covariance):
        return data
    covariance = getattr(data, "covariance", None)
    if isinstance(covariance, Covariance):
        return getattr(data, "mean", None), covariance
    raise TypeError(
        f"data={type(data).__name__} is not a law of the data: give the result of sd.fit, a pair (mean, "
        f"Covariance), "
        "or a Covariance"
    )
