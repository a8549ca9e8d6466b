"""Sphinx settings of the documentation site: `make docs` writes it to docs/_build/html, readable without a network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import medkd  # noqa: E402

project = "medkd"
version = release = medkd.__version__
copyright = "the medkd authors, Apache-2.0"  # noqa: A001
language = "en_GB"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "generated",
    "docstrings",
    "mathml",
    "code_lines",
]
# types that are imported for the checker alone cannot be resolved, and some share a short name (two kinds of `Entry`)
suppress_warnings = ["ref.python"]
exclude_patterns = ["_build", "_ext", "_generated/api/*.txt"]

myst_enable_extensions = ["amsmath", "dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would be fetched from another host; executed notebooks hold no widgets
nb_merge_streams = True

toc_object_entries = False
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config"}
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True  # attributes as a list: dataclass fields would be described twice
default_role = "code"
python_use_unqualified_type_names = True
viewcode_follow_imported_members = False

html_theme = "furo"
html_title = "medkd"
html_static_path = ["_static"]
html_css_files = ["medkd.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
