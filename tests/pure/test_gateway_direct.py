"""Tokens that are shown past the task of their stream: the same bytes, in the same order, once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors import messages as m
from cache import tokens as token_bytes
from runtime.client.async_client import AsyncClient
from runtime.client.async_stream import AsyncStream
from runtime.client.results import PrefillEvent, TokenEvent
from runtime.client.transport import Transport
from runtime.gateway.direct import DirectTokens, Writer
from runtime.gateway.generation import Generation, Socket
from runtime.gateway.time_limit import LimitedStream, ReplyStream, TimeLimit
from runtime.gateway.trace import Trace
from runtime.gateway.wire.anthropic import read_messages
from runtime.gateway.wire.anthropic_answer import MessagesAnswer
from runtime.gateway.wire.native import NativeAnswer, read_native
from runtime.gateway.wire.ollama import OllamaAnswer
from runtime.gateway.wire.ollama import read_chat as read_ollama_chat
from runtime.gateway.wire.ollama import read_generate as read_ollama_generate
from runtime.gateway.wire.openai_chat import ChatAnswer, read_chat
from runtime.gateway.wire.openai_completions import CompletionAnswer, read_completion
from runtime.gateway.wire.wanted import Answer, Head, Wanted
from supervision import loop_connection, loop_endpoint
from supervision.loop_endpoint import Box, Sink
from tests.support.examples import examples

pytestmark = pytest.mark.pure

T = TypeVar("T")
HEAD = Head(id="0" * 32, created=1_764_547_200, model="demo", explains=False)
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "model": "demo"}
PROMPT: dict[str, Any] = {"prompt": "Hi", "model": "demo", "stream": True}
DONE = m.Completed(
    ref="r",
    request_id="id",
    finish_reason=m.FinishReason.STOP,
    finish_key=None,
    stop_sequence=None,
    usage=m.Usage(3, 0, 5),
    cache=m.CacheReport(m.HitKind.COLD, "none", 0.0, None),
    timings=m.Timings(0.0, 0.0, 0.0, 0.0, 0.0),
)
SPIN = 20
"""Turns of the loop in which a task does all that it can."""


# ── every API ────────────────────────────────────────────────────────────────────────────────────


def _openai_chat() -> tuple[Wanted, Answer]:
    wanted, asked = read_chat(json.dumps(CHAT | {"stream": True}).encode(), {})
    return wanted, ChatAnswer(HEAD, asked, wanted)


def _completion() -> tuple[Wanted, Answer]:
    wanted, asked = read_completion(json.dumps(PROMPT).encode(), {})
    return wanted, CompletionAnswer(HEAD, asked, wanted)


def _native() -> tuple[Wanted, Answer]:
    wanted, asked = read_native(json.dumps(PROMPT).encode(), {})
    return wanted, NativeAnswer(HEAD, asked, wanted)


def _anthropic() -> tuple[Wanted, Answer]:
    body = json.dumps(CHAT | {"stream": True, "max_tokens": 9}).encode()
    wanted, asked = read_messages(body, {})
    return wanted, MessagesAnswer(HEAD, wanted, asked)


def _ollama_chat() -> tuple[Wanted, Answer]:
    wanted, asked = read_ollama_chat(json.dumps(CHAT).encode(), {})
    assert wanted is not None
    return wanted, OllamaAnswer(HEAD, asked, wanted, "chat")


def _ollama_generate() -> tuple[Wanted, Answer]:
    wanted, asked = read_ollama_generate(json.dumps(PROMPT).encode(), {})
    assert wanted is not None
    return wanted, OllamaAnswer(HEAD, asked, wanted, "generate")


APIS: dict[str, Callable[[], tuple[Wanted, Answer]]] = {
    "chat completions": _openai_chat,
    "completions": _completion,
    "/completion": _native,
    "messages": _anthropic,
    "/api/chat": _ollama_chat,
    "/api/generate": _ollama_generate,
}


# ── a node and a client ──────────────────────────────────────────────────────────────────────────


class Node:
    """A transport whose only request is answered by what the test lets come, turn by turn."""

    def __init__(self) -> None:
        self.box = Box()
        self.n_read = 0
        """Messages for which the task was woken."""

    def stream(self, target: str, message: object, **_: object) -> Node:
        del target, message
        return self

    def notify(self, target: str, message: object, *, timeout_s: float) -> None:
        del target, message, timeout_s

    async def next(self) -> object:
        while not self.box.messages:
            self.box.waiter = asyncio.get_running_loop().create_future()
            await self.box.waiter
            self.box.waiter = None
        self.n_read += 1
        return self.box.messages.popleft()

    def ready(self, kind: type[T]) -> list[T]:
        found: list[T] = []
        while self.box.messages and type(self.box.messages[0]) is kind:
            found.append(self.box.messages.popleft())
        return found

    def divert(self, sink: Sink) -> None:
        self.box.sink = sink

    def close(self, on_late: Callable[[object], None] | None = None) -> None:
        del on_late

    async def turn(self, messages: Sequence[object]) -> None:
        """As ``LoopEndpoint`` hands out what it has read."""
        fed = {sink: None for one in messages if (sink := self.box.put(one)) is not None}
        for sink in fed:
            sink.flush()
        for _ in range(SPIN):
            await asyncio.sleep(0)

    def events(self) -> AsyncStream:
        return AsyncClient(cast(Transport, self)).stream("demo", "Hi", resumed_events=True)


@dataclass
class Client:
    """What an HTTP client gets, and the log that was written before."""

    has_writer: bool
    body: bytes = b""
    noted: list[tuple[int, Any]] = field(default_factory=list)
    n_direct: int = 0
    is_paused: bool = False

    async def send(self, message: Any) -> None:
        self.body += message.get("body", b"")

    def note(self, number: int, item: Any) -> None:
        self.noted.append((number, item))

    def write(self, frames: bytes) -> None:
        assert not self.is_paused
        self.n_direct += 1
        self.body += frames

    @property
    def socket(self) -> Socket:
        writer = Writer(lambda: not self.is_paused, self.write) if self.has_writer else None
        return Socket(log=cast(Any, self), writer=writer)

    @property
    def tokens(self) -> list[Any]:
        """What a successor finds, without the numbers of its batches."""
        return [item for _, item in self.noted if isinstance(item, TokenEvent)]


SERVICE = cast(Any, SimpleNamespace(settings=SimpleNamespace(keepalive_s=60.0)))


async def shown(
    api: str,
    turns: Sequence[Sequence[object]],
    client: Client,
    paused: Sequence[bool] = (),
    limit: TimeLimit | None = None,
) -> tuple[Generation, Node]:
    """Answer by these messages; the client is paused in the turns where ``paused`` is True."""
    node = Node()
    wanted, answer = APIS[api]()

    def begin(number: int) -> ReplyStream:
        del number
        return node.events() if limit is None else LimitedStream(node.events(), limit)

    trace = Trace("r", method="POST", route="", api="", client="")
    generation = Generation(SERVICE, wanted, HEAD, answer, begin, socket=client.socket, trace=trace)

    async def whole(_: bytes) -> None:
        raise AssertionError("this is a stream")

    work = asyncio.create_task(generation.run_through(client.send, whole))
    for _ in range(SPIN):
        await asyncio.sleep(0)
    for number, messages in enumerate(turns):
        client.is_paused = number < len(paused) and paused[number]
        await node.turn(messages)
    await asyncio.wait_for(work, 10)
    return generation, node


def both(
    api: str, turns: Sequence[Sequence[object]], paused: Sequence[bool] = ()
) -> tuple[Client, Client]:
    """The same messages in both ways."""

    async def run() -> tuple[Client, Client]:
        clients = Client(has_writer=False), Client(has_writer=True)
        for client in clients:
            generation, _ = await shown(api, turns, client, paused)
            assert generation.trace.replies[0].done is not None
            assert generation.done.keys() == {0}
        return clients

    return asyncio.run(run())


# ── what comes ───────────────────────────────────────────────────────────────────────────────────


def token(index: int, text: str, at: int, kind: m.TextKind = m.TextKind.TEXT) -> m.TokensDelivered:
    return m.TokensDelivered("r", index, token_bytes.pack([index + 300]), text, at, kind)


ACCEPTED = m.Accepted("r", "id")
START: list[list[object]] = [[ACCEPTED, m.PrefillProgress("r", 3, 3, 0)]]
WORDS = [token(number, "word ", 5 * number) for number in range(5)]


@st.composite
def scripts(draw: st.DrawFn) -> list[list[object]]:
    """A reply in some order of its parts, cut into turns; it may be continued in its midst."""
    texts = st.text(alphabet='aé"\\\n', max_size=3)
    kinds = st.sampled_from([m.TextKind.TEXT, m.TextKind.THINKING])
    found: list[object] = []
    at = 0
    tokens: list[m.TokensDelivered] = []
    n_calls = 0
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["token"] * 6 + ["call", "resumed", "progress"]))
        if kind == "token":
            one = token(len(tokens), draw(texts), at, draw(kinds))
            at += len(one.text)
            tokens.append(one)
            found.append(one)
        elif kind == "call":
            found.append(m.ToolCallDelivered("r", n_calls, "123456789", "f", 0, "{}", True, True))
            n_calls += 1
        elif kind == "resumed":  # what was noted comes again
            found.append(m.Resumed("r", len(tokens)))
            found += tokens
        else:
            found.append(m.PrefillProgress("r", 3, 3, 0))
    turns: list[list[object]] = [[]]
    if draw(st.booleans()):
        turns = [list(one) for one in START]
    for one in [*found, DONE]:
        if draw(st.booleans()):
            turns.append([])
        turns[-1].append(one)
    return turns


@pytest.mark.parametrize("api", APIS)
@examples(60)
@given(turns=scripts(), paused=st.lists(st.booleans(), max_size=8))
def test_the_bytes_are_the_same(api: str, turns: list[list[object]], paused: list[bool]) -> None:
    general, direct = both(api, turns, paused)
    assert direct.body == general.body
    assert direct.tokens == general.tokens


@pytest.mark.parametrize("api", APIS)
def test_tokens_wake_nothing(api: str) -> None:
    async def run() -> tuple[Client, Node]:
        client = Client(has_writer=True)
        _, node = await shown(api, [*START, *([one] for one in WORDS), [DONE]], client)
        return client, node

    client, node = asyncio.run(run())
    assert client.n_direct == len(WORDS)
    assert node.n_read == len(START[0]) + 1  # and the end


def test_what_comes_in_one_turn_is_one_write() -> None:
    _, direct = both("/completion", [*START, WORDS, [DONE]])
    assert direct.n_direct == 1


def test_a_client_that_reads_slowly_has_its_tokens_wait() -> None:
    turns = [*START, *([one] for one in WORDS), [DONE]]
    general, direct = both("/completion", turns, [False, False, True, True, True, False])
    assert direct.n_direct == 0 or direct.body == general.body
    assert direct.body == general.body


def test_what_was_lost_is_met_by_the_reader() -> None:
    """A token is missing: the sink leaves it to the reader, which sends the request again."""
    node = Node()
    client = Client(has_writer=True)

    async def run() -> None:
        stream = node.events()
        events = [await_one async for await_one in _until_first_token(stream, node)]
        assert isinstance(events[0], PrefillEvent)
        sink = DirectTokens(
            Writer(lambda: True, client.write), lambda found: found[0].text.encode()
        )
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        stream.divert(sink)
        await node.turn([WORDS[1]])
        assert client.body == b"word "
        assert node.box.put(WORDS[3]) is None
        assert node.box.sink is None
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    asyncio.run(run())


async def _until_first_token(stream: AsyncStream, node: Node) -> Any:
    step = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await node.turn([*START[0], WORDS[0]])
    yield await step
    while not isinstance(event := await anext(stream), TokenEvent):
        yield event


def test_a_renderer_that_fails_ends_its_own_stream_alone() -> None:
    def fail(_: object) -> bytes:
        raise ValueError("broken")

    sink = DirectTokens(Writer(lambda: True, lambda _: None), fail)
    sink.add(TokenEvent(0, (1,), "a"))
    sink.flush()
    assert not sink.is_open()
    with pytest.raises(ValueError, match="broken"):
        sink.check()


def test_what_a_sink_takes_ends_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is not woken by it, and does not take the stream for a quiet one."""
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)
    for module in (loop_connection, loop_endpoint):
        monkeypatch.setattr(module, "time", clock)
    box = Box()
    box.is_sent = True

    class Taking:
        def take(self, message: object) -> bool:
            return message != "end"

        def flush(self) -> None:
            raise AssertionError("the endpoint calls this")

    class Endpoint:
        n_waits = 0
        read_from: ClassVar[dict[object, float]] = {}

        def require_own(self) -> None: ...

        async def wait(self, box: Box, deadline: float) -> None:
            nonlocal now
            self.n_waits += 1
            box.waiter = asyncio.get_running_loop().create_future()
            now = deadline - 1.0
            if self.n_waits < 3:
                assert box.put("token") is not None
                now = deadline + 1.0
            else:
                assert box.put("end") is None

    async def run() -> object:
        replies = loop_connection.Replies(
            cast(Any, None), "inflight", ACCEPTED, 10.0, ends_at=1e9, any_sign=True
        )
        replies._box, replies._endpoint = box, cast(Any, Endpoint())
        replies.divert(Taking())
        return await replies.next()

    assert asyncio.run(run()) == "end"


def test_a_time_limit_counts_what_is_shown_directly() -> None:
    async def run() -> TimeLimit:
        limit = TimeLimit(60.0)
        client = Client(has_writer=True)
        turns = [*START, *([one] for one in WORDS), [DONE]]
        generation, _ = await shown("/completion", turns, client, limit=limit)
        assert client.n_direct == len(WORDS)
        assert generation.done[0].tokens == tuple(range(300, 305))
        return limit

    assert asyncio.run(run()).has_shown
