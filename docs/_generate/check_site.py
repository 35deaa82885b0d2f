"""Refuse a built site that loads anything from the network: ``python check_site.py build/site``.

Links to other sites are fine; scripts, styles, fonts, images and frames must lie in the folder, so
that the site works from disk.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
_LINK_LOADS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "manifest"}
_STYLE_LOADS = re.compile(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""")


class _Loads(HTMLParser):
    """Collects what a page loads from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        address = given.get(_LOADS.get(tag, ""), "")
        if tag == "link" and _LINK_LOADS & set(given.get("rel", "").split()):
            address = given.get("href", "")
        if re.match(r"(?:https?:)?//", address):
            self.found.append(address)


def loads(folder: Path) -> list[tuple[Path, str]]:
    """Each file of the site with each address it loads from the network."""
    found = []
    for page in sorted(folder.rglob("*.html")):
        reader = _Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        found += [(page, address) for address in reader.found]
    for style in sorted(folder.rglob("*.css")):
        text = style.read_text(encoding="utf-8")
        found += [(style, address) for address in _STYLE_LOADS.findall(text)]
    return found


def main(arguments: list[str]) -> int:
    """Print what is loaded from the network; 1 if there is anything."""
    found = loads(Path(arguments[0]))
    for page, address in found:
        sys.stderr.write(f"{page}: loads {address}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
