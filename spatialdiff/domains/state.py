"""Domains as plain data, for files that hold no code: dictionaries of tensors, numbers, booleans, strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spatialdiff.domains.base import Domain
from spatialdiff.domains.graph import Graph
from spatialdiff.domains.grid import Grid
from spatialdiff.domains.masked import MaskedGrid
from spatialdiff.domains.mesh import Mesh
from spatialdiff.domains.points import Points
from spatialdiff.domains.rectilinear import RectilinearGrid
from spatialdiff.domains.sphere import Sphere


def domain_state(domain: Domain) -> dict[str, Any]:
    """``domain`` as nested dictionaries and lists that `domain_from_state` rebuilds it from.

    Raises:
        TypeError: a domain that is not one of the library.
    """
    if isinstance(domain, Grid):
        values: dict[str, Any] = {
            "shape": list(domain.shape),
            "spacing": list(domain.spacing),
            "periodic": list(domain.periodic),
        }
    elif isinstance(domain, MaskedGrid):
        values = {"grid": domain_state(domain.grid), "valid": domain.valid.clone()}
    elif isinstance(domain, RectilinearGrid):
        values = {"axes": [axis.clone() for axis in domain.axes]}
    elif isinstance(domain, Points):
        values = {"coordinates": domain.coordinates()}
    elif isinstance(domain, Mesh):
        values = {"vertices": domain.vertices.clone(), "elements": domain.elements.clone()}
    elif isinstance(domain, Sphere):
        values = {
            "shape": list(domain.shape),
            "grid": domain.grid,
            "radius": domain.radius,
            "poles": domain.poles,
        }
    elif isinstance(domain, Graph):
        values = {"n": domain.size, "edges": domain.edges.clone(), "weights": domain.weights.clone()}
    else:
        raise TypeError(f"a {type(domain).__name__} cannot be written as data; domains of spatialdiff can")
    return {"kind": type(domain).__name__, **values}


def domain_from_state(state: Mapping[str, Any]) -> Domain:
    """The domain that `domain_state` wrote.

    Raises:
        ValueError: a state of another kind.
    """
    kind = state.get("kind")
    if kind == "Grid":
        return Grid(tuple(state["shape"]), tuple(state["spacing"]), tuple(state["periodic"]))
    if kind == "MaskedGrid":
        grid = domain_from_state(state["grid"])
        assert isinstance(grid, Grid)
        return MaskedGrid(grid, state["valid"])
    if kind == "RectilinearGrid":
        return RectilinearGrid(state["axes"])
    if kind == "Points":
        return Points(state["coordinates"])
    if kind == "Mesh":
        return Mesh(state["vertices"], state["elements"])
    if kind == "Sphere":
        return Sphere(tuple(state["shape"]), state["grid"], state["radius"], poles=state["poles"])
    if kind == "Graph":
        return Graph.from_edges(state["edges"], state["n"], state["weights"])
    raise ValueError(f"unknown kind of domain {kind!r} in the saved state")
