r"""Which structure ``method="auto"`` takes: the cheapest exact one.

Exact structures come first, those whose set-up and memory are within the limits, by the costs of
`spatialdiff.covariance.costs`; Vecchia's approximation is taken where none is left, and says so in the
report. A batch of hyperparameters costs as many times as much as one.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import gpytorch
import torch

from spatialdiff.covariance import costs
from spatialdiff.covariance.costs import Candidate
from spatialdiff.domains import Domain, Graph, Grid, MaskedGrid, Mesh, RectilinearGrid, Sphere
from spatialdiff.kernels import Matern, Nugget

if TYPE_CHECKING:
    from spatialdiff.covariance.base import Covariance

# they factorise Γ itself
_CHOLESKY = ("dense", "reflection")


def candidates(kernel: gpytorch.kernels.Kernel, domain: Domain) -> list[Candidate]:
    """Every structure that applies, with its cost.

    Raises:
        ValueError: none applies.
    """
    count = kernel.batch_shape.numel()
    return [
        dataclasses.replace(c, setup=count * c.setup, draw=count * c.draw, memory=count * c.memory)
        for c in _of_one(kernel, domain)
    ]


def _of_one(kernel: gpytorch.kernels.Kernel, domain: Domain) -> list[Candidate]:
    n = domain.size
    if isinstance(kernel, Nugget):
        return [costs.white(n)]
    if isinstance(domain, Graph):
        return [costs.graph(kernel, domain)]
    each = costs.entry(kernel)
    if isinstance(domain, Mesh):
        if isinstance(kernel, Matern) and not kernel.trainable_nu and kernel.lengthscale.shape[-1] == 1:
            return [costs.spde(kernel, domain)]
        return [costs.dense(n, each, "vertices"), costs.vecchia(n, each)]
    if isinstance(domain, Sphere):
        return _on_sphere(kernel, domain)
    grid = domain.grid if isinstance(domain, MaskedGrid) else domain
    cut = ", cut to the valid cells" if isinstance(domain, MaskedGrid) else ""
    wraps = isinstance(grid, Grid) and all(grid.periodic)
    if isinstance(domain, Grid) and wraps:
        if kernel.is_stationary:
            return [costs.torus(kernel, domain, cut)]
        raise ValueError(
            f"covariance: {type(kernel).__name__} is not stationary, and the grid is periodic on every axis, "
            "where a kernel is summed over its images. Use a stationary one or a grid that is not periodic."
        )
    found = [costs.dense(n, each)]
    if isinstance(grid, Grid) and kernel.is_stationary:
        found.append(costs.torus(kernel, grid, cut) if wraps else costs.circulant(kernel, grid, cut))
    if isinstance(domain, Grid) and kernel.is_stationary:
        found.append(costs.reflection(kernel, domain))
    if isinstance(domain, Grid | RectilinearGrid):
        separable = costs.kronecker(kernel, domain)
        found += [separable] if separable else []
    if not any(domain.periodic):
        found.append(costs.vecchia(n, each))
    return found


def _on_sphere(kernel: gpytorch.kernels.Kernel, domain: Sphere) -> list[Candidate]:
    from spatialdiff.covariance.spheres.sphere import check_isotropic

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_isotropic(kernel, domain, "SphereCovariance")
    except ValueError:
        # a pole is one site that is written many times, which only the structure of spheres knows
        if domain.poles:
            raise
        return [
            costs.dense(domain.size, costs.entry(kernel)),
            costs.vecchia(domain.size, costs.entry(kernel)),
        ]
    return [costs.sphere(kernel, domain)]


# ---- which of those is taken
def ranking(found: Sequence[Candidate]) -> list[Candidate]:
    """Candidates in the order in which they are taken: exact ones within the limits, by cost; approximations;
    exact ones beyond the limits.
    """
    return sorted(found, key=lambda c: ((0 if c.fits else 2) if c.exact else 1, c.cost))


def choose(kernel: gpytorch.kernels.Kernel, domain: Domain, build: Callable[[str], Covariance]) -> Covariance:
    """Γ of the first candidate that can be built; `Covariance.choice` says why.

    Cholesky factors are tried where there is an exact structure without them to go on with: Γ of a smooth
    kernel is singular to working precision, which a factorisation does not survive and a transform does.

    Args:
        kernel, domain: Γ's.
        build: makes the structure of a method.

    Raises:
        ValueError: no structure applies.
        EmbeddingError: no circulant embedding is a covariance, and there is no other structure.
    """
    from spatialdiff.covariance.grids.embedding import EmbeddingError

    found = candidates(kernel, domain)
    ranked, refused = ranking(found), list[tuple[Candidate, str]]()
    singular: tuple[Candidate, Covariance] | None = None
    error: EmbeddingError | None = None
    for number, candidate in enumerate(ranked):
        if singular is not None and not _transforms(candidate):
            continue
        try:
            gamma = build(candidate.method)
        except EmbeddingError as caught:
            error = error or caught
            refused.append((candidate, "no embedding within its limits is a covariance"))
            continue
        if (
            candidate.method in _CHOLESKY
            and any(map(_transforms, ranked[number + 1 :]))
            and not _factorises(gamma)
        ):
            singular = candidate, gamma
            refused.append((candidate, "Γ is singular to working precision"))
            continue
        gamma.choice = explain(candidate, found, refused)
        return gamma
    if singular is not None:
        # its first use says what to do
        candidate, gamma = singular
        gamma.choice = explain(candidate, found, [r for r in refused if r[0] is not candidate])
        return gamma
    assert error is not None
    raise error


def _transforms(candidate: Candidate) -> bool:
    """Whether it is exact, within the limits, and does without a factorisation of Γ."""
    return candidate.exact and candidate.fits and candidate.method not in (*_CHOLESKY, "vecchia")


def _factorises(gamma: Covariance) -> bool:
    try:
        with torch.no_grad():
            gamma._factor("cholesky")
    except ValueError:
        return False
    return True


def explain(
    best: Candidate, found: Sequence[Candidate], refused: Sequence[tuple[Candidate, str]] = ()
) -> str:
    """Why ``best`` was taken from ``found``; ``refused`` could not be built, and why."""
    reason = f"{best.why}; about {_seconds(best.setup)} once and {_seconds(best.draw)} per field"
    out = [c for c, _ in refused]
    others = [c for c in found if c is not best and c not in out]
    if others:
        compared = (f"{c.method} {_seconds(c.setup)} and {_seconds(c.draw)}" for c in others)
        reason += f" (against {', '.join(compared)})"
    reason += "".join(f"; not {c.method}: {because}" for c, because in refused)
    if not best.exact and any(c.exact for c in others):
        reason += "; the exact ones are beyond the limits of memory and time, name one to have it anyway"
    return reason


def _seconds(nanoseconds: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.2g} {unit}"
    return f"{nanoseconds:.2g} ns"
