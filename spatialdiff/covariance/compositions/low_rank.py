r"""Low rank plus diagonal: ``Γ = U diag(λ) Uᵀ + diag(d)``, such as empirical orthogonal functions and a
residual.

With ``W = diag(d)^{-1/2} U diag(λ)^{1/2} = Q diag(s) Pᵀ``: ``Γ = D^{1/2}(I + Q diag(s²) Qᵀ)D^{1/2}``, so
that ``R = D^{1/2}(I + Q diag(√(1+s²) - 1) Qᵀ)`` is a square root with an inverse of the same form, and
``log det Γ = Σ log d + Σ log(1 + s²)``. Everything is exact in ``O(n r)`` [Woodbury; Tipping & Bishop 1999
for the estimate].
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from spatialdiff.covariance.checks import check_finite
from spatialdiff.covariance.compositions.composite import CompositeCovariance
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, MaskedGrid


class LowRankCovariance(CompositeCovariance):
    """``Γ = F Fᵀ + diag(d)``.

    Args:
        domain: the domain.
        factors: ``F = U diag(λ)^{1/2}``, one field per row, ``(r, *domain.shape)`` or ``(r, C,
            *domain.shape)``.
        diagonal: ``d > 0``, one number or a field.

    Raises:
        ValueError: shapes that do not fit; a diagonal that is not positive; values that are not finite.
    """

    method = "low_rank"
    factors: Tensor
    diagonal: Tensor

    def __init__(self, domain: Domain, factors: Tensor, diagonal: float | Tensor) -> None:
        factors = torch.as_tensor(factors).detach().double().clone()
        ndim = domain.ndim
        extra = factors.dim() - 1 - ndim
        if extra not in (0, 1) or tuple(factors.shape[factors.dim() - ndim :]) != domain.shape:
            raise ValueError(
                f"LowRankCovariance: factors need shape (r, {', '.join(map(str, domain.shape))}) or one with "
                f"channels after r, got {tuple(factors.shape)}."
            )
        super().__init__(domain, factors.shape[1] if extra else None)
        values = torch.as_tensor(diagonal).detach().double().expand(self.event_shape).clone()
        if isinstance(domain, MaskedGrid):
            factors, values = domain.fill(factors, 0.0), domain.fill(values, 1.0)
        check_finite(factors, "LowRankCovariance: factors")
        if not bool((torch.isfinite(values) & (values > 0)).all()):
            raise ValueError(
                "LowRankCovariance: the diagonal must be positive and finite, or Γ has no inverse; its "
                f"smallest entry is {float(values.min()):.3g}."
            )
        self.register_buffer("factors", factors)
        self.register_buffer("diagonal", values)

    @classmethod
    def from_data(
        cls, fields: Tensor, domain: Domain, rank: int, *, uniform: bool = False, floor: float = 1e-6
    ) -> Self:
        """The leading empirical orthogonal functions of fields about their mean, and what they leave over.

        ``F`` holds the first ``rank`` principal components of the sample covariance; ``d`` is the remaining
        variance of each site, so that the variance of every site is that of the data, or with
        ``uniform=True`` its mean (probabilistic principal components: then ``F`` is shrunk by it).

        Args:
            fields: ``(N, *domain.shape)`` or ``(N, C, *domain.shape)``, ``N ≥ 2``.
            domain: the domain.
            rank: ``r``, at most ``N - 1``.
            uniform: one residual variance for all sites.
            floor: smallest residual variance, as a share of the mean variance of the data.

        Raises:
            ValueError: too few fields, a rank beyond ``N - 1``, constant data, NaN.
        """
        x = torch.as_tensor(fields).detach().double()
        if isinstance(domain, MaskedGrid):
            x = domain.fill(x, 0.0)
        check_finite(x, "LowRankCovariance.from_data")
        count = x.shape[0]
        flat = (x - x.mean(0)).flatten(1)
        most = min(count - 1, flat.shape[1] - 1)
        if not 1 <= rank <= most:
            raise ValueError(
                f"LowRankCovariance.from_data: rank must be between 1 and {most} for {count} fields of "
                f"{flat.shape[1]} values, got {rank}."
            )
        variance = flat.square().sum(0) / (count - 1)
        kept = torch.ones(x.shape[1:], dtype=torch.bool).reshape(-1)
        if isinstance(domain, MaskedGrid):
            kept = domain.valid.expand(x.shape[1:]).reshape(-1)
        mean_variance = variance[kept].mean()
        if float(mean_variance) == 0:
            raise ValueError("LowRankCovariance.from_data: the fields are all alike, they have no variance.")
        _, s, vt = torch.linalg.svd(flat, full_matrices=False)
        values = s[:rank].square() / (count - 1)
        smallest = floor * mean_variance
        if uniform:
            left = (variance[kept].sum() - values.sum()) / max(1, int(kept.sum()) - rank)
            residual = left.clamp_min(smallest).expand_as(variance)
            values = (values - residual[0]).clamp_min(0.0)
            factors = values.sqrt()[:, None] * vt[:rank]
        else:
            factors = values.sqrt()[:, None] * vt[:rank]
            residual = (variance - factors.square().sum(0)).clamp_min(smallest)
        return cls(domain, factors.reshape(rank, *x.shape[1:]), residual.reshape(x.shape[1:]))

    @property
    def rank(self) -> int:
        """``r``."""
        return self.factors.shape[0]

    @property
    def factor_shape(self) -> torch.Size:
        return self.event_shape

    def _compute_deviation(self) -> Tensor:
        return self.diagonal.sqrt()

    def _compute_directions(self) -> Tensor:
        """``Qᵀ``, orthonormal rows ``(r, N)``."""
        return self._decomposed()[0]

    def _compute_strengths(self) -> Tensor:
        """``s²``."""
        return self._decomposed()[1].square()

    def _decomposed(self) -> tuple[Tensor, Tensor]:
        scaled = (self.factors / self._factor("deviation")).flatten(1)
        _, s, vt = torch.linalg.svd(scaled, full_matrices=False)
        return vt, s

    def _apply_function(self, x: Tensor, gain: Tensor) -> Tensor:
        """``(I + Q diag(gain) Qᵀ) x``."""
        axes = len(self.event_shape)
        flat, q = x.flatten(-axes), self._factor("directions", x.dtype)
        return (flat + ((flat @ q.T) * gain.to(x.dtype)) @ q).reshape(x.shape)

    def _color(self, z: Tensor) -> Tensor:
        if isinstance(self.domain, MaskedGrid):
            z = self.domain.fill(z, 0.0)
        gain = (1 + self._factor("strengths")).sqrt() - 1
        return self._factor("deviation", z.dtype) * self._apply_function(z, gain)

    def _whiten(self, x: Tensor) -> Tensor:
        gain = (1 + self._factor("strengths")).rsqrt() - 1
        return self._apply_function(x / self._factor("deviation", x.dtype), gain)

    def _matmul(self, x: Tensor) -> Tensor:
        deviation = self._factor("deviation", x.dtype)
        return deviation * self._apply_function(deviation * x, self._factor("strengths"))

    def _solve(self, x: Tensor) -> Tensor:
        deviation = self._factor("deviation", x.dtype)
        strengths = self._factor("strengths")
        return self._apply_function(x / deviation, -strengths / (1 + strengths)) / deviation

    def _log_det(self) -> Tensor:
        return self.domain.flatten(self.diagonal.log()).sum() + self._factor("strengths").log1p().sum()

    def _log_det_standard_error(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def _variance(self) -> Tensor:
        variance = self.factors.square().sum(0) + self.diagonal
        return self.domain.fill(variance, 0.0) if isinstance(self.domain, MaskedGrid) else variance

    def _report(self) -> CovarianceReport:
        share = float(self.factors.square().sum() / (self.factors.square().sum() + self.diagonal.sum()))
        largest = float(1 + self._factor("strengths").max()) * float(self.diagonal.max())
        return CovarianceReport(
            self.method,
            exact=True,
            error_bound=0.0,
            reason=f"rank {self.rank} with {100 * share:.3g} % of the variance, plus a diagonal, as given",
            condition_number=largest / float(self.diagonal.min()),
        )
