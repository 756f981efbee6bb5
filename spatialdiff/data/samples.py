"""Measurements at scattered sites that geostatistics has compared its methods on for decades.

A table holds sites ``s_1, …, s_n`` and one column of numbers per variable. Sites are given from the corner of
the map, ``s = (x, y) - origin`` with ``x`` eastwards and ``y`` northwards, so that scattered sites and the
grid that maps them (first axis ``x``, second ``y``) have coordinates in common. Who measured what, and
where it was published, is in ``spatialdiff/data/tables/SOURCES.md``.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from spatialdiff.domains import Grid, MaskedGrid, Points

Where = TypeVar("Where", Points, MaskedGrid)
Part = Literal["prediction", "validation"]

# corners (cell centres) of the maps, in their own coordinates
_MEUSE, _JURA = (178460.0, 329620.0), (0.3, 0.1)


@dataclass(frozen=True)
class Table(Generic[Where]):
    """Named columns over a domain: ``table["zinc"]`` is a field on ``table.domain``.

    Args:
        name: of the table.
        domain: the sites, or the grid with the cells that are mapped, in ``unit``, from ``origin``.
        values: columns, float64, of the domain's shape; NaN where nothing was measured, and in the cells of a
            grid that are not mapped.
        units: of the columns; the classes of a column of codes.
        unit: of length.
        origin: where on the map the coordinates begin.
        source: first publication.
    """

    name: str
    domain: Where
    values: Mapping[str, Tensor]
    units: Mapping[str, str]
    unit: str
    origin: tuple[float, float]
    source: str

    @property
    def points(self) -> Points:
        """The sites; of a grid its mapped cells."""
        return Points(self.domain.sites())

    @property
    def map_coordinates(self) -> Tensor:
        """Coordinates of the sites on the original map, ``(n, 2)``."""
        return self.domain.sites() + torch.tensor(self.origin, dtype=torch.float64)

    def __getitem__(self, column: str) -> Tensor:
        """One column. Raises KeyError, naming those there are."""
        if column not in self.values:
            raise KeyError(f"{self.name} has no column {column!r}; it has {', '.join(self.values)}.")
        return self.values[column]

    def columns(self, *names: str) -> Tensor:
        """Several columns as one tensor ``(*domain.shape, q)``: covariates of a mean, for instance."""
        return torch.stack([self[name] for name in names], dim=-1)

    def __len__(self) -> int:
        return self.domain.size

    def __repr__(self) -> str:
        return f"{self.name}: {self.domain}, in {self.unit}; columns {', '.join(self.values)}"


def meuse() -> Table[Points]:
    """Heavy metals in the topsoil of the flood plain of the Meuse: 155 sites, in metres.

    Columns ``cadmium``, ``copper``, ``lead``, ``zinc`` (mg/kg), ``elev`` (m), ``om`` (%; NaN at two sites),
    ``dist`` (distance to the river, scaled to [0, 1]), ``distance`` (m), the classes ``ffreq``, ``soil`` and
    ``lime`` (Rikken & van Rijn 1993).
    """
    metals = dict.fromkeys(("cadmium", "copper", "lead", "zinc"), "mg/kg")
    units = metals | {"elev": "m", "om": "%", "dist": "1", "distance": "m", **_MEUSE_CLASSES, "lime": "0, 1"}
    return _points("meuse", units, "m", _MEUSE, "Rikken & van Rijn (1993)")


def meuse_grid() -> Table[MaskedGrid]:
    """The flood plain of the Meuse as a map: 3103 cells of 40 m in a grid of 78 by 104.

    Columns ``dist``, ``ffreq`` and ``soil``, as in ``meuse``, whose coordinates it shares.
    """
    return _grid("meuse_grid", {"dist": "1", **_MEUSE_CLASSES}, "m", _MEUSE, 40.0, "Rikken & van Rijn (1993)")


def jura(part: Part | None = None) -> Table[Points]:
    """Seven metals in the topsoil of the Swiss Jura: 359 sites, in kilometres.

    Columns ``Cd``, ``Co``, ``Cr``, ``Cu``, ``Ni``, ``Pb``, ``Zn`` (mg/kg), the classes ``landuse`` and
    ``rock``, and ``prediction``: 1 at the 259 sites of the prediction set, 0 at the 100 of the validation set
    (Goovaerts 1997, appendix C).

    Args:
        part: "prediction" or "validation" for one of the two sets; None for both.

    Raises:
        ValueError: another part.
    """
    metals = dict.fromkeys(("Cd", "Co", "Cr", "Cu", "Ni", "Pb", "Zn"), "mg/kg")
    source = "Atteia, Dubois & Webster (1994); Goovaerts (1997)"
    return _part(_points("jura", metals | _JURA_CLASSES | _PART, "km", _JURA, source), part)


def jura_grid() -> Table[MaskedGrid]:
    """The region of ``jura`` as a map: 5957 cells of 50 m, with the classes ``landuse`` and ``rock``."""
    return _grid("jura_grid", _JURA_CLASSES, "km", _JURA, 0.05, "Goovaerts (1997)")


def sic97(part: Part | None = None) -> Table[Points]:
    """Rainfall in Switzerland on 8 May 1986: 467 gauges, in kilometres.

    Columns ``rainfall`` (0.1 mm), ``elevation`` (m, of a terrain model of 1 km) and ``prediction``: 1 at the
    100 gauges that the Spatial Interpolation Comparison 1997 gave out, 0 at the 367 it kept back (Dubois,
    Malczewski & De Cort 2003).

    Args:
        part: "prediction" or "validation" for one of the two sets; None for both.

    Raises:
        ValueError: another part.
    """
    units = {"rainfall": "0.1 mm", "elevation": "m", **_PART}
    source = "Dubois, Malczewski & De Cort (2003)"
    return _part(_points("sic97", units, "km", (0.0, 0.0), source, per_unit=1000.0), part)


_MEUSE_CLASSES = {
    "ffreq": "flooded once in 2 (1), 10 (2), 50 (3) years",
    "soil": "Rd10A (1), Rd90C/VII (2), Bkd26/VII (3)",
}
_JURA_CLASSES = {
    "landuse": "forest (1), pasture (2), meadow (3), tillage (4)",
    "rock": "Argovian (1), Kimmeridgian (2), Sequanian (3), Portlandian (4), Quaternary (5)",
}
_PART = {"prediction": "prediction set (1), validation set (0)"}


def _read(name: str) -> dict[str, Tensor]:
    packed = resources.files("spatialdiff.data").joinpath("tables", f"{name}.csv.gz").read_bytes()
    header, *rows = csv.reader(gzip.decompress(packed).decode("ascii").splitlines())
    table = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    return dict(zip(header, table.unbind(-1), strict=True))


def _points(
    name: str,
    units: Mapping[str, str],
    unit: str,
    origin: tuple[float, float],
    source: str,
    per_unit: float = 1.0,
) -> Table[Points]:
    columns = _read(name)
    sites = torch.stack([columns.pop("x"), columns.pop("y")], dim=-1) / per_unit
    domain = Points(sites - torch.tensor(origin, dtype=torch.float64))
    return Table(name, domain, columns, units, unit, origin, source)


def _grid(
    name: str, units: Mapping[str, str], unit: str, origin: tuple[float, float], spacing: float, source: str
) -> Table[MaskedGrid]:
    columns = _read(name)
    sites = torch.stack([columns.pop("x"), columns.pop("y")], dim=-1)
    cell = ((sites - torch.tensor(origin, dtype=torch.float64)) / spacing).round().long()
    shape = tuple(int(last) + 1 for last in cell.amax(0))
    at = cell.unbind(-1)
    mask = torch.zeros(shape, dtype=torch.bool).index_put(at, torch.tensor(True))
    empty = torch.full(shape, torch.nan, dtype=torch.float64)
    fields = {column: empty.index_put(at, values) for column, values in columns.items()}
    return Table(name, MaskedGrid(Grid(shape, spacing), mask), fields, units, unit, origin, source)


def _part(table: Table[Points], part: Part | None) -> Table[Points]:
    if part is None:
        return table
    if part not in ("prediction", "validation"):
        raise ValueError(f"part must be 'prediction', 'validation' or None, got {part!r}.")
    kept = table["prediction"] == (1.0 if part == "prediction" else 0.0)
    values = {column: values[kept] for column, values in table.values.items()}
    return replace(table, domain=Points(table.domain.sites()[kept]), values=values)
