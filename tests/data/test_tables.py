"""The sample tables: what is in them, that they are unchanged, that a wheel carries them."""

from __future__ import annotations

import gzip
import hashlib
import tomllib
from importlib import resources
from pathlib import Path

import pytest
import torch

from spatialdiff import data
from spatialdiff.domains import MaskedGrid, Points

CHECKSUMS = {
    "jura": "dccea76d3efa1104",
    "jura_grid": "482859205c790e93",
    "meuse": "6430934f2949a9b7",
    "meuse_grid": "ace3646ef088f603",
    "sic97": "0b5f7deeda51b9c1",
}
ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_those_that_were_checked():
    """A changed number anywhere in a table is a changed checksum of its text."""
    for name, expected in CHECKSUMS.items():
        packed = resources.files("spatialdiff.data").joinpath("tables", f"{name}.csv.gz").read_bytes()
        assert hashlib.sha256(gzip.decompress(packed)).hexdigest()[:16] == expected, name


def test_meuse_has_its_published_numbers():
    """summary(meuse) of R: zinc 113 to 1839 with mean 469.7; 155 rows; two values of om missing."""
    meuse = data.meuse()
    zinc = meuse["zinc"]
    assert len(meuse) == 155
    assert isinstance(meuse.domain, Points)
    assert meuse.unit == "m"
    assert float(zinc.mean()) == pytest.approx(469.7161, abs=5e-5)
    assert (float(zinc.min()), float(zinc.max())) == (113.0, 1839.0)
    assert int(meuse["om"].isnan().sum()) == 2
    assert torch.equal(meuse.map_coordinates[0], torch.tensor([181072.0, 333611.0], dtype=torch.float64))
    assert [int((meuse["ffreq"] == k).sum()) for k in (1, 2, 3)] == [84, 48, 23]


def test_the_meuse_grid_holds_its_cells_and_shares_coordinates_with_the_samples():
    """`dist` of a sample was read from the nearest cell of the grid (help page of meuse): so they must agree
    where both are placed on one map."""
    grid, meuse = data.meuse_grid(), data.meuse()
    assert isinstance(grid.domain, MaskedGrid)
    assert grid.domain.shape == (78, 104)
    assert len(grid) == 3103
    assert grid.domain.grid.spacing == (40.0, 40.0)
    assert float(grid.domain.flatten(grid["dist"]).mean()) == pytest.approx(0.2971186, abs=1e-6)
    nearest = torch.cdist(meuse.points.sites(), grid.points.sites()).argmin(1)
    assert float((grid.domain.flatten(grid["dist"])[nearest] - meuse["dist"]).abs().max()) < 0.03
    assert bool(grid["soil"][~grid.domain.valid].isnan().all())


def test_jura_has_two_sets():
    """Goovaerts (1997): 259 sites to predict from, with mean 1.309 of cadmium, and 100 to validate on."""
    fitted, held = data.jura("prediction"), data.jura("validation")
    assert (len(fitted), len(held), len(data.jura())) == (259, 100, 359)
    assert float(fitted["Cd"].mean()) == pytest.approx(1.309, abs=5e-4)
    assert float(fitted["Co"].mean()) == pytest.approx(9.303, abs=5e-4)
    distances = torch.cdist(fitted.points.sites(), held.points.sites())
    assert 0.0 < float(distances.min()) < float(distances.max()) < 8.0  # km
    cells = data.jura_grid()
    assert len(cells) == 5957
    assert bool(torch.isin(cells.domain.flatten(cells["rock"]), torch.arange(1.0, 6.0).double()).all())


def test_sic97_has_467_gauges_of_which_100_were_given_out():
    gauges = data.sic97()
    assert len(gauges) == 467
    assert len(data.sic97("prediction")) == int(gauges["prediction"].sum()) == 100
    assert len(data.sic97("validation")) == 367
    given = data.sic97("prediction")["rainfall"]
    assert float(given.mean()) == pytest.approx(180.15, abs=5e-3)
    assert (float(given.min()), float(given.max())) == (10.0, 585.0)
    assert float(gauges.points.sites().abs().max()) < 200.0  # km
    assert float(gauges["elevation"].max()) > 1500.0


def test_columns_are_stacked_as_covariates_and_unknown_names_are_refused():
    table = data.meuse()
    stacked = table.columns("dist", "elev")
    assert stacked.shape == (155, 2)
    assert torch.equal(stacked[:, 1], table["elev"])
    with pytest.raises(KeyError, match=r"no column 'gold'; it has cadmium"):
        table["gold"]
    with pytest.raises(ValueError, match=r"'prediction', 'validation' or None"):
        data.jura("train")
    assert set(table.units) == set(table.values)


def test_every_table_has_units_and_a_source():
    for table in (data.meuse(), data.meuse_grid(), data.jura(), data.jura_grid(), data.sic97()):
        assert set(table.units) == set(table.values), table.name
        assert table.source
        assert f"`{table.name}.csv.gz`" in (ROOT / "spatialdiff/data/tables/SOURCES.md").read_text()


def test_a_wheel_carries_the_tables():
    """The folder is a package, and the patterns of its data match every file."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "spatialdiff.data.tables" in settings["packages"]
    patterns = settings["package-data"]["spatialdiff.data.tables"]
    matched = {path for pattern in patterns for path in (ROOT / "spatialdiff/data/tables").glob(pattern)}
    files = set((ROOT / "spatialdiff/data/tables").iterdir())
    assert {path.name for path in files} == {f"{name}.csv.gz" for name in CHECKSUMS} | {"SOURCES.md"}
    assert files <= matched
    assert sum(path.stat().st_size for path in files) < 200_000
