r"""Functions of ``A = C Γ⁻¹`` by Lanczos, where Γ and the data's covariance share no fast basis.

What a Gaussian model multiplies by (gain, flow map, root) is a function of ``ρ = c/γ`` per mode
of the pencil ``C w = ρ Γ w``, that is ``f(A) x``. A is self-adjoint in ``⟨x, y⟩ = xᵀΓ⁻¹y``; k steps of
Lanczos from x, one product with C and one solve with Γ each, give ``V``, orthonormal in that product, and
``T = S diag(θ) Sᵀ``, with

.. math:: f(A)\,x \approx \lVert x\rVert\, V S f(\theta) S^\top e_1 .

f is known at fixed nodes ``ρ_j``, Chebyshev's in ``log ρ``, and interpolated to θ: f is analytic in the strip
``|Im log ρ| < π``, so that the interpolation converges geometrically. In this sense the nodes are the modes,
``analyze(x)_j = ℓ_j(A) x`` with Lagrange's ``ℓ_j``, ``synthesize`` is the sum.

Sources: Higham (2008), *Functions of Matrices*, section 13.2; Trefethen (2013), *Approximation Theory*,
chapters 5 and 8.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance, joint_spectrum
from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.joint import DENSE_LIMIT, _shared_basis

TOLERANCE = 1e-6
STEPS = 400
#: steps between two looks at the convergence
STRIDE = 8
#: what the ends of the spectrum are widened by, beyond those that a random field shows
MARGIN = 4.0


def model_spectrum(gamma: Covariance, data: Covariance) -> tuple[Basis, Tensor, Tensor]:
    """``joint_spectrum``, or where that would be too large a dense problem a ``KrylovBasis`` (then γ = 1)."""
    plain = (
        gamma.channels is None and data.channels is None and not gamma.batch_shape and not data.batch_shape
    )
    if (
        not plain
        or gamma.domain != data.domain
        or gamma.domain.size <= DENSE_LIMIT
        or _shared_basis(gamma, data) is not None
    ):
        return joint_spectrum(gamma, data)
    basis = KrylovBasis(gamma, data)
    return basis, torch.ones_like(basis.nodes), basis.nodes


class KrylovBasis(Basis):
    """The nodes of an interpolation in ρ as modes; see the module.

    Args:
        gamma: Γ, whose ``solve`` is used; data: C, whose ``matmul`` is. Both without channels.
        tolerance: of ``f(A) x`` for the functions of a Gaussian model, relative to x, in the norm of Γ⁻¹.
        steps: limit on Lanczos steps.

    Raises:
        RuntimeError: the tolerance is not reached within ``steps``.
    """

    orthonormal = False

    def __init__(
        self, gamma: Covariance, data: Covariance, *, tolerance: float = TOLERANCE, steps: int = STEPS
    ) -> None:
        super().__init__(gamma.domain)
        self.gamma, self.data = gamma, data
        self.tolerance, self.steps = tolerance, min(steps, gamma.domain.size)
        low, high = self._range()
        half = 0.5 * (high - low)
        # Bernstein's ellipse through the nearest singularity, at a distance of π
        rate = math.pi / half + math.hypot(1.0, math.pi / half)
        count = 8 + math.ceil(math.log(10.0 / tolerance) / math.log(rate))
        angles = math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
        self.points = angles.cos()
        self.signs = angles.sin() * torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
        self.middle, self.half = 0.5 * (low + high), half
        self.modes = torch.Size((count, *[1] * gamma.domain.ndim))
        self.nodes = (self.middle + half * self.points).exp().reshape(self.modes)

    @torch.no_grad()
    def _range(self) -> tuple[float, float]:
        """Ends of ``log ρ``, from the Ritz values of one random field."""
        generator = torch.Generator().manual_seed(0)
        # white in the inner product of Γ⁻¹ would be Γ^{1/2} z; a coloured field is just that
        white = torch.randn(1, *self.gamma.factor_shape, generator=generator, dtype=torch.float64)
        diagonal, below, _, _ = self._lanczos(self.gamma.color(white), min(60, self.steps), check=False)
        values = torch.linalg.eigvalsh(tridiagonal(diagonal, below))
        values = values[values > 1e-14 * values.max()]
        return float(values.min().log()) - MARGIN, float(values.max().log()) + 0.5 * MARGIN

    def lagrange(self, values: Tensor) -> Tensor:
        """``ℓ_j`` at ``values`` ``(…)``: ``(…, J)``, by the barycentric formula."""
        low, high = self.middle - self.half, self.middle + self.half
        place = (values.clamp(min=math.exp(low), max=math.exp(high)).log() - self.middle) / self.half
        gap = place[..., None] - self.points
        hit = gap == 0
        terms = self.signs / torch.where(hit, 1.0, gap)
        exact = hit.any(-1, keepdim=True)
        return torch.where(exact, hit.double(), terms / terms.sum(-1, keepdim=True))

    def _lanczos(self, x: Tensor, steps: int, *, check: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Diagonal ``(b, k)``, off-diagonal ``(b, k-1)``, ``V`` ``(b, k, n)`` and norms ``(b,)`` of fields
        ``(b, *grid)``.
        """
        shape = x.shape
        w = self.gamma.solve(x)
        norm = dots(x, w).clamp(min=0.0).sqrt()
        safe = torch.where(norm > 0, norm, 1.0)
        v = [over(x, safe).flatten(1)]
        dual = [over(w, safe).flatten(1)]
        diagonal: list[Tensor] = []
        below: list[Tensor] = []
        before: Tensor | None = None
        for k in range(steps):
            moved = self.data.matmul(dual[-1].reshape(shape)).flatten(1)
            diagonal.append((moved * dual[-1]).sum(1))
            # all of V again, twice: rounding would bring converged directions back
            V, W = torch.stack(v, 1), torch.stack(dual, 1)
            for _ in range(2):
                moved = moved - (V.mT @ (W @ moved[..., None]))[..., 0]
            w = self.gamma.solve(moved.reshape(shape)).flatten(1)
            size = (moved * w).sum(1).clamp(min=0.0).sqrt()
            done = bool((size <= 1e-13 * torch.stack(diagonal, 1).amax(1).clamp(min=1e-300)).all())
            if check and (done or k % STRIDE == STRIDE - 1):
                now = self._share(torch.stack(diagonal, 1), torch.stack([*below], 1) if below else None)
                if done or (before is not None and self._settled(before, now)):
                    break
                before = now
            if k + 1 == steps or done:
                if check and not done and steps < self.grid.size:
                    raise RuntimeError(
                        f"Lanczos has not reached {self.tolerance:g} in {steps} steps: Γ and the data's "
                        "covariance are too far apart; give both one structure (method='torus' or 'cosine'), "
                        "or a Γ closer to the data"
                    )
                break
            below.append(size)
            keep = torch.where(size > 0, size, 1.0)[:, None]
            v.append(moved / keep)
            dual.append(w / keep)
        count = len(diagonal)
        off = torch.stack(below[: count - 1], 1) if count > 1 else diagonal[0][:, None][:, :0]
        return torch.stack(diagonal, 1), off, torch.stack(v[:count], 1), norm

    def _share(self, diagonal: Tensor, below: Tensor | None) -> Tensor:
        """``ℓ_j(T) e_1`` ``(b, k, J)``: what of each Lanczos vector goes to which node."""
        off = diagonal[:, :0] if below is None else below[:, : diagonal.shape[1] - 1]
        values, vectors = torch.linalg.eigh(tridiagonal(diagonal, off))
        share: Tensor = vectors @ (self.lagrange(values) * vectors[:, 0, :, None])
        return share

    def _settled(self, before: Tensor, now: Tensor) -> bool:
        """Whether gains and roots at every noise level changed by less than the tolerance."""
        nodes = self.nodes.reshape(-1)
        levels = nodes[:: max(1, len(nodes) // 12)]
        gains = nodes / (nodes + levels[:, None])
        tests = torch.cat([gains, (1.0 - gains).sqrt()])
        old = torch.nn.functional.pad(before, (0, 0, 0, now.shape[1] - before.shape[1]))
        return bool(((now - old) @ tests.T).norm(dim=1).max() < self.tolerance)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``V`` ``(b, k, n)`` and ``‖x‖ ℓ_j(T) e_1`` ``(b, k, J)`` of fields ``(b, *grid)``, in float64."""
        diagonal, below, V, norm = self._lanczos(x.double(), self.steps)
        return V, norm[:, None, None] * self._share(diagonal, below)

    def analyze(self, x: Tensor) -> Tensor:
        """``ℓ_j(A) x``: ``(…, *grid)`` to ``(…, J, *grid)``; not differentiable (``multiply`` is)."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "modes by Lanczos have no gradient; run the solver under torch.no_grad(), or give Γ and the "
                "data one structure (method='torus' or 'cosine')"
            )
        lead = x.shape[: x.ndim - self.grid.ndim]
        V, share = self._parts(x.reshape(-1, *self.grid.shape))
        return (share.mT @ V).reshape(*lead, self.modes[0], *self.grid.shape).to(x.dtype)

    def synthesize(self, c: Tensor) -> Tensor:
        """The sum over the nodes."""
        return c.sum(-1 - self.grid.ndim)

    def multiply(self, x: Tensor, m: Tensor) -> Tensor:
        """``f(A) x`` with ``f(ρ_j) = m_j``, ``m`` broadcast against ``(…, J, 1, …)``; differentiable in x."""
        if m.requires_grad:
            raise RuntimeError("functions by Lanczos have no gradient in what they are of")
        result: Tensor = _Apply.apply(x, m, self)
        return result

    @torch.no_grad()
    def apply(self, x: Tensor, m: Tensor) -> Tensor:
        """``f(A) x`` without a graph."""
        lead = x.shape[: x.ndim - self.grid.ndim]
        V, share = self._parts(x.reshape(-1, *self.grid.shape))
        tail = (self.modes[0], *[1] * self.grid.ndim)
        values = m.double().reshape(*[1] * (len(lead) + len(tail) - m.ndim), *m.shape).expand(*lead, *tail)
        weight = share @ values.reshape(len(V), -1, 1)
        return (weight.mT @ V).reshape(x.shape).to(x.dtype)

    @property
    def weights(self) -> Tensor:
        raise ValueError(
            "Γ and the data's covariance share no fast basis: how many modes there are of each "
            "variance is not known; give both one structure (method='torus' on a periodic grid, "
            "'cosine' on any other)"
        )

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


class _Apply(torch.autograd.Function):
    """``f(A) x``; its adjoint is ``f(Aᵀ) = Γ⁻¹ f(A) Γ``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, basis: KrylovBasis) -> Tensor:
        ctx.basis, ctx.m = basis, m
        return basis.apply(x, m)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        basis: KrylovBasis = ctx.basis
        coloured = basis.gamma.matmul(grads[0].double())
        return basis.gamma.solve(basis.apply(coloured, ctx.m)).to(grads[0]), None, None


def tridiagonal(diagonal: Tensor, below: Tensor) -> Tensor:
    """Symmetric matrices ``(b, k, k)``."""
    return diagonal.diag_embed() + below.diag_embed(1) + below.diag_embed(-1)


def dots(x: Tensor, y: Tensor) -> Tensor:
    """``xᵀy`` of each field ``(b, *grid)``."""
    return (x * y).flatten(1).sum(1)


def over(x: Tensor, size: Tensor) -> Tensor:
    """Fields divided by numbers ``(b,)``."""
    return x / size.reshape(-1, *[1] * (x.ndim - 1))
