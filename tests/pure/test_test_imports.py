"""Test modules share code through ``tests.support`` only: each can be read and moved alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

TESTS = Path(__file__).parents[1]
FROM_A_TEST_MODULE = re.compile(
    r"^\s*(?:from|import)\s+(?:\.|tests\.(?:fault|model|pure|system)\b)"
    r"|from tests import .*\b(?:fault|model|pure|system)\b"
    r"|from tests\.(?:fault|model|pure|system)\b",  # also in the text of a subprocess
    re.MULTILINE,
)


def test_no_test_imports_from_another_test_module() -> None:
    this = Path(__file__)
    found = [
        f"{path.relative_to(TESTS)}: {match[0].strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != this
        for match in FROM_A_TEST_MODULE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
