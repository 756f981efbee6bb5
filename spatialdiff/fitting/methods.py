r"""Which likelihood a fit maximises: by name, or by what the domain, the kernel and the size allow.

===============  ==============================================================================
``"exact"``      the Gaussian likelihood: eigenvalues on a torus, the sparse precision of a Matérn field on
                 a mesh and of a graph, harmonics on a sphere, Kronecker factors of a separable kernel, and
                 Cholesky factorisation everywhere else
``"whittle"``    the Fourier coefficients of a grid as independent; missing cells by imputation
``"vecchia"``    each site given its nearest neighbours among those before it
``"iterative"``  conjugate gradients and stochastic Lanczos, with a standard error
a structure      the likelihood through it: "kronecker", "spde", "sphere", "graph", "dense", ...
===============  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpytorch.kernels import Kernel

from spatialdiff.domains import Graph, Grid, MaskedGrid, Mesh, RectilinearGrid, Sphere
from spatialdiff.fitting.likelihoods.base import Likelihood
from spatialdiff.fitting.likelihoods.dense import DenseLikelihood
from spatialdiff.fitting.likelihoods.whittle import SpectralLikelihood
from spatialdiff.fitting.observations import Observations
from spatialdiff.fitting.parameters import KernelParameters
from spatialdiff.kernels import Coregionalization, Matern

LIKELIHOODS = ("exact", "whittle", "vecchia", "iterative")
STRUCTURES = ("dense", "kronecker", "torus", "reflection", "spde", "sphere", "graph")
EXACT_SITES = 1600
DENSE_SITES = 10_000
# a factorisation per evaluation takes a second
_AUTO_POINTS = 2500
# sites whose likelihood screens the starts
_SCREENED = 1000

# the options of each method beside those of every fit
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "exact": (),
    "whittle": ("density", "taper", "padding", "imputations", "seed", "neighbors", "tolerance"),
    "vecchia": ("neighbors", "ordering", "engine"),
    "iterative": ("probes", "tolerance", "seed", "neighbors"),
}


@dataclass(frozen=True)
class Choice:
    """A likelihood, the name of its method, why it was taken, and how its starts are screened."""

    method: str
    reason: str
    likelihood: Likelihood
    screen: Likelihood | None = None


def check_options(method: str, options: Mapping[str, Any], known: Mapping[str, tuple[str, ...]]) -> None:
    """Raise TypeError for an option that no method has, and ValueError for one of another method."""
    for name in options:
        owners = [other for other, names in known.items() if name in names]
        if not owners:
            everything = sorted({name for names in known.values() for name in names})
            raise TypeError(f"fit has no option {name!r}; options of its methods: {', '.join(everything)}")
        if method not in owners:
            raise ValueError(
                f"{name}= is an option of {' or '.join(f'method={o!r}' for o in owners)}, not of {method!r}"
            )


def choose(
    method: str, model: KernelParameters, data: Observations, restricted: bool, options: Mapping[str, Any]
) -> Choice:
    """The likelihood that ``method`` stands for.

    Raises:
        ValueError: a method that the domain or the kernel does not allow, or beyond its size.
    """
    domain, n = data.domain, data.flat().shape[-1]
    if method == "auto":
        method = _automatic(model, data)
        found = choose(method, model, data, restricted, options)
        why = "" if method == "exact" else f"{n} sites are many for a factorisation; "
        return replace(found, reason=why + found.reason)
    if restricted and method == "whittle":
        raise ValueError(
            "restricted=True needs a likelihood with a mean: method='exact', 'vecchia' or 'iterative'"
        )
    if method == "whittle":
        return _whittle(model, data, options)
    if method == "vecchia":
        from spatialdiff.fitting.likelihoods.vecchia import VecchiaLikelihood

        vecchia = VecchiaLikelihood(model, data, restricted=restricted, **options)
        neighbors = options.get("neighbors", 30)
        return Choice(
            "vecchia", f"{neighbors} neighbours of each of {n} sites", vecchia, _screen(model, data)
        )
    if method == "iterative":
        from spatialdiff.fitting.likelihoods.iterative import IterativeLikelihood

        iterative = IterativeLikelihood(model, data, restricted=restricted, **options)
        return Choice("iterative", f"conjugate gradients and Lanczos on {n} sites", iterative)
    if method in STRUCTURES and method != "dense":
        return _structured(method, model, data, restricted)
    fast = None if method == "dense" else _exact_structure(model, data)
    if fast == "fourier":
        return Choice(
            "exact", "eigenvalues of the periodic grid", SpectralLikelihood(model, data, exact=True)
        )
    if fast is not None:
        return _structured(fast, model, data, restricted)
    sites = n * (data.channels if isinstance(model.kernel, Coregionalization) else 1)
    if sites > DENSE_SITES:
        whole = isinstance(domain, Grid | MaskedGrid)
        raise ValueError(
            f"the exact likelihood of {domain} factorises a dense {sites} x {sites} matrix; the limit is "
            f"{DENSE_SITES} sites: use method={'whittle' if whole else 'vecchia'!r}"
        )
    # many cheap starts, one expensive search
    screen, metric = None, None
    if data.observed is None and sites == n:
        screen = _screen(model, data)
    if screen is not None:
        from spatialdiff.fitting.likelihoods.vecchia import VecchiaLikelihood

        metric = VecchiaLikelihood(model, data, neighbors=20)
    dense = DenseLikelihood(model, data, restricted, metric)
    if (
        isinstance(domain, Grid)
        and data.observed is None
        and dense.stationary
        and data.mean_model in _ONE_MEAN
    ):
        screen = SpectralLikelihood(model, data)
    return Choice("exact", f"Cholesky factorisation of {sites} sites", dense, screen)


def _screen(model: KernelParameters, data: Observations) -> Likelihood | None:
    """Vecchia's likelihood of some of the sites, to choose among starts, where there are many sites."""
    if data.flat().shape[-1] <= _SCREENED or any(data.domain.periodic):
        return None
    from spatialdiff.fitting.likelihoods.vecchia import VecchiaLikelihood

    return VecchiaLikelihood(model, data.some(_SCREENED), neighbors=10)


