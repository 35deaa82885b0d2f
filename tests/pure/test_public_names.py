"""The docstrings of public names are the API's reference: none is missing."""

from __future__ import annotations

import ast
import doctest
import inspect
import itertools
from pathlib import Path

import pytest

import runtime
from runtime.client import options

pytestmark = pytest.mark.pure

CLASSES = [name for name in runtime.__all__ if inspect.isclass(getattr(runtime, name))]


def test_every_public_name_has_a_docstring() -> None:
    for name in CLASSES:
        assert inspect.getdoc(getattr(runtime, name)), name
    assert set(runtime.__all__) - set(CLASSES) == {"Event"}  # a union; see the next test


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_has_a_docstring(name: str) -> None:
    kind = getattr(runtime, name)
    missing = [
        attribute
        for attribute, value in inspect.getmembers(kind)
        if not attribute.startswith("_")
        and (inspect.isroutine(value) or isinstance(value, property))
        and not inspect.getdoc(value)
    ]
    assert missing == []


@pytest.mark.parametrize("module", ["answers", "results", "options"])
def test_every_field_is_described(module: str) -> None:
    source = Path(str(options.__file__)).with_name(f"{module}.py").read_text(encoding="utf-8")
    for cls in ast.parse(source).body:
        if not isinstance(cls, ast.ClassDef) or cls.name.endswith("Dict"):  # see the value's class
            continue
        for field, following in itertools.pairwise([*cls.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign):
                described = isinstance(following, ast.Expr)
                assert described or cls.name == "ChatPrompt", ast.unparse(field)


def test_the_examples_of_options_run() -> None:
    found = doctest.testmod(options)
    assert found.attempted >= 4
    assert not found.failed
