r"""Stationary Γ on a grid that is not periodic: a corner of a circulant matrix [Dietrich & Newsam 1997; Wood
& Chan 1994].

``Γ_s = P C Pᵀ`` where ``C`` is circulant on a larger torus, see `spatialdiff.covariance.grids.embedding`
for the choices. If its eigenvalues ``λ ≥ 0``, ``R = P H diag(√λ)`` with the orthonormal Hartley transform
``H = (Re F - Im F)/√m`` satisfies ``R Rᵀ = Γ_s`` since ``λ`` is even: one draw of real noise and *one real
FFT* per field, which is half of the complex transform that gives two. An intrinsic embedding adds a
polynomial of low rank. Products with Γ go through the smallest circulant with that corner, a covariance or
not; solves through preconditioned conjugate gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance, as_shape
from spatialdiff.covariance.checks import check_lengthscale, check_stationary
from spatialdiff.covariance.grids import intrinsic
from spatialdiff.covariance.grids.cosine import cosine_eigenvalues
from spatialdiff.covariance.grids.embedding import (
    KINDS,
    Embedding,
    EmbeddingError,
    choose,
    embedding_report,
    fast_size,
    judge,
    plain_sizes,
    spectrum,
    table,
    unfold,
)
from spatialdiff.covariance.grids.radial import radial_terms
from spatialdiff.covariance.grids.reflection import Split, block_cholesky, reflection_blocks, table_blocks
from spatialdiff.covariance.grids.toeplitz import cosine_projection, toeplitz_log_det, toeplitz_multiply
from spatialdiff.covariance.numerics.conjugate import Operator, attach_solve, conjugate_gradients
from spatialdiff.covariance.numerics.dct import dct, idct
from spatialdiff.covariance.numerics.lanczos import Preconditioner, lanczos_log_det
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Grid

__all__ = ["CirculantCovariance", "EmbeddingError", "embedding_report", "fast_size"]

# sites of the largest block whose determinant is computed by Cholesky, and of a line by Durbin's recursion
BLOCK_SITES, LINE_SITES = 4096, 65536
# values of white noise that are transformed at once
_BUFFER = 2**20


class CirculantCovariance(Covariance):
    """Exact stationary Γ on a grid with an axis that is not periodic; ``R`` is rectangular, it colours and
    does not whiten.

    `log_det` is exact by Cholesky up to 4096 sites per block of a field (even and odd parts under the
    reflections of the grid are independent: 4096 · 2^d sites), and up to 65536 sites of a line by Durbin's
    recursion; beyond, by stochastic Lanczos quadrature with a standard error.

    Args:
        kernel: any stationary gpytorch kernel.
        domain: the grid; periodic axes are periodised as in `TorusCovariance`.
        channels: see `Covariance`.
        embedding: "plain" padding, "cutoff", "intrinsic" (see `spatialdiff.covariance.grids.embedding`),
            or "auto", the cheapest of them that is a covariance.
        on_negative: what to do when no embedding up to ``max_growth`` is a covariance: "error", or "clip"
            the negative eigenvalues of the plain one that has least of them to 0, which changes Γ by at most
            ``report.error_bound`` in any entry.
        max_growth: largest embedding, per axis, as a multiple of ``2(n-1)``.
        max_sites: largest embedding in all.
        tolerance: relative residual ``‖Γx - b‖/‖b‖`` that `solve` reaches, or raises.
        max_iterations: of `solve`.
        log_det_tolerance: largest standard error per site of `log_det`, where it is not exact.

    Raises:
        EmbeddingError: no embedding is a covariance, and ``on_negative="error"``.
        ValueError: a grid with periodic axes only; a kernel that is not stationary; an unknown option.
        TypeError: a domain that is not a `Grid`.
    """

    method = "circulant"
    domain: Grid

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Grid,
        channels: Channels = None,
        *,
        embedding: Literal["auto", "plain", "cutoff", "intrinsic"] = "auto",
        on_negative: Literal["error", "clip"] = "error",
        max_growth: float = 8.0,
        max_sites: int = 2**26,
        tolerance: float = 1e-10,
        max_iterations: int = 1000,
        log_det_tolerance: float = 1e-3,
    ) -> None:
        if not isinstance(domain, Grid):
            raise TypeError(f"CirculantCovariance needs a Grid, got {type(domain).__name__}.")
        super().__init__(domain, channels, kernel)
        if all(domain.periodic):
            raise ValueError(
                'CirculantCovariance: every axis is periodic and needs no embedding; use method="torus".'
            )
        if on_negative not in ("error", "clip"):
            raise ValueError(
                f'CirculantCovariance: on_negative must be "error" or "clip", got {on_negative!r}.'
            )
        if embedding not in ("auto", *KINDS):
            raise ValueError(
                f'CirculantCovariance: embedding must be "auto", "plain", "cutoff" or "intrinsic", got '
                f"{embedding!r}."
            )
        check_stationary(kernel, domain, "CirculantCovariance")
        check_lengthscale(kernel, domain)
        self.on_negative = on_negative
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.log_det_tolerance = log_det_tolerance
        self.plan, tried = choose(
            kernel,
            domain,
            option=embedding,
            clip=on_negative == "clip",
            max_growth=max_growth,
            max_sites=max_sites,
        )
        self.clipped = not next(r for r in tried if r.embedding == self.plan).is_covariance

    @property
    def embedding(self) -> tuple[int, ...]:
        """Sites of the embedding per axis."""
        return self.plan.sizes

    def get_extra_state(self) -> Tensor:
        plan = self.plan
        head = [KINDS.index(plan.kind), plan.order, plan.shape, float(self.clipped)]
        return torch.tensor([*head, *plan.sizes], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        values = state.tolist()
        if len(values) == self.domain.ndim:
            # of versions that knew plain embeddings only
            values = [0, 0, 0.0, float(self.on_negative == "clip"), *values]
        kind, order, shape, clipped, *sizes = values
        self.plan = Embedding(tuple(int(m) for m in sizes), KINDS[int(kind)], int(order), shape)
        self.clipped = bool(clipped)
        self._cache, self._seen = {}, []

    # ---- factors
    def _origin(self) -> Tensor:
        assert self.kernel is not None
        values, _ = stationary_at(self.kernel, self.domain, [torch.arange(1)] * self.domain.ndim, self.device)
        return values

    def _raw_eigenvalues(self) -> Tensor:
        assert self.kernel is not None
        return spectrum(table(self.kernel, self.domain, self.plan, self.device), self.embedding)

    def _compute_eigenvalues(self) -> Tensor:
        """Of the embedding, in the layout of `embedding.spectrum`; none below 0."""
        values = self._raw_eigenvalues()
        if self.on_negative == "error":
            origin = self._origin()
            found = judge(values, self.plan, origin.reshape(origin.shape[: origin.dim() - self.domain.ndim]))
            if not found.is_covariance:
                raise EmbeddingError(
                    f"The embedding {self.plan} is no covariance for the kernel's present parameters, "
                    f"{self.kernel!r}: smallest eigenvalue {found.smallest:.3g}, largest "
                    f"{found.largest:.3g}. Build the covariance anew after changing the kernel.",
                    found.sizes,
                    found.negative,
                    found.smallest,
                )
        return values.clamp_min(0.0)

    def _compute_root(self) -> Tensor:
        values = self._factor("eigenvalues") / math.prod(self.embedding)
        root = torch.where(values > 0, torch.where(values > 0, values, 1.0).sqrt(), 0.0)
        return unfold(root, self.embedding)

    @property
    def _product_sizes(self) -> tuple[int, ...]:
        """Sites of the circulant through which products go."""
        if self.clipped:
            return self.embedding
        assert self.kernel is not None
        return plain_sizes(self.domain, 1.0, 0 if reflection_symmetric(self.kernel) else 1)

    def _compute_half(self) -> Tensor:
        assert self.kernel is not None
        sizes = self._product_sizes
        if self.clipped:
            return _half(self._factor("eigenvalues"), sizes)
        values = table(self.kernel, self.domain, Embedding(sizes), self.device)
        return _half(spectrum(values, sizes), sizes)

    # ---- the polynomial of an intrinsic embedding, see spatialdiff.covariance.grids.intrinsic
    def _compute_modes(self) -> Tensor:
        return intrinsic.polynomials(self.domain, self.plan.order).flatten(1).to(self.device)

    def _compute_correction(self) -> Tensor:
        assert self.kernel is not None
        terms = radial_terms(self.kernel, self.domain)
        return intrinsic.correction(terms, self.domain, self.plan.order, self.plan.shape)

    def _compute_wave(self) -> Tensor:
        return intrinsic.positive_root(self._compute_correction())

    def _compute_solved_modes(self) -> Tensor:
        """``H = C⁻¹ Q``, ``(*batch, c, n)``: by Cholesky where that is cheap, else by conjugate gradients."""
        assert self.kernel is not None
        modes = self._factor("modes")
        ndim, shape, batch = self.domain.ndim, self.domain.shape, self.batch_shape
        values = table(self.kernel, self.domain, self.plan, self.device)
        for axis, n in zip(range(-ndim, 0), shape, strict=True):
            values = values.narrow(axis, 0, n)
        if self.domain.size <= BLOCK_SITES:
            split = Split(shape)
            right = split.blocks(split.forward(modes.reshape(-1, *shape))).movedim(0, -1)
            factor = block_cholesky(table_blocks(values, shape))
            parts = torch.cholesky_solve(right.expand(*batch, *right.shape), factor)
            return split.backward(split.halves(parts.movedim(-1, len(batch)))).flatten(-ndim)
        half = _half(self._factor("eigenvalues"), self.embedding)
        with torch.no_grad():
            near = cosine_projection(values, shape)
            inverse = 1 / near.clamp_min(torch.finfo(torch.float64).eps * float(near.max()))
        spread = modes.reshape(-1, *(1,) * len(batch), *shape).expand(-1, *batch, *shape).clone()
        solved = self._invert(
            lambda x: toeplitz_multiply(x, half, self.embedding),
            spread,
            lambda r: idct(inverse * dct(r, ndim), ndim),
            tolerance=1e-10,
        )
        return solved.flatten(-ndim).movedim(0, -2)

    def _compute_removal(self) -> Tensor:
        """``(D; P)`` of ``η = s - Q D P s``, ``P = Qᵀ S⁻¹``: ``(*batch, c, c + n)``."""
        modes, solved = self._factor("modes"), self._compute_solved_modes()
        matrix = self._compute_correction()
        added, taken = intrinsic.positive_root(matrix), intrinsic.positive_root(-matrix)
        inner = solved @ modes.mT
        inner = (inner + inner.mT) / 2
        eye = torch.eye(len(modes), dtype=torch.float64, device=self.device)
        update = torch.linalg.inv(eye + inner @ added @ added)
        gain = taken @ (update @ inner) @ taken
        weight = taken @ intrinsic.downdate((gain + gain.mT) / 2) @ taken
        return torch.cat([weight, update @ solved], dim=-1)

    # ---- operations
    def sample(self, shape: int | Sequence[int] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of ``N(0, Γ)``, see `Covariance.sample`; many large fields are drawn one after another,
        with the same result.
        """
        shape = as_shape(shape)
        white = self.factor_shape.numel()
        tracked = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        # the CPU generator fills sixteen values at a time, and only whole groups can be drawn apart
        apart = self.device.type == "cpu" and white % 16 == 0 and math.prod(shape) > 1
        if not apart or tracked or self.batch_shape or white * math.prod(shape) <= _BUFFER:
            return super().sample(shape, generator=generator)
        count = math.prod(shape)
        fields = torch.empty(count, *self.event_shape, dtype=self.dtype)
        for some in fields.split(max(1, _BUFFER // white)):
            z = torch.randn(len(some), *self.factor_shape, generator=generator, dtype=self.dtype)
            some.copy_(self.color(z))
        return fields.reshape(*shape, *self.event_shape)

    def _factor_grid(self) -> tuple[int, ...]:
        if self.plan.kind != "intrinsic":
            return self.embedding
        return (math.prod(self.embedding) + len(self._factor("modes")),)

    def _color(self, z: Tensor) -> Tensor:
        if self.plan.kind != "intrinsic":
            return self._color_corner(z)
        sites = math.prod(self.embedding)
        ndim = self.domain.ndim
        corner = z[..., :sites].reshape(*z.shape[:-1], *self.embedding)
        modes, removal = self._factor("modes", z.dtype), self._factor("removal", z.dtype)
        count = len(modes)
        base = self._color_corner(corner).flatten(-ndim)
        base = base + _rows(_rows(z[..., sites:], self._factor("wave", z.dtype)), modes.mT)
        taken = _rows(_rows(base, removal[..., count:]), removal[..., :count])
        return (base - _rows(taken, modes.mT)).reshape(*z.shape[:-1], *self.domain.shape)

    def _color_corner(self, z: Tensor) -> Tensor:
        # the corner needs only the first half of an axis that is not periodic: halve that one in the real FFT
        ndim, shape = self.domain.ndim, self.domain.shape
        halved = max(a for a, wraps in zip(range(-ndim, 0), self.domain.periodic, strict=True) if not wraps)
        axes = (*(a for a in range(-ndim, 0) if a != halved), halved)
        root = self._factor("root", z.dtype)

        def transform(some: Tensor) -> Tensor:
            y = torch.fft.rfftn(some * root, dim=axes)
            for axis, n in zip(range(-ndim, 0), shape, strict=True):
                y = y.narrow(axis, 0, n)
            result: Tensor = y.real - y.imag
            return result

        # buffers beyond some megabytes cost more to obtain than to fill
        sites = math.prod(self.embedding)
        fields = z.numel() // sites
        if self.batch_shape or fields <= 1 or z.numel() <= _BUFFER:
            return transform(z)
        parts = z.reshape(fields, *self.embedding).split(max(1, _BUFFER // sites))
        return torch.cat([transform(part) for part in parts]).reshape(*z.shape[: z.dim() - ndim], *shape)

    def _whiten(self, x: Tensor) -> Tensor:
        raise ValueError(
            f"whiten: the factor of a circulant embedding maps {math.prod(self._factor_grid())} values to "
            f'{self.domain.shape} sites and has no inverse. Use method="cosine", or "reflection" or "dense" '
            '(few sites), or "torus" (a periodic grid), or solve() and quad_form() for Γ⁻¹.'
        )

    def _matmul(self, x: Tensor) -> Tensor:
        return toeplitz_multiply(x, self._factor("half", x.dtype), self._product_sizes)

    def _compute_cosine(self) -> Tensor:
        """Eigenvalues of the preconditioner."""
        assert self.kernel is not None
        values = cosine_eigenvalues(self.kernel, self.domain, self.device)
        return values.clamp_min(torch.finfo(torch.float64).eps * float(values.detach().max()))

    def _compute_inverse_half(self) -> Tensor:
        """Inverse of the embedding's eigenvalues, floored at their rounding."""
        values = self._factor("eigenvalues")
        floor = torch.finfo(torch.float64).eps * float(values.detach().max())
        return _half(1 / values.clamp_min(floor), self.embedding)

    def _preconditioner(self) -> Operator:
        """An approximate inverse of Γ: in one dimension the corner of the inverse of the embedding, elsewhere
        the closest matrix that is diagonal in the cosine basis; each takes the fewest iterations there, on
        smooth and rough kernels alike.
        """
        ndim = self.domain.ndim
        if ndim == 1 and self.plan.kind != "intrinsic" and not self.clipped:
            half = self._factor("inverse_half")
            return lambda r: toeplitz_multiply(r, half, self.embedding)
        inverse = 1 / self._factor("cosine")
        return lambda r: idct(inverse * dct(r, ndim), ndim)

    def _invert(self, operator: Operator, b: Tensor, preconditioner: Operator, *, tolerance: float) -> Tensor:
        """``A⁻¹ b`` by conjugate gradients, with its derivative in ``b`` and in the parameters."""

        def run(right: Tensor) -> Tensor:
            with torch.no_grad():
                return conjugate_gradients(
                    operator,
                    right,
                    preconditioner,
                    ndim=self.domain.ndim,
                    tolerance=tolerance,
                    max_iterations=self.max_iterations,
                )

        solution = run(b)
        if torch.is_grad_enabled() and (b.requires_grad or any(p.requires_grad for p in self.parameters())):
            solution = attach_solve(b - operator(solution), solution, run)
        return solution

    def _solve(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            preconditioner = self._preconditioner()
        return self._invert(self._matmul, x.double(), preconditioner, tolerance=self.tolerance).to(x.dtype)

    # ---- determinant
    @property
    def _log_det_route(self) -> Literal["blocks", "line", "lanczos"]:
        assert self.kernel is not None
        n = self.domain.size
        parts = 2**self.domain.ndim if reflection_symmetric(self.kernel) else 2
        if self.clipped:
            return "blocks" if n <= BLOCK_SITES else "lanczos"
        if n <= (BLOCK_SITES if self.domain.ndim == 1 else parts * BLOCK_SITES):
            return "blocks"
        if self.domain.ndim == 1 and n <= LINE_SITES and reflection_symmetric(self.kernel):
            return "line"
        return "lanczos"

    def _compute_determinant(self) -> Tensor:
        """``log det Γ_s`` and its standard error, ``(2, *batch)``."""
        assert self.kernel is not None
        route = self._log_det_route
        if route == "lanczos":
            return torch.stack(self._stochastic_log_det())
        if route == "line":
            row, _ = stationary_at(self.kernel, self.domain, [torch.arange(self.domain.size)], self.device)
            value = toeplitz_log_det(row)
        else:
            blocks = (
                self._clipped_matrix().unsqueeze(-3)
                if self.clipped
                else reflection_blocks(self.kernel, self.domain, self.device)
            )
            value = 2 * block_cholesky(blocks).diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))
        return torch.stack([value, torch.zeros_like(value)])

    def _stochastic_log_det(self) -> tuple[Tensor, Tensor]:
        ndim = self.domain.ndim
        values = self._factor("cosine")
        scale = values.rsqrt()
        return lanczos_log_det(
            self._matmul,
            self.domain.shape,
            batch=self.batch_shape,
            preconditioner=Preconditioner(
                lambda x: idct(scale * dct(x, ndim), ndim), values.log().flatten(-ndim).sum(-1)
            ),
            tolerance=self.log_det_tolerance,
            device=self.device,
        )

    def _log_det(self) -> Tensor:
        return self._factor("determinant")[0]

    def _log_det_standard_error(self) -> Tensor:
        with torch.no_grad():
            return self._factor("determinant")[1]

    def _compute_row(self) -> Tensor:
        """The clipped covariance at lag ``j`` per axis, ``(*batch, *embedding)``."""
        axes = tuple(range(-self.domain.ndim, 0))
        result: Tensor = torch.fft.irfftn(self._factor("half"), s=self.embedding, dim=axes)
        return result

    def _clipped_matrix(self) -> Tensor:
        axes = torch.meshgrid(*(torch.arange(n) for n in self.domain.shape), indexing="ij")
        sites = torch.stack(axes, dim=-1).reshape(-1, self.domain.ndim)
        lag = (sites[:, None] - sites[None]) % torch.tensor(self.embedding)
        index: Any = (..., *lag.to(self.device).unbind(-1))
        return self._factor("row")[index]

    def _variance(self) -> Tensor:
        if not self.clipped:
            return self._origin()
        index: Any = (..., *(slice(0, 1),) * self.domain.ndim)
        return self._factor("row")[index]

    def _report(self) -> CovarianceReport:
        with torch.no_grad():
            raw = self._raw_eigenvalues()
            lost = unfold(raw, self.embedding).clamp_max(0.0)
            corner = torch.fft.fftn(lost, dim=tuple(range(-self.domain.ndim, 0))).real
            for axis, n in zip(range(-self.domain.ndim, 0), self.domain.shape, strict=True):
                corner = corner.narrow(axis, 0, n)
            change = float(corner.abs().max()) / math.prod(self.embedding)
            mass = float(lost.abs().sum() / unfold(raw, self.embedding).abs().sum()) if self.clipped else 0.0
        growth = max(m / max(1, 2 * (n - 1)) for m, n in zip(self.embedding, self.domain.shape, strict=True))
        reason = (
            f"grid that is not periodic: a corner of a circulant matrix, {self.plan}, {growth:.2f} times the "
            "smallest"
        )
        if self.clipped:
            reason += "; no embedding was a covariance, negative eigenvalues were set to 0 as asked for"
        elif self.plan.kind == "intrinsic":
            reason += ", and a polynomial"
        elif float(raw.min()) > 0:
            # eigenvalues of a corner lie between those of the whole
            lead = tuple(range(-self.domain.ndim, 0))
            bound = float((raw.amax(lead) / raw.amin(lead)).max())
            reason += f"; condition number at most {bound:.3g}"
        return CovarianceReport(
            self.method,
            exact=not self.clipped,
            error_bound=change,
            padding=self.embedding,
            clipped_mass=mass,
            reason=reason,
            log_det=_LOG_DET[self._log_det_route].format(tolerance=self.log_det_tolerance),
        )


_LOG_DET = {
    "blocks": "exact, Cholesky of blocks",
    "line": "exact, Durbin's recursion",
    "lanczos": "stochastic Lanczos quadrature, standard error at most {tolerance:g} per site",
}


def _rows(x: Tensor, matrix: Tensor) -> Tensor:
    """``A x`` of vectors ``(..., *batch, i)`` and matrices ``(*batch, o, i)``."""
    if matrix.dim() == 2:
        return (x.reshape(-1, x.shape[-1]) @ matrix.mT).reshape(*x.shape[:-1], matrix.shape[-2])
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def _half(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A `spectrum` as ``rfftn`` lays it out."""
    kept = sizes[-1] // 2 + 1
    if len(sizes) == 1:
        return values[..., :kept].contiguous()
    if values.shape[-1] == sizes[-1] and values.shape[-1] != kept:
        values = values[..., :kept]
    last = values.movedim(-1, -len(sizes))
    return unfold(last, sizes[:-1]).movedim(-len(sizes), -1).contiguous()
