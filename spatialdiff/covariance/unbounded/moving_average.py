r"""Filters of compact support: ``x = a * w`` has the covariance ``(a ⋆ a)(h) = Σ_o a_o a_{o+h}``.

For a kernel, ``a`` is the inverse DFT of the root of its spectrum on the lattice, ``√(Σ_h k(h) e^{-iωh})``,
cut off at a radius ``r`` and scaled to ``Σ a² = k(0)``. The difference of ``a ⋆ a`` and ``k`` is then
computed at every lag, beyond ``2r`` too, where the first is 0; ``r`` is the smallest for which it is within a
tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from spatialdiff.kernels import at_lags

# sites of the transforms that a filter is found with
MAX_SITES = 2**23


@dataclass(frozen=True)
class MovingAverage:
    """The filter ``a`` on a lattice: offsets along axis ``j`` run from ``-⌊n_j/2⌋``.

    Args:
        filter: ``a``, shape ``(n_1, …, n_d)``, ``d ≤ 3``.

    Raises:
        ValueError: no axis or more than three, a filter that is 0 or not finite.
    """

    filter: Tensor

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.filter).detach().to(device="cpu", dtype=torch.float64).clone()
        if not 1 <= values.dim() <= 3 or values.numel() == 0:
            raise ValueError(
                f"MovingAverage: the filter must have 1, 2 or 3 axes, got shape {tuple(values.shape)}."
            )
        if not bool(torch.isfinite(values).all()) or not bool((values != 0).any()):
            raise ValueError("MovingAverage: the filter must be finite and not 0 everywhere.")
        object.__setattr__(self, "filter", values)

    @classmethod
    def box(cls, shape: int | Sequence[int], variance: float = 1.0) -> MovingAverage:
        """Equal weights on ``n_1 × … × n_d`` sites: the covariance is a product of tents, ``σ² ∏ (1 -
        |h_j|/n_j)₊``.
        """
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        return cls(_with_variance(torch.ones(sizes, dtype=torch.float64), variance))

    @classmethod
    def ball(cls, radius: float, dimension: int, variance: float = 1.0) -> MovingAverage:
        """Equal weights on the sites within ``radius`` spacings: the lattice's tent, circular or spherical
        covariance of range ``2·radius`` in 1, 2 or 3 dimensions.
        """
        if not (math.isfinite(radius) and radius >= 0 and dimension in (1, 2, 3)):
            raise ValueError(
                f"MovingAverage.ball: needs a radius from 0 on and 1, 2 or 3 dimensions, got {radius!r} and "
                f"{dimension!r}."
            )
        axis = torch.arange(-math.floor(radius), math.floor(radius) + 1, dtype=torch.float64)
        offsets = torch.stack(torch.meshgrid(*(axis,) * dimension, indexing="ij"), dim=-1)
        inside = offsets.square().sum(-1) <= radius**2
        return cls(_with_variance(inside.double(), variance))

    @property
    def ndim(self) -> int:
        return self.filter.dim()

    @property
    def variance(self) -> float:
        """``Σ a²``."""
        # rounded once, so that it is the same on every machine
        return math.fsum((self.filter * self.filter).reshape(-1).tolist())

    def covariance(self) -> Tensor:
        """``a ⋆ a`` at lags ``-(n_j - 1) … n_j - 1``, shape ``(2n_1 - 1, …)``; 0 beyond."""
        from scipy.signal import fftconvolve

        values = self.filter.numpy()
        flipped = values[(slice(None, None, -1),) * values.ndim]
        return torch.from_numpy(fftconvolve(values, flipped))

    def at_lags(self, lags: Tensor) -> Tensor:
        """``(a ⋆ a)(h)`` at whole lags ``(..., d)`` → ``(...)``."""
        table = self.covariance()
        centre = torch.tensor(self.filter.shape) - 1
        index = lags.long() + centre
        inside = ((index >= 0) & (index < torch.tensor(table.shape))).all(-1)
        clamped = torch.minimum(index.clamp_min(0), torch.tensor(table.shape) - 1)
        return torch.where(inside, table[tuple(clamped.unbind(-1))], 0.0)


def _with_variance(values: Tensor, variance: float) -> Tensor:
    if not (math.isfinite(variance) and variance > 0):
        raise ValueError(f"MovingAverage: variance must be positive and finite, got {variance!r}.")
    return values * math.sqrt(variance / float(values.square().sum()))


def of_kernel(
    kernel: gpytorch.kernels.Kernel,
    spacing: Sequence[float],
    *,
    tolerance: float,
    max_radius: int,
) -> tuple[MovingAverage, float]:
    """The shortest filter with ``max_h |(a ⋆ a)(h) - k(h)| ≤ tolerance·k(0)``, and that maximum.

    Raises:
        ValueError: a kernel that is not stationary, has a batch, or needs a radius above ``max_radius``.
    """
    d = len(spacing)
    if not kernel.is_stationary:
        raise ValueError(
            f"{type(kernel).__name__} is not stationary; an unbounded field needs a kernel of x - x'."
        )
    if kernel.batch_shape:
        raise ValueError(
            f"{type(kernel).__name__} holds a batch of shape {tuple(kernel.batch_shape)}; an unbounded "
            "field takes "
            "one set of hyperparameters."
        )
    period, reached = 64, (math.inf, 0)
    while period**d <= MAX_SITES:
        table = _table(kernel, spacing, period)
        variance = float(table[(0,) * d])
        # the rest is for the rounding of the filter
        allowed = 0.9 * tolerance * variance
        outside = _beyond(kernel, spacing, period)
        spectrum = torch.fft.fftn(table).real
        # the root of what rounding or an early cut leaves below 0 is 0; the error below is against k itself
        root = torch.fft.ifftn(spectrum.clamp_min(0.0).sqrt()).real
        largest = min(period // 4 - 1, max_radius)
        error = _error(root, table, largest, variance)
        reached = min(reached, (max(error, outside), largest))
        if max(error, outside) <= allowed:
            low, high = -1, largest
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (
                    (low, middle) if _error(root, table, middle, variance) <= allowed else (middle, high)
                )
            return MovingAverage(_cut(root, high, variance)), max(
                _error(root, table, high, variance), outside
            )
        if largest == max_radius and outside <= allowed:
            break
        period *= 2
    raise ValueError(
        f"{kernel!r} has no filter of radius up to {min(max_radius, reached[1])} sites whose covariance is "
        "within "
        f"{tolerance:g} of its variance; the best is off by {reached[0]:.3g}. Use a larger tolerance or "
        "max_radius, a "
        "shorter length scale, or a larger spacing."
    )


def _table(kernel: gpytorch.kernels.Kernel, spacing: Sequence[float], period: int) -> Tensor:
    """``k`` at lags from ``-period/2`` on, wrapped; the lag ``period/2`` is the mean of its two signs."""
    d = len(spacing)
    axes = [torch.fft.fftfreq(period, dtype=torch.float64) * period * h for h in spacing]
    table = torch.empty((period,) * d, dtype=torch.float64)
    with torch.no_grad():
        for first, row in zip(axes[0], table, strict=True):
            grid = torch.meshgrid(first.reshape(1), *axes[1:], indexing="ij")
            row.copy_(at_lags(kernel, torch.stack(grid, dim=-1))[0])
    dims = tuple(range(d))
    return (table + table.flip(dims).roll((1,) * d, dims)) / 2


def _beyond(kernel: gpytorch.kernels.Kernel, spacing: Sequence[float], period: int) -> float:
    """Largest ``|k|`` beyond the table, at half-widths ``period/2 · (1, 1.1, …, 4)`` along axes and
    diagonals.
    """
    d = len(spacing)
    factors = torch.linspace(1.0, 4.0, 31, dtype=torch.float64) * (period / 2)
    corners = torch.cartesian_prod(*(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64),) * d)
    corners = corners.reshape(-1, d)
    corners = corners[corners.abs().amax(-1) == 1] * torch.tensor(spacing, dtype=torch.float64)
    with torch.no_grad():
        return float(at_lags(kernel, factors[:, None, None] * corners).abs().max())


def _cut(root: Tensor, radius: int, variance: float) -> Tensor:
    for axis in range(root.dim()):
        index = torch.arange(-radius, radius + 1) % root.shape[axis]
        root = root.index_select(axis, index)
    return _with_variance(root, variance)


def _error(root: Tensor, table: Tensor, radius: int, variance: float) -> float:
    period = tuple(root.shape)
    values: Tensor = torch.fft.rfftn(_cut(root, radius, variance), s=period)
    found = torch.fft.irfftn(values.abs().square(), s=period)
    return float((found - table).abs().max())
