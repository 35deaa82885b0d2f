"""The end of a reply is on disk after a clean stop, however soon the stop comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.messages import Removal
from cache.filesystem import PosixFilesystem
from cache.scan import rescan
from runtime import Node
from runtime.client.cache.admin import OnlineCacheAdmin
from runtime.client.cache.upkeep import flush

pytestmark = pytest.mark.system
PROMPT = [1 + n % 150 for n in range(100)]


def node_in(home: Path) -> Node:
    return Node.start(cache_dir=home / "cache", cache_ram="32MiB", runtime_dir=home / "run")


def stored_tokens(home: Path) -> int:
    rows = home / "cache" / "rows"
    return sum(row.header.id.n_tokens for row in rescan(PosixFilesystem(), str(rows)).rows)


def test_a_clean_stop_leaves_the_end_of_the_last_reply_on_disk(tmp_path: Path) -> None:
    with node_in(tmp_path) as node:
        node.load("stub", "stub", backend="stub")
        node.complete("stub", PROMPT, max_tokens=10)
    assert stored_tokens(tmp_path) == 109  # the last token of the reply was never decoded


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
        tender = OnlineCacheAdmin(node.client)
        tender.forget_live(None)
        tender.remove_all(Removal.ALL)
        tender.close()
        assert node.complete("stub", PROMPT, max_tokens=10).usage.cached_tokens == 0


def stored_bytes(home: Path) -> int:
    return sum(row.nbytes for row in rescan(PosixFilesystem(), str(home / "cache" / "rows")).rows)


def test_a_conversation_with_pauses_takes_no_more_than_the_same_text_at_once(
    tmp_path: Path,
) -> None:
    """What waits is written after each turn, which is what a long pause does."""
    text, ends = list(PROMPT), {}
    with node_in(tmp_path / "turns") as node:
        node.load("stub", "stub", backend="stub")
        for turn in range(20):
            text += [1 + (7 * turn + n) % 150 for n in range(60)]
            done = node.complete("stub", text, max_tokens=11, temperature=1.0, seed=turn)
            text += done.tokens
            ends[done.finish_key] = len(text) - 1
            flush(node.client)
        meta = node.status()["actors"]["cache_meta"] or {}
        assert meta["tails_removed"] >= 2 * 17  # in RAM and on disk; some turns end with a block
        ram, disk = (meta["tiers"][tier]["used_bytes"] for tier in ("ram", "disk"))
        n_tokens = len(text) - 1
    assert stored_tokens(tmp_path / "turns") == n_tokens
    with node_in(tmp_path / "once") as node:
        node.load("stub", "stub", backend="stub")
        cold = node.complete("stub", text[:-1], max_tokens=0)
        assert cold.usage.cached_tokens == 0
        flush(node.client)
        once = (node.status()["actors"]["cache_meta"] or {})["tiers"]
        question = [*text, 9, 9, 9]
        right = node.complete("stub", question, max_tokens=8).tokens
    assert disk == stored_bytes(tmp_path / "turns")
    assert ram <= 1.05 * once["ram"]["used_bytes"]
    assert disk <= 1.05 * once["disk"]["used_bytes"]
    with node_in(tmp_path / "turns") as node:
        node.load("stub", "stub", backend="stub")
        warm = node.complete("stub", question, max_tokens=8)
        assert warm.usage.cached_tokens == n_tokens
        assert warm.tokens == right
        for key, n_before in ends.items():
            again = node.complete("stub", [*text[:n_before], 7, 7], max_tokens=1, parent_key=key)
            assert again.cache.note is None
            assert again.usage.cached_tokens >= n_before


def test_a_stop_at_once_leaves_every_block_of_a_long_prompt_on_disk(tmp_path: Path) -> None:
    """More blocks than the writer is given at a time; the stop waits until all are written."""
    prompt = [1 + (7 * n) % 150 for n in range(64 * 110 + 20)]
    with node_in(tmp_path) as node:
        node.load("stub", "stub", backend="stub", n_ctx=8192)
        node.complete("stub", prompt, max_tokens=10)
    assert stored_tokens(tmp_path) == len(prompt) + 9
