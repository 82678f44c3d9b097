"""How the documentation is built: `sphinx-build -W docs docs/_build`."""

import re
from importlib.metadata import version as version_of

project = "posthoc"
author = "posthoc maintainers"
copyright = author
release = version = version_of("posthoc")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
numpydoc_show_class_members = False
default_role = "code"

html_theme = "pydata_sphinx_theme"
html_title = "posthoc"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"], "navigation_with_keys": False}
html_show_sourcelink = False

ARRAY_LIKE = re.compile(r"~?[\w.]*Buffer \| ~?[\w.]*_SupportsArray.*?_NestedSequence\[[\w| ]*bytes \| str\]")
"""What numpy.typing.ArrayLike is, which nobody wants to read."""


def setup(app):
    def shortened(app, what, name, obj, options, signature, returned):
        return signature and ARRAY_LIKE.sub("ArrayLike", signature), returned

    app.connect("autodoc-process-signature", shortened)
