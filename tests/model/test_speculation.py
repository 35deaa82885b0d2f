"""Guessing never changes a text: with and without, alone and among others, to the last cell."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from actors import messages as m
from actors.engine import speculative_decoding as verifying
from actors.engine.draft_model import DraftModel, load_draft_model
from actors.engine.speculation_policy import SpeculationPolicy
from actors.kv.timeline import Timeline
from cache import tokens
from cache.policy import LivePolicy, LogitsPolicy
from native.backend import Backend, Batch
from native.errors import InvalidParam
from native.llama import LlamaBackend
from native.params import ModelParams, SamplingParams
from native.stub import END, EOT, StubBackend
from runtime import Completion, Node, errors
from runtime.embedded import path as embedded_path
from tests.support.control_vector_files import directions, write_control_vector
from tests.support.engine_runs import EngineRun, Outcome, Script, run
from tests.support.gguf_files import TINY, tiny_llama
from tests.support.lora_files import tiny_lora
from tests.support.runtime_nodes import one_thread
from tests.support.waiting import eventually

pytestmark = pytest.mark.model

EAGER = SpeculationPolicy(row_cost=0.0, min_gain=0.0)
"""Guess whatever may be right: the clock of a busy machine decides nothing."""
ALONE = LivePolicy(max_idle=0, min_tokens=100_000)
NGRAM, DRAFT = m.Speculation.NGRAM, m.Speculation.DRAFT
ALWAYS = m.Exact.ALWAYS
"""Company and guesses change nothing."""
Load = Callable[..., Backend]


@pytest.fixture(params=["stub", "llama", "embedded"])
def load(request: pytest.FixtureRequest, tiny_gguf: Path) -> Load:
    def loaded(**options: int) -> Backend:
        params = ModelParams(**({"n_ctx": 1024, "n_threads": 1} | options))  # type: ignore[arg-type]
        if request.param == "stub":
            return StubBackend.load("stub", params)
        return LlamaBackend.load(tiny_gguf if request.param == "llama" else embedded_path(), params)

    return loaded


def prompt(seed: int, n_tokens: int) -> list[int]:
    return random.Random(seed).choices(range(5, 200), k=n_tokens)


WAYS: dict[str, dict[str, float]] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "seed": 11},
    "penalised": {"temperature": 1.0, "seed": 12, "top_k": 20, "repetition_penalty": 1.2},
}


def asked(
    name: str, text: Sequence[int], n: int, way: dict[str, float] | None = None, **fields: object
) -> m.Run:
    sampling = SamplingParams(**(way or {}))  # type: ignore[arg-type]
    return run(name, text, max_tokens=n, sampling=sampling, **fields)


def guessing(one: m.Run, how: m.Speculation = NGRAM) -> m.Run:
    return replace(one, request=replace(one.request, speculation=how))


def together(load: Load, runs: Sequence[m.Run], **engine: object) -> dict[str, Outcome]:
    def script() -> Script:
        yield runs

    engine = {"speculation": EAGER, "exact": ALWAYS} | engine
    return EngineRun(load(), **engine).play(script())  # type: ignore[arg-type]


def alone(load: Load, runs: Sequence[m.Run]) -> dict[str, Outcome]:
    def script() -> Script:
        for one in runs:
            yield [one]

    forgetful = LogitsPolicy(memory_bytes=0, row_share=0)
    return EngineRun(load(), policy=ALONE, logits=forgetful, exact=ALWAYS).play(script())


def agree(runs: Sequence[m.Run], got: dict[str, Outcome], expected: dict[str, Outcome]) -> None:
    """The same tokens as alone."""
    for one in runs:
        assert got[one.request_id].tokens == expected[one.request_id].tokens, one.request_id


STORY = "Once upon a time, there was a frog named Sunny. Sunny was always brave. Then "


class Oracle:
    """Guesses that are right ``n`` times and then wrong, from replies that are known."""

    replies: ClassVar[dict[tuple[int, ...], list[int]]] = {}
    rng = random.Random(0)
    most_right = 6

    def catch_up(self, said: Sequence[int], *, n_prompt: int, limit: int) -> bool:
        del limit
        self._next = self.replies[tuple(said[:n_prompt])][len(said) - n_prompt :]
        return True

    is_expecting = True

    def guess(self, n: int) -> list[int]:
        right = self._next[: self.rng.randint(0, self.most_right)]
        wrong = [(token + 1) % 200 for token in self._next[len(right) : len(right) + 3]]
        return [*right, *wrong][:n]

    def chances(self, n: int) -> list[float]:
        return [1.0] * n


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> type[Oracle]:
    monkeypatch.setattr(verifying, "CopyGuesser", Oracle)
    monkeypatch.setattr(Oracle, "replies", {})
    monkeypatch.setattr(Oracle, "rng", random.Random(7))
    monkeypatch.setattr(Oracle, "most_right", 6)
    return Oracle


# ── the same text ───────────────────────────────────────────────────────────────────────────────


def test_right_and_wrong_guesses_change_no_text(load: Load, oracle: type[Oracle]) -> None:
    """Alone and in one batch with others, in every way of sampling; no cell is left over."""
    texts = {name: prompt(at, 33 + 7 * at) for at, name in enumerate(WAYS, 1)}
    runs = [asked(name, texts[name], 40, way) for name, way in WAYS.items()]
    expected = alone(load, runs)
    oracle.replies |= {tuple(texts[name]): expected[name].tokens for name in WAYS}

    def script() -> Script:
        for one in runs:
            yield [guessing(one)]

    apart = LivePolicy(max_idle=0)
    played = EngineRun(load(), speculation=EAGER, policy=apart, exact=ALWAYS)
    for name, one in played.play(script()).items():
        assert one.tokens == expected[name].tokens
        assert one.done is not None
        assert one.done.usage.drafted_tokens > one.done.usage.accepted_tokens > 15
    assert played.engine.counts()["accepted_tokens"] > 45
    agree(runs, together(load, [guessing(one) for one in runs]), expected)


@pytest.mark.parametrize("way", WAYS)
def test_copies_in_the_reply_are_guessed(load: Load, way: str) -> None:
    backend = load()
    if isinstance(backend, StubBackend):
        pytest.skip("what the stub says never repeats")
    tells_stories = backend.info.n_vocab > 1000
    text = backend.tokenize(STORY * 3) if tells_stories else prompt(3, 20) * 6
    backend.close()
    runs = [
        asked("copy", text, 120, WAYS[way]),
        asked("other", prompt(9, 90), 60),
        asked("third", prompt(10, 60), 60, WAYS[way]),
    ]
    expected = alone(load, runs)
    by_itself = together(load, [guessing(runs[0])])["copy"]
    assert by_itself.tokens == expected["copy"].tokens
    agree(runs, together(load, [guessing(runs[0]), runs[1], guessing(runs[2])]), expected)
    if way == "greedy":
        assert by_itself.done is not None
        usage = by_itself.done.usage
        assert (0 if tells_stories else 10) < usage.accepted_tokens <= usage.drafted_tokens


def test_max_tokens_is_exact_and_no_guess_outgrows_its_cells(
    load: Load, oracle: type[Oracle]
) -> None:
    text = prompt(1, 50)
    (full,) = alone(load, [asked("a", text, 40)]).values()
    oracle.replies[tuple(text)] = full.tokens
    oracle.most_right = 40
    n_ctx = 256

    def small() -> Backend:
        return load(n_ctx=n_ctx, n_seq_max=2)

    for n in (1, 2, 3, 17):
        # Beside it a request holds all other cells: one cell too many would fail the step.
        hog = asked("hog", prompt(2, n_ctx - 50 - n - 5), 5)
        got = together(small, [guessing(asked("a", text, n)), hog])
        assert len(got["a"].tokens) == n
        assert got["a"].tokens == full.tokens[:n]
        assert got["a"].done is not None, got["a"].failed
        assert got["a"].done.finish_reason is m.FinishReason.LENGTH
        assert got["hog"].done is not None, got["hog"].failed


def test_a_stop_inside_accepted_guesses_ends_the_text_there(oracle: type[Oracle]) -> None:
    def load(**options: int) -> Backend:
        return StubBackend.load("stub", ModelParams(**({"n_ctx": 1024} | options)))  # type: ignore[arg-type]

    text = [256, *b"Tell me"]
    (full,) = alone(load, [asked("a", text, 40)]).values()
    oracle.replies[tuple(text)] = full.tokens
    oracle.most_right = 40
    stop = bytes(full.tokens[9:12]).decode()
    request = asked("a", text, 40, stop=(stop,))
    follow_up = asked("b", [*text, *full.tokens[:9], *b" and then"], 20)

    def script() -> Script:
        yield [guessing(request)]
        yield [asked("moment", [7], 1)]
        (idle,) = played.engine._live.idle
        assert played.backend.seq_range(idle.seq) == (0, idle.n_kv - 1)  # none beyond the stop
        yield [follow_up]

    played = EngineRun(load(), speculation=EAGER)
    got = played.play(script())
    expected = alone(load, [request, follow_up])
    assert got["a"].tokens == expected["a"].tokens
    assert got["a"].done is not None
    assert expected["a"].done is not None
    assert got["a"].done.stop_sequence == stop
    assert got["a"].done.usage.completion_tokens == expected["a"].done.usage.completion_tokens
    assert got["b"].reused == len(text) + 9  # a hit on exactly what was accepted
    assert got["b"].tokens == expected["b"].tokens


def test_the_end_of_a_text_is_no_guess(
    oracle: type[Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing comes after it, so a row for it is wasted."""
    backend = StubBackend.load("stub", ModelParams(n_ctx=512))
    monkeypatch.setattr(oracle, "guess", lambda self, n: [END, 65][:n])
    oracle.replies[(256, 65)] = [0] * 30

    def script() -> Script:
        yield [guessing(asked("a", [256, 65], 10))]

    got = EngineRun(backend, speculation=EAGER).play(script())["a"]
    assert got.done is not None
    assert got.done.usage.drafted_tokens == 0


