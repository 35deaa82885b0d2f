"""Documents stay true: named tests exist, the tree is the tree, commands are commands."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from runtime.launch.tree import FileTier, build_tree
from supervision import SupervisorSpec

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *(path for path in sorted(ROOT.glob("*/README.md")) if not path.parent.name.startswith(".")),
]


@functools.cache
def test_functions() -> set[str]:
    """Every test function of the repository, by name."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return names


test_functions.__test__ = False  # type: ignore[attr-defined]  # a helper, named for what it finds


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_test_named_in_a_document_exists(document: Path) -> None:
    known = test_functions()
    named = set(re.findall(r"`(?:[\w/]+\.py::)?(test_\w+)`", document.read_text(encoding="utf-8")))
    missing = {name for name in named if name not in known and not (_files(name))}
    assert not missing


def _files(name: str) -> list[Path]:
    return list((ROOT / "tests").rglob(f"{name}.py"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_named_in_a_document_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target
    for path in re.findall(
        r"`((?:actors|cache|native|runtime|supervision|tests|bench|examples)/[\w./-]+\.\w+)`", text
    ):
        assert (ROOT / path).exists(), path


def test_the_tree_in_the_readme_is_the_tree_of_the_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"[├└]── ([\w:<>]+)", text))
    spec = build_tree(
        wanted_path="", arena_path="", ram_bytes=0, file_tiers=(FileTier("disk", "", 0),)
    )
    assert drawn == _ids(spec) | {"model:<id>"}


def _ids(spec: SupervisorSpec) -> set[str]:
    found: set[str] = set()
    for child in spec.children:
        found.add(child.id)
        if isinstance(child.args, SupervisorSpec):
            found |= _ids(child.args)
    return found


def test_commands_in_the_readme_are_commands() -> None:
    from runtime.cli.commands import COMMANDS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"python -m runtime ([a-z]+)", text))
    assert commands
    assert commands <= set(COMMANDS)
    targets = re.findall(r"^([a-z]+(?: [a-z]+)*):", (ROOT / "Makefile").read_text(), re.M)
    known = {name for line in targets for name in line.split()}
    assert set(re.findall(r"make ([a-z]+)", text)) <= known


def test_examples_are_short_and_numbered() -> None:
    examples = sorted((ROOT / "examples").glob("[0-9]*.py"))
    assert [path.name[:2] for path in examples] == [f"{n:02}" for n in range(1, 13)]
    for path in examples:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path


def test_one_actor_per_file_and_each_says_what_it_owns() -> None:
    for path in sorted((ROOT / "actors").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        actors = [
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name.endswith("Actor")
        ]
        assert len(actors) <= 1, path
        if actors:
            words = ast.get_docstring(tree) or ""
            assert "Owns:" in words, path
            assert "Answers:" in words, path


def test_only_one_module_imports_the_actor_library() -> None:
    doors = []
    for package in ("actors", "cache", "native", "runtime", "supervision"):
        for path in (ROOT / package).rglob("*.py"):
            if re.search(r"^\s*(from|import) thespian", path.read_text(encoding="utf-8"), re.M):
                doors.append(path.name)
    assert all(name.startswith("_") for name in doors), doors


def test_nothing_pickles_or_unpickles() -> None:
    for package in ("actors", "cache", "native", "runtime", "supervision"):
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(import|from) pickle|pickle\.loads?\(", source, re.M), path
