"""Replies that come back as text are hit through their last token, whatever died meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors import messages as m
from native.params import SamplingParams
from runtime import Node
from runtime.client.received import Received
from runtime.embedded import path as embedded
from tests.support.runtime_nodes import kill, one_thread, pid_of, started, status_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

USER = {"role": "user", "content": "Tell me a story about a fox and a bear, please. " * 4}
MORE = {"role": "user", "content": "Go on!"}


class Turn:
    """One turn of a chat: its text, and what was warm."""

    def __init__(
        self, node: Node, messages: list[dict[str, str]], seed: int, **fields: Any
    ) -> None:
        asked = m.Complete(
            "c", "m", m.ConversationPrompt(json.dumps(messages)), max_tokens=90,
            sampling=SamplingParams(temperature=1.5, seed=seed), **fields,
        )  # fmt: skip
        received = Received()
        for one in node.connection.stream("inflight", asked, idle_timeout_s=30):
            if isinstance(one, m.TokensDelivered):
                received.take(one)
            elif isinstance(one, m.Completed):
                self.done = one
                break
            assert not isinstance(one, m.CompletionFailed), one
        self.text, self.n_said = received.text, len(received)

    @property
    def n_whole(self) -> int:
        return self.done.usage.prompt_tokens + self.n_said

    @property
    def n_cached(self) -> int:
        return self.done.usage.cached_tokens


def replays(node: Node) -> int:
    return int(node.model_info("m").details["replays"])


def known(node: Node) -> int:
    return int((node.client.report_of("cache_meta") or {"replies_known": 0})["replies_known"])


def settle(node: Node) -> None:
    """Everything that is put off is stored in files."""
    eventually(
        lambda: node.connection.ask("cache_meta", m.PersistNow("p"), timeout_s=30).is_all,  # type: ignore[attr-defined]
        within_s=30,
        what="all rows are in files",
    )


def messages(first: Turn, *more: Turn) -> list[dict[str, str]]:
    said = [USER]
    for turn in (first, *more):
        said += [{"role": "assistant", "content": turn.text}, MORE]
    return said


CONFIG = one_thread(embedded(), n_ctx=2048)


@pytest.mark.parametrize(("seed", "dies_too"), [(1, None), (2, None), (3, "cache_meta")])
def test_after_a_kill_of_the_model_a_chat_continues_with_its_exact_tokens(
    tmp_path: Path, seed: int, dies_too: str | None
) -> None:
    with started(tmp_path, models={"m": CONFIG}) as node:
        eventually(lambda: [s for s in node.models() if s.state == "up"], within_s=30, what="up")
        first = Turn(node, [USER], seed)
        second = Turn(node, messages(first), seed)
        assert second.n_cached >= first.n_whole - 1
        settle(node)
        if dies_too is not None:  # marks come back from the rows
            kill(pid_of(node, dies_too))
            eventually(lambda: known(node) > 1, within_s=30, what="marks are found")
        kill(pid_of(node, "model:m"))
        pid_of(node, "model:m")
        third = Turn(node, messages(first, second), seed)
        assert replays(node) == 1
        assert third.n_cached >= second.n_whole - 1


def test_after_a_restart_of_the_node_too(tmp_path: Path) -> None:
    with started(tmp_path, models={"m": CONFIG}) as node:
        eventually(lambda: [s for s in node.models() if s.state == "up"], within_s=30, what="up")
        turns = {}
        for seed in range(8):
            turn = Turn(node, [USER], seed)
            if "\ufffd" in turn.text:
                continue  # bytes that are no text do not come back
            turns[seed] = turn
            if seed % 2:
                settle(node)  # as in a pause: the tails are stored, and go when the next turn comes
        assert len(turns) >= 4
        later = {seed: Turn(node, messages(turns[seed]), seed) for seed in turns}
        settle(node)
    with started(tmp_path, models={"m": CONFIG}) as node:
        eventually(lambda: [s for s in node.models() if s.state == "up"], within_s=30, what="up")
        eventually(
            lambda: "disk" in status_of(node, "cache_meta")["scanned"],
            within_s=30,
            what="scanned",
        )
        for seed, turn in turns.items():
            before = replays(node)
            again = Turn(node, messages(turn), seed)
            assert replays(node) == before + 1
            assert again.n_cached >= turn.n_whole - 1
            assert again.text == later[seed].text
            third = Turn(node, messages(turn, later[seed]), seed)
            assert third.n_cached >= later[seed].n_whole - 1


def test_what_was_evicted_is_a_miss_and_no_more(tmp_path: Path) -> None:
    with started(tmp_path, models={"m": CONFIG}) as node:
        eventually(lambda: [s for s in node.models() if s.state == "up"], within_s=30, what="up")
        first = Turn(node, [USER], 1)
        settle(node)
        kill(pid_of(node, "model:m"))
        pid_of(node, "model:m")
        node.connection.ask("cache_meta", m.RemoveRows("r", m.Removal.ALL), timeout_s=30)
        again = Turn(node, messages(first), 1)
        assert again.n_cached == 0
        assert again.text