# ── rolling back ────────────────────────────────────────────────────────────────────────────────


def test_a_cancel_in_the_middle_leaves_exactly_what_was_accepted(
    load: Load, oracle: type[Oracle]
) -> None:
    text = prompt(4, 70)
    (full,) = alone(load, [asked("a", text, 60)]).values()
    oracle.replies[tuple(text)] = full.tokens

    def cancel(played: EngineRun, message: object) -> None:
        if isinstance(message, m.TokensDelivered) and message.ref == "a" and message.index == 0:
            played.commands.put(m.CancelRun("a"))

    seen: list[int] = []

    def script() -> Script:
        got = yield [guessing(asked("a", text, 60))]
        seen.extend(got["a"].tokens)
        yield [asked("moment", [7], 1)]  # the cells of a request go after its last word
        (idle,) = played.engine._live.idle
        held = tokens.unpack(idle.packed_tokens)
        assert held == [*text, *full.tokens][: len(held)]
        assert played.backend.seq_range(idle.seq) == (0, len(held) - 1)
        yield [asked("next", [*text, *seen, *prompt(5, 10)], 12)]

    played = EngineRun(load(), speculation=EAGER, on_event=cancel)
    got = played.play(script())
    assert got["a"].done is not None
    assert got["a"].done.finish_reason is m.FinishReason.CANCELLED
    assert 0 < len(seen) < 60
    assert got["next"].reused >= len(text) + len(seen) - 1
    follow_up = asked("next", [*text, *seen, *prompt(5, 10)], 12)
    assert got["next"].tokens == alone(load, [follow_up])["next"].tokens


