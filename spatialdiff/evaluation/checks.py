"""What a comparison is given, brought to one form `(N, C, *grid)` or refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.domains import Grid


def as_fields(values: Any, grid: Grid, name: str, least: int = 1) -> Tensor:
    """`values` as detached fields `(N, C, *grid)`, float64, on the CPU.

    Args:
        values: tensor or array `(N, *grid)` or `(N, C, *grid)`.
        grid: where they live.
        name: what the messages call them.
        least: the fewest fields that will do.

    Raises:
        ValueError: another shape, too few fields, values that are missing or infinite (how many, and where).
    """
    fields = torch.as_tensor(values).detach()
    given = tuple(fields.shape)
    if fields.is_complex():
        raise ValueError(f"{name} are complex ({fields.dtype}); needed real fields.")
    if fields.ndim == grid.ndim + 1:
        fields = fields.unsqueeze(1)
    if fields.ndim != grid.ndim + 2 or tuple(fields.shape[2:]) != grid.shape:
        raise ValueError(
            f"{name} have shape {given}; needed (N, *grid) or (N, C, *grid) with grid = {grid.shape}."
        )
    if fields.shape[0] < least or fields.shape[1] == 0:
        raise ValueError(
            f"{name} hold {fields.shape[0]} field(s) of {fields.shape[1]} channel(s); needed at least "
            f"{least} field(s){', because the floor compares two halves of them' if least == 4 else ''}."
        )
    fields = fields.to("cpu", torch.float64)
    bad = ~torch.isfinite(fields)
    if bool(bad.any()):
        places = bad.nonzero()
        shown = ", ".join(str(tuple(place.tolist())) for place in places[:3])
        raise ValueError(
            f"{name} have {len(places)} missing or infinite values of {fields.numel()}, in "
            f"{int(bad.flatten(1).any(1).sum())} of {len(fields)} fields, the first at (field, channel, "
            f"*site) {shown}; leave those fields out, or fill them."
        )
    return fields


def check_grid(grid: Grid) -> None:
    """Refuse a grid on which nothing is spatial.

    Raises:
        ValueError: no axis of at least 4 sites.
    """
    if max(grid.shape) < 4:
        raise ValueError(
            f"The grid {grid.shape} has no axis of at least 4 sites; needed for spectra, variograms and "
            "gradients to mean anything."
        )


class Standard:
    """The units of a comparison: `z = (x - m) / s`, with `m`, `s` of the reference's values, per channel.

    One affine map for all sets, so that a wrong mean or scale of generated fields stays visible.

    Args:
        reference: fields `(N, C, *grid)`.

    Raises:
        ValueError: a channel of the reference is constant; no field of it varies in space.
    """

    def __init__(self, reference: Tensor) -> None:
        flat = reference.transpose(0, 1).flatten(1)
        shape = (1, -1, *(1,) * (reference.ndim - 2))
        self.mean, self.std = flat.mean(1).reshape(shape), flat.std(1, correction=0).reshape(shape)
        size = flat.abs().amax(1).reshape(shape)
        constant = (self.std <= 1e-12 * size).flatten().nonzero().flatten().tolist()
        if constant:
            raise ValueError(f"Channel(s) {constant} of the reference are constant; leave them out.")
        sites = reference.flatten(2)
        if bool((sites.amax(-1) == sites.amin(-1)).all()):
            raise ValueError(
                "Every field of the reference is constant in space; there is nothing to compare."
            )

    def __call__(self, fields: Tensor) -> Tensor:
        return (fields - self.mean) / self.std
