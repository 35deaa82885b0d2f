"""Documents stay true: what they name exists, the tree is the tree, commands are commands."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from runtime.launch.tree import FileTier, build_tree
from runtime.residency.settings import ResidencyArgs
from runtime.settings.config import from_mapping
from runtime.settings.gateway import GatewaySettings, Listen
from supervision import SupervisorSpec
from tests.support.documents import (
    DOCS,
    DOCUMENTS,
    LANGUAGES,
    PAGES,
    READMES,
    Command,
    blocks,
    commands,
    name_of,
    prose,
)
from tests.support.nodes import ROOT

pytestmark = pytest.mark.pure

README = ROOT / "README.md"
SOURCES = ("actors", "cache", "native", "runtime", "supervision")
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


@functools.cache
def test_functions() -> set[str]:
    """Every test function, class and file of the repository, by name."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        names |= {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names.add(path.stem)
    return names


test_functions.__test__ = False  # type: ignore[attr-defined]  # a helper, named for what it finds


# ── what documents name ─────────────────────────────────────────────────────────────────────────


@each_document
def test_every_test_named_in_a_document_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:[\w/]+\.py::)?(test_\w+|Test[A-Z]\w+)(?:\.py)?`", text))
    assert not named - test_functions()


@each_document
def test_every_file_named_in_a_document_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (document.parent / target).exists(), target
    for path in re.findall(
        r"`((?:actors|cache|native|runtime|supervision|tests|bench|examples|docs)/[\w./-]+\.\w+)`",
        text,
    ):
        assert (ROOT / path).exists(), path


@each_document
def test_every_heading_that_a_link_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        page = document.parent / target if target else document
        headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
        known = {re.sub(r"[^\w -]", "", one.lower()).strip().replace(" ", "-") for one in headings}
        assert anchor in known, anchor


@each_document
def test_blocks_are_in_a_language_that_the_tests_can_check(document: Path) -> None:
    for block in blocks(document):
        assert block.language in LANGUAGES, block.where


def test_guarantees_name_a_test_in_every_row() -> None:
    rows = [
        line
        for line in (DOCS / "guarantees.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith(("| what holds", "| fault"))
    ]
    assert len(rows) > 100
    for row in rows:
        assert re.search(r"`(?:tests/[\w/]+\.py|test_\w+|Test\w+)", row), row


# ── the tree, the command line, the settings ────────────────────────────────────────────────────


@pytest.mark.parametrize("document", [README, DOCS / "architecture.md"], ids=name_of)
def test_the_tree_in_a_document_is_the_tree_of_the_code(document: Path) -> None:
    drawn = set(re.findall(r"[├└]── ([\w:<>]+)", document.read_text(encoding="utf-8")))
    spec = build_tree(
        wanted_path="",
        arena_path="",
        ram_bytes=0,
        file_tiers=(FileTier("disk", "", 0),),
        gateway=GatewaySettings(listen=(Listen("127.0.0.1", 8080),)),
        residency=ResidencyArgs("", ""),
    )
    assert drawn == _ids(spec) | {"model:<id>"}


def _ids(spec: SupervisorSpec) -> set[str]:
    found: set[str] = set()
    for child in spec.children:
        found.add(child.id)
        if isinstance(child.args, SupervisorSpec):
            found |= _ids(child.args)
    return found


@each_document
def test_commands_in_a_document_are_commands(document: Path) -> None:
    from _generate import cli

    for command in commands(document):
        if command.is_ours:
            cli.check(command.words[1:])
        else:
            _check_other(command)


@each_document
def test_commands_that_need_root_or_a_container_are_parsed_too(document: Path) -> None:
    from _generate import cli

    names = {one.name for one in cli.commands()}
    for block in blocks(document, "text"):
        for line in block.text.replace("\\\n", " ").splitlines():
            called = line.rpartition("llama-actors ")[2]
            if called != line and called.split()[0] in names:
                cli.check(shlex.split(called, comments=True))


def _check_other(command: Command) -> None:
    match command.words[0].removeprefix(".venv/bin/"), *command.words[1:]:
        case ("make", *targets):
            assert set(targets) <= _make_targets(), command.where
        case ("python", "-m", module, *_):
            assert module in ("pytest", "uv") or _is_module(module), command.where
        case ("python", script, *_):
            assert (ROOT / script).exists(), command.where
        case _:
            raise AssertionError(f"{command.where}: no test can check {command.line!r}")


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@functools.cache
def _make_targets() -> set[str]:
    lines = re.findall(r"^([a-z]+(?: [a-z]+)*):", (ROOT / "Makefile").read_text(), re.M)
    return {name for line in lines for name in line.split()}


@each_document
def test_commands_and_flags_named_in_a_text_exist(document: Path) -> None:
    from _generate import cli

    text = prose(document)
    flags: dict[str, set[str]] = {}
    for one in cli.commands():
        words = {flag for part in one.parameters for flag in re.findall(r"--[\w-]+", part.usage)}
        flags[one.name] = words | {"--help", "--version"}
    for shown in re.findall(r"`(?:llama-actors|python -m runtime) ([^`]+)`", text):
        if shown[0].isupper():
            continue  # COMMAND
        words = shown.replace("\\|", "|").split()
        name = " ".join(words[:2]) if " ".join(words[:2]) in flags else words[0]
        assert name in flags, shown
        named = {flag for word in words for flag in re.findall(r"^--[\w-]+", word)}
        assert named <= flags[name], shown
    assert set(re.findall(r"`make ([a-z]+)", text)) <= _make_targets()


@each_document
def test_settings_in_a_document_are_settings(document: Path) -> None:
    for block in blocks(document, "toml"):
        assert from_mapping(tomllib.loads(block.text)).directories(), block.where


