r"""Stationary Γ on a grid that is not periodic: a corner of a circulant matrix [Dietrich & Newsam 1997; Wood
& Chan 1994].

``Γ_s = P C Pᵀ`` where ``C`` is circulant on ``m ≥ 2(n-1)`` sites per axis (``m = n`` on periodic axes), its
first row ``k(min(j, m-j))`` and its eigenvalues ``λ = F k``. If ``λ ≥ 0``, ``R = P H diag(√λ)`` with the
orthonormal Hartley transform ``H = (Re F - Im F)/√m`` satisfies ``R Rᵀ = Γ_s`` since ``λ`` is even: one draw
of real noise and *one real FFT* per field. Products with Γ are exact through ``C``.
"""

from __future__ import annotations

import math
from typing import Literal

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.checks import check_lengthscale, check_stationary
from spatialdiff.covariance.conjugate import attach_solve, conjugate_gradients
from spatialdiff.covariance.cosine import cosine_eigenvalues
from spatialdiff.covariance.dct import dct, idct
from spatialdiff.covariance.periodic import reflection_symmetric, stationary_at
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Grid

# an eigenvalue between -TOLERANCE and 0 times the largest is the rounding of the FFT
TOLERANCE = 1e-12
LOG_DET_SITES = 4096


class EmbeddingError(ValueError):
    """No circulant embedding within the limit is a covariance."""


def fast_size(least: int) -> int:
    """Smallest even number at least ``least`` whose prime factors are 2, 3 and 5; 1 for 1."""
    if least <= 1:
        return 1
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


