r"""``A^{1/2} z`` and ``A^{-1/2} z`` of a large operator by contour-integral quadrature.

A contour around the spectrum ``[m, M]``, mapped by elliptic functions, gives a rational approximation with
poles on the negative axis that converges geometrically, ``exp(-2π² Q / (log(M/m) + 3))``:

``A^{-1/2} z ≈ Σ_q w_q y_q``, ``A^{1/2} z ≈ Σ_q w_q (z - t_q y_q)``, ``(A + t_q) y_q = z``, ``w_q, t_q > 0``.

All shifted systems share one Krylov space, so they cost one product per iteration. Nodes are added until
the largest relative error of the scalar function on ``[m, M]`` is small; iterations until the residuals
``r_q`` of the systems bound the error by ``Σ w_q t_q ‖r_q‖ / (t_q + m)`` (root) and
``Σ w_q ‖r_q‖ / (t_q + m)`` (inverse root), recomputed at the end from true residuals.

Derivative: ``dy_q = -(A + t_q)^{-1} dA y_q``, so one more multi-shift solve for the incoming gradient ``v``
gives ``Σ w_q t_q a_qᵀ dA y_q`` with ``(A + t_q) a_q = v`` (root), with ``-w_q`` in place of ``w_q t_q`` for
the inverse root.

Sources: Hale, Higham & Trefethen (2008), method 3; Pleiss et al. (2020); Frommer & Maass (1999) for the
multi-shift recurrence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]

# of the tolerance: what the recursive residuals may bound the error by, and the true ones
_RECURSIVE, _TRUE = 0.4, 0.8


@dataclass(frozen=True)
class Rational:
    """``λ^{-1/2} ≈ Σ_q w_q / (λ + t_q)`` on an interval.

    Attributes:
        shifts: ``t_q``, increasing, ``(Q,)`` float64.
        weights: ``w_q``, ``(Q,)`` float64.
        lower: left end of the interval.
        upper: right end of the interval.
        error: largest relative error on it.
    """

    shifts: Tensor
    weights: Tensor
    lower: float
    upper: float
    error: float


def jacobi(u: Tensor, complement: float) -> tuple[Tensor, Tensor, Tensor]:
    """``sn, cn, dn`` of ``0 ≤ u ≤ K`` for the modulus whose complement is ``k' = complement``.

    By the arithmetic-geometric mean, started from ``k'`` itself, and reflected in ``K/2``, so that all
    three keep their relative precision for ``k'`` down to 1e-150 (DLMF 22.20(ii), 22.4).
    """
    a, b, ladder = 1.0, complement, []
    c = math.sqrt((1 - complement) * (1 + complement))
    ladder.append((a, c))
    while abs(c) > 1e-17 * a:
        a, b = (a + b) / 2, math.sqrt(a * b)
        c = c * c / (4 * a)
        ladder.append((a, c))
    quarter = math.pi / (2 * a)
    reflected = u > quarter / 2
    phi = torch.where(reflected, quarter - u, u) * a * 2 ** (len(ladder) - 1)
    for a_n, c_n in reversed(ladder[1:]):
        phi = (phi + torch.asin(c_n / a_n * torch.sin(phi))) / 2
    sn, cn = torch.sin(phi), torch.cos(phi)
    dn = (cn.square() + (complement * sn).square()).sqrt()
    return (
        torch.where(reflected, cn / dn, sn),
        torch.where(reflected, complement * sn / dn, cn),
        torch.where(reflected, complement / dn, dn),
    )


def quarter_period(complement: float) -> float:
    """``K`` of the modulus whose complement is ``k'``, by the arithmetic-geometric mean."""
    a, b = 1.0, complement
    while abs(a - b) > 1e-15 * a:
        a, b = (a + b) / 2, math.sqrt(a * b)
    return math.pi / (a + b)


