r"""Kernels whose length scale, anisotropy and standard deviation vary over the domain.

``k(x, x') = s(x) s(x') σ² |A(x)|^{1/4} |A(x')|^{1/4} |Ā|^{-1/2} ρ(√(hᵀ Ā⁻¹ h)/ℓ)``, ``Ā = (A(x) + A(x'))/2``,
``h = x - x'`` [Paciorek & Schervish 2006, equation 8]. It is positive definite for every field ``A`` of
positive definite matrices where ``ρ`` is positive definite in every dimension: ``ρ`` is then a mixture of
Gaussians, and a Gaussian with ``Ā`` is the integral over the plane of products of Gaussians at ``x`` and
``x'``.

Determinants and quadratic forms go through ``A = L D Lᵀ``, entry by entry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.kernels.anisotropy import rotation
from spatialdiff.kernels.base import SpatialKernel, StationaryKernel, align, safe_sqrt
from spatialdiff.kernels.lags import gaussian_mixture_family
from spatialdiff.kernels.local import Local, as_local, evaluate


class Nonstationary(SpatialKernel):
    r"""An isotropic family with local length scales ``ℓ(x)``, angles and standard deviation ``s(x)``.

    ``A(x) = R(x) diag(ℓ_1(x)², …, ℓ_d(x)²) R(x)ᵀ`` with the rotation of `spatialdiff.kernels.anisotropy`.
    Each local quantity is a number (a parameter, the same everywhere), a `GridField`, a function of
    coordinates, or a network, ``(..., d)`` → ``(..., components)``; a network's parameters are the kernel's.
    The family's own ``lengthscale`` and ``variance`` multiply: freeze them where the local quantities are
    fitted.

    Args:
        kernel: an isotropic family that is positive definite in every dimension (Matern, Gaussian, …), with
            one length scale.
        lengthscale: ``ℓ(x)``, one component or one per axis, positive (such as the exponential of a network).
        angles: radians, one component in two dimensions and three in three.
        anisotropy: ``A(x)`` itself, ``(..., d)`` → ``(..., d, d)``, symmetric positive definite, in place of
            ``lengthscale`` and ``angles``.
        standard_deviation: ``s(x)``, one component, positive.

    Raises:
        TypeError: a kernel that is no isotropic family; a local quantity of another kind.
        ValueError: a family that is not positive definite in every dimension; both or neither of
            ``lengthscale`` and ``anisotropy``; at evaluation, values of the wrong shape or not positive.
    """

    has_lengthscale = False

    def __init__(
        self,
        kernel: StationaryKernel,
        lengthscale: Local | None = None,
        *,
        angles: Local | None = None,
        anisotropy: Local | None = None,
        standard_deviation: Local | None = None,
    ) -> None:
        gaussian_mixture_family(kernel, "Nonstationary")
        if kernel.lengthscale.shape[-1] != 1:
            raise ValueError(
                f"Nonstationary: {type(kernel).__name__} has {kernel.lengthscale.shape[-1]} length scales; "
                "give it one, and the rest as lengthscale= or anisotropy=."
            )
        if (lengthscale is None) == (anisotropy is None):
            raise ValueError("Nonstationary: give either lengthscale (and angles) or anisotropy.")
        if anisotropy is not None and angles is not None:
            raise ValueError("Nonstationary: anisotropy has its rotation in it; give no angles.")
        super().__init__()
        self.kernel = kernel
        given = {
            "lengthscale": lengthscale,
            "angles": angles,
            "anisotropy": anisotropy,
            "standard_deviation": standard_deviation,
        }
        for name, value in given.items():
            local = None if value is None else as_local(value, f"Nonstationary: {name}")
            setattr(self, f"{name}_field", local)

    @property
    def is_stationary(self) -> bool:
        return False

    @property
    def variance(self) -> Tensor:
        """``σ²``, which ``s(x)²`` multiplies; see `variance_at`."""
        return self.kernel.variance

    @variance.setter
    def variance(self, value: float | Tensor) -> None:
        self.kernel.variance = value

    @property
    def nugget(self) -> Tensor:
        return self.kernel.nugget

    def variance_at(self, x: Tensor) -> Tensor:
        """``k(x, x) = σ² s(x)²`` at coordinates ``(..., d)`` → ``(*batch, ...)``."""
        square = self._local("standard_deviation", x).square()[..., 0]
        joint = square.expand(*self.batch_shape, *square.shape)
        return align(self.kernel.variance, joint) * joint

    def _local(self, name: str, x: Tensor) -> Tensor:
        """A positive local quantity, ``(..., components)``; 1 where none was given."""
        field = getattr(self, f"{name}_field")
        if field is None:
            return torch.ones_like(x[..., :1])
        title = f"Nonstationary: {name}"
        value = evaluate(field, x, title)
        if value.dim() == x.dim() - 1:
            value = value.unsqueeze(-1)
        most = 1 if name == "standard_deviation" else x.shape[-1]
        if value.dim() != x.dim() or value.shape[-1] not in (1, most):
            raise ValueError(
                f"{title} must have {' or '.join(map(str, sorted({1, most})))} components at each of "
                f"the sites {tuple(x.shape)}, got shape {tuple(value.shape)}."
            )
        if not bool((value.detach() > 0).all()):
            raise ValueError(
                f"{title} must be positive everywhere, smallest {float(value.detach().min()):g}."
            )
        return value

    def _matrices(self, x: Tensor) -> Tensor:
        """``A(x)``, ``(..., d)`` → ``(..., d, d)``."""
        d = x.shape[-1]
        if self.anisotropy_field is not None:
            matrices = evaluate(self.anisotropy_field, x, "Nonstationary: anisotropy")
            if matrices.shape != (*x.shape, d):
                raise ValueError(
                    f"Nonstationary: anisotropy must return shape {(*x.shape, d)}, got "
                    f"{tuple(matrices.shape)}."
                )
            if not torch.allclose(matrices, matrices.mT):
                raise ValueError("Nonstationary: anisotropy must be symmetric matrices.")
            return matrices
        angles = evaluate(self.angles_field, x, "Nonstationary: angles")
        if angles.dim() == x.dim() - 1:
            angles = angles.unsqueeze(-1)
        if d not in (2, 3) or angles.shape != (*x.shape[:-1], 1 if d == 2 else 3):
            raise ValueError(
                "Nonstationary: angles need one component in two dimensions and three in three; got shape "
                f"{tuple(angles.shape)} at sites {tuple(x.shape)}."
            )
        axes = rotation(angles)
        square = self._local("lengthscale", x).square()
        return (axes * square.unsqueeze(-2)) @ axes.mT

    def at_pairs(self, x1: Tensor, x2: Tensor) -> Tensor:
        """``k(x, x')`` of coordinates ``(..., d)`` that broadcast against each other → ``(*batch, ...)``; the
        local quantities are evaluated before they are broadcast.
        """
        h = x1 - x2
        if self.anisotropy_field is None and self.angles_field is None:
            square, log_root = self._along_axes(h, x1, x2)
        else:
            square, log_root = self._rotated(h, x1, x2)
        r = safe_sqrt(square)
        joint = r.expand(*self.batch_shape, *r.shape)
        ell = self.kernel.lengthscale.reshape(self.batch_shape)
        correlation = self.kernel.correlation(joint / align(ell, joint))
        if self.standard_deviation_field is not None:
            deviations = [self._local("standard_deviation", x)[..., 0] for x in (x1, x2)]
            correlation = correlation * deviations[0] * deviations[1]
        return align(self.kernel.variance, joint) * torch.exp(log_root) * correlation

    def _along_axes(self, h: Tensor, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """``hᵀ Ā⁻¹ h`` and ``log(|A|^{1/4} |A'|^{1/4} |Ā|^{-1/2})`` for diagonal ``A``."""
        d = h.shape[-1]
        first, second = (self._local("lengthscale", x) for x in (x1, x2))
        mean = (first.square() + second.square()) / 2
        logs = (first.log() + second.log() - mean.log()) / 2
        if logs.shape[-1] == 1:
            logs = logs * d
        return (h.square() / mean).sum(-1), logs.sum(-1)

    def _rotated(self, h: Tensor, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (self._matrices(x) for x in (x1, x2))
        parts = [_log_det(matrices) for matrices in (first, second)]
        lower, pivots = _factor((first + second) / 2)
        square = torch.zeros_like(h[..., 0])
        solved: list[Tensor] = []
        for i, pivot in enumerate(pivots):
            y = h[..., i]
            for j, previous in enumerate(solved):
                y = y - lower[i][j] * previous
            solved.append(y)
            square = square + y.square() / pivot
        log_mean = sum((pivot.log() for pivot in pivots), torch.zeros_like(square))
        return square, (parts[0] + parts[1]) / 4 - log_mean / 2

    def __repr__(self) -> str:
        names = ("lengthscale", "angles", "anisotropy", "standard_deviation")
        fields: dict[str, Any] = {name: getattr(self, f"{name}_field") for name in names}
        shown = ", ".join(f"{name}={field!r}" for name, field in fields.items() if field is not None)
        return f"Nonstationary({self.kernel!r}, {shown})"


def _factor(matrices: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
    """``A = L D Lᵀ`` of ``(..., d, d)``: the entries below the diagonal of ``L``, and ``D``, ``(...)``
    each.
    """
    d = matrices.shape[-1]
    lower: list[list[Tensor]] = []
    pivots: list[Tensor] = []
    for i in range(d):
        row: list[Tensor] = []
        for j in range(i):
            entry = matrices[..., i, j]
            for k in range(j):
                entry = entry - row[k] * lower[j][k] * pivots[k]
            row.append(entry / pivots[j])
        pivot = matrices[..., i, i]
        for k in range(i):
            pivot = pivot - row[k].square() * pivots[k]
        if not bool((pivot.detach() > 0).all()):
            raise ValueError(
                "Nonstationary: anisotropy must be positive definite at every site; it is not at "
                f"{int((pivot.detach() <= 0).sum())} of {pivot.numel()}."
            )
        lower.append(row)
        pivots.append(pivot)
    return lower, pivots


def _log_det(matrices: Tensor) -> Tensor:
    _, pivots = _factor(matrices)
    return torch.stack([pivot.log() for pivot in pivots]).sum(0)
