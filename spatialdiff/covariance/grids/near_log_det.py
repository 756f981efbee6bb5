r"""``log det Γ`` through a matrix ``G`` nearby whose inverse, root and determinant are known.

``log det Γ = log det G + tr log A``, ``A = G^{-1/2} Γ G^{-1/2}``, and for draws ``v ~ N(0, G)``, that is
white ``z = G^{-1/2} v``: ``tr log A = E[zᵀ log(A) z]``. Conjugate gradients for ``Γ y = v`` preconditioned
with ``G⁻¹`` are Lanczos for ``A`` from ``z``: their coefficients make a tridiagonal ``T`` with ``zᵀ log(A) z
≈ (vᵀG⁻¹v) e₁ᵀ log(T) e₁`` (Golub & Meurant 2010, section 6; Saad 2003, section 6.7.3). The variance is
``2 ‖log A‖_F²`` per draw, small where ``G`` is close to Γ.

The derivative is ``tr(Γ⁻¹ dΓ) = E[yᵀ dΓ G⁻¹v]``, with the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]

# relative residual at which the Gauss rule is converged far below the error of the draws
RESIDUAL = 1e-7


def near_log_det(
    matmul: Operator,
    near_solve: Operator,
    near_root: Operator,
    near_log_det: Tensor,
    shape: Sequence[int],
    *,
    size: int,
    batch: Sequence[int] = (),
    tolerance: float = 1e-3,
    probes: int = 16,
    max_probes: int = 1024,
    max_iterations: int = 1000,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """``log det Γ`` and its standard error, each float64 ``(*batch,)``; see the module.

    Args:
        matmul: ``x → Γ x`` on ``(draws, *batch, *shape)``, differentiable in its own parameters.
        near_solve: ``x → G⁻¹ x``.
        near_root: white noise ``(draws, *batch, *shape)`` → ``v ~ N(0, G)``.
        near_log_det: ``log det G``, ``(*batch,)``.
        shape: shape of a field.
        size: number of sites that count.
        batch: shape of a batch of operators.
        tolerance: largest standard error per site; draws are added until it is reached.
        probes, max_probes: number of draws at first, and at most.
        max_iterations: of conjugate gradients.
        seed: of the draws.
        device: of the operators.

    Raises:
        RuntimeError: the tolerance is not reached within the limits.
    """
    generator = torch.Generator().manual_seed(seed)
    values: list[Tensor] = []
    surrogates: list[Tensor] = []
    wanted, done = max(2, probes), 0
    while True:
        count = wanted - done
        white = torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(device)
        white = white.reshape(count, *(1,) * len(batch), *shape).expand(count, *batch, *shape)
        with torch.no_grad():
            v = near_root(white)
            value, solved, start = _quadrature(matmul, near_solve, v, len(shape), max_iterations)
        values.append(value)
        if torch.is_grad_enabled():
            surrogates.append((solved * matmul(start)).sum(tuple(range(-len(shape), 0))))
        done = wanted
        every = torch.cat(values)
        error = every.std(0) / math.sqrt(done)
        worst = float(error.max()) / size
        if worst <= tolerance:
            break
        wanted = max(done + 1, math.ceil(1.1 * done * (worst / tolerance) ** 2))
        if wanted > max_probes:
            raise RuntimeError(
                f"log_det: {done} draws give a standard error of {worst:.2g} per site and {tolerance:.2g} "
                f"was asked for, which takes some {wanted} draws, more than the limit of {max_probes}. Raise "
                "log_det_tolerance=, or add a Nugget to the kernel."
            )
    mean = every.mean(0) + near_log_det
    if surrogates:
        surrogate = torch.cat(surrogates).mean(0)
        mean = mean + (surrogate - surrogate.detach())
    return mean, error


def _quadrature(
    matmul: Operator, near_solve: Operator, v: Tensor, ndim: int, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``zᵀ log(A) z``, ``Γ⁻¹ v`` and ``G⁻¹ v`` for every draw."""
    axes = tuple(range(-ndim, 0))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(axes, keepdim=True)

    start = near_solve(v)
    x, r, p, rho = torch.zeros_like(v), v, start, dot(v, start)
    norm = rho
    diagonal: list[Tensor] = []
    off: list[Tensor] = []
    previous = torch.zeros_like(rho)
    for _ in range(max_iterations):
        q = matmul(p)
        curvature = dot(p, q)
        live = rho > 0
        if not bool((curvature > 0)[live].all()):
            raise ValueError(
                "log_det: Γ is not positive definite to working precision; add a Nugget to the kernel."
            )
        alpha = torch.where(live, rho / torch.where(live, curvature, 1.0), 1.0)
        diagonal.append(1 / alpha + previous)
        x, r = x + alpha * p, r - alpha * q
        y = near_solve(r)
        after = dot(r, y)
        converged = after <= RESIDUAL**2 * norm
        beta = torch.where(converged, 0.0, after / torch.where(live, rho, 1.0))
        off.append(beta.sqrt() / alpha)
        previous = beta / alpha
        rho = torch.where(converged, 0.0, after)
        p = torch.where(converged, 0.0, y + beta * p)
        r = torch.where(converged, 0.0, r)
        if bool(converged.all()):
            break
    else:
        worst = float((rho / norm).max().sqrt())
        raise RuntimeError(
            f"log_det: conjugate gradients reached a relative residual of {worst:.2g} in {max_iterations} "
            f"iterations, {RESIDUAL:.2g} is needed. Γ is ill-conditioned: add a Nugget to the kernel, or "
            "give max_iterations=."
        )
    lead = v.shape[: v.dim() - ndim]
    t = torch.diag_embed(torch.stack([d.reshape(lead) for d in diagonal], -1))
    if len(diagonal) > 1:
        side = torch.stack([o.reshape(lead) for o in off[:-1]], -1)
        t = t + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    nodes, vectors = torch.linalg.eigh(t)
    value = norm.reshape(lead) * (vectors[..., 0, :].square() * nodes.log()).sum(-1)
    return value, x, start
