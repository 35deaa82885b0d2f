"""The settings, for their reference page: ``runtime.settings.reference`` without its heading."""

from __future__ import annotations

from runtime.settings.reference import markdown


def reference() -> str:
    """The page's Markdown: one section for each table."""
    page = markdown()
    return page[page.index("\n## ") + 1 :]
