"""Numbers that failures carry, wherever they are known; and prompts refused before their turn."""

from __future__ import annotations

import copy
import json
import queue
import threading
from dataclasses import replace

import pytest

from actors import messages as m
from actors.engine.queue import WaitingRequests
from actors.messages.errors import RequestRefused
from actors.messages.refusal import refusal_of
from actors.model import job_queue
from actors.model.embedding_service import EmbeddingService
from actors.model.job_queue import JobQueue
from actors.model.text_service import TextService
from actors.requests.questions import refusal
from actors.text.reply_events import ReplyRules
from cache import tokens as token_bytes
from cache.tokens import TokenIds
from native.errors import InvalidToken, PromptTooLong
from native.params import ModelParams
from native.stub import StubBackend
from runtime import errors
from runtime.client.failures import failure
from supervision import Address
from supervision.codec import ValueCodec
from tests.support.engine_runs import EngineRun, Script, ask, run

pytestmark = pytest.mark.pure

HOST = Address("127.0.0.1", 1)
N_CTX = 256
TOO_LONG = m.FailReason.PROMPT_TOO_LONG


def stub(**params: int) -> StubBackend:
    found = StubBackend.load("stub", ModelParams(n_ctx=N_CTX, embed_tokens=64, **params))
    found.info = replace(found.info, chat_template="{{ messages[0].content }}")
    return found


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def test_facts_travel_and_messages_without_them_are_complete() -> None:
    codec = ValueCodec(("actors",))
    facts = m.FailureFacts(n_prompt=300, n_ctx=N_CTX)
    for kind in (m.CompletionFailed, m.TextRefused, m.EmbedFailed):
        assert kind("r", TOO_LONG, "why").facts is None
        message = kind("r", TOO_LONG, "why", facts)
        assert codec.unpack(codec.pack(message)) == message


def test_an_error_of_the_backend_has_its_numbers() -> None:
    assert refusal_of(PromptTooLong(300, 256)).facts == m.FailureFacts(n_prompt=300, n_ctx=256)
    assert refusal_of(InvalidToken(9, 5)).facts is None


def test_a_refused_question_has_them_in_its_own_kind_of_answer() -> None:
    facts = m.FailureFacts(retry_after_s=2.0)
    why = m.FailReason.OVERLOADED, "why", facts
    assert refusal(m.Embed("e", b"[]"), *why) == m.EmbedFailed("e", *why)
    assert refusal(m.Tokenize("t", "x"), *why) == m.TextRefused("t", *why)


def test_a_caller_has_them_on_the_exception() -> None:
    long = failure("x", TOO_LONG, "why", m.FailureFacts(n_prompt=300, n_ctx=256))
    assert isinstance(long, errors.PromptTooLong)
    assert (str(long), long.n_prompt, long.n_ctx) == ("why", 300, 256)
    busy = failure("x", m.FailReason.OVERLOADED, "why", m.FailureFacts(retry_after_s=4.0))
    assert isinstance(busy, errors.Overloaded)
    assert busy.retry_after_s == 4.0


def test_a_failure_without_facts_is_the_same_exception_without_numbers() -> None:
    long, busy = failure("x", TOO_LONG, "why"), failure("x", m.FailReason.OVERLOADED, "why")
    assert isinstance(long, errors.PromptTooLong)
    assert long.n_prompt is long.n_ctx is None
    assert isinstance(busy, errors.Overloaded)
    assert busy.retry_after_s is None


@pytest.mark.parametrize("reason", list(m.FailReason))
def test_every_reason_has_an_exception(reason: m.FailReason) -> None:
    found = failure("x", reason, "what happened", m.FailureFacts())
    assert isinstance(found, errors.LlamaActorsError)
    assert str(found) == "what happened"


@pytest.mark.parametrize(
    "error", [errors.PromptTooLong("why", 300, 256), errors.Overloaded("why", 4.0)]
)
def test_copies_of_an_exception_keep_them(error: Exception) -> None:
    kind, arguments, state = error.__reduce__()  # type: ignore[misc]
    rebuilt = kind(*arguments)  # what a process pool does with one
    rebuilt.__setstate__(state)
    for again in (copy.copy(error), copy.deepcopy(error), rebuilt):
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))


