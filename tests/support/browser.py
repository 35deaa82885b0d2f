"""A real browser for tests of the page: Debian's chromium, headless, by playwright."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run",
)  # fmt: skip
AXE: Final = "axe-core@4.14.1"


def chromium() -> str:
    """The browser's path; skips where there is none, or no playwright."""
    pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("the page is tested in chromium, which is not installed here")
    return found


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """The browser."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """What pages of a browser have asked for, and what went wrong in them."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self.elsewhere: list[str] = []
        self.troubles: list[str] = []

    def watch(self, page: Any) -> None:
        page.on("request", lambda one: self._asked(one.url))
        page.on("console", lambda one: self._wrote(one.type, one.text))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))

    def _asked(self, url: str) -> None:
        if not url.startswith(f"{self._origin}/"):
            self.elsewhere.append(url)

    def _wrote(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.troubles.append(text)


def axe(folder: Path) -> str:
    """The source of axe-core, fetched once into a folder; skips where npm cannot."""
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("rules of accessibility are checked by axe-core, which npm fetches")
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", AXE]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not script.exists():
            pytest.skip(f"npm did not fetch {AXE}: {done.stderr.strip()[-200:]}")
    return script.read_text(encoding="utf-8")
