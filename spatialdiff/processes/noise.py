r"""Noise processes: data at time 0, coloured noise at the horizon.

.. math:: du = F(t)\,u\,dt + (Q(t)^{1/2} \otimes \Gamma^{1/2})\,dW, \qquad
          u_t \mid u_s \sim N(\Phi(s,t)\,u_s,\; \Sigma(s,t) \otimes \Gamma).

Γ enters every draw through one multiplication by its root R, and no coefficient depends on it. For constant Γ
these are white-noise diffusions of Γ^{-1/2}u: the whitening equivalence that the tests rest on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.processes.base import Times
from spatialdiff.processes.law import Law
from spatialdiff.processes.moments import psd_root


class NoiseProcess(Law):
    r"""A linear process from the data at time 0 to noise at ``horizon``, with spatial covariance Γ.

    ``u_0 = (x, v_0)``: the data and K - 1 auxiliary variables, ``v_0 ~ N(0, V_0 ⊗ Γ)`` independent of x.
    """

    def __init__(self, gamma: Covariance, horizon: float) -> None:
        super().__init__(gamma, horizon, start_time=horizon, end_time=0.0)

    @abstractmethod
    def transition(self, s: Times, t: Times) -> tuple[Tensor, Tensor]:
        """Φ and Σ, ``(*t, [modes], K, K)`` each, of ``u_t | u_s ~ N(Φ u_s, Σ ⊗ Γ)`` for ``s <= t``."""

    @abstractmethod
    def drift_matrix(self, t: Times) -> Tensor:
        """F(t) ``(*t, [modes], K, K)``, the drift, β(t) included."""

    @abstractmethod
    def diffusion_matrix(self, t: Times) -> Tensor:
        """Q(t) ``(*t, [modes], K, K)``, the covariance of the noise per unit time, β(t) included."""

    @property
    def stationary(self) -> Tensor | None:
        """S ``([modes], K, K)`` where the process has a stationary law ``N(0, S ⊗ Γ)``, else None."""
        return None

    @property
    def initial_root(self) -> Tensor:
        """Some root ``([modes], K, K)`` of ``diag(0, V_0)``, the covariance of ``u_0`` given the data."""
        return torch.zeros(self.variables, self.variables, dtype=torch.float64, device=self.covariance.device)

    # -- dynamics -------------------------------------------------------------------------------------------

    def drift(self, u: Tensor, t: Times) -> Tensor:
        """F(t) u, the drift of the noising SDE."""
        return self.mix(self.drift_matrix(t), u)

    def reverse_drift(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """-F u + Q Γ∇log q, per unit of time elapsed backward (Song et al. 2021, equation 6)."""
        return self.mix(self.diffusion_matrix(t), self.gamma_score(u, t, data)) - self.drift(u, t)

    def velocity(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """F u - ½ Q Γ∇log q (Song et al. 2021, equation 13), per unit of ``t`` itself."""
        return self.drift(u, t) - 0.5 * self.mix(self.diffusion_matrix(t), self.gamma_score(u, t, data))

    # -- draws ----------------------------------------------------------------------------------------------

    def perturb(
        self,
        x: Tensor,
        t: Times,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``u = φ_t ⊗ x + (L_t ⊗ I) η`` and return ``(u, η)``, η ~ N(0, I ⊗ Γ).

        Both ``(B, K*C, *grid)``; for K = 1 ``u = α_t x + σ_t η``. The auxiliary start is integrated out.

        Args:
            x: data ``(B, C, *grid)``; t: times, scalar or ``(B,)``.
            white: the white noise z of η = R z, see ``white_shape``; drawn with ``generator`` where absent.
        """
        self.check_field(x)
        noise = self.draw(
            x.shape[0], x.shape[1], white=white, generator=generator, dtype=x.dtype, device=x.device
        )
        return self.mean(x, t) + self.mix(self.root(t), noise), noise

    def initial_state(self, x: Tensor, noise: Tensor) -> Tensor:
        """``u_0 = (x, v_0)`` ``(B, K*C, *grid)`` of data ``(B, C, *grid)`` and coloured ``noise`` for v_0."""
        state = self.mix(self.initial_root, noise)
        return torch.cat([x, state[:, x.shape[1] :]], dim=1)

    def simulate(
        self,
        x: Tensor,
        times: Tensor | Sequence[float],
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Exact paths from the data ``x`` at increasing ``times`` ``(T,)``: shape ``(T, B, K*C, *grid)``.

        A Markov chain of exact transitions; ``white`` has the shape ``white_shape`` with ``T`` in front, or,
        for K > 1, ``T + 1``: the first for the auxiliary variables at time 0.
        """
        self.check_field(x)
        grid = self.increasing(times)
        draws = iter(() if white is None else white)

        def noise() -> Tensor:
            return self.draw(
                x.shape[0],
                x.shape[1],
                white=None if white is None else next(draws),
                generator=generator,
                dtype=x.dtype,
                device=x.device,
            )

        needed = len(grid) + (self.variables > 1)
        if white is not None and len(white) != needed:
            raise ValueError(f"white has {len(white)} draws; this path needs {needed}, one for each time")
        states = []
        state, before = x if self.variables == 1 else self.initial_state(x, noise()), grid.new_zeros(())
        for now in grid:
            phi, sigma = self.transition(before, now)
            state = self.mix(phi, state) + self.mix(psd_root(sigma), noise())
            states.append(state)
            before = now
        return torch.stack(states)
