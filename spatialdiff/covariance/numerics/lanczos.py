r"""``log det A`` of a large symmetric positive definite operator by stochastic Lanczos quadrature.

For white probes ``z``: ``log det A = tr log A = E[zᵀ log(A) z]``. ``k`` steps of Lanczos from ``z`` give a
tridiagonal ``T`` and the Gauss rule ``zᵀ log(A) z ≈ ‖z‖² e₁ᵀ log(T) e₁``. Since the even derivatives of the
logarithm are negative and the odd ones positive, Gauss's rule is an upper bound, and the Gauss–Radau rule
with a node at ``a ≤ λ_min`` a lower one: their gap bounds the truncation error, and steps are added until it
is small.

With a preconditioner ``M = (WᵀW)⁻¹`` the rule is applied to ``W A Wᵀ`` and ``log det M`` is added.

The derivative is ``E[(A⁻¹z)ᵀ dA z]``, with the same probes.

Sources: Ubaru, Chen & Saad (2017); Golub & Meurant (2010), section 6; Gardner et al. (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spatialdiff.covariance.numerics.conjugate import conjugate_gradients

Operator = Callable[[Tensor], Tensor]

_CHUNK = 16  # basis vectors allocated at once
_TRUNCATION = 0.1  # share of the tolerance that the quadrature may take


@dataclass(frozen=True)
class Preconditioner:
    """``M ≈ A`` through an inverse root ``W``: ``W M Wᵀ = I``.

    Attributes:
        inverse_root: ``x → W x``.
        log_det: ``log det M``, shape ``(*batch,)`` or scalar. Gradients: either both this and ``W`` carry
            them, or neither.
        transposed: ``x → Wᵀ x``; None where ``W`` is symmetric.
    """

    inverse_root: Operator
    log_det: Tensor
    transposed: Operator | None = None

    def outer(self, x: Tensor) -> Tensor:
        """``Wᵀ x``."""
        return (self.transposed or self.inverse_root)(x)

    def solve(self, x: Tensor) -> Tensor:
        """``M⁻¹ x = Wᵀ W x``."""
        return self.outer(self.inverse_root(x))


def lanczos_log_det(
    matmul: Operator,
    shape: Sequence[int],
    *,
    batch: Sequence[int] = (),
    preconditioner: Preconditioner | None = None,
    tolerance: float = 1e-3,
    probes: int = 32,
    max_probes: int = 1024,
    steps: int = 1000,
    condition_limit: float = 1e9,
    size: int | None = None,
    mask: Tensor | None = None,
    seed: int = 0,
    memory: float = 1e9,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    r"""``log det A`` and its standard error, each float64 of shape ``(*batch,)``; see the module.

    Rademacher probes from a fixed seed, the same for every member of the batch, are added until the standard
    error is at most ``tolerance`` per site; the truncation error of every probe is at most a tenth of that,
    for operators whose condition number (after preconditioning) is at most ``condition_limit``. Lanczos
    vectors are reorthogonalised in full as long as they fit in ``memory``; beyond it the quadrature stays
    valid with more steps (Golub & Strakoš 1994).

    Args:
        matmul: ``x → A x`` on ``(probes, *batch, *shape)`` in float64, differentiable in its own parameters.
        shape: shape of one field; ``A`` is ``n × n`` with ``n`` its product.
        batch: shape of a batch of operators.
        preconditioner: see `Preconditioner`; it acts on the same shapes.
        tolerance: largest standard error per site.
        probes: number of probes at first.
        max_probes: limit on their number.
        steps: limit on Lanczos steps.
        condition_limit: largest condition number; larger ones raise.
        size: number of sites that count, where ``mask`` hides some.
        mask: bool of ``shape``, False where fields are zero and ``A`` is not defined.
        seed: of the probes.
        memory: bytes that Lanczos vectors may take.
        device: of the operator.

    Raises:
        ValueError: ``A`` is not positive definite.
        RuntimeError: the tolerance is not reached within the limits, or the condition number is beyond its
            limit.
    """
    n = math.prod(shape)
    count = n if size is None else size
    generator = torch.Generator().manual_seed(seed)
    constant = torch.zeros((), dtype=torch.float64) if preconditioner is None else preconditioner.log_det

    def operator(x: Tensor) -> Tensor:
        if preconditioner is None:
            return matmul(x)
        return preconditioner.inverse_root(matmul(preconditioner.outer(x)))

    def draw(number: int) -> Tensor:
        rows = [torch.randint(0, 2, tuple(shape), generator=generator) for _ in range(number)]
        z = (2 * torch.stack(rows) - 1).to(device=device, dtype=torch.float64)
        if mask is not None:
            z = z * mask
        return z.reshape(number, *(1,) * len(batch), *shape).expand(number, *batch, *shape)

    group = max(1, min(probes, int(memory / (8 * n * math.prod(batch) * 64))))
    values: list[Tensor] = []
    gradients: list[Tensor] = []
    wanted = max(2, probes)
    limit = _TRUNCATION * tolerance * count
    while True:
        while sum(map(len, values)) < wanted:
            z = draw(min(group, wanted - sum(map(len, values))))
            with torch.no_grad():
                value = _quadrature(
                    operator, z, len(shape), limit, min(steps, count), condition_limit, memory
                )
            values.append(value)
            if torch.is_grad_enabled():
                gradients.append(_surrogate(operator, z, len(shape), steps))
        every = torch.cat(values)
        error = every.std(0) / math.sqrt(len(every))
        worst = float(error.max()) / count
        if worst <= tolerance:
            break
        # a tenth more than the present estimate of the variance asks for
        wanted = max(len(every) + 1, math.ceil(1.1 * len(every) * (worst / tolerance) ** 2))
        if wanted > max_probes:
            raise RuntimeError(
                f"log_det: {len(every)} probes give a standard error of {worst:.2g} per site and "
                f"{tolerance:.2g} was asked for, which takes some {wanted} probes, more than the limit of "
                f"{max_probes}. Raise log_det_tolerance= or the limit, add a Nugget, or use a structure with "
                "an exact log_det."
            )
    mean = every.mean(0)
    if gradients:
        surrogate = torch.cat(gradients).mean(0)
        mean = mean + (surrogate - surrogate.detach())
    return mean + constant, error


def _surrogate(operator: Operator, z: Tensor, ndim: int, steps: int) -> Tensor:
    """``(A⁻¹z)ᵀ A(θ) z`` per probe, whose derivative is that of ``zᵀ log(A) z`` in expectation."""
    product = operator(z)
    axes = tuple(range(-ndim, 0))
    if not product.requires_grad:
        return torch.zeros_like(product.sum(axes))
    with torch.no_grad():
        solved = conjugate_gradients(
            operator, z, lambda r: r, ndim=ndim, tolerance=1e-7, max_iterations=10 * steps
        )
    return (solved * product).sum(axes)


class Tridiagonal:
    """Lanczos recurrence ``A V = V T + r eᵀ`` of a batch of start vectors, grown step by step.

    Args:
        operator: ``x → A x`` on ``(..., *shape)``.
        start: start vectors ``(..., *shape)``.
        ndim: number of axes of ``shape``.
        memory: bytes of basis vectors kept for reorthogonalisation.
    """

    def __init__(self, operator: Operator, start: Tensor, ndim: int, memory: float = 1e9) -> None:
        self.operator = operator
        self.full_shape = start.shape
        self.lead = start.shape[: start.dim() - ndim]
        flat = start.reshape(*self.lead, -1)
        self.norm = flat.norm(dim=-1)
        self.vector = flat / self.norm.unsqueeze(-1)
        self.previous = torch.zeros_like(self.vector)
        self.alphas: list[Tensor] = []
        self.betas: list[Tensor] = []
        self.chunks: list[Tensor] = []
        self.kept = 0
        self.capacity = int(memory / (8 * max(1, flat.numel())))
        self.scale = torch.zeros_like(self.norm)

    def step(self) -> None:
        """One more column of ``T``."""
        v = self.vector
        self._keep(v)
        alive = v.square().sum(-1) > 0
        r = self.operator(v.reshape(self.full_shape)).reshape(v.shape)
        alpha = (r * v).sum(-1)
        r = r - alpha.unsqueeze(-1) * v
        if self.betas:
            r = r - self.betas[-1].unsqueeze(-1) * self.previous
        for _ in range(2):
            r = self._orthogonal(r)
        beta = r.norm(dim=-1)
        self.scale = torch.maximum(self.scale, alpha.abs() + beta)
        # an exhausted Krylov space: T decouples, and what follows has weight zero
        ended = beta <= 1e-13 * math.sqrt(v.shape[-1]) * self.scale
        beta = torch.where(ended, 0.0, beta)
        self.alphas.append(torch.where(alive, alpha, self.scale))
        self.betas.append(beta)
        self.previous = v
        self.vector = torch.where(ended.unsqueeze(-1), 0.0, r / torch.where(ended, 1.0, beta).unsqueeze(-1))

    def _keep(self, v: Tensor) -> None:
        if self.kept >= self.capacity:
            return
        place = self.kept % _CHUNK
        if place == 0:
            self.chunks.append(v.new_zeros(*v.shape[:-1], _CHUNK, v.shape[-1]))
        self.chunks[-1][..., place, :] = v
        self.kept += 1

    def _orthogonal(self, r: Tensor) -> Tensor:
        for chunk in self.chunks:
            overlap = (chunk @ r.unsqueeze(-1)).transpose(-1, -2)
            r = r - (overlap @ chunk).squeeze(-2)
        return r

    def matrix(self) -> Tensor:
        """``T``, shape ``(..., k, k)``."""
        diagonal = torch.diag_embed(torch.stack(self.alphas, -1))
        if len(self.alphas) == 1:
            return diagonal
        off = torch.stack(self.betas[:-1], -1)
        return diagonal + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Ritz values ``(..., k)`` and the weights ``(e₁ᵀ s)²`` of the Gauss rule."""
        values, vectors = torch.linalg.eigh(self.matrix())
        return values, vectors[..., 0, :].square()

    def radau(self, node: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes and weights of the Gauss–Radau rule with a node at ``node`` (Golub & Meurant, eq. 6.16)."""
        t = self.matrix()
        k = t.shape[-1]
        shifted = t - node[..., None, None] * torch.eye(k, dtype=t.dtype, device=t.device)
        right = torch.zeros_like(t[..., :1])
        right[..., -1, 0] = self.betas[-1].square()
        last = node + torch.linalg.solve(shifted, right)[..., -1, 0]
        larger = torch.nn.functional.pad(t, (0, 1, 0, 1))
        larger[..., k, k] = last
        larger[..., k - 1, k] = larger[..., k, k - 1] = self.betas[-1]
        values, vectors = torch.linalg.eigh(larger)
        return values, vectors[..., 0, :].square()


def _quadrature(
    operator: Operator,
    z: Tensor,
    ndim: int,
    limit: float,
    steps: int,
    condition_limit: float,
    memory: float,
) -> Tensor:
    """``zᵀ log(A) z`` for every probe, with a truncation error of at most ``limit`` each."""
    recurrence = Tridiagonal(operator, z, ndim, memory)
    check = min(8, steps)
    gap, condition = math.inf, math.inf
    for k in range(1, steps + 1):
        recurrence.step()
        if k < check and k < steps:
            continue
        values, weights = recurrence.ritz()
        smallest, largest = values[..., 0], values[..., -1]
        # rounding of the products leaves eigenvalues below this one unresolved
        floor = largest / condition_limit
        if bool((smallest <= -1e-13 * math.sqrt(z[0].numel()) * largest).any()):
            worst = int((smallest / largest).argmin())
            raise ValueError(
                f"log_det: the operator is not positive definite: Lanczos found an eigenvalue of "
                f"{float(smallest.flatten()[worst]):.3g} beside {float(largest.flatten()[worst]):.3g}. "
                "Add a Nugget to the kernel."
            )
        condition = float((largest / smallest.clamp_min(1e-300)).max())
        if condition > condition_limit:
            raise RuntimeError(
                f"log_det: the condition number is at least {condition:.2g}, more than the limit of "
                f"{condition_limit:.2g} for which the quadrature holds. Add a Nugget to the kernel, or use a "
                "dense Γ."
            )
        square = recurrence.norm.square()
        upper: Tensor = square * (weights * values.log()).sum(-1)
        nodes, masses = recurrence.radau(floor)
        lower = square * (masses * torch.maximum(nodes, floor.unsqueeze(-1)).log()).sum(-1)
        gap = float((upper - lower).abs().max())
        if gap <= limit:
            return upper
        check = k + max(4, k // 3)
    if bool((recurrence.betas[-1] == 0).all()):
        return upper
    raise RuntimeError(
        f"log_det: {steps} Lanczos steps leave a truncation error of up to {gap:.2g} nats, {limit:.2g} was "
        f"asked for (the condition number is at least {condition:.2g}). Raise log_det_tolerance= or the "
        "limit on steps, add a Nugget, or use a structure with an exact log_det."
    )


def eigenvalue_bounds(
    matmul: Operator,
    shape: Sequence[int],
    *,
    batch: Sequence[int] = (),
    steps: int = 60,
    residual: float | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Bounds on the eigenvalues of ``A``: the outermost Ritz values of Lanczos from a random vector, moved
    outwards by their residuals.

    The upper one holds with overwhelming probability after few steps (Kuczyński & Woźniakowski 1992); the
    lower one once it is positive.

    Args:
        matmul: ``x → A x`` on ``(*batch, *shape)``, float64.
        shape: shape of one field.
        batch: shape of a batch of operators.
        steps: limit on Lanczos steps.
        residual: stop where the residual of the smallest Ritz value is at most this share of it; None for
            all steps.
        seed: of the random vector.
        device: of the operator.

    Returns:
        ``(lower, upper)``, float64 ``(*batch,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device)
    with torch.no_grad():
        recurrence = Tridiagonal(matmul, start.expand(*batch, *shape), len(shape))
        total, check = min(steps, math.prod(shape)), 10
        for k in range(1, total + 1):
            recurrence.step()
            if k < total and (residual is None or k < check):
                continue
            check = k + max(5, k // 4)
            values, vectors = torch.linalg.eigh(recurrence.matrix())
            left, right = (recurrence.betas[-1] * vectors[..., -1, end].abs() for end in (0, -1))
            if residual is not None and bool((left <= residual * values[..., 0]).all()):
                break
    return values[..., 0] - left, values[..., -1] + right
