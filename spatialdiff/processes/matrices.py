r"""The matrices of a linear process: what they must be, its stationary law, and how long it runs.

.. math:: AS + SA^\top + G = 0, \qquad A = -(Q + D)\,S^{-1}, \quad G = 2D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.processes.moments import SINGULAR, cholesky_root, linear_moments
from spatialdiff.processes.schedules import BetaSchedule, ConstantBeta, LinearBeta

#: rounding allowed in signs and symmetries, relative to the largest entry
ROUNDING = 1e-9
#: the share of the data that VP leaves at its end, e^{-10.05/2}
LEFT = 6.57e-3


def as_matrix(name: str, value: Any) -> Tensor:
    """A finite float64 tensor of square matrices ``(…, K, K)``; else ``ValueError``."""
    matrix = torch.as_tensor(value, dtype=torch.float64).detach()
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; it must be (K, K), or (*modes, K, K)")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} holds values that are not finite")
    return matrix


def check_matrices(A: Any, G: Any) -> tuple[Tensor, Tensor]:
    """A and G as float64.

    Raises ``ValueError`` for shapes that differ, an A that grows, a G that is no covariance.
    """
    drift, diffusion = as_matrix("A", A), as_matrix("G", G)
    if drift.shape[-1] != diffusion.shape[-1]:
        raise ValueError(
            f"A acts on {drift.shape[-1]} variables and G on {diffusion.shape[-1]}; they must agree"
        )
    growth = float(torch.linalg.eigvals(drift).real.max())
    if growth > ROUNDING * max(1.0, float(drift.abs().max())):
        raise ValueError(
            f"A is unstable: an eigenvalue has real part {growth:.4g}, so that the state grows without "
            "bound; every eigenvalue of A must have a real part of at most 0"
        )
    require_semidefinite("G", diffusion)
    return drift, diffusion


def require_semidefinite(name: str, matrix: Tensor) -> None:
    """Raise ``ValueError`` unless the matrices are symmetric positive semi-definite."""
    size = max(float(matrix.abs().max()), 1e-300)
    if float((matrix - matrix.mT).abs().max()) > ROUNDING * size:
        raise ValueError(f"{name} is not symmetric; it is the covariance of the noise")
    smallest = float(torch.linalg.eigvalsh(matrix).min())
    if smallest < -ROUNDING * size:
        raise ValueError(
            f"{name} is not positive semi-definite: its smallest eigenvalue is {smallest:.4g}; "
            "write it as L Lᵀ"
        )


def stationary_matrices(Q: Any, D: Any, S: Any) -> tuple[Tensor, Tensor]:
    """``A = -(Q + D) S⁻¹`` and ``G = 2 D``.

    Raises ``ValueError`` unless Q is skew, D positive semi-definite and S positive definite.
    """
    skew, dissipation, law = as_matrix("Q", Q), as_matrix("D", D), as_matrix("S", S)
    if not skew.shape[-1] == dissipation.shape[-1] == law.shape[-1]:
        raise ValueError(
            f"Q, D and S act on {skew.shape[-1]}, {dissipation.shape[-1]} and {law.shape[-1]} variables; "
            "they must agree"
        )
    if float((skew + skew.mT).abs().max()) > ROUNDING * max(float(skew.abs().max()), 1e-300):
        raise ValueError("Q is not skew-symmetric; write it as M - Mᵀ")
    require_semidefinite("D", dissipation)
    size = float(law.abs().max())
    if float((law - law.mT).abs().max()) > ROUNDING * size:
        raise ValueError("S is not symmetric; it is the covariance of the stationary law")
    smallest = float(torch.linalg.eigvalsh(law).min())
    if smallest <= 0.0:
        raise ValueError(
            f"S is not positive definite: its smallest eigenvalue is {smallest:.4g}; "
            "it is the covariance of the stationary law, such as diag(1, M)"
        )
    return -torch.linalg.solve(law, (skew + dissipation).mT).mT, 2.0 * dissipation


def lyapunov(A: Tensor, G: Tensor) -> Tensor | None:
    """S with ``A S + S Aᵀ + G = 0``, ``([modes], K, K)``; None where an eigenvalue of A is not negative."""
    decay = torch.linalg.eigvals(A).real.max(-1).values
    scale = A.abs().amax((-2, -1)).clamp(min=1e-300)
    if bool((decay > -ROUNDING * scale).any()):
        return None
    size = A.shape[-1]
    eye = torch.eye(size, dtype=A.dtype, device=A.device)
    # vec by rows: (A ⊗ I + I ⊗ A) vec(S) = -vec(G)
    operator = torch.einsum("...ij,kl->...ikjl", A, eye) + torch.einsum("ij,...kl->...ikjl", eye, A)
    flat = operator.reshape(*operator.shape[:-4], size * size, size * size)
    found: Tensor = torch.linalg.solve(flat, -G.reshape(*G.shape[:-2], size * size, 1)).reshape(G.shape)
    return 0.5 * (found + found.mT)


def default_schedule(A: Tensor, G: Tensor) -> BetaSchedule:
    """β linear, its ends as 0.1 : 20, so long that as little of the data is left as VP leaves.

    ``|φ_T| ≤ 0.0066`` in the metric of the stationary law, in every mode; β = 1 on [0, 1] if there is none.
    Raises ``ValueError`` where the noise does not reach every variable.
    """
    law = lyapunov(A, G)
    if law is None:
        return ConstantBeta(1.0)
    slowest = -float(torch.linalg.eigvals(A).real.max())
    b = torch.logspace(-2, 2, 2000, dtype=torch.float64) / slowest
    phi = linear_moments(A, G, b)[0][..., :, 0]
    root = cholesky_root(law)
    if bool((root.diagonal(dim1=-2, dim2=-1) <= 0.0).any()):
        raise ValueError(SINGULAR)
    left = torch.linalg.solve_triangular(root, phi[..., None], upper=False).square().sum((-2, -1)).sqrt()
    left = left.reshape(len(b), -1).amax(-1)
    # a stationary law far wider than the data drowns them from the first b on
    over = (left > LEFT).nonzero()
    total = float(b[0] if over.numel() == 0 else b[int(over.max()) + 1])
    return LinearBeta(0.1 / 10.05 * total, 20.0 / 10.05 * total)


def in_units_of_first(matrix: Tensor, relative: Tensor) -> Tensor:
    """``diag(r) M diag(r)``: M of variables with covariances ``r_j² Γ``, in units of Γ."""
    return relative[..., :, None] * matrix * relative[..., None, :]


def initial_covariance(initial: Any, variables: int, stationary: Tensor | None) -> Tensor:
    """``diag(0, V_0)``, ``([modes], K, K)``, from a matrix, K - 1 variances, or S; else ``ValueError``."""
    count = variables - 1
    if initial is None:
        zero = torch.zeros(variables, variables, dtype=torch.float64)
        return zero if stationary is None else auxiliary_block(stationary)
    given = torch.as_tensor(initial, dtype=torch.float64).detach()
    given = given.diag_embed() if given.shape == (count,) else given
    if tuple(given.shape[-2:]) != (count, count):
        raise ValueError(
            f"initial has shape {tuple(given.shape)}; V_0 is ({count}, {count}), or {count} "
            f"variances, for the {count} auxiliary variables"
        )
    if float(torch.linalg.eigvalsh(given).min()) < -1e-12 or not torch.equal(given, given.mT):
        raise ValueError(f"initial is not a covariance of {count} variables: {given.tolist()}")
    return torch.nn.functional.pad(given, (1, 0, 1, 0))


def auxiliary_block(law: Tensor) -> Tensor:
    """``diag(0, S_vv)`` of a stationary law S ``([modes], K, K)``."""
    return torch.nn.functional.pad(law[..., 1:, 1:], (1, 0, 1, 0))
