"""Which structure represents Γ."""

from __future__ import annotations

from typing import Any

import gpytorch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.circulant import CirculantCovariance
from spatialdiff.covariance.cosine import CosineCovariance
from spatialdiff.covariance.dense import DenseCovariance
from spatialdiff.covariance.torus import TorusCovariance
from spatialdiff.covariance.white import WhiteCovariance
from spatialdiff.domains import Grid
from spatialdiff.kernels import Nugget

METHODS = ("auto", "white", "dense", "torus", "cosine", "circulant")
# up to this many sites the dense factor colours a batch as fast as the circulant embedding does, and it
# whitens and inverts exactly besides, see benchmarks/coloured_noise.py --forms
DENSE_SITES = 1024


def covariance(
    kernel: gpytorch.kernels.Kernel | None = None,
    domain: Grid | None = None,
    channels: Channels = None,
    method: str = "auto",
    *,
    spectrum: Tensor | None = None,
    **options: Any,
) -> Covariance:
    """Γ of a kernel on a grid.

    ``"auto"`` takes white for a `Nugget` alone, the torus where every axis is periodic, dense for kernels
    that are not stationary and for at most 1024 sites, circulant embedding otherwise: always the covariance
    that was asked for, exactly. The cosine structure is an approximation of a stationary kernel and is taken
    only when named.

    Args:
        kernel: any gpytorch kernel.
        domain: the grid.
        channels: None (Γ broadcasts over leading axes), the number of independent channels, or a ``(C, C)``
            channel covariance.
        method: one of "auto", "white", "dense", "torus", "cosine", "circulant".
        spectrum: instead of a kernel, the eigenvalues in the Fourier or cosine basis, shape ``basis.modes``
            or ``(C, *basis.modes)`` (method "torus" or "cosine").
        options: options of the structure, such as ``on_negative`` of `CirculantCovariance`.

    Raises:
        ValueError: an unknown method; a combination that the structure refuses.
    """
    if not isinstance(domain, Grid):
        raise TypeError(f"covariance needs a Grid as its domain, got {type(domain).__name__}.")
    if method not in METHODS:
        raise ValueError(f"covariance: unknown method {method!r}; known methods: {', '.join(METHODS)}.")
    if (kernel is None) == (spectrum is None):
        raise ValueError("covariance needs a kernel or a spectrum, and not both.")
    if spectrum is not None:
        if method not in ("torus", "cosine"):
            raise ValueError(f'covariance: a spectrum needs method="torus" or "cosine", got {method!r}.')
        structure = TorusCovariance if method == "torus" else CosineCovariance
        return structure.from_spectrum(domain, spectrum, channels, **options)
    if not isinstance(kernel, gpytorch.kernels.Kernel):
        raise TypeError(f"covariance needs a gpytorch kernel, got {type(kernel).__name__}.")
    chosen = _choose(kernel, domain) if method == "auto" else method
    if chosen == "white":
        if not isinstance(kernel, Nugget):
            raise ValueError(f'covariance: method="white" needs a Nugget, got {type(kernel).__name__}.')
        return WhiteCovariance(domain, kernel, channels, **options)
    if chosen == "dense":
        return DenseCovariance(kernel, domain, channels, **options)
    if chosen == "torus":
        return TorusCovariance(kernel, domain, channels, **options)
    if chosen == "cosine":
        return CosineCovariance(kernel, domain, channels, **options)
    return CirculantCovariance(kernel, domain, channels, **options)


def _choose(kernel: gpytorch.kernels.Kernel, domain: Grid) -> str:
    if isinstance(kernel, Nugget):
        return "white"
    if all(domain.periodic):
        return "torus"
    if not kernel.is_stationary or domain.size <= DENSE_SITES:
        return "dense"
    return "circulant"
