r"""Laws of one variable per site, in closed form:

.. math:: u_t \mid x \sim N(\alpha_t x + o_t,\; \sigma_t^2\, \Gamma), \qquad
          u_s \mid u_t, x \sim N(A u_t + b x,\; V\, \Gamma).

The state is its own statistic: ``y = u - o_t``.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from spatialdiff.processes.base import Times
from spatialdiff.processes.law import Law
from spatialdiff.processes.marginals import weighted_mean


class ScalarLaw(Law):
    """A law with K = 1, given by α, σ² and their rates; coefficients are ``(*t, [modes])``."""

    @abstractmethod
    def alpha_rate(self, t: Times) -> Tensor:
        """dα_t/dt."""

    @abstractmethod
    def sigma_rate(self, t: Times) -> Tensor:
        """dσ_t/dt (infinite where σ_t vanishes like a square root)."""

    @abstractmethod
    def step(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        """The scalars ``(A, b, V)`` of ``u_s | u_t, x ~ N(A u_t + b x, V Γ)``, s between t and the end.

        At ``s = end_time`` they are exactly ``(0, 1, 0)``: the state becomes the data.
        """

    @abstractmethod
    def diffusion(self, t: Times) -> Tensor:
        """g(t): the noise of the SDE is g(t) Γ^{1/2} dW, in either direction of time."""

    # -- matrices -------------------------------------------------------------------------------------------

    def marginal(self, t: Times) -> tuple[Tensor, Tensor]:
        return self.alpha(t)[..., None], self.variance(t)[..., None, None]

    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        a, b, v = self.step(t, s)
        return a[..., None, None], b[..., None], v[..., None, None]

    def root(self, t: Times) -> Tensor:
        return self.sigma(t)[..., None, None]

    def precision(self, t: Times) -> Tensor:
        return self._positive_sigma(t)[..., None, None].pow(-2)

    def noise_root(self, t: Times) -> Tensor:
        return self.diffusion(t)[..., None, None]

    def statistic(self, t: Times) -> Tensor:
        return torch.ones_like(self.alpha(t))[..., None]

    def noise_weights(self, t: Times) -> Tensor:
        return torch.ones_like(self.alpha(t))[..., None]

    def information_rate(self, t: Times) -> Tensor:
        alpha, sigma = self.alpha(t), self._positive_sigma(t)
        return 2.0 * alpha * (self.alpha_rate(t) * sigma - alpha * self.sigma_rate(t)) / sigma**3

    def log_snr_rate(self, t: Times) -> Tensor:
        rate = self.alpha_rate(t) / self.alpha(t) - self.sigma_rate(t) / self._positive_sigma(t)
        return weighted_mean(2.0 * rate, self.basis)

    # -- fields ---------------------------------------------------------------------------------------------

    def reduce(self, u: Tensor, t: Times) -> Tensor:
        return u - self.offset(t).to(device=u.device, dtype=u.dtype)

    def reduce_noise(self, noise: Tensor, t: Times) -> Tensor:
        return noise

    def mean(self, data: Tensor, t: Times) -> Tensor:
        """α_t x + o_t, shape of ``data``."""
        return self.scale(self.alpha(t), data) + self.offset(t).to(device=data.device, dtype=data.dtype)

    def gamma_score(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """Γ∇log q(u_t | x) = -(u - α_t x - o_t)/σ_t²; that of the marginal where ``data`` is D(u, t)."""
        self._check_pair(u, data)
        return self.scale(self._positive_sigma(t).pow(-2), self.mean(data, t) - u)

    def velocity(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        r"""du/dt of the probability flow with the data at ``data``: α̇ x + ȯ + σ̇ (u - α x - o)/σ.

        Per unit of ``t`` itself, so a step from t to s is ``u + (s - t) velocity``. Raises ``RuntimeError``
        for a law without a deterministic flow, ``ValueError`` where σ_t = 0.
        """
        if not self.deterministic_flow:
            raise RuntimeError(
                f"{type(self).__name__} has no probability flow: its start is a point, from which only noise "
                "leads away; use a stochastic solver ('bridge' or 'euler_maruyama'), or IndependentField"
            )
        rate = self.scale(self.sigma_rate(t), self.noise(u, t, data))
        moving = self.scale(self.alpha_rate(t), data)
        return moving + self.offset_rate(t).to(device=u.device, dtype=u.dtype) + rate