# ── queues that are full ─────────────────────────────────────────────────────────────────────────


def test_a_full_queue_of_an_engine_tells_when_to_try_again() -> None:
    waiting = WaitingRequests(stub(), limit=2)
    requests = [waiting.open(run(str(n), [65, 66]), 100.0) for n in range(2)]
    for seconds in (5.0, 10.0):
        waiting.remove(requests.pop())
        waiting.pace.ended(100.0 + seconds, is_busy=True)
    for n in range(2):
        waiting.open(run(f"more{n}", [65, 66]), 110.0)
    with pytest.raises(RequestRefused) as caught:
        waiting.open(run("over", [65, 66]), 110.0)
    assert caught.value.reason is m.FailReason.OVERLOADED
    assert caught.value.facts == m.FailureFacts(retry_after_s=5.0)


def test_an_engine_counts_the_ends_of_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[bool] = []

    def script() -> Script:
        yield [ask("a", [65] * 9), ask("b", [66] * 9)]

    played = EngineRun(stub())
    pace = played.engine._waiting.pace
    monkeypatch.setattr(pace, "ended", lambda now, *, is_busy: ends.append(is_busy))
    played.play(script())
    assert ends == [True, False]


def test_a_full_queue_of_jobs_tells_when_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(job_queue.time, "monotonic", lambda: now)
    monkeypatch.setattr(job_queue, "MAX_JOBS", 1)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    refused: queue.SimpleQueue[tuple[str, RequestRefused]] = queue.SimpleQueue()
    entered, may_end = threading.Semaphore(0), threading.Semaphore(0)

    def do(job: str) -> None:
        entered.release()
        assert may_end.acquire(timeout=60)
        done.put(job)

    jobs = JobQueue("test", "jobs", do=do, refuse=lambda job, why: refused.put((job, why)))
    jobs.put("first")
    assert entered.acquire(timeout=60)
    jobs.put("waits")
    now = 104.0
    may_end.release()
    assert done.get(timeout=60) == "first"
    assert entered.acquire(timeout=60)  # the end of the first one is noted by then
    jobs.put("waits too")
    jobs.put("over")
    job, why = refused.get(timeout=60)
    assert (job, why.reason) == ("over", m.FailReason.OVERLOADED)
    assert why.facts == m.FailureFacts(retry_after_s=4.0)
    jobs.close(m.FailReason.MODEL_UNLOADED, "closed")
    may_end.release()
    job, why = refused.get(timeout=60)
    assert (job, why.reason, why.facts) == ("waits too", m.FailReason.MODEL_UNLOADED, None)
    jobs.wait_ended(60)


# ── prompts that are too long ────────────────────────────────────────────────────────────────────


def prepared(backend: StubBackend, prompt: m.Prompt) -> list[object]:
    """What the text service makes of a request with this prompt: for its caller, or the engine."""
    sent: queue.SimpleQueue[object] = queue.SimpleQueue()
    service = TextService(backend, ReplyRules(), send=lambda _, it: sent.put(it), run=sent.put)
    service.prepare(m.Run("id", HOST, m.Complete("r", "m", prompt)))
    service.ask(m.Tokenize("last", "x"), HOST)
    found = [sent.get(timeout=60)]
    while not isinstance(found[-1], m.Tokenized):
        found.append(sent.get(timeout=60))
    service.close(m.FailReason.MODEL_UNLOADED, "")
    return found[:-1]


def engine_outcome(backend: StubBackend, run: m.Run) -> m.CompletionFailed | None:
    def script() -> Script:
        yield [run]

    return EngineRun(backend).play(script())["r"].failed


