"""Sphinx builds the site from here: ``ci/docs``. Nothing is fetched while it builds."""

import os
import re
import sys
import warnings
from pathlib import Path

import matplotlib
from docutils import nodes

import dask_saga

here = Path(__file__).parent
sys.path.insert(0, str(here.parent / "examples"))  # flights_data, which the gallery reads
matplotlib.use("agg")
os.environ.setdefault("PYTHONPATH", str(here.parent / "examples"))  # and workers
warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")

project = "dask-saga"
author = copyright = "the dask-saga developers"
version = release = dask_saga.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "tutorial/index.rst"]  # of the tutorial's one page
templates_path = ["_templates"]
nitpicky = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's sections say more
numpydoc_show_class_members = False
# All of numpydoc's checks, but: extended summaries, examples and see-also sections everywhere (ES01, EX01, SA01),
# a description after each type (PR07, RT03), where a summary starts or ends (GL01, SS05, SS06), and
# scikit-learn's "self : object" (RT02).
numpydoc_validation_checks = {"all", "ES01", "EX01", "SA01", "PR07", "RT03", "GL01", "SS05", "SS06", "RT02"}
# Protocols are not called, but their signature has *args and **kwargs, which PR01 wants described.
numpydoc_validation_exclude = {r"\.Loss$", r"\.Penalty$"}

sphinx_gallery_conf = {
    "examples_dirs": ["../tutorial", "../examples"],
    "gallery_dirs": ["tutorial", "gallery"],
    "filename_pattern": r"(plot_|from_numpy)",
    "ignore_pattern": r"(^|/)flights(_data)?\.py$",
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "api/examples",
    "doc_module": ("dask_saga",),
    "abort_on_example_error": True,
    "capture_repr": ("_repr_html_", "__repr__"),
    "ignore_repr_types": r"matplotlib|ConvergenceDisplay|Future",
    "download_all_examples": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "min_reported_time": 0,
}

html_theme = "pydata_sphinx_theme"
html_title = "dask-saga"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 7,
}
html_sidebars = {page: [] for page in ("index", "install", "quickstart", "changelog", "tutorial/from_numpy_to_dask")}

# A number with its exponent or unit, or a date.
NUMBER = re.compile(r"(-?\d[\d,.]*e[-+]?\d+|\d{4}-\d\d-\d\d|\d[\d,.]* (?:ns|ms|s|MB|GB|%)(?!\w))")
# Where a long name may break: after one of _ . / ( =, before a letter, and before a capital.
BREAK = re.compile(r"(?<=[\w)][_./(=])(?=[^\W\d])|(?<=[a-z])(?=[A-Z])")
PROSE = (nodes.paragraph, nodes.title, nodes.emphasis, nodes.strong, nodes.reference, nodes.term)


def set_line_breaks(app, doctree, docname):
    """Keep numbers and dates on one line, and break long names in tables and titles between their parts.

    A browser breaks "1e-6" after the hyphen, and a name at any letter or not at all.
    """
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, PROSE) and NUMBER.search(text):
            # Every other part is a number.
            parts = [nodes.inline("", part) for part in NUMBER.split(text)]
            for number in parts[1::2]:
                number["classes"].append("number")
            text.parent.replace(text, parts)
    names = [code for entry in doctree.findall(nodes.entry) for code in entry.findall(nodes.literal)]
    titles = [title for title in doctree.findall(nodes.title) if " " not in title.astext()]
    for element in names + titles:
        if len(name := element.astext()) > 16:
            first, *rest = BREAK.split(name)
            element.clear()
            element += nodes.Text(first)
            for part in rest:
                element += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]


def hide_signature(app, what, name, obj, options, signature, returns):
    """Leave out the signature of a Protocol, which has no arguments of its own."""
    return ("", None) if getattr(obj, "_is_protocol", False) else None


def setup(app):
    app.connect("doctree-resolved", set_line_breaks)
    app.connect("autodoc-process-signature", hide_signature)
