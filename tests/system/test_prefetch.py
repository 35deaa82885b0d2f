"""What a request needs comes from disk to RAM while it waits behind another one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cache.policy import RestorePolicy
from native.stub import UNCUTTABLE
from runtime import RuntimeConfig
from tests.support.queueing import (
    OTHER,
    cache_of,
    occupied,
    restarted_with_rows,
)
from tests.support.runtime_nodes import PROMPT, inflight_status, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system


def test_a_request_that_waited_starts_from_ram_although_its_rows_were_on_disk(
    tmp_path: Path,
) -> None:
    with restarted_with_rows(tmp_path) as one, ThreadPoolExecutor(1) as pool:
        node, cold = one.node, one.cold
        with occupied(node):
            asked = pool.submit(node.complete, "stub", PROMPT, max_tokens=len(cold.tokens))
            one.wait_until_prefetched()
            assert not asked.done()
        done = asked.result(60)
        assert done.cache.source == "ram"
        assert done.tokens == cold.tokens
        eventually(lambda: not cache_of(node)["prefetching_requests"], what="it is known to run")
        status = cache_of(node)
        assert status["prefetched_used"] == status["prefetched"]
        assert status["prefetched_unused"] == status["promoted"] == 0


def test_of_a_model_that_cannot_be_cut_the_one_state_comes_that_is_restored(
    tmp_path: Path,
) -> None:
    with (
        restarted_with_rows(tmp_path, UNCUTTABLE) as one,
        ThreadPoolExecutor(1) as pool,
    ):
        node, cold = one.node, one.cold
        assert len(one.keys) > 1
        with occupied(node):
            asked = pool.submit(node.complete, "stub", PROMPT, max_tokens=len(cold.tokens))
            eventually(lambda: cache_of(node)["prefetched"], what="its state comes")
        done = asked.result(60)
        assert done.cache.source == "ram"
        assert done.tokens == cold.tokens
        assert cache_of(node)["prefetched"] == 1


def test_a_request_that_starts_at_once_prefetches_nothing(tmp_path: Path) -> None:
    with restarted_with_rows(tmp_path) as one:
        node = one.node
        assert node.complete("stub", PROMPT, max_tokens=1).cache.source == "disk"
        assert cache_of(node)["prefetched"] == 0


def test_a_request_that_is_cancelled_while_it_waits_gives_its_share_back(tmp_path: Path) -> None:
    with restarted_with_rows(tmp_path) as one, ThreadPoolExecutor(1) as pool, occupied(one.node):
        node = one.node
        waiting = node.stream("stub", PROMPT, max_tokens=1)
        ended = pool.submit(lambda: list(waiting))
        one.wait_until_prefetched()
        waiting.cancel()
        ended.result(60)
        eventually(
            lambda: not cache_of(node)["prefetching_requests"], what="it is known to be gone"
        )
        assert cache_of(node)["prefetched_unused"] == cache_of(node)["prefetched"]


def test_prefetching_can_be_turned_off(tmp_path: Path) -> None:
    config = RuntimeConfig()
    off = RestorePolicy(prefetch=False)
    config = replace(config, save=replace(config.save, restore=off))
    with restarted_with_rows(tmp_path, config=config) as one, ThreadPoolExecutor(1) as pool:
        node = one.node
        with occupied(node):
            asked = pool.submit(node.complete, "stub", PROMPT, max_tokens=1)
            eventually(lambda: inflight_status(node)["in_flight"] == 2, what="it waits")
            eventually(lambda: status_of(node, "model:stub")["waiting"] == 1, what="in the engine")
        assert asked.result(60).cache.source == "disk"
        assert cache_of(node)["prefetched"] == 0
        assert node.complete("stub", OTHER, max_tokens=1).tokens
