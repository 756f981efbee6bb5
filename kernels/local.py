r"""Quantities that vary over the domain: ``x → v(x)``, from a constant, a function, a network or a grid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from spatialdiff.kernels.base import positive

Local = float | Sequence[float] | Tensor | Callable[[Tensor], Tensor] | nn.Module


class GridField(nn.Module):
    """Values on a regular grid, interpolated linearly along each axis (bilinearly in two dimensions).

    Between the outermost site of an axis and half a spacing beyond it the value is that of the site.

    Args:
        values: ``(n_1, …, n_d)``, or with components last, ``(n_1, …, n_d, *components)``; for example a
            symmetric matrix per site.
        spacing: distance between neighbouring sites, one per axis; its length is ``d``. One number: ``d`` is
            the number of axes of ``values``.
        origin: coordinates of the first site, one number or one per axis.
        trainable: whether the values are parameters.

    Raises:
        ValueError: values that are not finite; a spacing that is not positive; more spacings than axes.
    """

    values: Tensor

    def __init__(
        self,
        values: Tensor,
        spacing: float | Sequence[float] = 1.0,
        origin: float | Sequence[float] = 0.0,
        *,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        values = torch.as_tensor(values).detach().to(torch.float64).clone()
        steps = positive(spacing, "GridField: spacing")
        steps = steps.expand(values.dim()).clone() if steps.dim() == 0 else steps
        if steps.dim() != 1 or len(steps) > values.dim() or len(steps) == 0:
            raise ValueError(
                f"GridField: {steps.numel()} spacings for values of shape {tuple(values.shape)}; give one "
                "spacing per axis of the grid, whose axes come first."
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError("GridField: the values must be finite; fill NaN first.")
        if trainable:
            self.values = nn.Parameter(values)
        else:
            self.register_buffer("values", values)
        self.register_buffer("spacing", steps)
        self.register_buffer(
            "origin", torch.as_tensor(origin, dtype=torch.float64).expand(len(steps)).clone()
        )

    spacing: Tensor
    origin: Tensor

    @property
    def trainable(self) -> bool:
        """Whether the values are parameters."""
        return isinstance(self.values, nn.Parameter)

    def forward(self, x: Tensor) -> Tensor:
        """``v(x)`` at coordinates ``(..., d)`` → ``(..., *components)``.

        Raises:
            ValueError: coordinates outside the grid by more than half a spacing.
        """
        d = len(self.spacing)
        if x.shape[-1] != d:
            raise ValueError(f"GridField has {d} axes, but the sites have {x.shape[-1]} coordinates.")
        sizes = self.values.shape[:d]
        last = torch.tensor(sizes, dtype=torch.float64, device=x.device) - 1
        position = (x.detach().double() - self.origin) / self.spacing
        outside = ((position < -0.5 - 1e-9) | (position > last + 0.5 + 1e-9)).any(-1)
        if bool(outside.any()):
            raise ValueError(
                f"GridField: {int(outside.sum())} of {outside.numel()} sites are outside the grid, "
                f"{tuple(sizes)} sites of spacing {self.spacing.tolist()} from {self.origin.tolist()}, by "
                "more than half a spacing; give values on a larger grid."
            )
        position = torch.minimum(position.clamp_min(0.0), last)
        below = position.floor()
        weight = position - below
        result = self.values.new_zeros(())
        for corner in itertools.product((0, 1), repeat=d):
            share = torch.ones_like(position[..., 0])
            index = []
            for axis, step in enumerate(corner):
                share = share * (weight[..., axis] if step else 1 - weight[..., axis])
                index.append((below[..., axis] + step).clamp_max(float(last[axis])).long())
            value = self.values[tuple(index)]
            result = result + share.reshape(*share.shape, *(1,) * (value.dim() - share.dim())) * value
        return result.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.values.shape)}, spacing={self.spacing.tolist()}"


class ConstantField(nn.Module):
    """The same positive values everywhere, as parameters; ``(..., d)`` → ``(..., components)``."""

    def __init__(self, value: float | Sequence[float] | Tensor, title: str) -> None:
        super().__init__()
        self.raw_value = nn.Parameter(positive(value, title).reshape(-1).log())

    def forward(self, x: Tensor) -> Tensor:
        value = self.raw_value.exp().to(x)
        return value.expand(*x.shape[:-1], len(value))

    def extra_repr(self) -> str:
        return str([round(v, 6) for v in self.raw_value.detach().exp().tolist()])


def as_local(value: Local, title: str) -> Callable[[Tensor], Tensor]:
    """``value`` as a function of coordinates; raises TypeError where it is none of the kinds."""
    if callable(value):
        return value
    if isinstance(value, float | int | Sequence | Tensor):
        return ConstantField(value, title)
    raise TypeError(
        f"{title} must be a number, one number per axis, a GridField, a function or a network, got "
        f"{type(value).__name__}."
    )


def evaluate(function: Callable[[Tensor], Tensor], x: Tensor, title: str) -> Tensor:
    """``function(x)`` in the data type of ``x``, a network being called in its own.

    Raises:
        ValueError: a result without the leading axes of ``x``, or that is not finite.
    """
    dtype = x.dtype
    if isinstance(function, nn.Module) and not isinstance(function, GridField | ConstantField):
        own = next((p.dtype for p in function.parameters() if p.is_floating_point()), dtype)
        value = function(x.to(own)).to(dtype)
    else:
        value = function(x)
    lead = x.shape[:-1]
    if not isinstance(value, Tensor) or value.shape[: len(lead)] != lead:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{title} must return shape {(*lead, '...')} for sites {tuple(x.shape)}, got {got}.")
    if not bool(torch.isfinite(value.detach()).all()):
        raise ValueError(f"{title} returned NaN or infinite values.")
    return value.to(dtype)
