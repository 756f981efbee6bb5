"""Sphinx configuration: `make docs` builds with warnings as errors."""

from spatialdiff.version import __version__

project = "spatialdiff"
author = "the spatialdiff authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write code in single backticks

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"spatialdiff {version}"
html_show_sourcelink = False

_properties = {}


def _keep(app, what, name, obj, options, lines):
    if what == "property":
        _properties[name] = list(lines)


def _restore(app, what, name, obj, options, lines):
    if what == "property":
        lines[:] = _properties.pop(name)


def setup(app):
    # napoleon takes "text: more text" in the docstring of a property for "type: description"
    app.connect("autodoc-process-docstring", _keep, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
