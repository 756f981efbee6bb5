"""Helpers of the process tests: small Γ, exact joint moments, and the standard errors of what is
estimated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance, DenseCovariance, TorusCovariance
from spatialdiff.domains import Grid
from spatialdiff.kernels import Exponential, Matern


def dense_gamma(channels=None) -> Covariance:
    """A non-periodic Γ on 6 sites, float64."""
    return DenseCovariance(Matern(nu=1.5, lengthscale=1.7, variance=1.3), Grid((2, 3)), channels).double()


def torus_gamma(channels=None) -> Covariance:
    """A periodic Γ on 6×4 sites with a symmetric root, float64."""
    return TorusCovariance(
        Exponential(lengthscale=1.5, variance=0.8), Grid((6, 4), periodic=True), channels
    ).double()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def condition(
    covariance: Tensor, mean: Tensor, given: slice, wanted: slice, value: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of ``wanted`` given ``given`` = ``value``, for a jointly Gaussian vector."""
    gain = torch.linalg.solve(covariance[given, given], covariance[given, wanted]).mT
    return mean[wanted] + gain @ (value - mean[given]), covariance[wanted, wanted] - gain @ covariance[
        given, wanted
    ]


def assert_covariance(samples: Tensor, exact: Tensor, errors: float = 5.5) -> None:
    """Second moments about the known mean 0 of ``samples`` (N, n), every entry within ``errors`` standard
    errors.

    For Gaussian samples Var(x_i x_j) = C_ii C_jj + C_ij².
    """
    count = samples.shape[0]
    estimate = samples.T @ samples / count
    diagonal = exact.diagonal()
    error = torch.sqrt((diagonal[:, None] * diagonal[None] + exact**2) / count)
    worst = ((estimate - exact).abs() / error.clamp(min=1e-14)).max()
    assert worst < errors, f"an entry of the covariance is off by {worst:.2f} standard errors"


def assert_mean(samples: Tensor, mean: Tensor, variance: Tensor, errors: float = 5.5) -> None:
    """Means of ``samples`` (N, ...) within ``errors`` standard errors of ``mean``."""
    error = (variance / samples.shape[0]).sqrt().clamp(min=1e-14)
    worst = ((samples.mean(0) - mean).abs() / error).max()
    assert worst < errors, f"a mean is off by {worst:.2f} standard errors"


def assert_spectrum(residual: Tensor, variance: float, gamma: Covariance, errors: float = 5.5) -> None:
    """The power of ``residual`` (N, *grid) at *every* wavenumber is variance·γ_k within ``errors``
    standard errors.
    """
    modes = gamma.basis.analyze(residual)
    exact = variance * gamma.eigenvalues()
    power = modes.abs().square().mean(0)
    # a complex mode (weight 2 in the half spectrum) has power of relative variance 1, a real one 2
    error = exact * torch.sqrt(2.0 / gamma.basis.weights / residual.shape[0])
    worst = ((power - exact).abs() / error).max()
    assert worst < errors, f"the power of a mode is off by {worst:.2f} standard errors"
