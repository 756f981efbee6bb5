r"""Stationary fields on all of ``Z^d``, of which any window can be computed at any time.

``x = a * w``, with white noise ``w`` that is a function of seed and site (`counter_noise`) and a filter ``a``
of compact support (`moving_average`). A site's value involves no other window, so that windows agree where
they overlap, whatever the order, and fields of any extent need no memory.

*The same bits everywhere.* ``w`` is a whole number of ``2^-18`` and ``a/‖a‖`` is split into whole numbers of
``2^-16``, ``2^-32`` (and ``2^-48`` for a given filter). The convolution of whole numbers is a whole number,
and the FFT's error is far below 1/2: rounding its result removes it. So neither tiles nor the FFT's
implementation show: all that is rounded is the sum of two or three numbers, in a fixed order. A result that
is not within 1/4 of a whole number raises. What is left is the filter: a given one is the same everywhere,
one of a kernel goes through ``exp`` and could, on another machine, round differently in the last place of
``2^-32``. Fields of equal `digest` are equal; where it must not depend on the machine, store
``field.average`` and build every field from that.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import gpytorch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatialdiff.covariance.grids.circulant import fast_size
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.unbounded.counter_noise import FRACTION, lattice_noise
from spatialdiff.covariance.unbounded.moving_average import MovingAverage, of_kernel

_BITS = 16
_TILE = {1: 2**16, 2: 512, 3: 64}
# sites per axis and in all of a tile with its halo: what the certificate of the rounding was worked out for
_MAX_TRANSFORM = 2**23
_LIMIT = 1 << 62


class UnboundedField:
    r"""A stationary Gaussian field on an unlimited lattice, mean 0; the seed is the field.

    Args:
        kernel: a stationary kernel, approximated within ``tolerance``, or a `MovingAverage`, which is exact.
        spacing: distance between neighbouring sites, one per axis, for a kernel; its number is the dimension.
        seed: which field, a whole number from 0 on, below ``2^64``.
        tolerance: largest error of the covariance at any lag, relative to the variance.
        max_radius: largest radius of the filter of a kernel, in sites.
        tile: sites per axis that are computed together; no part of the field.
        cache_bytes: memory for tiles already computed.
        member: one of ``2^61`` independent fields with the same seed.

    Raises:
        ValueError: a kernel that does not reach the tolerance; another argument out of range.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel | MovingAverage,
        spacing: float | Sequence[float] = 1.0,
        seed: int = 0,
        *,
        tolerance: float = 1e-6,
        max_radius: int = 512,
        tile: int | None = None,
        cache_bytes: int = 2**28,
        member: int = 0,
    ) -> None:
        for name, value, limit in (("seed", seed, 1 << 64), ("member", member, 1 << 61)):
            if int(value) != value or not 0 <= value < limit:
                raise ValueError(
                    f"UnboundedField: {name} must be a whole number from 0 to {limit - 1}, got {value!r}."
                )
        self.seed, self.member, self.tolerance = int(seed), int(member), float(tolerance)
        if isinstance(kernel, MovingAverage):
            self.average, self.covariance_error, levels = kernel, 0.0, 3
            self.kernel: gpytorch.kernels.Kernel | None = None
        else:
            steps = (
                (float(spacing),) if isinstance(spacing, int | float) else tuple(float(h) for h in spacing)
            )
            if not 1 <= len(steps) <= 3 or not all(math.isfinite(h) and h > 0 for h in steps):
                raise ValueError(
                    f"UnboundedField: spacing needs 1, 2 or 3 positive numbers, one per axis, got "
                    f"{spacing!r}."
                )
            found, error = of_kernel(kernel, steps, tolerance=tolerance, max_radius=max_radius)
            self.kernel, levels = kernel, 2
            self.average, self.covariance_error = found, error
        self._integers = split(self.average.filter, levels)
        self._norm = math.sqrt(self.average.variance)
        if levels == 2:
            # the field that is drawn has this filter, to the last bit
            self.average = MovingAverage(assemble(self._integers, self._norm))
        self.covariance_error += 2 * 2.0 ** (-_BITS * levels) * self._l1() * self._norm
        if self.kernel is not None and self.covariance_error > tolerance * self.average.variance:
            raise ValueError(
                f"UnboundedField: a tolerance of {tolerance:g} is below what a filter of "
                f"{self.average.filter.numel()} values, rounded to 2^-{_BITS * levels}, can keep "
                f"({self.covariance_error / self.average.variance:.2g}); use a larger one."
            )
        self._reach = tuple(n // 2 for n in self.average.filter.shape)
        self._set_tile(tile)
        self._cache: OrderedDict[tuple[int, ...], NDArray[np.float64]] = OrderedDict()
        self._cache_bytes = cache_bytes

    def _l1(self) -> float:
        return float(self.average.filter.abs().sum())

    def _set_tile(self, tile: int | None) -> None:
        sizes = self.average.filter.shape
        d = len(sizes)
        if tile is not None and (int(tile) != tile or tile < 1):
            raise ValueError(f"UnboundedField: tile must be a whole number from 1 on, got {tile!r}.")
        self.tile = int(tile) if tile else max(_TILE[d], *(2 * n for n in sizes)) if d < 3 else _TILE[d]
        self._transform = tuple(fast_size(self.tile + n - 1) for n in sizes)
        if math.prod(self._transform) > _MAX_TRANSFORM:
            raise ValueError(
                f"UnboundedField: tiles of {self.tile} sites per axis with a filter of {tuple(sizes)} need "
                f"transforms of {math.prod(self._transform)} sites, above {_MAX_TRANSFORM}. Use a smaller "
                "tile, a "
                "larger tolerance, or a shorter length scale."
            )
        self._spectra: list[Any] = []

    # ---- what it is
    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.average.ndim

    @property
    def digest(self) -> str:
        """Of everything that the bits of the field depend on: equal digests, equal fields."""
        state = hashlib.sha256(np.stack(self._integers).tobytes())
        parts = (self.average.filter.shape, self._norm.hex(), self.seed, self.member)
        state.update(repr(parts).encode())
        return state.hexdigest()

    @property
    def report(self) -> CovarianceReport:
        sizes = " x ".join(map(str, self.average.filter.shape))
        exact = self.kernel is None
        if exact:
            reason = f"moving average with a filter of {sizes} sites"
        else:
            reason = f"moving average with a filter of {sizes} sites in place of {self.kernel!r}"
        return CovarianceReport("unbounded", exact=exact, error_bound=self.covariance_error, reason=reason)

    def covariance(self, lags: Tensor) -> Tensor:
        """Covariance of two sites that are whole ``lags`` ``(..., d)`` apart → ``(...)``, float64."""
        return self.average.at_lags(lags)

    # ---- what it gives
    def window(
        self,
        start: int | Sequence[int],
        shape: int | Sequence[int],
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The field at the sites ``start ≤ i < start + shape``, shape ``shape``.

        Args:
            start: whole numbers, one per axis, of any sign, up to ``2^62`` in absolute value.
            shape: sites per axis.
            dtype: of the result; the field itself is computed in float64.
            device: of the result; the field itself is computed on the CPU.

        Raises:
            ValueError: a wrong number of axes, an empty shape, a start out of range.
        """
        first = (start,) if isinstance(start, int) else tuple(start)
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(first) != self.ndim or len(sizes) != self.ndim:
            raise ValueError(
                f"window: the field has {self.ndim} axes, got start {first} and shape {sizes}; give one "
                "whole number "
                "per axis of each."
            )
        if any(int(s) != s or abs(s) >= _LIMIT for s in first) or any(int(n) != n or n < 1 for n in sizes):
            raise ValueError(
                f"window: start must be whole numbers below 2^62 in absolute value and shape whole numbers "
                "from 1 "
                f"on, got {first} and {sizes}."
            )
        begin, extent = tuple(int(s) for s in first), tuple(int(n) for n in sizes)
        result = np.empty(extent)
        ranges = [
            range(s // self.tile, (s + n - 1) // self.tile + 1) for s, n in zip(begin, extent, strict=True)
        ]
        for tile in itertools.product(*ranges):
            source, target = [], []
            for t, s, n in zip(tile, begin, extent, strict=True):
                low, high = max(t * self.tile, s), min((t + 1) * self.tile, s + n)
                source.append(slice(low - t * self.tile, high - t * self.tile))
                target.append(slice(low - s, high - s))
            result[tuple(target)] = self._tile(tile)[tuple(source)]
        return torch.from_numpy(result).to(device=device, dtype=dtype)

    def windows(
        self, count: int, start: int | Sequence[int], shape: int | Sequence[int], **to: Any
    ) -> Tensor:
        """The same window of ``count`` independent fields, members ``member … member + count - 1``: ``(count,
        *shape)``. Noise for a diffusion on a window: ``N(0, Γ)`` with Γ the covariance of the field there.
        """
        return torch.stack([self.of_member(self.member + i).window(start, shape, **to) for i in range(count)])

    def of_member(self, member: int) -> UnboundedField:
        """An independent field with the same law and seed."""
        if int(member) != member or not 0 <= member < 1 << 61:
            raise ValueError(f"UnboundedField: member must be a whole number from 0 on, got {member!r}.")
        other = object.__new__(UnboundedField)
        other.__dict__.update(self.__dict__)
        other.member, other._cache = int(member), OrderedDict()
        return other

    # ---- tiles
    def _tile(self, index: tuple[int, ...]) -> NDArray[np.float64]:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        values = self._compute(index)
        self._cache[index] = values
        while len(self._cache) > 1 and len(self._cache) * values.nbytes > self._cache_bytes:
            self._cache.popitem(last=False)
        return values

    def _compute(self, index: tuple[int, ...]) -> NDArray[np.float64]:
        from scipy.fft import irfftn, rfftn

        sizes = self.average.filter.shape
        if not self._spectra:
            self._spectra.extend(rfftn(level, s=self._transform) for level in self._integers)
        # offset o of the filter is at index o + reach: a site needs noise from n - 1 - reach before it on
        start = tuple(
            i * self.tile - (n - 1 - reach) for i, n, reach in zip(index, sizes, self._reach, strict=True)
        )
        noise = lattice_noise(self.seed, self.member, start, tuple(self.tile + n - 1 for n in sizes))
        spectrum = rfftn(noise, s=self._transform)
        keep = tuple(slice(n - 1, n - 1 + self.tile) for n in sizes)
        total = np.zeros((self.tile,) * self.ndim)
        for number, level in enumerate(self._spectra):
            raw = irfftn(spectrum * level, s=self._transform)[keep]
            whole = np.rint(raw)
            if float(np.abs(raw - whole).max()) > 0.25:
                raise RuntimeError(
                    "UnboundedField: the FFT of this machine is too inaccurate for a field that is the same "
                    f"everywhere, off by {float(np.abs(raw - whole).max()):.2g} from whole numbers; use a "
                    "smaller tile."
                )
            total = total + whole * 2.0 ** (-_BITS * (number + 1) - FRACTION)
        return total * self._norm


def split(values: Tensor, levels: int) -> list[NDArray[np.float64]]:
    """``a/‖a‖ ≈ Σ_j A_j 2^{-16 j}`` with whole numbers ``A_j``, ``j = 1 … levels``."""
    rest = values.numpy() / math.sqrt(MovingAverage(values).variance)
    parts = []
    for level in range(1, levels + 1):
        scale = 2.0 ** (_BITS * level)
        whole = np.rint(rest * scale)
        parts.append(whole)
        rest = rest - whole / scale
    return parts


def assemble(parts: list[NDArray[np.float64]], norm: float) -> Tensor:
    """The filter that `split` stands for."""
    total = sum(part * 2.0 ** (-_BITS * (level + 1)) for level, part in enumerate(parts))
    return torch.from_numpy(np.asarray(total) * norm)
