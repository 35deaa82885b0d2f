"""Sphinx configuration of the documentation: ``make docs`` builds it into ``build/site``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the packages, and the generators

project = "llama-actors"
author = "The authors of llama-actors"
release = "0.1.0"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_generate"]
source_suffix = {".md": "markdown"}
nitpicky = False
suppress_warnings = ["ref.python"]  # two classes called Node, one in each package

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "llama-actors"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse from disk
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False


def insert_generated(app: Sphinx, document: str, source: list[str]) -> None:
    """Replace the marker of a page by what its generator returns, before the page is parsed."""
    del app
    if document == "reference/cli":
        from _generate.cli import reference

        source[0] = source[0].replace("<!-- generated: cli -->", reference())
    if document == "reference/python-api":
        source[0] = source[0].replace("<!-- generated: other names -->", other_names(source[0]))
    if document == "reference/settings":
        from _generate.settings import reference as settings

        source[0] = source[0].replace("<!-- generated: settings -->", settings())


def other_names(page: str) -> str:
    """Directives for the public names of ``runtime`` that the page does not have."""
    import runtime

    # Errors come with their module; Event is the union of the five events.
    known = {*re.findall(r"auto\w+:: runtime\.(\w+)", page), "Event", "LlamaActorsError"}
    names = [name for name in runtime.__all__ if name not in known]
    if not names:
        return ""
    directives = [f".. autoclass:: runtime.{name}\n   :members:\n" for name in names]
    return "\n".join(["## More", "", "```{eval-rst}", *directives, "```"])


def keep_shape(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Show the text of a module as it stands: those here are trees and tables."""
    del app, name, obj, options
    if what == "module" and len(lines) > 1:
        lines[1:] = ["", "::", "", *(f"   {line}" for line in lines[1:]), ""]


def setup(app: Sphinx) -> None:
    """Connect the hooks."""
    app.connect("source-read", insert_generated)
    app.connect("autodoc-process-docstring", keep_shape)
