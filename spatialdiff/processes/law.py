r"""The law of the state given the data endpoint: all that denoisers, objectives and samplers need.

.. math:: u_t \mid x \sim N(\alpha_t x + o_t,\; \sigma_t^2\, \Gamma), \qquad
          u_s \mid u_t, x \sim N(A u_t + b x,\; V\, \Gamma)

for ``t`` on the way from ``start_time`` to ``end_time``, where the state becomes the data. A noise process
runs from ``T`` down to ``0``, a bridge from ``0`` up to its horizon; nothing else tells them apart. With the
posterior mean :math:`D(u, t) = E[x \mid u_t = u]` in the place of the data,

.. math:: \Gamma \nabla \log q_t(u) = -(u - \alpha_t D - o_t)/\sigma_t^2,

and no Γ⁻¹ is needed anywhere except in the score itself.

The methods below are those of one variable per site (``variables == 1``); ``marginal`` and ``posterior``
already return ``K×K`` matrices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.processes.base import Dynamics, Times, expand


class Law(Dynamics, ABC):
    r"""The Gaussian law of the state :math:`u_t` given the data ``x``, and the steps that lead to the data.

    Times are scalars or tensors ``(B,)`` in ``[0, horizon]``; every coefficient is returned in float64 with
    the shape of ``t``; fields are ``(B, K*C, *grid)`` and keep their dtype.

    Attributes:
        covariance: Γ.
        variables: K, the variables per site (1 here).
        horizon: the largest time.
        start_time, end_time: a sampler runs from the first to the second, where the state is the data.
        sde_start_time: where an Euler–Maruyama scheme may start: ``start_time``, or slightly inside of it
            where the drift of the SDE is singular at ``start_time`` (``Cosine``, ``Rectified``).
        deterministic_flow: False where no probability flow exists (a bridge from a fixed point).
        closed_form: False where the law given the data alone is not the Gaussian above (paired bridges, whose
            ``alpha`` and ``sigma`` are those given both ends; ``offset`` and what builds on it then needs the
            other end).
    """

    variables: int = 1
    deterministic_flow: bool = True
    closed_form: bool = True

    def __init__(self, covariance: Covariance, horizon: float, start_time: float, end_time: float) -> None:
        super().__init__(covariance, horizon)
        self.start_time = float(start_time)
        self.end_time = float(end_time)

    # -- coefficients ---------------------------------------------------------------------------------------

    @abstractmethod
    def alpha(self, t: Times) -> Tensor:
        """α_t, the coefficient of the data."""

    @abstractmethod
    def variance(self, t: Times) -> Tensor:
        """σ_t², the coefficient of Γ."""

    @abstractmethod
    def alpha_rate(self, t: Times) -> Tensor:
        """dα_t/dt."""

    @abstractmethod
    def sigma_rate(self, t: Times) -> Tensor:
        """dσ_t/dt (infinite where σ_t vanishes like a square root)."""

    @abstractmethod
    def log_snr(self, t: Times) -> Tensor:
        """log(α_t²/σ_t²), increasing on the way to the data; infinite where σ_t or α_t is zero."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Times) -> Tensor:
        """The time at which ``log_snr`` has a given value (closed form), clamped to ``[0, horizon]``."""

    @abstractmethod
    def step(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        """The scalars ``(A, b, V)`` of ``u_s | u_t, x ~ N(A u_t + b x, V Γ)``, s between t and the end.

        At ``s = end_time`` they are exactly ``(0, 1, 0)``: the state becomes the data.
        """

    @abstractmethod
    def diffusion(self, t: Times) -> Tensor:
        """g(t): the noise of the SDE is g(t) Γ^{1/2} dW, in either direction of time."""

    @abstractmethod
    def reverse_drift(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """Drift of the SDE that leads to the data, per unit of time *elapsed* on the way from start to end.

        One Euler–Maruyama step from t to s is
        ``u + reverse_drift(u, D(u, t), t) |s - t| + g(t) sqrt(|s - t|) η``,
        for a process that runs backward in t as for a bridge that runs forward.
        """

    def sigma(self, t: Times) -> Tensor:
        """σ_t, the square root of ``variance``."""
        return self.variance(t).sqrt()

    def offset(self, t: Times) -> Tensor:
        """o_t, the rest of the mean: float64, broadcastable to ``(B, K*C, *grid)``; here 0."""
        return torch.zeros((), dtype=torch.float64, device=self.times(t).device)

    def offset_rate(self, t: Times) -> Tensor:
        """do_t/dt, shaped as ``offset``."""
        return torch.zeros((), dtype=torch.float64, device=self.times(t).device)

    def velocity_weights(self, t: Times) -> tuple[Tensor, Tensor]:
        """(a, b) of the velocity prediction target ``a x + b η`` (Salimans & Ho 2022: (-σ, α))."""
        return -self.sigma(t), self.alpha(t)

    # -- matrices -------------------------------------------------------------------------------------------

    def marginal(self, t: Times) -> tuple[Tensor, Tensor]:
        """φ ``(*t, K)`` and Σ ``(*t, K, K)`` of ``u_t | x ~ N(φ ⊗ x + o_t, Σ ⊗ Γ)``."""
        return self.alpha(t)[..., None], self.variance(t)[..., None, None]

    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        """A ``(*t, K, K)``, b ``(*t, K)``, V ``(*t, K, K)`` of ``u_s | u_t, x ~ N(A u_t + b x, V ⊗ Γ)``.

        ``s`` lies between ``t`` and ``end_time``; at ``end_time`` the step returns the data exactly
        (A = V = 0, b = 1).
        """
        a, b, v = self.step(t, s)
        return a[..., None, None], b[..., None], v[..., None, None]

    # -- fields ---------------------------------------------------------------------------------------------

    def mean(self, data: Tensor, t: Times) -> Tensor:
        """α_t x + o_t, shape of ``data``."""
        return expand(self.alpha(t), data) * data + self.offset(t).to(device=data.device, dtype=data.dtype)

    def gamma_score(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """Γ∇log q(u_t | x) = -(u - α_t x - o_t)/σ_t²; that of the marginal where ``data`` is D(u, t)."""
        variance = self.variance(t)
        if bool((variance <= 0).any()):
            raise ValueError(
                "the score does not exist where sigma(t) = 0 "
                "(at the data end, or at a fixed starting point); evaluate it at a time inside"
            )
        return (self.mean(data, t) - u) / expand(variance, u)

    def score(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """∇log q(u_t | x) = -Γ⁻¹(u - α_t x - o_t)/σ_t²; one solve with Γ."""
        return self.covariance.solve(self.gamma_score(u, t, data))

    def noise(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """The coloured noise η = (u - α_t x - o_t)/σ_t that leads from the data to the state."""
        return -self.gamma_score(u, t, data) * expand(self.sigma(t), u)

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
        rate = expand(self.sigma_rate(t), u) * self.noise(u, t, data)
        moving = expand(self.alpha_rate(t), u) * data + self.offset_rate(t).to(device=u.device, dtype=u.dtype)
        return moving + rate

    # -- randomness -----------------------------------------------------------------------------------------

    def start(
        self,
        shape: int | Sequence[int],
        channels: int,
        *,
        time: float | None = None,
        data: tuple[Tensor | float, Covariance | None] | None = None,
        initial: Tensor | None = None,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        r"""A coloured state at ``start_time`` (or ``time``): ``N(α μ + o, σ² Γ + α² C)``.

        Shape ``(*shape, C, *grid)``.

        Args:
            shape: batch shape; channels: C.
            time: where to start, e.g. ``sde_start_time``.
            data: ``(mean, covariance)`` of the data where known: then the start is the exact Gaussian
                marginal; with covariance ``None`` or without ``data`` the term α²C (and μ) is left out, as is
                usual.
            initial: the states themselves, for a coupling that cannot draw them (``Paired``); refused by the
                others.
            white: the white noise behind σ η, see ``draw``; generator, dtype, device: of the draws.
        """
        if initial is not None:
            raise ValueError(
                f"{type(self).__name__} draws its own start; initial= is for a Paired coupling only"
            )
        lead = (shape,) if isinstance(shape, int) else tuple(shape)
        t = self.times(self.start_time if time is None else time)
        noise = self.draw(lead, channels, white=white, generator=generator, dtype=dtype, device=device)
        state = expand(self.sigma(t), noise) * noise + self.offset(t).to(
            device=noise.device, dtype=noise.dtype
        )
        if data is None:
            return state
        mean, covariance = data
        clean = torch.as_tensor(mean, device=noise.device, dtype=noise.dtype)
        if covariance is not None:
            inner = lead if covariance.channels is not None else (*lead, channels)
            clean = clean + covariance.sample(inner, generator=generator).to(noise)
        return state + expand(self.alpha(t), noise) * clean

    @property
    def sde_start_time(self) -> float:
        """Where an Euler–Maruyama scheme may start."""
        return self.start_time
