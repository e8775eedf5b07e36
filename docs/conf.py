"""Sphinx: `make docs` builds docs/ into build/docs, offline and without warnings.

Sphinx and not mkdocs: it documents the imported package as it is (signatures, defaults), runs the examples in the pages
(doctest), and links to torch by an inventory that can be a file here.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import figures  # noqa: E402
import inventory  # noqa: E402

import fastloss  # noqa: E402

project = "fastloss"
copyright = "the authors of fastloss. MIT licence"
release = version = fastloss.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
nitpicky = True  # a name that leads nowhere is a warning, and a warning an error
nitpick_ignore = [("py:class", name) for name in ("None", "bool", "dict", "float", "int", "str")]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_static"]
suppress_warnings = ["toc.not_readable"]  # the study and the table of errors are there once a command wrote them

doctest_global_setup = "import torch, fastloss\ntorch.manual_seed(0)"

torch_inventory = inventory.write(HERE / "torch_names.txt", HERE.parent / "build" / "docs-inventory" / "torch.inv")
intersphinx_mapping = {"torch": ("https://docs.pytorch.org/docs/stable/", str(torch_inventory))}

html_theme = "furo"
html_title = "fastloss"
html_static_path = ["_static"]
html_css_files = ["fastloss.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
figures.draw(HERE / "_static")
