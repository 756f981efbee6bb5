r"""Independent blocks of channels: ``Γ = diag(Γ_1, …, Γ_Q)``, the product of the laws ``N(0, Γ_q)``.

Whatever every block has, Γ has: the factor is ``diag(R_1, …, R_Q)`` and ``log det Γ = Σ log det Γ_q``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.compositions.composite import CompositeCovariance, common_domain
from spatialdiff.covariance.report import CovarianceReport


class BlockCovariance(CompositeCovariance):
    """Covariances stacked along the channel axis, independent of each other.

    Args:
        parts: one covariance per block; a block has its number of channels, or one where it has none.

    Raises:
        ValueError: no part; different domains.
    """

    method = "blocks"

    def __init__(self, *parts: Covariance) -> None:
        domain = common_domain(parts, "BlockCovariance")
        super().__init__(domain, sum(part.channels or 1 for part in parts))
        self.parts = torch.nn.ModuleList(parts)

    @property
    def batch_shape(self) -> torch.Size:
        return torch.Size(torch.broadcast_shapes(*(part.batch_shape for part in self._members)))

    @property
    def factor_shape(self) -> torch.Size:
        shapes = [(part.channels or 1, *part._factor_grid()) for part in self._members]
        if all(shape[1:] == shapes[0][1:] for shape in shapes) and not self._flat():
            return torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:]))
        return torch.Size([sum(math.prod(part.factor_shape) for part in self._members)])

    def _flat(self) -> bool:
        """Whether the factors are no stack over channels."""
        return any(
            tuple(part.factor_shape) != (*part._lead(), *part._factor_grid()) for part in self._members
        )

    def _factor_grid(self) -> tuple[int, ...]:
        return tuple(self.factor_shape)[1:]

    def _each(self, x: Tensor, operation: Callable[[Covariance, Tensor], Tensor], axes: int) -> Tensor:
        """``operation`` on the channels of each part; ``axes`` axes follow the channels."""
        results, at = [], 0
        for part in self._members:
            count = part.channels or 1
            piece = x.narrow(-axes - 1, at, count)
            result = operation(part, piece if part.channels is not None else piece.squeeze(-axes - 1))
            results.append((result, part.channels is None))
            at += count
        return self._joined(results)

    def _joined(self, results: list[tuple[Tensor, bool]]) -> Tensor:
        ndim = self.domain.ndim
        fields = [r.unsqueeze(-ndim - 1) if bare else r for r, bare in results]
        return torch.cat(fields, -ndim - 1)

    def _color(self, z: Tensor) -> Tensor:
        if len(self.factor_shape) > 1:
            return self._each(z, lambda part, piece: part.color(piece), len(self.factor_shape) - 1)
        pieces = z.split([math.prod(part.factor_shape) for part in self._members], dim=-1)
        return self._joined(
            [
                (part.color(piece.reshape(*piece.shape[:-1], *part.factor_shape)), part.channels is None)
                for part, piece in zip(self._members, pieces, strict=True)
            ]
        )

    def _whiten(self, x: Tensor) -> Tensor:
        if self.factor_shape != self.event_shape:
            return super()._whiten(x)
        return self._each(x, lambda part, piece: part.whiten(piece), self.domain.ndim)

    def _matmul(self, x: Tensor) -> Tensor:
        return self._each(x, lambda part, piece: part.matmul(piece), self.domain.ndim)

    def _solve(self, x: Tensor) -> Tensor:
        return self._each(x, lambda part, piece: part.solve(piece), self.domain.ndim)

    def _log_det(self) -> Tensor:
        values = [part.log_det().expand(self.batch_shape) for part in self._members]
        return torch.stack(values).sum(0)

    def _log_det_standard_error(self) -> Tensor:
        errors = [part.log_det_standard_error().expand(self.batch_shape) for part in self._members]
        return torch.stack(errors).square().sum(0).sqrt()

    def _variance(self) -> Tensor:
        batch = self.batch_shape
        return self._joined(
            [
                (part.variance().expand(*batch, *part.event_shape), part.channels is None)
                for part in self._members
            ]
        )

    def _report(self) -> CovarianceReport:
        parts = [part.report for part in self._members]
        bounds = [p.error_bound for p in parts]
        notes = {p.log_det for p in parts if p.log_det}
        return CovarianceReport(
            self.method,
            exact=all(p.exact for p in parts),
            error_bound=max(b for b in bounds if b is not None) if None not in bounds else None,
            reason=f"independent blocks: {', '.join(p.method for p in parts)}",
            log_det="; ".join(sorted(notes)),
        )
