r"""``Γ' = diag(s) Γ diag(s)``: a standard deviation that varies over the domain, or one number.

``R' = diag(s) R``, ``log det Γ' = log det Γ + 2 Σ log s``: whatever Γ has, Γ' has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.compositions.composite import CompositeCovariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import MaskedGrid


class ScaledCovariance(CompositeCovariance):
    """Γ with a field of standard deviations; also made by ``gamma.scaled(std)``.

    Args:
        gamma: Γ.
        std: ``s > 0``, in units of the field over those of Γ: one number, or a tensor that broadcasts to the
            event, ``(*domain.shape)`` or ``(C, *domain.shape)``. An `nn.Parameter` is trained with the
            parameters of the kernel.

    Raises:
        ValueError: a standard deviation that is not positive and finite, or of another shape.
    """

    method = "scaled"

    def __init__(self, gamma: Covariance, std: float | Tensor) -> None:
        super().__init__(gamma.domain, gamma.channels)
        self.gamma = gamma
        values = std if isinstance(std, torch.nn.Parameter) else torch.as_tensor(std, dtype=torch.float64)
        try:
            values.expand(gamma.event_shape)
        except RuntimeError:
            raise ValueError(
                f"ScaledCovariance: std must broadcast to {tuple(gamma.event_shape)}, got shape "
                f"{tuple(values.shape)}."
            ) from None
        seen = values.detach().expand(gamma.event_shape)
        if isinstance(gamma.domain, MaskedGrid):
            seen = gamma.domain.flatten(seen)
        if not bool((torch.isfinite(seen) & (seen > 0)).all()):
            raise ValueError(
                "ScaledCovariance: standard deviations must be positive and finite; the smallest is "
                f"{float(seen.min()):.3g}."
            )
        if isinstance(values, torch.nn.Parameter):
            self.std = values
        else:
            self.register_buffer("std", values.clone())

    @property
    def batch_shape(self) -> torch.Size:
        return self.gamma.batch_shape

    @property
    def factor_shape(self) -> torch.Size:
        return self.gamma.factor_shape

    def _factor_grid(self) -> tuple[int, ...]:
        return tuple(self.factor_shape)[len(self._lead()) :]

    def _scale(self, x: Tensor, power: int) -> Tensor:
        std = self.std.to(x.dtype)
        if isinstance(self.domain, MaskedGrid):
            std = self.domain.fill(std.expand(self.event_shape), 1.0)
        return x * std if power == 1 else x / std

    def _color(self, z: Tensor) -> Tensor:
        return self._scale(self.gamma.color(z), 1)

    def _whiten(self, x: Tensor) -> Tensor:
        return self.gamma.whiten(self._scale(x, -1))

    def _matmul(self, x: Tensor) -> Tensor:
        return self._scale(self.gamma.matmul(self._scale(x, 1)), 1)

    def _solve(self, x: Tensor) -> Tensor:
        return self._scale(self.gamma.solve(self._scale(x, -1)), -1)

    def _log_det(self) -> Tensor:
        logs, sites = self.std.double().log().expand(self.event_shape), self._sites()
        return self.gamma.log_det() + 2 * (logs if sites is None else logs[sites]).sum()

    def _log_det_standard_error(self) -> Tensor:
        return self.gamma.log_det_standard_error()

    def _variance(self) -> Tensor:
        return self._scale(self._scale(self.gamma.variance(), 1), 1)

    def _report(self) -> CovarianceReport:
        inner = self.gamma.report
        largest = float(self.std.detach().max()) ** 2
        return CovarianceReport(
            self.method,
            exact=inner.exact,
            error_bound=None if inner.error_bound is None else largest * inner.error_bound,
            reason=f"standard deviations times {inner.method}: {inner.reason}",
            padding=inner.padding,
            log_det=inner.log_det,
        )
