r"""The posterior mean under Gaussian data, mode by mode.

For data `N(μ, C)` and the statistic `y | x ~ N(φ x, σ² Γ)` of the state (`processes.law`; `y = u - o` for
K = 1), with `C` and `Γ` diagonal in one basis (eigenvalues `c_k`, `γ_k`),

    P = φ² c + σ² γ                    marginal variance of the statistic
    m(u, t) = μ + (φ c / P)(y - φ μ)   posterior mean
    V = c σ² γ / P                     posterior variance

(docs/theory, "Gaussian oracles"; Pierret & Galerne, arXiv 2405.14250, for white noise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis, ChannelBasis
from spatialdiff.covariance.joint import _shared_basis
from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.krylov import model_spectrum
from spatialdiff.denoisers.resolve import resolve_channels, resolve_law
from spatialdiff.processes import Law


@dataclass(frozen=True)
class Moments:
    """Variances per mode at times `t`; every tensor is float64 and broadcasts against `(B, C, *modes)`."""

    basis: Basis
    phi: Tensor
    noise_variance: Tensor
    gamma: Tensor
    data: Tensor

    @property
    def state(self) -> Tensor:
        """`P = φ² c + σ² γ`."""
        return self.phi.square() * self.data + self.noise_variance * self.gamma

    @property
    def gain(self) -> Tensor:
        """`φ c / P`; 0 where the state is a fixed point (`P = 0`), where what it multiplies is 0 as well."""
        state = self.state
        return torch.where(state > 0, self.phi * self.data / positive(state), 0.0)

    @property
    def posterior(self) -> Tensor:
        """`V = c σ² γ / P`, the data's variance given the state; `c` where it says nothing (`P = 0`)."""
        state = self.state
        return self.data * torch.where(state > 0, self.noise_variance * self.gamma / positive(state), 1.0)


def positive(x: Tensor) -> Tensor:
    """`x` with its zeros replaced by ones, so that a masked quotient has finite gradients."""
    return torch.where(x > 0, x, torch.ones_like(x))


