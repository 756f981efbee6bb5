"""White noise: ``Γ_s = σ² I``, diagonal in every basis."""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, MaskedGrid
from spatialdiff.kernels import Nugget
from spatialdiff.kernels.base import positive


class WhiteCovariance(Covariance):
    """``Γ = B ⊗ σ² I``, ``R = σ I``.

    Args:
        domain: any domain.
        variance: ``σ²``, or a `Nugget` whose variance it is.
        channels: see `Covariance`.

    Raises:
        ValueError: a variance that is not positive and finite.
    """

    method = "white"
    is_white = True
    variance_: Tensor | None

    def __init__(
        self, domain: Domain, variance: float | Tensor | Nugget = 1.0, channels: Channels = None
    ) -> None:
        kernel = variance if isinstance(variance, Nugget) else None
        super().__init__(domain, channels, kernel)
        value = (
            None
            if isinstance(variance, Nugget)
            else positive(variance, "WhiteCovariance: variance").reshape(())
        )
        self.register_buffer("variance_", value)

    def _site_variance(self) -> Tensor:
        if self.variance_ is not None:
            return self.variance_
        assert isinstance(self.kernel, Nugget)
        return self.kernel.variance.to(device=self.device, dtype=torch.float64)

    def _per_site(self) -> Tensor:
        """``σ²``, ``(*batch, 1, …)``."""
        value = self._site_variance()
        return value.reshape(*value.shape, *(1,) * self.domain.ndim)

    def _scaled(self, x: Tensor, power: float) -> Tensor:
        if isinstance(self.domain, MaskedGrid):
            x = self.domain.fill(x, 0.0)
        return x * self._per_site().pow(power).to(x.dtype)

    def _color(self, z: Tensor) -> Tensor:
        return self._scaled(z, 0.5)

    def _whiten(self, x: Tensor) -> Tensor:
        return self._scaled(x, -0.5)

    def _matmul(self, x: Tensor) -> Tensor:
        return self._scaled(x, 1.0)

    def _solve(self, x: Tensor) -> Tensor:
        return self._scaled(x, -1.0)

    def _log_det(self) -> Tensor:
        return self.domain.size * self._site_variance().log()

    def _variance(self) -> Tensor:
        if isinstance(self.domain, MaskedGrid):
            return self._per_site() * self.domain.valid.to(self.device)
        return self._per_site()

    def _report(self) -> CovarianceReport:
        return CovarianceReport(
            self.method, exact=True, error_bound=0.0, condition_number=1.0, reason="independent sites"
        )


def white(domain: Domain, channels: Channels = None, variance: float | Tensor = 1.0) -> WhiteCovariance:
    """White noise on a domain: the ``Γ`` of every ordinary diffusion model."""
    return WhiteCovariance(domain, variance, channels)
