"""Sphinx configuration: `make docs` builds with warnings as errors."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.ext.mathjax import MATHJAX_URL

from spatialdiff.version import __version__

project = "spatialdiff"
author = "the spatialdiff authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
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

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"spatialdiff {version}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]

_properties = {}


def _show_formulas(app, what, name, obj, options, lines):
    """An indented block after a paragraph is a formula in plain text: show it as it is typed."""
    out, before = [], ""
    for i, line in enumerate(lines):
        starts = line.startswith("    ") and i > 0 and not lines[i - 1].strip()
        if starts and before and not before.startswith((" ", "..", "- ", "* ")):
            out += ["::", ""]
        out.append(line)
        before = line if line.strip() else before
    lines[:] = out


def _keep(app, what, name, obj, options, lines):
    if what == "property":
        _properties[name] = list(lines)


def _restore(app, what, name, obj, options, lines):
    if what == "property":
        lines[:] = _properties.pop(name)


def _mathml(as_block):
    def visit(translator, node):
        tex = re.sub(r"\\[bB]ig+[lr]?(?![a-z])", "", node.astext()).replace(r"\dots", r"\ldots")
        translator.body.append(tex2mathml(tex.strip(), as_block=as_block))
        raise nodes.SkipNode

    return visit


def _draw_pictures(app):
    sys.path.insert(0, str(Path(__file__).parent))
    import fitting_pictures
    import gallery
    import kriging_pictures
    import sampling_pictures

    static = Path(__file__).parent / "_static"
    gallery.draw(static / "gallery")
    fitting_pictures.draw(static / "fitting")
    kriging_pictures.draw(static / "kriging")
    sampling_pictures.draw(static / "sampling")


def setup(app):
    app.connect("builder-inited", _draw_pictures)
    # browsers show MathML without a network; where there is one, MathJax sets it better
    app.add_html_math_renderer("mathml", (_mathml(False), None), (_mathml(True), None))
    app.add_js_file(MATHJAX_URL, loading_method="async")
    # napoleon takes "text: more text" in the docstring of a property for "type: description"
    app.connect("autodoc-process-docstring", _show_formulas, priority=300)
    app.connect("autodoc-process-docstring", _keep, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
