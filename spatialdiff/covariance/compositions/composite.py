r"""Γ made of other covariances; what the compositions share.

A composition acts on the whole event, channels included. Where it has no fast inverse of its own, ``Γ⁻¹`` and
``log det Γ`` come from a Cholesky factor up to `DENSE_ENTRIES` entries, and beyond from conjugate
gradients and stochastic Lanczos quadrature with a stated standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.numerics.conjugate import attach_solve, conjugate_gradients
from spatialdiff.covariance.numerics.lanczos import lanczos_log_det
from spatialdiff.covariance.spheres.orders import check_poles
from spatialdiff.domains import Domain, MaskedGrid, Sphere

DENSE_ENTRIES = 2048


class CompositeCovariance(Covariance):
    """Base of the compositions: `_color`, `_matmul` and `_variance` act on ``(..., *batch, *event_shape)``.

    Args:
        domain: the domain that all parts share.
        channels: number of channels, or None.
        tolerance: relative residual ``‖Γx - b‖/‖b‖`` of `solve` beyond 2048 entries.
        log_det_tolerance: standard error of `log_det` per entry beyond 2048 entries.
        max_iterations: of `solve`.
    """

    parts: torch.nn.ModuleList

    def __init__(
        self,
        domain: Domain,
        channels: int | None,
        *,
        tolerance: float = 1e-10,
        log_det_tolerance: float = 1e-2,
        max_iterations: int = 2000,
    ) -> None:
        super().__init__(domain, channels)
        self.tolerance, self.log_det_tolerance = tolerance, log_det_tolerance
        self.max_iterations = max_iterations

    def _spatial(self, operation: Callable[[Tensor], Tensor], x: Tensor, axes: tuple[int, ...]) -> Tensor:
        # a list of white noise has one axis, whatever the event has
        inner = len(self.factor_shape if operation == self._color else self.event_shape)
        lead = x.shape[: x.dim() - inner]
        if self.batch_shape:
            x = x.expand(*torch.broadcast_shapes(lead, self.batch_shape), *x.shape[x.dim() - inner :])
        return operation(x)

    def _whiten(self, x: Tensor) -> Tensor:
        raise ValueError(
            f"whiten: the factor of {type(self).__name__} maps {tuple(self.factor_shape)} values to "
            f"{tuple(self.event_shape)} and has no inverse here. Use solve() and quad_form() for Γ⁻¹; or "
            'parts that share a basis (method="torus" or "cosine"), or method="dense".'
        )

    def _through(
        self, part: Covariance, operation: Callable[[Tensor], Tensor], x: Tensor, axes: int
    ) -> Tensor:
        """``operation`` of a part on ``x``, ``axes`` axes last; parts without channels act on each alike."""
        batch = len(self.batch_shape)
        if not batch or self.channels is None or part.channels is not None:
            return operation(x)
        # the batch of a spatial part comes right before the axes of its field
        result = operation(x.movedim(-axes - 1, -axes - 1 - batch))
        return result.movedim(-self.domain.ndim - 1 - batch, -self.domain.ndim - 1)

    @property
    def _members(self) -> list[Covariance]:
        """The parts of a composition that has several."""
        return cast("list[Covariance]", list(self.parts))

    @property
    def _entries(self) -> int:
        return self.domain.size * (self.channels or 1)

    def _sites(self) -> Tensor | None:
        """Which entries of an event are sites of their own: not masked, and a pole once; None: all are."""
        if isinstance(self.domain, MaskedGrid):
            return self.domain.valid.expand(self.event_shape).to(self.device)
        if not self._poles():
            return None
        valid = torch.ones(tuple(self.event_shape), dtype=torch.bool, device=self.device)
        valid[..., [0, -1], 1:] = False
        return valid

    def _poles(self) -> bool:
        return isinstance(self.domain, Sphere) and self.domain.poles

    def _kept(self) -> Tensor:
        """Indices of the entries of an event that are sites of their own."""
        valid = self._sites()
        if valid is None:
            return torch.arange(self.event_shape.numel(), device=self.device)
        return valid.reshape(-1).nonzero().squeeze(-1)

    def _compute_cholesky(self) -> Tensor:
        dense, kept = self.to_dense(), self._kept()
        factor, info = torch.linalg.cholesky_ex(dense[..., kept[:, None], kept])
        if bool((info != 0).any()):
            raise ValueError(
                f"{type(self).__name__} is not positive definite to working precision: add a nugget "
                "(`+ sd.white(domain, variance)`), or use rougher or shorter kernels."
            )
        result: Tensor = factor
        return result

    def _solve(self, x: Tensor) -> Tensor:
        if self._poles():
            assert isinstance(self.domain, Sphere)
            check_poles(self.domain, x)
        if self._entries <= DENSE_ENTRIES:
            kept, axes = self._kept(), len(self.event_shape)
            flat = x.flatten(-axes)
            solved = torch.cholesky_solve(flat[..., kept].unsqueeze(-1), self._factor("cholesky", x.dtype))
            full = torch.zeros_like(flat).index_copy(-1, kept, solved.squeeze(-1)).reshape(x.shape)
            if self._poles():
                # the entries along a pole share what belongs to it
                shared = full[..., [0, -1], :].mean(-1, keepdim=True).expand_as(full[..., [0, -1], :])
                full = torch.cat([shared[..., :1, :], full[..., 1:-1, :], shared[..., 1:, :]], dim=-2)
            return full
        b = x.double()
        with torch.no_grad():
            jacobi = self._jacobi()

        def run(right: Tensor) -> Tensor:
            with torch.no_grad():
                return conjugate_gradients(
                    self._matmul,
                    right,
                    lambda r: r * jacobi,
                    ndim=len(self.event_shape),
                    tolerance=self.tolerance,
                    max_iterations=self.max_iterations,
                )

        solution = run(b)
        if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in self._tracked())):
            solution = attach_solve(b - self._matmul(solution), solution, run)
        return solution.to(x.dtype)

    def _jacobi(self) -> Tensor:
        variance = self._variance().detach().expand(*self.batch_shape, *self.event_shape)
        return torch.where(variance > 0, 1 / variance.clamp_min(torch.finfo(torch.float64).tiny), 0.0)

    def _log_det(self) -> Tensor:
        if self._entries <= DENSE_ENTRIES:
            return 2 * self._factor("cholesky").diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self._lanczos()[0]

    def _log_det_standard_error(self) -> Tensor:
        if self._entries <= DENSE_ENTRIES:
            return torch.zeros(self.batch_shape, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            return self._lanczos()[1]

    def _lanczos(self) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {}
        mask = self._sites()
        if mask is not None:
            options = {"mask": mask, "size": self._entries}
        return lanczos_log_det(
            self._matmul if mask is None else lambda v: self._matmul(v) * mask,
            tuple(self.event_shape),
            batch=tuple(self.batch_shape),
            tolerance=self.log_det_tolerance,
            device=self.device,
            **options,
        )

    # the parts have multiplied by the number of channels already
    def log_det(self) -> Tensor:
        return self._log_det()

    def log_det_standard_error(self) -> Tensor:
        return self._log_det_standard_error()

    def variance(self) -> Tensor:
        return self._variance().expand(*self.batch_shape, *self.event_shape)

    def eigenvalues(self) -> Tensor:
        return self.spatial_eigenvalues()

    def _determinant_note(self) -> str:
        if self._entries <= DENSE_ENTRIES:
            return ""
        return f"stochastic Lanczos, standard error at most {self.log_det_tolerance:g} per entry"


def common_domain(parts: Sequence[Covariance], name: str) -> Domain:
    """The domain that all parts share.

    Raises:
        TypeError: a part that is not a covariance.
        ValueError: no part; different domains.
    """
    if not parts:
        raise ValueError(f"{name} needs at least one covariance.")
    for part in parts:
        if not isinstance(part, Covariance):
            raise TypeError(
                f"{name} needs covariances, one argument each, as in {name}(gamma_1, gamma_2); got "
                f"{type(part).__name__}."
            )
        if part.domain != parts[0].domain:
            raise ValueError(
                f"{name}: the parts live on {parts[0].domain} and on {part.domain}; build them on one domain."
            )
    return parts[0].domain


def common_channels(parts: Sequence[Covariance], name: str) -> int | None:
    """The number of channels of those parts that have one; the others then act on each channel alike.

    Raises:
        ValueError: different numbers.
    """
    counts = {part.channels for part in parts} - {None}
    if len(counts) > 1:
        raise ValueError(f"{name}: the parts have different numbers of channels, {sorted(map(int, counts))}.")  # type: ignore[arg-type]
    return counts.pop() if counts else None
