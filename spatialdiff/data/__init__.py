"""Real fields and measurements at scattered sites without downloads, and your own: split, standardised,
checked."""

from __future__ import annotations

from spatialdiff.data.fields import FieldData, Standardisation, check_fields, from_arrays
from spatialdiff.data.files import from_file
from spatialdiff.data.images import dequantise, digits, fashion_mnist, from_codes, redequantised
from spatialdiff.data.samples import Table, jura, jura_grid, meuse, meuse_grid, sic97
from spatialdiff.data.temperature import air_temperature
from spatialdiff.data.terrain import terrain

__all__ = [
    "FieldData",
    "Standardisation",
    "Table",
    "air_temperature",
    "check_fields",
    "dequantise",
    "digits",
    "fashion_mnist",
    "from_arrays",
    "from_codes",
    "from_file",
    "jura",
    "jura_grid",
    "meuse",
    "meuse_grid",
    "redequantised",
    "sic97",
    "terrain",
]
