"""Whole nodes with several tiers: who holds what, who may use what, and what a lost disk costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime import Node, RuntimeConfig, errors
from runtime.client.cache.upkeep import is_flushed
from runtime.errors import ConfigError
from runtime.launch import tier_directories as cache_tiers
from runtime.launch.tier_directories import open_directories, stored_bytes
from runtime.settings import config as runtime_config
from runtime.settings.config import from_mapping
from tests.support.nodes import free_port
from tests.support.runtime_nodes import PROMPT, LeakCheck, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


def start(tmp_path: Path, name: str = "a", **options: Any) -> Node:
    settings: dict[str, Any] = {
        "cache_ram": "32MiB",
        "runtime_dir": tmp_path / name,
        "log_file": tmp_path / f"{name}.log",
    }
    return Node.start(**(settings | options))


def cache(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = status_of(node, "cache_meta")
    return found


def persisted(node: Node) -> None:
    eventually(lambda: is_flushed(node.client), what="all is persisted")


def ask(node: Node, prompt: str = PROMPT) -> str:
    """Complete on a model that was just loaded, so that nothing is live in it; the source."""
    node.load("stub", "stub", backend="stub")
    source = node.complete("stub", prompt, max_tokens=2).cache.source
    node.unload("stub")
    return source


def test_rows_in_ram_file_survive_the_node_and_come_back_into_ram(tmp_path: Path) -> None:
    config = RuntimeConfig(cache_ram_file=16 << 20, cache_ram_file_dir=tmp_path / "shm")
    options = {"config": config, "port": free_port(), "cache_disk": 0}
    with LeakCheck() as leaks:
        with start(tmp_path, **options) as node:
            leaks.watch(node)
            assert ask(node) == "none"
            persisted(node)
            assert node.tree().find("tier:ram_file") is not None
        with start(tmp_path, **options) as node:
            leaks.watch(node)
            eventually(lambda: "ram_file" in cache(node)["scanned"], what="the scan")
            assert ask(node) == "ram_file"
            eventually(lambda: cache(node)["promoted"] > 0, what="rows are promoted")
            eventually(lambda: not cache(node)["being_promoted"], what="all are")
            assert ask(node) == "ram"
            assert status_of(node, "tier:ram_file")["budget_bytes"] == 16 << 20
            assert status_of(node, "ram_tier")["promoted_bytes"] > 0


def test_two_disks_share_the_rows_and_belong_to_one_node(tmp_path: Path) -> None:
    disks: dict[str | Path, str | int] = {tmp_path / "one": "64MiB", tmp_path / "two": "64MiB"}
    with LeakCheck() as leaks, start(tmp_path, cache_disks=disks) as node:
        leaks.watch(node)
        for number in range(6):
            ask(node, f"{number} {PROMPT}")
        persisted(node)
        held = [stored_bytes(Path(disk) / "rows") for disk in disks]
        assert all(held)
        tiers = cache(node)["tiers"]
        assert [tiers[name]["used_bytes"] for name in ("disk", "disk2")] == held
        assert sum(held) < 2 * tiers["ram"]["used_bytes"]
        with pytest.raises(errors.NodeStartFailed, match="another node uses it"):
            start(tmp_path, "b", cache_disks={tmp_path / "two": "1MiB"})
        with start(tmp_path, "c", cache_disks={tmp_path / "three": "1MiB"}) as other:
            leaks.watch(other)
            assert ask(other) == "none"


def test_a_node_whose_disk_vanishes_answers_and_warns_once_and_finds_it_again(
    tmp_path: Path,
) -> None:
    root = tmp_path / "cache" / "rows"
    with LeakCheck() as leaks, start(tmp_path, cache_dir=tmp_path / "cache") as node:
        leaks.watch(node)
        ask(node)
        persisted(node)
        stored = cache(node)["tiers"]["disk"]["rows"]
        root.rename(root.with_name("away"))
        root.write_text("something else lies here")
        ask(node, f"another {PROMPT}")
        assert ask(node) == "ram"
        eventually(lambda: cache(node)["tiers"]["disk"]["state"] == "gone", what="it is noticed")
        root.unlink()
        root.with_name("away").rename(root)
        eventually(lambda: cache(node)["tiers"]["disk"]["state"] == "open", what="it is back")
        persisted(node)
        assert cache(node)["tiers"]["disk"]["rows"] > stored
        assert ask(node, f"another {PROMPT}") == "ram"
    log = (tmp_path / "a.log").read_text(encoding="utf-8")
    assert log.count("takes no rows until it recovers") == 1
    assert log.count("takes rows again") == 1


def test_a_second_node_goes_without_the_default_ram_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_config, "RAM_FILE_ROOT", tmp_path)
    config = from_mapping({"cache_ram_file": "1MiB", "cache_disk": 0})
    first, tiers, _ = open_directories(config)
    assert [tier.name for tier in tiers] == ["ram_file"]
    second, none, absent = open_directories(config)
    assert (second, none) == ((), ())
    ((name, why),) = absent
    assert name == "ram_file"
    assert "another node uses it" in why
    for fd in first:
        os.close(fd)


def test_a_share_counts_what_the_tier_holds_already_as_free(tmp_path: Path) -> None:
    config = from_mapping({"cache_disks": {str(tmp_path): "50%"}})
    rows = tmp_path / cache_tiers.ROWS_DIR
    room = os.statvfs(tmp_path)
    (rows / "ab").mkdir(parents=True)
    (rows / "ab" / "row.kvb").write_bytes(bytes(1 << 20))
    locks, (tier,), _ = open_directories(config)
    free = room.f_bavail * room.f_frsize
    assert tier.budget_bytes == pytest.approx(free / 2, rel=0.05)
    assert tier.device == os.stat(rows).st_dev
    for fd in locks:
        os.close(fd)


def test_more_memory_files_than_memory_are_refused_with_the_way_out(tmp_path: Path) -> None:
    config = from_mapping(
        {"cache_ram_file": "900TiB", "cache_ram_file_dir": str(tmp_path), "cache_disk": 0}
    )
    with pytest.raises(ConfigError, match="smaller --cache-ram-file"):
        open_directories(config)
    with pytest.raises(ConfigError, match="smaller --cache-ram-file"):
        open_directories(config)  # the failed try has let go of the lock


def test_a_node_without_a_ram_tier_caches_on_disk(tmp_path: Path) -> None:
    with LeakCheck() as leaks:
        for expected in ("none", "disk"):
            with start(tmp_path, cache_ram=0, cache_dir=tmp_path / "cache") as node:
                leaks.watch(node)
                assert ask(node) == expected
                persisted(node)
                assert cache(node)["tiers"]["ram"]["budget_bytes"] <= runtime_config.STAGING_BYTES


def test_a_stop_writes_all_that_waits_and_loses_no_order(tmp_path: Path) -> None:
    """More rows than are under way at a time: the writer takes what is left before it ends."""
    prompts = [f"{number} once upon a time there was a fox " * 40 for number in range(6)]
    folders = {"cache_dir": tmp_path / "cache", "runtime_dir": tmp_path / "run"}
    with Node.start(cache_ram="64MiB", log_file=tmp_path / "log", **folders) as node:
        node.load("stub", "stub", backend="stub")
        for prompt in prompts:
            assert node.complete("stub", prompt, max_tokens=20).usage.cached_tokens < 64
    assert "not known to have arrived" not in (tmp_path / "log").read_text(encoding="utf-8")
    with Node.start(cache_ram="64MiB", **folders) as node:
        node.load("stub", "stub", backend="stub")
        eventually(
            lambda: "disk" in cache(node)["scanned"], within_s=20, what="the disk is scanned"
        )
        for prompt in prompts:
            n_tokens = len(node.tokenize("stub", prompt))
            assert node.match_prefix("stub", prompt).stored >= n_tokens // 64 * 64
