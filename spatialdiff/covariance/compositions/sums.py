r"""``Γ = Γ_1 + … + Γ_Q``: the law of a sum of independent fields.

With ``Γ_q = R_q R_qᵀ`` the factor is ``R = [R_1 … R_Q]``. Where all parts are diagonal in one basis Γ is
too, with the sum of the eigenvalues, and everything is exact; white noise is diagonal in every basis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.compositions.composite import CompositeCovariance, common_channels, common_domain
from spatialdiff.covariance.report import CovarianceReport


class SumCovariance(CompositeCovariance):
    """Sum of covariances on one domain; also made by ``gamma_1 + gamma_2``.

    Args:
        parts: covariances with the same channels, or without.
        options: ``tolerance``, ``log_det_tolerance``, ``max_iterations`` of `CompositeCovariance`.

    Raises:
        ValueError: no part; different domains or numbers of channels.
    """

    method = "sum"
    basis: Basis | None

    def __init__(self, *parts: Covariance, **options: float) -> None:
        flat = [p for part in parts for p in (part._members if isinstance(part, SumCovariance) else [part])]
        domain = common_domain(flat, "SumCovariance")
        super().__init__(domain, common_channels(flat, "SumCovariance"), **options)  # type: ignore[arg-type]
        self.parts = torch.nn.ModuleList(flat)
        self.basis = self._common_basis()
        self.is_white = all(part.is_white for part in flat) and self.basis is None

    def _common_basis(self) -> Basis | None:
        bases = [part.basis for part in self._members if not part.is_white]
        diagonal = all(part.channel_matrix is None for part in self._members)
        shared = bool(bases) and all(b is not None and b.orthonormal and b == bases[0] for b in bases)
        return bases[0] if diagonal and shared else None

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size(torch.broadcast_shapes(*(part.batch_shape for part in self._members)))

    def _sizes(self) -> list[tuple[int, ...]]:
        """Shape of the white noise of each part, with the channels of the event."""
        return [
            (*self._lead(), *part.factor_shape) if part.channels is None else tuple(part.factor_shape)
            for part in self._members
        ]

    @property
    def factor_shape(self) -> torch.Size:
        if self.basis is not None:
            return self.event_shape
        return torch.Size([sum(math.prod(size) for size in self._sizes())])

    def _factor_grid(self) -> tuple[int, ...]:
        return tuple(self.factor_shape)[len(self._lead()) :] if self.basis is not None else ()

    def _compute_eigenvalues(self) -> Tensor:
        assert self.basis is not None
        modes, ndim, batch = self.basis.modes, self.domain.ndim, len(self.batch_shape)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in self._members:
            values = part._variance() if part.is_white else part.spatial_eigenvalues()
            values = values.expand(*values.shape[: values.dim() - ndim], *modes)
            if self.channels is not None and values.dim() == ndim + len(part.batch_shape):
                values = values.unsqueeze(-ndim - 1)
            total = total + values
        return total.expand(*self.batch_shape, *self._lead(), *modes) if batch or self.channels else total

    def spatial_eigenvalues(self) -> Tensor:
        if self.basis is None:
            return super().spatial_eigenvalues()
        return self._factor("eigenvalues")

    def _power(self, x: Tensor, power: float) -> Tensor:
        assert self.basis is not None
        return self.basis.multiply(x, self._factor("eigenvalues").pow(power).to(x.dtype))

    def _color(self, z: Tensor) -> Tensor:
        if self.basis is not None:
            return self._power(z, 0.5)
        pieces = z.split([math.prod(size) for size in self._sizes()], dim=-1)
        fields = [
            self._through(part, part.color, piece.reshape(*piece.shape[:-1], *size), len(part._factor_grid()))
            for part, piece, size in zip(self._members, pieces, self._sizes(), strict=True)
        ]
        return torch.stack(fields).sum(0)

    def _whiten(self, x: Tensor) -> Tensor:
        return self._power(x, -0.5) if self.basis is not None else super()._whiten(x)

    def _matmul(self, x: Tensor) -> Tensor:
        if self.basis is not None:
            return self._power(x, 1.0)
        axes = self.domain.ndim
        return torch.stack([self._through(part, part.matmul, x, axes) for part in self._members]).sum(0)

    def _solve(self, x: Tensor) -> Tensor:
        return self._power(x, -1.0) if self.basis is not None else super()._solve(x)

    def _log_det(self) -> Tensor:
        if self.basis is None:
            return super()._log_det()
        values = self._factor("eigenvalues")
        weights = self.basis.weights.to(self.device)
        axes = tuple(range(-self.domain.ndim - len(self._lead()), 0))
        return (weights * values.log()).sum(axes)

    def _log_det_standard_error(self) -> Tensor:
        if self.basis is None:
            return super()._log_det_standard_error()
        return torch.zeros(self.batch_shape, dtype=torch.float64, device=self.device)

    def _variance(self) -> Tensor:
        return torch.stack([self._of_event(part) for part in self._members]).sum(0)

    def _of_event(self, part: Covariance) -> Tensor:
        values = part.variance()
        if part.channels is None and self.channels is not None:
            values = values.unsqueeze(-self.domain.ndim - 1)
        return values.expand(*self.batch_shape, *self.event_shape)

    def _report(self) -> CovarianceReport:
        parts = [part.report for part in self._members]
        bounds = [p.error_bound for p in parts]
        known = all(b is not None for b in bounds)
        how = "diagonal in the basis of the parts" if self.basis is not None else "factors side by side"
        return CovarianceReport(
            self.method,
            exact=all(p.exact for p in parts),
            error_bound=sum(b for b in bounds if b is not None) if known else None,
            reason=f"sum of {', '.join(_named(p) for p in parts)}: {how}",
            log_det="" if self.basis is not None else self._determinant_note(),
        )


def _named(part: CovarianceReport) -> str:
    """The structure of a part, and what is approximate in it."""
    return part.method if part.exact else f"{part.method} (approximate: {part.reason})"
