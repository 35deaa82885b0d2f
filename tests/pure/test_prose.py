"""The check of prose finds words where they are, and nothing in code or quotations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.support.nodes import ROOT

pytestmark = pytest.mark.pure

_spec = importlib.util.spec_from_file_location("prose", ROOT / "tools" / "prose.py")
assert _spec is not None
assert _spec.loader is not None
prose = importlib.util.module_from_spec(_spec)
sys.modules["prose"] = prose
_spec.loader.exec_module(prose)


def found(folder: Path, name: str, source: str) -> list[tuple[int, str]]:
    path = folder / Path(name).name
    path.write_text(source, encoding="utf-8")
    return [
        (one.line, one.word) for text in prose.texts(path, name) for one in prose.words_in(text)
    ]


PYTHON = '''"""The first line.

It hears this, and ``say`` is code.
"""
said = 1  # nobody counts names
x: int = 0
"""Attributes are told, too."""
raise ValueError(f"model {said} says no")
say = "says"
'''


def test_words_in_docstrings_comments_and_texts_are_found(tmp_path: Path) -> None:
    assert sorted(found(tmp_path, "actors/x.py", PYTHON)) == [
        (3, "hears"),
        (5, "nobody"),
        (7, "told"),
        (8, "says"),
    ]


def test_strings_of_tests_and_quotations_do_not_count(tmp_path: Path) -> None:
    for name in ("tests/pure/test_x.py", "examples/07_chat.py"):
        assert [line for line, _ in sorted(found(tmp_path, name, PYTHON))] == [3, 5, 7]


def test_comments_and_texts_of_the_shim_are_found(tmp_path: Path) -> None:
    source = 'int said; // it says\n/* told\n   anew */\nfail("nobody is there");\nname("say");\n'
    assert found(tmp_path, "native/shim/x.cpp", source) == [
        (1, "says"),
        (2, "told"),
        (3, "anew"),
        (4, "nobody"),
    ]


def test_code_in_documents_does_not_count(tmp_path: Path) -> None:
    source = "It says `test_nobody_said`.\n```text\nwhoever\n```\nFor ever, aloud.\n"
    assert found(tmp_path, "README.md", source) == [(1, "says"), (5, "For ever"), (5, "aloud")]


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("as trap T-40R has it", ["T-40R"]),
        ("see architecture §5", ["architecture §"]),
        ("see style.md for more", ["style.md"]),
        ("README.md and docs/caching.md are here", []),
        ("a caching.md is found from the documentation", []),
        ("T-shirts, § in general", []),
    ],
)
def test_citations_of_documents_elsewhere_are_found(text: str, cited: list[str]) -> None:
    assert [one.word for one in prose.outside_in(prose.Text("actors/x.py", 1, text))] == cited


def test_every_part_has_prose_and_a_ceiling() -> None:
    parts = {prose.part_of(name) for _, name in prose.files()}
    assert parts - {None} == set(prose.CEILINGS)
