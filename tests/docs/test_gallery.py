"""The gallery draws every family, and its page shows every picture."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import matplotlib.image
import pytest

import spatialdiff as sd
from spatialdiff.kernels import Nugget, StationaryKernel
from spatialdiff.kernels.catalogue import CATALOGUE

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
gallery = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gallery)


def families() -> set[str]:
    """The isotropic families among the public names."""
    public = [getattr(sd.kernels, name) for name in sd.kernels.__all__]
    kinds = [k for k in public if isinstance(k, type) and issubclass(k, StationaryKernel)]
    return {k.__name__ for k in kinds} - {StationaryKernel.__name__, Nugget.__name__}


def test_every_family_and_every_picture_is_shown():
    assert {entry.name for entry in CATALOGUE} == families()
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert set(re.findall(r"_static/gallery/(\w+)\.png", page)) == set(gallery.PICTURES)
    table = (DOCS / "kernels.md").read_text(encoding="utf-8")
    assert {name for name in families() if f"`{name}" not in table} == set()


@pytest.mark.parametrize("name", ["Spherical", "channels", "graph"])
def test_pictures_are_drawn(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PICTURES", {name: gallery.PICTURES[name]})
    (path,) = gallery.draw(tmp_path)
    assert matplotlib.image.imread(path)[..., :3].std() > 0.05
    before = path.stat().st_mtime_ns
    gallery.draw(tmp_path)  # what is there is kept
    assert path.stat().st_mtime_ns == before
