r"""Spherical harmonics as a basis of all fields on a latitude–longitude grid without poles.

After the orthonormal DFT along longitude, order ``m`` has ``n_φ`` values. With the quadrature weights ``g_i
= √(2π w_i/n_λ)``, ``g P̄_lm`` for ``l = m, …, L`` are orthogonal, of one length, where the rule integrates
degree ``2L``; a QR decomposition makes them ``n_φ`` orthonormal columns ``Q_m``:

``c_m = Q_mᵀ g x_m``, ``x_m = g⁻¹ Q_m c_m``, ``Γ = Σ_l C_l Σ_m Y_lm Y_lmᵀ = F diag(γ) Fᵀ``, ``γ = C_l``.

The added columns hold what the grid cannot resolve, near the poles above all; they count as degree ``L +
1``. The basis is orthonormal for ``∫ x² dΩ``, not for the sum over the sites, so that white noise on the grid
is not diagonal in it.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.spheres.harmonics import Harmonics
from spatialdiff.domains.sphere import Sphere


def resolved_degree(sphere: Sphere) -> int:
    """The largest L whose harmonics are orthonormal under the grid's quadrature."""
    rows, columns = sphere.shape
    rule = 2 * rows - 1 if sphere.grid == "gauss_legendre" else rows - 1
    return min(rule // 2, (columns - 1) // 2)


class SphereBasis(Basis):
    """Harmonics of the degrees that the grid resolves, and what is left; modes ``(n_φ, n_λ//2 + 1)``.

    Coefficients are complex, the second axis is the order ``m ≥ 0``, as in a half spectrum.

    Raises:
        ValueError: a sphere with poles, where a row is one site.
    """

    grid: Sphere
    orthonormal = False

    def __init__(self, sphere: Sphere) -> None:
        super().__init__(sphere)
        if sphere.poles:
            raise ValueError(
                f"SphereBasis: {sphere} repeats each pole {sphere.shape[1]} times; use "
                "Sphere(..., poles=False) or a Gauss-Legendre grid."
            )
        self.modes = torch.Size((sphere.shape[0], sphere.shape[1] // 2 + 1))

    @property
    def degrees(self) -> Tensor:
        """Degree ``l`` of every mode, int64, shape ``modes``; ``L + 1`` for what the grid cannot resolve."""
        first, order = torch.arange(self.modes[0])[:, None], torch.arange(self.modes[1])
        return (first + order).clamp(max=resolved_degree(self.grid) + 1)

    @property
    def weights(self) -> Tensor:
        columns = self.grid.shape[1]
        weights = torch.full((self.modes[1],), 2.0, dtype=torch.float64)
        weights[0] = 1.0
        if columns % 2 == 0:
            weights[-1] = 1.0
        return weights.expand(self.modes).clone()

    @cached_property
    def _maps(self) -> tuple[Tensor, Tensor]:
        """``Q_mᵀ g`` and ``g⁻¹ Q_m``, ``(orders, n_φ, n_φ)`` each, float64."""
        with torch.inference_mode(False):
            return self._decompose()

    def _decompose(self) -> tuple[Tensor, Tensor]:
        rows = self.grid.shape[0]
        area = (self.grid.weights[:, 0] / self.grid.radius**2).sqrt()
        found = []
        top = resolved_degree(self.grid)
        harmonics, like = Harmonics(self.grid, top), torch.zeros((), dtype=torch.float64)
        for m in range(self.modes[1]):
            columns = torch.zeros(rows, rows, dtype=torch.float64)
            count = max(top - m + 1, 0)
            if count:
                for offset, table in enumerate(harmonics.order(m, like)):
                    north = table[:, : rows // 2].flip(-1)
                    south = table if offset == 0 else -table
                    columns[:, offset:count:2] = torch.cat([south, north], dim=-1).T
            found.append(complete(area[:, None] * columns, count))
        q = torch.stack(found)
        return q.mT * area, q / area[:, None]

    def analyze(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, dim=-1, norm="ortho")
        return self._by_order(self._maps[0], spectrum)

    def synthesize(self, c: Tensor) -> Tensor:
        result: Tensor = torch.fft.irfft(
            self._by_order(self._maps[1], c), n=self.grid.shape[1], dim=-1, norm="ortho"
        )
        return result

    def _by_order(self, maps: Tensor, values: Tensor) -> Tensor:
        matrices = maps.to(device=values.device, dtype=values.real.dtype)
        parts = torch.view_as_real(values.movedim(-1, -2).contiguous())
        moved: Tensor = torch.einsum("mij,...mjp->...mip", matrices, parts)
        result: Tensor = torch.view_as_complex(moved.contiguous()).movedim(-2, -1)
        return result


def complete(columns: Tensor, count: int) -> Tensor:
    """The first ``count`` columns, which are orthonormal, and others that make a square orthogonal matrix."""
    rows = len(columns)
    q, r = torch.linalg.qr(columns[:, :count], mode="complete")
    sign = torch.ones(rows, dtype=columns.dtype)
    sign[:count] = torch.where(r.diagonal()[:count] < 0, -1.0, 1.0)
    result: Tensor = q * sign
    return result
