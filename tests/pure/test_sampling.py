"""Laws of the sampling algorithm, and what parameters, schemas and records of it may be."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.reply import PAGE_CHARS, PAGE_TOKENS
from actors.messages import (
    CacheReport,
    Complete,
    Completed,
    FinishReason,
    Grammar,
    HitKind,
    TextPrompt,
    Timings,
    TokenPrompt,
    TokensDelivered,
    Usage,
)
from actors.messages.logprob_records import LogprobsLog, unpack
from actors.messages.payload import INLINE_LIMIT_BYTES, PayloadKeeper
from actors.requests.request_digest import digest_of
from actors.text.reply_events import merged
from cache import tokens as token_bytes
from native import InvalidParam, ModelParams, NoTokenLeft, SamplingParams
from native.backend import Logprobs
from native.sampling import Breaker, PythonSampler, resolved_biases
from native.sampling_params import MAX_GRAMMAR_BYTES, MAX_SCHEMA_BYTES, SAMPLERS
from native.schema import grammar_of
from native.stub import N_VOCAB, StubBackend
from runtime.client.received import Received
from runtime.client.results import completion_from
from supervision.codec import ValueCodec
from tests.support.examples import examples

pytestmark = pytest.mark.pure

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30)
DRAWN = SamplingParams(temperature=1.0)
CODEC = ValueCodec(("actors", "native"))
laws = examples(60)


def draw(logits: list[float], params: SamplingParams, n: int = 40) -> list[int]:
    sampler = PythonSampler(params)
    return [sampler.choose(logits, index) for index in range(n)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("typical_p", 0.0), ("typical_p", 1.1), ("frequency_penalty", math.inf),
        ("presence_penalty", "1"), ("dry_multiplier", -1), ("dry_base", 0.9),
        ("dry_allowed_length", 0), ("dry_window", -1), ("dry_window", 1 << 17),
        ("dry_breakers", ["a"]), ("dry_breakers", ("",)), ("dry_breakers", ("a\0",)),
        ("dry_breakers", (3,)), ("dry_breakers", ("x" * 41,)), ("dry_breakers", ("a",) * 33),
        ("xtc_probability", 1.1), ("xtc_threshold", -0.1), ("mirostat", 3), ("mirostat", True),
        ("mirostat_tau", -1), ("mirostat_eta", 1.1), ("logit_bias", [(1, 2.0)]),
        ("logit_bias", ((1, math.inf),)), ("logit_bias", ((1, math.nan),)),
        ("logit_bias", ((-1, 1.0),)), ("logit_bias", ((1, 1.0), (1, 2.0))),
        ("logit_bias", ((1,),)), ("logit_bias", tuple((i, 1.0) for i in range(301))),
        ("logit_bias", (("", 1.0),)), ("logit_bias", (("a", 1.0), ("a", 2.0))),
        ("logit_bias", (("a\0", 1.0),)), ("logit_bias", (("\ud800", 1.0),)),
        ("logit_bias", (("x" * 2049, 1.0),)), ("samplers", ["top_k"]),
        ("samplers", ("top_k", "top_k")), ("samplers", ("infill",)), ("samplers", (3,)),
        ("top_n_sigma", -0.5), ("top_n_sigma", math.nan), ("dynatemp_range", -1),
        ("dynatemp_exponent", 101), ("min_keep", -1), ("min_keep", 1.5), ("ignore_eos", 1),
        ("grammar", ""), ("grammar", "a\0"), ("grammar", 7), ("grammar", "\ud800"),
        ("grammar", "x" * (MAX_GRAMMAR_BYTES + 1)), ("json_schema", " " * (MAX_SCHEMA_BYTES + 1)),
        ("n_logprobs", -1), ("n_logprobs", 21), ("n_logprobs", True),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)  # fmt: skip
def test_parameters_outside_their_range_are_named(name: str, value: object) -> None:
    with pytest.raises(InvalidParam) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.name == name
    assert len(str(caught.value)) < 400


def test_a_grammar_and_a_schema_exclude_each_other() -> None:
    with pytest.raises(InvalidParam, match="not together"):
        SamplingParams(grammar='root ::= "a"', json_schema="{}")


def test_a_schema_that_doubles_with_every_level_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(6):
        schema = {"allOf": [{"anyOf": [schema, {"minimum": 1}]}, {"anyOf": [schema, {}]}]}
    with pytest.raises(InvalidParam, match="too many alternatives"):
        grammar_of(json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        "{", "[]", "{" * 100_000, '{"not": ' * 70 + "{}" + "}" * 70,
        json.dumps({"properties": {"_" * 501: {}}}),
        '{"allOf": [{"$ref": "#/a"}], "a": {"$ref": "#/a"}}',
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_what_is_no_schema_is_refused(schema: str) -> None:
    with pytest.raises(InvalidParam) as caught:
        grammar_of(schema)
    assert caught.value.name == "json_schema"
    assert len(str(caught.value)) < 400


def test_a_grammar_makes_another_request_wherever_it_lies() -> None:
    rules = b"root ::= [a-z]* # " + b"x" * INLINE_LIMIT_BYTES
    keeper = PayloadKeeper(rules)
    plain = Complete("", "m", TextPrompt("text"))
    beside, inside = (
        digest_of(replace(plain, grammar=Grammar(one))) for one in (keeper.payload, rules)
    )
    keeper.close()
    assert beside == inside
    others = [None, Grammar(b"root ::= [a-y]*")]
    assert beside not in [digest_of(replace(plain, grammar=one)) for one in others]
    gone = replace(plain, grammar=Grammar(keeper.payload))
    assert digest_of(gone) is None


def test_every_parameter_makes_another_request() -> None:
    """Suspects of a crash must differ in everything that changes what the engine computes."""
    changes: dict[str, object] = {
        "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.1,
        "repetition_window": 3, "seed": 1, "typical_p": 0.5, "frequency_penalty": 0.1,
        "presence_penalty": 0.1, "dry_multiplier": 0.1, "dry_base": 2.0, "dry_allowed_length": 3,
        "dry_window": 5, "dry_breakers": (), "xtc_probability": 0.5, "xtc_threshold": 0.2,
        "mirostat": 1, "mirostat_tau": 3.0, "mirostat_eta": 0.2, "logit_bias": ((1, 1.0),),
        "grammar": 'root ::= "a"', "json_schema": "{}", "n_logprobs": 0, "samplers": (),
        "top_n_sigma": 1.0, "dynatemp_range": 0.5, "dynatemp_exponent": 2.0, "min_keep": 2,
        "ignore_eos": True,
    }  # fmt: skip
    assert changes.keys() == set(SamplingParams.__dataclass_fields__)
    digests = {digest_of(Complete("", "m", TextPrompt("text"), sampling=SamplingParams()))}
    for name, value in changes.items():
        sampling = replace(SamplingParams(), **{name: value})  # type: ignore[arg-type]
        digests.add(digest_of(Complete("", "m", TextPrompt("text"), sampling=sampling)))
    assert len(digests) == len(changes) + 1


@laws
@given(LOGITS)
def test_what_is_chosen_is_among_the_best_k(logits: list[float]) -> None:
    best = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    for k in (1, 2, 5):
        assert set(draw(logits, replace(DRAWN, top_k=k))) <= set(best[:k])


@laws
@given(LOGITS, st.floats(0.01, 1.0))
def test_top_p_keeps_the_shortest_run_that_is_likely_enough(logits: list[float], p: float) -> None:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    kept, reached = set(), 0.0
    for token in order:
        if kept and reached >= p * sum(weights) * (1 + 1e-9):
            break
        kept.add(token)
        reached += weights[token]
    assert set(draw(logits, replace(DRAWN, top_p=p))) <= kept


@laws
@given(LOGITS, st.floats(0.0, 1.0))
def test_min_p_is_a_share_of_the_best(logits: list[float], p: float) -> None:
    chosen = draw(logits, replace(DRAWN, min_p=p))
    assert all(math.exp(logits[token] - max(logits)) >= p * (1 - 1e-9) for token in chosen)


@laws
@given(LOGITS, st.floats(0.05, 0.5))
def test_xtc_leaves_only_the_least_likely_of_the_likely(
    logits: list[float], threshold: float
) -> None:
    weights = [math.exp(logit - max(logits)) for logit in logits]
    likely = [weight for weight in weights if weight / sum(weights) >= threshold * (1 + 1e-9)]
    params = replace(DRAWN, xtc_probability=1.0, xtc_threshold=threshold)
    for token in draw(logits, params):
        assert not likely or weights[token] <= min(likely)
    assert draw(logits, replace(params, xtc_probability=0.0)) == draw(logits, DRAWN)


@laws
@given(LOGITS, st.floats(0.1, 4.0))
def test_sigma_keeps_what_is_close_to_the_best_whatever_the_heat(
    logits: list[float], n_sigma: float
) -> None:
    mean = sum(logits) / len(logits)
    sigma = math.sqrt(sum((logit - mean) ** 2 for logit in logits) / len(logits))
    for temperature in (0.5, 20.0):
        params = replace(DRAWN, top_n_sigma=n_sigma, temperature=temperature)
        floor = max(logits) - n_sigma * sigma
        assert all(logits[token] >= floor - 1e-9 for token in draw(logits, params))


@laws
@given(LOGITS, st.permutations(SAMPLERS), st.integers(0, 20))
def test_so_many_tokens_are_left_if_there_are_so_many(
    logits: list[float], order: list[str], min_keep: int
) -> None:
    params = SamplingParams(
        temperature=1.0, samplers=tuple(order), top_p=0.1, min_p=0.9, typical_p=0.1,
        xtc_probability=1.0, xtc_threshold=0.01, min_keep=min_keep,
    )  # fmt: skip
    left, _ = PythonSampler(params).cut(array("f", logits), 0)
    assert len(left) >= min(max(1, min_keep), len(logits))


@laws
@given(LOGITS, st.floats(0.0, 3.0), st.floats(0.1, 3.0), st.floats(0.0, 3.0))
def test_the_temperature_moves_with_the_entropy_inside_its_range(
    logits: list[float], temperature: float, reach: float, exponent: float
) -> None:
    params = SamplingParams(
        temperature=temperature, dynatemp_range=reach, dynatemp_exponent=exponent
    )
    left, found = PythonSampler(params).cut(array("f", logits), 0)
    assert len(left) == 1 or temperature - reach - 1e-9 <= found <= temperature + reach + 1e-9
    _, flat = PythonSampler(params).cut(array("f", [1.0] * 9), 0)
    assert flat == pytest.approx(temperature + reach)
    sure, cold = PythonSampler(replace(params, dynatemp_exponent=1.0)).cut(
        array("f", [99.0, 0.0, 0.0]), 0
    )
    assert len(sure) == 1 or cold == pytest.approx(max(0.0, temperature - reach), abs=1e-9)


def test_what_the_order_leaves_out_is_off_and_the_order_decides() -> None:
    logits = [3.0, 2.9, 0.0, -1.0]
    assert len(set(draw(logits, replace(DRAWN, top_k=1, samplers=("temperature",)), 200))) > 1
    cold = SamplingParams(temperature=0.0, samplers=("top_k",))
    assert len(set(draw(logits, cold, 200))) > 1, "at the temperature of the logits themselves"
    first = SamplingParams(temperature=9.0, min_p=0.5, samplers=("min_p", "temperature"))
    assert set(draw(logits, first, 200)) == {0, 1}
    last = replace(first, samplers=("temperature", "min_p"))
    assert set(draw(logits, last, 200)) == {0, 1, 2, 3}


def test_penalties_that_come_late_change_what_is_left() -> None:
    params = SamplingParams(top_k=2, presence_penalty=5.0, samplers=("top_k", "penalties"))
    sampler = PythonSampler(params)
    for token in (0, 2):
        sampler.accept(token)
    chosen = [sampler.choose([3.0, 2.9, 2.8], index) for index in range(40)]
    assert set(chosen) <= {0, 1}, "2 was left out before, whatever its penalty"
    assert chosen.count(1) > 35
    greedy = SamplingParams(top_k=2, presence_penalty=5.0, samplers=SAMPLERS[::-1])
    assert PythonSampler(greedy).choose([3.0, 2.9], 0) == 0, "the temperature of 0 came first"


def test_biases_of_texts_and_of_the_end_become_those_of_tokens() -> None:
    params = SamplingParams(logit_bias=(("ab", 1.0), (7, 2.0)), ignore_eos=True)

    def spelled(text: str) -> list[int]:
        return list(text.encode())

    ends = [(3, -math.inf), (9, -math.inf)]
    assert resolved_biases(params, spelled, {9, 3}) == [(97, 1.0), (98, 1.0), (7, 2.0), *ends]
    with pytest.raises(InvalidParam, match=r"logit_bias='ab'.*a text that has a token"):
        resolved_biases(params, lambda _: [], ())


@laws
@given(LOGITS)
def test_typical_choice_of_everything_is_any_choice(logits: list[float]) -> None:
    some = set(draw(logits, replace(DRAWN, typical_p=0.3)))
    assert some <= set(range(len(logits)))
    flat = [1.0] * 8
    assert set(draw(flat, replace(DRAWN, typical_p=0.999), 200)) == set(range(8))


def test_typical_choice_leaves_out_what_is_too_likely() -> None:
    """One sure token and many equal ones: most of the surprise is in the equal ones."""
    logits = [3.0] + [0.0] * 40
    assert 0 not in draw(logits, replace(DRAWN, typical_p=0.2), 100)


@laws
@given(LOGITS, st.integers(1, 2), st.floats(0.1, 8.0), st.integers(0, 1 << 40))
def test_mirostat_is_a_function_of_what_was_accepted(
    logits: list[float], kind: int, tau: float, seed: int
) -> None:
    params = replace(DRAWN, mirostat=kind, mirostat_tau=tau, mirostat_eta=0.5, seed=seed)

    def play(again: bool) -> tuple[list[int], float]:
        sampler, text = PythonSampler(params), []
        for index in range(6):
            if again:
                sampler.choose(logits, index + 100)  # not accepted: the state does not change
            token = sampler.choose(logits, index)
            sampler.accept(token)
            text.append(token)
        return text, sampler.mu

    assert play(again=False) == play(again=True)


def test_mirostat_comes_close_to_the_surprise_it_is_asked_for() -> None:
    logits = [-1.2 * math.log(rank) for rank in range(1, 400)]
    total = sum(math.exp(logit) for logit in logits)
    for kind in (1, 2):
        for tau in (2.0, 4.0):
            params = replace(DRAWN, mirostat=kind, mirostat_tau=tau, mirostat_eta=0.1, seed=3)
            sampler, bits = PythonSampler(params), []
            for index in range(400):
                token = sampler.choose(logits, index)
                sampler.accept(token)
                bits.append(-(logits[token] - math.log(total)) / math.log(2))
            assert abs(sum(bits[100:]) / 300 - tau) < 1.0, (kind, tau)


@laws
@given(LOGITS, st.data())
def test_a_banned_token_never_comes(logits: list[float], data: st.DataObject) -> None:
    banned = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits)))
    params = replace(DRAWN, logit_bias=tuple((token, -math.inf) for token in banned))
    if len(banned) == len(logits):
        with pytest.raises(NoTokenLeft):
            draw(logits, params)
    else:
        assert not banned & set(draw(logits, params))


@laws
@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 4))
def test_dry_counts_the_longest_repetition_that_a_token_prolongs(
    text: list[int], allowed: int
) -> None:
    params = SamplingParams(dry_multiplier=1.0, dry_allowed_length=allowed)
    sampler = PythonSampler(params)
    for token in text:
        sampler.accept(token)
    expected: dict[int, int] = {}
    for end in range(1, len(text)):  # text[:end] ends as text does, and text[end] came next
        length = 0
        while length < end and text[end - 1 - length] == text[len(text) - 1 - length]:
            length += 1
        if length >= allowed:
            expected[text[end]] = max(expected.get(text[end], 0), length)
    assert sampler._repetitions() == expected


def test_dry_does_not_reach_beyond_a_breaker() -> None:
    params = SamplingParams(dry_multiplier=1.0, dry_allowed_length=2)
    text = [1, 2, 9, 3, 4, 5, 1, 2, 9, 3, 4]
    for breaker, longest in (
        (Breaker(frozenset(), ()), {5: 5}),
        (Breaker(frozenset({9}), ()), {5: 2}),
        (Breaker(frozenset(), (2, 9)), {5: 2}),
        (Breaker(frozenset({3}), ()), {}),
    ):
        sampler = PythonSampler(params, [breaker])
        for token in text:
            sampler.accept(token)
        assert sampler._repetitions() == longest


def test_the_stub_refuses_grammars() -> None:
    stub = StubBackend.load("stub", ModelParams())
    with pytest.raises(InvalidParam, match="the stub has no grammars") as caught:
        stub.new_sampler(SamplingParams(json_schema="{}"))
    assert caught.value.name == "json_schema"
    flat = array("f", [0.0] * N_VOCAB)
    found = stub.logprobs_from(flat, 5, 3)
    assert found.chosen == pytest.approx(-math.log(N_VOCAB))
    assert [token for token, _ in found.top] == [0, 1, 2]


RECORDS = st.lists(
    st.one_of(
        st.none(),
        st.builds(
            Logprobs,
            st.floats(-50, 0, width=32),
            st.lists(
                st.tuples(st.integers(0, 1 << 20), st.floats(-50, 0, width=32)), max_size=3
            ).map(tuple),
        ),
    ),
    max_size=12,
)


@laws
@given(RECORDS, st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_records_of_tokens_may_be_cut_and_joined(
    found: list[Logprobs | None], cuts: list[int]
) -> None:
    log, sent = LogprobsLog(3), b""
    for count, one in enumerate(found, 1):
        if one is None:
            log.reach(count)
        else:
            log.note(one)
    log.reach(len(found))
    for n in cuts:
        sent += log.take(n)
    assert unpack(sent, len(found)) == tuple(found)
    assert LogprobsLog(None).take(3) == b""


def test_joined_events_with_logprobs_stay_below_the_limit_of_a_message() -> None:
    log, events = LogprobsLog(20), []
    top = tuple((token, -float(token)) for token in range(20))
    for index in range(900):
        log.note(Logprobs(-1.0, top))
        events.append(TokensDelivered("r", index, b"abcd", "é", index, logprobs=log.take(1)))
    joined = merged(list(events), PAGE_CHARS, PAGE_TOKENS)
    deliveries = [event for event in joined if isinstance(event, TokensDelivered)]
    assert len(deliveries) > 3
    assert max(len(CODEC.pack(event)) for event in deliveries) < 40_000
    found = [one for event in deliveries for one in unpack(event.logprobs, len(event.tokens) // 4)]
    assert found == [Logprobs(-1.0, top)] * 900


def test_the_largest_request_is_a_message_and_arrives_as_it_was() -> None:
    texts = tuple((f"{token:04}xxx", -1e5) for token in range(290))
    sampling = SamplingParams(
        logit_bias=(*texts, *((100_000 + token, -math.inf) for token in range(10))),
        dry_breakers=("é" * 20,) * 32,
    )
    part = b"p" * INLINE_LIMIT_BYTES
    request = Complete(
        "r" * 16, "m" * 40, TokenPrompt(part), 1, sampling, ("x" * 100,) * 8, delivered=part,
        grammar=Grammar(part),
    )  # fmt: skip
    packed = CODEC.pack(request)
    assert len(packed) < 64 * 1024 - 512
    assert CODEC.unpack(packed) == request


def test_a_caller_keeps_the_logprobs_it_received_when_the_reply_is_read_again() -> None:
    """The resuming process has no state of tokens that another one sampled."""
    known = [Logprobs(-1.0, ((7, -0.5),)), Logprobs(-2.0, ((8, -0.25),))]
    first, again = LogprobsLog(1), LogprobsLog(1)
    for one in known:
        first.note(one)
    received = Received()
    event = TokensDelivered("r", 0, token_bytes.pack([1, 2]), "ab", logprobs=first.take(2))
    heard = received.take(event)
    assert heard is not None
    assert heard.logprobs == tuple(known)
    again.reach(3)
    again.note(Logprobs(-3.0, ()))
    tokens = token_bytes.pack([1, 2, 3, 4])
    heard = received.take(TokensDelivered("r", 0, tokens, "abcd", logprobs=again.take(4)))
    assert heard is not None
    assert heard.logprobs == (None, Logprobs(-3.0, ()))
    assert received.logprobs == (*known, None, Logprobs(-3.0, ()))


def test_the_json_form_of_a_result_names_tokens_and_their_logprobs() -> None:
    done = Completed(
        "r", "id", FinishReason.LENGTH, None, None, Usage(1, 0, 2),
        CacheReport(HitKind.COLD, "none", 0.0, None), Timings(0.0, 0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    found = (Logprobs(-0.5, ((5, -0.5), (6, -1.0))), None)
    form = completion_from(done, "ab", (5, 9), None, found).to_dict()
    assert form["logprobs"] == [
        {
            "token": 5,
            "logprob": -0.5,
            "top_logprobs": [{"token": 5, "logprob": -0.5}, {"token": 6, "logprob": -1.0}],
        },
        None,
    ]
    assert "logprobs" not in completion_from(done, "ab", (5, 9), None).to_dict()
