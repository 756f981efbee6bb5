r"""Fields to learn from: standardised, split, and checked.

Standardised fields are `(x - m) / s` with `m`, `s` the mean and standard deviation of the *training* fields,
one pair per channel; results are brought back by `x = m + s · field`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spatialdiff.domains import Grid


@dataclass(frozen=True)
class Standardisation:
    """The map between fields in their own units and standardised ones.

    Args:
        mean, std: per channel, shape `(C,)`; `std` positive.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, fields: Tensor, name: str = "the training fields") -> Standardisation:
        """Mean and standard deviation of each channel of `(N, C, *grid)`.

        Raises:
            ValueError: a channel is constant.
        """
        flat = fields.double().transpose(0, 1).flatten(1)
        mean, std = flat.mean(1), flat.std(1, correction=0)
        constant = (std <= 1e-12 * mean.abs().clamp_min(1e-300)).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"Channel(s) {constant} of {name} are constant: nothing to learn from; leave them out."
            )
        return cls(mean, std)

    def apply(self, fields: Tensor) -> Tensor:
        """`(x - m) / s` for fields `(N, C, *grid)` in their own units."""
        mean, std = self._per_channel(fields)
        return ((fields.double() - mean) / std).to(fields.dtype)

    def invert(self, fields: Tensor) -> Tensor:
        """`m + s · x` for standardised fields `(N, C, *grid)`: back to their own units."""
        mean, std = self._per_channel(fields)
        return (mean + std * fields.double()).to(fields.dtype)

    def _per_channel(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        if fields.ndim < 3 or fields.shape[1] != self.mean.numel():
            raise ValueError(
                f"Fields have shape {tuple(fields.shape)}; needed (N, {self.mean.numel()}, *grid) for this "
                "standardisation."
            )
        shape = (-1, *(1,) * (fields.ndim - 2))
        return self.mean.reshape(shape).to(fields.device), self.std.reshape(shape).to(fields.device)


@dataclass(frozen=True)
class FieldData:
    """Training and held-out fields on one grid.

    Args:
        train, test: standardised fields `(N, C, *grid)`, float32; `test` may be empty.
        grid: where they live.
        standardisation: brings fields back to `units`.
        name, units, description: for pictures and reports.
        origin: where each field was cut from, by part (`"train"`, `"test"`): one row of numbers per field,
            whose meaning the source states.
        levels: of quantised data (256 for 8 bits), whose unit is one level; None for continuous fields.
        codes: of quantised data, the integers `(N, C, *grid)` behind `train` and `test`, uint8.
    """

    train: Tensor
    test: Tensor
    grid: Grid
    standardisation: Standardisation
    name: str
    units: str = ""
    description: str = ""
    origin: dict[str, Tensor] = field(default_factory=dict, repr=False)
    levels: int | None = None
    codes: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def scale(self) -> float:
        """Width of the range of the levels in standardised units, `levels/std` (its geometric mean over the
        channels), as `Likelihood.bits_per_dim(levels, scale=...)` needs it.

        Raises:
            ValueError: continuous fields.
        """
        if self.levels is None:
            raise ValueError(
                f"{self.name} are continuous fields: report nats per site, not bits per dimension"
            )
        return self.levels / float(self.standardisation.std.log().mean().exp())


def check_fields(values: Any, name: str) -> Tensor:
    """`values` `(N, ...)` of any real type as a float tensor, or an error that says what is wrong with them.

    Masked entries count as missing.

    Raises:
        TypeError: values that are not real numbers.
        ValueError: no fields, or values that are missing or infinite (how many, and where the first are).
    """
    fields = _real_tensor(values, name)
    if fields.ndim == 0:
        raise ValueError(f"{name} is a single number; needed fields (N, *grid) or (N, C, *grid).")
    if fields.numel() == 0:
        raise ValueError(f"{name} is empty (shape {tuple(fields.shape)}); needed at least one field.")
    bad = ~torch.isfinite(fields)
    if bool(bad.any()):
        places = bad.nonzero()
        shown = ", ".join(str(tuple(place.tolist())) for place in places[:3])
        among = len(places[:, 0].unique())
        raise ValueError(
            f"{name} has {len(places)} missing or infinite values of {fields.numel()}, in {among} of "
            f"{len(fields)} fields, the first at {shown}; fill them, or cut fields that have none."
        )
    return fields


def _real_tensor(values: Any, name: str) -> Tensor:
    """Float32 and float64 stay so, from whatever byte order and strides; all else becomes float64."""
    if not isinstance(values, Tensor):
        array = np.ma.array(values)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name} holds values of type {array.dtype}; needed real numbers.")
        single = array.dtype.kind == "f" and array.dtype.itemsize == 4
        native = array.astype(np.float32 if single else np.float64, order="C")
        return torch.from_numpy(np.ma.filled(native, np.nan))
    if values.is_complex():
        raise TypeError(f"{name} holds values of type {values.dtype}; needed real numbers.")
    return values.detach() if values.dtype in (torch.float32, torch.float64) else values.detach().double()


def from_arrays(
    train: Any,
    test: Any = None,
    *,
    grid: Grid | None = None,
    name: str = "fields",
    units: str = "",
    description: str = "",
    origin: dict[str, Tensor] | None = None,
) -> FieldData:
    """Fields of your own: checked, given a channel axis, standardised by the training part.

    Args:
        train, test: arrays `(N, *grid)` or `(N, C, *grid)` in their own units; masked entries count as
            missing.
        grid: where they live; a unit grid of the last axes where it is not given, with one channel.
        name, units, description: for pictures and reports.
        origin: where each field came from.

    Raises:
        TypeError: values that are not real numbers.
        ValueError: empty or constant fields, missing values, shapes that do not fit the grid or each other.
    """
    fields = check_fields(train, "train")
    if grid is None:
        if not 2 <= fields.ndim <= 4:
            raise ValueError(
                f"train has shape {tuple(fields.shape)}; needed (N, *grid) with a grid of 1 to 3 axes."
            )
        grid = Grid(tuple(fields.shape[1:]))
    fields = _with_channels(fields, grid, "train")
    held = fields[:0] if test is None else _with_channels(check_fields(test, "test"), grid, "test")
    if held.shape[1] != fields.shape[1]:
        raise ValueError(f"test has {held.shape[1]} channel(s) and train {fields.shape[1]}; needed as many.")
    scale = Standardisation.of(fields)
    return FieldData(
        scale.apply(fields).float(),
        scale.apply(held).float(),
        grid,
        scale,
        name,
        units,
        description,
        origin or {},
    )


def _with_channels(fields: Tensor, grid: Grid, name: str) -> Tensor:
    shape = tuple(grid.shape)
    if tuple(fields.shape[1:]) == shape:
        return fields.unsqueeze(1)
    if fields.ndim == len(shape) + 2 and tuple(fields.shape[2:]) == shape:
        return fields
    raise ValueError(
        f"{name} has shape {tuple(fields.shape)}; needed (N, {', '.join(map(str, shape))}) or "
        f"(N, C, {', '.join(map(str, shape))}) for {grid}."
    )
