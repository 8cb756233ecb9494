"""Sphinx builds the site from here: ``ci/docs``. Nothing is fetched while it builds."""

import os
import sys
import warnings
from pathlib import Path

import matplotlib

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
