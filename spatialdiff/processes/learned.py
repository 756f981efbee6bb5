r"""A linear process that is learned with the network: where, how and in what spatial pattern to diffuse.

.. math:: Q = M - M^\top, \qquad D = LL^\top + \varepsilon I, \qquad S = CC^\top, \qquad
          A = -(Q + D)\,S^{-1}, \quad G = 2D,

valid for every value of the parameters M, L (lower), C (lower, positive diagonal): the process always has the
stationary law N(0, S ⊗ Γ). (Singhal et al. 2023, arXiv 2302.07261, section 5; an elementwise positive map of
``LLᵀ``, as in its code, is not positive semi-definite for K ≥ 3.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spatialdiff.covariance import Covariance
from spatialdiff.processes.auxiliary import malda_matrices
from spatialdiff.processes.learned_beta import LearnedBeta
from spatialdiff.processes.linear import LinearDiffusion
from spatialdiff.processes.matrices import default_schedule, stationary_matrices
from spatialdiff.processes.schedules import BetaSchedule, positive

LEARNABLE = ("Q", "D", "S", "beta", "covariance")


class LearnedDiffusion(LinearDiffusion):
    """A process whose matrices, schedule and Γ are trained with the network, by ``sd.EvidenceBound``.

    It starts as MALDA with the same number of variables (for K = 1 as VP).

    Args:
        gamma: Γ; its kernel's parameters are trained where ``learn`` names "covariance".
        variables: K.
        learn: which of "Q", "D", "S", "beta", "covariance"; the others stay as they start.
        mass: of the auxiliary variables at the start, M > 0.
        beta: the schedule, or what a learned one starts from: its total B(T).
        floor: ε of D.

    Raises:
        TypeError: a Γ that is no single Covariance.
        ValueError: numbers that are not positive; unknown names in ``learn``; "covariance" with a Γ that has
            no parameters to train.
    """

    def __init__(
        self,
        gamma: Covariance,
        variables: int = 2,
        learn: Sequence[str] = ("Q", "D", "beta"),
        *,
        mass: float = 0.25,
        beta: BetaSchedule | None = None,
        floor: float = 1e-4,
    ) -> None:
        if not isinstance(gamma, Covariance):
            raise TypeError(
                f"LearnedDiffusion needs one Covariance, got {type(gamma).__name__}; the covariance of the "
                "other variables relative to it is what S learns"
            )
        unknown = [name for name in learn if name not in LEARNABLE]
        if unknown or isinstance(learn, str):
            raise ValueError(f"learn={learn!r}; it is a sequence out of {', '.join(LEARNABLE)}")
        positive("floor", floor)  # so that D stays positive definite
        skew, dissipation, law = start_matrices(variables, positive("mass", mass))
        lower = _lower_root(dissipation, floor)
        A, G = stationary_matrices(skew, lower @ lower.mT + floor * torch.eye(variables), law)
        schedule = default_schedule(A, G) if beta is None else beta
        if "beta" in learn and not isinstance(schedule, LearnedBeta):
            total = float(schedule.integral(torch.tensor(schedule.horizon, dtype=torch.float64)))
            schedule = LearnedBeta(total=total, horizon=schedule.horizon)
        super().__init__(gamma, A, G, beta=schedule)
        self.learn, self.floor = tuple(learn), floor
        self.skew = nn.Parameter(0.5 * skew, requires_grad="Q" in learn)
        self.dissipation = nn.Parameter(lower, requires_grad="D" in learn)
        factor = torch.linalg.cholesky(law)
        factor = factor.tril(-1) + factor.diagonal().log().diag()
        self.law_factor = nn.Parameter(factor, requires_grad="S" in learn)
        if "covariance" in learn and not any(True for _ in gamma.parameters()):
            raise ValueError(
                f"learn names 'covariance', and {type(gamma).__name__} has no parameters; "
                "build Γ from a kernel with spatialdiff.covariance(kernel, grid)"
            )
        if "covariance" in learn:
            gamma.requires_grad_(True)

    def dynamics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Q, D and S, ``(K, K)`` each, float64."""
        eye = torch.eye(self.variables, dtype=torch.float64, device=self.skew.device)
        lower = self.dissipation.double().tril()
        factor = self.law_factor.double()
        factor = factor.tril(-1) + factor.diagonal().exp().diag()
        skew = self.skew.double()
        return skew - skew.mT, lower @ lower.mT + self.floor * eye, factor @ factor.mT

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        if "skew" not in self._parameters:  # while the base class is built
            return super().matrices()
        skew, dissipation, law = self.dynamics()
        drift = -torch.linalg.solve(law, (skew + dissipation).mT).mT
        return drift, 2.0 * dissipation, nn.functional.pad(law[1:, 1:], (1, 0, 1, 0))

    @property
    def stationary(self) -> Tensor | None:
        return self.dynamics()[2]

    def learned_parameters(self) -> list[nn.Parameter]:
        """What ``learn=`` names: of Q, D, S, the schedule and Γ."""
        matrices = {"Q": self.skew, "D": self.dissipation, "S": self.law_factor}
        own = [parameter for name, parameter in matrices.items() if name in self.learn]
        schedule = list(self.schedule.parameters()) if "beta" in self.learn else []
        spatial = list(self.covariance.parameters()) if "covariance" in self.learn else []
        return [*own, *schedule, *spatial]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, learn={self.learn!r}"


def start_matrices(variables: int, mass: float) -> tuple[Tensor, Tensor, Tensor]:
    """Q, D and S of MALDA, of VP for K = 1."""
    if variables == 1:
        one = torch.ones(1, 1, dtype=torch.float64)
        return 0.0 * one, 0.5 * one, one
    return malda_matrices(variables, mass)


def _lower_root(dissipation: Tensor, floor: float) -> Tensor:
    """Lower L with ``L Lᵀ + floor I`` next to a diagonal D; entries of 0 start small, where they can move."""
    return (dissipation.diagonal() - floor).clamp(min=floor).sqrt().diag()
