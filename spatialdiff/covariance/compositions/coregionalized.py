r"""Linear model of coregionalisation: ``Γ = Σ_q B_q ⊗ Γ_q`` over the channels [Wackernagel 2003, chapter 26].

Each term is ``Γ_q`` seen through a positive semi-definite ``B_q = L_q L_qᵀ``, which may have rank one: a
common cause of all channels. The factor is ``R = [L_1 ⊗ R_1 … L_Q ⊗ R_Q]``. Where all ``Γ_q`` share a
basis, Γ is block diagonal in it, with ``M_k = Σ_q γ_qk B_q`` for mode ``k``, and ``R = chol M_k`` is
square: everything is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.compositions.composite import CompositeCovariance, common_domain
from spatialdiff.covariance.report import CovarianceReport

# eigenvalues of a given B below this share of the largest are rounding
_TOLERANCE = 1e-10


def semidefinite_root(matrix: Tensor) -> Tensor:
    """``L`` with ``L Lᵀ = B`` for a positive semi-definite ``(C, C)`` matrix.

    Raises:
        ValueError: a matrix that is not square, finite, symmetric and positive semi-definite.
    """
    b = torch.as_tensor(matrix, dtype=torch.float64)
    if b.dim() != 2 or b.shape[0] != b.shape[1] or b.shape[0] < 1:
        raise ValueError(f"CoregionalizedCovariance: B must be a (C, C) matrix, got shape {tuple(b.shape)}.")
    if not bool(torch.isfinite(b).all()) or not torch.allclose(b, b.T, rtol=1e-10, atol=1e-12):
        raise ValueError("CoregionalizedCovariance: B must be finite and symmetric.")
    values, vectors = torch.linalg.eigh(b)
    largest = float(values.abs().max())
    if float(values[0]) < -_TOLERANCE * largest or largest == 0:
        raise ValueError(
            "CoregionalizedCovariance: B must be positive semi-definite and not zero, its eigenvalues are "
            f"{[round(v, 6) for v in values.tolist()]}."
        )
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return root


class CoregionalizedCovariance(CompositeCovariance):
    """``Γ = Σ_q B_q ⊗ Γ_q``.

    Args:
        terms: pairs of ``B_q``, ``(C, C)`` positive semi-definite, or an `nn.Parameter` ``L_q`` ``(*batch,
            C, r)`` that is trained and means ``B_q = L_q L_qᵀ``; and ``Γ_q``, a covariance without channels.
        options: see `CompositeCovariance`.

    Raises:
        ValueError: no term; different domains or sizes of ``B_q``; a ``Γ_q`` with channels; a ``B_q`` that is
            not positive semi-definite.
    """

    method = "coregionalized"

    def __init__(self, terms: Sequence[tuple[Tensor, Covariance]], **options: float) -> None:
        parts = [gamma for _, gamma in terms]
        domain = common_domain(parts, "CoregionalizedCovariance")
        for part in parts:
            if part.channels is not None:
                raise ValueError(
                    "CoregionalizedCovariance: every Γ_q must be spatial only, got "
                    f"channels={part.channels}; the channels come with B_q."
                )
        roots = [
            b if isinstance(b, torch.nn.Parameter) else semidefinite_root(torch.as_tensor(b))
            for b, _ in terms
        ]
        sizes = {root.shape[-2] for root in roots}
        if len(sizes) > 1:
            raise ValueError(f"CoregionalizedCovariance: the B_q have different sizes, {sorted(sizes)}.")
        super().__init__(domain, sizes.pop(), **options)  # type: ignore[arg-type]
        self.parts = torch.nn.ModuleList(parts)
        for q, root in enumerate(roots):
            if isinstance(root, torch.nn.Parameter):
                self.register_parameter(f"root_{q}", root)
            else:
                self.register_buffer(f"root_{q}", root)
        bases = [part.basis for part in parts if not part.is_white]
        self.basis = None
        self._modal: Basis | None = None
        if bases and all(b is not None and b.orthonormal and b == bases[0] for b in bases):
            self._modal = bases[0]

    @property
    def batch_shape(self) -> torch.Size:
        shapes = [root.shape[:-2] for root in self._roots()]
        return torch.Size(torch.broadcast_shapes(*shapes, *(part.batch_shape for part in self._members)))

    def _roots(self) -> list[Tensor]:
        return [getattr(self, f"root_{q}").double() for q in range(len(self._members))]

    @property
    def factor_shape(self) -> torch.Size:
        if self._modal is not None:
            return self.event_shape
        return torch.Size([sum(math.prod(size) for size in self._sizes())])

    def _factor_grid(self) -> tuple[int, ...]:
        return self.domain.shape if self._modal is not None else ()

    def _sizes(self) -> list[tuple[int, ...]]:
        """Shape of the white noise of each term: the columns of ``L_q``, then that of ``Γ_q``."""
        return [
            (root.shape[-1], *part.factor_shape)
            for root, part in zip(self._roots(), self._members, strict=True)
        ]

    # ---- one basis for all terms: a (C, C) matrix per mode
    def _compute_modes(self) -> Tensor:
        """``M_k``, shape ``(*batch, *modes, C, C)``."""
        assert self._modal is not None
        modes = self._modal.modes
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for root, part in zip(self._roots(), self._members, strict=True):
            values = part._variance() if part.is_white else part.spatial_eigenvalues()
            values = values.expand(*part.batch_shape, *modes)
            b = root @ root.mT
            b = b.reshape(*b.shape[:-2], *(1,) * len(modes), *b.shape[-2:])
            total = total + values[..., None, None] * b
        return total

    def _compute_modal_root(self) -> Tensor:
        matrices = self._factor("modes")
        factor, info = torch.linalg.cholesky_ex(matrices)
        if bool((info != 0).any()):
            raise ValueError(
                "CoregionalizedCovariance is not positive definite to working precision: the B_q together "
                "have not full rank in some mode; add a term with a Nugget and a B_q of full rank."
            )
        result: Tensor = factor
        return result

    def _compute_modal_inverse(self) -> Tensor:
        root = self._factor("modal_root")
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device).expand_as(root)
        result: Tensor = torch.linalg.solve_triangular(root, eye, upper=False)
        return result

    def _per_mode(self, x: Tensor, *matrices: Tensor) -> Tensor:
        """Matrices ``(*batch, *modes, C, C)``, one after the other, on the channels of each mode."""
        assert self._modal is not None
        axis = -len(self._modal.modes) - 1
        c = self._modal.analyze(x).movedim(axis, -1).unsqueeze(-1)
        for matrix in matrices:
            c = matrix.to(c.dtype) @ c
        return self._modal.synthesize(c.squeeze(-1).movedim(-1, axis))

    # ---- operations
    def _color(self, z: Tensor) -> Tensor:
        if self._modal is not None:
            return self._per_mode(z, self._factor("modal_root", z.dtype))
        pieces = z.split([math.prod(size) for size in self._sizes()], dim=-1)
        total = torch.zeros((), dtype=z.dtype, device=z.device)
        for root, part, piece, size in zip(self._roots(), self._members, pieces, self._sizes(), strict=True):
            white = piece.reshape(*piece.shape[:-1], *size).movedim(-len(size), 0)
            fields = torch.stack([part.color(column) for column in white], -self.domain.ndim - 1)
            total = total + self._on_columns(root, fields)
        return total

    def _on_columns(self, matrix: Tensor, x: Tensor) -> Tensor:
        """``matrix`` on the axis before those of the domain."""
        flat = x.flatten(-self.domain.ndim)
        return (matrix.to(x.dtype) @ flat).reshape(*flat.shape[:-2], matrix.shape[-2], *self.domain.shape)

    def _whiten(self, x: Tensor) -> Tensor:
        if self._modal is None:
            return super()._whiten(x)
        return self._per_mode(x, self._factor("modal_inverse", x.dtype))

    def _matmul(self, x: Tensor) -> Tensor:
        if self._modal is not None:
            return self._per_mode(x, self._factor("modes", x.dtype))
        total = torch.zeros_like(x)
        for root, part in zip(self._roots(), self._members, strict=True):
            each = [part.matmul(channel) for channel in x.movedim(-self.domain.ndim - 1, 0)]
            total = total + self._on_columns(root @ root.mT, torch.stack(each, -self.domain.ndim - 1))
        return total

    def _solve(self, x: Tensor) -> Tensor:
        if self._modal is None:
            return super()._solve(x)
        inverse = self._factor("modal_inverse", x.dtype)
        return self._per_mode(x, inverse, inverse.mT)

    def _log_det(self) -> Tensor:
        if self._modal is None:
            return super()._log_det()
        logs = 2 * self._factor("modal_root").diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (logs * self._modal.weights.to(self.device)).sum(tuple(range(-len(self._modal.modes), 0)))

    def _log_det_standard_error(self) -> Tensor:
        if self._modal is None:
            return super()._log_det_standard_error()
        return torch.zeros(self.batch_shape, dtype=torch.float64, device=self.device)

    def _variance(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for root, part in zip(self._roots(), self._members, strict=True):
            scale = root.square().sum(-1)
            scale = scale.reshape(*scale.shape, *(1,) * self.domain.ndim)
            total = total + scale * part.variance().unsqueeze(-self.domain.ndim - 1)
        return total

    def _report(self) -> CovarianceReport:
        parts = [part.report for part in self._members]
        how = "a matrix per mode of the shared basis" if self._modal is not None else "factors side by side"
        return CovarianceReport(
            self.method,
            exact=all(p.exact for p in parts),
            reason=f"{len(parts)} terms B ⊗ Γ of {', '.join(p.method for p in parts)}: {how}",
            log_det="" if self._modal is not None else self._determinant_note(),
        )
