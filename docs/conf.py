"""The documentation as a site: `make docs`. The Markdown is that of the repository, which is the source folder."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import generated  # noqa: E402

import knltrain  # noqa: E402

project, author, copyright = "knltrain", "the authors of knltrain", "the authors of knltrain, MIT license"
version = release = knltrain.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "jobs/README.md", "docs/**"]
exclude_patterns = ["docs/_build", "docs/jupyter_execute"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebook; its results are kept in it
html_theme, html_title, html_static_path, html_css_files = "furo", f"knltrain {version}", ["site.css"], ["site.css"]
highlight_language, smartquotes = "none", False
html_theme_options = {"navigation_with_keys": True}
autodoc_member_order, autodoc_typehints, autodoc_preserve_defaults = "bysource", "signature", True
napoleon_use_rtype = napoleon_use_ivar = False


def setup(app):
    app.connect("autodoc-process-docstring", generated.as_restructured, priority=100)  # before napoleon
    app.add_directive("knltrain-commands", generated.Commands)
    app.add_directive("knltrain-recipe-keys", generated.RecipeKeys)
    return {"parallel_read_safe": True}
