r"""``zᵀ log(A) z`` of a large positive definite operator *and its exact derivative*, from one Lanczos run.

``k`` steps from ``z`` give an orthonormal basis ``V`` and a tridiagonal ``T``, ``VᵀAV = T``, with

.. math:: z^T\log(A)\,z \approx \|z\|^2 e_1^T\log(T)\,e_1, \qquad
    d\,[z^T\log(A)\,z] = \operatorname{tr}\,[L(A, zz^T)\,dA] \approx \|z\|^2\operatorname{tr}\,[V\,L(T,
    e_1e_1^T)\,V^T dA]

where ``L`` is the Fréchet derivative of the logarithm: in the eigenbasis ``T = S Λ Sᵀ`` it multiplies entry
``ij`` by ``(log λ_i - log λ_j)/(λ_i - λ_j)``. The logarithm is operator monotone, so that ``L(T, e₁e₁ᵀ)`` is
positive semi-definite, ``Σ_r w_r s_r s_rᵀ``, and few terms of it count: the derivative is ``Σ_r w_r u_rᵀ dA
u_r`` with ``u_r = V s_r``.

Averaged over probes ``z`` of unit covariance the value estimates ``log det A``, and the derivative that of
``log det A``. Hutchinson's ``zᵀ A⁻¹ dA z`` estimates the latter as well, but is not the derivative of the
former: a search that is given both stops where they disagree. Its variance is the larger one, too: entries of
``dA`` in the eigenbasis are weighted by ``(1/λ_i + 1/λ_j)/2`` there, by the inverse of the logarithmic mean
here.

Sources: Golub & Meurant 2010, section 6; Ubaru, Chen & Saad 2017; Higham 2008, theorem 3.11 (Daleckiĭ &
Kreĭn); Kandolf, Koskela, Relton & Schweitzer 2021 (Fréchet derivatives from Krylov spaces).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance.numerics.lanczos import Tridiagonal
from spatialdiff.fitting.likelihoods.base import NotPositiveDefiniteError

_DROPPED = 1e-12


@dataclass(frozen=True)
class LogarithmForms:
    """Of a batch of probes: values ``zᵀ log(A) z`` ``(S,)``; the derivative of each is ``Σ_r u_rᵀ dA u_r``
    with ``vectors`` ``(S, r, n)``."""

    values: Tensor
    vectors: Tensor
    steps: int


def logarithm_forms(
    operator: Callable[[Tensor], Tensor],
    probes: Tensor,
    *,
    tolerance: float = 1e-8,
    max_steps: int = 300,
    memory: float = 4e9,
) -> LogarithmForms:
    """Values and derivative vectors for every row of ``probes`` ``(S, n)``.

    Args:
        operator: ``x → A x`` on ``(S, n)``, symmetric positive definite.
        probes: start vectors.
        tolerance: relative size of the last row of ``L(T, e₁e₁ᵀ)`` at which it counts as converged; the value
            then has an error of about its square.
        max_steps: of Lanczos.
        memory: bytes of Lanczos vectors, which all have to be kept.

    Raises:
        NotPositiveDefiniteError: an eigenvalue that is not positive, or no convergence.
        RuntimeError: more steps are needed than fit into ``memory``.
    """
    with torch.no_grad():
        recurrence = Tridiagonal(operator, probes, 1, memory)
        limit = min(max_steps, probes.shape[-1])
        check = min(4, limit)
        for k in range(1, limit + 1):
            recurrence.step()
            if k < check and k < limit:
                continue
            values, weights = _derivative(recurrence.matrix())
            last = weights[..., -1, :].abs().amax(-1)
            largest = weights.abs().amax((-2, -1))
            if bool((last <= tolerance * largest).all()) or bool((recurrence.betas[-1] == 0).all()):
                break
            if k >= recurrence.capacity:
                raise RuntimeError(
                    f"log det: {k} Lanczos vectors of {probes.shape[-1]} sites take {memory:.2g} bytes and "
                    "more steps are needed: add a Nugget to the kernel, or give more neighbors="
                )
            check = k + max(2, k // 4)
        else:
            raise NotPositiveDefiniteError
        square = recurrence.norm.square()
        eigenvalues, vectors = torch.linalg.eigh(weights)
        largest = eigenvalues.amax()
        kept = int((eigenvalues > _DROPPED * largest).sum(-1).max())
        scale = (eigenvalues[..., -kept:].clamp_min(0.0) * square.unsqueeze(-1)).sqrt()
        small = vectors[..., -kept:] * scale.unsqueeze(-2)
        basis = torch.cat(recurrence.chunks, dim=-2)[..., : small.shape[-2], :]
        return LogarithmForms(square * values, small.mT @ basis, k)


def _derivative(t: Tensor) -> tuple[Tensor, Tensor]:
    """``e₁ᵀ log(T) e₁`` and ``L(T, e₁e₁ᵀ)``."""
    eigenvalues, vectors = torch.linalg.eigh(t)
    if bool((eigenvalues[..., 0] <= 0).any()) or not bool(torch.isfinite(eigenvalues).all()):
        raise NotPositiveDefiniteError
    first = vectors[..., 0, :]
    value = (first.square() * eigenvalues.log()).sum(-1)
    scaled = vectors * first.unsqueeze(-2)
    weights: Tensor = scaled @ inverse_logarithmic_mean(eigenvalues) @ scaled.mT
    return value, 0.5 * (weights + weights.mT)


def inverse_logarithmic_mean(values: Tensor) -> Tensor:
    """``(log a - log b)/(a - b)`` of all pairs of positive ``values`` ``(..., k)``; ``1/a`` where they are
    equal."""
    a, b = values.unsqueeze(-1), values.unsqueeze(-2)
    x = (a - b) / b
    # log1p(x)/x = 1 - x/2 + x²/3 near 0
    near = x.abs() < 1e-5
    ratio = torch.where(near, 1.0 - x / 2.0 + x.square() / 3.0, torch.log1p(x) / torch.where(near, 1.0, x))
    return ratio / b
