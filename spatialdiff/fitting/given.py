"""Fields as they are given: their layout, what is missing in them, whether they vary."""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.domains import Domain, Grid, MaskedGrid, Points

MISSING = ("raise", "omit")


def checked(fields: Tensor, domain: Domain) -> Tensor:
    """Fields ``(N, C, *shape)``, float64 on the CPU, with 0 in masked cells."""
    if not isinstance(domain, Domain):
        raise TypeError(f"domain must be a spatialdiff domain such as sd.Grid, got {type(domain).__name__}")
    shape = tuple(domain.shape)
    axes = ", ".join(map(str, shape))
    if not isinstance(fields, Tensor):
        raise TypeError(
            f"fields must be a torch.Tensor of shape (N, {axes}) or (N, C, {axes}), got "
            f"{type(fields).__name__}"
        )
    if not fields.is_floating_point():
        raise TypeError(f"fields must be floating point, got {fields.dtype}: convert with .double()")
    lead = fields.ndim - domain.ndim
    if lead not in (0, 1, 2) or tuple(fields.shape[lead:]) != shape:
        raise ValueError(
            f"fields have shape {tuple(fields.shape)}; {domain} needs (N, {axes}), (N, C, {axes}), or one "
            f"field ({axes})"
        )
    if fields.numel() == 0:
        raise ValueError(
            f"fields are empty: shape {tuple(fields.shape)}; at least one field with one channel is needed"
        )
    values = fields.detach().to(device="cpu", dtype=torch.float64)
    values = values[None, None] if lead == 0 else values if lead == 2 else values.unsqueeze(1)
    if isinstance(domain, MaskedGrid):
        values = torch.where(domain.valid, values, 0.0)
    return values


def observed_entries(values: Tensor, domain: Domain, missing: str) -> Tensor | None:
    """Where there is a value, or ``None`` if everywhere."""
    if missing not in MISSING:
        raise ValueError(f"missing must be one of {', '.join(MISSING)}, got {missing!r}")
    observed = torch.isfinite(values)
    absent = ~observed
    number = int(absent.sum())
    if number == 0:
        return None
    places = [tuple(int(i) for i in place) for place in absent.nonzero()[:3]]
    if missing == "raise":
        affected = int(absent.flatten(1).any(1).sum())
        raise ValueError(
            f"fields hold {number} missing or infinite values of {values.numel()}, in {affected} of "
            f"{values.shape[0]} fields, the first at (field, channel, site) "
            f"{', '.join(map(str, places))}: pass missing='omit' to fit to the others, mask the cells "
            "(grid.masked), or drop these fields"
        )
    if bool(torch.isinf(values).any()):
        raise ValueError("fields hold infinite values; missing='omit' leaves out NaN only: replace them")
    for channel in range(values.shape[1]):
        if not bool(observed[:, channel].any()):
            raise ValueError(f"every value of channel {channel} of the fields is missing")
    return observed


def restrict(values: Tensor, domain: Domain, observed: Tensor) -> tuple[Tensor, Domain, Tensor | None]:
    """What is left where the same sites are missing everywhere: a smaller domain and no pattern."""
    pattern = observed[0, 0]
    values = torch.where(observed, values, 0.0)
    if not bool((observed == pattern).all()):
        return values, domain, observed
    if isinstance(domain, Grid | MaskedGrid):
        grid = domain.grid if isinstance(domain, MaskedGrid) else domain
        valid = pattern & domain.valid if isinstance(domain, MaskedGrid) else pattern
        return values, grid.masked(valid), None
    if isinstance(domain, Points):
        return values[..., pattern], Points(domain.sites()[pattern]), None
    return values, domain, observed


def check_variation(flat: Tensor, seen: Tensor | None, scale: float, has_channels: bool) -> None:
    """Raise ``ValueError`` where a channel is constant."""
    for channel in range(flat.shape[1]):
        values = flat[:, channel] if seen is None else flat[:, channel][seen[:, channel]]
        if float(values.std(correction=0)) <= 1e-12 * scale:
            where = f"channel {channel} of the fields is" if has_channels else "the fields are"
            raise ValueError(f"{where} constant about the mean: there is no variation to fit a covariance to")
