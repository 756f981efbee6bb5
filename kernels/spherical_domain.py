r"""Isotropic kernels on the sphere ``S²``: functions ``k(θ)`` of the great-circle angle ``0 ≤ θ ≤ π``.

``k(θ) = Σ_l (2l+1)/(4π) C_l P_l(cos θ)`` is positive definite on ``S²`` exactly where every ``C_l ≥ 0`` and
``Σ_l (2l+1) C_l`` is finite [Schoenberg 1942]; then the variance is ``k(0) = Σ_l (2l+1)/(4π) C_l``. Families
and their valid parameters are those of Gneiting [2013, table 1]. Most families of ``R³`` are not valid with
the angle as distance (Matérn with ``ν > 1/2`` is not); with the chord ``2R sin(θ/2)`` as distance all are:
`Chordal`.

Angles are in radians. Sites are points of ``R³``, on a sphere of any radius about the origin.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from gpytorch.kernels import AdditiveKernel, Kernel, ProductKernel
from torch import Tensor

from spatialdiff.kernels.algebra import at_lags
from spatialdiff.kernels.base import SpatialKernel, align, positive
from spatialdiff.kernels.families import Nugget
from spatialdiff.kernels.lags import check_kernel, is_isotropic, paired, scale_variance
from spatialdiff.kernels.legendre_series import legendre_transform
from spatialdiff.kernels.parameters import register_up_to

_NEGATIVE = 1e-12


def great_circle_angle(x1: Tensor, x2: Tensor) -> Tensor:
    """``θ = 2 atan2(|u - v|, |u + v|)`` of the directions ``u, v`` of sites ``(..., 3)`` that broadcast;
    accurate at every angle, and 0 for equal sites.

    Raises:
        ValueError: sites that are not on one sphere about the origin.
    """
    if x1.shape[-1] != 3 or x2.shape[-1] != 3:
        raise ValueError(
            f"A kernel on the sphere needs sites in R³, got {x1.shape[-1]} and {x2.shape[-1]} coordinates; "
            "use those of a Sphere, (cos φ cos λ, cos φ sin λ, sin φ)."
        )
    norms = [x.norm(dim=-1, keepdim=True) for x in (x1, x2)]
    sizes = torch.cat([n.detach().reshape(-1) for n in norms])
    if sizes.numel() and not float(sizes.max() - sizes.min()) < 1e-4 * float(sizes.min()):
        raise ValueError(
            "A kernel on the sphere needs sites on one sphere about the origin; their distances to it are "
            f"between {float(sizes.min()):g} and {float(sizes.max()):g}."
        )
    u, v = (x / n for x, n in zip((x1, x2), norms, strict=True))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


class SphericalKernel(SpatialKernel, ABC):
    """Base of the families on the sphere. A subclass gives `correlation`, and where it knows them
    `_unit_coefficients`.

    Args:
        variance: ``σ²``, one number or ``(*batch_shape,)``.
        batch_shape: shape of a batch of hyperparameters.
    """

    has_lengthscale = False
    max_dimension = 3.0

    def __init__(self, variance: float | Tensor = 1.0, *, batch_shape: Sequence[int] = ()) -> None:
        super().__init__(batch_shape=torch.Size(batch_shape))
        self._register_positive("variance", variance)

    @property
    def is_stationary(self) -> bool:
        """False: isotropic on the sphere, but not a function of ``x - x'``."""
        return False

    def check_dimension(self, d: int) -> None:
        if d != 3:
            raise ValueError(
                f"{type(self).__name__} is a kernel on the sphere, whose sites have 3 coordinates, not {d}; "
                "use a Sphere, or points in R³ on one."
            )

    @abstractmethod
    def correlation(self, theta: Tensor) -> Tensor:
        """``ρ(θ)`` of angles ``(*batch, ...)``; ``ρ(0) = 1``."""

    def at_angles(self, theta: Tensor) -> Tensor:
        """``k(θ)`` at great-circle angles ``(...)``, radians → ``(*batch, ...)``."""
        joint = theta.expand(*self.batch_shape, *theta.shape) if self.batch_shape else theta
        return align(self.variance, joint) * self.correlation(joint)

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.at_angles(great_circle_angle(x1, x2))

    def legendre_coefficients(self, lmax: int) -> Tensor:
        """``C_0, …, C_lmax``, the angular power spectrum of the continuous part, float64 ``(*batch, lmax +
        1)``.

        Raises:
            ValueError: a negative coefficient, beyond rounding: no covariance on the sphere.
        """
        if int(lmax) != lmax or lmax < 0:
            raise ValueError(f"legendre_coefficients: lmax must be a whole number from 0 on, got {lmax!r}.")
        values = self._unit_coefficients(int(lmax))
        smallest = float(values.detach().min())
        if smallest < -_NEGATIVE:
            degree = int((values.detach() < -_NEGATIVE).reshape(-1, lmax + 1).any(0).nonzero()[0])
            raise ValueError(
                f"{self!r} is not positive definite on the sphere: its Legendre coefficient of degree "
                f"{degree} is negative (smallest for unit variance {smallest:.3g})."
            )
        return align(self.variance, values) * values.clamp_min(0.0)

    def _unit_coefficients(self, lmax: int) -> Tensor:
        """Coefficients for ``σ² = 1``, by quadrature."""

        def unit(theta: Tensor) -> Tensor:
            return self.correlation(theta.expand(*self.batch_shape, *theta.shape))

        return legendre_transform(unit, lmax, self._breaks())

    def _breaks(self) -> list[float]:
        """Angles other than 0 where the correlation is not smooth."""
        return []

    @property
    def effective_range(self) -> Tensor:
        """Smallest angle at which the correlation is 0.05, ``(*batch,)``; infinite where it is above
        everywhere.
        """
        with torch.no_grad():
            batch = self.batch_shape
            low = torch.zeros(batch, dtype=torch.float64)
            high = torch.full(batch, math.pi, dtype=torch.float64)
            grid = torch.linspace(0, math.pi, 1025, dtype=torch.float64)
            below = self.at_angles(grid) <= 0.05 * align(self.variance, self.at_angles(grid))
            first = below.to(torch.int8).argmax(-1)
            low, high = grid[(first - 1).clamp_min(0)], grid[first]
            for _ in range(60):
                middle = (low + high) / 2
                value = paired(self.at_angles, self, middle, batch)
                above = value > 0.05 * self.variance
                low, high = torch.where(above, middle, low), torch.where(above, high, middle)
            return torch.where(below.any(-1), (low + high) / 2, math.inf)

    def __repr__(self) -> str:
        names = [n.removeprefix("raw_") for n, _ in self.named_parameters(recurse=False)]
        shown = {
            name: self._positive(name).detach() for name in [*sorted(n for n in names if n != "variance")]
        }
        shown["variance"] = self.variance.detach()
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        text = ", ".join(
            f"{name}={[round(v, 6) for v in value.reshape(-1).tolist()]}"
            if value.dim()
            else f"{name}={float(value):g}"
            for name, value in shown.items()
        )
        return f"{type(self).__name__}({self._extra()}{text}{batch})"

    def _extra(self) -> str:
        return ""


