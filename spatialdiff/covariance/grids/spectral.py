r"""Γ diagonal in a fast basis: ``Γ_s = Φ diag(γ) Φᵀ``, and ``f(Γ_s) x`` is one `Basis.multiply` by ``f(γ)``.

The root is the symmetric one, ``R = Γ^{1/2}``, so that ``z`` lives on the grid and `whiten` inverts `color`.
"""

from __future__ import annotations

from abc import abstractmethod

import gpytorch
import torch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.covariance.checks import check_finite
from spatialdiff.domains import Domain, Grid

# eigenvalues between -TOLERANCE and 0 times the largest are rounding; below, the input is not a covariance
TOLERANCE = 1e-10


def check_grid(domain: Domain, name: str) -> None:
    """Raise unless the domain is a regular grid."""
    if not isinstance(domain, Grid):
        raise TypeError(
            f"{name} needs a Grid, got {type(domain).__name__}; a masked grid takes MaskedCovariance, other "
            'domains method="dense" or "vecchia".'
        )


def finite_or_raise(result: Tensor, x: Tensor) -> Tensor:
    """``result``, a sum over each field of ``x``; where it is not finite the fields are looked at, which for
    finite ones would cost as much as a transform.
    """
    if not bool(torch.isfinite(result.detach()).all()):
        check_finite(x, "quad_form")
    return result


class SpectralCovariance(Covariance):
    """What `TorusCovariance` and `CosineCovariance` share."""

    basis: Basis
    domain: Grid
    spectrum: Tensor | None
    weights_: Tensor

    def __init__(
        self,
        domain: Grid,
        basis: Basis,
        channels: Channels = None,
        kernel: gpytorch.kernels.Kernel | None = None,
        spectrum: Tensor | None = None,
    ) -> None:
        super().__init__(domain, channels, kernel)
        self.basis = basis
        self.register_buffer("spectrum", self._validated(spectrum))
        self.register_buffer("weights_", basis.weights, persistent=False)

    def _validated(self, spectrum: Tensor | None) -> Tensor | None:
        if spectrum is None:
            return None
        name, modes = type(self).__name__, tuple(self.basis.modes)
        values = torch.as_tensor(spectrum).detach().to(torch.float64).clone()
        per_channel = values.dim() == len(modes) + 1
        if values.shape[values.dim() - len(modes) :] != modes or values.dim() > len(modes) + 1:
            raise ValueError(
                f"{name}: the spectrum needs shape {modes}, or (C, {str(modes)[1:-1]}) for one per channel, "
                f"got {tuple(values.shape)}."
            )
        if per_channel and self.channels != values.shape[0]:
            raise ValueError(
                f"{name}: {values.shape[0]} spectra for channels={self.channels}; give "
                f"channels={values.shape[0]}."
            )
        if per_channel and self.channel_matrix is not None:
            raise ValueError(f"{name}: give one spectrum per channel or a channel matrix, not both.")
        if not bool((torch.isfinite(values) & (values >= 0)).all()):
            raise ValueError(
                f"{name}: the spectrum must be finite and non-negative; its smallest entry is "
                f"{float(values.min()):.3g}."
            )
        return values

    @abstractmethod
    def _kernel_eigenvalues(self) -> Tensor: ...

    def _compute_eigenvalues(self) -> Tensor:
        if self.spectrum is not None:
            return self.spectrum
        values = self._kernel_eigenvalues()
        values = values.expand(*self.batch_shape, *self.basis.modes)
        smallest, largest = self._range(values)
        if bool((smallest < -TOLERANCE * largest).any()):
            worst = int((smallest / largest).argmin())
            raise ValueError(
                f"{type(self).__name__}: the kernel is not positive definite on this grid: smallest "
                f"eigenvalue {float(smallest.reshape(-1)[worst]):.3g}, largest "
                f"{float(largest.reshape(-1)[worst]):.3g}."
            )
        # what is left below 0 is rounding of an eigenvalue that is 0 to working precision
        return values.clamp_min(0.0)

    def _compute_root(self) -> Tensor:
        values = self._factor("eigenvalues")
        return torch.where(values > 0, torch.where(values > 0, values, 1.0).sqrt(), 0.0)

    def _compute_inverse(self) -> Tensor:
        return 1 / self._positive_eigenvalues()

    def _compute_inverse_root(self) -> Tensor:
        return self._positive_eigenvalues().rsqrt()

    def _positive_eigenvalues(self) -> Tensor:
        values = self._factor("eigenvalues")
        smallest, largest = self._range(values)
        eps = torch.finfo(torch.float64).eps
        if bool((smallest <= eps * largest).any()):
            worst = int((smallest / largest).argmin())
            row = values.detach().reshape(-1, self.basis.modes.numel())[worst]
            raise ValueError(
                f"Γ is singular to working precision: smallest eigenvalue {float(row.min()):.3g}, largest "
                f"{float(row.max()):.3g}, {int((row <= eps * row.max()).sum())} of {row.numel()} at or below "
                "rounding. It can be sampled, not inverted; add a Nugget to the kernel, or use a rougher or "
                "shorter one."
            )
        return values

    def _range(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest eigenvalue per hyperparameter set or channel."""
        flat = values.detach().flatten(-len(self.basis.modes))
        return flat.amin(-1), flat.amax(-1)

    def _color(self, z: Tensor) -> Tensor:
        return self.basis.multiply(z, self._factor("root", z.dtype))

    def _whiten(self, x: Tensor) -> Tensor:
        return self.basis.multiply(x, self._factor("inverse_root", x.dtype))

    def _matmul(self, x: Tensor) -> Tensor:
        return self.basis.multiply(x, self._factor("eigenvalues", x.dtype))

    def _solve(self, x: Tensor) -> Tensor:
        return self.basis.multiply(x, self._factor("inverse", x.dtype))

    def quad_form(self, x: Tensor) -> Tensor:
        field = self._on_channels(self._prepare(x, self.event_shape, "quad_form"), "inverse_root")
        weights = (self.weights_ * self._factor("inverse")).to(x.dtype)
        if weights.dim() > self.domain.ndim:
            # a batch of Γ, or channels with spectra of their own
            power = self._spatial(lambda v: weights * self._square(v), field, self.domain.shape)
            result = power.sum(self._event_axes())
        else:
            result = self._square(field).flatten(-self.domain.ndim) @ weights.flatten()
            result = result if self.channels is None else result.sum(-1)
        return finite_or_raise(result, x)

    def _square(self, x: Tensor) -> Tensor:
        """``|c|²`` per mode, whose sum with weights ``w/γ`` is ``xᵀ Γ_s⁻¹ x`` (Parseval): one transform, no
        way back.
        """
        modes = self.basis.analyze(x)
        if not modes.is_complex():
            return modes.square()
        return modes.real.square() + modes.imag.square()

    def _spatial_axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.basis.modes), 0))

    def _log_det(self) -> Tensor:
        logs = self.weights_ * self._positive_eigenvalues().log()
        return logs.sum(self._spatial_axes())

    def spatial_eigenvalues(self) -> Tensor:
        return self._factor("eigenvalues")

    def _condition_number(self) -> float:
        smallest, largest = self._range(self._factor("eigenvalues"))
        return float((largest / smallest).max()) if bool((smallest > 0).all()) else float("inf")
