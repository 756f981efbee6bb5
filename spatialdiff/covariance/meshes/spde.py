r"""Matérn fields on meshes: ``(κ² - Δ)^{α/2} (τ x) = W``, ``α = ν + d/2``, by linear finite elements.

With lumped mass ``C = diag(c)`` and stiffness ``G`` (`finite_elements`), ``A = diag(κ²) + C^{-1/2} G
C^{-1/2}`` and

``Γ = D A^{-α} D``, ``D = diag(1/(τ_i √c_i))``, ``κ = √(2ν)/ℓ``, ``τ² = Γ(ν) / (Γ(α) (4π)^{d/2} κ^{2ν} σ²)``,

so that for ``α = 1, 2, 3, …`` the precision is ``τK τ``, ``τ K C⁻¹K τ``, ``τ K C⁻¹K C⁻¹K τ``, … with ``K =
diag(κ² c) + G`` (Lindgren, Rue & Lindström 2011, equations 2, 4 and 10, with the lumped mass of section 2.3);
``κ`` and ``τ`` may vary from vertex to vertex (section 3.2, there). Other α by the operator-based rational
approximation (Bolin & Kirchner 2020).

The boundary is free (Neumann): within about ``2ℓ`` of it the variance is larger, up to twice on a straight
boundary (``2^d`` times in a corner), and correlations are longer. Let the mesh extend ``2ℓ`` beyond the sites
of interest, or give ``normalize="site"``.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels
from spatialdiff.covariance.checks import warn
from spatialdiff.covariance.meshes.finite_elements import lumped_mass, stiffness_root
from spatialdiff.covariance.meshes.power import PowerCovariance, matern_of
from spatialdiff.covariance.meshes.sparse import ShiftedOperator
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.domains.mesh import Mesh


class SPDECovariance(PowerCovariance):
    """The Matérn SPDE of the module on a mesh, exact for its finite-element discretisation.

    Differentiable in ``ℓ``, ``σ²`` and the fields ``ℓ(x)``, ``σ²(x)``; ν is a constant. One sparse
    factorisation per value of ``κ`` (and per pole where α is fractional), kept until a parameter changes.

    Args:
        kernel: `Matern`, with one length scale; any ν > 0.
        domain: the mesh; ``d`` is the dimension of its elements.
        channels: see `Covariance`.
        lengthscale: ``ℓ`` at every vertex, ``(n,)`` or ``(*batch, n)``, in place of the kernel's.
        kappa: ``κ`` at every vertex, instead of ``lengthscale``.
        variance: ``σ²`` at every vertex, in place of the kernel's (local: it is the variance where κ varies
            slowly).
        root: ``"auto"``: exact, and square unless α is odd; ``"symmetric"``: always square, ``D A^{-α/2}``,
            through a rational function where α is not even.
        tolerance: largest relative error of the rational function (of Γ: twice that).
        normalize: ``"none"``; ``"site"``: the variance is σ² at every vertex, boundary included; ``"mean"``:
            on average. Derivatives of what is normalised: up to 1024 vertices.

    Raises:
        TypeError: a domain that is not a mesh.
        ValueError: a kernel that is not an isotropic Matérn; fields of the wrong shape, or not positive;
            ``lengthscale`` and ``kappa`` both.
    """

    method = "spde"
    domain: Mesh
    lengthscale_field: Tensor | None
    kappa_field: Tensor | None
    variance_field: Tensor | None
    _mass: Tensor

    def __init__(
        self,
        kernel: gpytorch.kernels.Kernel,
        domain: Mesh,
        channels: Channels = None,
        *,
        lengthscale: Tensor | None = None,
        kappa: Tensor | None = None,
        variance: Tensor | None = None,
        root: str = "auto",
        tolerance: float = 1e-8,
        normalize: str = "none",
    ) -> None:
        if not isinstance(domain, Mesh):
            raise TypeError(
                f"SPDECovariance needs a Mesh, got {type(domain).__name__}; Mesh.from_grid(grid) and "
                "Mesh.delaunay(points) make one."
            )
        if lengthscale is not None and kappa is not None:
            raise ValueError("SPDECovariance: give lengthscale= or kappa=, not both.")
        self_kernel, nu = matern_of(kernel, "SPDECovariance")
        mass = lumped_mass(domain)
        super().__init__(
            self_kernel,
            domain,
            channels,
            operator=ShiftedOperator(stiffness_root(domain).multiply(mass.rsqrt().numpy()[None, :])),
            power=nu + domain.element_dimension / 2,
            root=root,
            tolerance=tolerance,
            normalize=normalize,
        )
        self.nu = nu
        self.register_buffer("_mass", mass, persistent=False)
        for name, field in (("lengthscale", lengthscale), ("kappa", kappa), ("variance", variance)):
            self._hold(name, field)
        self._check_resolution()

    def _hold(self, name: str, field: Tensor | None) -> None:
        label = f"{name}_field"
        if field is None:
            self.register_buffer(label, None)
            return
        n = self.domain.size
        if not isinstance(field, Tensor) or not field.is_floating_point() or field.shape[-1:] != (n,):
            given = tuple(field.shape) if isinstance(field, Tensor) else type(field).__name__
            raise ValueError(
                f"SPDECovariance: {name} must be a real tensor (..., {n}), one value per vertex, got {given}."
            )
        lead = (*self.batch_shape, n)[-field.dim() :]
        if field.dim() > len(self.batch_shape) + 1 or any(
            size not in (1, full) for size, full in zip(field.shape, lead, strict=True)
        ):
            raise ValueError(
                f"SPDECovariance: {name} has shape {tuple(field.shape)}, which does not broadcast to "
                f"{(*self.batch_shape, n)} (batch of the kernel, vertices); give the kernel a batch_shape."
            )
        bad = ~(torch.isfinite(field) & (field > 0))
        if bool(bad.any()):
            raise ValueError(
                f"SPDECovariance: {name} must be positive and finite, it is not at {int(bad.sum())} of "
                f"{field.numel()} vertices (first: {int(bad.reshape(-1).nonzero()[0])})."
            )
        if isinstance(field, torch.nn.Parameter):
            self.register_parameter(label, field)
        else:
            self.register_buffer(label, field.double())

    # ---- parameters at the vertices
    def _kappa(self) -> Tensor:
        n = self.domain.size
        if self.kappa_field is not None:
            return self.kappa_field.double().expand(*self.batch_shape, n)
        if self.lengthscale_field is not None:
            ell = self.lengthscale_field.double()
        else:
            assert self.kernel is not None
            ell = self.kernel.lengthscale.double().reshape(*self.batch_shape, 1)
        return (math.sqrt(2 * self.nu) / ell).expand(*self.batch_shape, n)

    def _shift(self) -> Tensor:
        return self._kappa().square()

    def _site_variance(self) -> Tensor:
        if self.variance_field is not None:
            return self.variance_field.double()
        assert self.kernel is not None
        result: Tensor = self.kernel.variance.double().reshape(*self.batch_shape, 1)
        return result

    def _plain_scale(self) -> Tensor:
        d = self.domain.element_dimension
        log_constant = math.lgamma(self.power) - math.lgamma(self.nu) + d / 2 * math.log(4 * math.pi)
        kappa = self._kappa()
        inverse_tau = (math.exp(log_constant) * self._site_variance() * kappa.pow(2 * self.nu)).sqrt()
        return inverse_tau * self._mass.rsqrt()

    # ---- what it says about itself
    def _check_resolution(self) -> None:
        with torch.no_grad():
            ell = math.sqrt(2 * self.nu) / self._kappa()
            shortest, longest = float(ell.min()), float(ell.max())
        edge = float(self.domain.edge_lengths().mean())
        sites = self.domain.coordinates()
        extent = float((sites.amax(0) - sites.amin(0)).norm())
        if shortest < edge * (1 - 1e-9):
            warn(
                f"SPDECovariance: length scale {shortest:g} is below the mean edge {edge:g} of the mesh: its "
                "finite elements cannot follow the field, and variances are far from the kernel's. Use a "
                "finer mesh."
            )
        if longest > extent:
            warn(
                f"SPDECovariance: length scale {longest:g} is beyond the extent {extent:g} of the mesh: the "
                "boundary dominates the field. Use a shorter one or a larger mesh."
            )

    def _report(self) -> CovarianceReport:
        exact, text = self._describe()
        with torch.no_grad():
            shortest = float((math.sqrt(2 * self.nu) / self._kappa()).min())
        edge = float(self.domain.edge_lengths().mean())
        reason = (
            f"Matérn SPDE, α = {self.power:g}, linear finite elements with free boundary: "
            f"{'exact' if exact else 'to the stated error'} for the discrete operator, which follows the "
            f"kernel to order (edge/ℓ)², here ({edge / shortest:.2g})², away from the boundary (2ℓ); {text}"
        )
        if self.normalize == "none":
            reason += "; near the boundary the variance is up to twice the kernel's per free direction"
        else:
            reason += f"; variance normalised: {self.normalize}"
        return CovarianceReport(self.method, exact=False, reason=reason, log_det=self._describe_log_det())
