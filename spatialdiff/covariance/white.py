"""White noise: ``Γ_s = σ² I``, diagonal in every basis."""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Grid
from spatialdiff.kernels.base import positive


class WhiteCovariance(Covariance):
    """``Γ = B ⊗ σ² I``, ``R = σ I``.

    Args:
        domain: the grid.
        variance: ``σ²``.
        channels: see `Covariance`.
    """

    method = "white"
    is_white = True
    variance_: Tensor

    def __init__(self, domain: Grid, variance: float | Tensor = 1.0, channels: Channels = None) -> None:
        super().__init__(domain, channels)
        self.register_buffer("variance_", positive(variance, "WhiteCovariance: variance").reshape(()))

    def _scaled(self, x: Tensor, power: float) -> Tensor:
        return x * self.variance_.to(x.dtype).pow(power)

    def _color(self, z: Tensor) -> Tensor:
        return self._scaled(z, 0.5)

    def _whiten(self, x: Tensor) -> Tensor:
        return self._scaled(x, -0.5)

    def _matmul(self, x: Tensor) -> Tensor:
        return self._scaled(x, 1.0)

    def _solve(self, x: Tensor) -> Tensor:
        return self._scaled(x, -1.0)

    def _log_det(self) -> Tensor:
        return self.domain.size * self.variance_.log()

    def _variance(self) -> Tensor:
        return self.variance_

    @property
    def report(self) -> CovarianceReport:
        return CovarianceReport(
            self.method, exact=True, error_bound=0.0, condition_number=1.0, reason="independent sites"
        )


def white(domain: Grid, channels: Channels = None, variance: float | Tensor = 1.0) -> WhiteCovariance:
    """White noise on a grid: the ``Γ`` of every ordinary diffusion model."""
    return WhiteCovariance(domain, variance, channels)
