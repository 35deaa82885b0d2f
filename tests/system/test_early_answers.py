"""A node's answers before the first token: facts of refusals, how much is warm, the queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors import messages as m
from runtime import CompletionEvent, Event, Node, PrefillEvent, QueuedEvent, TokenEvent, errors
from tests.support.queueing import occupied
from tests.support.runtime_nodes import LeakCheck, started
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

N_CTX, EMBED = 1024, 64
TALK = "word " * 400
STORY = "Once upon a time there was a small fox. "


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """``stub`` runs one request at a time; ``demo`` is the embedded model."""
    with LeakCheck() as leaks, started(tmp_path_factory.mktemp("early")) as node:
        node.load("stub", "stub", backend="stub", n_seq_max=1, n_ctx=131_072)
        node.load("demo", n_threads=1, n_ctx=N_CTX, n_batch=256, n_ubatch=256, embed_tokens=EMBED)
        leaks.watch(node)
        yield node
        leaks.watch(node)


# ── facts ────────────────────────────────────────────────────────────────────────────────────────


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def n_tokens(node: Node, text: str) -> int:
    return len(node.tokenize("demo", text))


ASKED: dict[str, tuple[Callable[[Node], object], Callable[[Node], int], int]] = {
    "text": (
        lambda node: node.complete("demo", TALK * 4), lambda node: n_tokens(node, TALK * 4), N_CTX
    ),
    "tokens": (lambda node: node.complete("demo", [5] * 1500), lambda _: 1500, N_CTX),
    "exactly full": (lambda node: node.complete("demo", [5] * N_CTX), lambda _: N_CTX, N_CTX),
    "chat": (
        lambda node: node.chat("demo", chat(TALK * 4)),
        lambda node: len(node.apply_chat_template("demo", chat(TALK * 4)).tokens),
        N_CTX,
    ),
    "echo": (
        lambda node: node.complete("demo", TALK * 4, echo=True),
        lambda node: n_tokens(node, TALK * 4),
        N_CTX,
    ),
    "what is warm": (
        lambda node: node.match_prefix("demo", TALK * 4),
        lambda node: n_tokens(node, TALK * 4),
        N_CTX,
    ),
    "verify": (lambda node: node.verify("demo", [5] * 1020, [5] * 9), lambda _: 1029, N_CTX),
    "embed": (lambda node: node.embed("demo", TALK), lambda node: n_tokens(node, TALK), EMBED),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_a_prompt_that_is_too_long_is_refused_with_two_numbers(host: Node, what: str) -> None:
    ask, count, n_ctx = ASKED[what]
    with pytest.raises(errors.PromptTooLong) as caught:
        ask(host)
    assert (caught.value.n_prompt, caught.value.n_ctx) == (count(host), n_ctx)


def test_a_text_of_megabytes_is_refused_with_a_bound_and_without_tokenising_it(host: Node) -> None:
    text = "word " * 600_000
    with pytest.raises(errors.PromptTooLong, match="at least") as caught:
        host.complete("demo", text)
    assert caught.value.n_prompt is not None
    assert N_CTX < caught.value.n_prompt < 600_000


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_a_prompt_that_is_too_long_is_refused_before_its_turn(host: Node, kind: str) -> None:
    """Another request has the model, and yet another one waits."""
    long = "x" * 140_000 if kind == "text" else [65] * 131_072
    with occupied(host):
        waits = host.stream("stub", [70] * 9, max_tokens=3, queue_events=True)
        assert isinstance(next(waits), QueuedEvent)
        with pytest.raises(errors.PromptTooLong) as caught:
            host.complete("stub", long, timeout_s=60)
        eventually(lambda: host.pending_len("stub") == 1, what="only the other one waits")
        waits.close()
    n_prompt = 140_001 if kind == "text" else 131_072
    assert (caught.value.n_prompt, caught.value.n_ctx) == (n_prompt, 131_072)


def test_a_long_text_that_fits_is_what_it_was(host: Node) -> None:
    """It is tokenised beside the engine, unlike a short one."""
    text = STORY * 60
    assert len(text.encode()) > N_CTX
    ids = host.tokenize("demo", text)
    done = host.complete("demo", text, max_tokens=12)
    assert done.usage.prompt_tokens == len(ids) < N_CTX
    assert done.tokens == host.complete("demo", ids, max_tokens=12).tokens
    more = host.complete("demo", text, max_tokens=12, session="long")
    assert more.tokens == done.tokens
    again = host.complete("demo", text + done.text + " And", max_tokens=3, session="long")
    assert again.usage.cached_tokens >= len(ids) + 11


def test_what_is_asked_with_raw_messages_has_facts_too(host: Node) -> None:
    asked = m.Complete("r", "demo", m.TextPrompt(TALK * 4))
    for reply in host.connection.stream("inflight", asked, idle_timeout_s=30):
        if isinstance(reply, m.CompletionFailed):
            assert reply.facts == m.FailureFacts(n_tokens(host, TALK * 4), N_CTX)
            break


# ── how much is warm ─────────────────────────────────────────────────────────────────────────────


def kinds(events: list[Event]) -> list[str]:
    found: list[str] = []
    for event in events:
        name = type(event).__name__
        if not found or found[-1] != name:
            found.append(name)
    return found


def progress(events: list[Event]) -> list[tuple[int, int, int]]:
    return [(e.done, e.total, e.reused) for e in events if isinstance(e, PrefillEvent)]


@pytest.mark.parametrize("model", ["stub", "demo"])
def test_a_stream_begins_with_how_much_of_its_prompt_is_warm(host: Node, model: str) -> None:
    base = [40 + n % 50 for n in range(700)]
    base[0] = 77  # as no other prompt of this file
    n_batch = 512 if model == "stub" else 256

    def events(prompt: list[int]) -> list[Event]:
        return list(host.stream(model, prompt, max_tokens=5, ignore_eos=True))

    cold = events(base)
    steps = list(range(0, 700, n_batch))
    assert progress(cold) == [(done, 700, 0) for done in steps]
    exact = events(base)
    assert progress(exact) == [(700, 700, 700)]
    partial = events([*base[:600], 33, 34, 35])
    assert progress(partial) == [(600, 603, 600)]
    one_step = events([78, *base[:40]])
    assert progress(one_step) == [(0, 41, 0)]
    for found in (cold, exact, partial, one_step):
        assert kinds(found) == ["PrefillEvent", "TokenEvent", "CompletionEvent"]
        end = found[-1]
        assert isinstance(end, CompletionEvent)
        assert end.completion.usage.cached_tokens == progress(found)[0][2]


def test_a_conversation_begins_with_it_too(host: Node) -> None:
    talk = chat("Tell me of an owl.")
    first = list(host.stream_chat("demo", talk, max_tokens=8))
    end = first[-1]
    assert isinstance(end, CompletionEvent)
    more = [*talk, end.completion.to_message(), *chat("And then?")]
    second = list(host.stream_chat("demo", more, max_tokens=3))
    (_, n_first, _), *others = progress(first)
    assert not others
    ((done, total, reused),) = progress(second)
    assert done == reused >= n_first
    assert total > reused
    assert kinds(second) == ["PrefillEvent", "TokenEvent", "CompletionEvent"]


# ── places in the queue ──────────────────────────────────────────────────────────────────────────


class Waiting:
    """A request on a thread of its own, and its events."""

    def __init__(self, node: Node, first: int, **options: Any) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.stream = node.stream("stub", [first] * 9, max_tokens=3, **options)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for event in self.stream:
            self.events.put(event)

    def next(self) -> Event:
        return self.events.get(timeout=60)

    def end(self) -> list[Event]:
        self._thread.join(60)
        return [self.events.get_nowait() for _ in range(self.events.qsize())]


def test_places_are_reported_to_those_that_asked_for_it(host: Node) -> None:
    with occupied(host):
        first = Waiting(host, 71, queue_events=True)
        assert first.next() == QueuedEvent(0)
        second = Waiting(host, 72, queue_events=True)
        assert second.next() == QueuedEvent(1)
        third = Waiting(host, 73)
        first.stream.cancel()
        assert second.next() == QueuedEvent(0)
    assert kinds(first.end()) == ["CompletionEvent"]
    assert kinds(second.end()) == ["PrefillEvent", "TokenEvent", "CompletionEvent"]
    assert kinds(third.end()) == ["PrefillEvent", "TokenEvent", "CompletionEvent"]


def test_a_request_that_starts_at_once_has_no_place(host: Node) -> None:
    events = list(host.stream("stub", [74] * 9, max_tokens=3, queue_events=True))
    assert kinds(events) == ["PrefillEvent", "TokenEvent", "CompletionEvent"]
    assert any(isinstance(event, TokenEvent) for event in events)
