r"""Two covariances in one basis: ``Γ = F diag(γ) Fᵀ`` and ``C = F diag(c) Fᵀ``.

With a shared fast basis ``F`` is that basis; with channel matrices ``B_Γ, B_C`` it is the basis times the
generalised eigenvectors of the pair; otherwise, for few sites, the generalised eigenvectors of ``C v = c Γ
v`` themselves (then ``γ = 1``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spatialdiff.covariance.base import Covariance
from spatialdiff.covariance.basis import (
    Basis,
    ChannelBasis,
    CosineBasis,
    FactorBasis,
    FourierBasis,
    SiteBasis,
)
from spatialdiff.domains import Grid, MaskedGrid, Sphere

DENSE_LIMIT = 4096


def pencil(gamma: Tensor, data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(F, F⁻¹, c)`` with ``Γ = F Fᵀ`` and ``C = F diag(c) Fᵀ``: Cholesky of Γ, then a symmetric
    eigenproblem.
    """
    root = torch.linalg.cholesky(gamma)
    whitened = torch.linalg.solve_triangular(root, data, upper=False)
    whitened = torch.linalg.solve_triangular(root, whitened.mT, upper=False)
    values, vectors = torch.linalg.eigh((whitened + whitened.mT) / 2)
    inverse = vectors.mT @ torch.linalg.solve_triangular(
        root, torch.eye(len(root), dtype=root.dtype, device=root.device), upper=False
    )
    return root @ vectors, inverse, values.clamp_min(0.0)


def _spatial(cov: Covariance) -> Tensor:
    """Eigenvalues of the spatial part, in the shared basis."""
    if cov.is_white:
        return cov._variance()
    return cov.spatial_eigenvalues()


def _channel_matrix(cov: Covariance, channels: int) -> Tensor:
    if cov.channel_matrix is not None:
        return cov.channel_matrix
    return torch.eye(channels, dtype=torch.float64, device=cov.device)


def _shared_basis(gamma: Covariance, data: Covariance) -> Basis | None:
    first, second = gamma.basis, data.basis
    if gamma.is_white and data.is_white:
        grid = gamma.domain
        if not isinstance(grid, Grid):
            return SiteBasis(grid)
        return FourierBasis(grid) if all(grid.periodic) else CosineBasis(grid)
    # white noise is diagonal in an orthonormal basis only
    if gamma.is_white:
        return second if second is not None and second.orthonormal else None
    if data.is_white:
        return first if first is not None and first.orthonormal else None
    if first == second:
        return first
    return None


def joint_spectrum(gamma: Covariance, data: Covariance) -> tuple[Basis, Tensor, Tensor]:
    """The common basis of ``Γ`` and ``C`` and their eigenvalues in it.

    Args:
        gamma: Γ, the noise.
        data: C, the data; same grid; same channels, or None on either side (that one is then the same in
            every channel).

    Returns:
        ``(basis, γ_k, c_k)``, eigenvalues float64, broadcastable to ``(C, *basis.modes)`` or, without
        channels, ``basis.modes``.

    Raises:
        ValueError: different grids or channels; no common basis and more than 4096 values per field.
    """
    if gamma.domain != data.domain:
        raise ValueError(f"joint_spectrum: Γ lives on {gamma.domain}, the data on {data.domain}.")
    counts = {c.channels for c in (gamma, data)} - {None}
    if len(counts) > 1:
        raise ValueError(f"joint_spectrum: Γ has {gamma.channels} channels, the data {data.channels}.")
    channels = counts.pop() if counts else None
    basis = _shared_basis(gamma, data)
    matrices = gamma.channel_matrix is not None or data.channel_matrix is not None
    if basis is not None:
        first, second = _spatial(gamma), _spatial(data)
        if not matrices:
            return basis, first, second
        common = first.dim() <= len(basis.modes) and second.dim() <= len(basis.modes)
        if common and channels is not None:
            factor, _, values = pencil(_channel_matrix(gamma, channels), _channel_matrix(data, channels))
            per_channel = values.reshape(-1, *(1,) * gamma.domain.ndim)
            return ChannelBasis(basis, factor), first, per_channel * second
    if gamma.batch_shape or data.batch_shape:
        raise ValueError(
            "joint_spectrum: kernels with a batch of hyperparameters have a joint spectrum only in a fast "
            "basis that both share, without a channel matrix; give kernels without batch_shape."
        )
    size = gamma.domain.size * (channels or 1)
    if size > DENSE_LIMIT:
        raise ValueError(
            f"joint_spectrum: Γ ({gamma.method}) and the data's covariance ({data.method}) are diagonal in "
            f"no common basis, and {size} "
            f"values per field are too many for a dense one (at most {DENSE_LIMIT}). Give both the same "
            "structure: "
            '"torus" on a periodic grid, "cosine" on any other.'
        )
    dense = [_dense(c, channels) for c in (gamma, data)]
    if isinstance(gamma.domain, MaskedGrid):
        # masked cells become modes of their own, in which the data have no variance
        hidden = ~gamma.domain.valid.expand(channels or 1, *gamma.domain.shape).reshape(-1)
        dense[0] = dense[0] + torch.diag(hidden.to(dense[0]))
    repeated = 0
    if isinstance(gamma.domain, Sphere) and gamma.domain.poles:
        # so do the differences along a pole, which is one site
        dense[0] = dense[0] + _along_poles(gamma.domain, channels or 1).to(dense[0])
        repeated = 2 * (gamma.domain.shape[1] - 1) * (channels or 1)
    factor, inverse, values = pencil(*dense)
    values = torch.cat([torch.zeros_like(values[:repeated]), values[repeated:]])
    shape = gamma.domain.shape if channels is None else (channels, *gamma.domain.shape)
    values = values.reshape(shape)
    return FactorBasis(gamma.domain, factor, inverse, channels), torch.ones_like(values), values


def _along_poles(sphere: Sphere, channels: int) -> Tensor:
    """The projection on fields that are 0 but at the poles, with mean 0 along each."""
    rows, columns = sphere.shape
    ends = torch.zeros(rows, dtype=torch.float64)
    ends[[0, -1]] = 1.0
    differences = torch.eye(columns, dtype=torch.float64) - 1 / columns
    one = torch.kron(torch.diag(ends), differences)
    return torch.kron(torch.eye(channels, dtype=torch.float64), one)


def _dense(cov: Covariance, channels: int | None) -> Tensor:
    matrix = cov.to_dense()
    if channels is not None and cov.channels is None:
        matrix = torch.kron(torch.eye(channels, dtype=matrix.dtype, device=matrix.device), matrix)
    return matrix