@pytest.mark.parametrize("kind", ["tokens", "chat", "text"])
@pytest.mark.parametrize("n_chars", [N_CTX, 2 * N_CTX, 40 * N_CTX])
def test_a_prompt_that_is_too_long_is_refused_with_its_exact_number_of_tokens(
    kind: str, n_chars: int
) -> None:
    """The stub puts one token before a text, and has one for each byte."""
    text = "x" * n_chars
    backend = stub()
    asked = m.Run("r", HOST, m.Complete("r", "m", m.TextPrompt(text), max_tokens=4))
    n_prompt = n_chars + 1
    if kind == "tokens":
        n_prompt = n_chars
        ids = m.TokenPrompt(token_bytes.pack([65] * n_chars))
        asked = replace(asked, request=replace(asked.request, prompt=ids))
    if kind == "chat":
        chat = json.dumps({"messages": [{"role": "user", "content": text}]})
        (ready,) = prepared(backend, m.ConversationPrompt(chat))
        assert isinstance(ready, m.Run)
        asked = replace(asked, request=replace(ready.request, ref="r", max_tokens=4))
    failed = engine_outcome(backend, asked)
    assert failed is not None
    assert failed.reason is TOO_LONG
    is_bound = kind == "text" and n_chars > 4 * N_CTX  # the engine itself does not count those
    if is_bound:
        n_prompt = n_chars // 4
    assert failed.facts == m.FailureFacts(n_prompt=n_prompt, n_ctx=N_CTX)
    assert ("at least" in failed.detail) == is_bound


def test_judging_candidates_that_do_not_fit_has_the_numbers_too() -> None:
    request = m.Verify("r", "m", token_bytes.pack([65] * 250), token_bytes.pack([65] * 10))
    failed = engine_outcome(stub(), m.Run("r", HOST, request.as_complete()))
    assert failed is not None
    assert failed.facts == m.FailureFacts(n_prompt=260, n_ctx=N_CTX)


def test_a_text_for_another_purpose_has_the_numbers_too() -> None:
    sent: queue.SimpleQueue[object] = queue.SimpleQueue()
    texts = TextService(stub(), ReplyRules(), send=lambda _, it: sent.put(it), run=sent.put)
    texts.ask(m.Tokenize("t", "x" * 2000, as_prompt=True), HOST)
    embeds = EmbeddingService(stub(), lambda _, it: sent.put(it))
    refused = sent.get(timeout=60)
    embeds.ask(m.Embed("e", json.dumps(["x" * 500]).encode()), HOST)
    failed = sent.get(timeout=60)
    texts.close(m.FailReason.MODEL_UNLOADED, "")
    embeds.close(m.FailReason.MODEL_UNLOADED, "")
    assert isinstance(refused, m.TextRefused)
    assert (refused.reason, refused.facts) == (TOO_LONG, m.FailureFacts(2001, N_CTX))
    assert isinstance(failed, m.EmbedFailed)
    assert (failed.reason, failed.facts) == (TOO_LONG, m.FailureFacts(501, 64))


# ── before their turn ────────────────────────────────────────────────────────────────────────────


class Notes:
    """In place of the engine's part of exact replay: what it receives about texts."""

    def __init__(self) -> None:
        self.ids: dict[str, TokenIds] = {}

    def tokenised(self, request_id: str, ids: TokenIds) -> None:
        self.ids[request_id] = ids


