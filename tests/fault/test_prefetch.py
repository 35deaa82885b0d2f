"""Rows of queued requests that come into RAM: what may hold that up, and what it may cost."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from actors import messages as m
from actors.storage.prefetch import SHARE
from cache.publish import row_path
from tests.support.queueing import (
    OTHER,
    cache_of,
    occupied,
    restarted_with_rows,
)
from tests.support.runtime_nodes import PROMPT, kill, pid_of
from tests.support.tier_rig import ROW_BYTES, Rig, up
from tests.support.waiting import eventually

pytestmark = pytest.mark.fault


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Three prompts of three rows each, on disk; the arena holds none of them."""
    stored = Rig(tmp_path, monkeypatch, disk=64)
    for first in (1, 11, 21):
        stored.save(first, first + 1, first + 2)
    os.unlink(stored.arena)
    return Rig(tmp_path, monkeypatch, ram_rows=32, disk=64)


# ── one process, real files ─────────────────────────────────────────────────────────────────────


def test_rows_of_a_queued_request_come_into_ram_without_a_lookup(rig: Rig) -> None:
    rig.prefetch("a", 1, 2, 3)
    rig.run()
    status = rig.status()
    assert status["prefetched"] == 3
    assert (status["hits_exact"], status["leases"], status["promoted"]) == (0, 0, 0)
    assert rig.sources(1, 2, 3) == ["ram"] * 3
    rig.report(m.PrefetchEnded("a", rig.holder))
    assert rig.status()["prefetched_used"] == 3
    assert rig.status()["prefetching_requests"] == 0


def test_nothing_comes_for_a_request_that_ended_before(rig: Rig) -> None:
    rig.hung.add("ram")
    rig.prefetch("a", 1, 2, 3)
    rig.run()
    assert rig.status()["being_prefetched"] == 3
    rig.report(m.PrefetchEnded("a", rig.holder))
    rig.hung.clear()
    rig.run()
    status = rig.status()
    assert status["prefetched"] == status["prefetched_unused"] == 3
    assert status["being_prefetched"] == status["reservations"] == 0


def test_a_hit_goes_before_what_was_not_begun(rig: Rig) -> None:
    rig.hung.add("ram")
    rig.prefetch("a", 1, 2, 3)
    rig.run()
    assert rig.sources(11, 12, 13) == ["disk"] * 3
    assert rig.status()["being_promoted"] == 3
    rig.report(m.PrefetchEnded("a", rig.holder))
    rig.prefetch("b", 21, 22, 23)
    rig.hung.clear()
    orders = [message for _, message in rig.queue if isinstance(message, m.PromoteRows)]
    assert [len(order.rows) for order in orders] == [3, 3]  # nothing for "b" beside the hits
    rig.run()
    assert rig.status()["promoted"] == 3
    assert rig.sources(21, 22, 23) == ["ram"] * 3


def test_a_disk_that_does_not_keep_up_with_writes_reads_nothing_ahead(rig: Rig) -> None:
    rig.hung.add("disk")
    for number in range(100, 105):  # an eighth of the arena, four rows, may be under way
        rig.save(number)
    assert rig.tier("disk")["being_written"] == 4
    rig.prefetch("a", 1, 2, 3)
    rig.run()
    assert rig.status()["being_prefetched"] == rig.status()["prefetched"] == 0
    rig.hung.clear()
    rig.run()
    assert rig.status()["prefetched"] == 3


def test_long_queues_take_their_share_of_the_arena_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Rig(tmp_path, monkeypatch, disk=64)
    for number in range(12):
        stored.save(number)
    os.unlink(stored.arena)
    rig = Rig(tmp_path, monkeypatch, ram_rows=16, disk=64)
    for number in range(12):
        rig.prefetch(str(number), number)
    rig.run()
    n_before = rig.status()["prefetched"]
    assert n_before == rig.ram_bytes // SHARE // ROW_BYTES
    assert rig.sources(0) == ["ram"]
    rig.report(m.PrefetchEnded("0", rig.holder))
    rig.run()
    assert rig.status()["prefetched"] == n_before + 1


