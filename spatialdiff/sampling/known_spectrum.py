"""Gaussian data of which the eigenvalues are known, in a basis of Γ: their model and posterior mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis
from spatialdiff.denoisers.base import PosteriorMean
from spatialdiff.denoisers.gaussian import GaussianModel
from spatialdiff.processes import Law


class KnownSpectrum(GaussianModel):
    """A Gaussian model whose basis and eigenvalues are given."""

    def __init__(
        self, gamma: Covariance, mean: Tensor | float | None, spectrum: tuple[Basis, Tensor, Tensor]
    ) -> None:
        super().__init__(gamma, None, mean)
        self.spectrum = spectrum

    def spectra(self) -> tuple[Basis, Tensor, Tensor]:
        return self.spectrum


class SpectralDenoiser(PosteriorMean):
    """The exact posterior mean of Gaussian data whose eigenvalues are known, on the domain itself."""

    def __init__(
        self,
        law: Law,
        channels: int,
        spectrum: tuple[Basis, Tensor, Tensor],
        mean: Tensor | float | None,
    ) -> None:
        super().__init__(channels)
        self._law = (law,)
        self.gaussian = KnownSpectrum(law.covariance, mean, spectrum)

    @property
    def law(self) -> Law:
        return self._law[0]

    def forward(self, u: Tensor, t: Tensor | float, **condition: Any) -> Tensor:
        """`m(u, t)`, shape `(B, C, *grid)`."""
        return self.gaussian.posterior_mean(u, self.law, self.times(u, t))


def given_spectrum(law: Law, data: Tensor) -> tuple[Basis, Tensor, Tensor]:
    """Basis and eigenvalues of Γ, and those of the data, checked."""
    gamma = law.covariance
    basis = gamma.basis or law.basis
    if basis is None:
        raise ValueError(
            f"eigenvalues of the data need a basis of Γ, and {type(gamma).__name__} has none: give the "
            "data's Covariance, or a Γ of method='torus' or 'cosine'"
        )
    modes = tuple(basis.modes)
    if tuple(data.shape[data.ndim - len(modes) :]) != modes or data.ndim > len(modes) + 1:
        raise ValueError(
            f"eigenvalues of shape {tuple(data.shape)}; {basis!r} has modes {modes}, so that they need shape "
            f"{modes} or (C, {', '.join(map(str, modes))})"
        )
    if not bool(torch.isfinite(data).all()) or bool((data < 0).any()):
        raise ValueError("eigenvalues of the data must be finite and not negative")
    values = gamma._variance() if gamma.is_white else gamma.eigenvalues()
    return basis, values.detach(), data.detach()
