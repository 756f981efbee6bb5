r"""Families that go below zero or come back.

- Wave (cardinal sine, hole effect) ``ρ(r) = sin(r)/r`` in ``d ≤ 3``: the spectral measure is the projection
  of the uniform law on the unit sphere of three dimensions, ``s_1 = π 1{w<1}``,
  ``s_2 = 2π (1-w²)^{-1/2} 1{w<1}``, and no density for ``d = 3`` (Chilès & Delfiner 2012, section 2.5.1).
- Damped cosine ``ρ(r) = exp(-λr) cos r``, positive definite in ``d`` dimensions for ``λ ≥ 1/tan(π/(2d))``
  (Zastavnyi 1993): the real part of an exponential kernel with rate ``a = λ - i``, so
  ``s_d = 2^d π^{(d-1)/2} Γ((d+1)/2) Re[a (a² + w²)^{-(d+1)/2}]``.
- Periodic ``k(h) = σ² exp(-2 Σ_a sin²(πh_a/p_a)/ℓ_a²)`` (MacKay 1998, eq. 47): a Gaussian of the distance
  along circles, with a spectrum of lines at multiples of ``2π/p``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.kernels.base import StationaryKernel, align, positive, safe_sqrt
from spatialdiff.kernels.compact import largest_dimension
from spatialdiff.kernels.matern import numbers
from spatialdiff.kernels.numerical_spectrum import sinc


class Wave(StationaryKernel):
    """``k(h) = σ² sin(r)/r``, ``r = ‖h/ℓ‖``, also called cardinal sine or hole effect; in one to three
    dimensions.

    The strongest oscillation of an isotropic field in three dimensions: its spectrum is bounded by ``1/ℓ``,
    so that on a grid finer than that Γ is numerically singular without a nugget. ``effective_range`` is the
    first distance of correlation 0.05; later ones reach -0.22 and 0.13.

    Args:
        lengthscale: ``ℓ``, one number or one per axis; the wavelength is ``2πℓ``.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; sites of more than three coordinates.
    """

    max_dimension = 3

    def correlation(self, r: Tensor) -> Tensor:
        return sinc(r)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        if d == 3:
            raise ValueError(
                "Wave: in three dimensions the spectrum is a sphere of radius 1/lengthscale without density; "
                "use one or two dimensions, or the covariance itself."
            )
        inside = w2 < 1
        if d == 1:
            return math.pi * inside.to(w2.dtype)
        return torch.where(inside, 2 * math.pi * torch.where(inside, 1 - w2, 1.0).rsqrt(), 0.0)


class DampedCosine(StationaryKernel):
    r"""``k(h) = σ² exp(-λr) cos(r)``, ``r = ‖h/ℓ‖``; in ``d`` dimensions for ``λ ≥ 1/tan(π/(2d))``: 0, 1, √3.

    Args:
        damping: ``λ > 0``. A parameter, ``raw_damping``.
        lengthscale: ``ℓ``, one number or one per axis; the wavelength is ``2πℓ``.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; sites of more coordinates than ``λ`` allows.
    """

    def __init__(
        self,
        damping: float | Tensor = 2.0,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        self._register_positive("damping", damping)

    @property
    def damping(self) -> Tensor:
        """``λ``, shape ``(*batch,)``."""
        return self._positive("damping")

    @property
    def max_dimension(self) -> float:  # type: ignore[override]
        return math.floor(float(self._largest().min()) * (1 + 1e-12))

    def _largest(self) -> Tensor:
        return math.pi / (2 * torch.atan(1 / self.damping.detach()))

    def check_dimension(self, d: int) -> None:
        given = f"damping = {numbers(self.damping)} (here at least {1 / math.tan(math.pi / (2 * d)):.6g})"
        largest_dimension("DampedCosine", self._largest(), "damping ≥ 1/tan(π/(2d))", d, given)

    def least_valid(self, d: int) -> dict[str, float]:
        return {"damping": 1 / math.tan(math.pi / (2 * d))}

    def correlation(self, r: Tensor) -> Tensor:
        return torch.exp(-align(self.damping, r) * r) * torch.cos(r)

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        damping = align(self.damping, w2)
        rate = torch.complex(damping, torch.full_like(damping, -1.0))
        constant = 2.0**d * math.pi ** ((d - 1) / 2) * math.gamma((d + 1) / 2)
        # at the least damping the density is 0 at w = 0, and rounding is on both sides of it
        density: Tensor = constant * (rate * (rate.square() + w2).pow(-(d + 1) / 2)).real
        return density.clamp(min=0.0)

    def _extra(self) -> str:
        return f"damping={numbers(self.damping)}, "


class Periodic(StationaryKernel):
    r"""``k(h) = σ² exp(-2 Σ_a sin²(πh_a/p_a)/ℓ_a²)``, the product over axes of MacKay's kernel; any
    dimension.

    Sites that differ by whole periods have correlation 1: Γ is singular where a domain has such sites.

    Args:
        period: ``p``, one number or one per axis, in units of length. A parameter, ``raw_period``.
        lengthscale: ``ℓ``, one number or one per axis, *without* unit: the correlation falls to
            ``exp(-2/ℓ²)`` half a period away.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; a shape that does not fit ``batch_shape``.
    """

    def __init__(
        self,
        period: float | Sequence[float] | Tensor = 1.0,
        lengthscale: float | Sequence[float] | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(lengthscale, variance, batch_shape=batch_shape)
        values = positive(period, "Periodic: period")
        axes = values.shape[-1] if values.dim() else 1
        try:
            values = values.expand(*self.batch_shape, axes)
        except RuntimeError:
            raise ValueError(
                "Periodic: period must be one number or one per axis, and broadcast to "
                f"{(*self.batch_shape, axes)}, got shape {tuple(values.shape)}."
            ) from None
        self._register_positive("period", 1.0)
        self.raw_period = torch.nn.Parameter(values.reshape(*self.batch_shape, 1, axes).log())

    @property
    def period(self) -> Tensor:
        """``p``, shape ``(*batch, 1, axes)``."""
        return self._positive("period")

    def _periods(self, x: Tensor) -> Tensor:
        period = self.period.to(x)
        if period.shape[-1] not in (1, x.shape[-1]):
            raise ValueError(
                f"Periodic: coordinates have {x.shape[-1]} axes, but there are {period.shape[-1]} periods."
            )
        return period.reshape(*self.batch_shape, *(1,) * (x.dim() - 1), period.shape[-1])

    def scaled_distance(self, h: Tensor) -> Tensor:
        """The chord ``r = 2 √Σ (sin(πh_a/p_a)/ℓ_a)²`` of differences ``(..., d)`` → ``(*batch, ...)``."""
        chord = 2 * torch.sin(math.pi * h / self._periods(h)) / self._scales(h)
        return safe_sqrt(chord.square().sum(-1))

    def correlation(self, r: Tensor) -> Tensor:
        """``exp(-r²/2)`` of the chord that `scaled_distance` gives."""
        return torch.exp(-r.square() / 2)

    @property
    def effective_range(self) -> Tensor:
        """The first distance along an axis at which the correlation is 0.05, shape ``(*batch, 1, axes)``;
        infinite where it never falls so far, ``ℓ > 0.817``.
        """
        share = self.lengthscale * math.sqrt(2 * math.log(20)) / 2
        reached = share <= 1
        return torch.where(
            reached, self.period / math.pi * torch.asin(torch.where(reached, share, 0.0)), math.inf
        )

    def spectral_lines(self, count: int) -> tuple[Tensor, Tensor]:
        r"""The spectrum of the correlation along one axis: ``exp(-2 sin²(πh/p)/ℓ²) = Σ_k c_k exp(i ω_k h)``,
        ``ω_k = 2πk/p``, ``c_k = e^{-1/ℓ²} I_k(1/ℓ²)``.

        Args:
            count: number of lines on each side of 0.

        Returns:
            ``ω_k`` and ``c_k`` for ``k = 0, …, count`` (and ``c_{-k} = c_k``), shapes
            ``(*batch, 1, axes, count + 1)``.
        """
        ell = self.lengthscale
        # the trapezoidal rule on a circle, exact once the lines beyond half the nodes are below rounding
        nodes = 2 * count + 64 + math.ceil(16 / float(ell.detach().min()))
        phase = 2 * math.pi * torch.arange(nodes, dtype=ell.dtype, device=ell.device) / nodes
        values = torch.exp((torch.cos(phase) - 1) / ell.square().unsqueeze(-1))
        lines = torch.fft.rfft(values).real[..., : count + 1] / nodes
        k = torch.arange(count + 1, dtype=ell.dtype, device=ell.device)
        shape = torch.broadcast_shapes(ell.shape, self.period.shape)
        omega = 2 * math.pi * k / self.period.unsqueeze(-1)
        return omega.expand(*shape, count + 1), lines.expand(*shape, count + 1)

    def spectral_density(self, omega: Tensor) -> Tensor:
        """Always refused: the spectrum is made of lines.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "Periodic has a spectrum of lines and no spectral density: see Periodic.spectral_lines; use a "
            "method that needs only the covariance."
        )

    def _unit_spectrum(self, w2: Tensor, d: int) -> Tensor:
        return self.spectral_density(w2)

    def _extra(self) -> str:
        values = self.period.detach().reshape(-1)
        return f"period={numbers(values if len(values) > 1 else values[0])}, "
