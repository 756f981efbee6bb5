r"""The covariance of a field given observations, as a covariance Γ.

``Γ = Γ_tt - Γ_to A⁻¹ Γ_ot + r (FᵀA⁻¹F)⁻¹ rᵀ``, ``A = Γ_oo + N``: the law of the error of kriging. Draws
are those of Matheron's rule, ``R z = x_t - P(x_o + e)`` with a joint prior draw ``(x_t, x_o)``, errors ``e ~
N(0, N)`` and ``P`` the kriging predictor, drift included: linear in the white noise and jointly right at all
targets [Chilès & Delfiner 2012, section 7.3.1]. A prior draw scaled by the kriging standard deviation is not.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialdiff.conditioning.law import same_torus, torus_of
from spatialdiff.conditioning.prediction import predict_dense, predictor
from spatialdiff.conditioning.prior import JointPrior
from spatialdiff.covariance import Covariance, covariance
from spatialdiff.covariance.compositions.composite import CompositeCovariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, Grid, MaskedGrid

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
        self._gamma: Covariance | Tensor | None = None
        self._weights: Tensor | None = None
        self._gain: Tensor | None = None

    @property
    def prior(self) -> JointPrior:
        """The joint law of targets and observations."""
        if self._prior is None:
            k = self.kriging
            self._prior = JointPrior(k.law.kernel, self.domain, k.sites, k.place, k.channel, k.law.torus)
        return self._prior

    @property
    def factor_shape(self) -> torch.Size:
        return torch.Size((self.prior.factor_size + len(self.kriging.place),))

    def _color(self, z: Tensor) -> Tensor:
        size = self.prior.factor_size
        with torch.no_grad():
            field, values = self.prior.color(z[..., :size].double())
            values = values + z[..., size:].double() * self.kriging.noise.sqrt()
            result = field - self._kriged(values)
        return result.to(z.dtype)

    def _kriged(self, values: Tensor) -> Tensor:
        """``P`` of values ``(..., m)``; its weights are kept where they are few enough."""
        k = self.kriging
        if len(k.place) * self.domain.size * k.law.count > _HELD:
            return predictor(k, values, self.domain, self._drift)
        if self._gain is None:
            self._gain = k.dense.weights(*self._covariates())
        return self._shaped(values @ self._gain)

    def _covariates(self) -> tuple[Tensor, Tensor]:
        """``Γ_to`` ``(C t, m)`` and the drift ``(C t, C q)``, channels before sites as in a field."""
        k = self.kriging
        sites = self.domain.sites()
        cross, drift = k.cross(sites, k.twins(sites)), k.spread(self._drift)
        return cross.transpose(0, 1).flatten(0, 1), drift.transpose(0, 1).flatten(0, 1)

    def _shaped(self, flat: Tensor) -> Tensor:
        """``(..., C t)`` as fields."""
        return self.domain.unflatten(
            flat if self.channels is None else flat.unflatten(-1, (self.channels, -1))
        )

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
            white, rest = k.dense.project(*self._covariates())
            self._weights = torch.cat((white, rest))
        return self._weights

    def _matmul(self, x: Tensor) -> Tensor:
        weights = self._held_reach()
        flat = self.domain.flatten(x.double()).flatten(-2 if self.channels is not None else -1)
        inner = flat @ weights.T
        # what the data tell is taken off, what the drift leaves open is added
        inner[..., : len(self.kriging.place)] *= -1.0
        change = inner @ weights
        gamma = self._prior_covariance()
        if isinstance(gamma, Tensor):
            return self._shaped(flat @ gamma + change).to(x.dtype)
        return (gamma.matmul(x.double()) + self._shaped(change)).to(x.dtype)

    def _prior_covariance(self) -> Covariance | Tensor:
        """``Γ_tt``: a grid's structure, elsewhere a matrix ``(C t, C t)``."""
        if self._gamma is None:
            law, own = self.kriging.law, torus_of(self.domain)
            grid = self.domain.grid if isinstance(self.domain, MaskedGrid) else self.domain
            wraps_alike = own is None if law.torus is None else same_torus(law.torus, own)
            if isinstance(grid, Grid) and wraps_alike:
                # a copy, so that the user's kernel stays free
                frozen = copy.deepcopy(law.kernel).requires_grad_(False)
                self._gamma = covariance(frozen, self.domain)
            else:
                sites = self.domain.sites()
                if (law.count * len(sites)) ** 2 > _HELD:
                    raise ValueError(
                        f"matmul with the conditional covariance at {len(sites)} sites that are no grid "
                        "holds a matrix of them; draw from it with sample, or take fewer targets"
                    )
                matrix = law.between(sites.unsqueeze(-2), sites.unsqueeze(-3))
                wrapped = law.wrap(sites)
                same = (wrapped.unsqueeze(-2) == wrapped.unsqueeze(-3)).all(-1)
                matrix = matrix + same[..., None, None] * law.nugget
                self._gamma = matrix.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)
        return self._gamma

    def _variance(self) -> Tensor:
        _, variance = predict_dense(self.kriging, self.domain.sites(), self._drift, None, 1)
        return self.domain.unflatten(variance)

    def _report(self) -> CovarianceReport:
        error = self.prior.error
        return CovarianceReport(
            self.method,
            exact=error == 0.0,
            error_bound=error * float(self.kriging.law.variance(self.domain.sites()[:1]).max()),
            reason=f"kriging from {len(self.kriging.place)} observations; draws by Matheron's rule",
        )
