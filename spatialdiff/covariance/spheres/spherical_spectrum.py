r"""Γ of an angular power spectrum ``C_0, …, C_L``: ``k(γ) = Σ_l (2l+1)/(4π) C_l P_l(cos γ)``.

``x = Σ_lm √C_l z_lm Y_lm`` with the ``(L+1)²`` real orthonormal harmonics of `harmonics`, degree 0 included,
has exactly that covariance [Marinucci & Peccati 2011, section 5.2], with the variance ``Σ_l (2l+1)/(4π) C_l``
at every latitude. Of a kernel with more degrees, those above ``L`` are left out: no covariance is off by more
than their variance, ``k(0) - Σ_{l≤L} (2l+1)/(4π) C_l``.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.spheres.harmonics import Harmonics, alias
from spatialdiff.covariance.spheres.orders import OrderCovariance
from spatialdiff.covariance.spheres.sphere import at_separation, check_isotropic, of_angles
from spatialdiff.covariance.spheres.sphere_basis import SphereBasis, resolved_degree
from spatialdiff.domains.sphere import Sphere


class HarmonicCovariance(OrderCovariance):
    """Isotropic Γ on a sphere by spherical harmonics; ``R`` takes ``(L+1, L+1)`` values of white noise.

    ``O(L² n_φ)`` and FFTs per field. Solving and ``log det`` are those of the matrix on the grid, which is
    invertible only where there are at least as many harmonics as sites.

    Args:
        spectrum: ``C_0, …, C_L``, non-negative, shape ``(L+1,)``, a `torch.nn.Parameter` where it is to be
            learned; or a kernel.
        domain: the sphere.
        channels: see `Covariance`.
        lmax: ``L``, for a kernel.

    Raises:
        ValueError: a spectrum that is negative, not finite or of another shape; a kernel without ``lmax`` or
            that is not isotropic.
    """

    method = "harmonics"
    # a factor of degrees that are missing is no matter of rounding
    _jitters = ()
    spectrum: Tensor | None

    def __init__(
        self,
        spectrum: Tensor | gpytorch.kernels.Kernel,
        domain: Sphere,
        channels: Channels = None,
        *,
        lmax: int | None = None,
    ) -> None:
        if isinstance(spectrum, Tensor):
            if lmax is not None:
                raise ValueError("HarmonicCovariance: lmax is for a kernel; a spectrum has its own length.")
            super().__init__(domain, channels)
            if isinstance(spectrum, torch.nn.Parameter):
                self.register_parameter("spectrum", spectrum)
            else:
                self.register_buffer("spectrum", spectrum.detach().to(torch.float64).clone())
            degrees = spectrum.numel() - 1
        else:
            if lmax is None:
                raise ValueError(
                    "HarmonicCovariance: a kernel has degrees without end; give lmax, or use "
                    "SphereCovariance, "
                    "which leaves none out."
                )
            super().__init__(domain, channels, spectrum)
            check_isotropic(spectrum, domain, type(self).__name__)
            self.register_buffer("spectrum", None)
            degrees = lmax
        self.harmonics = Harmonics(domain, degrees)
        if not domain.poles and degrees <= resolved_degree(domain):
            self.basis = SphereBasis(domain)
        self._coefficients()

    def _coefficients(self) -> Tensor:
        """``C_l``, ``(*batch, L+1)``."""
        if self.kernel is not None:
            return _of_kernel(self.kernel, self.harmonics.lmax, self.domain.radius).to(self.device)
        values = self.spectrum
        assert values is not None
        if values.dim() != 1 or not bool((torch.isfinite(values) & (values >= 0)).all()):
            raise ValueError(
                "HarmonicCovariance: the spectrum needs shape (L+1,), finite and non-negative, got shape "
                f"{tuple(values.shape)} and smallest entry {float(values.detach().min()):.3g}."
            )
        if not bool((values > 0).any()):
            raise ValueError("HarmonicCovariance: the spectrum is 0 at every degree.")
        return values.double()

    def _compute_spectrum(self) -> Tensor:
        return self._coefficients()

    def _compute_scale(self) -> Tensor:
        values = self._factor("spectrum")
        root = torch.where(values > 0, torch.where(values > 0, values, 1.0).sqrt(), 0.0)
        return root[..., self.harmonics.degrees]

    def _compute_matrix(self) -> Tensor:
        values = self._factor("spectrum")
        columns, half = self.domain.shape[1], self._half
        orders: list[list[Tensor]] = [[] for _ in range(columns // 2 + 1)]
        scale = self._equator(1.0, math.sqrt(2.0))[:, 0]
        for m in range(self.harmonics.lmax + 1):
            parities = []
            for offset, table in enumerate(self.harmonics.order(m, values)):
                weighted = table * scale
                parities.append(weighted.mT @ (values[..., m + offset :: 2, None] * weighted))
            target, twice, _ = alias(m, columns)
            orders[target].append(torch.stack(parities, dim=-3) * (columns * (2 if twice else 1)))
        zero = values.new_zeros(*self.batch_shape, 2, half, half)
        matrix = torch.stack([torch.stack([zero, *found]).sum(0) for found in orders], dim=-3)
        site = ~self.void_
        return matrix * (site.unsqueeze(-1) & site.unsqueeze(-2))

    def _variance(self) -> Tensor:
        values = self._factor("spectrum")
        degrees = torch.arange(values.shape[-1], dtype=torch.float64, device=values.device)
        weights = (2 * degrees + 1) / (4 * math.pi)
        return (values * weights).sum(-1)[..., None, None]

    def spatial_eigenvalues(self) -> Tensor:
        """``C_l`` of every mode of `SphereBasis`, 0 above degree L, ``(*batch, *modes)``."""
        if not isinstance(self.basis, SphereBasis):
            raise ValueError(
                f"HarmonicCovariance up to degree {self.harmonics.lmax} is diagonal in no fast basis on "
                f"{self.domain}, which does not resolve them: use a Gauss-Legendre grid of at least "
                f"({self.harmonics.lmax + 1}, {2 * self.harmonics.lmax + 1})."
            )
        degrees = self.basis.degrees.to(self.device)
        values = torch.nn.functional.pad(self._factor("spectrum"), (0, 1))
        return values[..., degrees.clamp(max=self.harmonics.lmax + 1)]

    def _factor_grid(self) -> tuple[int, ...]:
        return (self.harmonics.lmax + 1,) * 2

    def _color(self, z: Tensor) -> Tensor:
        return self.harmonics.synthesis(z * self._factor("scale", z.dtype))

    def _whiten(self, x: Tensor) -> Tensor:
        raise ValueError(
            f"whiten: R takes {self.harmonics.lmax + 1} x {self.harmonics.lmax + 1} coefficients to "
            f"{self.domain.size} sites and has no inverse. Use SphereCovariance with a kernel, whose root "
            "is square."
        )

    def _invertible_root(self, dtype: torch.dtype) -> Tensor:
        terms = (self.harmonics.lmax + 1) ** 2
        if terms < self.domain.size:
            raise ValueError(
                f"Γ is singular: {terms} harmonics up to degree {self.harmonics.lmax} on {self.domain.size} "
                "sites. It can be sampled and be the noise of any process, but not inverted: such fields "
                "have no density on the sites. Where one is needed, use SphereCovariance with a kernel, "
                "which leaves no degree out, and a process of the same coefficients in every mode (VP, CLD)."
            )
        return super()._invertible_root(dtype)

    @property
    def report(self) -> CovarianceReport:
        reason = f"spherical harmonics up to degree {self.harmonics.lmax}"
        if self.kernel is None:
            return CovarianceReport(
                self.method, exact=True, error_bound=0.0, reason=f"{reason}: a given spectrum"
            )
        zero = torch.zeros(1, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            variance = at_separation(self.kernel, zero, zero + 1, self.domain.radius)
            missing = float((variance - self._variance()[..., 0]).max().clamp_min(0.0))
        reason += f"; the others hold {missing / float(variance.max()):.3g} of the variance"
        return CovarianceReport(self.method, exact=False, error_bound=missing, reason=reason)


def _of_kernel(kernel: gpytorch.kernels.Kernel, lmax: int, radius: float) -> Tensor:
    from spatialdiff.kernels.chordal import Chordal
    from spatialdiff.kernels.spherical_domain import legendre_coefficients

    return legendre_coefficients(kernel if of_angles(kernel) else Chordal(kernel, radius), lmax)