def legendre_coefficients(kernel: Kernel, lmax: int) -> Tensor:
    """``C_l`` of a kernel on the sphere, or of a sum or a product of such and of `Nugget`: the continuous
    part, float64 ``(*batch, lmax + 1)``.

    Raises:
        TypeError: another kernel.
    """
    if isinstance(kernel, SphericalKernel):
        return kernel.legendre_coefficients(lmax)
    if isinstance(kernel, Nugget):
        return torch.zeros(*kernel.batch_shape, lmax + 1, dtype=torch.float64)
    if isinstance(kernel, AdditiveKernel):
        total = torch.zeros(lmax + 1, dtype=torch.float64)
        for part in kernel.kernels:
            total = total + legendre_coefficients(part, lmax)
        return total
    if isinstance(kernel, ProductKernel):
        factors = list(kernel.kernels)
        if any(isinstance(factor, Nugget) for factor in factors):
            return torch.zeros(*kernel.batch_shape, lmax + 1, dtype=torch.float64)
        if all(isinstance(factor, SphericalKernel) for factor in factors):

            def product(theta: Tensor) -> Tensor:
                values = torch.ones_like(theta)
                for factor in factors:
                    values = values * factor.at_angles(theta)
                return values

            breaks = [angle for factor in factors for angle in factor._breaks()]
            return legendre_transform(product, lmax, breaks)
    raise TypeError(
        f"legendre_coefficients needs kernels on the sphere, their sums and their products, got "
        f"{type(kernel).__name__}; wrap a kernel of R³ in Chordal."
    )


