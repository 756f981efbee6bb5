r"""A linear process of K variables pinned at its end: coefficients that keep their digits near both ends.

Of ``u_τ`` the first p variables, ``H u_τ``, are given; p = 1 (the data) or K (the state). With ``Φ, Σ`` the
transition from the start to t, ``Φ_τ, Σ_τ`` that from t to the end, and

.. math:: h = H\Phi_\tau, \quad r = H\Sigma_\tau H^\top, \quad R = r + h\Sigma h^\top, \quad
          C = \Sigma h^\top R^{-1}, \quad M = I - C h,

.. math:: u_t \mid u_0, H u_\tau \sim N\big(M\Phi\,u_0 + C\,Hu_\tau,\;
          (M\Sigma M^\top + C r C^\top) \otimes \Gamma\big).

Near the end r is of a high order in the time that is left (:math:`b^3` for CLD) and the state, once
:math:`h u` is known, nearly so. In the coordinates ``T u``, ``T = Φ_τ`` near the end, the first p rows of M
are ``r R⁻¹ H``, with nothing to cancel; near the start ``T = Φ⁻¹`` does the same for an auxiliary start. A
factor of the covariance comes from the three terms by QR, row by row at its own scale, never by a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.processes.moments import cholesky_root

#: ‖Φ - I‖ below which the coordinates are carried along Φ
NEAR = 0.5
#: |Φ_τ| of one variable below which nothing is carried along it: the end says next to nothing, and M = I
FADED = 1e-100


@dataclass(frozen=True)
class PinnedMoments:
    """The law of u_t given a start ``N(·, S Sᵀ)`` and the pinned end, in the coordinates ``T u``.

    Args:
        carry: T ``(…, K, K)``.
        keep: ``T M Φ`` ``(…, K, K)``, the weight of the start. pull: ``T C`` ``(…, K, p)``, that of the end.
        inner: lower L' with ``L' L'ᵀ`` the covariance of ``T u_t``.
    """

    carry: Tensor
    keep: Tensor
    pull: Tensor
    inner: Tensor

    def back(self, value: Tensor) -> Tensor:
        """``T⁻¹ value`` for columns ``(…, K, m)``."""
        solved: Tensor = torch.linalg.solve(self.carry, value)
        return solved

    def root(self) -> Tensor:
        """Lower L of the covariance of u_t itself."""
        return lower_factor(self.back(self.inner))


def eye_like(matrix: Tensor) -> Tensor:
    """The identity ``(K, K)`` of the dtype and device of ``matrix``."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def lower_factor(factor: Tensor) -> Tensor:
    """Lower L, positive on the diagonal, with ``L Lᵀ = F Fᵀ`` for F ``(…, K, m)``, m ≥ K, differentiable."""
    size = factor.abs().amax(-1, keepdim=True)
    safe = torch.where(size > 0, size, 1.0)
    triangle = torch.linalg.qr((factor / safe).mT).R.mT
    signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    scaled: Tensor = safe * triangle * signs[..., None, :]
    return scaled


def solve_covariance(matrix: Tensor, value: Tensor) -> Tensor:
    """``matrix⁻¹ value`` for a covariance ``(…, p, p)``, scaled by its diagonal; 0 where the matrix is 0."""
    none = (matrix.diagonal(dim1=-2, dim2=-1) <= 0).any(-1)[..., None, None]
    root = cholesky_root(torch.where(none, eye_like(matrix), matrix))
    return torch.where(none, 0.0, torch.cholesky_solve(value, root))


def projection(sigma: Tensor, last_phi: Tensor, last_sigma: Tensor, pins: int) -> tuple[Tensor, ...]:
    """T near the end (else I), and in its coordinates h, r, C and M, for the noise ``sigma`` up to t."""
    identity = eye_like(sigma)
    pinned = identity[:pins]
    # for one variable T cancels from every formula, and serves wherever its square is not 0 in float64
    distance = (last_phi.detach() - identity).abs().sum(-1).amax(-1)
    near = (distance < NEAR)[..., None, None] | ((last_phi.abs() > FADED) if len(identity) == 1 else False)
    carry = torch.where(near, last_phi, identity)
    inside = carry @ sigma @ carry.mT
    h = torch.where(near, pinned, last_phi[..., :pins, :])
    r = last_sigma[..., :pins, :pins]
    total = r + h @ inside @ h.mT
    pull = solve_covariance(total, h @ inside).mT
    rest = identity - pull @ h
    left = solve_covariance(total, r).mT @ pinned
    exact = torch.cat([left, rest[..., pins:, :]], dim=-2)
    # at the end itself the pinned variables are given, to the last digit
    arrived = (r.diagonal(dim1=-2, dim2=-1) <= 0).all(-1)[..., None, None]
    given = torch.cat([identity[:pins, :pins].expand_as(pull[..., :pins, :]), pull[..., pins:, :]], dim=-2)
    return carry, r, torch.where(arrived, given, pull), torch.where(near, exact, rest)


def pinned_step(
    phi: Tensor, sigma: Tensor, last_phi: Tensor, last_sigma: Tensor, pins: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A ``(…, K, K)``, B ``(…, K, p)``, V ``(…, K, K)`` of ``u_s | u_t, H u_τ ~ N(A u_t + B H u_τ, V ⊗ Γ)``.

    Args:
        phi, sigma: the transition from t to s; last_phi, last_sigma: that from s to the end.
    """
    carry, r, pull, rest = projection(sigma, last_phi, last_sigma, pins)
    pull = torch.linalg.solve(carry, pull)
    kept = torch.linalg.solve(carry, rest @ carry)
    return kept @ phi, pull, kept @ sigma @ kept.mT + pull @ r @ pull.mT


def pinned_moments(
    phi: Tensor, sigma: Tensor, last_phi: Tensor, last_sigma: Tensor, pins: int, start_root: Tensor
) -> PinnedMoments:
    """The law at t of a path from a start of covariance ``start_root start_rootᵀ`` to the pinned end.

    Args:
        phi, sigma: the transition from the start to t; last_phi, last_sigma: that from t to the end.
    """
    identity = eye_like(phi)
    carry, r, pull, rest = projection(sigma, last_phi, last_sigma, pins)
    distance = (phi.detach() - identity).abs().sum(-1).amax(-1)
    moved = (carry != identity).flatten(-2).any(-1)
    early = ((distance < NEAR) & ~moved)[..., None, None]
    # a start that the process leaves alone (Φ = I) needs no change of coordinates either
    forward = torch.where(early, phi, identity)
    back = torch.linalg.inv(forward)
    carry = back @ carry
    rest, pull = back @ rest @ forward, back @ pull
    keep = rest @ torch.where(early, identity, carry @ phi)
    inside = carry @ sigma @ carry.mT
    parts = [keep @ start_root, rest @ cholesky_root(inside), pull @ cholesky_root(r)]
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    factor = torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], dim=-1)
    return PinnedMoments(carry, keep, pull, lower_factor(factor))
