r"""The covariance of a field given observations, as a covariance Γ.

``Γ = Γ_tt - Γ_to A⁻¹ Γ_ot + r (FᵀA⁻¹F)⁻¹ rᵀ``, ``A = Γ_oo + N``: the law of the error of kriging. Draws are
those of Matheron's rule, ``R z = x_t - P(x_o + e)`` with a joint prior draw ``(x_t, x_o)``, errors
``e ~ N(0, N)`` and ``P`` the kriging predictor, drift included: linear in the white noise and jointly right at all
targets [Chilès & Delfiner 2012, section 7.3.1]. Scaling a prior draw by the kriging standard deviation is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.conditioning.prior import JointPrior
from spatialdiff.covariance import Covariance, covariance
from spatialdiff.covariance.compositions.composite import CompositeCovariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, MaskedGrid

if TYPE_CHECKING:
    from spatialdiff.conditioning.kriging import Kriging

# entries of the weights that are kept
_HELD = 40_000_000


class ConditionalCovariance(CompositeCovariance):
    """Γ of a field given observations; made by `Kriging.covariance`.

    `sample` and `color` take a joint prior draw and a kriging step; `matmul` and `variance` are exact;
    `solve` and `log_det` exist where no target was observed without error (elsewhere Γ is singular).

    Args:
        kriging: of all observations together.
        domain: the targets.
        drift: the drift functions at the targets ``(t, q)``.
    """

    method = "conditional"

    def __init__(self, kriging: Kriging, domain: Domain, drift: Tensor) -> None:
        super().__init__(domain, kriging.law.channels)
        self.kriging, self._drift = kriging, drift
        self._prior: JointPrior | None = None
        self._gamma: Covariance | None = None
        self._weights: Tensor | None = None

    @property
    def prior(self) -> JointPrior:
        """The joint law of targets and observations."""
        if self._prior is None:
            k = self.kriging
            self._prior = JointPrior(k.law.kernel, self.domain, k.sites, k.place, k.channel)
        return self._prior

    @property
    def factor_shape(self) -> torch.Size:
        return torch.Size((self.prior.factor_size + len(self.kriging.place),))

    def _color(self, z: Tensor) -> Tensor:
        size = self.prior.factor_size
        with torch.no_grad():
            field, values = self.prior.color(z[..., :size].double())
            values = values + z[..., size:].double() * self.kriging.noise.sqrt()
            result = field - self.kriging.predictor(values, self.domain, self._drift)
        return result.to(z.dtype)

    def _reach(self) -> tuple[Tensor, Tensor]:
        """``L⁻¹ Γ_ot`` ``(m, C t)`` and ``R⁻ᵀ rᵀ`` ``(q, C t)``."""
        k = self.kriging
        sites = self.domain.sites()
        cross, drift = k.cross(sites), k.spread(self._drift)
        white, rest = k.dense.project(cross.flatten(0, 1), drift.flatten(0, 1))
        # channels before sites, as in a field
        count, channels = len(sites), k.law.count
        white = white.reshape(-1, count, channels).mT.flatten(1)
        return white, rest.reshape(-1, count, channels).mT.flatten(1)

    def _held_reach(self) -> Tensor:
        if self._weights is None:
            k = self.kriging
            entries = (len(k.place) + k.dense.q) * self.domain.size * k.law.count
            if entries > _HELD:
                raise ValueError(
                    f"matmul with the conditional covariance of {self.domain.size} targets given "
                    f"{len(k.place)} observations would hold {entries} numbers; draw from it with sample, "
                    "or take fewer targets"
                )
            white, rest = self._reach()
            # i makes the part of the drift enter with a plus
            self._weights = torch.cat((white, rest))
            self._split = len(white)
        return self._weights

    def _matmul(self, x: Tensor) -> Tensor:
        weights = self._held_reach()
        if self._gamma is None:
            self._gamma = covariance(self.kriging.law.kernel, self.domain).requires_grad_(False)
        flat = self.domain.flatten(x.double()).flatten(-2 if self.channels is not None else -1)
        inner = flat @ weights.T
        inner = torch.cat((-inner[..., : self._split], inner[..., self._split :]), dim=-1)
        change = inner @ weights
        if self.channels is not None:
            change = change.unflatten(-1, (self.channels, -1))
        return (self._gamma.matmul(x.double()) + self.domain.unflatten(change)).to(x.dtype)

    def _variance(self) -> Tensor:
        variance = self.kriging.variance_at(self.domain, self._drift)
        return self.domain.unflatten(variance) if isinstance(self.domain, MaskedGrid) else variance

    def _report(self) -> CovarianceReport:
        error = self.prior.error
        return CovarianceReport(
            self.method,
            exact=error == 0.0,
            error_bound=error * float(self.kriging.law.variance(self.domain.sites()[:1]).max()),
            reason=f"kriging from {len(self.kriging.place)} observations; draws by Matheron's rule",
        )
