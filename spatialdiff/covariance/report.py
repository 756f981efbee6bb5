"""What a covariance says about itself: how it represents Γ, and how far that is from what was asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CovarianceReport:
    """How Γ is represented.

    Attributes:
        method: the structure.
        exact: whether Γ is the covariance that was asked for, to rounding.
        reason: why this structure, and what an inexact one approximates.
        error_bound: largest absolute difference between an entry of Γ and of the covariance that was asked
            for; None where not computed.
        relative_error: Frobenius norm of the difference over that of the covariance; None where not computed.
        padding: shape of the circulant embedding.
        clipped_mass: share of the embedding's variance that was in negative eigenvalues, set to 0 on request.
        condition_number: largest over smallest eigenvalue, where cheap.
        choice: why ``method="auto"`` took it.
        log_det: how the determinant is computed, where not exactly.
        variance_factor: factor that brought the periodised covariance of each additive term back to the
            variance asked for.
    """

    method: str
    exact: bool
    reason: str = ""
    error_bound: float | None = None
    relative_error: float | None = None
    padding: tuple[int, ...] | None = None
    clipped_mass: float = 0.0
    condition_number: float | None = None
    choice: str = ""
    log_det: str = ""
    variance_factor: tuple[float, ...] | None = None

    def __str__(self) -> str:
        lines = [f"method            {self.method} ({'exact' if self.exact else 'approximate'})"]
        if self.reason:
            lines.append(f"reason            {self.reason}")
        if self.choice:
            lines.append(f"chosen            {self.choice}")
        if self.error_bound is not None:
            lines.append(f"covariance error  {self.error_bound:.3g} at most, in any entry")
        if self.relative_error is not None:
            lines.append(f"relative error    {self.relative_error:.3g} (Frobenius)")
        if self.padding is not None:
            lines.append(f"embedding         {' x '.join(map(str, self.padding))}")
        if self.clipped_mass:
            lines.append(f"clipped mass      {self.clipped_mass:.3g} of the variance")
        if self.condition_number is not None:
            lines.append(f"condition number  {self.condition_number:.3g}")
        if self.log_det:
            lines.append(f"log det           {self.log_det}")
        if self.variance_factor is not None:
            lines.append(
                f"variance factor   {', '.join(f'{v:.6g}' for v in self.variance_factor)} (periodisation, "
                "per term)"
            )
        return "\n".join(lines)
