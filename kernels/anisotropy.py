r"""Geometric anisotropy: ``k(h) = k_0(Λ⁻¹ Rᵀ h)``.

``R`` is a rotation whose columns are the principal axes, ``Λ = diag(λ_1, …, λ_d)`` their scales. A change of
variables gives ``S(ω) = (∏ λ_a) S_0(Λ Rᵀ ω)`` [Chilès & Delfiner 2012, section 2.5.2].

In two dimensions ``R = [[c, -s], [s, c]]`` with ``c = cos θ, s = sin θ``: the first principal axis is ``(cos
θ, sin θ)``, turned from the first coordinate axis towards the second by ``θ`` radians. In three,
``R = R_3(α) R_2(β) R_1(γ)``, right-handed turns about the third, the second and the first coordinate axis,
the one about the first applied first (yaw, pitch and roll): the first principal axis is
``(cos α cos β, sin α cos β, -sin β)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from torch import Tensor

from spatialdiff.kernels.algebra import at_lags, terms
from spatialdiff.kernels.base import positive
from spatialdiff.kernels.lags import (
    LagKernel,
    check_kernel,
    density,
    paired,
    parameter_values,
    scale_variance,
)


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices of the module's convention: ``(..., 1)`` → ``(..., 2, 2)``, ``(..., 3)`` →
    ``(..., 3, 3)``, radians.
    """
    c, s = angles.cos(), angles.sin()
    zero, one = torch.zeros_like(c[..., 0]), torch.ones_like(c[..., 0])

    def matrix(*rows: tuple[Tensor, ...]) -> Tensor:
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    if angles.shape[-1] == 1:
        c0, s0 = c[..., 0], s[..., 0]
        return matrix((c0, -s0), (s0, c0))
    (ca, cb, cc), (sa, sb, sc) = c.unbind(-1), s.unbind(-1)
    about_third = matrix((ca, -sa, zero), (sa, ca, zero), (zero, zero, one))
    about_second = matrix((cb, zero, sb), (zero, one, zero), (-sb, zero, cb))
    about_first = matrix((one, zero, zero), (zero, cc, -sc), (zero, sc, cc))
    return about_third @ about_second @ about_first


