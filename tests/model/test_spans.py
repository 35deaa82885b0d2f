"""Thinking and tool calls through a whole engine: what callers receive, and what is kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from actors import messages as m
from actors.messages.markers import Markers
from actors.text.reply_events import ReplyRules
from actors.text.thinking_signature import is_signed
from cache import tokens as token_bytes
from native import load_backend
from native.backend import Backend, Sampler
from native.params import ModelParams, SamplingParams
from native.sampling_params import ReplyGrammar
from native.stub import END, StubBackend
from runtime.embedded import path as embedded
from tests.support.engine_runs import EngineRun, Outcome, Script, run

pytestmark = pytest.mark.model

MARKERS = Markers(("<t>", "</t>"), ("<c>", "</c>", "<p>", "</p>"))
KEY = b"k" * 32
HOT = SamplingParams(temperature=1.0)


class Scripted:
    """A stub that generates what a test scripts, and notes how each token was chosen."""

    def __init__(self, reply: bytes) -> None:
        self.backend = StubBackend.load("stub", ModelParams(n_ctx=1024))
        self.said = [*reply, END]
        self.temperatures: list[float] = []
        self._made: list[tuple[Sampler, float]] = []
        self._new_sampler = self.backend.new_sampler
        self.backend.new_sampler = self._note  # type: ignore[method-assign]
        self.backend.sample = self._sample  # type: ignore[method-assign]

    def _note(
        self,
        params: SamplingParams,
        history: Sequence[int] = (),
        bound_by: ReplyGrammar | None = None,
    ) -> Sampler:
        sampler = self._new_sampler(params, history, bound_by)
        self._made.append((sampler, params.temperature))
        return sampler

    def _sample(self, row: int, sampler: Sampler, index: int) -> int:
        self.temperatures += [heat for made, heat in self._made if made is sampler]
        return self.said[index]


def told(backend: Backend, *runs: m.Run) -> tuple[list[object], dict[str, Outcome]]:
    """All that the caller of the last request receives of its reply."""
    heard: list[object] = []

    def hear(_: EngineRun, event: object) -> None:
        if isinstance(event, m.TokensDelivered | m.SpanEnded | m.Resumed):
            heard.append(event)

    rules = ReplyRules.of(backend, MARKERS, KEY)
    engine = EngineRun(backend, on_event=hear, rules=rules)

    def script() -> Script:
        for one in runs:
            heard.clear()
            yield [one]

    return heard, engine.play(script())


def brief(heard: Sequence[object]) -> list[tuple[str, str]]:
    story: list[tuple[str, str]] = []
    for event in heard:
        if isinstance(event, m.SpanEnded):
            story.append((f"{event.kind.value} ends", event.content.decode()))
        elif isinstance(event, m.TokensDelivered) and event.text:
            if story and story[-1][0] == event.kind.value:
                story[-1] = (event.kind.value, story[-1][1] + event.text)
            else:
                story.append((event.kind.value, event.text))
    return story


def ids(heard: Sequence[object]) -> list[int]:
    said: list[int] = []
    for event in heard:
        if isinstance(event, m.TokensDelivered):
            assert event.index == len(said)
            said += token_bytes.unpack(event.tokens)
    return said


REPLY = b"Well <t>hm, hm</t> so: <c>run <p>a</c>b</p> now</c> done"
STORY = [
    ("text", "Well "),
    ("thinking", "hm, hm"),
    ("thinking ends", "<t>hm, hm</t>"),
    ("text", " so: "),
    ("tool_call", "run <p>a</c>b</p> now"),
    ("tool_call ends", "<c>run <p>a</c>b</p> now</c>"),
    ("text", " done"),
]


def both(**fields: object) -> dict[str, object]:
    return {"thinking": True, "tool_calls": True, "max_tokens": 200, "sampling": HOT} | fields


def test_a_caller_receives_thinking_tool_calls_and_text_apart() -> None:
    scripted = Scripted(REPLY)
    heard, got = told(scripted.backend, run("a", [1, 2, 3], **both()))
    assert brief(heard) == STORY
    assert ids(heard) == [*REPLY]
    done = got["a"].done
    assert done is not None
    assert done.usage.completion_tokens == len(REPLY)
    assert done.finish_reason is m.FinishReason.STOP


def test_without_span_events_a_caller_gets_plain_text() -> None:
    heard, _ = told(Scripted(REPLY).backend, run("a", [1, 2, 3], max_tokens=200, sampling=HOT))
    assert brief(heard) == [("text", REPLY.decode())]


def test_a_thought_is_signed_by_its_node() -> None:
    heard, _ = told(Scripted(REPLY).backend, run("a", [1, 2, 3], **both()))
    ends = [event for event in heard if isinstance(event, m.SpanEnded)]
    assert is_signed(KEY, b"hm, hm", ends[0].signature)
    assert not is_signed(KEY, b"hm, hn", ends[0].signature)
    assert not is_signed(b"", b"hm, hm", ends[0].signature)
    assert ends[1].signature == b""


def test_structure_is_greedy_and_payload_is_sampled_as_asked() -> None:
    scripted = Scripted(REPLY)
    told(scripted.backend, run("a", [1, 2, 3], **both()))
    greedy = {index for index, one in enumerate(scripted.temperatures) if one == 0.0}
    call, end = REPLY.index(b"run"), REPLY.index(b"</c> done") + len(b"</c>")
    payload = range(REPLY.index(b"a</c>b"), REPLY.index(b"</p>") + len(b"</p>"))
    assert greedy == set(range(call, end)) - set(payload)


def test_every_token_of_a_span_is_in_the_context_and_counts_as_such() -> None:
    backend = Scripted(REPLY).backend
    prompt = [1, 2, 3]
    whole = [*prompt, *REPLY]
    _, got = told(backend, run("a", prompt, **both()), run("b", [*whole, 7], max_tokens=1))
    assert got["b"].reused == len(whole)


def test_a_budget_ends_the_thought_and_its_tokens_are_as_if_sampled() -> None:
    reply = b"<t>on and ????so it is"
    prompt, said = [1, 2, 3], b"<t>on and </t>so it is"
    first = run("a", prompt, **both(thinking_budget_tokens=7))
    heard, _ = told(Scripted(reply).backend, first)
    assert brief(heard) == [
        ("thinking", "on and "),
        ("thinking ends", "<t>on and </t>"),
        ("text", "so it is"),
    ]
    assert ids(heard) == [*said]
    _, got = told(Scripted(reply).backend, first, run("b", [*prompt, *said, 7], max_tokens=1))
    assert got["b"].reused == len(prompt) + len(said)


def test_no_budget_at_all_ends_a_thought_that_the_prompt_began() -> None:
    scripted = Scripted(b"????ok")
    heard, _ = told(scripted.backend, run("a", [*b"hi <t>"], **both(thinking_budget_tokens=0)))
    assert brief(heard) == [("thinking ends", "</t>"), ("text", "ok")]


@pytest.mark.parametrize("max_tokens", range(1, 14))
def test_a_reply_that_ends_inside_a_block_still_ends_it_once(max_tokens: int) -> None:
    heard, _ = told(
        Scripted(b"<t>abcdefghijklm").backend,
        run("a", [1, 2], **both(max_tokens=max_tokens, thinking_budget_tokens=5)),
    )
    ends = [event for event in heard if isinstance(event, m.SpanEnded)]
    assert len(ends) == (max_tokens >= 3)
    assert len(ids(heard)) == max_tokens
    said = b"<t>abcde</t>"[:max_tokens]
    if ends:
        assert ends[0].content == said
        assert ends[0].n_end == (4 if max_tokens >= 12 else 0)
        assert heard.index(ends[0]) >= 1


def test_a_big_block_comes_in_pages() -> None:
    scripted = Scripted(b"<t>" + b"x" * 700 + b"</t>.")
    import actors.text.reply_events as pages

    before = pages.PAGE_BYTES, pages.PAGE_TOKENS
    pages.PAGE_BYTES, pages.PAGE_TOKENS = 200, 100  # type: ignore[misc]
    try:
        heard, _ = told(scripted.backend, run("a", [1, 2], **both(max_tokens=800)))
    finally:
        pages.PAGE_BYTES, pages.PAGE_TOKENS = before  # type: ignore[misc]
    ends = [event for event in heard if isinstance(event, m.SpanEnded)]
    assert [event.page for event in ends] == list(range(8))
    assert [event.last for event in ends] == [False] * 7 + [True]
    assert b"".join(event.content for event in ends) == b"<t>" + b"x" * 700 + b"</t>"
    assert b"".join(event.tokens for event in ends) == token_bytes.pack(
        [*b"<t>", *b"x" * 700, *b"</t>"]
    )


@pytest.mark.parametrize("n_said", [0, 4, 7, 12, 20, 30, len(REPLY) - 1])
def test_a_resumed_reply_repeats_its_spans_and_continues(n_said: int) -> None:
    scripted = Scripted(REPLY)
    heard, _ = told(
        scripted.backend,
        run("a", [1, 2, 3], **both(delivered=token_bytes.pack([*REPLY[:n_said]]))),
    )
    assert brief([one for one in heard if not isinstance(one, m.Resumed)]) == STORY
    assert ids(heard) == [*REPLY]


def test_a_resumed_thought_keeps_to_its_budget() -> None:
    for n_said in range(1, 16):
        scripted = Scripted(b"<t>on and ????so it is")
        said = b"<t>on and </t>so it is"[:n_said]
        heard, _ = told(
            scripted.backend,
            run("a", [1], **both(thinking_budget_tokens=7, delivered=token_bytes.pack([*said]))),
        )
        assert ids(heard) == [*b"<t>on and </t>so it is"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"thinking": True}, m.FailReason.NOT_SUPPORTED),
        ({"tool_calls": True}, m.FailReason.NOT_SUPPORTED),
        ({"thinking_budget_tokens": 3}, m.FailReason.INVALID_REQUEST),
        ({"thinking": True, "thinking_budget_tokens": -1}, m.FailReason.INVALID_REQUEST),
    ],
)
def test_what_a_model_has_no_markers_for_is_refused(
    fields: dict[str, object], reason: m.FailReason
) -> None:
    backend = StubBackend.load("stub", ModelParams(n_ctx=256))

    def script() -> Script:
        yield [run("a", [1, 2], **fields)]

    got = EngineRun(backend).play(script())
    assert got["a"].failed is not None
    assert got["a"].failed.reason is reason


# ── with a grammar ──────────────────────────────────────────────────────────────────────────────

CALL = """root ::= " a "? "<c>" name "</c>" tail
name ::= [a-z] [a-z] [a-z] [a-z] [a-z]
tail ::= [a-z] [a-z] [a-z] [a-z]"""


@pytest.fixture
def model() -> Backend:
    return load_backend("llama", str(embedded()), ModelParams(n_ctx=512, n_threads=1))


def test_inside_a_call_the_likeliest_token_that_the_grammar_allows_is_taken(model: Backend) -> None:
    prompt = model.tokenize("Once upon a time")
    rules = ReplyRules.of(model, MARKERS, KEY)
    texts: dict[str, str] = {}

    def hear(_: EngineRun, event: object) -> None:
        if isinstance(event, m.SpanEnded):
            texts[event.ref] = texts.get(event.ref, "") + event.content.decode()
        elif isinstance(event, m.TokensDelivered) and event.kind is m.TextKind.TEXT:
            texts[event.ref] = texts.get(event.ref, "") + event.text

    def script() -> Script:
        for seed in range(8):
            sampling = SamplingParams(temperature=3.0, seed=seed, grammar=CALL)
            yield [run(f"{seed}", prompt, **both(sampling=sampling))]

    got = EngineRun(model, rules=rules, on_event=hear).play(script())
    assert not [one.failed for one in got.values() if one.failed]
    shape = re.compile(r"(?: a )?<c>[a-z]{5}</c>[a-z]{4}")
    assert all(shape.fullmatch(text) for text in texts.values()), texts
    # The token that completes the marker may hold a letter; then nothing is left to chance.
    cuts = {(text[: text.index("<c>") + 4], text[: text.index("</c>")]) for text in texts.values()}
    assert len(cuts) == len({start for start, _ in cuts})
    assert len({text[text.index("</c>") :] for text in texts.values()}) > 2  # by the dice again


def test_a_grammar_begins_where_a_thought_that_the_prompt_began_ends(model: Backend) -> None:
    prompt = model.tokenize("Once upon a time <t>")
    rules = ReplyRules.of(model, MARKERS, KEY)
    heard: list[object] = []
    engine = EngineRun(model, rules=rules, on_event=lambda _, event: heard.append(event))

    def script() -> Script:
        sampling = SamplingParams(grammar='root ::= "yes" | "no"')
        yield [run("a", prompt, **both(sampling=sampling, thinking_budget_tokens=12))]

    got = engine.play(script())
    assert got["a"].failed is None
    story = brief(heard)
    assert story[0][0] == "thinking"
    assert len(story[0][1]) > 12
    assert story[1][0] == "thinking ends"
    assert story[1][1].endswith("</t>")
    assert story[2] in (("text", "yes"), ("text", "no"))


def test_a_grammar_that_cannot_be_used_is_refused_before_the_thought(model: Backend) -> None:
    def script() -> Script:
        sampling = SamplingParams(grammar="root ::= nothing-of-that-name")
        yield [run("a", model.tokenize("Once <t>"), **both(sampling=sampling))]

    got = EngineRun(model, rules=ReplyRules.of(model, MARKERS, KEY)).play(script())
    assert got["a"].failed is not None
    assert got["a"].failed.reason is m.FailReason.INVALID_REQUEST


def test_a_text_that_writes_its_own_beginning_gets_no_second_one(model: Backend) -> None:
    def script() -> Script:
        for name, text, special in (
            ("written", "<|bos|>Once upon", True),
            ("added", "Once upon", True),
            ("plain", "<|bos|>Once", False),
        ):
            yield [run(name, text, parse_special=special, max_tokens=2)]

    got = EngineRun(model).play(script())
    sizes = {one: got[one].done.usage.prompt_tokens for one in got}  # type: ignore[union-attr]
    assert sizes["written"] == sizes["added"]
    assert got["written"].tokens == got["added"].tokens
    assert sizes["plain"] > 4
