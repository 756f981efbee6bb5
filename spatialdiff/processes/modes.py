"""Whether coefficients that differ from mode to mode go with a covariance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis, ChannelBasis


def fast_basis(gamma: Covariance, what: str) -> Basis:
    """The basis in which Γ is diagonal in every channel alike; raises ``ValueError`` where it has none."""
    basis = gamma.basis
    if basis is None:
        raise ValueError(
            f"{what} has coefficients for each mode, and {type(gamma).__name__} (method {gamma.method!r}) on "
            f"{gamma.domain} is diagonal in no fast basis; build Γ with method='torus' on a periodic grid, "
            "'cosine' on any other, 'graph' on a graph, or on a sphere by SphereCovariance.from_spectrum"
        )
    return basis.spatial if isinstance(basis, ChannelBasis) else basis


def check_basis(gamma: Covariance, basis: Basis, what: str) -> Basis:
    """``basis``, where Γ is diagonal in it (white noise is in every orthonormal one); else ``ValueError``."""
    if basis.grid != gamma.domain:
        raise ValueError(f"the modes of {what} are those of {basis.grid}, and Γ lives on {gamma.domain}")
    if gamma.is_white and not basis.orthonormal:
        raise ValueError(f"white noise is not diagonal in {basis!r}, the modes of {what}; give a coloured Γ")
    if not gamma.is_white and fast_basis(gamma, what) != basis:
        raise ValueError(
            f"{what} has coefficients for the modes of {basis!r}, and Γ is diagonal in {gamma.basis!r}; "
            "give Γ the structure of the process"
        )
    return basis


def as_covariances(gamma: Covariance | Sequence[Covariance], what: str) -> tuple[Covariance, ...]:
    """One Γ, or one for each variable, as a tuple; raises ``TypeError`` for anything else."""
    several = (gamma,) if isinstance(gamma, Covariance) else gamma
    if not isinstance(several, Sequence) or not several:
        raise TypeError(f"{what} needs a Covariance, or one for each variable; got {gamma!r}")
    for each in several:
        if not isinstance(each, Covariance):
            raise TypeError(
                f"{what} needs a Covariance, or one for each variable; got {type(each).__name__} among them. "
                "Build one with spatialdiff.covariance(kernel, grid)"
            )
    return tuple(several)


def relative_roots(covariances: Sequence[Covariance], variables: int, what: str) -> tuple[Tensor, Basis]:
    """``√(γ_jk/γ_1k)`` ``(*modes, K)`` of one covariance per variable, and their common basis.

    Raises ``ValueError`` unless there are K covariances without channels, diagonal in one fast basis.
    """
    if len(covariances) != variables:
        raise ValueError(
            f"{len(covariances)} covariances for {variables} variables; give one, or one for each variable"
        )
    if any(covariance.channels is not None for covariance in covariances):
        raise ValueError(
            "one covariance per variable needs covariances without channels (channels=None): the same in "
            "every channel"
        )
    coloured = [covariance for covariance in covariances if not covariance.is_white]
    if not coloured:
        raise ValueError("one covariance per variable, all of them white: give one, and scale G instead")
    basis = fast_basis(coloured[0], what)
    for covariance in covariances:
        check_basis(covariance, basis, what)
    powers = [
        (c._variance() if c.is_white else c.spatial_eigenvalues()).double().expand(basis.modes)
        for c in covariances
    ]
    if float(powers[0].detach().min()) <= 0.0:
        raise ValueError("the covariance of the data variable is singular; the others cannot be told by it")
    return torch.stack([(power / powers[0]).sqrt() for power in powers], dim=-1), basis