def test_a_step_that_fails_takes_its_guesses_back(
    oracle: type[Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(**options: int) -> Backend:
        return StubBackend.load("stub", ModelParams(**({"n_ctx": 512} | options)))  # type: ignore[arg-type]

    text = [256, *b"Once more"]
    (full,) = alone(load, [asked("a", text, 30)]).values()
    oracle.replies[tuple(text)] = full.tokens
    backend = load()
    decode, n_calls = backend.decode, 0

    def failing(batch: Batch) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls in (4, 7):
            backend.request_abort()
        decode(batch)

    monkeypatch.setattr(backend, "decode", failing)

    def script() -> Script:
        yield [guessing(asked("a", text, 30))]

    played = EngineRun(backend, speculation=EAGER)
    assert played.play(script())["a"].tokens == full.tokens
    assert n_calls > 7


def test_nothing_leaks_over_many_requests_with_guesses(oracle: type[Oracle]) -> None:
    def load(**options: int) -> Backend:
        return StubBackend.load("stub", ModelParams(**({"n_ctx": 512} | options)))  # type: ignore[arg-type]

    rng = random.Random(3)
    runs = [asked(f"{at}", [256, *prompt(at, rng.randint(3, 60))], 12) for at in range(60)]
    expected = alone(load, runs)
    for one in runs:
        assert isinstance(one.request.prompt, m.TokenPrompt)
        assert isinstance(one.request.prompt.tokens, bytes)
        text = tuple(tokens.unpack(one.request.prompt.tokens))
        oracle.replies[text] = expected[one.request_id].tokens

    def script() -> Script:
        for at in range(0, 60, 12):
            yield [guessing(one) for one in runs[at : at + 12]]
        yield [asked("moment", [7], 0)]
        played.engine._live.drop_idle()
        seqs = range(played.backend.info.n_seq_max)
        held = [played.backend.seq_range(seq) for seq in seqs]
        assert sorted(map(bool, held)) == [False] * (len(seqs) - 1) + [True]

    played = EngineRun(load(), speculation=EAGER)
    got = played.play(script())
    assert all(got[name].tokens == one.tokens for name, one in expected.items())


def test_a_model_that_cannot_take_guesses_back_runs_without_and_reports_it() -> None:
    backend = StubBackend.load("uncuttable", ModelParams(n_ctx=512))

    def script() -> Script:
        yield [guessing(asked("a", prompt(1, 20) * 3, 20))]

    got = EngineRun(backend, speculation=EAGER).play(script())["a"]
    assert got.done is not None
    assert "no speculation" in (got.done.cache.note or "")
    assert (got.done.usage.drafted_tokens, len(got.tokens)) == (0, 20)


# ── a draft model ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", WAYS)
def test_a_model_drafts_for_itself(load: Load, way: str) -> None:
    runs = [
        asked("a", prompt(1, 40), 50, WAYS[way]),
        asked("b", prompt(2, 700), 30, WAYS[way]),
        asked("c", prompt(3, 30), 30, WAYS[way]),
    ]
    expected = alone(load, runs)
    got = together(
        load, [*(guessing(one, DRAFT) for one in runs[:2]), runs[2]], draft_model=DraftModel(load())
    )
    agree(runs, got, expected)
    for name, least in (("a", 20), ("b", 12)):
        done = got[name].done
        assert done is not None
        usage = done.usage
        assert usage.accepted_tokens <= usage.drafted_tokens
        if way == "greedy":
            assert usage.accepted_tokens >= least
    assert got["c"].done is not None
    assert got["c"].done.usage.drafted_tokens == 0


def test_a_draft_model_follows_the_tokens_and_computes_little_twice() -> None:
    params = ModelParams(n_ctx=512)
    backend, batch, truth = StubBackend.load("stub", params), Batch(), {}
    other = StubBackend.load("stub", params)

    def says(text: list[int], n: int) -> list[int]:
        """The model's continuation of ``text``, from the start."""
        said: list[int] = []
        while len(said) < n:
            other.seq_remove(0, 0, -1)
            batch.clear()
            row = batch.extend_prefill([*text, *said], 0, 0, logits_last=True)
            assert row is not None
            other.decode(batch)
            said.append(other.logits(row).index(max(other.logits(row))))
        return said

    n_rows = 0
    decode = backend.decode

    def counted(rows: Batch) -> None:
        nonlocal n_rows
        n_rows += len(rows)
        decode(rows)

    backend.decode = counted  # type: ignore[method-assign]
    one, two = (Timeline(tokens.TokenIds([256, *text])) for text in (b"one", b"two, longer"))
    draft_model = DraftModel(backend)
    wanted = [(one, 5), (two, 3)]
    for accepted in (5, 0, 2, 1):
        read = len(one.tokens) + len(two.tokens)
        got = draft_model.draft(wanted)
        for request, n in wanted:
            truth[request] = says(request.tokens, n)
        assert got == truth
        one.tokens.extend([*got[one][:accepted], 7])
        two.tokens.extend([*got[two][:1], 8])
    # The last guess of a draft is never computed; of the others, those that were wrong in vain.
    assert n_rows == read + (0 + 4 + 2 + 4) + (1 + 1 + 1 + 2)
    draft_model.forget(one)
    draft_model.forget(two)
    assert all(backend.seq_range(seq) is None for seq in range(backend.info.n_seq_max))


def test_a_draft_model_that_is_mostly_wrong_costs_guesses_and_no_text(
    tmp_path: Path, tiny_gguf: Path
) -> None:
    other = tiny_llama(tmp_path / "other.gguf", seed=5)
    params = ModelParams(n_ctx=1024, n_threads=1)

    def load(**options: int) -> Backend:
        return LlamaBackend.load(tiny_gguf, replace(params, **options))  # type: ignore[arg-type]

    runs = [asked(name, prompt(at, 60), 60, way) for at, (name, way) in enumerate(WAYS.items())]
    expected = alone(load, runs)
    draft_model = load_draft_model("llama", replace(params, draft_path=str(other)), load())
    got = together(load, [guessing(one, DRAFT) for one in runs], draft_model=draft_model)
    agree(runs, got, expected)
    for one in runs:
        done = got[one.request_id].done
        assert done is not None
        assert done.usage.drafted_tokens > 10 * done.usage.accepted_tokens


def test_what_is_made_for_the_target_is_not_applied_to_its_draft_model(
    tmp_path: Path, tiny_gguf: Path
) -> None:
    """The draft is narrower, so an adapter or a control vector of the target would not fit it."""
    draft = tiny_llama(tmp_path / "draft.gguf", n_embd=64)
    vector = write_control_vector(tmp_path / "v.gguf", directions(TINY.n_embd, range(1, 2)))
    params = ModelParams(
        n_ctx=256,
        n_threads=1,
        draft_path=str(draft),
        lora=((str(tiny_lora(tmp_path / "lora.gguf")), 1.0),),
        control_vectors=((str(vector), 1.0),),
        override_tensors=("blk\\.1.*=CPU",),
        override_kv=("llama.context_length=int:512",),
    )
    target = LlamaBackend.load(tiny_gguf, params)
    draft_model = load_draft_model("llama", params, target)
    draft_model.close()
    target.close()


def test_a_draft_model_of_another_vocabulary_is_refused_when_it_loads(
    tmp_path: Path, tiny_gguf: Path
) -> None:
    params = ModelParams(n_ctx=256, n_threads=1)
    target = LlamaBackend.load(tiny_gguf, params)
    longer = tiny_llama(tmp_path / "longer.gguf", n_vocab=600)
    with pytest.raises(InvalidParam, match="512 tokens, not 600"):
        load_draft_model("llama", replace(params, draft_path=str(longer)), target)
    state = tiny_llama(tmp_path / "state.gguf", arch="mamba")
    with pytest.raises(InvalidParam, match="can be cut"):
        load_draft_model("llama", replace(params, draft_path=str(state)), target)
    target.close()


def test_a_broken_draft_model_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    params = ModelParams(n_ctx=512)
    drafting = StubBackend.load("stub", replace(params, n_ctx=256))

    def load(**options: int) -> Backend:
        return StubBackend.load("stub", replace(params, **options))  # type: ignore[arg-type]

    one = asked("a", prompt(1, 300), 20)  # more than the draft model has cells for
    got = together(load, [guessing(one, DRAFT)], draft_model=DraftModel(drafting))
    assert got["a"].tokens == alone(load, [one])["a"].tokens


def test_without_a_draft_model_drafts_are_refused() -> None:
    backend = StubBackend.load("stub", ModelParams(n_ctx=256))

    def script() -> Script:
        yield [guessing(asked("a", [256, 65], 4), DRAFT)]

    got = EngineRun(backend).play(script())["a"]
    assert got.failed is not None
    assert got.failed.reason is m.FailReason.NOT_SUPPORTED
    assert "draft_path" in got.failed.detail


# ── judging ─────────────────────────────────────────────────────────────────────────────────────


def verify(
    name: str, prefix: Sequence[int], candidates: Sequence[int], k: int | None = None
) -> m.Run:
    question = m.Verify(name, "model", tokens.pack(prefix), tokens.pack(candidates), k)
    return m.Run(name, run(name, [1]).reply_to, question.as_complete())


def test_candidates_are_judged_in_one_step_on_what_is_live(load: Load) -> None:
    text = prompt(6, 150)
    (full,) = alone(load, [asked("a", text, 20)]).values()
    said = full.tokens
    wrong = [*said[:5], (said[5] + 1) % 200, *said[6:10]]
    other = asked("other", prompt(7, 40), 30)

    def script() -> Script:
        yield [asked("before", text, 1)]
        steps.append(played.steps)
        yield [verify("right", text, said[:8])]
        steps.append(played.steps)
        yield [verify("wrong", text, wrong), other]
        yield [verify("longer", [*text, *said[:4]], said[4:8], 2)]
        yield [asked("after", text, 20)]

    steps: list[int] = []
    played = EngineRun(load())
    got = played.play(script())
    verdicts = {name: one.verified for name, one in got.items() if one.verified is not None}
    assert {name: (v.accepted, v.next_token) for name, v in verdicts.items()} == {
        "right": (8, said[8]),
        "wrong": (5, said[5]),
        "longer": (2, said[6]),
    }
    assert all(not got[name].tokens for name in verdicts)
    assert all(v.finish_reason is m.FinishReason.STOP for v in verdicts.values())
    assert verdicts["right"].cached_tokens == 150
    assert verdicts["longer"].cached_tokens >= 153
    assert steps[1] - steps[0] == 1
    # No other request was affected.
    assert got["other"].tokens == alone(load, [other])["other"].tokens
    assert got["after"].tokens == said


def test_the_end_of_the_text_is_no_candidate() -> None:
    backend = StubBackend.load("stub", ModelParams(n_ctx=256))

    def script() -> Script:
        yield [verify("end", [256, 65, EOT], [257, 66])]
        yield [verify("none", [256, 65, EOT], [])]
        yield [verify("one", [256, 65, EOT], [66])]

    got = EngineRun(backend).play(script())
    for name in ("end", "none", "one"):
        answer = got[name].verified
        assert answer is not None
        assert (answer.accepted, answer.next_token) == (0, None)


def test_a_model_that_cannot_be_cut_judges_a_token_a_step() -> None:
    def load(**options: int) -> Backend:
        return StubBackend.load("uncuttable", ModelParams(**({"n_ctx": 256} | options)))  # type: ignore[arg-type]

    text = [256, *b"never cut"]
    (full,) = alone(load, [asked("a", text, 9)]).values()

    def script() -> Script:
        yield [verify("v", text, [*full.tokens[:4], 0])]

    answer = EngineRun(load()).play(script())["v"].verified
    assert answer is not None
    assert (answer.accepted, answer.next_token) == (4, full.tokens[4])


@pytest.mark.parametrize(
    ("prefix", "candidates", "k", "reason", "says"),
    [
        ([], [65], None, m.FailReason.INVALID_REQUEST, "empty"),
        ([256], [65], 0, m.FailReason.INVALID_REQUEST, "at least one"),
        ([256], [65], -3, m.FailReason.INVALID_REQUEST, "at least one"),
        ([256], [65, 999], None, m.FailReason.INVALID_REQUEST, "candidate 999"),
        ([256, 999], [65], None, m.FailReason.INVALID_REQUEST, "token 999"),
        ([256], [65] * 1025, None, m.FailReason.INVALID_REQUEST, "at most 1024"),
        ([65] * 250, [65] * 10, None, m.FailReason.PROMPT_TOO_LONG, "260 tokens"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_the_reason(
    prefix: list[int], candidates: list[int], k: int | None, reason: m.FailReason, says: str
) -> None:
    backend = StubBackend.load("stub", ModelParams(n_ctx=256))

    def script() -> Script:
        yield [verify("v", prefix, candidates, k), asked("bystander", [256, 66], 3)]

    got = EngineRun(backend).play(script())
    failed = got["v"].failed
    assert failed is not None
    assert failed.reason is reason
    assert says in failed.detail
    assert len(got["bystander"].tokens) == 3


def test_a_prefix_and_candidates_that_just_fit_are_judged() -> None:
    backend = StubBackend.load("stub", ModelParams(n_ctx=256))

    def script() -> Script:
        yield [verify("v", [65] * 250, [65] * 6)]

    assert EngineRun(backend).play(script())["v"].verified is not None


# ── on a node ───────────────────────────────────────────────────────────────────────────────────


def test_a_model_is_loaded_with_its_draft_model_and_both_ways_give_the_same_text(
    node: Node, tiny_gguf: Path, tmp_path: Path
) -> None:
    longer = tiny_llama(tmp_path / "longer.gguf", n_vocab=600)
    with pytest.raises(errors.ModelError, match="512 tokens, not 600"):
        node.client.load("wrong", one_thread(tiny_gguf, draft_path=str(longer)))
    config = one_thread(tiny_gguf, draft_path=str(tiny_gguf))
    node.client.load("tiny", replace(config, exact=ALWAYS))
    text = prompt(3, 20) * 4

    def complete(how: str) -> Completion:
        return node.complete("tiny", text, max_tokens=60, speculation=how)

    said = {how: complete(how) for how in ("ngram", "draft", "off")}
    assert said["off"].tokens == said["ngram"].tokens == said["draft"].tokens
    assert said["off"].usage.drafted_tokens == 0
    # On a busy machine guesses may seem slower than steps for a while.
    eventually(
        lambda: said["ngram"].usage.accepted_tokens or complete("ngram").usage.accepted_tokens,
        what="a guess that was right",
    )

    # The row stored beside guesses holds the reply.
    assert node.evict("tiny") > 0
    longer = [*text, *said["ngram"].tokens, 5, 6, 7]
    warm = node.complete("tiny", longer, max_tokens=20)
    assert warm.cache.source == "ram"
    assert warm.usage.cached_tokens > len(text) + 50

    def load() -> Backend:
        return LlamaBackend.load(tiny_gguf, ModelParams(n_ctx=1024, n_threads=1))

    cold = alone(load, [asked("cold", longer, 20)])["cold"]
    assert list(warm.tokens) == cold.tokens
    reply = said["off"].tokens
    verdict = node.verify("tiny", text, [*reply[:7], reply[7] + 1])
    assert (verdict.accepted, verdict.next_token) == (7, reply[7])
    assert verdict.cached_tokens >= 79
    assert node.draft_tokens("tiny", text, 5) == reply[:5]
    with pytest.raises(errors.InvalidRequest, match="at least one"):
        node.verify("tiny", text, [1], k=0)
