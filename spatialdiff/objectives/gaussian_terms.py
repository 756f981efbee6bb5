r"""The evidence bound of a Gaussian model, in closed form.

For data `x` and the model `N(μ, C)`, with `ρ_k = c_k/γ_k` and `a_k = |x_k - μ_k|²/γ_k` in the basis where `C`
and Γ are diagonal, the posterior mean `m(u, t)` has, given the data, the error

    E[|x_k - m_k|² | x]/γ_k = (a + ρ² I)/(1 + ρ I)²,        posterior variance  γ ρ/(1 + ρ I),

with I the information of the state (`processes.law`), for every process and any number of variables. Hence

    ∫_{I_0}^{I_1} (a + ρ² I)/(1 + ρ I)² dI = (a - ρ)(I_1 - I_0)/((1 + ρ I_0)(1 + ρ I_1))
                                             + log (1 + ρ I_1)/(1 + ρ I_0):

the part of a bound that is known, and what is left for Monte Carlo is the difference of a network to `m`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.processes import Law


def log_det(covariance: Covariance, channels: int) -> Tensor:
    """`log det` of a covariance on fields of `channels` channels, scalar, float64."""
    value = covariance.log_det().double()
    return value * channels if covariance.channels is None else value


def information(law: Law, t: Tensor) -> Tensor:
    """`I(t)`, `(*t, [modes])`: 0 where the state holds none of the data (`α = 0`, also where `σ = 0` too)."""
    signal = law.alpha(t)
    value = law.information(t)
    return torch.where(signal == 0.0, torch.zeros_like(value), value)


class GaussianTerms:
    """Closed-form terms of the bound under the model of the data; each is `(B,)`, nats per field.

    Args:
        model: the fitted `N(μ, C)`; law: of the state; channels: C of the fields.

    Raises:
        ValueError: the process has coefficients per mode, of other modes than those of the model.
    """

    def __init__(self, model: GaussianModel, law: Law, channels: int) -> None:
        basis, gamma, data = model.spectra()
        self.model, self.law, self.channels = model, law, channels
        self.basis = model.shared_basis(basis, law)
        self.gamma = gamma
        shape = (channels, *self.basis.modes)
        self.rho = (data / gamma).expand(shape)
        self.weights = self.basis.weights.to(self.rho).expand(shape)

    def distances(self, x: Tensor) -> Tensor:
        """`a_k = |x_k - μ_k|²/γ_k`, `(B, C, *modes)`."""
        coefficients = self.basis.analyze(self.model.centre(x.double()))
        return coefficients.abs().square() / self.gamma

    def per_mode(self, t: Tensor) -> Tensor:
        """`I(t)`, to broadcast against `(B, C, *modes)`."""
        return self.model.per_mode(information(self.law, t), self.basis, self.law)

    def total(self, values: Tensor) -> Tensor:
        """The sum over channels and modes, each with its multiplicity: `(B,)`."""
        return (values * self.weights).flatten(1).sum(1)

    def prior(self, x: Tensor, t: Tensor) -> Tensor:
        r"""`KL(N(φ ⊗ x, Σ ⊗ Γ) ‖ N(φ ⊗ μ, Σ ⊗ Γ + φφᵀ ⊗ C))`, the prior being the fitted marginal.

        `½ Σ_k [log(1 + ρI) - (ρ - a) I/(1 + ρI)]`, which needs no more of the K variables than I.
        """
        a, level, rho = self.distances(x), self.per_mode(t), self.rho
        return 0.5 * self.total((rho * level).log1p() - (rho - a) * level / (1.0 + rho * level))

    def diffusion(self, x: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
        """`½ ∫ E‖x - m‖²_{Γ⁻¹} dI` between the times, where the network is the model itself."""
        a, rho = self.distances(x), self.rho
        low, high = self.per_mode(t1), self.per_mode(t0)
        first = (a - rho) * (high - low) / ((1.0 + rho * low) * (1.0 + rho * high))
        return 0.5 * self.total(first + (rho * high).log1p() - (rho * low).log1p())

    def decoder_constant(self, t: Tensor) -> Tensor:
        """`-½ log det(2π V)` of the posterior covariance `V = C/(1 + ρI)`, scalar."""
        self.check_regular()
        assert self.model.data_covariance is not None
        size = self.law.covariance.domain.size * self.channels
        level = self.per_mode(t).expand(1, *self.rho.shape)
        growth = self.total((self.rho * level).log1p())[0]
        return -0.5 * (
            size * math.log(2.0 * math.pi) + log_det(self.model.data_covariance, self.channels) - growth
        )

    def decoder_error(self, x: Tensor, t: Tensor) -> Tensor:
        """`½ E‖x - m‖²_{V⁻¹}` given the data: `½ Σ_k (a + ρ² I)/(ρ (1 + ρ I))`."""
        a, level, rho = self.distances(x), self.per_mode(t), self.rho
        safe = torch.where(rho > 0.0, rho, 1.0)
        terms = (a + rho.square() * level) / (safe * (1.0 + rho * level))
        return 0.5 * self.total(torch.where(rho > 0.0, terms, 0.0))

    def decoder_precision(self, t: Tensor) -> Tensor:
        """`V⁻¹ Γ` per mode, `(1 + ρI)/ρ`; 0 where the data have no variance."""
        safe = torch.where(self.rho > 0.0, self.rho, 1.0)
        return torch.where(self.rho > 0.0, (1.0 + self.rho * self.per_mode(t)) / safe, 0.0)

    def decoder(self, x: Tensor, t: Tensor) -> Tensor:
        """`E log N(x; m, V)` at time `t`, the decoder being the exact posterior of the model."""
        return self.decoder_constant(t) - self.decoder_error(x, t)

    def check_regular(self) -> None:
        """Raise `ValueError` where the model's covariance is singular: the data then have no density."""
        alive = float((self.weights * (self.rho > 0.0)).sum())
        size = self.law.covariance.domain.size * self.channels
        if alive + 0.5 < size:
            raise ValueError(
                f"the fitted covariance of the data has {alive:.0f} modes of positive variance for {size} "
                "values, so that the Gaussian decoder has no density; add a nugget to it, or use "
                "decoder='network' or 'state'"
            )
