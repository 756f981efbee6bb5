r"""Isotropic Γ on a latitude–longitude grid, order by order.

Γ depends on longitudes through their difference only and is the same in both hemispheres. So the orthonormal
DFT along longitude and the even and odd parts about the equator, ``(x(φ) ± x(-φ))/√2``, split it into one
symmetric matrix ``Γ_{m±}`` of half the latitudes for each order ``m = 0, …, ⌊n_λ/2⌋`` and parity: ``n_λ``
problems of size ``n_φ/2`` in place of one of size ``n_φ n_λ``. With ``Γ_{m±} = L_{m±} L_{m±}ᵀ``, ``R = Fᴴ (⊕
L_{m±}) F`` is real and square.

A pole is one site that a field repeats ``n_λ`` times: only ``m = 0`` sees it, with ``√n_λ`` times its value.
Γ of the ``n_φ n_λ`` entries is then singular, and ``Γ⁻¹`` below is the inverse on fields that are constant
along a pole, so that ``xᵀΓ⁻¹x`` is that of the different sites; ``log det`` is theirs too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.domains.sphere import Sphere

# what the diagonal of Γ may be raised by, relative to the variance, before a matrix counts as no covariance
_JITTER = (1e-15, 1e-14, 1e-13, 1e-12, 1e-11)
POLE_ADVICE = (
    "Use Sphere(..., poles=False), whose latitudes are those of cell centres, or a Gauss-Legendre grid"
)


class OrderCovariance(Covariance):
    """What the structures on a sphere share; a subclass gives ``_compute_matrix``, the ``Γ_{m±}`` as
    ``(*batch, 2, orders, h, h)`` with rows from the pole to the equator, 0 where `void_` is True.
    """

    domain: Sphere
    void_: Tensor
    multiplicity_: Tensor
    _jitters: tuple[float, ...] = _JITTER

    def __init__(
        self, domain: Sphere, channels: Channels = None, kernel: gpytorch.kernels.Kernel | None = None
    ) -> None:
        if not isinstance(domain, Sphere):
            raise TypeError(f"{type(self).__name__} needs a Sphere, got {type(domain).__name__}.")
        super().__init__(domain, channels, kernel)
        self._jitter = 0.0
        rows, columns = domain.shape
        self._half, orders = (rows + 1) // 2, columns // 2 + 1
        void = torch.zeros(2, orders, self._half, dtype=torch.bool)
        void[1, :, -1] = rows % 2 == 1
        void[:, 1:, 0] |= domain.poles
        multiplicity = torch.full((orders,), 2.0, dtype=torch.float64)
        multiplicity[0] = 1.0
        if columns % 2 == 0:
            multiplicity[-1] = 1.0
        self.register_buffer("void_", void, persistent=False)
        self.register_buffer("multiplicity_", multiplicity, persistent=False)

    @abstractmethod
    def _compute_matrix(self) -> Tensor: ...

    # ---- the transform
    def _equator(self, at_equator: float, elsewhere: float) -> Tensor:
        """``(h, 1)``: one value for the row of the equator, where there is one, another for the rest."""
        values = torch.full((self._half, 1), elsewhere, dtype=torch.float64, device=self.device)
        if self.domain.shape[0] % 2:
            values[-1] = at_equator
        return values

    def _split(self, x: Tensor) -> Tensor:
        """Fields ``(..., n_φ, n_λ)`` → complex ``(..., 2, h, orders)``, an orthonormal transform."""
        spectrum = torch.fft.rfft(x, dim=-1, norm="ortho")
        south, north = spectrum[..., : self._half, :], spectrum.flip(-2)[..., : self._half, :]
        even = (north + south) * self._equator(0.5, math.sqrt(0.5)).to(x)
        return torch.stack([even, (north - south) * math.sqrt(0.5)], dim=-3)

    def _join(self, spectrum: Tensor, dtype: torch.dtype) -> Tensor:
        """The inverse of `_split`."""
        scale = self._equator(1.0, math.sqrt(0.5)).to(dtype)
        even, odd = spectrum[..., 0, :, :], spectrum[..., 1, :, :]
        south, north = (even - odd) * scale, (even + odd) * scale
        rows = torch.cat([south, north[..., : self.domain.shape[0] // 2, :].flip(-2)], dim=-2)
        result: Tensor = torch.fft.irfft(rows, n=self.domain.shape[1], dim=-1, norm="ortho")
        return result

    def _by_order(self, x: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
        """``operation`` on real columns ``(*batch, 2, orders, h, k)``."""
        spectrum = torch.view_as_real(self._split(x))
        batch, lead = len(self.batch_shape), spectrum.dim() - 4 - len(self.batch_shape)
        shape = spectrum.shape
        stacked = spectrum.reshape(math.prod(shape[:lead]), *shape[lead:])
        # (samples, *batch, parity, row, order, part) → (*batch, parity, order, row, samples, part)
        order = (*range(1, batch + 2), batch + 3, batch + 2, 0, batch + 4)
        columns = stacked.permute(order)
        result = operation(columns.flatten(-2)).unflatten(-1, columns.shape[-2:])
        inverse = [order.index(i) for i in range(len(order))]
        back = result.permute(inverse).reshape(shape).contiguous()
        return self._join(torch.view_as_complex(back), x.dtype)

    # ---- factors
    def _compute_root(self) -> Tensor:
        """Cholesky factors, with 1 on the diagonal where there is no site."""
        matrix = self._factor("matrix")
        scale = self._variance().detach().reshape(*self.batch_shape, 1, 1, 1)
        void = self.void_.double()
        jitter = torch.zeros(matrix.shape[:-2], dtype=torch.float64, device=matrix.device)
        for following in (*self._jitters, None):
            diagonal = void + (jitter * scale.squeeze(-1)).unsqueeze(-1)
            factor, info = torch.linalg.cholesky_ex(matrix + torch.diag_embed(diagonal))
            failed = (info != 0) | ~torch.isfinite(factor.detach().diagonal(dim1=-2, dim2=-1)).all(-1)
            if not bool(failed.any()):
                self._jitter = float(jitter.max())
                break
            if following is None:
                raise ValueError(self._not_definite(failed))
            jitter = torch.where(failed, following, jitter)
        result: Tensor = factor
        return result

    def _not_definite(self, failed: Tensor) -> str:
        matrix = self._factor("matrix").detach()[failed]
        smallest = float(torch.linalg.eigvalsh(matrix).min()) / self.domain.shape[1]
        return (
            f"{self.kernel!r} is not positive definite on {self.domain}: for {int(failed.sum())} of "
            f"{failed.numel()} orders and parities, with smallest eigenvalue {smallest:.3g} per site. Use a "
            "kernel that is valid on the sphere: any R³ family, at chordal distance, or a family of the "
            "great-circle angle."
        )

    def _invertible_root(self, dtype: torch.dtype) -> Tensor:
        root = self._factor("root", dtype)
        pivots = self._factor("root").detach().diagonal(dim1=-2, dim2=-1).square()
        # what rounding of n_λ terms leaves of an eigenvalue that is 0
        scale = self._variance().detach().reshape(*self.batch_shape, 1, 1, 1)
        floor = 64 * torch.finfo(torch.float64).eps * math.sqrt(self.domain.shape[1]) * scale
        singular = int(((pivots <= floor) & ~self.void_).sum())
        if self._jitter > 0 or singular:
            raise ValueError(
                f"Γ on {self.domain} is singular to working precision: "
                + (f"{singular} pivots are" if singular else "its Cholesky factors are lost")
                + " below rounding (sites next to a pole are close together). It can be sampled, not "
                "inverted; add a Nugget to the kernel, or use a rougher or shorter one."
            )
        return root

    # ---- operations
    def _color(self, z: Tensor) -> Tensor:
        root = self._factor("root", z.dtype)
        keep = (~self.void_).to(z.dtype).unsqueeze(-1)
        return self._by_order(z, lambda columns: root @ (columns * keep))

    def _whiten(self, x: Tensor) -> Tensor:
        if self.domain.poles:
            raise ValueError(
                f"whiten: {self.domain} repeats each pole {self.domain.shape[1]} times, so that R has no "
                f"inverse. {POLE_ADVICE}; or solve() and quad_form(), which count a pole once."
            )
        root = self._invertible_root(x.dtype)
        return self._by_order(x, lambda columns: torch.linalg.solve_triangular(root, columns, upper=False))

    def _matmul(self, x: Tensor) -> Tensor:
        matrix = self._factor("matrix", x.dtype)
        return self._by_order(x, lambda columns: matrix @ columns)

    def _solve(self, x: Tensor) -> Tensor:
        if self.domain.poles:
            check_poles(self.domain, x)
        root = self._invertible_root(x.dtype)
        keep = (~self.void_).to(x.dtype).unsqueeze(-1)
        return self._by_order(x, lambda columns: torch.cholesky_solve(columns * keep, root))

    def _log_det(self) -> Tensor:
        logs = self._invertible_root(torch.float64).diagonal(dim1=-2, dim2=-1).log().sum((-1, -3))
        # the order 0 of a pole has √n_λ times its value
        repeated = 2 * math.log(self.domain.shape[1]) if self.domain.poles else 0.0
        return 2 * (logs * self.multiplicity_).sum(-1) - repeated


def check_poles(sphere: Sphere, x: Tensor) -> None:
    """Raise where a field is not constant along a pole, which is one site."""
    rows = x.detach()[..., [0, -1], :]
    spread = float((rows - rows[..., :1]).abs().max()) if x.numel() else 0.0
    if spread > 1e3 * torch.finfo(x.dtype).eps * float(x.detach().abs().max()):
        raise ValueError(
            f"solve: the values along a pole differ by up to {spread:.3g}, but the {sphere.shape[1]} entries "
            f"of that row are one site. Set them to their mean; or: {POLE_ADVICE}."
        )
