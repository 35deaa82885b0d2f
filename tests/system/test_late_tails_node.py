"""The end of a reply is on disk after a clean stop, however soon the stop comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.messages import Removal
from cache.filesystem import PosixFilesystem
from cache.scan import rescan
from runtime import Node
from runtime.cache_node import CacheTender
from runtime.flush import flush

pytestmark = pytest.mark.system
PROMPT = [1 + n % 150 for n in range(100)]


def node_in(home: Path) -> Node:
    return Node.start(cache_dir=home / "cache", cache_ram="32MiB", runtime_dir=home / "run")


def stored_tokens(home: Path) -> int:
    rows = home / "cache" / "rows"
    return sum(row.header.n_tokens for row in rescan(PosixFilesystem(), str(rows)).rows)


def test_a_clean_stop_leaves_the_end_of_the_last_reply_on_disk(tmp_path: Path) -> None:
    with node_in(tmp_path) as node:
        node.load("stub", "stub", backend="stub")
        node.complete("stub", PROMPT, max_tokens=10)
    assert stored_tokens(tmp_path) == 109  # the last token said was never decoded


def test_another_process_of_the_same_model_waits_for_the_end_that_one_holds_back(
    tmp_path: Path,
) -> None:
    with node_in(tmp_path) as node:
        for name in ("one", "two"):
            node.load(name, "stub", backend="stub")
        first = node.complete("one", PROMPT, max_tokens=10)
        again = [*PROMPT, *first.tokens[:-1]]
        second = node.complete("two", [*again, 3, 4], max_tokens=2, parent_key=first.finish_key)
        assert second.usage.cached_tokens == len(again)
        assert second.cache.source == "ram"


def test_wiped_means_wiped_also_in_the_context(tmp_path: Path) -> None:
    with node_in(tmp_path) as node:
        node.load("stub", "stub", backend="stub")
        node.complete("stub", PROMPT, max_tokens=10)
        flush(node.client)  # a row that is just being copied is pinned, and would stay
        tender = CacheTender(node.client)
        tender.forget_live(None)
        tender.remove_all(Removal.ALL)
        tender.close()
        assert node.complete("stub", PROMPT, max_tokens=10).usage.cached_tokens == 0