def _power(x: Tensor, exponent: Tensor) -> Tensor:
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).pow(exponent))


class _OfAngle(SphericalKernel):
    """A family with a scale ``c`` in radians."""

    def __init__(
        self, angle: float | Tensor = 0.5, variance: float | Tensor = 1.0, *, batch_shape: Sequence[int] = ()
    ) -> None:
        super().__init__(variance, batch_shape=batch_shape)
        self._register_positive("angle", angle)

    @property
    def angle(self) -> Tensor:
        """``c``, radians, shape ``(*batch,)``."""
        return self._positive("angle")

    @angle.setter
    def angle(self, value: float | Tensor) -> None:
        self._set_positive("angle", value)


class SphericalExponential(_OfAngle):
    r"""``k(θ) = σ² exp(-θ/c)``, for every ``c > 0``.

    ``A_l = ∫ e^{-θ/c} P_l(cos θ) sin θ dθ`` with ``a = 1/c``: ``A_0 = (1 + e^{-aπ})/(a²+1)``,
    ``A_1 = (1 - e^{-aπ})/(a²+4)``, ``A_{l+2} = A_l (a²+l²)/(a²+(l+3)²)``, by partial integration.

    Args:
        angle: ``c``, radians.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    def correlation(self, theta: Tensor) -> Tensor:
        return torch.exp(-theta / align(self.angle, theta))

    def _unit_coefficients(self, lmax: int) -> Tensor:
        a = 1 / self.angle
        far = torch.exp(-a * math.pi)
        even = torch.arange(0, lmax + 1, 2, dtype=torch.float64, device=a.device)
        result = []
        for start, first in ((even, (1 + far) / (a.square() + 1)), (even + 1, (1 - far) / (a.square() + 4))):
            square = a.square().unsqueeze(-1)
            ratios = (square + start[:-1].square()) / (square + (start[:-1] + 3).square())
            result.append(first.unsqueeze(-1) * torch.cat([torch.ones_like(square), ratios.cumprod(-1)], -1))
        return 2 * math.pi * torch.stack(result, -1).flatten(-2)[..., : lmax + 1]


class SphericalPoweredExponential(_OfAngle):
    r"""``k(θ) = σ² exp(-(θ/c)^α)``, valid on the sphere for ``0 < α ≤ 1`` only.

    Args:
        alpha: ``0 < α ≤ 1``, a parameter.
        angle: ``c``, radians.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``α > 1``.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        angle: float | Tensor = 0.5,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(angle, variance, batch_shape=batch_shape)
        register_up_to(self, "alpha", alpha, 1.0)

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    def correlation(self, theta: Tensor) -> Tensor:
        return torch.exp(-_power(theta / align(self.angle, theta), align(self.alpha, theta)))


class SphericalCompact(_OfAngle):
    r"""``k(θ) = σ² (1 + θ/(2c)) (1 - θ/c)²₊``, the spherical model with the angle as distance.

    Args:
        angle: ``c``, radians, beyond which it is 0.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite.
    """

    def correlation(self, theta: Tensor) -> Tensor:
        s = theta / align(self.angle, theta)
        return (1 + s / 2) * (1 - s).clamp_min(0.0).square()

    def _breaks(self) -> list[float]:
        values: list[float] = self.angle.detach().reshape(-1).tolist()
        return values


