r"""The posterior mean of the data endpoint, and what follows from it.

With the law `u_t | x ~ N(φ_t ⊗ x + o_t, Σ_t ⊗ Γ)` of the state and `D(u, t) = E[x | u_t = u]`,

    score            ∇ log q_t(u) = -(Σ_t ⊗ Γ)^{-1} (u - o_t - φ_t ⊗ D)
    (I ⊗ Γ) · score               = -Σ_t^{-1} (u - o_t - φ_t ⊗ D)      (no solve with Γ)
    noise            E[η̄ | u_t = u] = (y - α_t D) / σ_t,    y = α_t x + σ_t η̄ the sufficient statistic of u

so that one network of C output channels determines the score of all K variables (docs/theory, "Denoising";
Song et al. 2021, arXiv 2011.13456, for white noise and K = 1).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.covariance import Covariance
from spatialdiff.processes import Law


class PosteriorMean(nn.Module):
    r"""`D(u, t) = E[x | u_t = u]` under a `law` of the state given the data.

    Subclasses define `forward(u, t, **condition)`: state `u` of shape `(B, K*C, *grid)`, time `t` of shape
    `(B,)` or `()`, result `(B, C, *grid)`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @property
    @abstractmethod
    def law(self) -> Law:
        """The law of the state given the data endpoint."""

    @property
    def covariance(self) -> Covariance:
        """Γ, the spatial covariance of the noise."""
        return self.law.covariance

    @property
    def variables(self) -> int:
        """K, the variables per site."""
        return self.law.variables

    @abstractmethod
    def forward(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`E[x | u_t = u]`, shape `(B, C, *grid)`."""

    def noise(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """The coloured noise of the statistic `E[η̄ | u_t = u] = (y - α_t D) / σ_t`, `(B, C, *grid)`.

        For K = 1 the noise itself, `(u - o_t - α_t D) / σ_t`. Raises where σ_t = 0.
        """
        t = self.times(u, t)
        return self.conditional_law(**condition).noise(u, t, self(u, t, **condition))

    def gamma_score(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`(I ⊗ Γ) ∇ log q_t(u) = -Σ_t⁻¹ (u - o_t - φ_t ⊗ D)`, shape of `u`; no solve with Γ.

        Raises where σ_t = 0.
        """
        t = self.times(u, t)
        return self.conditional_law(**condition).gamma_score(u, t, self(u, t, **condition))

    def score(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`∇ log q_t(u)`, shape of `u`; one solve with Γ."""
        t = self.times(u, t)
        return self.conditional_law(**condition).score(u, t, self(u, t, **condition))

    def conditional_law(self, **condition: Any) -> Law:
        """The law given what the posterior mean is conditioned on: `law`, unless a subclass says
        otherwise.
        """
        return self.law

    def times(self, u: Tensor, t: Tensor | float) -> Tensor:
        """Check `u` and bring `t` to a float64 tensor of shape `()` or `(B,)` on the device of `u`.

        Raises:
            ValueError: `u` is not `(B, K*C, *grid)` with this denoiser's `K`, `C` and grid, or `t` is not one
                time per field.
        """
        shape = tuple(self.covariance.domain.shape)
        needed = self.variables * self.channels
        if u.ndim != 2 + len(shape) or tuple(u.shape[2:]) != shape or u.shape[1] != needed:
            several = "" if self.variables == 1 else f" of each of {self.variables} variables"
            raise ValueError(
                f"state of shape {tuple(u.shape)}; this denoiser needs (batch, {needed}, "
                f"{', '.join(map(str, shape))}): {self.channels} channel(s){several} on its grid"
            )
        t = torch.as_tensor(t, dtype=torch.float64, device=u.device)
        if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != u.shape[0]):
            raise ValueError(
                f"times of shape {tuple(t.shape)} for a batch of {u.shape[0]}: give one time, or one per "
                f"field"
            )
        return t
