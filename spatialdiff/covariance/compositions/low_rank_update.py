r"""A covariance and a low-rank part: ``Γ = Γ_0 + F Fᵀ``, such as one that is shrunk towards a stationary one,
or a stationary field and the leading patterns of data.

With ``Γ_0 = R Rᵀ``, ``W = R⁻¹F`` and ``G = Fᵀ Γ_0⁻¹ F = WᵀW`` ``(r, r)``,

- ``Γ⁻¹ = Γ_0⁻¹ - Γ_0⁻¹F (I + G)⁻¹ FᵀΓ_0⁻¹`` [Woodbury 1950],
- ``log det Γ = log det Γ_0 + log det(I + G)``,
- where ``R`` has an inverse, ``R (I + W (I + √(I+G))⁻¹ Wᵀ)`` is a square root of ``Γ`` with an inverse of the
  same form, and ``[R F]`` is one everywhere.

Everything is as exact as ``Γ_0`` is, for ``r`` solves with it once and ``O(n r)`` per field more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.checks import check_finite
from spatialdiff.covariance.compositions.composite import CompositeCovariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import MaskedGrid, Sphere


class LowRankUpdate(CompositeCovariance):
    """``Γ = Γ_0 + F Fᵀ``.

    Args:
        base: ``Γ_0``, any covariance without a batch.
        factors: ``F``, one field per row, ``(r, *base.event_shape)``; on a sphere with poles, constant along
            each pole.

    Raises:
        TypeError: a base that is not a covariance.
        ValueError: factors of another shape, or with NaN; a base with a batch of hyperparameters.
    """

    method = "low_rank_update"
    base: Covariance
    factors: Tensor

    def __init__(self, base: Covariance, factors: Tensor) -> None:
        if not isinstance(base, Covariance):
            raise TypeError(f"LowRankUpdate needs a covariance, got {type(base).__name__}.")
        if base.batch_shape:
            raise ValueError(
                f"LowRankUpdate: the base is a batch of shape {tuple(base.batch_shape)}; update its members "
                "one by one."
            )
        event = tuple(base.event_shape)
        rows = torch.as_tensor(factors).detach().to(base.device, torch.float64).clone()
        if rows.dim() != len(event) + 1 or tuple(rows.shape[1:]) != event or not len(rows):
            raise ValueError(
                f"LowRankUpdate: factors need shape (r, {', '.join(map(str, event))}) with r at least 1, one "
                f"field of the base per row, got {tuple(rows.shape)}."
            )
        super().__init__(base.domain, base.channels)
        if isinstance(base.domain, MaskedGrid):
            rows = base.domain.fill(rows, 0.0)
        check_finite(rows, "LowRankUpdate: factors")
        self.base = base
        self.register_buffer("factors", _compressed(rows))
        self._square = _has_inverse_root(base)

    @property
    def rank(self) -> int:
        """``r``."""
        return self.factors.shape[0]

    @property
    def factor_shape(self) -> torch.Size:
        if self._square:
            return self.event_shape
        return torch.Size([self.base.factor_shape.numel() + self.rank])

    def _factor_grid(self) -> tuple[int, ...]:
        return tuple(self.factor_shape)[len(self._lead()) :] if self._square else ()

    # ---- small matrices
    def _compute_solved(self) -> Tensor:
        """``Fᵀ Γ_0⁻¹``, ``(r, N)``."""
        return self.base.solve(self.factors).flatten(1)

    def _compute_whitened(self) -> Tensor:
        """``Wᵀ``, ``(r, N)``."""
        return self.base.whiten(self.factors).flatten(1)

    def _compute_gram(self) -> Tensor:
        """Cholesky factor of ``I + G``."""
        gram = self._factor("solved") @ self.factors.flatten(1).T
        result: Tensor = torch.linalg.cholesky(_plus_identity(gram))
        return result

    def _compute_gain(self) -> Tensor:
        """``(I + √(I+G))⁻¹``."""
        values, vectors = self._spectrum()
        return (vectors / (1 + values.sqrt())) @ vectors.T

    def _compute_loss(self) -> Tensor:
        """``(I+G)^{-1/2} (I + √(I+G))⁻¹``: the inverse root is ``I - W · Wᵀ`` of it."""
        values, vectors = self._spectrum()
        return (vectors / (values.sqrt() * (1 + values.sqrt()))) @ vectors.T

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        white = self._factor("whitened")
        values, vectors = torch.linalg.eigh(_plus_identity(white @ white.T))
        return values, vectors

    # ---- operations
    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.event_shape))

    def _through_white(self, x: Tensor, gain: str, sign: float) -> Tensor:
        """``(I ± W M Wᵀ) x``."""
        white, matrix = self._factor("whitened", x.dtype), self._factor(gain, x.dtype)
        flat = self._flat(x)
        return (flat + sign * ((flat @ white.T) @ matrix) @ white).reshape(x.shape)

    def _color(self, z: Tensor) -> Tensor:
        if self._square:
            if isinstance(self.domain, MaskedGrid):
                z = self.domain.fill(z, 0.0)
            return self.base.color(self._through_white(z, "gain", 1.0))
        size = self.base.factor_shape.numel()
        first, second = z[..., :size], z[..., size:]
        own = self.base.color(first.reshape(*z.shape[:-1], *self.base.factor_shape))
        low = second @ self.factors.flatten(1).to(z.dtype)
        return own + low.reshape(own.shape)

    def _whiten(self, x: Tensor) -> Tensor:
        if not self._square:
            return super()._whiten(x)
        return self._through_white(self.base.whiten(x), "loss", -1.0)

    def _matmul(self, x: Tensor) -> Tensor:
        rows = self.factors.flatten(1).to(x.dtype)
        return self.base.matmul(x) + ((self._flat(x) @ rows.T) @ rows).reshape(x.shape)

    def _solve(self, x: Tensor) -> Tensor:
        rows, solved = self.factors.flatten(1).to(x.dtype), self._factor("solved", x.dtype)
        first = self.base.solve(x)
        inner = self._flat(first) @ rows.T
        outer = torch.cholesky_solve(inner.unsqueeze(-1), self._factor("gram", x.dtype)).squeeze(-1)
        return first - (outer @ solved).reshape(first.shape)

    def _log_det(self) -> Tensor:
        return self.base.log_det() + 2 * self._factor("gram").diagonal().log().sum()

    def _log_det_standard_error(self) -> Tensor:
        return self.base.log_det_standard_error()

    def _variance(self) -> Tensor:
        return self.base.variance() + self.factors.square().sum(0)

    def _report(self) -> CovarianceReport:
        inner = self.base.report
        return CovarianceReport(
            self.method,
            exact=inner.exact,
            error_bound=inner.error_bound,
            reason=f"{inner.method} plus {self.rank} patterns, by Woodbury"
            + ("" if inner.exact else f" ({inner.method} is approximate: {inner.reason})"),
            log_det=inner.log_det,
        )


def _plus_identity(gram: Tensor) -> Tensor:
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return (gram + gram.T) / 2 + eye


def _compressed(rows: Tensor) -> Tensor:
    """As many rows as the event has values at most, with the same ``F Fᵀ``."""
    flat = rows.flatten(1)
    if len(flat) <= flat.shape[1]:
        return rows
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    kept = values > 1e-14 * values[-1]
    fewer: Tensor = (vectors[:, kept] * values[kept].sqrt()).T.reshape(-1, *rows.shape[1:])
    return fewer


def _has_inverse_root(base: Covariance) -> bool:
    """Whether `whiten` inverts `color`: the structures that cut a larger field, or write a site twice, say so
    by raising."""
    if base.factor_shape != base.event_shape:
        return False
    if isinstance(base.domain, Sphere) and base.domain.poles:
        return False
    try:
        base.whiten(torch.zeros(base.event_shape, dtype=torch.float64, device=base.device))
    except ValueError as error:
        if "whiten:" in str(error):
            return False
        raise
    return True