class Anisotropic(LagKernel):
    r"""``k(h) = k_0(Λ⁻¹ Rᵀ h)``: any stationary kernel, stretched along rotated axes.

    A principal axis with scale ``λ_a`` has ``λ_a`` times the range of ``k_0``. With ``ratios`` the first
    scale is 1, so that ``k_0`` keeps its length scale and every parameter is identified. With
    ``lengthscales`` only the products with those of ``k_0`` are identified: give it length scale 1, and
    freeze that (``k_0.raw_lengthscale.requires_grad_(False)``) before a fit.

    Args:
        kernel: ``k_0``, any stationary gpytorch kernel.
        angles: radians, one for two dimensions and three for three (see the module); ``(*batch_shape, 1)`` or
            ``(*batch_shape, 3)``. None: no rotation.
        lengthscales: ``λ_1, …, λ_d``, positive; broadcasts to ``(*batch_shape, d)``.
        ratios: ``λ_2/λ_1, …, λ_d/λ_1``, positive; broadcasts to ``(*batch_shape, d - 1)``.
        batch_shape: shape of a batch of hyperparameters.

    Raises:
        TypeError: something that is not a kernel.
        ValueError: a kernel that is not stationary; both or neither of ``lengthscales`` and ``ratios``;
            numbers of angles and scales that belong to different dimensions; scales that are not positive.
    """

    def __init__(
        self,
        kernel: Kernel,
        angles: float | Sequence[float] | Tensor | None = None,
        *,
        lengthscales: Sequence[float] | Tensor | None = None,
        ratios: float | Sequence[float] | Tensor | None = None,
        batch_shape: Sequence[int] = (),
    ) -> None:
        check_kernel(kernel, "Anisotropic")
        batch = torch.Size(batch_shape)
        given = lengthscales if lengthscales is not None else ratios
        if given is None or (lengthscales is not None and ratios is not None):
            raise ValueError("Anisotropic: give either lengthscales, one per axis, or ratios, one fewer.")
        name = "ratios" if lengthscales is None else "lengthscales"
        scales = positive(given, f"Anisotropic: {name}")
        count = scales.shape[-1] if scales.dim() else 1
        scales = parameter_values(scales, batch, count, f"Anisotropic: {name}")
        d = count + (lengthscales is None)
        super().__init__(batch_shape=batch)
        self.kernel = kernel
        self.dimension = d
        self._relative = lengthscales is None
        if angles is not None:
            if d not in (2, 3):
                raise ValueError(
                    f"Anisotropic: rotation is for two or three dimensions, and the {name} are those of {d}."
                )
            values = parameter_values(angles, batch, 1 if d == 2 else 3, f"Anisotropic: angles for {d} axes")
            self.register_parameter("angles", torch.nn.Parameter(values))
        self.register_parameter("raw_scales", torch.nn.Parameter(scales.log()))
        self.register_constraint("raw_scales", Positive(torch.exp, torch.log))

    @property
    def scales(self) -> Tensor:
        """``λ_1, …, λ_d``, shape ``(*batch, d)``."""
        scales: Tensor = self.raw_scales_constraint.transform(self.raw_scales)
        return torch.cat([torch.ones_like(scales[..., :1]), scales], -1) if self._relative else scales

    @property
    def lengthscales(self) -> Tensor | None:
        """``λ_1, …, λ_d``, shape ``(*batch, d)``; None where ``ratios`` were given."""
        return None if self._relative else self.scales

    @property
    def ratios(self) -> Tensor | None:
        """``λ_2/λ_1, …, λ_d/λ_1``, shape ``(*batch, d - 1)``; None where ``lengthscales`` were given."""
        return self.scales[..., 1:] if self._relative else None

    @property
    def axes(self) -> Tensor:
        """``R``, the principal axes in its columns, shape ``(*batch, d, d)``."""
        if not self._rotated:
            return torch.eye(self.dimension, dtype=torch.float64, device=self.raw_scales.device)
        return rotation(self.angles)

    @property
    def _rotated(self) -> bool:
        return "angles" in self._parameters

    @property
    def max_dimension(self) -> float:  # type: ignore[override]
        return min(float(self.dimension), float(getattr(self.kernel, "max_dimension", self.dimension)))

    def check_dimension(self, d: int) -> None:
        if d != self.dimension:
            raise ValueError(
                f"Anisotropic has scales for {self.dimension} axes, but the sites have {d} coordinates; give "
                "as many lengthscales as coordinates, or one ratio fewer."
            )
        if hasattr(self.kernel, "check_dimension"):
            self.kernel.check_dimension(d)

    @property
    def reflection_symmetric(self) -> bool:
        """False where there are angles, whatever their values."""
        return not self._rotated and bool(getattr(self.kernel, "reflection_symmetric", False))

    def _scale(self, factor: Tensor) -> None:
        scale_variance(self.kernel, factor)

    @property
    def effective_range(self) -> Tensor:
        """Distance along each principal axis at which the correlation is 0.05, shape ``(*batch, 1, d)``.

        Raises:
            ValueError: a kernel inside that has none, or one per axis.
        """
        inner = getattr(self.kernel, "effective_range", None)
        if inner is None or inner.shape[-1] != 1:
            raise ValueError(
                f"Anisotropic: {type(self.kernel).__name__} inside has no effective range that is one number."
            )
        result: Tensor = self.scales.unsqueeze(-2) * inner
        return result

    @property
    def nugget(self) -> Tensor:
        inner = getattr(self.kernel, "nugget", torch.zeros((), dtype=torch.float64))
        return inner.expand(self.batch_shape)

    @property
    def microergodic(self) -> Tensor:
        raise ValueError(
            "Anisotropic: no micro-ergodic parameter is defined for the transform; ask the kernel inside."
        )

    def to_principal_axes(self, d: int) -> Tensor:
        """``Λ⁻¹ Rᵀ``, what lags of ``d`` coordinates are multiplied by, shape ``(*batch, d, d)``."""
        self.check_dimension(d)
        return (self.axes / self.scales.unsqueeze(-2)).mT

    def metric(self, d: int) -> Tensor:
        """``Q = R Λ⁻² Rᵀ``, for which ``k(h)`` is ``k_0`` at length ``√(hᵀ Q h)`` where ``k_0`` is isotropic,
        shape ``(*batch, d, d)``.
        """
        transform = self.to_principal_axes(d)
        return transform.mT @ transform

    def _batched(self, x: Tensor) -> tuple[torch.Size, Tensor, Tensor]:
        batch = torch.Size(self._batch_shape)
        ones = (1,) * (x.dim() - 1)
        axes = self.axes.to(x).expand(*batch, self.dimension, self.dimension)
        axes = axes.reshape(*batch, *ones, self.dimension, self.dimension)
        return batch, axes, self.scales.to(x).reshape(*batch, *ones, self.dimension)

    def at_lags(self, h: Tensor) -> Tensor:
        self.check_dimension(h.shape[-1])
        batch, axes, scales = self._batched(h)
        turned = (h.unsqueeze(-2) @ axes).squeeze(-2) if self._rotated else h
        return paired(lambda x: at_lags(self.kernel, x), self.kernel, turned / scales, batch)

    def spectral_density(self, omega: Tensor) -> Tensor:
        """``S(ω) = (∏ λ) S_0(Λ Rᵀ ω)`` of the continuous part at angular frequencies ``(..., d)``, radians
        per unit length → ``(*batch, ...)``.
        """
        self.check_dimension(omega.shape[-1])
        batch, axes, scales = self._batched(omega)
        turned = (omega.unsqueeze(-2) @ axes).squeeze(-2) if self._rotated else omega
        values = paired(lambda x: density(self.kernel, x), self.kernel, turned * scales, batch)
        return scales.prod(-1) * values

    def with_kernel(self, kernel: Kernel) -> Anisotropic:
        """The same transform, its parameters shared, of another kernel."""
        # not copy.copy: gpytorch's kernels would share their whole __dict__
        other = Anisotropic.__new__(Anisotropic)
        other.__dict__.update(self.__dict__)
        other.__dict__["_modules"] = {**self._modules, "kernel": kernel}
        return other

    def terms(self) -> list[list[Kernel]]:
        """The expansion of ``k_0`` into sums of products, transformed factor by factor."""
        from spatialdiff.kernels.families import Nugget

        return [
            [factor if isinstance(factor, Nugget) else self.with_kernel(factor) for factor in term]
            for term in terms(self.kernel)
        ]

    def __repr__(self) -> str:
        shown = [round(v, 6) for v in self.scales.detach().reshape(-1).tolist()]
        turned = self.angles.detach().reshape(-1).tolist() if self._rotated else []
        angles = f", angles={[round(v, 6) for v in turned]}"
        batch = f", batch_shape={tuple(self._batch_shape)}" if self._batch_shape else ""
        return f"Anisotropic({self.kernel!r}, scales={shown}{angles if self._rotated else ''}{batch})"