def unchanged(before: list[Tensor], now: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal, in value and in place."""
    return len(before) == len(now) and all(
        a.device == b.device and a.shape == b.shape and torch.equal(a, b)
        for a, b in zip(before, now, strict=True)
    )


class GaussianModel(nn.Module):
    """Data `N(μ, C)` seen through noise of covariance Γ, in the basis where both are diagonal."""

    mean: Tensor | None

    def __init__(
        self, gamma: Covariance, covariance: Covariance | None, mean: Tensor | float | None = None
    ) -> None:
        super().__init__()
        self._cache: tuple[list[Tensor], tuple[Basis, Tensor, Tensor]] | None = None
        self._gamma = (gamma,)  # a tuple: Γ belongs to the process, and is not to be registered twice
        self.data_covariance = covariance
        number = isinstance(mean, float | int)
        given = torch.tensor(mean, dtype=torch.float64) if number else mean
        self.register_buffer("mean", None if given is None else torch.as_tensor(given))

    @property
    def gamma(self) -> Covariance:
        """Γ."""
        return self._gamma[0]

    @property
    def fast(self) -> bool:
        """Whether Γ and C share a fast basis, so that their spectra cost next to nothing."""
        data = self.data_covariance
        if data is None or data.domain != self.gamma.domain:
            return False
        coupled = self.gamma.channel_matrix is not None or data.channel_matrix is not None
        return not coupled and _shared_basis(self.gamma, data) is not None

    def spectra(self) -> tuple[Basis, Tensor, Tensor]:
        """The common basis and the eigenvalues `γ_k`, `c_k`, float64; kept while no parameter changes."""
        assert self.data_covariance is not None
        parts = (self.gamma, self.data_covariance)
        if torch.is_grad_enabled() and any(p.requires_grad for part in parts for p in part.parameters()):
            return model_spectrum(*parts)
        state = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        if self._cache is None or not unchanged(self._cache[0], state):
            with torch.inference_mode(False), torch.no_grad():
                self._cache = ([tensor.detach().clone() for tensor in state], model_spectrum(*parts))
        return self._cache[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def moments(self, law: Law, t: Tensor) -> Moments:
        """Variances per mode at times `t` of shape `()` or `(B,)`."""
        return self.moments_of(law.alpha(t), law.variance(t), law)

    def moments_of(self, phi: Tensor, variance: Tensor, law: Law) -> Moments:
        """Variances per mode of `φ x + σ η`, with coefficients `φ`, `σ²` of shape `(*t, [modes])`."""
        basis, gamma, data = self.spectra()
        basis = self.shared_basis(basis, law)
        return Moments(
            basis, self.per_mode(phi, basis, law), self.per_mode(variance, basis, law), gamma, data
        )

    def per_mode(self, coefficient: Tensor, basis: Basis, law: Law) -> Tensor:
        """A coefficient `()` or `(B,)`, then the law's modes, to broadcast against `(B, C, *modes)`."""
        modes = len(basis.modes)
        if law.basis is not None:
            return coefficient if coefficient.ndim == modes else coefficient.unsqueeze(1)
        return coefficient if coefficient.ndim == 0 else coefficient.reshape(-1, *[1] * (1 + modes))

    def shared_basis(self, basis: Basis, law: Law) -> Basis:
        """The basis of the data and Γ; raises `ValueError` where the law's own modes are others."""
        spatial = basis.spatial if isinstance(basis, ChannelBasis) else basis
        if law.basis is not None and spatial != law.basis:
            raise ValueError(
                f"the noise process has coefficients for the modes of {law.basis!r}, and Γ and the data's "
                f"covariance are diagonal in {basis!r}: give the data's covariance the structure of the "
                "process"
            )
        return basis

    def noise_range(self, margin: float = 3.0) -> tuple[float, float]:
        """Noise levels `σ/φ` between which modes turn from noise to data, with `margin` e-foldings beyond.

        A mode has as much signal as noise at `√(c_k/γ_k)`; outside the range every gain `φ² c / P` is within
        `exp(-2 margin)` of 0 or of 1, so that neither training nor sampling has much to do there.
        """
        _, gamma, data = self.spectra()
        ratio = (data / gamma).detach()
        ratio = ratio[ratio > 0]
        low, high = float(ratio.min().sqrt()), float(ratio.max().sqrt())
        return low * math.exp(-margin), high * math.exp(margin)

    def centre(self, x: Tensor) -> Tensor:
        """`x - μ`."""
        return x if self.mean is None else x - self.mean.to(x)

    def shift(self, x: Tensor) -> Tensor:
        """`x + μ`."""
        return x if self.mean is None else x + self.mean.to(x)

    def centre_state(self, u: Tensor, law: Law, t: Tensor) -> Tensor:
        """`y - φ μ` `(B, C, *grid)`, y the statistic of the state u."""
        y = law.reduce(u, t)
        if self.mean is None:
            return y
        return y - law.scale(law.alpha(t), self.mean.to(y).expand(y.shape))

    def posterior_mean(self, u: Tensor, law: Law, t: Tensor) -> Tensor:
        """`m(u, t)`, `(B, C, *grid)`."""
        moments = self.moments(law, t)
        return self.shift(moments.basis.multiply(self.centre_state(u, law, t), moments.gain.to(u.dtype)))


class GaussianDenoiser(PosteriorMean):
    r"""The exact `E[x | u_t]` for data `x ~ N(μ, C)`: `μ + (φ c / P)(y - φ μ)` per mode, `P = φ² c + σ² γ`.

    Args:
        process: a noise process, a bridge (then `coupling` is needed), or a law of the state given the data.
        data_covariance: `C`, on the grid of the process, diagonal in a basis with its Γ.
        mean: `μ`, broadcastable to a field `(C, *grid)`; zero if `None`.
        coupling: for a bridge, how its start is drawn.
        channels: number of channels, where neither covariance says.

    Sources: Wiener filtering; docs/theory, "Gaussian oracles".
    """

    def __init__(
        self,
        process: Any,
        data_covariance: Covariance,
        mean: Tensor | float | None = None,
        *,
        coupling: Any = None,
        channels: int | None = None,
    ) -> None:
        process_law = resolve_law(process, coupling)
        super().__init__(resolve_channels(process_law.covariance, data_covariance, mean, channels))
        self.process_law = process_law
        self.gaussian = GaussianModel(process_law.covariance, data_covariance, mean)

    @property
    def law(self) -> Law:
        return self.process_law

    def forward(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`m(u, t)`, shape `(B, C, *grid)`."""
        return self.gaussian.posterior_mean(u, self.law, self.times(u, t))
