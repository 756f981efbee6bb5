r"""Bridges of any linear process, pinned in its data coordinate or in its whole state.

The reference ``du = F u dt + (Q^{1/2} ⊗ Γ^{1/2}) dW``, a ``NoiseProcess`` run forward from a start at 0, is
conditioned on ``H u_τ = x_τ``: H the first row of the identity, or the identity itself. With Φ, Σ its
transition from t to the end,

.. math:: \Gamma\nabla_u \log p(x_\tau \mid u_t) = \Phi^\top H^\top (H\Sigma H^\top)^{-1}(x_\tau - H\Phi u_t),

so that the drift ``F u + Q Φᵀ Hᵀ (H Σ Hᵀ)⁻¹ (x_τ - H Φ u)`` contains no Γ⁻¹, as for one variable (Peluchetti,
arXiv 2312.14589). Where noise reaches the data variable through the others only, as in ``CLD`` and ``ALDA``,
the paths of the data variable are smooth, from the start into the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spatialdiff.processes.base import Times
from spatialdiff.processes.bridges import Pinned
from spatialdiff.processes.moments import psd_root
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.pinned_moments import (
    PinnedMoments,
    lower_factor,
    pinned_moments,
    pinned_step,
    solve_covariance,
)

PINS = ("data", "state")
#: share of the horizon before its end over which a reference has to keep something of its state
CLOSE = 1e-9


class LinearBridge(Pinned):
    r"""A noise process run forward over ``[0, horizon]`` and pinned at its end.

    Ends are ``(B, p*C, *grid)`` with p = 1 for ``pin="data"``, K for ``pin="state"``; starts are ``(B, C,
    *grid)``, the data variable with the auxiliary start ``v_0 ~ N(0, V_0 ⊗ Γ)`` of the process integrated
    out, or the full state ``(B, K*C, *grid)``. In a bridge mixture a state is pinned at ``(x_τ, 0)``: the
    auxiliary variables arrive at rest.

    Args:
        reference: any ``NoiseProcess`` (``CLD``, ``ALDA``, ``LinearDiffusion``, a spectral or a learned one),
            whose horizon and time change are the bridge's.
        pin: ``"data"`` or ``"state"``.

    Raises:
        TypeError: a reference that is no noise process.
        ValueError: an unknown ``pin``; a reference that forgets its state on the way to its horizon (α = 0
            there, as for ``Cosine`` and ``Rectified``), which cannot be pulled to an end.
    """

    def __init__(self, reference: NoiseProcess, pin: str = "data") -> None:
        if not isinstance(reference, NoiseProcess):
            raise TypeError(
                f"LinearBridge pins a noise process (CLD, LinearDiffusion, …), got {type(reference).__name__}"
            )
        if pin not in PINS:
            raise ValueError(f"pin was {pin!r}; the choices are {', '.join(PINS)}")
        super().__init__(reference.covariance, reference.horizon)
        self.reference_process = reference
        self.variables = reference.variables
        self.pin = pin
        self.pins = 1 if pin == "data" else reference.variables
        with torch.no_grad():
            last = self.rest((1.0 - CLOSE) * self.horizon)[0]
        if bool((last[..., : self.pins, :].abs().amax((-2, -1)) == 0.0).any()):
            raise ValueError(
                f"{type(reference).__name__} keeps nothing of its state up to its horizon {self.horizon:g} "
                "(alpha is 0 there), so that nothing pulls a path to a given end; pin a process that runs at "
                "a finite rate, such as VP, CLD or BrownianMotion"
            )

    def learned_parameters(self) -> list[nn.Parameter]:
        return self.reference_process.learned_parameters()

    # -- coefficients ---------------------------------------------------------------------------------------

    def reference(self, s: Times, t: Times) -> tuple[Tensor, Tensor]:
        """Φ(s, t) and Σ(s, t) ``(*t, [modes], K, K)`` of the unpinned process, ``s <= t``."""
        return self.reference_process.transition(s, t)

    def rest(self, t: Times) -> tuple[Tensor, Tensor]:
        """Φ and Σ of the unpinned process from t to the end."""
        t = self.times(t)
        return self.reference(t, torch.full_like(t, self.horizon))

    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        """The bridge step: A ``(…, K, K)``, B ``(…, K, p)``, V ``(…, K, K)``, ``t <= s``.

        ``u_s | u_t, H u_τ ~ N(A u_t + B H u_τ, V ⊗ Γ)``; what came before ``u_t`` does not matter (Markov).
        At ``s = horizon`` the pinned variables are the end exactly.
        """
        t, s = self.ordered(t, s, ("t", "s"))
        keep, pull, spread = pinned_step(*self.reference(t, s), *self.rest(s), self.pins)
        tail = [1] * (keep.ndim - s.ndim)
        arrived = (s >= self.horizon).reshape((*s.shape, *tail))
        pinned = torch.arange(self.variables, device=keep.device) < self.pins
        rows = arrived & pinned[:, None]
        unit = torch.eye(self.variables, dtype=keep.dtype, device=keep.device)[:, : self.pins]
        spread = torch.where(rows | rows.mT, 0.0, spread)
        return torch.where(rows, 0.0, keep), torch.where(rows, unit, pull), spread

    def coefficients(self, t: Times) -> tuple[Tensor, Tensor, Tensor]:
        """``(C_0, C_τ, V_b)`` of ``u_t | u_0, H u_τ ~ N(C_0 u_0 + C_τ H u_τ, V_b ⊗ Γ)``."""
        return self.posterior(0.0, t)

    def moments(self, t: Times, start_root: Tensor) -> PinnedMoments:
        """The law at t from a start of covariance ``start_root start_rootᵀ``; see ``PinnedMoments``."""
        t = self.times(t)
        return pinned_moments(*self.reference(0.0, t), *self.rest(t), self.pins, start_root)

    def pull(self, t: Times) -> tuple[Tensor, Tensor]:
        """``w = Φᵀ Hᵀ (H Σ Hᵀ)⁻¹`` ``(…, K, p)`` and ``H Φ`` ``(…, p, K)`` from t to the end.

        Raises ``ValueError`` at the end, where w is singular.
        """
        phi, sigma = self.rest(t)
        pinned = sigma[..., : self.pins, : self.pins]
        if bool((pinned.diagonal(dim1=-2, dim2=-1) <= 0).any()):
            raise ValueError(
                f"the drift of a bridge is singular at its end t = {self.horizon:g}; "
                "take the last step with the bridge solver (posterior), which returns the data exactly"
            )
        h = phi[..., : self.pins, :]
        return solve_covariance(pinned, h).mT, h

    def drift_matrices(self, t: Times) -> tuple[Tensor, Tensor]:
        """``F - Q w H Φ`` ``(…, K, K)`` and ``Q w`` ``(…, K, p)`` of the pinned drift, affine in u, x_τ."""
        pull, h = self.pull(t)
        gain = self.diffusion_matrix(t) @ pull
        return self.drift_matrix(t) - gain @ h, gain

    def path_rate(self, t: Times) -> Tensor:
        pull = self.pull(t)[0][..., :1]
        return (pull.mT @ self.diffusion_matrix(t) @ pull)[..., 0, 0]

    def drift_matrix(self, t: Times) -> Tensor:
        """F(t) of the reference."""
        return self.reference_process.drift_matrix(t)

    def diffusion_matrix(self, t: Times) -> Tensor:
        """Q(t) of the reference, ``β G``."""
        return self.reference_process.diffusion_matrix(t)

    def noise_root(self, t: Times) -> Tensor:
        """Some root of Q(t)."""
        return self.reference_process.noise_root(t)

    # -- fields ---------------------------------------------------------------------------------------------

    def mix(self, matrix: Tensor, field: Tensor) -> Tensor:
        """A matrix ``(*t, [modes], I, J)`` on the variables of a field ``(B, J*C, *grid)``."""
        return self.reference_process.mix(matrix, field)

    def end_state(self, x: Tensor) -> Tensor:
        """The pinned end ``(B, p*C, *grid)`` for data ``(B, C, *grid)``: themselves, or ``(x, 0)``."""
        return torch.cat([x, x.new_zeros(x.shape[0], (self.pins - 1) * x.shape[1], *x.shape[2:])], dim=1)

    def drift_adjustment(self, u: Tensor, end: Tensor, t: Times) -> Tensor:
        """``Q Φᵀ Hᵀ (H Σ Hᵀ)⁻¹ (x_τ - H Φ u)``, which is QΓ∇log p(x_τ | u_t): what pulls to the end."""
        pull, h = self.pull(t)
        return self.mix(self.diffusion_matrix(t) @ pull, end - self.mix(h, u))

    def drift_target(self, u: Tensor, end: Tensor, t: Times) -> Tensor:
        """The drift of the bridge, ``F u`` and the adjustment; raises ``ValueError`` at the end.

        With ``E[x_τ | u_t]`` for the end it is the drift of the bridge mixture; Γ does not appear.
        """
        return self.mix(self.drift_matrix(t), u) + self.drift_adjustment(u, end, t)

    def start_root(self, std: float) -> Tensor:
        """Lower root ``([modes], K, K)`` of ``diag(std², V_0)``, the covariance of an independent start."""
        auxiliary = self.reference_process.initial_root
        first = torch.zeros_like(auxiliary[..., :1])
        first[..., 0, 0] = std
        return lower_factor(torch.cat([first, auxiliary], dim=-1))

    def start_factor(self, x0: Tensor, end: Tensor) -> Tensor:
        """The root of the covariance of the start: 0 for a full state, ``diag(0, V_0)`` for x_0 alone."""
        self.check_field(x0, "x0")
        self.check_field(end, "x1")
        channels = end.shape[1] // self.pins
        if x0.shape[0] != end.shape[0] or end.shape[1] % self.pins:
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)} and x1 {tuple(end.shape)}; the two ends must match, x1 with "
                f"{self.pins} variable(s)"
            )
        if x0.shape[1] == channels:
            return self.reference_process.initial_root
        if x0.shape[1] != channels * self.variables:
            raise ValueError(
                f"x0 has {x0.shape[1]} channels; needed {channels} (the data variable) or "
                f"{channels * self.variables} (the state)"
            )
        return torch.zeros_like(self.reference_process.initial_root)

    def perturb(
        self,
        x0: Tensor,
        x1: Tensor,
        t: Times,
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``u_t`` given the start and the pinned end; return ``(u_t, η)``, ``(B, K*C, *grid)`` each.

        Args:
            x0: start ``(B, C, *grid)`` or ``(B, K*C, *grid)``; x1: end ``(B, p*C, *grid)``; t: times.
            white: the white noise z of η = R z, see ``draw``; drawn with ``generator`` where absent.
        """
        factor = self.start_factor(x0, x1)
        moments = self.moments(t, factor)
        noise = self.noise(x1, white, generator)
        given = x0.shape[1] * self.pins // x1.shape[1]
        mean = self.mix(moments.back(moments.keep[..., :given]), x0) + self.mix(
            moments.back(moments.pull), x1
        )
        return mean + self.mix(moments.root(), noise), noise

    def noise(self, end: Tensor, white: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Coloured noise η ``(B, K*C, *grid)`` for ends ``(B, p*C, *grid)``."""
        return self.draw(
            end.shape[0],
            end.shape[1] // self.pins,
            white=white,
            generator=generator,
            dtype=end.dtype,
            device=end.device,
        )

    def simulate(
        self,
        x0: Tensor,
        x1: Tensor,
        times: Tensor | Sequence[float],
        *,
        white: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Exact paths from ``x0`` to ``x1`` at increasing ``times`` ``(T,)``: ``(T, B, K*C, *grid)``.

        ``white`` has the shape of ``draw`` with ``T`` in front, or ``T + 1`` where ``x0`` is one
        variable of several: the first for the auxiliary start.
        """
        factor = self.start_factor(x0, x1)
        grid = self.increasing(times)
        partial = self.variables > 1 and x0.shape[1] * self.pins == x1.shape[1]
        if white is not None and len(white) != len(grid) + partial:
            raise ValueError(f"white has {len(white)} draws; this path needs {len(grid) + partial}")
        draws = iter([None] * (len(grid) + 1) if white is None else white)
        state = x0
        if partial:
            fresh = self.mix(factor, self.noise(x1, next(draws), generator))
            state = torch.cat([x0, fresh[:, x0.shape[1] :]], dim=1)
        states, before = [], grid.new_zeros(())
        for now in grid:
            keep, pull, spread = self.posterior(before, now)
            noise = self.noise(x1, next(draws), generator)
            state = self.mix(keep, state) + self.mix(pull, x1) + self.mix(psd_root(spread), noise)
            states.append(state)
            before = now
        return torch.stack(states)

    def extra_repr(self) -> str:
        return f"pin={self.pin!r}"
