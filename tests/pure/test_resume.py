"""A reply that is interrupted after any of its tokens resumes as if it had not been."""

from __future__ import annotations

import pytest

from actors import messages as m
from actors.engine.batch_plan import ROWS_ALONE
from actors.messages.journal import Noted
from cache import tokens as token_bytes
from native.backend import Batch, Rows
from native.params import ModelParams
from native.stub import END, EOT, StubBackend
from tests.support.engine_runs import HOST, EngineRun, Script
from tests.support.resume_runs import request, run, runs

pytestmark = pytest.mark.pure

PROMPT = "The old lighthouse keeper counted the waves."
GREEDY: dict[str, object] = {}
SEEDED: dict[str, object] = {
    "temperature": 0.9,
    "seed": 7,
    "top_k": 40,
    "repetition_penalty": 1.3,
}


def backend(**params: int) -> StubBackend:
    return StubBackend.load("stub", ModelParams(n_ctx=2048, **params))


def iter_of(commands: list[m.Run]) -> Script:
    yield commands


def prefixes(noted: Noted) -> list[Noted]:
    """What the journal holds when the process dies after each token."""
    return [Noted(noted.prompt, noted.accepted[:k]) for k in range(len(noted.accepted) + 1)]


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_reply_resumes_after_any_token_with_the_same_text(sampling: dict[str, object]) -> None:
    asked = request(PROMPT, max_tokens=24, sampling=sampling)
    whole = run(backend(), asked)
    assert len(whole.noted.accepted) == 24
    assert whole.received.tokens == whole.noted.accepted
    assert not whole.resumed
    for left in prefixes(whole.noted):
        again = run(backend(), asked, left)
        assert again.facts == whole.facts
        assert again.noted == whole.noted
        assert [one.n_tokens for one in again.resumed] == [len(left.accepted)]


def test_a_seed_is_what_makes_the_seeded_text() -> None:
    other = SEEDED | {"seed": 8}
    texts = [
        run(backend(), request(PROMPT, max_tokens=24, sampling=one)).received.text
        for one in (SEEDED, other)
    ]
    assert texts[0] != texts[1]


def test_a_stop_string_that_is_split_by_the_interruption_is_never_shown() -> None:
    free = run(backend(), request(PROMPT, max_tokens=24)).received.text
    stop = free[9:15]
    at = free.index(stop)
    asked = request(PROMPT, max_tokens=24, stop=(stop, "\\never\\"))
    whole = run(backend(), asked)
    assert whole.received.text == free[:at]
    assert whole.done is not None
    assert whole.done.stop_sequence == stop
    for left in prefixes(whole.noted):
        assert run(backend(), asked, left).facts == whole.facts


def test_a_reply_that_had_ended_ends_again() -> None:
    """Its last token was the end of text, or it had all its tokens.

    Whether its caller received that is not known.
    """
    prompt = [*PROMPT.encode(), EOT]
    ended = run(backend(), request(prompt, max_tokens=24))
    assert ended.noted.accepted == (END,)
    assert ended.done is not None
    assert ended.done.finish_reason is m.FinishReason.STOP
    again = run(backend(), request(prompt, max_tokens=24), ended.noted)
    assert again.facts == ended.facts
    assert again.noted == ended.noted


def test_what_was_cut_off_by_the_context_is_cut_off_at_the_same_place() -> None:
    def small() -> StubBackend:
        return StubBackend.load("stub", ModelParams(n_ctx=256))

    asked = request([66] * 250, max_tokens=100)
    whole = run(small(), asked)
    assert len(whole.received) == 6
    for left in prefixes(whole.noted):
        assert run(small(), asked, left).facts == whole.facts


def test_a_request_that_had_not_started_starts() -> None:
    whole = run(backend(), request(PROMPT, max_tokens=8))
    again = run(backend(), request(PROMPT, max_tokens=8), Noted())
    assert again.facts == whole.facts
    assert not again.resumed


def test_a_request_that_only_reads_reads_again() -> None:
    asked = request(PROMPT, max_tokens=0)
    whole = run(backend(), asked)
    assert whole.done is not None
    assert whole.done.finish_reason is m.FinishReason.PREFILLED
    assert run(backend(), asked, whole.noted).facts == whole.facts


def test_the_prompt_continues_with_the_ids_it_had_and_not_with_its_text_tokenised_again() -> None:
    ids = [66, 67, 68, 69]
    by_ids = run(backend(), request(ids, max_tokens=12))
    left = Noted(tuple(ids), by_ids.noted.accepted[:5])
    again = run(backend(), request("another text altogether", max_tokens=12), left)
    assert again.facts == by_ids.facts


