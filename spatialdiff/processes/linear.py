r"""Any linear diffusion with auxiliary variables, under a spatial covariance Γ.

.. math:: du = \beta(t)\,A\,u\,dt + \sqrt{\beta(t)}\,(G^{1/2} \otimes \Gamma^{1/2})\,dW, \qquad
          u_t \mid u_s \sim N\big((\Phi \otimes I)\,u_s,\; \Sigma \otimes \Gamma\big),

with Φ and Σ of ``moments`` at :math:`b = B(t) - B(s)`: only K×K matrices are ever exponentiated. With a
stationary law N(0, S ⊗ Γ), :math:`A = -(Q + D)S^{-1}`, :math:`G = 2D`, Q skew, D ⪰ 0 span all of them
(Ma et al. 2015, arXiv 1506.04696; Singhal et al. 2023, arXiv 2302.07261, section 4). The auxiliary start
``v_0 ~ N(0, V_0 ⊗ Γ)`` is integrated out (hybrid score matching, Dockhorn et al. 2022, arXiv 2112.07068).

A and G may differ from mode to mode of a basis in which Γ is diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.processes.base import Times
from spatialdiff.processes.levels import LevelTable, same_values
from spatialdiff.processes.marginals import Marginal, marginal_law, weighted_mean
from spatialdiff.processes.matrices import (
    check_matrices,
    default_schedule,
    in_units_of_first,
    initial_covariance,
    lyapunov,
    stationary_matrices,
)
from spatialdiff.processes.modes import as_covariances, check_basis, fast_basis, relative_roots
from spatialdiff.processes.moments import linear_moments, psd_root
from spatialdiff.processes.noise import NoiseProcess
from spatialdiff.processes.posteriors import state_posterior
from spatialdiff.processes.schedules import BetaSchedule

_MATRICES = ("_drift", "_diffusion", "_stationary", "_initial", "_own_diffusion", "_own_initial")
#: times whose law is kept: the ends of a step, and one between
KEPT = 3
Matrix = Tensor | Sequence[Sequence[float]] | Sequence[Any]


class LinearDiffusion(NoiseProcess):
    r"""``du = β A u dt + √β (G^{1/2} ⊗ Γ^{1/2}) dW`` for K variables per site, the data first.

    Args:
        gamma: Γ, or a sequence of K covariances, one for each variable (diagonal in one basis).
        A: drift ``(K, K)``, or ``(*modes, K, K)`` for each mode of ``basis``; no eigenvalue may grow.
        G: noise ⪰ 0, ``(K, K)`` or ``(*modes, K, K)``.
        beta: time change β(t); by default linear from 0.1 to 20 in proportion, as for VP, and so long that
            e^{-5} of the data is left, which is what VP leaves.
        initial: V_0 of the auxiliary variables, ``(K-1, K-1)``, or K-1 variances; by default that of the
            stationary law, or 0 where there is none.
        basis: the basis of the modes; by default Γ's own where A or G have modes.

    Raises:
        TypeError: a Γ that is no Covariance, nor a sequence of them.
        ValueError: matrices of other shapes, an A that grows, G or V_0 not positive semi-definite, noise that
            does not reach every variable, modes without a fast basis.
    """

    _drift: Tensor
    _diffusion: Tensor
    _stationary: Tensor | None
    _initial: Tensor
    _own_diffusion: Tensor
    _own_initial: Tensor | None

    def __init__(
        self,
        gamma: Covariance | Sequence[Covariance],
        A: Matrix,
        G: Matrix,
        *,
        beta: BetaSchedule | None = None,
        initial: Matrix | None = None,
        basis: Basis | None = None,
    ) -> None:
        first, *others = as_covariances(gamma, type(self).__name__)
        drift, diffusion = check_matrices(A, G)
        schedule = default_schedule(drift, diffusion) if beta is None else beta
        super().__init__(first, schedule.horizon)
        self.variables = drift.shape[-1]
        self.schedule = schedule
        if others:
            self.covariances = torch.nn.ModuleList(others)
            relative, basis = relative_roots((first, *others), self.variables, type(self).__name__)
            own, diffusion = diffusion, in_units_of_first(diffusion, relative.detach())
        if max(drift.ndim, diffusion.ndim) > 2:
            basis = fast_basis(first, type(self).__name__) if basis is None else basis
            self.basis = check_basis(first, basis, type(self).__name__)
            shape = (*basis.modes, self.variables, self.variables)
            for name, given in (("A", drift), ("G", diffusion)):
                if given.ndim > 2 and given.shape != shape:
                    raise ValueError(
                        f"{name} has shape {tuple(given.shape)}; for the modes of {basis!r} it is {shape}"
                    )
            drift, diffusion = drift.expand(shape), diffusion.expand(shape)
        self.register_buffer("_drift", drift.contiguous())
        self.register_buffer("_diffusion", diffusion.contiguous())
        self.register_buffer("_stationary", lyapunov(drift, diffusion))
        self.register_buffer("_initial", initial_covariance(initial, self.variables, self._stationary))
        if others:
            self.register_buffer("_own_diffusion", own)
            self.register_buffer("_own_initial", None if initial is None else self._initial)
        self._each: tuple[list[Tensor], tuple[Tensor, Tensor, Tensor]] | None = None
        self._kept: list[tuple[list[Tensor], Marginal]] = []
        self._table: LevelTable | None = None
        # fails here, not in the first step, where the noise does not reach a variable
        self._marginal(self.horizon)

    @classmethod
    def from_stationary(
        cls,
        gamma: Covariance,
        Q: Matrix,
        D: Matrix,
        S: Matrix,
        *,
        beta: BetaSchedule | None = None,
        initial: Matrix | None = None,
    ) -> LinearDiffusion:
        """The process with stationary law N(0, S ⊗ Γ): ``A = -(Q + D) S⁻¹``, ``G = 2 D``.

        Args:
            gamma: Γ. Q: skew, D ⪰ 0, S ≻ 0, ``(K, K)`` each; beta, initial: as for ``LinearDiffusion``.

        Raises:
            ValueError: Q not skew, D not positive semi-definite, S not positive definite.
        """
        drift, diffusion = stationary_matrices(Q, D, S)
        return LinearDiffusion(gamma, drift, diffusion, beta=beta, initial=initial)

    # -- coefficients ---------------------------------------------------------------------------------------

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, G and diag(0, V_0), ``([modes], K, K)`` each, float64, in units of the (first) Γ."""
        if "covariances" not in self._modules or "_own_initial" not in self._buffers:
            return self._drift, self._diffusion, self._initial
        # the others relative to the first, as their parameters stand
        each = (self.covariance, *self.covariances)
        relative = relative_roots(each, self.variables, type(self).__name__)[0]
        if self._each is not None and not relative.requires_grad and same_values(self._each[0], [relative]):
            return self._each[1]
        diffusion = in_units_of_first(self._own_diffusion, relative)
        if self._own_initial is None:
            initial = initial_covariance(None, self.variables, lyapunov(self._drift, diffusion))
        else:
            initial = in_units_of_first(self._own_initial, relative)
        found = (self._drift, diffusion, initial)
        self._each = None if relative.requires_grad else ([relative.clone()], found)
        return found

    @property
    def A(self) -> Tensor:
        """The drift matrix ``([modes], K, K)``, per unit of B(t)."""
        return self.matrices()[0]

    @property
    def G(self) -> Tensor:
        """The covariance ``([modes], K, K)`` of the noise, per unit of B(t)."""
        return self.matrices()[1]

    @property
    def stationary(self) -> Tensor | None:
        """S of the stationary law N(0, S ⊗ Γ), ``([modes], K, K)``; None where A does not contract."""
        if self._stationary is not None and "covariances" in self._modules:
            return lyapunov(*self.matrices()[:2])
        return self._stationary

    @property
    def initial_root(self) -> Tensor:
        return psd_root(self.matrices()[2])

    def transition(self, s: Times, t: Times) -> tuple[Tensor, Tensor]:
        early, late = self.ordered(s, t, ("s", "t"))
        drift, diffusion, _ = self.matrices()
        return linear_moments(drift, diffusion, self.schedule.between(early, late))

    def _marginal(self, t: Times) -> Marginal:
        # the coefficients at the ends of a step are asked for several times over, in this step and the next
        state = [*self.matrices(), self.schedule.integral(self.times(t))]
        if any(value.requires_grad for value in state):
            return marginal_law(*state)
        # what was made in inference mode is of no use to autograd
        any_use = torch.is_inference_mode_enabled()
        for kept, found in self._kept:
            if (any_use or not found.phi.is_inference()) and same_values(kept, state):
                return found
        found = marginal_law(*state)
        self._kept = [([value.clone() for value in state], found), *self._kept[: KEPT - 1]]
        return found

    def marginal(self, t: Times) -> tuple[Tensor, Tensor]:
        found = self._marginal(t)
        return found.phi, found.sigma

    def root(self, t: Times) -> Tensor:
        return self._marginal(t).root

    def precision(self, t: Times) -> Tensor:
        return self._marginal(t).inverse

    def statistic(self, t: Times) -> Tensor:
        return self._marginal(t).statistic

    def noise_weights(self, t: Times) -> Tensor:
        return self._marginal(t).noise_weights

    def alpha(self, t: Times) -> Tensor:
        return self._marginal(t).alpha

    def variance(self, t: Times) -> Tensor:
        return self._marginal(t).sigma_bar.square()

    def sigma(self, t: Times) -> Tensor:
        return self._marginal(t).sigma_bar

    def information(self, t: Times) -> Tensor:
        return self._marginal(t).information

    def information_rate(self, t: Times) -> Tensor:
        """``-φᵀΣ⁻¹ β G Σ⁻¹φ``; 0 where the state holds the data."""
        found = self._marginal(t)
        information = torch.where(found.at_data, 0.0, found.information)
        return information * found.log_rate(self.diffusion_matrix(t))

    def log_snr(self, t: Times) -> Tensor:
        return weighted_mean(self._marginal(t).log_information, self.basis)

    def log_snr_rate(self, t: Times) -> Tensor:
        return weighted_mean(self._marginal(t).log_rate(self.diffusion_matrix(t)), self.basis)

    def time_of_log_snr(self, log_snr: Times) -> Tensor:
        schedule = self.schedule.parameters() if isinstance(self.schedule, torch.nn.Module) else ()
        state = [*self.matrices(), *schedule]
        if self._table is None or self._table.stale(state):
            with torch.inference_mode(False):
                self._table = LevelTable(self, state)
        return self._table.time(torch.as_tensor(log_snr, dtype=torch.float64))

    def posterior(self, t: Times, s: Times) -> tuple[Tensor, Tensor, Tensor]:
        s, t = self.ordered(s, t, ("s", "t"))
        lengths = (self.schedule.integral(s), self.schedule.integral(t), self.schedule.between(s, t))
        gain, pull, spread = state_posterior(*self.matrices(), self._marginal(s), self._marginal(t), lengths)
        return self._exact_ends(gain, pull, spread, s, t)

    def _exact_ends(
        self, gain: Tensor, pull: Tensor, spread: Tensor, s: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """At ``s = 0`` the data variable is the data; at ``s = t`` nothing happens."""
        tail = [1] * (gain.ndim - s.ndim)
        same = (s == t).reshape((*s.shape, *tail))
        data = torch.zeros(self.variables, dtype=torch.bool, device=gain.device)
        data[0] = True
        arrived = (s == 0.0).reshape((*s.shape, *tail)) & ~same
        eye = torch.eye(self.variables, dtype=torch.float64, device=gain.device)
        gain = torch.where(same, eye, torch.where(arrived & data[:, None], 0.0, gain))
        spread = torch.where(same | (arrived & (data[:, None] | data)), 0.0, spread)
        unit = torch.where(arrived[..., 0] & data, 1.0, pull)
        return gain, torch.where(same[..., 0], 0.0, unit), spread

    # -- dynamics -------------------------------------------------------------------------------------------

    def drift_matrix(self, t: Times) -> Tensor:
        return self._rate(t) * self.matrices()[0]

    def diffusion_matrix(self, t: Times) -> Tensor:
        return self._rate(t) * self.matrices()[1]

    def noise_root(self, t: Times) -> Tensor:
        return self._rate(t).sqrt() * psd_root(self.matrices()[1])

    def _rate(self, t: Times) -> Tensor:
        """β(t), with axes for ``[modes], K, K`` behind."""
        rate = self.schedule.rate(self.times(t))
        modes = 0 if self.basis is None else len(self.basis.modes)
        return rate.reshape((*rate.shape, *[1] * (modes + 2)))

    def _apply(self, fn: Any, recurse: bool = True) -> LinearDiffusion:
        # the matrices stay in float64 where the module is cast, and follow its device
        kept = {name: self._buffers[name] for name in _MATRICES if name in self._buffers}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = self._buffers[name]
            self._buffers[name] = value if moved is None or value is None else value.to(moved.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": [], "_table": None, "_each": None}

    def extra_repr(self) -> str:
        return f"variables={self.variables}"