class CirculantCovariance(Covariance):
    """Exact stationary Γ on a grid with an axis that is not periodic; ``R`` is rectangular, it colours and
    does not whiten.

    Args:
        kernel: any stationary gpytorch kernel.
        domain: the grid; periodic axes are periodised as in `TorusCovariance`.
        channels: see `Covariance`.
        on_negative: what to do when no embedding up to ``max_growth`` is a covariance: "error", or "clip"
            the negative eigenvalues of the one that has least of them to 0, which changes Γ by at most
            ``report.error_bound`` in any entry.
        max_growth: largest embedding, per axis, as a multiple of ``2(n-1)``.
        max_sites: largest embedding in all.
        tolerance: relative residual ``‖Γx - b‖/‖b‖`` that `solve` reaches, or raises.
        max_iterations: of `solve`.

    Raises:
        EmbeddingError: no embedding is a covariance, and ``on_negative="error"``.
        ValueError: a grid with periodic axes only; a kernel that is not stationary; an unknown option.
    """

    method = "circulant"

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Grid,
        channels: Channels = None,
        *,
        on_negative: Literal["error", "clip"] = "error",
        max_growth: float = 8.0,
        max_sites: int = 2**26,
        tolerance: float = 1e-10,
        max_iterations: int = 1000,
    ) -> None:
        super().__init__(domain, channels, kernel)
        if all(domain.periodic):
            raise ValueError(
                'CirculantCovariance: every axis is periodic and needs no embedding; use method="torus".'
            )
        if on_negative not in ("error", "clip"):
            raise ValueError(
                f'CirculantCovariance: on_negative must be "error" or "clip", got {on_negative!r}.'
            )
        check_stationary(kernel, domain, "CirculantCovariance")
        check_lengthscale(kernel, domain)
        self.on_negative = on_negative
        self.max_growth, self.max_sites = max_growth, max_sites
        self.tolerance, self.max_iterations = tolerance, max_iterations
        self.embedding = self._embed()

    # ---- the embedding
    def _sizes(self) -> list[tuple[int, ...]]:
        """Embeddings to try, smallest first: sizes grow by a half, rounded up to a product of 2, 3 and 5."""
        assert self.kernel is not None
        extra = 0 if reflection_symmetric(self.kernel) else 1
        sizes: list[tuple[int, ...]] = []
        growth = 1.0
        while growth <= self.max_growth:
            sizes.append(
                tuple(
                    n if wraps else fast_size(math.ceil(growth * (2 * (n - 1) + extra)))
                    for n, wraps in zip(self.domain.shape, self.domain.periodic, strict=True)
                )
            )
            growth *= 1.5
        return [s for i, s in enumerate(sizes) if i == 0 or math.prod(s) <= self.max_sites]

    def _embed(self) -> tuple[int, ...]:
        tried = []
        with torch.no_grad():
            for sizes in self._sizes():
                values = self._raw_eigenvalues(sizes)
                smallest, largest = float(values.min()), float(values.max())
                if smallest >= -TOLERANCE * largest:
                    return sizes
                mass = float(values.clamp_max(0.0).abs().sum()) / math.prod(sizes)
                tried.append((sizes, mass, smallest, largest, int((values < -TOLERANCE * largest).sum())))
        if self.on_negative == "clip":
            return min(tried, key=lambda t: t[1])[0]
        sizes, _, smallest, largest, count = tried[-1]
        shown = ", ".join("x".join(map(str, t[0])) for t in tried)
        raise EmbeddingError(
            f"The circulant embedding of {self.kernel!r} on {self.domain} is not a covariance: at "
            f"{'x'.join(map(str, sizes))} its smallest eigenvalue is {smallest:.3g} (largest {largest:.3g}), "
            f"{count} of {math.prod(sizes)} are negative; tried {shown}. Use a shorter length scale or a "
            'rougher kernel, a larger max_growth, method="cosine" or (few sites) "dense"; or '
            'on_negative="clip", which reports the covariance error that it causes.'
        )

    def _raw_eigenvalues(self, sizes: tuple[int, ...]) -> Tensor:
        """DFT of the embedded covariance, real, shape ``sizes``."""
        assert self.kernel is not None
        symmetric = reflection_symmetric(self.kernel)
        indices, gather = [], []
        for m, wraps in zip(sizes, self.domain.periodic, strict=True):
            j = torch.arange(m)
            if symmetric:
                indices.append(torch.arange(m // 2 + 1))
                gather.append(torch.minimum(j, m - j))
            else:
                indices.append(j if wraps else torch.where(j <= m // 2, j, j - m))
                gather.append(j)
        row, _ = stationary_at(self.kernel, self.domain, indices, self.device)
        for axis, index in enumerate(gather):
            row = row.index_select(axis, index.to(row.device))
        if not symmetric:
            # the lag m/2 stands for both of its signs, which the corner never uses
            row = (row + row.flip(list(range(row.dim()))).roll([1] * row.dim(), list(range(row.dim())))) / 2
        result: Tensor = torch.fft.fftn(row).real
        return result

    def _compute_eigenvalues(self) -> Tensor:
        values = self._raw_eigenvalues(self.embedding)
        smallest, largest = float(values.detach().min()), float(values.detach().max())
        if smallest < -TOLERANCE * largest and self.on_negative == "error":
            raise EmbeddingError(
                f"The embedding {self.embedding} is no covariance for the kernel's present parameters, "
                f"{self.kernel!r}: smallest eigenvalue {smallest:.3g}, largest {largest:.3g}. Build the "
                "covariance anew after changing the kernel."
            )
        return values.clamp_min(0.0)

    def _compute_root(self) -> Tensor:
        values = self._factor("eigenvalues") / math.prod(self.embedding)
        return torch.where(values > 0, torch.where(values > 0, values, 1.0).sqrt(), 0.0)

    def _compute_half(self) -> Tensor:
        return self._factor("eigenvalues")[..., : self.embedding[-1] // 2 + 1].contiguous()

    def _compute_row(self) -> Tensor:
        """The embedded covariance, clipped eigenvalues included: lag ``j`` per axis, shape ``embedding``."""
        result: Tensor = torch.fft.irfftn(self._factor("half"), s=self.embedding)
        return result

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.embedding)

    def set_extra_state(self, state: Tensor) -> None:
        self.embedding = tuple(int(m) for m in state)
        self._cache, self._seen = {}, []

    # ---- operations
    def _factor_grid(self) -> tuple[int, ...]:
        return self.embedding

    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.domain.ndim, 0))

    def _crop(self, x: Tensor) -> Tensor:
        for axis, n in zip(self._axes(), self.domain.shape, strict=True):
            x = x.narrow(axis, 0, n)
        return x

    def _color(self, z: Tensor) -> Tensor:
        # the corner needs only the first half of an axis that is not periodic: halve that one in the real FFT
        halved = max(a for a, wraps in zip(self._axes(), self.domain.periodic, strict=True) if not wraps)
        axes = (*(a for a in self._axes() if a != halved), halved)
        spectrum = self._crop(torch.fft.rfftn(z * self._factor("root", z.dtype), dim=axes))
        return spectrum.real - spectrum.imag

    def _whiten(self, x: Tensor) -> Tensor:
        raise ValueError(
            f"whiten: the factor of a circulant embedding maps {self.embedding} values to "
            f"{self.domain.shape} sites and has no inverse. "
            'Use method="cosine" or "dense" (or "torus" on a periodic grid), or solve() and '
            "quad_form() for Γ⁻¹."
        )

    def _matmul(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfftn(x, s=self.embedding, dim=self._axes())
        return self._crop(
            torch.fft.irfftn(spectrum * self._factor("half", x.dtype), s=self.embedding, dim=self._axes())
        )

    def _compute_preconditioner(self) -> Tensor:
        assert self.kernel is not None
        with torch.no_grad():
            values = cosine_eigenvalues(self.kernel, self.domain, self.device)
        return 1 / values.clamp_min(torch.finfo(torch.float64).eps * float(values.max()))

    def _solve(self, x: Tensor) -> Tensor:
        ndim = self.domain.ndim
        with torch.no_grad():
            inverse = self._factor("preconditioner")

        def run(b: Tensor) -> Tensor:
            with torch.no_grad():
                return conjugate_gradients(
                    self._matmul,
                    b,
                    lambda r: idct(inverse * dct(r, ndim), ndim),
                    ndim=ndim,
                    tolerance=self.tolerance,
                    max_iterations=self.max_iterations,
                )

        b = x.double()
        solution = run(b)
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            solution = attach_solve(b - self._matmul(solution), solution, run)
        return solution.to(x.dtype)

    def _log_det(self) -> Tensor:
        if self.domain.size > LOG_DET_SITES:
            raise ValueError(
                "log_det: a circulant embedding has no fast determinant, and "
                f"{self.domain.size} sites are more than the {LOG_DET_SITES} for a dense one. Use "
                'method="cosine" (or "torus" on a periodic grid), or sd.fit(..., method="whittle") for a '
                "likelihood."
            )
        factor, info = torch.linalg.cholesky_ex(self._spatial_dense())
        if int(info) != 0:
            raise ValueError(
                "log_det: Γ is not positive definite to working precision; add a Nugget to the kernel."
            )
        result: Tensor = 2 * factor.diagonal().log().sum()
        return result

    def _spatial_dense(self) -> Tensor:
        row = self._factor("row")
        sites = torch.stack(
            torch.meshgrid(*(torch.arange(n) for n in self.domain.shape), indexing="ij"), dim=-1
        ).reshape(-1, self.domain.ndim)
        lag = (sites[:, None] - sites[None]) % torch.tensor(self.embedding)
        return row[tuple(lag.to(row.device).unbind(-1))]

    def _variance(self) -> Tensor:
        return self._factor("row")[(0,) * self.domain.ndim]

    @property
    def report(self) -> CovarianceReport:
        with torch.no_grad():
            raw = self._raw_eigenvalues(self.embedding)
            lost = raw.clamp_max(0.0)
            smallest, largest = float(raw.min()), float(raw.max())
            change = float(self._crop(torch.fft.fftn(lost).real).abs().max()) / math.prod(self.embedding)
        clipped = smallest < -TOLERANCE * largest
        mass = float(lost.abs().sum() / raw.abs().sum()) if clipped else 0.0
        reason = "grid that is not periodic: a corner of a circulant matrix"
        if clipped:
            reason += "; no embedding was a covariance, negative eigenvalues were set to 0 as asked for"
        return CovarianceReport(
            self.method,
            exact=not clipped,
            error_bound=change,
            padding=self.embedding,
            clipped_mass=mass,
            reason=reason,
        )
