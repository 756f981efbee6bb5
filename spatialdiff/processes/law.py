r"""The law of the state given the data endpoint: all that denoisers, objectives and samplers need.

.. math:: u_t \mid x \sim N(\varphi_t \otimes x + o_t,\; \Sigma_t \otimes \Gamma), \qquad
          u_s \mid u_t, x \sim N(A u_t + b \otimes x,\; V \otimes \Gamma)

for ``t`` on the way from ``start_time`` to ``end_time``, where the data variable becomes the data. A noise
process runs from ``T`` down to ``0``, a bridge from ``0`` up to its horizon; nothing else tells them apart.

The state enters the law of x only through :math:`\varphi^\top\Sigma^{-1}u`. Scaled,

.. math:: y_t = q_t^\top (u_t - o_t) = \alpha_t x + \sigma_t \bar\eta, \quad \bar\eta \sim N(0, \Gamma), \quad
          \alpha_t^2/\sigma_t^2 = I(t) = \varphi_t^\top \Sigma_t^{-1} \varphi_t

is a sufficient statistic: whatever the number of variables, the posterior mean
:math:`D(u, t) = E[x \mid u_t = u]` is that of a scalar law with signal α and noise σ, and it determines the
score of all K variables, :math:`\Gamma\nabla\log q_t(u) = \Sigma_t^{-1}(\varphi_t \otimes D + o_t - u)`,
with no Γ⁻¹.

Coefficients are the same in every mode of Γ (``basis is None``), or differ from mode to mode of ``basis``;
shapes ``[modes]`` below are then ``basis.modes``, else nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.processes.base import Dynamics, Times, expand


class Law(Dynamics, ABC):
    r"""The Gaussian law of the state :math:`u_t` given the data ``x``, and the steps that lead to the data.

    Times are scalars or tensors ``(B,)`` in ``[0, horizon]``; every coefficient is returned in float64 with
    the shape of ``t`` in front; states are ``(B, K*C, *grid)``, the data variable first, of their own dtype.

    Attributes:
        covariance: Γ.
        variables: K, the variables per site.
        basis: where coefficients differ from mode to mode, the basis of the modes; else None.
        horizon: the largest time.
        start_time, end_time: a sampler runs from the first to the second, where the state holds the data.
        sde_start_time: where an Euler–Maruyama scheme may start: ``start_time``, or slightly inside of it
            where the drift of the SDE is singular at ``start_time`` (``Cosine``, ``Rectified``).
        deterministic_flow: False where no probability flow exists (a bridge from a fixed point).
        closed_form: False where the law given the data alone is not the Gaussian above (paired bridges, whose
            ``alpha`` and ``sigma`` are those given both ends; ``offset`` and what builds on it then needs the
            other end).
    """

    variables: int = 1
    basis: Basis | None = None
    deterministic_flow: bool = True
    closed_form: bool = True

    def __init__(self, covariance: Covariance, horizon: float, start_time: float, end_time: float) -> None:
        super().__init__(covariance, horizon)
        self.start_time = float(start_time)
        self.end_time = float(end_time)

    # -- coefficients ---------------------------------------------------------------------------------------

    @abstractmethod
    def marginal(self, t: Times) -> tuple[Tensor, Tensor]:
        """φ ``(*t, [modes], K)`` and Σ ``(*t, [modes], K, K)`` of ``u_t | x ~ N(φ ⊗ x + o_t, Σ ⊗ Γ)``."""

    @abstractmethod
    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        """A ``(*t, [modes], K, K)``, b ``(*t, [modes], K)``, V ``(*t, [modes], K, K)`` of ``u_s | u_t, x``.

        ``u_s | u_t, x ~ N(A u_t + b ⊗ x, V ⊗ Γ)``, s between ``t`` and ``end_time``; at ``end_time`` the data
        variable is the data exactly.
        """

    @abstractmethod
    def root(self, t: Times) -> Tensor:
        """Lower L ``(*t, [modes], K, K)`` with ``L Lᵀ = Σ_t``."""

    @abstractmethod
    def precision(self, t: Times) -> Tensor:
        """``Σ_t⁻¹`` ``(*t, [modes], K, K)``; raises ``ValueError`` where Σ_t is singular."""

    @abstractmethod
    def noise_root(self, t: Times) -> Tensor:
        """g ``(*t, [modes], K, K)``: the SDE's noise is ``(g ⊗ R) dW``, in either direction of time."""

    @abstractmethod
    def statistic(self, t: Times) -> Tensor:
        """q ``(*t, [modes], K)``: ``y = qᵀ(u - o_t)`` is all that the state tells about the data."""

    @abstractmethod
    def alpha(self, t: Times) -> Tensor:
        """α_t ``(*t, [modes])``, the coefficient of the data in the statistic y."""

    @abstractmethod
    def variance(self, t: Times) -> Tensor:
        """σ_t² ``(*t, [modes])``, the coefficient of Γ in the law of the statistic y."""

    @abstractmethod
    def noise_weights(self, t: Times) -> Tensor:
        """n ``(*t, [modes], K)``, of unit length: ``η̄ = nᵀη`` where ``u = φ ⊗ x + o + (L ⊗ I) η``."""

    @abstractmethod
    def log_snr(self, t: Times) -> Tensor:
        """``log I``, averaged over the modes: ``(*t)``, increasing on the way to the data."""

    @abstractmethod
    def log_snr_rate(self, t: Times) -> Tensor:
        """Its derivative in t ``(*t)``, which has no quotient of modes that have faded away."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Times) -> Tensor:
        """The time at which ``log_snr`` has a given value, clamped to ``[0, horizon]``."""

    @abstractmethod
    def velocity(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """du/dt of the probability flow with the posterior mean at ``data``, per unit of ``t`` itself."""

    @abstractmethod
    def reverse_drift(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """Drift of the SDE that leads to the data, per unit of time *elapsed* on the way from start to end.

        One Euler–Maruyama step from t to s is ``u + reverse_drift(u, D(u, t), t) |s - t|`` and noise
        ``√|s - t| (noise_root(t) ⊗ R) z``, for a process that runs backward in t as for a bridge that runs
        forward.
        """

    @abstractmethod
    def information_rate(self, t: Times) -> Tensor:
        """dI/dt ``(*t, [modes])``; of a noise process ``-φᵀΣ⁻¹ β G Σ⁻¹φ``, negative."""

    def sigma(self, t: Times) -> Tensor:
        """σ_t, the square root of ``variance``."""
        return self.variance(t).sqrt()

    def information(self, t: Times) -> Tensor:
        """``I(t) = φᵀΣ⁻¹φ = α²/σ²`` ``(*t, [modes])``; infinite where σ = 0."""
        return self.alpha(t).square() / self.variance(t)

    def offset(self, t: Times) -> Tensor:
        """o_t, the rest of the mean: float64, broadcastable to ``(B, K*C, *grid)``; here 0."""
        return torch.zeros((), dtype=torch.float64, device=self.times(t).device)

    def offset_rate(self, t: Times) -> Tensor:
        """do_t/dt, shaped as ``offset``."""
        return torch.zeros((), dtype=torch.float64, device=self.times(t).device)

    def velocity_weights(self, t: Times) -> tuple[Tensor, Tensor]:
        """(a, b) of the velocity prediction target ``a x + b η̄`` (Salimans & Ho 2022: (-σ, α))."""
        return -self.sigma(t), self.alpha(t)

    # -- fields ---------------------------------------------------------------------------------------------

    def scale(self, coefficient: Tensor, field: Tensor) -> Tensor:
        """A coefficient, ``()`` or ``(B,)`` and then ``[modes]``, times a field ``(B, …, *grid)``."""
        if self.basis is None:
            return expand(coefficient, field) * field
        value = coefficient.to(device=field.device, dtype=field.dtype)
        extra = field.ndim - 1 - self.basis.grid.ndim
        modes = len(self.basis.modes)
        if value.ndim > modes:
            self._check_times(value.shape[: value.ndim - modes], field)
            value = value.reshape(value.shape[0], *[1] * extra, *value.shape[1:])
        return self.basis.multiply(field, value)

    def mix(self, matrix: Tensor, field: Tensor) -> Tensor:
        """``(M ⊗ I) u`` for M ``(*t, [modes], I, J)`` and u ``(B, J*C, *grid)``: ``(B, I*C, *grid)``.

        Raises ``ValueError`` where the field's channels are no multiple of J.
        """
        rows, columns = matrix.shape[-2:]
        if field.shape[1] % columns:
            raise ValueError(
                f"a state of {columns} variables needs a multiple of {columns} channels; "
                f"got shape {tuple(field.shape)}"
            )
        if rows == columns == 1:
            return self.scale(matrix[..., 0, 0], field)
        batch, channels, *grid = field.shape
        each = channels // columns
        value = matrix.to(device=field.device, dtype=field.dtype)
        modes = 0 if self.basis is None else len(self.basis.modes)
        self._check_times(value.shape[: value.ndim - 2 - modes], field)
        if self.basis is None:
            mixed = value @ field.reshape(batch, columns, -1)
            return mixed.reshape(batch, rows * each, *grid)
        coefficients = self.basis.analyze(field.reshape(batch, columns, each, *grid))
        value = value.movedim((-2, -1), (-2 - len(self.basis.modes), -1 - len(self.basis.modes)))
        if value.ndim == len(self.basis.modes) + 2:
            value = value.unsqueeze(0)
        mixed = (value.unsqueeze(3) * coefficients.unsqueeze(1)).sum(2)
        return self.basis.synthesize(mixed).reshape(batch, rows * each, *grid)

    def _check_times(self, shape: Sequence[int], field: Tensor) -> None:
        """Raise ``ValueError`` unless times of this shape are one for all fields, or one for each."""
        batch = field.shape[0]
        if len(shape) > 1 or (len(shape) == 1 and shape[0] not in (1, batch)):
            raise ValueError(
                f"t has shape {tuple(shape)} for a field of shape {tuple(field.shape)}; it must be a scalar "
                f"or have shape ({batch},), one time per batch entry"
            )

    def _check_pair(self, u: Tensor, data: Tensor) -> None:
        """Raise ``ValueError`` unless the state has the K variables of the data's channels."""
        needed = (self.variables * data.shape[1], *data.shape[2:])
        if tuple(u.shape[1:]) != needed:
            raise ValueError(
                f"the state has shape {tuple(u.shape)} and the data {tuple(data.shape)}; with "
                f"{self.variables} variable(s) per site a state is (B, {', '.join(map(str, needed))})"
            )

    def reduce(self, u: Tensor, t: Times) -> Tensor:
        """The statistic ``y = qᵀ(u - o_t) = α x + σ η̄`` ``(B, C, *grid)`` of a state ``(B, K*C, *grid)``."""
        centred = u - self.offset(t).to(device=u.device, dtype=u.dtype)
        return self.mix(self.statistic(t)[..., None, :], centred)

    def reduce_noise(self, noise: Tensor, t: Times) -> Tensor:
        """η̄ ``(B, C, *grid)`` of the noise η ``(B, K*C, *grid)`` that ``perturb`` returns."""
        return self.mix(self.noise_weights(t)[..., None, :], noise)

    def mean(self, data: Tensor, t: Times) -> Tensor:
        """φ_t ⊗ x + o_t, ``(B, K*C, *grid)``."""
        phi = self.marginal(t)[0][..., None]
        return self.mix(phi, data) + self.offset(t).to(device=data.device, dtype=data.dtype)

    def gamma_score(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """(I ⊗ Γ)∇log q(u_t | x) = Σ⁻¹(φ ⊗ x + o_t - u); that of the marginal where ``data`` is D(u, t)."""
        self._check_pair(u, data)
        return self.mix(self.precision(t), self.mean(data, t) - u)

    def score(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """∇log q(u_t | x) = (Σ⁻¹ ⊗ Γ⁻¹)(φ ⊗ x + o_t - u); one solve with Γ."""
        scaled = self.gamma_score(u, t, data)
        apart = scaled.reshape(scaled.shape[0], self.variables, -1, *scaled.shape[2:])
        return self.covariance.solve(apart).reshape(scaled.shape)

    def noise(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """η̄ = (y - α x)/σ ``(B, C, *grid)``, the noise of the statistic that leads from the data to u."""
        self._check_pair(u, data)
        sigma = self._positive_sigma(t)
        return self.scale(1.0 / sigma, self.reduce(u, t) - self.scale(self.alpha(t), data))

    def variable_noise(self, u: Tensor, t: Times, data: Tensor) -> Tensor:
        """η = L⁻¹(u - φ ⊗ x - o) ``(B, K*C, *grid)``, the noise of every variable that leads from x to u."""
        self._check_pair(u, data)
        self._positive_sigma(t)
        root = self.root(t)
        eye = torch.eye(root.shape[-1], dtype=root.dtype, device=root.device).expand_as(root)
        inverse = torch.linalg.solve_triangular(root, eye, upper=False)
        return self.mix(inverse, u - self.mean(data, t))

    def _positive_sigma(self, t: Times) -> Tensor:
        sigma = self.sigma(t)
        if bool((sigma <= 0).any()):
            raise ValueError(
                "the score does not exist where sigma(t) = 0 "
                "(at the data end, or at a fixed starting point); evaluate it at a time inside"
            )
        return sigma

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
        r"""A coloured state at ``start_time`` (or ``time``): ``N(φ ⊗ μ + o, Σ ⊗ Γ + φφᵀ ⊗ C)``.

        Shape ``(*shape, K*C, *grid)``.

        Args:
            shape: batch shape; channels: C.
            time: where to start, e.g. ``sde_start_time``.
            data: ``(mean, covariance)`` of the data where known: then the start is the exact Gaussian
                marginal; with covariance ``None`` or without ``data`` the term φφᵀ ⊗ C (and μ) is left out,
                as is usual.
            initial: the states themselves, for a coupling that cannot draw them (``Paired``); refused by the
                others.
            white: the white noise behind the coloured part, see ``draw``; generator, dtype, device: of the
                draws.
        """
        if initial is not None:
            raise ValueError(
                f"{type(self).__name__} draws its own start; initial= is for a Paired coupling only"
            )
        lead = (shape,) if isinstance(shape, int) else tuple(shape)
        t = self.times(self.start_time if time is None else time)
        noise = self.draw(lead, channels, white=white, generator=generator, dtype=dtype, device=device)
        flat = noise.reshape(-1, *noise.shape[len(lead) :])
        state = self.mix(self.root(t), flat).reshape(noise.shape)
        state = state + self.offset(t).to(device=noise.device, dtype=noise.dtype)
        if data is None:
            return state
        mean, covariance = data
        clean = torch.as_tensor(mean, device=noise.device, dtype=noise.dtype)
        if covariance is not None:
            inner = lead if covariance.channels is not None else (*lead, channels)
            clean = clean + covariance.sample(inner, generator=generator).to(noise)
        grid = self.covariance.domain.shape
        fields = clean.expand(*lead, channels, *grid).reshape(-1, channels, *grid)
        return state + self.mix(self.marginal(t)[0][..., None], fields).reshape(noise.shape)

    @property
    def sde_start_time(self) -> float:
        """Where an Euler–Maruyama scheme may start."""
        return self.start_time