def rational_inverse_root(lower: float, upper: float, tolerance: float, max_nodes: int = 100) -> Rational:
    """The smallest quadrature for ``λ^{-1/2}`` on ``[lower, upper]`` whose relative error is at most
    ``tolerance`` (Hale, Higham & Trefethen 2008, eq. 4.4).

    Raises:
        ValueError: not ``0 < lower ≤ upper``.
        RuntimeError: not reached with ``max_nodes``.
    """
    if not 0 < lower <= upper < math.inf:
        raise ValueError(
            f"the square root needs eigenvalue bounds 0 < lower ≤ upper, got {lower:g} and {upper:g}."
        )
    upper = max(upper, lower * (1 + 1e-6))
    # k' of the modulus √(1 - m/M)
    complement = math.sqrt(lower / upper)
    period = quarter_period(complement)
    grid = torch.exp(torch.linspace(math.log(lower), math.log(upper), 1000, dtype=torch.float64))
    error = math.inf
    for count in range(1, max_nodes + 1):
        u = (torch.arange(count, dtype=torch.float64) + 0.5) * period / count
        sn, cn, dn = jacobi(u, complement)
        shifts = lower * (sn / cn).square()
        weights = 2 * period * math.sqrt(lower) / (math.pi * count) * dn / cn.square()
        values = grid.sqrt() * (weights / (grid[:, None] + shifts)).sum(-1)
        error = float((values - 1).abs().max())
        if error <= tolerance:
            return Rational(shifts, weights, lower, upper, error)
    raise RuntimeError(
        f"the square root: {max_nodes} quadrature nodes leave a relative error of {error:.2g} on "
        f"[{lower:.3g}, {upper:.3g}], {tolerance:.2g} was asked for. Give a larger tolerance=."
    )


def multi_shift(
    operator: Operator,
    b: Tensor,
    shifts: Tensor,
    *,
    ndim: int,
    coefficients: Tensor,
    target: Callable[[Tensor], Tensor],
    max_iterations: int,
) -> tuple[Tensor, int]:
    """``y_q = (A + t_q)^{-1} b`` for all shifts from one Krylov space, by conjugate gradients.

    Args:
        operator: ``x → A x`` on ``(..., *shape)``, symmetric positive semi-definite.
        b: ``(..., *shape)``.
        shifts: ``t_q > 0``, increasing, ``(Q,)``.
        ndim: number of axes of ``shape``.
        coefficients: ``c_q``; stop when ``Σ_q c_q ‖r_q‖ ≤ target(y)`` for every member of the batch.
        target: bound on the error from the present solutions ``(Q, ..., *shape)``, shape ``(...)``.
        max_iterations: limit.

    Returns:
        The solutions ``(Q, ..., *shape)`` and the number of iterations.

    Raises:
        RuntimeError: the bound is not reached.
    """
    axes = tuple(range(-ndim, 0))
    ones = (1,) * b.dim()
    # the recurrence runs on the smallest shift; the others follow it by scalars
    base = float(shifts[0])
    offsets = (shifts - shifts[0]).to(b.device).reshape(-1, *ones)
    c = coefficients.to(b.device).reshape(-1, *ones)
    r, p = b.clone(), b.clone()
    y = torch.zeros(len(shifts), *b.shape, dtype=b.dtype, device=b.device)
    directions = b.expand_as(y).clone()
    rho = r.square().sum(axes, keepdim=True)
    zeta = torch.ones(len(shifts), *rho.shape, dtype=b.dtype, device=b.device)
    zeta_old = torch.ones_like(zeta)
    step_old = torch.ones_like(rho)
    ratio = torch.zeros_like(rho)
    bound = torch.full_like(rho, math.inf)
    for iteration in range(max_iterations + 1):
        bound = (c * zeta.abs()).sum(0) * rho.sqrt()
        # the target costs a pass over all solutions, so it is looked at now and then
        if (iteration % 8 == 0 or iteration == max_iterations) and bool(
            (bound.flatten() <= target(y).flatten()).all()
        ):
            return y, iteration
        if iteration == max_iterations:
            break
        q = operator(p) + base * p
        curvature = (p * q).sum(axes, keepdim=True)
        if bool((curvature < 0).any()):
            raise RuntimeError(
                "the square root of Γ: to rounding, Γ is singular beyond what the tolerance allows. Add a "
                'Nugget to the kernel, give a larger tolerance=, or use method="dense".'
            )
        step = torch.where(curvature > 0, rho / torch.where(curvature > 0, curvature, 1.0), 0.0)
        denominator = step_old * zeta_old * (1 + offsets * step) + step * ratio * (zeta_old - zeta)
        alive = denominator != 0
        zeta_new = torch.where(alive, zeta * zeta_old * step_old / torch.where(alive, denominator, 1.0), 0.0)
        scale = torch.where(zeta != 0, zeta_new / torch.where(zeta != 0, zeta, 1.0), 0.0)
        y.addcmul_(step * scale, directions)
        r = r - step * q
        rho_new = r.square().sum(axes, keepdim=True)
        ratio = torch.where(rho > 0, rho_new / torch.where(rho > 0, rho, 1.0), 0.0)
        p = r + ratio * p
        directions.mul_(ratio * scale.square()).addcmul_(zeta_new, r.expand_as(directions))
        zeta_old, zeta = zeta, zeta_new
        step_old = torch.where(step > 0, step, step_old)
        rho = rho_new
    excess = float((bound.flatten() / target(y).flatten()).max())
    raise RuntimeError(
        f"the square root of Γ: conjugate gradients leave an error bound {excess:.2g} times what was asked "
        f"for after {max_iterations} iterations. Γ is ill-conditioned: add a Nugget to the kernel, give a "
        'larger tolerance= or max_iterations=, or use method="vecchia" or "dense".'
    )


