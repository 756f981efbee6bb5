"""Whether coefficients that differ from mode to mode go with a covariance."""

from __future__ import annotations

from spatialdiff.covariance import Covariance
from spatialdiff.covariance.basis import Basis, ChannelBasis


def fast_basis(gamma: Covariance, what: str) -> Basis:
    """The basis in which Γ is diagonal in every channel alike; raises ``ValueError`` where it has none."""
    basis = gamma.basis
    if basis is None:
        raise ValueError(
            f"{what} has coefficients for each mode, and {type(gamma).__name__} (method {gamma.method!r}) on "
            f"{gamma.domain} is diagonal in no fast basis; build Γ with method='torus' on a periodic grid, "
            "'cosine' on any other, or on a sphere or graph"
        )
    return basis.spatial if isinstance(basis, ChannelBasis) else basis


def check_basis(gamma: Covariance, basis: Basis, what: str) -> Basis:
    """``basis``, where Γ is diagonal in it (white noise is in every one); else ``ValueError``."""
    if basis.grid != gamma.domain:
        raise ValueError(f"the modes of {what} are those of {basis.grid}, and Γ lives on {gamma.domain}")
    if not gamma.is_white and fast_basis(gamma, what) != basis:
        raise ValueError(
            f"{what} has coefficients for the modes of {basis!r}, and Γ is diagonal in {gamma.basis!r}; "
            "give Γ the structure of the process"
        )
    return basis