_ONE_MEAN = ("none", "known", "constant", "field")


def _automatic(model: KernelParameters, data: Observations) -> str:
    domain, n = data.domain, data.flat().shape[-1]
    if isinstance(model.kernel, Coregionalization):
        return "exact"
    if _exact_structure(model, data) is not None:
        return "exact"
    stationary = bool(model.kernel.is_stationary)
    if isinstance(domain, Grid | MaskedGrid) and n > EXACT_SITES and stationary:
        return "whittle"
    if n > _AUTO_POINTS and data.observed is None and not any(domain.periodic):
        return "vecchia"
    return "exact"


def _exact_structure(model: KernelParameters, data: Observations) -> str | None:
    """The structure with an exact likelihood that is cheaper than a dense factorisation."""
    domain, kernel = data.domain, model.kernel
    if isinstance(kernel, Coregionalization) or data.observed is not None:
        return None
    if isinstance(domain, Graph):
        return "graph"
    if isinstance(domain, Sphere):
        return "sphere"
    if isinstance(domain, Grid) and all(domain.periodic):
        return "fourier" if data.mean_model in _ONE_MEAN else "torus"
    if isinstance(domain, Mesh):
        plain = isinstance(kernel, Matern) and not kernel.trainable_nu and kernel.lengthscale.shape[-1] == 1
        return "spde" if plain else None
    if isinstance(domain, Grid | RectilinearGrid) and domain.ndim > 1 and not any(domain.periodic):
        return "kronecker" if _separable(kernel, domain) else None
    return None


def _separable(kernel: Kernel, domain: Grid | RectilinearGrid) -> bool:
    """Whether the kernel is a product of kernels of single axes."""
    from spatialdiff.covariance.grids.kronecker import KroneckerCovariance

    try:
        KroneckerCovariance(kernel, domain)
    except ValueError:
        return False
    return True


def _structured(method: str, model: KernelParameters, data: Observations, restricted: bool) -> Choice:
    from spatialdiff.fitting.likelihoods.structured import StructuredLikelihood

    likelihood = StructuredLikelihood(model, data, method, restricted)
    return Choice("exact", f"through the {method} structure", likelihood)


def _whittle(model: KernelParameters, data: Observations, options: Mapping[str, Any]) -> Choice:
    density, taper = options.get("density", "expected"), options.get("taper", 0.0)
    if not isinstance(data.domain, Grid) or data.observed is not None:
        if not isinstance(data.domain, Grid | MaskedGrid):
            raise ValueError(
                f"method='whittle' needs a regular grid, got {data.domain}: use method='exact' or 'vecchia'"
            )
        from spatialdiff.fitting.likelihoods.imputation import ImputedWhittle

        return Choice("whittle", "missing cells imputed", ImputedWhittle(model, data, **options))
    whittle = f"{density} periodogram" if density == "expected" else "aliased density of the infinite lattice"
    if taper:
        whittle += f", {taper:g} cosine taper"
    known = {name: options[name] for name in ("density", "taper") if name in options}
    if extra := set(options) - set(known):
        names = ", ".join(f"{name}=" for name in sorted(extra))
        raise ValueError(f"{names} is an option of method='whittle' for grids with missing cells only")
    return Choice("whittle", whittle, SpectralLikelihood(model, data, **known))
