"""Save settings reach the models of a real node."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import Node
from runtime.settings.config import from_mapping
from tests.support.nodes import free_port
from tests.support.runtime_nodes import status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


def rows(node: Node) -> int:
    return int((status_of(node, "cache_meta") or {})["rows"])


def test_prompts_below_min_tokens_are_not_saved(tmp_path: Path) -> None:
    config = from_mapping({"save": {"min_tokens": 200}, "cache_disk": 0, "cache_ram": "32MiB"})
    with Node.start(config=config, port=free_port(), runtime_dir=tmp_path / "run") as node:
        node.load("stub", "stub", backend="stub")
        node.complete("stub", [1 + n % 150 for n in range(100)], max_tokens=4)
        assert rows(node) == 0
        node.complete("stub", [1 + n % 150 for n in range(300)], max_tokens=4)
        eventually(lambda: rows(node) >= 4, what="a long prompt is saved")
