r"""Mean and covariance of a linear process of K variables, accurate for every length of step.

.. math:: \Phi = e^{Ab}, \qquad \Sigma = \int_0^b e^{Ar}\, G\, e^{A^\top r}\,dr.

With :math:`h = b/2^m`, :math:`h\lVert A\rVert \le 1/2`, a Taylor series over :math:`h` and m doublings,

.. math:: \Sigma(h) = \sum_k \frac{h^{k+1}}{(k+1)!}\,\mathcal L^k(G), \quad
          \mathcal L(X) = AX + XA^\top, \qquad
          \Sigma(2h) = \Sigma(h) + \Phi(h)\,\Sigma(h)\,\Phi(h)^\top, \quad \Phi(2h) = \Phi(h)^2.

Doubling adds positive semi-definite terms: nothing cancels, nothing is inverted and no stationary law is
needed, so that entries of order :math:`b^5` (ALDA's data entry) keep all their digits. The block exponential
of Van Loan (1978, doi 10.1109/TAC.1978.1101743) overflows for long steps and loses those entries for short
ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: terms of the series: with ``h ‖A‖ ≤ 1/2`` the first one left out is below 1/25! of the first
TERMS = 24
SINGULAR = (
    "the covariance of the variables is singular: the noise does not reach all of them (or the time is too "
    "short for float64 to tell them apart); drive every variable, directly or through A"
)


def linear_moments(drift: Tensor, diffusion: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Φ and Σ after a time ``b``, float64, differentiable in all three.

    Args:
        drift: A, ``(*modes, K, K)``.
        diffusion: G ⪰ 0, ``(*modes, K, K)``.
        b: B(t) - B(s) ≥ 0, shape ``(*t)``.

    Returns:
        Φ and Σ, ``(*t, *modes, K, K)`` each; every entry of Σ to 1e-11 of ``√(Σ_ii Σ_jj)``.
    """
    drift, diffusion = drift.double(), diffusion.double()
    length = b.double().reshape((*b.shape, *(1,) * drift.ndim))
    a, g = drift * length, diffusion * length
    if drift.shape[-1] == 1:
        return torch.exp(a), g * _relative_expm1(2.0 * a)
    with torch.no_grad():
        norm = a.abs().sum(-1).amax(-1)
        halvings = torch.ceil(torch.log2(2.0 * norm.clamp(min=0.5))).to(torch.int64)
    scale = torch.exp2(-halvings.double())[..., None, None]
    a, term = a * scale, g * scale
    eye = torch.eye(drift.shape[-1], dtype=torch.float64, device=a.device)
    phi, power, sigma = eye + a, a, term
    for k in range(1, TERMS):
        moved = a @ term
        term = (moved + moved.mT) / (k + 1)
        sigma = sigma + term
        power = a @ power / (k + 1)
        phi = phi + power
    for i in range(int(halvings.max()) if halvings.numel() else 0):
        active = (i < halvings)[..., None, None]
        sigma = torch.where(active, sigma + phi @ sigma @ phi.mT, sigma)
        phi = torch.where(active, phi @ phi, phi)
    return phi, 0.5 * (sigma + sigma.mT)


def _relative_expm1(z: Tensor) -> Tensor:
    """(e^z - 1)/z, 1 at z = 0."""
    zero = z == 0
    safe = torch.where(zero, 1.0, z)
    return torch.where(zero, 1.0 + 0.5 * z, torch.expm1(safe) / safe)


def cholesky_root(matrix: Tensor) -> Tensor:
    """Lower L with ``L Lᵀ = matrix`` ``(…, K, K)``, through the correlation matrix; rows of zeros stay zero.

    Scaling first keeps the relative accuracy of variables of very different size. Raises ``ValueError``
    where the correlations are not positive definite.
    """
    if matrix.shape[-1] == 1:
        return matrix.clamp(min=0.0).sqrt()
    scale, correlation = _correlations(matrix)
    root, failed = torch.linalg.cholesky_ex(correlation)
    if bool(failed.any()):
        raise ValueError(SINGULAR)
    factor: Tensor = scale[..., None] * root
    return factor


def psd_root(matrix: Tensor) -> Tensor:
    """Some L with ``L Lᵀ = matrix`` for a positive semi-definite ``(…, K, K)``, singular ones included.

    By eigenvectors of the correlation matrix, so that each row is exact to 1e-16 of its own variance. Where a
    gradient is needed it is the Cholesky factor, since eigenvectors of equal eigenvalues have none.
    """
    if matrix.requires_grad:
        return cholesky_root(matrix)
    if matrix.shape[-1] == 1:
        return matrix.clamp(min=0.0).sqrt()
    scale, correlation = _correlations(matrix)
    values, vectors = torch.linalg.eigh(correlation)
    root: Tensor = scale[..., None] * vectors * values.clamp(min=0.0).sqrt()[..., None, :]
    return root


def lower(factor: Tensor) -> Tensor:
    """Lower L, positive on the diagonal, with ``L Lᵀ = F Fᵀ`` for a factor ``(…, K, M)``, M ≥ K, by QR."""
    # the derivative of R needs Q
    triangle: Tensor = torch.linalg.qr(factor.mT, mode="reduced" if factor.requires_grad else "r").R.mT
    signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return triangle * signs[..., None, :]


def _correlations(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations and correlations; a variable without variance is uncorrelated with the others."""
    variance = matrix.diagonal(dim1=-2, dim2=-1)
    none = variance <= 0
    safe = torch.where(none, 1.0, variance).sqrt()
    correlation = matrix / (safe[..., :, None] * safe[..., None, :])
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    dead = none[..., :, None] | none[..., None, :]
    return torch.where(none, 0.0, safe), torch.where(dead, eye, correlation)
