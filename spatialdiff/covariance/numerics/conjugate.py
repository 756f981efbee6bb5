r"""Conjugate gradients for ``Γ x = b`` to a stated tolerance, and the derivative of the solution.

With ``x = Γ⁻¹ b``: ``dx = Γ⁻¹ (db - dΓ x)``. So the derivative is that of the residual ``b - Γ(θ) x`` at
fixed ``x``, sent through one more solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def conjugate_gradients(
    operator: Operator,
    b: Tensor,
    preconditioner: Operator,
    *,
    ndim: int,
    tolerance: float,
    max_iterations: int,
) -> Tensor:
    """Preconditioned conjugate gradients on the last ``ndim`` axes, for all leading ones at once.

    Args:
        operator: ``x → Γ x``, symmetric positive definite.
        b: right-hand sides ``(..., *grid)``.
        preconditioner: ``r → M⁻¹ r``.
        tolerance: stop when every ``‖Γx - b‖ ≤ tolerance ‖b‖``.

    Raises:
        RuntimeError: the tolerance is not reached in ``max_iterations``, or rounding stops progress before.
    """
    axes = tuple(range(-ndim, 0))

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(axes, keepdim=True)

    target = tolerance * dot(b, b).sqrt()
    x, r = torch.zeros_like(b), b.clone()
    y = preconditioner(r)
    p, rho = y, dot(r, y)
    for _ in range(max_iterations):
        if bool((dot(r, r).sqrt() <= target).all()):
            break
        q = operator(p)
        # a right-hand side that has converged exactly would divide 0 by 0
        curvature = dot(p, q)
        step = torch.where(curvature > 0, rho / torch.where(curvature > 0, curvature, 1.0), 0.0)
        x, r = x + step * p, r - step * q
        y = preconditioner(r)
        rho, previous = dot(r, y), rho
        p = y + torch.where(previous > 0, rho / torch.where(previous > 0, previous, 1.0), 0.0) * p
    residual = dot(b - operator(x), b - operator(x)).sqrt()
    # the recursive residual drifts from the true one by rounding; only the true one counts
    if not bool((residual <= 10 * target).all()):
        worst = float((residual / dot(b, b).sqrt()).nan_to_num().max())
        raise RuntimeError(
            f"solve: conjugate gradients reached a relative residual of {worst:.2g} in {max_iterations} "
            f"iterations, {tolerance:.2g} was asked "
            "for. Γ is ill-conditioned: add a Nugget to the kernel, give tolerance= or max_iterations=, or "
            'use method="dense" (on a grid also "cosine").'
        )
    return x


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, solution: Tensor, run: Operator) -> Tensor:
        ctx.run = run
        return solution.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.run(grads[0]), None, None


def attach_solve(residual: Tensor, solution: Tensor, run: Operator) -> Tensor:
    """``solution`` with the derivative ``Γ⁻¹ d(residual)``; ``run`` solves with Γ."""
    attached: Tensor = _Solve.apply(residual, solution, run)
    return attached
