"""The files of the page: all of it is ours, nothing is inline, and its colours can be read."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from runtime.gateway.guard import check_key
from runtime.gateway.keys import Keys
from runtime.gateway.routes import page
from runtime.gateway.wire.failure import Refused

pytestmark = pytest.mark.pure

FILES = {one.name: one.read_text(encoding="utf-8") for one in sorted(page.FOLDER.iterdir())}
SCRIPTS = [name for name in FILES if name.endswith(".js")]
SVG_NAME = "http://www.w3.org/2000/svg"


def test_every_file_of_the_folder_is_served() -> None:
    assert set(page.files()) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+[^\s\"'`)]*", FILES[name]))
    code = {one for one in addresses if re.match(r"https?:", one)}
    assert code <= {SVG_NAME}
    assert not re.search(r"@import|url\(", FILES[name])


def test_the_document_has_no_inline_script_or_style() -> None:
    document = FILES["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)", document)
    assert "<style" not in document
    assert not re.search(r"\s(on\w+|style)=", document)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_reads_markup_or_evaluates_text(name: str) -> None:
    unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    assert not re.search(unsafe, FILES[name])
    assert 'setAttribute("style"' not in FILES[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_imports_is_there(name: str) -> None:
    for imported in re.findall(r'from "\./([\w.]+)"', FILES[name]):
        assert imported in FILES


def test_what_the_document_names_is_there() -> None:
    named = re.findall(r'(?:src|href)="/llama/ui/([\w.]+)', FILES["index.html"])
    assert set(named) <= set(FILES)
    assert {"main.js", "style.css", "icon.svg"} <= set(named)


def test_the_page_and_its_files_need_no_key_and_what_they_read_does() -> None:
    import datetime

    today = datetime.date(2026, 11, 29)
    for path in ("/", "/llama/ui/main.js"):
        assert not check_key({}, Keys(), path, today).is_admin
    for path in ("/llama/v1/events", "/llama/uix"):
        with pytest.raises(Refused):
            check_key({}, Keys(), path, today)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [(b"text/html,application/xhtml+xml,*/*;q=0.8", True), (b"*/*", False), (b"", False)],
)
def test_a_browser_is_known_by_what_it_accepts(accept: bytes, wanted: bool) -> None:
    assert page.is_browser(accept) is wanted


# ── contrast ────────────────────────────────────────────────────────────────────────────────────

PAIRS = dict(
    re.findall(r"--([\w-]+): light-dark\(([^)]*)\);", FILES["style.css"].replace("\n", " "))
)


def luminance(colour: str) -> float:
    parts = (int(colour.strip()[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str, theme: int) -> float:
    first, second = (luminance(PAIRS[name].split(",")[theme]) for name in (one, other))
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


READ = [
    *product(("text", "soft"), ("page", "card", "sunk", "accent-wash")),
    ("accent", "card"), ("accent", "accent-wash"), ("bad", "card"), ("bad", "bad-wash"),
    ("good", "good-wash"), ("on-accent", "accent"), ("on-bad", "bad"),
]  # fmt: skip
SEEN = ("live", "ram", "ram-file", "disk", "computed", "queue", "decode", "pause", "edge")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("one", "other"), READ)
def test_texts_can_be_read(one: str, other: str, theme: int) -> None:
    assert contrast(one, other, theme) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("one", SEEN)
def test_marks_and_edges_can_be_seen(one: str, theme: int) -> None:
    assert contrast(one, "card", theme) >= 3


def test_a_build_takes_all_files_of_the_package() -> None:
    import tomllib

    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    build = project["tool"]["scikit-build"]
    assert "runtime" in build["wheel"]["packages"]
    assert not any("page" in one for one in build["wheel"]["exclude"])
