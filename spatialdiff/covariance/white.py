"""White noise: ``Γ_s = σ² I``, diagonal in every basis.

The ``n`` entries of a row at a pole of a sphere are one site ``v``, and ``Γ_s = σ² 1 1ᵀ`` among them, whose
symmetric root is ``σ 1 1ᵀ/√n`` and whose inverse, on rows that are constant, ``1 1ᵀ/(n² σ²)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.spheres.orders import POLE_ADVICE, check_poles
from spatialdiff.domains import Domain, MaskedGrid, Sphere
from spatialdiff.kernels import Nugget
from spatialdiff.kernels.base import positive


class WhiteCovariance(Covariance):
    """``Γ = B ⊗ σ² I``, ``R = σ I``; a row at a pole of a sphere is one site.

    Args:
        domain: any domain.
        variance: ``σ²``, or a `Nugget` whose variance it is.
        channels: see `Covariance`.

    Raises:
        ValueError: a variance that is not positive and finite.
    """

    method = "white"
    variance_: Tensor | None

    def __init__(
        self, domain: Domain, variance: float | Tensor | Nugget = 1.0, channels: Channels = None
    ) -> None:
        kernel = variance if isinstance(variance, Nugget) else None
        super().__init__(domain, channels, kernel)
        self._poles = isinstance(domain, Sphere) and domain.poles
        self.is_white = not self._poles
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
        if self._poles:
            columns = self.domain.shape[1]
            rows = x[..., [0, -1], :].mean(-1, keepdim=True).expand(*x.shape[:-2], 2, columns)
            rows = rows * columns**power
            x = torch.cat([rows[..., :1, :], x[..., 1:-1, :], rows[..., 1:, :]], dim=-2)
        return x * self._per_site().pow(power).to(x.dtype)

    def _color(self, z: Tensor) -> Tensor:
        return self._scaled(z, 0.5)

    def _whiten(self, x: Tensor) -> Tensor:
        if self._poles:
            raise ValueError(
                f"whiten: {self.domain} repeats each pole {self.domain.shape[1]} times, so that R has no "
                f"inverse. {POLE_ADVICE}; or solve() and quad_form(), which count a pole once."
            )
        return self._scaled(x, -0.5)

    def _matmul(self, x: Tensor) -> Tensor:
        return self._scaled(x, 1.0)

    def _solve(self, x: Tensor) -> Tensor:
        if self._poles:
            assert isinstance(self.domain, Sphere)
            check_poles(self.domain, x)
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
