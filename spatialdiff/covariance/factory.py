"""Which structure represents Γ."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import gpytorch
from torch import Tensor

from spatialdiff.covariance.base import Channels, Covariance
from spatialdiff.covariance.choice import choose
from spatialdiff.domains import Domain, Graph, Grid, MaskedGrid, Mesh, RectilinearGrid, Sphere
from spatialdiff.kernels import Coregionalization, Nugget

# the module and class of every method, and the domains that it takes
_STRUCTURES: dict[str, tuple[str, str, tuple[type, ...]]] = {
    "white": ("white", "WhiteCovariance", (Domain,)),
    "dense": ("dense", "DenseCovariance", (Domain,)),
    "torus": ("grids.torus", "TorusCovariance", (Grid, MaskedGrid)),
    "cosine": ("grids.cosine", "CosineCovariance", (Grid,)),
    "circulant": ("grids.circulant", "CirculantCovariance", (Grid, MaskedGrid)),
    "reflection": ("grids.reflection", "ReflectionCovariance", (Grid,)),
    "kronecker": ("grids.kronecker", "KroneckerCovariance", (Grid, RectilinearGrid)),
    "matrix_free": ("points.matrix_free", "MatrixFreeCovariance", (Domain,)),
    "vecchia": ("points.vecchia", "VecchiaCovariance", (Domain,)),
    "spde": ("meshes.spde", "SPDECovariance", (Mesh,)),
    "graph": ("meshes.graph_matern", "GraphMaternCovariance", (Graph,)),
    "sphere": ("spheres.sphere", "SphereCovariance", (Sphere,)),
}
METHODS = ("auto", *_STRUCTURES)
# a graph has no coordinates, so that it takes these only
_ON_GRAPHS = ("white", "graph")


def structure(method: str) -> type[Covariance]:
    """The class of a method."""
    module, name, _ = _STRUCTURES[method]
    found: type[Covariance] = getattr(importlib.import_module(f"spatialdiff.covariance.{module}"), name)
    return found


def covariance(
    kernel: gpytorch.kernels.Kernel | Coregionalization | None = None,
    domain: Domain | None = None,
    channels: Channels = None,
    method: str = "auto",
    *,
    spectrum: Tensor | None = None,
    **options: Any,
) -> Covariance:
    """Γ of a kernel on a domain.

    ``"auto"`` takes the cheapest structure that is exactly the covariance asked for, by measured costs of its
    set-up and of drawing from it; only where no exact one fits into memory and two minutes, Vecchia's
    approximation. ``gamma.report`` names the structure, says why, and what its error is. The cosine
    structure is an approximation of a stationary kernel and is taken only when named.

    Args:
        kernel: any gpytorch kernel; or a `Coregionalization` of several channels.
        domain: a grid (regular, masked or rectilinear), points, a mesh, a graph or a sphere.
        channels: None (Γ broadcasts over leading axes), the number of independent channels, or a ``(C, C)``
            channel covariance.
        method: "auto", "white", "dense", "torus", "cosine", "circulant", "reflection", "kronecker",
            "matrix_free", "vecchia", "spde", "graph", "sphere".
        spectrum: instead of a kernel, the eigenvalues in the Fourier or cosine basis, shape ``basis.modes``
            or ``(C, *basis.modes)`` (method "torus" or "cosine"), or the angular power spectrum ``(L+1,)``
            or ``(C, L+1)`` (method "sphere").
        options: options of the structure, such as ``on_negative`` of `CirculantCovariance` or
            ``neighbors`` of `VecchiaCovariance`.

    Raises:
        TypeError: something that is no kernel or no domain.
        ValueError: an unknown method; a combination that the structure refuses.
    """
    if not isinstance(domain, Domain):
        raise TypeError(
            f"covariance needs a domain, such as sd.Grid or sd.Points, as its second argument, got "
            f"{type(domain).__name__}."
        )
    if method not in METHODS:
        raise ValueError(f"covariance: unknown method {method!r}; known methods: {', '.join(METHODS)}.")
    if (kernel is None) == (spectrum is None):
        raise ValueError("covariance needs a kernel or a spectrum, and not both.")
    if spectrum is not None:
        return _of_spectrum(spectrum, domain, channels, method, options)
    if isinstance(kernel, Coregionalization):
        return _coregionalized(kernel, domain, channels, method, options)
    if not isinstance(kernel, gpytorch.kernels.Kernel):
        raise TypeError(f"covariance needs a gpytorch kernel, got {type(kernel).__name__}.")
    if method != "auto":
        return _build(method, kernel, domain, channels, options)
    return choose(kernel, domain, lambda chosen: _build(chosen, kernel, domain, channels, options))


def _build(
    method: str, kernel: gpytorch.kernels.Kernel, domain: Domain, channels: Channels, options: dict[str, Any]
) -> Covariance:
    allowed = _STRUCTURES[method][2]
    if not isinstance(domain, allowed) or (isinstance(domain, Graph) and method not in _ON_GRAPHS):
        fitting = [m for m in _STRUCTURES if isinstance(domain, _STRUCTURES[m][2])]
        if isinstance(domain, Graph):
            fitting = list(_ON_GRAPHS)
        raise ValueError(
            f"covariance: method={method!r} does not take a {type(domain).__name__}; methods for it: "
            f"{', '.join(fitting)}."
        )
    if method == "white":
        if not isinstance(kernel, Nugget):
            raise ValueError(f'covariance: method="white" needs a Nugget, got {type(kernel).__name__}.')
        return structure("white")(domain, kernel, channels, **options)
    if isinstance(domain, MaskedGrid) and method in ("torus", "circulant"):
        from spatialdiff.covariance.grids.masked import MaskedCovariance

        return MaskedCovariance(kernel, domain, channels, inner=method, **options)  # type: ignore[arg-type]
    known = [
        n for n, p in inspect.signature(structure(method)).parameters.items() if p.kind == p.KEYWORD_ONLY
    ]
    if not options.keys() <= set(known):
        raise TypeError(
            f"covariance: method={method!r} has no option {', '.join(sorted(options.keys() - set(known)))}; "
            f"its options: {', '.join(known) or 'none'}. Name the method that an option is for."
        )
    return structure(method)(kernel, domain, channels, **options)  # type: ignore[arg-type]


def _of_spectrum(
    spectrum: Tensor, domain: Domain, channels: Channels, method: str, options: dict[str, Any]
) -> Covariance:
    if method == "auto" and isinstance(domain, Sphere):
        method = "sphere"
    if method not in ("torus", "cosine", "sphere"):
        raise ValueError(
            f'covariance: a spectrum needs method="torus", "cosine" or "sphere", got {method!r}.'
        )
    if not isinstance(domain, _STRUCTURES[method][2]) or isinstance(domain, MaskedGrid):
        raise ValueError(
            f"covariance: a spectrum with method={method!r} needs a {_STRUCTURES[method][2][0].__name__}, "
            f"got {type(domain).__name__}."
        )
    result: Covariance = structure(method).from_spectrum(domain, spectrum, channels, **options)  # type: ignore[attr-defined]
    return result


def _coregionalized(
    model: Coregionalization, domain: Domain, channels: Channels, method: str, options: dict[str, Any]
) -> Covariance:
    from spatialdiff.covariance.compositions.coregionalized import CoregionalizedCovariance

    if channels not in (None, model.channels):
        raise ValueError(
            f"covariance: {model!r} brings its channels along; leave channels out, got {channels!r}."
        )
    parts = [covariance(kernel, domain, None, method, **options) for kernel in model.kernels]
    return CoregionalizedCovariance(list(zip(model.roots, parts, strict=True)))
