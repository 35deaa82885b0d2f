"""Nodes in which requests wait behind another one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors import messages as m
from runtime import Completion, Node, TokenEvent, errors
from runtime.client.cache.upkeep import is_flushed
from supervision.messages import new_ref
from tests.support.runtime_nodes import PROMPT, LeakCheck, started, status_of
from tests.support.waiting import eventually

OTHER = [66] * 20
"""A prompt that begins as no other one does, not even with the token that begins texts."""


def cache_of(node: Node) -> dict[str, Any]:
    """What cache_meta reports."""
    found: dict[str, Any] = status_of(node, "cache_meta")
    return found


def keys_in(node: Node, tier: str) -> set[bytes]:
    """Keys of the rows that a tier holds."""
    keys: set[bytes] = set()
    cursor = 0
    while True:
        page = node.client.ask("cache_meta", m.ListRows(new_ref(), cursor=cursor, tier=tier))
        assert isinstance(page, m.RowsListed)
        keys |= {row.key for row in page.rows}
        cursor = page.cursor
        if not cursor:
            return keys


@dataclass(frozen=True)
class Restarted:
    """A node that has the rows of ``PROMPT`` on disk only."""

    node: Node
    cold: Completion
    """Its reply before the restart."""
    keys: set[bytes]
    """Of these rows."""

    def wait_until_prefetched(self) -> None:
        """Until all these rows were copied for a queued request."""

        def are_there() -> bool:
            with contextlib.suppress(errors.NoReply):  # from a cache_meta that was killed
                return self.keys <= keys_in(self.node, "ram")
            return False

        eventually(are_there, what="the rows of the queued request are in RAM")


@contextlib.contextmanager
def restarted_with_rows(tmp_path: Path, path: str = "stub", **options: Any) -> Iterator[Restarted]:
    """A node that was restarted; its model "stub" runs one request at a time.

    ``path`` is that of the stub, see ``native.stub``.
    """
    with LeakCheck() as leaks:
        with started(tmp_path) as node:
            leaks.watch(node)
            node.load("stub", path, backend="stub")
            cold = node.complete("stub", PROMPT, max_tokens=10)
            eventually(lambda: is_flushed(node.client), what="all is on disk")
        with started(tmp_path, **options) as node:
            leaks.watch(node)
            node.load("stub", path, backend="stub", n_seq_max=1, n_ctx=131_072)
            eventually(lambda: len(cache_of(node)["scanned"]) == 2, what="both tiers are scanned")
            assert not keys_in(node, "ram")
            yield Restarted(node, cold, keys_in(node, "disk"))
            leaks.watch(node)


@contextlib.contextmanager
def occupied(node: Node) -> Iterator[None]:
    """While the block runs, the model generates for a request of another prompt."""
    stream = node.stream("stub", OTHER, max_tokens=100_000)
    try:
        next(event for event in stream if isinstance(event, TokenEvent))
        yield
    finally:
        stream.close()
