r"""The posterior mean of the data endpoint, and what follows from it.

With the law of the state given the data, `u_t | x ~ N(α_t x + o_t, σ_t² Γ)`, and `D(u, t) = E[x | u_t = u]`,

    score            ∇ log q_t(u) = -Γ^{-1} (u - o_t - α_t D) / σ_t²
    Γ · score                     = -(u - o_t - α_t D) / σ_t²          (no solve with Γ)
    noise            E[η | u_t = u] = (u - o_t - α_t D) / σ_t

(docs/theory, "Denoising"; Song et al. 2021, arXiv 2011.13456, for white noise).
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

    Subclasses define `forward(u, t, **condition)`: state `u` of shape `(B, C, *grid)`, time `t` of shape
    `(B,)` or
    `()`, result `(B, C, *grid)`.
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

    @abstractmethod
    def forward(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`E[x | u_t = u]`, shape `(B, C, *grid)`."""

    def noise(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r"""The coloured noise `E[η | u_t = u] = (u - o_t - α_t D) / σ_t`, shape of `u`; raises where σ_t = "
        r"0."""
        t = self.times(u, t)
        return self.conditional_law(**condition).noise(u, t, self(u, t, **condition))

    def gamma_score(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r"""`Γ ∇ log q_t(u) = -(u - o_t - α_t D) / σ_t²`, shape of `u`; needs no solve with Γ; raises where "
        r"σ_t = 0."""
        t = self.times(u, t)
        return self.conditional_law(**condition).gamma_score(u, t, self(u, t, **condition))

    def score(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        r"""`∇ log q_t(u) = Γ^{-1} gamma_score`, shape of `u`; one solve with Γ."""
        return self.covariance.solve(self.gamma_score(u, t, **condition))

    def conditional_law(self, **condition: Any) -> Law:
        """The law given what the posterior mean is conditioned on: `law`, unless a subclass says
        otherwise.
        """
        return self.law

    def times(self, u: Tensor, t: Tensor | float) -> Tensor:
        """Check `u` and bring `t` to a float64 tensor of shape `()` or `(B,)` on the device of `u`.

        Raises:
            ValueError: `u` is not `(B, C, *grid)` with this denoiser's `C` and grid, or `t` is not one time
                per field.
        """
        shape = tuple(self.covariance.domain.shape)
        if u.ndim != 2 + len(shape) or tuple(u.shape[2:]) != shape or u.shape[1] != self.channels:
            raise ValueError(
                f"state of shape {tuple(u.shape)}; this denoiser needs (batch, {self.channels}, "
                f"{', '.join(map(str, shape))}): {self.channels} channel(s) on its grid"
            )
        t = torch.as_tensor(t, dtype=torch.float64, device=u.device)
        if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != u.shape[0]):
            raise ValueError(
                f"times of shape {tuple(t.shape)} for a batch of {u.shape[0]}: give one time, or one per "
                f"field"
            )
        return t