def test_a_caller_may_send_what_it_has() -> None:
    whole = run(backend(), request(PROMPT, max_tokens=16, sampling=SEEDED))
    for k in range(17):
        delivered = token_bytes.pack(whole.received.tokens[:k])
        asked = request(PROMPT, max_tokens=16, sampling=SEEDED, delivered=delivered)
        again = run(backend(), asked)
        assert again.facts == whole.facts
        assert again.noted == whole.noted


def test_a_journal_takes_precedence_over_what_the_caller_has() -> None:
    whole = run(backend(), request(PROMPT, max_tokens=16))
    delivered = token_bytes.pack(whole.received.tokens[:3])
    left = Noted(whole.noted.prompt, whole.noted.accepted[:9])
    again = run(backend(), request(PROMPT, max_tokens=16, delivered=delivered), left)
    assert again.facts == whole.facts
    assert again.resumed == [m.Resumed("r0", 9)]


def test_tokens_outside_of_the_vocabulary_are_refused() -> None:
    asked = request(PROMPT, max_tokens=16, delivered=token_bytes.pack([70_000]))
    refused = run(backend(), asked)
    assert refused.failed is not None
    assert refused.failed.reason is m.FailReason.INVALID_REQUEST


def test_four_at_once_resume_beside_a_new_one() -> None:
    asked = [request(f"{PROMPT} {n}", max_tokens=20 + n, sampling=SEEDED) for n in range(5)]
    whole = [run(backend(), one) for one in asked]
    left = [Noted(one.noted.prompt, one.noted.accepted[: 4 * n]) for n, one in enumerate(whole)]
    again = runs(backend(), list(zip(asked, left, strict=True)))
    assert [one.facts for one in again] == [one.facts for one in whole]


def test_a_reply_of_a_model_that_cannot_be_cut_resumes_too() -> None:
    def uncuttable() -> StubBackend:
        return StubBackend.load("uncuttable", ModelParams(n_ctx=2048))

    asked = request(PROMPT, max_tokens=16, sampling=SEEDED)
    whole = run(uncuttable(), asked)
    for left in prefixes(whole.noted):
        assert run(uncuttable(), asked, left).facts == whole.facts


def test_a_long_replay_comes_in_pages_that_are_messages() -> None:
    asked = request(PROMPT, max_tokens=30_000)
    big = StubBackend.load("stub", ModelParams(n_ctx=32_768))
    said = tuple(b"0123456789" * 2_500)
    left = Noted(tuple(big.tokenize(PROMPT)), said)
    asked = request(PROMPT, max_tokens=len(said) + 3)
    again = run(big, asked, left)
    assert again.received.tokens[: len(said)] == said
    assert again.received.text.startswith("0123456789" * 2_500)
    assert max(again.sizes) < 60_000
    assert again.done is not None
    assert again.done.usage.completion_tokens == len(said) + 3


def test_a_journal_that_is_gone_costs_nothing_but_the_resuming() -> None:
    asked = request(PROMPT, max_tokens=4)
    whole = run(backend(), asked)
    gone = m.Run("r", HOST, asked, "/proc/self/fd/999999")
    outcome = EngineRun(backend()).play(iter_of([gone]))["r"]
    assert tuple(outcome.tokens) == whole.received.tokens


@pytest.mark.parametrize("exact", list(m.Exact))
def test_a_reply_is_computed_again_as_its_level_requires(exact: m.Exact) -> None:
    steps: list[tuple[Rows, list[int]]] = []

    class Noting(StubBackend):
        def decode(self, batch: Batch) -> None:
            steps.append((batch.rows, list(batch.positions)))
            super().decode(batch)

    ids = tuple([66] * 200)
    asked = request(list(ids), max_tokens=150, exact=exact)
    said = run(backend(), asked).noted.accepted[:140]
    noting = Noting.load("stub", ModelParams(n_ctx=2048, n_batch=512))
    replies = runs(noting, [(asked, Noted(ids, said)), (asked, Noted(ids, said))])
    assert all(one.done is not None and one.done.cache.exact is exact for one in replies)
    at_prompt = [one for one in steps if min(one[1]) < 200]
    assert {rows for rows, _ in at_prompt} == {"many"}
    assert sorted(at for _, positions in at_prompt for at in positions) == list(range(200))
    again = [one for one in steps if set(one[1]) & set(range(200, 339)) and one not in at_prompt]
    assert {rows for rows, _ in again} == {"alone" if exact is m.Exact.PREFIX else "many"}
    if exact is m.Exact.PREFIX:
        assert max(len(positions) for _, positions in again) <= ROWS_ALONE
    # Behind it, a token of each at a time.
    last = [rows for rows, positions in steps if min(positions) > 340]
    assert set(last) == {"many" if exact is m.Exact.ALWAYS else "any"}
