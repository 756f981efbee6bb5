r"""``Γ = D A^{-α} D`` with ``D = diag(s)`` and ``A = diag(w) + S``, ``S = BᵀB`` sparse: the Matérn fields of
meshes and graphs.

With ``α = 2p + 2β``, ``p`` an integer and ``0 ≤ β < 1``, the root is one of

- ``R = D A^{-p}`` where ``β = 0`` (α even): exact, square;
- ``R = D A^{-p-1} [diag(√w), Bᵀ]`` where ``β = 1/2`` (α odd): exact since ``diag(w) + BᵀB = A``, but wider
  than high;
- ``R = D A^{-p} r(A)``, ``r(x) ≈ x^{-β}`` a rational function of stated relative error: square (`rational`).

For an integer α, ``Γ x``, ``Γ⁻¹x`` (products with the sparse precision) and ``log det Γ = 2 Σ log s - α log
det A`` are exact whatever the root; for another α ``Γ`` is ``R Rᵀ``, its inverse the exact inverse of that,
and the determinant that of the exact power, from which ``R Rᵀ`` differs by at most twice the error of ``r``
per site.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.meshes.rational import Rational, fractional_power
from spatialdiff.covariance.meshes.sparse import DENSE_SITES, ShiftedOperator, multiply
from spatialdiff.domains import Domain
from spatialdiff.kernels import Matern

ROOTS = ("auto", "symmetric")
NORMALIZATIONS = ("none", "mean", "site")


class PowerCovariance(Covariance):
    """Base of the structures of the module; a subclass gives `_shift` and `_plain_scale`.

    Args:
        kernel: a Matérn kernel with one length scale.
        domain: a mesh or a graph.
        channels: see `Covariance`.
        operator: ``S`` and its root.
        power: ``α``.
        root: ``"auto"``, or ``"symmetric"`` for the square root ``D A^{-α/2}`` also where α is odd.
        tolerance: relative error of ``r``, which only fractional powers use.
        normalize: ``"none"``; ``"site"``: ``s`` is scaled so that the variance is the kernel's at every site;
            ``"mean"``: so that it is on average. Derivatives of a variance, so also of what is normalised,
            need every entry of Γ: up to `DENSE_SITES` sites; beyond, a backward pass through it raises
            RuntimeError.
    """

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Domain,
        channels: Channels,
        *,
        operator: ShiftedOperator,
        power: float,
        root: str,
        tolerance: float,
        normalize: str,
    ) -> None:
        super().__init__(domain, channels, kernel)
        name = type(self).__name__
        if root not in ROOTS:
            raise ValueError(f"{name}: root must be one of {ROOTS}, got {root!r}.")
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"{name}: normalize must be one of {NORMALIZATIONS}, got {normalize!r}.")
        if not 0 < tolerance < 1:
            raise ValueError(f"{name}: tolerance must be between 0 and 1, got {tolerance}.")
        self.operator, self.power = operator, power
        self.tolerance, self.normalize = tolerance, normalize
        self.root = root
        self.full_powers, self.beta = divmod(power / 2, 1.0)
        self.is_integer = float(power).is_integer()
        self.square_root = self.beta == 0 or root == "symmetric" or not self.is_integer

    # ---- given by a subclass
    @abstractmethod
    def _shift(self) -> Tensor:
        """``w``, shape ``(*batch, n)``, float64."""

    @abstractmethod
    def _plain_scale(self) -> Tensor:
        """``s`` without normalisation, shape ``(*batch, n)``, float64."""

    @abstractmethod
    def _site_variance(self) -> Tensor:
        """``σ²``, broadcastable to ``(*batch, n)``."""

    # ---- factors
    def _compute_shift(self) -> Tensor:
        return self._shift()

    def _compute_scale(self) -> Tensor:
        scale = self._plain_scale()
        if self.normalize == "none":
            return scale
        variance = scale.square() * self._power_diagonal(self._shift())
        if self.normalize == "mean":
            variance = variance.mean(-1, keepdim=True)
        return scale * (self._site_variance() / variance).sqrt()

    def _rational(self) -> Rational:
        """The function for ``x^{-β}`` on the spectrum of ``A``, its interval rounded outwards to powers of
        2.
        """
        w = self._factor("shift").detach()
        low, high = float(w.min()), float(w.max()) + self.operator.norm
        return fractional_power(
            self.beta, 2.0 ** math.floor(math.log2(low)), 2.0 ** math.ceil(math.log2(high)), self.tolerance
        )

    def _factor_grid(self) -> tuple[int, ...]:
        n = self.domain.size
        return (n,) if self.square_root else (n + self.operator.rows,)

    # ---- powers of A
    def _half(self, x: Tensor) -> Tensor:
        """``A^{-α/2} x``, by ``p`` solves and ``r(A)``."""
        w = self._factor("shift")
        for _ in range(int(self.full_powers)):
            x = self.operator.solve(w, x)
        if self.beta == 0:
            return x
        r = self._rational()
        total = r.constant * x
        for weight, pole in zip(r.weights, r.poles, strict=True):
            total = total + weight * self.operator.solve(w + pole, x)
        return total

    def _half_inverse(self, x: Tensor) -> Tensor:
        """The exact inverse of `_half`."""
        w = self._factor("shift")
        if self.beta > 0:
            r = self._rational()
            total = torch.zeros_like(x)
            for weight, zero in zip(r.inverse_weights, r.zeros, strict=True):
                total = total + weight * self.operator.solve(w + zero, x)
            x = r.inverse_at_zero * x + self.operator.apply(w, total)
        for _ in range(int(self.full_powers)):
            x = self.operator.apply(w, x)
        return x

    def _inverse_power(self, x: Tensor) -> Tensor:
        """``A^{-α} x``."""
        if not self.is_integer:
            return self._half(self._half(x))
        w = self._factor("shift")
        for _ in range(int(self.power)):
            x = self.operator.solve(w, x)
        return x

    def _forward_power(self, x: Tensor) -> Tensor:
        """``A^{α} x``."""
        if not self.is_integer:
            return self._half_inverse(self._half_inverse(x))
        w = self._factor("shift")
        for _ in range(int(self.power)):
            x = self.operator.apply(w, x)
        return x

    def _power_diagonal(self, w: Tensor) -> Tensor:
        """``diag(A^{-α})``, shape ``(*batch, n)``."""
        n = self.operator.size
        if n <= DENSE_SITES:
            eye = torch.eye(n, dtype=torch.float64, device=w.device).reshape(n, *(1,) * (w.dim() - 1), n)
            columns = self._inverse_power(eye.expand(n, *w.shape))
            return columns.movedim(0, -2).diagonal(dim1=-2, dim2=-1)
        if not self.is_integer:
            return self._fractional_diagonal(w)
        return self.operator.large_diagonal(w, int(self.power))

    def _fractional_diagonal(self, w: Tensor) -> Tensor:
        r"""``diag(A^{-m} r(A))``, ``α = m + γ``, ``r(x) ≈ x^{-γ}``, by partial fractions:

        ``x^{-m}/(x + t) = Σ_{j=1}^m (-1)^{m-j} x^{-j} / t^{m-j+1} + (-1)^m / (t^m (x + t))``.

        For large meshes, to about 1e-6: ``r`` to 1e-8, and what cancels for poles below the spectrum.
        """
        low, high = float(w.detach().min()), float(w.detach().max()) + self.operator.norm
        m, gamma = int(self.power), self.power - int(self.power)
        r = fractional_power(
            gamma, 2.0 ** math.floor(math.log2(low)), 2.0 ** math.ceil(math.log2(high)), 1e-8
        )
        coefficients = [0.0] * (m + 1)
        coefficients[m] = r.constant
        total = torch.zeros_like(w)
        for weight, pole in zip(r.weights, r.poles, strict=True):
            for j in range(1, m + 1):
                coefficients[j] += weight * (-1) ** (m - j) / pole ** (m - j + 1)
            total = total + weight * (-1) ** m / pole**m * self.operator.large_diagonal(w + pole, 1)
        if m == 0:
            total = total + r.constant
        for j in range(1, m + 1):
            total = total + coefficients[j] * self.operator.large_diagonal(w, j)
        return total

    # ---- operations
    def _color(self, z: Tensor) -> Tensor:
        scale = self._factor("scale")
        x = z.double()
        if self.square_root:
            return (scale * self._half(x)).to(z.dtype)
        w, n = self._factor("shift"), self.domain.size
        x = w.sqrt() * x[..., :n] + multiply(x[..., n:], self.operator.root.T)
        for _ in range(int(self.full_powers) + 1):
            x = self.operator.solve(w, x)
        return (scale * x).to(z.dtype)

    def _whiten(self, x: Tensor) -> Tensor:
        if not self.square_root:
            raise ValueError(
                f"whiten: with α = {self.power:g} (odd) the exact factor maps {self._factor_grid()[0]} "
                "values "
                f'to {self.domain.size} sites and has no inverse. Use root="symmetric" (a square factor to '
                'the stated tolerance), solve() and quad_form() for Γ⁻¹, or method="cosine" on a grid.'
            )
        return self._half_inverse(x.double() / self._factor("scale")).to(x.dtype)

    def _matmul(self, x: Tensor) -> Tensor:
        scale = self._factor("scale")
        return (scale * self._inverse_power(scale * x.double())).to(x.dtype)

    def _solve(self, x: Tensor) -> Tensor:
        scale = self._factor("scale")
        return (self._forward_power(x.double() / scale) / scale).to(x.dtype)

    def _log_det(self) -> Tensor:
        spread = 2 * self._factor("scale").log().sum(-1)
        return spread - self.power * self.operator.log_det(self._factor("shift"))

    def _variance(self) -> Tensor:
        return self._factor("scale").square() * self._factor("power_diagonal")

    def _compute_power_diagonal(self) -> Tensor:
        return self._power_diagonal(self._factor("shift"))

    # ---- what the report says
    def _describe(self) -> tuple[bool, str]:
        """Whether Γ is exact for the discrete operator, and a sentence on root, error and fill."""
        with torch.no_grad():
            w = self._factor("shift").reshape(-1, self.domain.size)[0].cpu().numpy()
            fill = self.operator.factor(w).nnz / max(self.operator.matrix.nnz, 1)
        text = f"factor fill {fill:.1f}"
        if self.beta > 0 and self.square_root:
            r = self._rational()
            text += f"; A^-{self.beta:g} by {len(r.poles)} poles, relative error {r.error:.1e}"
        return self.is_integer, text

    def _describe_log_det(self) -> str:
        if self.is_integer:
            return ""
        with torch.no_grad():
            error = 2 * self._rational().error * self.domain.size
        return f"of the exact fractional power, from which that of the root differs by at most {error:.1e}"


def matern_of(kernel: gpytorch.kernels.Kernel, name: str) -> tuple[Matern, float]:
    """The kernel as a Matérn kernel with one length scale, and its ν; raises ValueError otherwise."""
    if not isinstance(kernel, Matern):
        raise ValueError(
            f"{name} needs a Matern kernel of spatialdiff.kernels, got {kernel!r}. A nugget or another term "
            "is added to the field, not to its sparse precision."
        )
    if kernel.lengthscale.shape[-1] != 1:
        raise ValueError(
            f"{name} needs one length scale, got {kernel.lengthscale.shape[-1]}; for an anisotropic field "
            "scale the coordinates of the mesh by 1/ℓ per axis instead."
        )
    nu: float | Tensor = kernel.nu
    if isinstance(nu, Tensor):
        raise ValueError(
            f"{name}: ν sets the number of factorisations and has no derivative here; build the kernel "
            "without trainable_nu."
        )
    return kernel, nu
