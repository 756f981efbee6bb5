r"""Space–time kernels: ``k(h, u)`` of a lag ``h`` in space and ``u`` in time.

Separable: a product over groups of axes, ``k(h) = ∏_g k_g(h_g)``, with ``S(ω) = ∏_g S_g(ω_g)``.

Gneiting [2002, equation 14]: ``k(h, u) = σ² ψ(u)^{-d/2} ρ(‖h/ℓ‖/√ψ(u)) (1 + |u/τ|^{2α})^{-δ}`` with
``ψ(u) = (1 + |u/τ|^{2α})^β``, ``0 < α ≤ 1``, ``0 ≤ β ≤ 1``, ``δ ≥ 0``, where ``ρ(√·)`` is completely
monotone, that is, ``ρ`` is positive definite in every dimension. At ``β = 0`` it is separable. Its transform
in space is ``S_ρ(√ψ(u) ω)`` in closed form, which leaves the cosine transform in ``u`` of `cosine_transform`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.algebra import Product, at_lags, terms
from spatialdiff.kernels.base import StationaryKernel, align
from spatialdiff.kernels.families import Nugget
from spatialdiff.kernels.fourier import cosine_transform
from spatialdiff.kernels.lags import (
    LagKernel,
    check_kernel,
    density,
    gaussian_mixture_family,
    paired,
    scale_variance,
)
from spatialdiff.kernels.parameters import register_up_to


class Separable(LagKernel):
    """``k(h) = ∏_g k_g(h_g)`` over groups ``g`` of axes; of two kernels, the first in space, the second in
    time.

    Args:
        kernels: stationary kernels, one per group of axes.
        axes: the axes of each group, every axis once. Default, for two kernels: two axes of space, then time,
            ``((0, 1), (2,))``.

    Raises:
        TypeError: something that is not a kernel.
        ValueError: fewer than two kernels; a kernel that is not stationary; groups that are not a partition
            of the axes, or that are not as many as the kernels.
    """

    def __init__(self, *kernels: Kernel, axes: Sequence[Sequence[int]] | None = None) -> None:
        if len(kernels) < 2:
            raise ValueError(f"Separable: needs at least two kernels, got {len(kernels)}.")
        for kernel in kernels:
            check_kernel(kernel, "Separable")
        if axes is None:
            if len(kernels) != 2:
                raise ValueError(f"Separable: give axes, one group for each of the {len(kernels)} kernels.")
            axes = ((0, 1), (2,))
        groups = tuple(tuple(int(a) for a in group) for group in axes)
        every = sorted(itertools.chain(*groups))
        if len(groups) != len(kernels) or not all(groups) or every != list(range(len(every))):
            raise ValueError(
                f"Separable: axes must give each of the {len(kernels)} kernels a group of axes, with every "
                f"axis 0, 1, … in exactly one group; got {groups}."
            )
        super().__init__()
        self.kernels = torch.nn.ModuleList(kernels)
        self.axes = groups
        self.dimension = len(every)

    @property
    def factors(self) -> list[tuple[tuple[int, ...], Kernel]]:
        """``(axes, kernel)`` of every group; the kernel takes the coordinates of its axes only."""
        return list(zip(self.axes, self.kernels, strict=True))

    @property
    def max_dimension(self) -> float:  # type: ignore[override]
        return float(self.dimension)

    def check_dimension(self, d: int) -> None:
        if d != self.dimension:
            raise ValueError(
                f"Separable has groups of axes {self.axes}, {self.dimension} in all, but the sites have {d} "
                "coordinates; give axes= to match."
            )
        for axes, kernel in self.factors:
            if hasattr(kernel, "check_dimension"):
                kernel.check_dimension(len(axes))

    @property
    def reflection_symmetric(self) -> bool:
        return all(bool(getattr(kernel, "reflection_symmetric", False)) for kernel in self.kernels)

    def _scale(self, factor: Tensor) -> None:
        scale_variance(self.kernels[0], factor)

    @property
    def nugget(self) -> Tensor:
        """Variance of the part that is discontinuous in all axes, shape ``(*batch,)``."""
        total = torch.ones((), dtype=torch.float64)
        for kernel in self.kernels:
            total = total * getattr(kernel, "nugget", torch.zeros((), dtype=torch.float64))
        return total.expand(self.batch_shape)

    def at_lags(self, h: Tensor) -> Tensor:
        self.check_dimension(h.shape[-1])
        result = torch.ones((), dtype=h.dtype, device=h.device)
        for axes, kernel in self.factors:
            result = result * at_lags(kernel, h[..., list(axes)])
        return result

    def spectral_density(self, omega: Tensor) -> Tensor:
        """``S(ω) = ∏_g S_g(ω_g)`` at angular frequencies ``(..., d)`` → ``(*batch, ...)``.

        Raises:
            ValueError: a factor with a nugget, whose product with the others is continuous along some axes
                only.
        """
        self.check_dimension(omega.shape[-1])
        result = torch.ones((), dtype=omega.dtype, device=omega.device)
        for axes, kernel in self.factors:
            if bool((getattr(kernel, "nugget", torch.zeros(())).detach() != 0).any()):
                raise ValueError(
                    f"Separable: the factor of axes {axes} has a nugget, so that the product has no spectral "
                    "density along them; add the Nugget to the separable kernel instead."
                )
            result = result * density(kernel, omega[..., list(axes)])
        return result

    def with_kernels(self, kernels: Sequence[Kernel]) -> Separable:
        """The same groups of axes with other kernels."""
        return Separable(*kernels, axes=self.axes)

    def terms(self) -> list[list[Kernel]]:
        """The expansion of the factors into sums of products."""
        parts = [
            [factors[0] if len(factors) == 1 else Product(*factors) for factors in terms(kernel)]
            for kernel in self.kernels
        ]
        result: list[list[Kernel]] = []
        for choice in itertools.product(*parts):
            everywhere = all(isinstance(kernel, Nugget) for kernel in choice)
            result.append(list(choice) if everywhere else [self.with_kernels(choice)])
        return result

    def __repr__(self) -> str:
        return f"Separable({', '.join(map(repr, self.kernels))}, axes={self.axes})"


class Gneiting(LagKernel):
    r"""``k(h, u) = ψ^{-d/2} k_0(h/√ψ) (1 + |u/τ|^{2α})^{-δ}``, ``ψ = (1 + |u/τ|^{2α})^β``: not separable.

    ``k_0`` is the covariance in space, at time lag 0; ``d`` is the number of axes of space. Time is the last
    coordinate unless ``time_axis`` says otherwise.

    Args:
        space: ``k_0``, an isotropic family that is positive definite in every dimension (Matern, Gaussian,
            …), with one length scale or one per axis of space.
        timescale: ``τ``, in the unit of time; positive.
        alpha: ``0 < α ≤ 1``, smoothness in time: at ``α = 1`` fields are smooth in time.
        beta: ``0 ≤ β ≤ 1``, the interaction of space and time; 0 is none.
        delta: ``δ ≥ 0``, further decay in time.
        time_axis: which coordinate is time.
        batch_shape: shape of a batch of hyperparameters.

    ``beta = 0`` and ``delta = 0`` stay so; every other value is a parameter.

    Raises:
        TypeError: ``space`` is not a kernel of spatialdiff.kernels.
        ValueError: ``space`` is not positive definite in every dimension; a parameter outside its bounds.
    """

    def __init__(
        self,
        space: StationaryKernel,
        timescale: float | Tensor = 1.0,
        alpha: float | Tensor = 1.0,
        beta: float | Tensor = 1.0,
        delta: float | Tensor = 0.0,
        *,
        time_axis: int = -1,
        batch_shape: Sequence[int] = (),
    ) -> None:
        gaussian_mixture_family(space, "Gneiting")
        super().__init__(batch_shape=torch.Size(batch_shape))
        self.space = space
        self.time_axis = int(time_axis)
        self._register_positive("timescale", timescale)
        register_up_to(self, "alpha", alpha, 1.0)
        self._interacts = bool((torch.as_tensor(beta) != 0).any())
        if self._interacts:
            register_up_to(self, "beta", beta, 1.0)
        self._decays = bool((torch.as_tensor(delta) != 0).any())
        if self._decays:
            self._register_positive("delta", delta)

    @property
    def timescale(self) -> Tensor:
        """``τ``, shape ``(*batch,)``."""
        return self._positive("timescale")

    @property
    def alpha(self) -> Tensor:
        """``α``, shape ``(*batch,)``."""
        return self._positive("alpha")

    @property
    def beta(self) -> Tensor:
        """``β``, shape ``(*batch,)``."""
        return self._positive("beta") if self._interacts else torch.zeros_like(self.raw_timescale)

    @property
    def delta(self) -> Tensor:
        """``δ``, shape ``(*batch,)``."""
        return self._positive("delta") if self._decays else torch.zeros_like(self.raw_timescale)

    def _scale(self, factor: Tensor) -> None:
        scale_variance(self.space, factor)

    @property
    def variance(self) -> Tensor:
        return self.space.variance.expand(self.batch_shape)

    @variance.setter
    def variance(self, value: float | Tensor) -> None:
        self.space.variance = value

    @property
    def nugget(self) -> Tensor:
        return torch.zeros(self.batch_shape, dtype=torch.float64)

    @property
    def reflection_symmetric(self) -> bool:
        return bool(self.space.reflection_symmetric)

    @property
    def effective_range(self) -> Tensor:
        """Distance in space at which the correlation at time lag 0 is 0.05; see `StationaryKernel`."""
        return self.space.effective_range

    def effective_duration(self, space_axes: int) -> Tensor:
        """Time lag at which the correlation at one place is 0.05, ``τ (20^{1/(βd/2+δ)} - 1)^{1/(2α)}`` with
        ``d = space_axes``, shape ``(*batch,)``; infinite where it does not decay.
        """
        power = self.beta * space_axes / 2 + self.delta
        growth = torch.pow(torch.full_like(power, 20.0), 1 / power) - 1
        return self.timescale * growth.pow(1 / (2 * self.alpha))

    def check_dimension(self, d: int) -> None:
        if d < 2:
            raise ValueError(
                f"Gneiting needs at least one coordinate of space and one of time, but the sites have {d}."
            )
        if not -d <= self.time_axis < d:
            raise ValueError(f"Gneiting: time_axis {self.time_axis} is not one of the {d} coordinates.")
        self.space.check_dimension(d - 1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.check_dimension(x.shape[-1])
        time = self.time_axis % x.shape[-1]
        return x[..., [a for a in range(x.shape[-1]) if a != time]], x[..., time]

    def _growth(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """``ψ(u)`` and ``(1 + |u/τ|^{2α})^{-δ}``, ``(*batch, ...)`` or ``(...)`` → ``(*batch, ...)``."""
        u = u.expand(torch.broadcast_shapes(u.shape, (*self._batch_shape, *(1,) * (u.dim()))))
        square = (u / align(self.timescale, u)).square()
        zero = square == 0
        power = torch.where(zero, 0.0, torch.where(zero, 1.0, square).pow(align(self.alpha, u)))
        log = torch.log1p(power)
        return torch.exp(align(self.beta, u) * log), torch.exp(-align(self.delta, u) * log)

    def at_lags(self, h: Tensor) -> Tensor:
        space, time = self._split(h)
        psi, decay = self._growth(time)
        scaled = space / psi.sqrt().unsqueeze(-1)
        values = paired(self.space.at_lags, self.space, scaled, self._batch_shape)
        return psi.pow(-space.shape[-1] / 2) * decay * values

    def spectral_density(self, omega: Tensor) -> Tensor:
        """``S(ω, ω_t) = ∫ e^{-i ω_t u} S_0(√ψ(u) ω) (1 + |u/τ|^{2α})^{-δ} du`` at angular frequencies
        ``(..., d + 1)`` → ``(*batch, ...)``, by `cosine_transform`; infinite where the integral is, such as
        at ``ω = 0`` for ``δ = 0``.
        """
        space, time = self._split(omega)

        def integrand(u: Tensor) -> Tensor:
            # nodes come last: (..., nodes)
            psi, decay = self._growth(u)
            scaled = space.unsqueeze(-2) * psi.sqrt().unsqueeze(-1)
            values = paired(self.space.spectral_density, self.space, scaled, self._batch_shape)
            return decay * values

        scale = float(self.timescale.detach().mean())
        return 2 * cosine_transform(integrand, time, scale)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={[round(v, 6) for v in getattr(self, name).detach().reshape(-1).tolist()]}"
            if self._batch_shape
            else f"{name}={float(getattr(self, name).detach()):g}"
            for name in ("timescale", "alpha", "beta", "delta")
        )
        batch = f", batch_shape={tuple(self._batch_shape)}" if self._batch_shape else ""
        return f"Gneiting({self.space!r}, {shown}, time_axis={self.time_axis}{batch})"