def test_only_texts_that_may_be_too_long_are_tokenised_beside_the_engine() -> None:
    service = TextService(stub(), ReplyRules(), send=lambda *_: None, run=lambda _: None)

    def prepares(prompt: object) -> bool:
        request = m.Complete("r", "m", prompt)  # type: ignore[arg-type]
        return service.prepares(m.Run("id", HOST, request))

    longest = N_CTX - 4
    assert prepares(m.ConversationPrompt("[]"))
    assert prepares(m.InfillPrompt("{}"))
    for text in ("x", b"x"):
        assert not prepares(m.TextPrompt(text * longest))  # type: ignore[operator]
        assert prepares(m.TextPrompt(text * (longest + 1)))  # type: ignore[operator]
    assert prepares(m.TextPrompt("ü" * (longest // 2 + 1)))
    assert not prepares(m.TokenPrompt(b"t" * 4 * longest * 9))
    assert not prepares(m.Continuation(m.TextPrompt("x" * 900)))
    assert not prepares(m.TextPrompt(5))  # type: ignore[arg-type]
    assert not prepares(None)


def test_a_long_text_reaches_the_engine_with_its_tokens() -> None:
    backend, notes = stub(), Notes()
    ready: queue.SimpleQueue[object] = queue.SimpleQueue()
    service = TextService(
        backend, ReplyRules(), send=lambda *_: None, run=ready.put,
        replays=notes,  # type: ignore[arg-type]
    )  # fmt: skip
    for name, prompt in (
        ("plain", m.TextPrompt("<s>" * 200)),
        ("special", m.TextPrompt(b"<s>" * 200, parse_special=True)),
        ("gone", m.TextPrompt(m.payload.Spilled("/nowhere", 999))),  # type: ignore[attr-defined]
    ):
        asked = m.Run(name, HOST, m.Complete("r", "m", prompt, timeout_s=50.0))
        service.prepare(asked)
        found = ready.get(timeout=60)
        assert isinstance(found, m.Run)
        assert found.request.prompt == prompt
        assert found.request.timeout_s is not None
        assert 0 < found.request.timeout_s <= 50.0
    service.close(m.FailReason.MODEL_UNLOADED, "")
    assert {name: len(ids) for name, ids in notes.ids.items()} == {"plain": 601, "special": 200}


@pytest.mark.parametrize("kind", ["tokens", "text"])
def test_it_is_refused_while_another_request_has_the_model(kind: str) -> None:
    """And another one waits before it."""
    order: list[str] = []
    is_asked: list[bool] = []

    def on_event(played: EngineRun, message: object) -> None:
        if isinstance(message, m.TokensDelivered) and not is_asked:
            is_asked.append(True)
            over = run("over", [65] * N_CTX)  # as many as fit, so that only the reply is too much
            if kind == "text":
                over = run("over", "x" * 300)
                played.engine.replays.tokenised("over", TokenIds([256] + [120] * 300))
            played._advance([ask("next", [66] * 9), over])
        if isinstance(message, m.Completed | m.CompletionFailed):
            order.append(message.ref)

    def script() -> Script:
        yield [ask("first", [67] * 9, 60)]

    played = EngineRun(stub(n_seq_max=1), on_event=on_event)
    outcomes = played.play(script())
    assert order == ["over", "first", "next"]
    failed = outcomes["over"].failed
    assert failed is not None
    n_prompt = 301 if kind == "text" else N_CTX
    assert (failed.reason, failed.facts) == (TOO_LONG, m.FailureFacts(n_prompt, N_CTX))


def test_tokens_made_beside_the_engine_are_those_that_it_would_have_made() -> None:
    text = "a story of some length. " * 8

    class Once(StubBackend):
        def tokenize(self, *_: object, **__: object) -> list[int]:
            raise AssertionError("the engine tokenised a text whose tokens are known")

    def played(backend: StubBackend, *, knows: bool) -> list[int]:
        def script() -> Script:
            yield [run("r", text, max_tokens=20)]

        engine = EngineRun(backend)
        if knows:
            engine.engine.replays.tokenised("r", TokenIds([256, *text.encode()]))
        return engine.play(script())["r"].tokens

    params = ModelParams(n_ctx=N_CTX)
    expected = played(StubBackend.load("stub", params), knows=False)
    assert played(Once.load("stub", params), knows=True) == expected


def test_what_a_session_holds_comes_before_the_tokens_of_the_text_alone() -> None:
    text = "a story of some length. " * 4

    def script() -> Script:
        outcomes = yield [run("one", text, max_tokens=8, session="s")]
        reply = bytes(outcomes["one"].tokens).decode()
        yield [run("two", f"{text}{reply} and more", max_tokens=8, session="s")]

    engine = EngineRun(stub())
    engine.engine.replays.tokenised("two", TokenIds([65] * 300))  # of no use, so not counted
    assert engine.play(script())["two"].done is not None
