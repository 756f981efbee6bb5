r"""Product kernels on grids: ``Γ_s = ⊗_b Γ_b + s² I``, exact in ``O(n Σ n_b)``.

``Γ_b`` is the covariance along block ``b``, a group of axes, with ``Γ_b = Q_b Λ_b Q_bᵀ``. Everything follows
from ``Q = ⊗ Q_b`` and the eigenvalues ``d = ⊗ Λ_b + s²``: the symmetric root ``R = Q √d Qᵀ``, ``Γ⁻¹ = Q d⁻¹
Qᵀ``, ``log det Γ = Σ log d``, ``xᵀ Γ⁻¹ x = ‖d^{-1/2} ∘ Qᵀ x‖²``. Axes may be unevenly spaced, and periodic
where the kernel is stationary along them.
"""

from __future__ import annotations

from typing import Any

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.checks import check_lengthscale
from spatialdiff.covariance.grids.separation import Separation
from spatialdiff.covariance.grids.spectral import finite_or_raise
from spatialdiff.covariance.grids.tensor_product import Layout, Power, at, spectral_function
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains import Domain, Grid, RectilinearGrid

# an eigenvalue between -TOLERANCE and 0 times the largest is rounding; below, the input is no covariance
TOLERANCE = 1e-10


class KroneckerCovariance(Covariance):
    """Γ of a kernel that is a product over axes or groups of axes, plus a nugget.

    Separable are: `Gaussian` with any length scales; kernels on separate axes (`Separable`, or gpytorch
    kernels with ``active_dims``); products of these; every kernel on one axis. `Nugget` may be added.

    Args:
        kernel: a gpytorch kernel.
        domain: a `Grid`, or a `RectilinearGrid` with unevenly spaced axes.
        channels: see `Covariance`.

    Raises:
        TypeError: another domain.
        ValueError: a kernel that is not separable over the axes, or not stationary along a periodic one.
    """

    method = "kronecker"
    domain: Grid | RectilinearGrid

    def __init__(self, kernel: gpytorch.kernels.Kernel, domain: Domain, channels: Channels = None) -> None:
        if not isinstance(domain, Grid | RectilinearGrid):
            raise TypeError(
                f"KroneckerCovariance needs a Grid or a RectilinearGrid, got {type(domain).__name__}."
            )
        if not isinstance(kernel, gpytorch.kernels.Kernel):
            raise TypeError(f"KroneckerCovariance needs a gpytorch kernel, got {type(kernel).__name__}.")
        super().__init__(domain, channels, kernel)
        if isinstance(domain, Grid):
            check_lengthscale(kernel, domain)
        self._found: Separation | None = None
        self._layout = Layout(
            domain.shape,
            tuple(block.axes for block in self._separation.blocks),
            len(self.batch_shape),
        )
        self.basis = KroneckerBasis(self)

    @property
    def _separation(self) -> Separation:
        if self._found is None:
            assert self.kernel is not None
            self._found = Separation(self.kernel, self.domain)
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        # a copy has a kernel of its own, and separates that one
        return {**super().__getstate__(), "_found": None}

    # ---- factors, those of all blocks one behind the other
    def _compute_matrices(self) -> Tensor:
        count = len(self._separation.blocks)
        matrices = [self._separation.matrix(number, self.device) for number in range(count)]
        return torch.cat([m.flatten(-2).expand(*self.batch_shape, -1) for m in matrices], dim=-1)

    def _compute_nugget(self) -> Tensor:
        value = self._separation.nugget(self.device)
        assert value is not None
        return value.expand(self.batch_shape)

    def _compute_vectors(self) -> Tensor:
        return self._decompose()[1]

    def _compute_values(self) -> Tensor:
        return self._decompose()[0]

    def _decompose(self) -> tuple[Tensor, Tensor]:
        values, vectors = [], []
        for matrix in self._split(self._factor("matrices").detach()):
            value, vector = torch.linalg.eigh(matrix)
            smallest, largest = float((value[..., 0] / value[..., -1]).min()), float(value.max())
            if not smallest >= -TOLERANCE:
                raise ValueError(
                    f"KroneckerCovariance: the kernel is not positive definite on {self.domain}: smallest "
                    f"eigenvalue of a factor {smallest * largest:.3g}, largest {largest:.3g}."
                )
            # what is left below 0 is rounding of an eigenvalue that is 0 to working precision
            values.append(value.clamp_min(0.0))
            vectors.append(vector.flatten(-2))
        return torch.cat(values, dim=-1), torch.cat(vectors, dim=-1)

    def _compute_total(self) -> Tensor:
        return self._sum(self._split(self._factor("values"), vectors=True), detached=True)

    def _compute_root(self) -> Tensor:
        return at(self._factor("total"), "root")

    def _compute_inverse_root(self) -> Tensor:
        return at(self._invertible(), "inverse_root")

    def _compute_inverse(self) -> Tensor:
        return at(self._invertible(), "inverse")

    def _split(self, packed: Tensor, *, vectors: bool = False) -> list[Tensor]:
        sizes = self._layout.sizes
        parts = packed.split([n if vectors else n * n for n in sizes], dim=-1)
        if vectors:
            return list(parts)
        return [part.unflatten(-1, (n, n)) for part, n in zip(parts, sizes, strict=True)]

    def _fixed(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        with torch.no_grad():
            return self._factor(name, dtype)

    def _vectors(self, dtype: torch.dtype) -> list[Tensor]:
        return self._split(self._fixed("vectors", dtype))

    def _nugget(self, *, detached: bool = False) -> Tensor | None:
        if not self._separation.has_nugget:
            return None
        return self._fixed("nugget") if detached else self._factor("nugget")

    def _sum(self, values: list[Tensor], *, detached: bool) -> Tensor:
        """``d`` from the eigenvalues of the blocks."""
        product, nugget = self._layout.product(values), self._nugget(detached=detached)
        if nugget is None:
            return product
        return product + nugget.reshape(*nugget.shape, *(1,) * len(self._layout.sizes))

    def _invertible(self) -> Tensor:
        total, eps = self._fixed("total"), torch.finfo(torch.float64).eps
        ranges = [total.flatten(-len(self._layout.sizes))]
        if not self._separation.has_nugget:
            ranges = self._split(self._fixed("values"), vectors=True)
        for values in ranges:
            smallest, largest = values.amin(-1), values.amax(-1)
            if bool((smallest <= eps * largest).any()):
                raise ValueError(
                    "Γ is singular to working precision: smallest over largest eigenvalue "
                    f"{float((smallest / largest).min()):.3g} in {'Γ' if len(ranges) == 1 else 'a factor'}. "
                    "It can be sampled, not inverted; add a Nugget to the kernel, or use a rougher or "
                    "shorter one."
                )
        return total

    # ---- operations
    def _function(self, x: Tensor, power: Power) -> Tensor:
        result = spectral_function(
            self._layout.fold(x),
            self._layout,
            power,
            matrices=self._split(self._factor("matrices")),
            nugget=self._nugget(),
            vectors=self._vectors,
            values=self._split(self._fixed("values"), vectors=True),
            total=self._fixed("total"),
            multiplier=self._fixed(power, x.dtype),
        )
        return self._layout.unfold(result)

    def _color(self, z: Tensor) -> Tensor:
        return self._function(z, "root")

    def _whiten(self, x: Tensor) -> Tensor:
        return self._function(x, "inverse_root")

    def _solve(self, x: Tensor) -> Tensor:
        return self._function(x, "inverse")

    def _matmul(self, x: Tensor) -> Tensor:
        folded, nugget = self._layout.fold(x), self._nugget()
        result = self._layout.apply(self._split(self._factor("matrices", x.dtype)), folded)
        if nugget is not None:
            result = result + nugget.reshape(*nugget.shape, *(1,) * len(self._layout.sizes)).to(x) * folded
        return self._layout.unfold(result)

    def _eigenvalues(self) -> Tensor:
        """``d``, folded, differentiable: ``dλ = qᵀ dΓ q``, which any symmetric function of them may use."""
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in self._tracked())):
            return self._factor("total")
        values = [
            value + ((q * (matrix @ q)).sum(-2) - (q * (matrix.detach() @ q)).sum(-2))
            for value, q, matrix in zip(
                self._split(self._fixed("values"), vectors=True),
                self._vectors(torch.float64),
                self._split(self._factor("matrices")),
                strict=True,
            )
        ]
        return self._sum(values, detached=False)

    def _log_det(self) -> Tensor:
        self._invertible()
        return self._eigenvalues().log().flatten(-len(self._layout.sizes)).sum(-1)

    def quad_form(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in self._tracked())):
            return super().quad_form(x)
        field = self._on_channels(self._prepare(x, self.event_shape, "quad_form"), "inverse_root")
        power = self._spatial(self._power, field, self.domain.shape)
        return finite_or_raise(power.sum(self._event_axes()), x)

    def _power(self, x: Tensor) -> Tensor:
        """``(Qᵀ x)²/d``, whose sum is ``xᵀ Γ_s⁻¹ x``: one way through the blocks."""
        modes = self._layout.apply([q.mT for q in self._vectors(x.dtype)], self._layout.fold(x))
        return self._layout.unfold(modes.square() * self._fixed("inverse", x.dtype))

    def _variance(self) -> Tensor:
        diagonals = [m.diagonal(dim1=-2, dim2=-1) for m in self._split(self._factor("matrices"))]
        return self._layout.unfold(self._sum(diagonals, detached=False))

    def spatial_eigenvalues(self) -> Tensor:
        return self._layout.unfold(self._eigenvalues())

    def _report(self) -> CovarianceReport:
        with torch.no_grad():
            total = self._factor("total").flatten(-len(self._layout.sizes))
            ratio = float((total.amin(-1) / total.amax(-1)).min())
        blocks = " ⊗ ".join(
            "axis " + str(b.axes[0]) if len(b.axes) == 1 else f"axes {b.axes}"
            for b in self._separation.blocks
        )
        return CovarianceReport(
            self.method,
            exact=True,
            error_bound=0.0,
            condition_number=1 / ratio if ratio > 0 else float("inf"),
            reason=f"a product kernel: {blocks}{', plus a nugget' if self._separation.has_nugget else ''}",
        )


class KroneckerBasis(Basis):
    """The eigenvectors ``⊗ Q_b`` of a Kronecker product, with the present parameters of its kernel."""

    def __init__(self, covariance: KroneckerCovariance) -> None:
        super().__init__(covariance.domain)
        self.modes = torch.Size(covariance.domain.shape)
        self._covariance = covariance

    def _apply(self, x: Tensor, *, transposed: bool) -> Tensor:
        gamma = self._covariance
        vectors = gamma._vectors(x.dtype)
        folded = gamma._layout.fold(x)
        return gamma._layout.unfold(
            gamma._layout.apply([q.mT for q in vectors] if transposed else vectors, folded)
        )

    def analyze(self, x: Tensor) -> Tensor:
        return self._apply(x, transposed=True)

    def synthesize(self, c: Tensor) -> Tensor:
        return self._apply(c, transposed=False)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, KroneckerBasis)
            and self.grid == other.grid
            and self._covariance._layout == other._covariance._layout
            and torch.equal(self._covariance._fixed("vectors"), other._covariance._fixed("vectors"))
        )

    def __hash__(self) -> int:
        return hash((type(self), self.grid))
