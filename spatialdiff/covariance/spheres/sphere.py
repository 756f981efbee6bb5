r"""Γ of an isotropic kernel on a latitude–longitude grid, exactly.

``Γ_m(φ, φ') = Σ_j k(γ(φ, φ', λ_j)) exp(-2πi m j/n_λ)`` is the DFT over longitude differences, where ``γ`` is
the central angle, ``sin²(γ/2) = sin²((φ-φ')/2) + cos φ cos φ' sin²(λ/2)``, and ``k`` a function of ``γ`` or,
for a kernel of ``R³``, of the chord ``2a sin(γ/2)``. Nothing is truncated: all orders and degrees that the
grid can tell apart are there, so that the variance is ``k(0)`` at the pole as at the equator. See `orders`
for what follows.
"""

from __future__ import annotations

import math

import gpytorch
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.checks import warn
from spatialdiff.covariance.report import CovarianceReport
from spatialdiff.covariance.spheres.orders import OrderCovariance
from spatialdiff.domains.sphere import Sphere
from spatialdiff.kernels import StationaryKernel, at_lags

# kernel values in memory at a time
_CHUNK = 1_000_000


class SphereCovariance(OrderCovariance):
    """Isotropic Γ on a sphere: sampling, products, solving, whitening and ``log det``, all exact.

    ``O(n_λ n_φ²)`` kernel values and ``O(n_λ n_φ³)`` operations once, ``O(n_λ n_φ²)`` and FFTs per field.

    Args:
        kernel: a kernel of the great-circle angle, with a method ``at_angles``, or any isotropic kernel that
            is valid in ``R³``, taken at chordal distance; sums and products of these.
        domain: the sphere.
        channels: see `Covariance`.

    Raises:
        TypeError: another domain.
        ValueError: a kernel that is not isotropic, or not valid in ``R³``; at the first use, one that is not
            positive definite on the sphere.
    """

    method = "sphere"
    kernel: gpytorch.kernels.Kernel

    def __init__(self, kernel: gpytorch.kernels.Kernel, domain: Sphere, channels: Channels = None) -> None:
        super().__init__(domain, channels, kernel)
        check_isotropic(kernel, domain, type(self).__name__)

    @classmethod
    def from_spectrum(cls, domain: Sphere, spectrum: Tensor, channels: Channels = None) -> Covariance:
        """Γ with the angular power spectrum ``C_0, …, C_L``: a `HarmonicCovariance`; of ``(C, L+1)``, one of
        each independent channel, side by side.
        """
        from spatialdiff.covariance.compositions.blocks import BlockCovariance
        from spatialdiff.covariance.spheres.spherical_spectrum import HarmonicCovariance

        if not isinstance(spectrum, Tensor):
            raise TypeError(f"from_spectrum: the spectrum must be a tensor, got {type(spectrum).__name__}.")
        if spectrum.dim() == 2 and len(spectrum):
            if isinstance(channels, Tensor) or channels not in (None, len(spectrum)):
                raise ValueError(
                    f"from_spectrum: a spectrum of shape {tuple(spectrum.shape)} brings its {len(spectrum)} "
                    f"independent channels along; leave channels out, got {channels!r}."
                )
            if isinstance(spectrum, torch.nn.Parameter):
                raise ValueError(
                    "from_spectrum: spectra of several channels are learned as one Parameter each: "
                    "sd.BlockCovariance of a HarmonicCovariance per channel."
                )
            return BlockCovariance(*(HarmonicCovariance(one, domain) for one in spectrum))
        return HarmonicCovariance(spectrum, domain, channels)

    def _compute_matrix(self) -> Tensor:
        columns, half, radius = self.domain.shape[1], self._half, self.domain.radius
        latitude = self.domain.latitudes.flip(0)[:half].to(self.device)
        cosine = self.domain.cosines.flip(0)[:half].to(self.device)
        step = torch.arange(columns // 2 + 1, dtype=torch.float64, device=self.device) * (math.pi / columns)
        sine2, cosine2 = step.sin().square(), step.cos().square()
        scale = self._equator(math.sqrt(0.5), 1.0)[:, 0]
        first, second = torch.triu_indices(half, half, device=self.device)

        def parities(i: Tensor, j: Tensor) -> Tensor:
            """``Γ_{m±}`` of pairs of rows, ``(*batch, 2, orders, pairs)``."""
            product = (cosine[i] * cosine[j])[:, None]
            apart = ((latitude[i] - latitude[j]) / 2).sin().square()[:, None]
            across = ((latitude[i] + latitude[j]) / 2).sin().square()[:, None]
            # a site and the other one in the same hemisphere, and its mirror image in the other
            near = at_separation(self.kernel, apart + product * sine2, across + product * cosine2, radius)
            far = at_separation(self.kernel, across + product * sine2, apart + product * cosine2, radius)
            both = torch.stack([near + far, near - far], dim=-3) * (scale[i] * scale[j])[:, None]
            transformed: Tensor = torch.fft.hfft(both.to(torch.complex128), n=columns)
            return transformed[..., : columns // 2 + 1].mT

        size = max(1, _CHUNK // len(step))
        parts = []
        graph = torch.is_grad_enabled() and any(p.requires_grad for p in self.kernel.parameters())
        for i, j in zip(first.split(size), second.split(size), strict=True):
            if graph and len(first) > size:
                # the kernel's own intermediate results would be many times Γ
                part: Tensor = checkpoint(parities, i, j, use_reentrant=False)
            else:
                part = parities(i, j)
            parts.append(part)
        index = torch.empty(half, half, dtype=torch.long, device=self.device)
        index[first, second] = index[second, first] = torch.arange(len(first), device=self.device)
        matrix = torch.cat(parts, dim=-1)[..., index]
        site = ~self.void_
        return matrix * (site.unsqueeze(-1) & site.unsqueeze(-2))

    def _variance(self) -> Tensor:
        zero = torch.zeros(1, dtype=torch.float64, device=self.device)
        value = at_separation(self.kernel, zero, zero + 1, self.domain.radius)
        return value.expand(*self.batch_shape, 1).unsqueeze(-1)

    def _report(self) -> CovarianceReport:
        with torch.no_grad():
            self._factor("root")
        reason = "isotropic kernel on a latitude-longitude grid: DFT along longitude, Cholesky per order"
        if self._jitter:
            reason += "; singular to working precision, the diagonal is raised by the covariance error"
        bound = self._jitter * float(self._variance().detach().max())
        return CovarianceReport(self.method, exact=True, error_bound=bound, reason=reason)


def at_separation(kernel: gpytorch.kernels.Kernel, sine2: Tensor, cosine2: Tensor, radius: float) -> Tensor:
    """``k`` at the central angle ``γ`` with given ``sin²(γ/2)`` and ``cos²(γ/2)``, → ``(*batch, ...)``."""
    if not of_angles(kernel):
        chord = 2 * radius * sine2.sqrt()
        return at_lags(kernel, torch.stack([chord, *(torch.zeros_like(chord),) * 2], dim=-1))
    if isinstance(kernel, gpytorch.kernels.AdditiveKernel | gpytorch.kernels.ProductKernel):
        total: Tensor | None = None
        add = isinstance(kernel, gpytorch.kernels.AdditiveKernel)
        for part in kernel.kernels:
            value = at_separation(part, sine2, cosine2, radius)
            total = value if total is None else (total + value if add else total * value)
        assert total is not None
        return total
    angles: Tensor = kernel.at_angles(2 * torch.atan2(sine2.sqrt(), cosine2.sqrt()))
    return angles


def of_angles(kernel: gpytorch.kernels.Kernel) -> bool:
    """Whether ``kernel`` or a part of it is a function of the great-circle angle."""
    return any(hasattr(part, "at_angles") for part in kernel.modules())


def check_isotropic(kernel: gpytorch.kernels.Kernel, sphere: Sphere, structure: str) -> None:
    """Raise unless ``kernel`` is a function of the angle, or of the length of ``x - x'`` in ``R³``."""
    if not isinstance(kernel, gpytorch.kernels.Kernel):
        raise TypeError(f"{structure} needs a kernel, got {type(kernel).__name__}.")
    if of_angles(kernel):
        parts = [kernel]
        while parts:
            part = parts.pop()
            if hasattr(part, "at_angles"):
                continue
            if of_angles(part):
                parts.extend(part.kernels)
            else:
                check_isotropic(part, sphere, structure)
        return
    advice = "An isotropic field on a sphere needs one that depends on the distance alone."
    if not kernel.is_stationary:
        raise ValueError(f"{structure}: {type(kernel).__name__} is not stationary. {advice}")
    directions = torch.cat(
        [torch.eye(3), torch.tensor([[1.0, 1, 0], [1, -1, 0], [1, 1, 1], [-2, 1, 2]])]
    ).double()
    directions = directions / directions.norm(dim=-1, keepdim=True)
    lengths = 2 * sphere.radius * torch.tensor([0.003, 0.03, 0.3, 1.0], dtype=torch.float64)
    with torch.no_grad():
        values = at_lags(kernel, lengths[:, None, None] * directions)
    if float((values - values[..., :1]).abs().max()) > 1e-6 * float(values.abs().max()):
        raise ValueError(f"{structure}: {kernel!r} is not isotropic in R³. {advice}")
    for part in kernel.modules():
        if isinstance(part, StationaryKernel) and part.has_lengthscale:
            _check_lengthscale(part, sphere)


def _check_lengthscale(kernel: StationaryKernel, sphere: Sphere) -> None:
    shortest, longest = (float(v) for v in kernel.lengthscale.detach().aminmax())
    step = sphere.radius * max(2 * math.pi / sphere.shape[1], math.pi / sphere.shape[0])
    name = type(kernel).__name__
    if shortest < step * (1 - 1e-9):
        warn(
            f"{name}: length scale {shortest:g} is below the spacing {step:g} of the grid at the equator: "
            "neighbouring sites are nearly independent. Length scales are in the units of the radius, "
            f"{sphere.radius:g}; use a larger one, a finer grid, or a Nugget."
        )
    elif longest > 2 * sphere.radius * (1 + 1e-9):
        warn(
            f"{name}: length scale {longest:g} is beyond the diameter {2 * sphere.radius:g} of the sphere: "
            "fields are nearly constant. Length scales are in the units of the radius."
        )