def test_files_of_rows_without_room_are_read_into_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Rig(tmp_path, monkeypatch, disk=64)
    names = [row_path(stored.roots["disk"], key) for key in stored.save(*range(12))]
    os.unlink(stored.arena)
    rig = Rig(tmp_path, monkeypatch, ram_rows=16, disk=64)
    read: list[str] = []
    rig.promoter._files.read_ahead = read.append  # type: ignore[method-assign]
    rig.prefetch("a", *range(12))
    rig.run()
    n_copied = rig.status()["prefetched"]
    assert 0 < n_copied < 12
    assert read == names[n_copied : n_copied + len(read)]
    assert rig.status()["read_ahead"] == len(read) > 0


def test_hotter_rows_stay_and_those_that_are_not_on_disk_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Rig(tmp_path, monkeypatch, disk=64)
    stored.save(1, 2)
    os.unlink(stored.arena)
    rig = Rig(tmp_path, monkeypatch, ram_rows=8, disk=64)
    rig.hung.add("disk")  # so that all that is saved now lies in the arena alone
    for number in range(100, 108):
        rig.save(number)
    rig.now += 1.0
    rig.hung.add("writer")
    rig.prefetch("a", 1, 2)
    rig.run()
    assert [rig.sources(number) for number in range(100, 108)] == [["ram"]] * 8
    assert rig.status()["prefetched"] == rig.status()["lost"] == 0


def test_what_is_slower_to_restore_than_to_compute_stays_where_it_is(rig: Rig) -> None:
    rig.prefetch("a", 1, 2, 3, slower=("disk",))
    rig.run()
    assert rig.status()["prefetched"] == 0


def test_the_end_of_the_model_ends_its_queue(rig: Rig) -> None:
    rig.hung.add("ram")
    rig.prefetch("a", 1, 2, 3)
    rig.meta.directory_changed((replace(up("model:m"), incarnation=2),))
    assert rig.status()["prefetching_requests"] == 0
    rig.hung.clear()
    rig.run()
    assert rig.status()["prefetched"] == 3


# ── processes that are killed ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("victim", ["ram_tier", "tier:disk", "cache_meta", "writer"])
def test_a_kill_during_a_prefetch_costs_no_more_than_time(tmp_path: Path, victim: str) -> None:
    with restarted_with_rows(tmp_path) as one, ThreadPoolExecutor(1) as pool:
        node, cold = one.node, one.cold
        copier = pid_of(node, "ram_tier")
        os.kill(copier, signal.SIGSTOP)
        with occupied(node):
            asked = pool.submit(node.complete, "stub", PROMPT, max_tokens=len(cold.tokens))
            eventually(lambda: cache_of(node)["being_prefetched"], what="it began")
            kill(pid_of(node, victim))
            if victim != "ram_tier":
                os.kill(copier, signal.SIGCONT)
            one.wait_until_prefetched()
            assert not asked.done()
        done = asked.result(60)
    assert done.tokens == cold.tokens
    assert done.cache.source == "ram"


def test_a_model_that_is_killed_while_requests_wait_leaves_nothing_behind(tmp_path: Path) -> None:
    with restarted_with_rows(tmp_path) as one, ThreadPoolExecutor(1) as pool:
        node, cold = one.node, one.cold
        copier = pid_of(node, "ram_tier")
        os.kill(copier, signal.SIGSTOP)
        with occupied(node):
            asked = pool.submit(node.complete, "stub", PROMPT, max_tokens=len(cold.tokens))
            eventually(lambda: cache_of(node)["being_prefetched"], what="it began")
            kill(pid_of(node, "model:stub"))
            os.kill(copier, signal.SIGCONT)
        done = asked.result(60)
        assert done.tokens == cold.tokens
        eventually(lambda: not cache_of(node)["prefetching_requests"], what="all ended")
        assert node.complete("stub", OTHER, max_tokens=1).tokens
