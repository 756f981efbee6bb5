r"""The law of the state of a mixture of pinned linear processes, given the data.

Where :math:`u_0 \mid x_\tau \sim N(m \otimes x_\tau + \mu_0,\; S \otimes \Gamma)`, the pinned process
:math:`N(C_0 u_0 + C_\tau J x_\tau, V_b \otimes \Gamma)` (``pinned``; J = 1, or the first column of the
identity where the whole state is pinned at ``(x_τ, 0)``) gives

.. math:: u_t \mid x_\tau \sim N\big((C_\tau J + C_0 m) \otimes x_\tau + C_0\mu_0,\;
          (C_0 S C_0^\top + V_b) \otimes \Gamma\big),

and the drift of the mixture, ``F u + Q w (J D - H Φ u)``, contains the posterior mean D and no Γ⁻¹. With
:math:`p = \Sigma_t^{-1}\varphi_t` and :math:`w` of ``LinearBridge.pull``, the information about the data
grows by :math:`\dot I = p^\top Q\,(2 w J - p)`, and the relative entropy between the bridge and a model with
:math:`D_\theta` in its drift by
:math:`\tfrac12 (wJ)^\top Q\,wJ\; E\lVert D_\theta - x_\tau\rVert^2_{\Gamma^{-1}}`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.processes.base import Times
from spatialdiff.processes.law import Law
from spatialdiff.processes.marginals import NOTHING, weighted_mean
from spatialdiff.processes.pinned import LinearBridge
from spatialdiff.processes.pinned_levels import BridgeLevels
from spatialdiff.processes.pinned_statistic import Coefficients

#: the time, relative to the horizon, whose statistic stands for that of a start without information
INSIDE = 1e-7


class PinnedLaw(Law):
    """The law of ``u_t`` given ``x_τ`` where ``u_0 | x_τ ~ N(signal ⊗ x_τ + (value, 0), root rootᵀ ⊗ Γ)``.

    Args:
        bridge: the pinned process.
        value: the mean of the data variable at the start: a number, ``(*grid)``, ``(C, *grid)`` or a batch.
        std: of the data variable at the start, relative to Γ, with auxiliary variables from the law of the
            process; or root: some root ``([modes], K, K)`` of the covariance S of the whole start.
        signal: m, ``([modes], K)``.
    """

    def __init__(
        self,
        bridge: LinearBridge,
        *,
        value: Tensor | float = 0.0,
        std: float = 0.0,
        root: Tensor | None = None,
        signal: Tensor | None = None,
    ) -> None:
        super().__init__(bridge.covariance, bridge.horizon, start_time=0.0, end_time=bridge.horizon)
        self._bridge = (bridge,)  # a tuple, so that Γ is not registered twice
        self.variables = bridge.variables
        self.basis = bridge.reference_process.basis
        self.value: Tensor
        self.register_buffer("value", torch.as_tensor(value, dtype=torch.float64), persistent=False)
        self.std = std
        self._root = root
        self._signal = signal
        self._last: tuple[object, list[object], Coefficients] | None = None
        self._levels: BridgeLevels | None = None

    @property
    def bridge(self) -> LinearBridge:
        return self._bridge[0]

    @property
    def start_root(self) -> Tensor:
        """A root of S, the covariance of the start given the data."""
        return self.bridge.start_root(self.std) if self._root is None else self._root

    @property
    def deterministic_flow(self) -> bool:  # type: ignore[override]
        """Whether the start is random in every variable, so that a probability flow leads away from it."""
        return self._root is not None or bool((self.start_root.diagonal(dim1=-2, dim2=-1) > 0).all())

    # -- coefficients ---------------------------------------------------------------------------------------

    def state_key(self) -> list[object]:
        """What the coefficients depend on, to tell whether they have changed."""
        process = self.bridge.reference_process
        tensors = [*process.parameters(), *process.buffers()]
        return [item for tensor in tensors for item in (id(tensor), tensor._version)]

    def coefficients(self, t: Times) -> Coefficients:
        """Coefficients at ``t``; kept while the same tensor of times is asked for again."""
        key = [*self.state_key(), t._version if isinstance(t, Tensor) else None]
        if self._last is not None and self._last[0] is t and self._last[1] == key:
            return self._last[2]
        found = self._coefficients(self.times(t))
        fixed = isinstance(t, Tensor) and not found.moments.inner.requires_grad
        self._last = (t, key, found) if fixed else None
        return found

    def _coefficients(self, t: Tensor) -> Coefficients:
        moments = self.bridge.moments(t, self.start_root.to(t.device))
        phi = moments.pull[..., :1]
        if self._signal is not None:
            phi = phi + moments.keep @ self._signal.to(t.device)[..., None]
        return Coefficients(moments, phi)

    def _weights(self, t: Tensor, found: Coefficients) -> Tensor:
        """``Σ⁻¹φ/√I`` ``(…, K)``; at a start that says nothing of the data its limit, of unit noise."""
        none = (found.information <= 0) & ~self._at_data(t)
        if not bool(none.any()):
            return found.weights
        later = self._coefficients(self.times(t).clamp(min=INSIDE * self.horizon)).weights
        size = (found.root.mT @ later[..., None]).square().sum((-2, -1)).sqrt()[..., None]
        return torch.where(none[..., None], later / torch.where(size > 0, size, 1.0), found.weights)

    def _at_data(self, t: Times) -> Tensor:
        """Where the state holds the data, ``(*t, [modes])``."""
        t = self.times(t)
        modes = () if self.basis is None else tuple(self.basis.modes)
        return (t >= self.horizon).reshape((*t.shape, *[1] * len(modes))).expand((*t.shape, *modes))

    def marginal(self, t: Times) -> tuple[Tensor, Tensor]:
        found = self.coefficients(t)
        phi = found.moments.back(found.phi)[..., 0]
        return phi, found.root @ found.root.mT

    def root(self, t: Times) -> Tensor:
        return self.coefficients(t).root

    def precision(self, t: Times) -> Tensor:
        found = self.coefficients(t)
        if bool(found.singular.any()):
            raise ValueError(
                "the score does not exist where the state holds the data or a fixed start; evaluate it at a "
                "time inside"
            )
        return found.precision

    def information(self, t: Times) -> Tensor:
        found = self.coefficients(t).information
        return torch.where(self._at_data(t), torch.inf, found)

    def alpha(self, t: Times) -> Tensor:
        found = self.coefficients(t)
        scaled = (0.5 * found.log_information).exp() * (1.0 + found.information).rsqrt()
        # where the state says nothing, exactly nothing
        scaled = torch.where(found.log_information > NOTHING, scaled, 0.0)
        return torch.where(self._at_data(t), 1.0, scaled)

    def variance(self, t: Times) -> Tensor:
        return 1.0 / (1.0 + self.information(t))

    def statistic(self, t: Times) -> Tensor:
        """``q = Σ⁻¹φ/√(I(1 + I))``; the data variable at the end."""
        t = torch.as_tensor(t, dtype=torch.float64)
        found = self.coefficients(t)
        weights = self._weights(t, found)
        scaled = weights * (1.0 + found.information).rsqrt()[..., None]
        return torch.where(self._at_data(t)[..., None], self._first(scaled), scaled)

    def noise_weights(self, t: Times) -> Tensor:
        t = torch.as_tensor(t, dtype=torch.float64)
        found = self.coefficients(t)
        weights = self._weights(t, found)
        along = (found.root.mT @ weights[..., None])[..., 0]
        size = along.square().sum(-1, keepdim=True).sqrt()
        # at a fixed start nothing is random, and any unit vector serves
        fixed = (size <= 0) | self._at_data(t)[..., None]
        return torch.where(fixed, self._first(along), along / torch.where(fixed, 1.0, size))

    def _first(self, like: Tensor) -> Tensor:
        first = torch.zeros_like(like)
        first[..., 0] = 1.0
        return first

    def information_rate(self, t: Times) -> Tensor:
        """``pᵀ Q (2 w J - p)``, ``p = Σ_t⁻¹φ_t``."""
        found = self.coefficients(t)
        p = found.weights * found.information.sqrt()[..., None]
        pull = self.bridge.pull(t)[0][..., 0]
        spread = self.bridge.diffusion_matrix(t)
        return ((p[..., None, :] @ spread) @ (2.0 * pull - p)[..., None])[..., 0, 0]

    def log_snr(self, t: Times) -> Tensor:
        found = self.coefficients(t).log_information
        # a start that says nothing is no matter of rounding
        start = (self.times(t) <= 0.0).reshape((-1, *[1] * (found.ndim - 1)) if found.ndim else ())
        found = torch.where(start & (found <= NOTHING), -torch.inf, found)
        return weighted_mean(torch.where(self._at_data(t), torch.inf, found), self.basis)

    def log_snr_rate(self, t: Times) -> Tensor:
        found = self.coefficients(t)
        weights = found.weights
        pull = self.bridge.pull(t)[0][..., 0] * (-0.5 * found.log_information).exp()[..., None]
        spread = self.bridge.diffusion_matrix(t)
        rate = ((weights[..., None, :] @ spread) @ (2.0 * pull - weights)[..., None])[..., 0, 0]
        return weighted_mean(torch.where(found.log_information > NOTHING, rate, 0.0), self.basis)

    def time_of_log_snr(self, log_snr: Times) -> Tensor:
        if self._levels is None or self._levels.stale():
            self._levels = BridgeLevels(self)
        return self._levels.time(torch.as_tensor(log_snr, dtype=torch.float64))

    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        keep, pull, spread = self.bridge.posterior(t, s)
        return keep, pull[..., 0], spread

    # -- the rest of the mean -------------------------------------------------------------------------------

    def offset(self, t: Times) -> Tensor:
        """``C_0 (value, 0)``, of one channel per variable where neither ``value`` nor Γ has channels."""
        if self.value.ndim == 0 and not bool(self.value):
            return super().offset(t)
        moments = self.coefficients(t).moments
        return self._offset(moments.back(moments.keep[..., :1]))

    def offset_rate(self, t: Times) -> Tensor:
        if self.value.ndim == 0 and not bool(self.value):
            return super().offset_rate(t)
        moments = self.coefficients(t).moments
        return self._offset(self.bridge.drift_matrices(t)[0] @ moments.back(moments.keep[..., :1]))

    def _offset(self, column: Tensor) -> Tensor:
        grid = tuple(self.covariance.domain.shape)
        value = self.value.to(column)
        channels = self.covariance.channels or (value.shape[-len(grid) - 1] if value.ndim > len(grid) else 1)
        lead = column.shape[: column.ndim - 2 - (0 if self.basis is None else len(self.basis.modes))]
        batch = value.shape[0] if value.ndim == len(grid) + 2 else (lead[0] if lead else 1)
        return self.mix(column, value.expand(batch, channels, *grid))

    def _check_channels(self, channels: int) -> None:
        given = self.value.ndim - len(self.covariance.domain.shape)
        if channels > 1 and self.covariance.channels is None and given < 1 and bool(self.value.any()):
            raise ValueError(
                f"the start of this bridge is a value without channels, for states of {channels}: give it as "
                f"a field (C, *grid) with C = {channels}"
            )

    def mean(self, data: Tensor, t: Times) -> Tensor:
        self._check_channels(data.shape[1])
        return super().mean(data, t)

    def reduce(self, u: Tensor, t: Times) -> Tensor:
        self._check_channels(u.shape[1] // self.variables)
        return super().reduce(u, t)

    def white_shape(self, shape: int | Sequence[int], channels: int) -> tuple[int, ...]:
        self._check_channels(channels)
        return super().white_shape(shape, channels)

    # -- dynamics -------------------------------------------------------------------------------------------

    def noise_root(self, t: Times) -> Tensor:
        return self.bridge.noise_root(t)

    def reverse_drift(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """The drift of the bridge mixture, ``F u + Q w (J D - H Φ u)``."""
        return self.bridge.drift_target(u, self.bridge.end_state(data), t)

    def velocity(self, u: Tensor, data: Tensor, t: Times) -> Tensor:
        """The drift less half the noise, ``F u + Q w (J D - H Φ u) - ½ Q Γ∇log q``.

        Raises ``RuntimeError`` where the start has no density in every variable.
        """
        if not self.deterministic_flow:
            raise RuntimeError(
                f"{type(self).__name__} has no probability flow: its start is a point in the data variable, "
                "from which only noise leads away; use a stochastic solver ('bridge' or 'euler_maruyama'), "
                "or IndependentField"
            )
        score = self.mix(self.bridge.diffusion_matrix(t), self.gamma_score(u, t, data))
        return self.reverse_drift(u, data, t) - 0.5 * score

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
        """As for every law; or ``(x_0, v_0)`` for ``initial`` fields x_0 ``(*shape, C, *grid)``, v_0 drawn.

        Pairs need them; raises ``ValueError`` without, and for another shape or time.
        """
        if initial is None and self.closed_form:
            return super().start(
                shape,
                channels,
                time=time,
                data=data,
                white=white,
                generator=generator,
                dtype=dtype,
                device=device,
            )
        lead = (shape,) if isinstance(shape, int) else tuple(shape)
        needed = (*lead, channels, *self.covariance.domain.shape)
        if initial is None or tuple(initial.shape) != needed:
            given = "nothing" if initial is None else f"a field of shape {tuple(initial.shape)}"
            raise ValueError(f"a paired bridge starts from given fields x0 of shape {needed}; got {given}")
        if time not in (None, 0.0):
            raise ValueError(f"a paired bridge starts from x0 at time 0; got time={time!r}")
        x0 = initial.to(device=device or initial.device, dtype=dtype or initial.dtype)
        noise = self.draw(
            lead, channels, white=white, generator=generator, dtype=x0.dtype, device=x0.device
        ).reshape(-1, self.variables * channels, *needed[len(lead) + 1 :])
        fresh = self.mix(self.bridge.reference_process.initial_root, noise).reshape(*lead, *noise.shape[1:])
        return torch.cat(
            [x0, fresh.narrow(len(lead), channels, fresh.shape[len(lead)] - channels)], len(lead)
        )