@dataclass(frozen=True)
class ContourRoot:
    r"""``A^{±1/2} z`` to a stated relative tolerance; see the module.

    Attributes:
        matmul: ``x → A x`` on ``(..., *batch, *shape)`` in float64, differentiable in its own parameters.
        ndim: number of axes of ``shape``.
        rational: the quadrature, good for every operator of the batch.
        tolerance: ``‖x - A^{±1/2} z‖ ≤ tolerance ‖x‖``.
        max_iterations: of conjugate gradients.
        floor: a bound from below on the eigenvalues, 0 where none is known.
    """

    matmul: Operator
    ndim: int
    rational: Rational
    tolerance: float = 1e-6
    max_iterations: int = 1000
    floor: float = 0.0

    def root(self, z: Tensor) -> Tensor:
        """``A^{1/2} z`` of float64 ``(..., *batch, *shape)``.

        Raises:
            RuntimeError: the tolerance is not reached.
        """
        return self._apply(z, inverse=False)

    def inverse_root(self, x: Tensor) -> Tensor:
        """``A^{-1/2} x``; errors as `root`."""
        return self._apply(x, inverse=True)

    def _apply(self, z: Tensor, *, inverse: bool) -> Tensor:
        with torch.no_grad():
            solutions = self._solutions(z.detach(), inverse=inverse)
            value = self._combine(z.detach(), solutions, inverse=inverse)
        if not torch.is_grad_enabled():
            return value
        products = self.matmul(solutions)
        if not (products.requires_grad or z.requires_grad):
            return value
        result: Tensor = _Attach.apply(products, z, value, self, inverse)
        return result

    def _spread(self, values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.device).reshape(-1, *(1,) * like.dim())

    def _combine(self, z: Tensor, solutions: Tensor, *, inverse: bool) -> Tensor:
        w, t = (self._spread(v, z) for v in (self.rational.weights, self.rational.shifts))
        if inverse:
            return (w * solutions).sum(0)
        return (w * (z - t * solutions)).sum(0)

    def _solutions(self, z: Tensor, *, inverse: bool) -> Tensor:
        t, w = self.rational.shifts, self.rational.weights
        factor = w if inverse else w * t
        coefficients = factor / (t + self.floor)
        axes = tuple(range(-self.ndim, 0))

        def target(solutions: Tensor) -> Tensor:
            size = self._combine(z, solutions, inverse=inverse).square().sum(axes).sqrt()
            return _RECURSIVE * self.tolerance * size

        solutions, iterations = multi_shift(
            self.matmul,
            z,
            t,
            ndim=self.ndim,
            coefficients=coefficients,
            target=target,
            max_iterations=self.max_iterations,
        )
        # the recursive residuals drift from the true ones by rounding; only the true ones count
        residual = z - self.matmul(solutions) - self._spread(t, z) * solutions
        size = residual.square().sum(axes).sqrt()
        bound = (self._spread(coefficients, size[0]) * size).sum(0)
        allowed = (_TRUE / _RECURSIVE * target(solutions)).clamp_min(1e-300)
        excess = float((bound / allowed).max()) if bound.numel() else 0.0
        if excess > 1:
            raise RuntimeError(
                f"the square root of Γ: after {iterations} iterations rounding leaves an error bound of "
                f"{excess * self.tolerance:.2g}, {self.tolerance:.2g} was asked for. Γ is ill-conditioned: "
                'add a Nugget to the kernel, give a larger tolerance=, or use method="vecchia" or "dense".'
            )
        return solutions


class _Attach(torch.autograd.Function):
    """The value with its derivatives in ``A y_q`` (and through it the parameters) and in ``z``."""

    @staticmethod
    def forward(
        ctx: Any, products: Tensor, z: Tensor, value: Tensor, contour: ContourRoot, inverse: bool
    ) -> Tensor:
        ctx.contour, ctx.inverse = contour, inverse
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        contour: ContourRoot = ctx.contour
        v = grads[0].contiguous()
        adjoint = contour._solutions(v, inverse=ctx.inverse)
        w, t = (contour._spread(u, v) for u in (contour.rational.weights, contour.rational.shifts))
        factor = -w if ctx.inverse else w * t
        return factor * adjoint, contour._combine(v, adjoint, inverse=ctx.inverse), None, None, None
