r"""Named processes with auxiliary variables, by their stationary law N(0, S ⊗ Γ), ``S = diag(1, M, …)``.

| process | K | Q | D |
|---|---|---|---|
| ``CLD`` | 2 | ``[[0, -1], [1, 0]]`` | ``diag(0, 2√M)`` |
| ``ALDA`` | 3 | ``[[0, -M, 0], [M, 0, -γ], [0, γ, 0]]`` | ``diag(0, 0, ψM)`` |
| ``MALDA`` | K | ``Q_ij = -1`` above the diagonal, 1 below | ``diag(0, 2√M, …)`` |

Noise enters the auxiliary variables only, so that the data variable moves smoothly: once differentiable in
time for CLD, twice for ALDA. (Dockhorn et al. 2022, arXiv 2112.07068; Mou et al. 2021, arXiv 1908.10859;
Singhal et al. 2023, arXiv 2302.07261, section 6.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from spatialdiff.covariance import Covariance
from spatialdiff.processes.linear import LinearDiffusion, Matrix
from spatialdiff.processes.matrices import stationary_matrices
from spatialdiff.processes.schedules import BetaSchedule, positive


class CLD(LinearDiffusion):
    """Critically damped Langevin diffusion, K = 2: ``dx = β v/M dt``, ``dv = -β(x + 2v/√M) dt + noise``.

    Dockhorn et al. 2022, arXiv 2112.07068, equation 5, with friction ``2√M``, the critical one.

    Args:
        gamma: Γ, or one covariance for the data and one for the velocity. mass: M > 0.
        beta: β(t); see ``LinearDiffusion``. initial: variance of the velocity at time 0; M by default.
    """

    def __init__(
        self,
        gamma: Covariance | Sequence[Covariance],
        mass: float = 0.25,
        *,
        beta: BetaSchedule | None = None,
        initial: Matrix | None = None,
    ) -> None:
        self_mass = positive("mass", mass)
        A, G = stationary_matrices(
            [[0.0, -1.0], [1.0, 0.0]],
            [[0.0, 0.0], [0.0, 2.0 * self_mass**0.5]],
            [[1.0, 0.0], [0.0, self_mass]],
        )
        super().__init__(gamma, A, G, beta=beta, initial=initial)
        self.mass = self_mass


class ALDA(LinearDiffusion):
    """Accelerated Langevin diffusion of third order, K = 3: noise enters the acceleration only.

    Mou et al. 2021, arXiv 1908.10859; Singhal et al. 2023, arXiv 2302.07261, section 6.

    Args:
        gamma: Γ, or one for each variable. mass: M > 0. coupling: γ, of velocity and acceleration.
        friction: ψ of the acceleration. beta, initial: see ``LinearDiffusion``.
    """

    def __init__(
        self,
        gamma: Covariance | Sequence[Covariance],
        mass: float = 0.25,
        coupling: float = 1.0,
        friction: float = 8.0,
        *,
        beta: BetaSchedule | None = None,
        initial: Matrix | None = None,
    ) -> None:
        m, g, psi = positive("mass", mass), positive("coupling", coupling), positive("friction", friction)
        A, G = stationary_matrices(
            [[0.0, -m, 0.0], [m, 0.0, -g], [0.0, g, 0.0]],
            torch.diag(torch.tensor([0.0, 0.0, psi * m], dtype=torch.float64)),
            torch.diag(torch.tensor([1.0, m, m], dtype=torch.float64)),
        )
        super().__init__(gamma, A, G, beta=beta, initial=initial)
        self.mass = m


class MALDA(LinearDiffusion):
    """Modified accelerated Langevin diffusion, K ≥ 2: every variable coupled with every other.

    Singhal et al. 2023, arXiv 2302.07261, section 6.

    Args:
        gamma: Γ, or one for each variable. variables: K. mass: M > 0 of the auxiliary variables.
        beta, initial: see ``LinearDiffusion``.
    """

    def __init__(
        self,
        gamma: Covariance | Sequence[Covariance],
        variables: int = 3,
        mass: float = 0.25,
        *,
        beta: BetaSchedule | None = None,
        initial: Matrix | None = None,
    ) -> None:
        Q, D, S = malda_matrices(variables, positive("mass", mass))
        A, G = stationary_matrices(Q, D, S)
        super().__init__(gamma, A, G, beta=beta, initial=initial)
        self.mass = float(mass)


def malda_matrices(variables: int, mass: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q, D and S of MALDA with K ``variables``; raises ``ValueError`` for K < 2."""
    if variables < 2:
        raise ValueError(f"variables={variables}; an auxiliary variable needs at least 2 (VP has 1)")
    ones = torch.ones(variables, variables, dtype=torch.float64)
    rest = torch.ones(variables, dtype=torch.float64)
    rest[0] = 0.0
    law = 1.0 + (mass - 1.0) * rest
    return ones.tril(-1) - ones.triu(1), torch.diag(2.0 * mass**0.5 * rest), torch.diag(law)