class SphericalAskey(_OfAngle):
    r"""``k(θ) = σ² (1 - θ/c)^τ₊``, ``τ ≥ 2``.

    Args:
        tau: ``τ``, a number that stays as it is.
        angle: ``c``, radians, beyond which it is 0.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``τ < 2``.
    """

    def __init__(
        self,
        tau: float = 2.0,
        angle: float | Tensor = 0.5,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(angle, variance, batch_shape=batch_shape)
        if not 2 <= float(tau) < math.inf:
            raise ValueError(f"SphericalAskey: tau must be at least 2 on the sphere, got {tau!r}.")
        self.tau = float(tau)

    def correlation(self, theta: Tensor) -> Tensor:
        return (1 - theta / align(self.angle, theta)).clamp_min(0.0).pow(self.tau)

    def _breaks(self) -> list[float]:
        values: list[float] = self.angle.detach().reshape(-1).tolist()
        return values

    def _extra(self) -> str:
        return f"tau={self.tau:g}, "


class SphericalSinePower(SphericalKernel):
    r"""``k(θ) = σ² (1 - sin^α(θ/2))``, ``0 < α ≤ 2`` [Soubeyrand, Enjalbert & Sache 2008].

    With ``μ = α/2``, ``∫ sin^α(θ/2) P_l(cos θ) sin θ dθ = 2 (-μ)_l/(μ+1)_{l+1}`` with rising factorials.

    Args:
        alpha: ``0 < α ≤ 2``, a parameter; ``σ² (1 + cos θ)/2`` at 2.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``α > 2``.
    """

    def __init__(
        self,
        alpha: float | Tensor = 1.0,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(variance, batch_shape=batch_shape)
        register_up_to(self, "alpha", alpha, 2.0)

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    def correlation(self, theta: Tensor) -> Tensor:
        return 1 - _power((theta / 2).sin(), align(self.alpha, theta))

    def _unit_coefficients(self, lmax: int) -> Tensor:
        mu = self.alpha.unsqueeze(-1) / 2
        degree = torch.arange(lmax, dtype=torch.float64, device=mu.device)
        ratios = (degree - mu) / (degree + 2 + mu)
        power = torch.cat([torch.ones_like(mu), ratios.cumprod(-1)], -1) * 2 / (mu + 1)
        constant = torch.zeros(lmax + 1, dtype=torch.float64, device=mu.device)
        constant[0] = 2.0
        return 2 * math.pi * (constant - power)


class SphericalMultiquadric(SphericalKernel):
    r"""``k(θ) = σ² (1-δ)^{2τ}/(1 + δ² - 2δ cos θ)^τ``, ``0 < δ < 1``, ``τ > 0``: the inverse multiquadric.

    At ``τ = 1/2`` the coefficients are ``4π/(2l+1) (1-δ) δ^l``, by the generating function of ``P_l``; at
    ``τ = 3/2``, the Poisson kernel, ``4π (1-δ)² δ^l/(1+δ)``.

    Args:
        delta: ``δ``, a parameter: close to 1 is a short range.
        tau: ``τ``, a parameter.
        variance: ``σ²``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        ValueError: a parameter that is not positive and finite; ``δ ≥ 1``.
    """

    def __init__(
        self,
        delta: float | Tensor = 0.5,
        tau: float | Tensor = 0.5,
        variance: float | Tensor = 1.0,
        *,
        batch_shape: Sequence[int] = (),
    ) -> None:
        super().__init__(variance, batch_shape=batch_shape)
        register_up_to(self, "delta", delta, 1.0)
        if bool((torch.as_tensor(delta) >= 1).any()):
            raise ValueError(f"SphericalMultiquadric: delta must be below 1, got {delta!r}.")
        self._register_positive("tau", tau)

    @property
    def delta(self) -> Tensor:
        """``δ``, shape ``(*batch,)``."""
        return self._positive("delta")

    @property
    def tau(self) -> Tensor:
        """``τ``, shape ``(*batch,)``."""
        return self._positive("tau")

    def correlation(self, theta: Tensor) -> Tensor:
        delta = align(self.delta, theta)
        # (1 + δ² - 2δ cos θ)/(1-δ)² without cancellation
        ratio = 4 * delta * (theta / 2).sin().square() / (1 - delta).square()
        return torch.exp(-align(self.tau, theta) * torch.log1p(ratio))


class Chordal(SphericalKernel):
    r"""``k(θ) = k_0(2R sin(θ/2))``: an isotropic kernel of ``R³`` at chordal distance, valid on every sphere.

    Args:
        kernel: ``k_0``, isotropic and valid in ``R³``; its variance is the variance.
        radius: ``R``, in the unit of its length scale.

    Raises:
        TypeError: something that is not a kernel.
        ValueError: a kernel that is not stationary, not isotropic, or not valid in ``R³``.
    """

    def __init__(self, kernel: Kernel, radius: float = 1.0) -> None:
        check_kernel(kernel, "Chordal")
        super(SphericalKernel, self).__init__()
        self.radius = float(positive(radius, "Chordal: radius"))
        self.kernel = kernel
        if hasattr(kernel, "check_dimension"):
            kernel.check_dimension(3)
        third = torch.tensor([[1, 2, -2]], dtype=torch.float64) / 3
        directions = torch.cat([torch.eye(3, dtype=torch.float64), third])
        lengths = 2 * self.radius * torch.logspace(-6, 0, 13, dtype=torch.float64)
        with torch.no_grad():
            values = at_lags(kernel, lengths[:, None, None] * directions)
        if not is_isotropic(values):
            raise ValueError(
                f"Chordal: {kernel!r} is not isotropic; on the sphere a kernel must depend on the distance "
                "alone."
            )

    @property
    def variance(self) -> Tensor:
        return self.at_angles(torch.zeros(1, dtype=torch.float64)).squeeze(-1)

    @variance.setter
    def variance(self, value: float | Tensor) -> None:
        with torch.no_grad():
            factor = torch.as_tensor(value, dtype=torch.float64) / self.variance
        scale_variance(self.kernel, factor)

    @property
    def nugget(self) -> Tensor:
        inner: Tensor = getattr(self.kernel, "nugget", torch.zeros((), dtype=torch.float64))
        return inner.expand(self.batch_shape)

    def correlation(self, theta: Tensor) -> Tensor:
        values = paired(self.at_angles, self, theta, self.batch_shape)
        return values / align(self.variance, values)

    def at_angles(self, theta: Tensor) -> Tensor:
        chord = 2 * self.radius * (theta / 2).sin()
        return at_lags(self.kernel, torch.stack([chord, *(torch.zeros_like(chord),) * 2], -1))

    def legendre_coefficients(self, lmax: int) -> Tensor:
        # no node of the quadrature is at 0, where a nugget would sit
        values = legendre_transform(self.at_angles, lmax, self._breaks())
        smallest = float((values.detach() / self.variance.detach().unsqueeze(-1)).min())
        if smallest < -_NEGATIVE:
            raise ValueError(
                f"{self!r} is not positive definite on the sphere: smallest Legendre coefficient for unit "
                f"variance {smallest:.3g}."
            )
        return values.clamp_min(0.0)

    def _breaks(self) -> list[float]:
        """Where a kernel of compact support ends, to be found from its values."""
        with torch.no_grad():
            theta = torch.linspace(0, math.pi, 4097, dtype=torch.float64)
            values = self.at_angles(theta).reshape(-1, len(theta))
        breaks = []
        for row in range(len(values)):
            supported = (values[row] != 0).nonzero()
            last = int(supported.max())
            if last == len(theta) - 1:
                continue
            low, high = float(theta[last]), float(theta[last + 1])
            for _ in range(52):
                middle = (low + high) / 2
                with torch.no_grad():
                    value = self.at_angles(torch.tensor([middle], dtype=torch.float64)).reshape(-1)[row]
                low, high = (middle, high) if float(value) != 0 else (low, middle)
            breaks.append(high)
        return breaks

    def __repr__(self) -> str:
        return f"Chordal({self.kernel!r}, radius={self.radius:g})"