@each_document
def test_python_in_a_document_compiles(document: Path) -> None:
    for block in blocks(document, "python"):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(block.text, block.where, "exec", flags=flags)


# ── reference pages ─────────────────────────────────────────────────────────────────────────────


def test_every_command_and_flag_is_explained() -> None:
    from _generate import cli

    known, reference = cli.commands(), cli.reference()
    assert {"serve", "complete", "chat", "cache stat", "doctor"} <= {one.name for one in known}
    for command in known:
        assert command.purpose, command.name
        for one in command.parameters:
            # A positional argument whose name is its meaning needs no sentence: MODEL, PROMPT.
            assert one.purpose or not one.usage.startswith("-"), (command.name, one.usage)
        assert f"## llama-actors {command.name}\n" in reference


def test_every_setting_is_explained() -> None:
    from _generate import settings

    page = settings.reference()
    for table in ("[save]", "[live]", "[logits]", "[restore]", "[pressure]", "[models.ID]"):
        assert re.search(rf"^## `?{re.escape(table)}", page, re.M), table
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    for row in rows:
        assert re.search(r"\| [^|]*\w[^|]* \|$", row.replace("\\|", "")), row


def test_names_in_the_reference_are_public() -> None:
    import runtime
    import supervision

    for page, package in (("python-api", runtime), ("supervision-api", supervision)):
        text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
        shown = set(re.findall(rf"auto\w+:: {package.__name__}\.(\w+)$", text, re.M))
        assert shown - {"errors"} <= set(package.__all__)
    # What this page does not have is added when the site is built.
    assert "generated: other names" in (DOCS / "reference" / "python-api.md").read_text()


def test_the_byte_map_of_a_row_is_that_of_the_code() -> None:
    import cache.rows

    shown = (DOCS / "kv-cache-format.md").read_text(encoding="utf-8")
    row = re.compile(r"^ *(\d+) +(\d+) (bytes|u8|u16|u32|u64|f64) +(\w+)", re.M)
    assert row.findall(shown) == row.findall(cache.rows.__doc__ or "")


def test_every_page_is_in_the_table_of_contents() -> None:
    import fnmatch

    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = [
        line
        for block in re.findall(r"```{toctree}\n(.*?)```", index, re.S)
        for line in block.splitlines()
        if line and not line.startswith(":")
    ]
    for page in PAGES:
        name = str(page.relative_to(DOCS).with_suffix(""))
        assert name == "index" or any(fnmatch.fnmatchcase(name, one) for one in listed), name


def test_a_site_that_loads_from_the_network_is_refused(tmp_path: Path) -> None:
    from _generate import check_site

    page, style = tmp_path / "index.html", tmp_path / "style.css"
    style.write_text("a { background: url(local.png) }")
    page.write_text('<script src="x.js"></script><a href="https://example.org">there</a>')
    assert check_site.main([str(tmp_path)]) == 0
    for text in (
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="//example.org/x.css">',
        '<img src="http://example.org/x.png">',
    ):
        page.write_text(text)
        assert check_site.main([str(tmp_path)]) == 1
    page.write_text("")
    style.write_text("@import 'https://example.org/font.css';")
    assert check_site.main([str(tmp_path)]) == 1


# ── sizes and file maps ─────────────────────────────────────────────────────────────────────────


def test_the_readme_is_short_and_shows_the_two_commands() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert any(line.startswith("make demo") for line in lines)
    assert any(line.startswith("make test") for line in lines)


@pytest.mark.parametrize("document", READMES, ids=name_of)
def test_the_readme_of_a_package_is_one_screen_and_maps_its_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    package = document.parent
    named, whole_folders = _mapped(text)
    there = {
        str(path.relative_to(package).with_suffix(""))
        for path in package.rglob("*.py")
        if path.stem not in ("__init__", "__main__") and "__pycache__" not in path.parts
    }
    there = {one for one in there if not one.startswith(tuple(whole_folders))}
    assert named - there == set(), "named, but not there"
    assert there - named == set(), "there, but not named"


def _mapped(text: str) -> tuple[set[str], set[str]]:
    """The files that a file map names, and the folders that it names as a whole.

    In the first column a name that ends in ``/:`` is the folder of the names after it, also in the
    rows below, until the next such name; a folder without a colon stands for all that is in it.
    """
    named: set[str] = set()
    whole: set[str] = set()
    folder = ""
    table = text.partition("| file | purpose |\n|---|---|\n")[2]
    for row in table.splitlines():
        if not row.startswith("|"):
            break
        for name, colon in re.findall(r"`([\w/]+)`(:?)", row.split(" | ")[0]):
            if name.endswith("/") and colon:
                folder = name
            elif name.endswith("/"):
                whole.add(name)
            else:
                named.add(folder + name)
    return named, whole


def test_examples_are_short_and_numbered() -> None:
    examples = sorted((ROOT / "examples").glob("[0-9]*.py"))
    assert [int(path.name[:2]) for path in examples] == list(range(1, len(examples) + 1))
    assert len(examples) >= 12
    for path in examples:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path


# ── the code ────────────────────────────────────────────────────────────────────────────────────


def test_one_actor_per_file_and_each_lists_what_it_owns() -> None:
    for path in sorted((ROOT / "actors").rglob("*.py")):
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
    for package in SOURCES:
        for path in (ROOT / package).rglob("*.py"):
            if re.search(r"^\s*(from|import) thespian", path.read_text(encoding="utf-8"), re.M):
                doors.append(path.name)
    assert all(name.startswith("_") for name in doors), doors


def test_nothing_pickles_or_unpickles() -> None:
    for package in SOURCES:
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*(import|from) pickle|pickle\.loads?\(", source, re.M), path
