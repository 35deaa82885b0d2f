"""Grammars and JSON schemas: what comes out matches, what is bad is refused and never aborts."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
import textwrap
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from native import Batch, InvalidParam, ModelParams, NoTokenLeft, Sampler, SamplingParams
from native._grammars import MAX_KEPT
from native.llama import LlamaBackend
from runtime.embedded import path as demo_model_path
from tests.support.gguf_files import tiny_llama

pytestmark = pytest.mark.model

NAMES = (
    'root ::= first-name " " (second-name | "the " [A-Z] [a-z]{2,4}) # who\n'
    'first-name ::= "Ada" | "Bob"\nsecond-name ::= "(" second-name ")" | "Z"'
)
PROMPT = "Once upon a time there was a"
HOW: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "seed": 6},
    {"temperature": 1.0, "mirostat": 2, "seed": 7},
    {"temperature": 1.0, "xtc_probability": 1.0, "typical_p": 0.9, "dry_multiplier": 1.0},
]


@pytest.fixture(scope="module")
def b() -> Iterator[LlamaBackend]:
    params = ModelParams(n_ctx=1024, n_batch=256, n_threads=1)
    backend = LlamaBackend.load(demo_model_path(), params)
    yield backend
    backend.close()


def reply(b: LlamaBackend, params: SamplingParams, n: int = 200) -> tuple[list[int], bool]:
    """At most ``n`` tokens, and whether the model ended the reply itself."""
    prompt, said = b.tokenize(PROMPT), list[int]()
    sampler, batch = b.new_sampler(params, prompt), Batch()
    row = batch.extend_prefill(prompt, 0, 0, True)
    assert row is not None
    b.decode(batch)
    try:
        for index in range(n):
            token = b.sample(row, sampler, index)
            sampler.accept(token)
            if token in b.info.eog_tokens:
                return said, True
            said.append(token)
            batch.clear()
            row = batch.add(token, len(prompt) + index, 0, True)
            b.decode(batch)
        return said, False
    finally:
        b.seq_remove(0, 0)


def accept_all(sampler: Sampler, tokens: list[int]) -> None:
    for token in tokens:
        sampler.accept(token)


def text(b: LlamaBackend, params: SamplingParams, n: int = 200) -> str:
    said, ended = reply(b, params, n)
    assert ended, b.detokenize(said)
    return b.detokenize(said).decode()


@pytest.mark.parametrize("how", HOW, ids=str)
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ('root ::= ("yes" | "no") [!?]', r"(yes|no)[!?]"),
        ('root ::= "<" [a-z]{3,7} ">" | [0-9]+ "."', r"<[a-z]{3,7}>|[0-9]+\."),
        # Names with hyphens, alternatives in parentheses, comments, a rule that refers to itself.
        (
            NAMES,
            r"(Ada|Bob) (\(*Z\)*|the [A-Z][a-z]{2,4})",
        ),
        ('root ::= "größe 世界 " [α-ω]{2}', r"größe 世界 [α-ω]{2}"),
    ],
    ids=["choice", "repetition", "names", "unicode"],
)  # fmt: skip
def test_a_reply_matches_its_grammar_and_ends_with_it(
    b: LlamaBackend, grammar: str, pattern: str, how: dict[str, Any]
) -> None:
    if "[0-9]+" in grammar:
        how = {**how, "logit_bias": tuple((t, -30.0) for t in b.tokenize("1234567890")[1:])}
    said = text(b, SamplingParams(grammar=grammar, **how))
    assert re.fullmatch(pattern, said), said


SCHEMA = {
    "type": "object",
    "properties": {
        "first_name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "pets": {"type": "array", "items": {"$ref": "#/$defs/pet"}, "minItems": 1, "maxItems": 2},
        "note": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["first_name", "age", "pets", "note"],
    "additionalProperties": False,
    "$defs": {"pet": {"enum": ["red_cat", "blue dog", 7]}},
}


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_reply_matches_its_json_schema(b: LlamaBackend, how: dict[str, Any]) -> None:
    said = json.loads(text(b, SamplingParams(json_schema=json.dumps(SCHEMA), **how), 400))
    assert list(said) == ["first_name", "age", "pets", "note"]
    assert isinstance(said["first_name"], str)
    assert 1 <= len(said["first_name"]) <= 12
    assert 1 <= said["age"] <= 99
    assert 1 <= len(said["pets"]) <= 2
    assert all(pet in ["red_cat", "blue dog", 7] for pet in said["pets"])
    assert said["note"] in (None, True, False)


RANDOM_SCHEMAS: list[Any] = [
    {"type": "number", "minimum": -3.5, "exclusiveMaximum": 12.25},
    {"type": "integer", "multipleOf": 12},
    {"type": "string", "pattern": r'[^"]\d$', "maxLength": 9},
    {"type": "string", "pattern": "^.{2,5}$"},
    {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 1},
    {"type": "object", "properties": {"": {"type": "null"}, "é": {}}, "required": [""]},
    {
        "type": "object",
        "patternProperties": {"^x": {"type": "null"}},
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "email"}]},
]


@pytest.mark.parametrize("schema", RANDOM_SCHEMAS, ids=json.dumps)
def test_random_replies_obey_their_schemas(b: LlamaBackend, schema: Any) -> None:
    """Random tokens of the whole vocabulary: the likely tokens of a model must not matter."""
    judge = Draft202012Validator(schema)
    for seed in range(4):
        rng = random.Random(seed)
        logits = array("f", [rng.gauss(0, 2) for _ in range(b.info.n_vocab)])
        for end in b.info.eog_tokens:
            logits[end] = 9.0
        params = SamplingParams(temperature=1.0, seed=seed, json_schema=json.dumps(schema))
        sampler, said = b.new_sampler(params), b""
        for index in range(300):
            token = b.sample_from(logits, sampler, index)
            sampler.accept(token)
            if token in b.info.eog_tokens:
                assert judge.is_valid(json.loads(said)), said
                break
            said += b.piece(token)


def test_a_grammar_is_compiled_once_for_a_model(b: LlamaBackend) -> None:
    """A grammar is parsed for its first request only: parsing is slow."""
    params = SamplingParams(grammar='root ::= "once" " only"')
    before = b.grammars_compiled()
    assert [text(b, params) for _ in range(3)] == ["once only"] * 3, "a copy begins at the start"
    assert b.grammars_compiled() == before + 1
    schema = SamplingParams(json_schema='{"const": "once"}')
    for _ in range(3):
        b.new_sampler(schema)
    assert b.grammars_compiled() == before + 2
    for number in range(MAX_KEPT):
        b.new_sampler(SamplingParams(grammar=f'root ::= "{number}"'))
    assert not b.has_grammar(params), "those used longest ago are forgotten"
    b.new_sampler(params)
    assert b.grammars_compiled() == before + MAX_KEPT + 3


def test_a_grammar_is_compiled_on_any_thread_while_the_model_decodes(b: LlamaBackend) -> None:
    params = SamplingParams(json_schema='{"enum": ["compiled", "beside"]}')
    other = threading.Thread(target=b.compile_grammar, args=(params,))
    with b._lock:  # as a decode holds it
        other.start()
        other.join(30)
        assert not other.is_alive()
        assert b.has_grammar(params)
    before = b.grammars_compiled()
    assert text(b, params) in ('"compiled"', '"beside"')
    assert b.grammars_compiled() == before
    with pytest.raises(InvalidParam, match="root"):
        b.compile_grammar(SamplingParams(grammar="root ::= root"))


MASKED: dict[str, tuple[dict[str, str], str]] = {
    "strings": ({"json_schema": '{"type": "string"}'}, '"one \\n two é"'),
    "a long limit": ({"json_schema": '{"type": "string", "maxLength": 60}'}, '"' + "ab " * 15),
    "a short limit": ({"json_schema": '{"type": "string", "maxLength": 5}'}, '"abc'),
    "a pattern": ({"json_schema": '{"type": "string", "pattern": "^[a-z]+-[^x]*$"}'}, '"some-a b'),
    "two kinds of text": ({"grammar": 'root ::= [a-z ]* "." | [^0-9]{40} "!"'}, "some text"),
    "names": ({"grammar": 'root ::= ("name" [a-z]{3,40} | [n-z]+ [0-9])+ "💥"'}, "namesnames5"),
    "anything": ({"grammar": 'root ::= "a" .* "b" .{2}'}, "an apple 1b"),
}
"""Grammars whose masks take short cuts, and texts to walk along."""


@pytest.mark.parametrize(("how", "walked"), MASKED.values(), ids=MASKED.keys())
def test_a_mask_allows_the_tokens_that_are_allowed_alone(
    b: LlamaBackend, how: dict[str, str], walked: str
) -> None:
    """A token is checked alone where the model would choose it, else by a mask of all tokens."""
    check = b.new_sampler(SamplingParams(**how))  # type: ignore[arg-type]
    mask = b.new_sampler(SamplingParams(temperature=1.0, **how))  # type: ignore[arg-type]
    every = range(b.info.n_vocab)
    nothing = array("f", [-math.inf] * b.info.n_vocab)

    def allowed(sampler: Sampler, token: int, *refused: int) -> bool:
        logits = nothing[:]
        logits[token] = 1.0
        for other in refused:
            logits[other] = 60.0
        try:
            return b.sample_from(logits, sampler, 0) == token
        except NoTokenLeft:
            return False

    for index, token in enumerate(b.tokenize(walked, add_special=False)):
        alone = [one for one in every if allowed(check, one)]
        bad = next(one for one in every if one not in alone and one not in b.info.eog_tokens)
        assert [one for one in every if one != bad and allowed(mask, one, bad)] == alone
        for sampler in (check, mask):
            if token not in alone:
                assert index > 1
                return
            sampler.accept(token)


def test_a_constrained_reply_resumes_where_it_was(b: LlamaBackend) -> None:
    params = SamplingParams(json_schema=json.dumps(SCHEMA), temperature=1.0, seed=2)
    said, ended = reply(b, params, 400)
    assert ended
    flat = array("f", [0.0] * b.info.n_vocab)
    walked = b.new_sampler(params, b.tokenize(PROMPT))
    for index, token in enumerate(said):
        again = b.new_sampler(params, b.tokenize(PROMPT))
        for one in said[:index]:
            again.accept(one)
        assert b.sample_from(flat, again, index) == b.sample_from(flat, walked, index)
        walked.accept(token)


def test_a_reply_that_does_not_follow_the_grammar_is_refused(b: LlamaBackend) -> None:
    yes = b.tokenize("yes", add_special=False)
    params = SamplingParams(grammar='root ::= "yes"')
    (end, *_) = sorted(b.info.eog_tokens)
    for said in ([end], b.tokenize("maybe", add_special=False)):
        sampler = b.new_sampler(params, yes)
        with pytest.raises(InvalidParam, match="follow the grammar"):
            accept_all(sampler, said)
    assert text(b, params) == "yes"


def test_when_the_grammar_leaves_no_token_the_reply_ends_or_an_error_is_raised(
    b: LlamaBackend,
) -> None:
    """An end that the bias forbids is still the end, when the grammar has nothing else."""
    banned = tuple((token, -math.inf) for token in sorted(b.info.eog_tokens))
    said, ended = reply(b, SamplingParams(grammar='root ::= "yes"', logit_bias=banned))
    assert (b.detokenize(said), ended) == (b"yes", True)
    with pytest.raises(NoTokenLeft, match="grammar"):
        reply(b, SamplingParams(grammar='root ::= "a" [z-a]'))


def test_a_letter_that_could_belong_to_many_parts_is_matched(b: LlamaBackend) -> None:
    grammar = "root ::= " + " ".join(f"[ a-q{i}]*" for i in range(16)) + ' "!"'
    sampler = b.new_sampler(SamplingParams(grammar=grammar, temperature=1.0))
    refused = array("f", [0.0] * b.info.n_vocab)
    refused[b.tokenize("?", add_special=False)[-1]] = 40.0
    token = b.sample_from(refused, sampler, 0)
    assert re.fullmatch(rb"[ a-q0-9]*!?", b.piece(token))


def test_equal_ways_to_read_a_text_are_one(b: LlamaBackend) -> None:
    doubling = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} | r{i + 1}\n" for i in range(60))
    assert text(b, SamplingParams(grammar=doubling + 'r60 ::= "x"')) == "x"


def test_an_ambiguous_grammar_does_not_delay_the_others(b: LlamaBackend) -> None:
    """Every "a" doubles the ways to read the text; work is counted, and the rule is named."""
    grammar = 'root ::= twice\ntwice ::= "a" twice "b" | "a" twice "c" | "d"'
    sampler = b.new_sampler(SamplingParams(grammar=grammar))
    (letter,) = [t for t in b.tokenize("aaa", add_special=False) if b.piece(t) == b"a"][:1]
    began = time.thread_time()
    with pytest.raises(NoTokenLeft, match=r"too ambiguous.*million steps.*rule 'twice'"):
        accept_all(sampler, [letter] * 40)
    assert time.thread_time() - began < 20
    flat = array("f", [0.0] * b.info.n_vocab)
    assert b.sample_from(flat, b.new_sampler(SamplingParams()), 0) >= 0


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaBackend]:
    """A vocabulary as large as those of today."""
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    tiny_llama(path, n_vocab=N_WIDE, n_embd=32, n_head=1, n_kv=1, n_ff=32, n_layer=1)
    backend = LlamaBackend.load(path, ModelParams(n_ctx=64, n_threads=1))
    yield backend
    backend.close()


N_WIDE = 131_072
VALUES = [f"sensor.room_{n:04d}_temperature" for n in range(800)]
MANY_WAYS = {
    "schema": {"json_schema": json.dumps({"enum": VALUES})},
    "grammar": {"grammar": "root ::= " + " | ".join(f'"\\"{value}\\""' for value in VALUES)},
}


@pytest.mark.parametrize("how", MANY_WAYS.values(), ids=MANY_WAYS.keys())
def test_hundreds_of_values_are_obeyed_with_a_large_vocabulary(
    wide: LlamaBackend, how: dict[str, str]
) -> None:
    """It was refused as too ambiguous after a second of wall time."""
    rng = random.Random(5)
    sampler, said = wide.new_sampler(SamplingParams(temperature=1.0, seed=3, **how)), b""
    logits = array("f", [rng.gauss(0, 2) for _ in range(N_WIDE)])
    for index in range(60):
        token = wide.sample_from(logits, sampler, index)
        sampler.accept(token)
        if token in wide.info.eog_tokens:
            break
        said += wide.piece(token)
    assert json.loads(said) in VALUES


def test_names_of_rules_and_unsupported_schemas_are_explained(b: LlamaBackend) -> None:
    with pytest.raises(InvalidParam, match="letters, digits and hyphens"):
        b.new_sampler(SamplingParams(grammar='root ::= a_b\na_b ::= "x"'))
    with pytest.raises(InvalidParam, match="look-around at position 1") as caught:
        b.compile_grammar(SamplingParams(json_schema='{"type": "string", "pattern": "a(?=b)"}'))
    assert caught.value.value == "#/pattern"


# A bad grammar in the process of a model must not end it, so all of these run in one child.
HOSTILE = {
    "nothing": "# only a comment",
    "no root": 'a ::= "x"',
    "undefined": "root ::= a",
    "left recursion": 'root ::= root "x" | "y"',
    "hidden left recursion": 'root ::= a root "y" | "x"\na ::= b\nb ::= ""',
    "a circle": 'root ::= a\na ::= b\nb ::= a | "x"',
    "counting down": 'root ::= "a"{3,2}',
    "counting down, hidden": 'root ::= ("a"{3 , # {3,9}\n 2})',
    "counting down, spelled": 'root ::= "a" {5,\n1}',
    "too many": 'root ::= "a"{99999999999999999999}',
    "written out": "root ::= " + ('"' + "a" * 1000 + '"{2000} ') * 30,
    "deep": "root ::= " + "(" * 16000,
    "skipping": 'root ::= ("a"?){0,400}',
    "skipping, spelled": "root ::= " + '"a"? ' * 40,
    "skipping, varied": "root ::= " + " ".join(f"[a-z{i}]*" for i in range(17)),
    "open": 'root ::= "abc',
    "open class": "root ::= [a-",
    "escape": 'root ::= "\\q"',
    "half an escape": 'root ::= "\\x4',
    "nothing to repeat": "root ::= *",
    "half a token": "root ::= <",
    "no such token": "root ::= <nope>",
    "big token": "root ::= <[99999999999999999999]>",
    "no rule": "hello",
    "binary": "\x01\x02\x7f",
}
HOSTILE_SCHEMAS = {
    "refers to itself": '{"allOf": [{"$ref": "#/d/a"}], "d": {"a": {"$ref": "#/d/a"}}}',
    "in a circle": '{"$ref": "#/d/a", "d": {"a": {"$ref": "#/d/b"}, "b": {"$ref": "#/d/a"}}}',
    "endless": '{"anyOf": [{"$ref": "#/d"}], "d": {"anyOf": [{"$ref": "#/d"}, {"type": "null"}]}}',
    "nowhere": '{"$ref": "#/d/none"}',
    "remote": '{"$ref": "https://example.com/schema"}',
    "fewer than least": '{"type": "array", "items": {}, "minItems": 5, "maxItems": 2}',
    "huge": '{"type": "array", "items": {}, "minItems": 100000}',
    "no type": '{"type": "frob"}',
    "a number as type": '{"type": 3}',
    "no values": '{"enum": []}',
    "bad pattern": '{"type": "string", "pattern": "^((((a$"}',
    "half a character": '{"const": "\\ud800"}',
    "beyond numbers": '{"type": "string", "minLength": 1e999}',
}


def test_no_grammar_and_no_schema_ends_the_process(tiny_gguf: Path) -> None:
    script = """
        import json, resource, sys
        from array import array
        from native import InvalidParam, ModelParams, NativeError, SamplingParams
        from native.llama import LlamaBackend

        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        path, cases = json.load(sys.stdin)
        b = LlamaBackend.load(path, ModelParams(n_ctx=256, n_threads=1))
        for kind, name, text in cases:
            try:
                sampler = b.new_sampler(SamplingParams(**{kind: text}))
                print(name, "|", "accepted", flush=True)
            except InvalidParam as refused:
                print(name, "|", refused.name, flush=True)
    """
    cases = [("grammar", name, text) for name, text in HOSTILE.items()]
    cases += [("json_schema", name, text) for name, text in HOSTILE_SCHEMAS.items()]
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=json.dumps([str(tiny_gguf), cases]),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.splitlines() == [f"{name} | {kind}" for kind, name, _ in cases]
    assert not ran.stderr, "what a caller wrote is not for the log"


def test_damaged_grammars_are_accepted_or_refused_and_nothing_else(tiny_gguf: Path) -> None:
    """Random changes of good grammars, sampled from for a few tokens."""
    script = """
        import json, random, resource, sys
        from array import array
        from native import ModelParams, NativeError, SamplingParams
        from native.llama import LlamaBackend

        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        path, seeds = json.load(sys.stdin)
        b = LlamaBackend.load(path, ModelParams(n_ctx=256, n_threads=1))
        good = [
            'root ::= ("a" | "b"){2,5} [^c-e]* rest?\\n'
            'rest ::= "x" root | <[7]> | !<[8]> . "\\\\n"',
            'root ::= obj\\nobj ::= "{" (pair ("," pair)*)? "}"\\n'
            'pair ::= [a-z]+ ":" (obj | [0-9]{1,3})',
        ]
        kept = "(){}[]|*+?.,\\"\\\\ \\n:=<>!-^#0129abroot"
        outcomes = {True: 0, False: 0}
        for seed in range(seeds):
            rng = random.Random(seed)
            text = list(rng.choice(good))
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(text))
                text[at : at + rng.randint(0, 1)] = rng.choices(kept, k=rng.choice((0, 1, 1, 2)))
            logits = array("f", [rng.gauss(0, 3) for _ in range(b.info.n_vocab)])
            try:
                sampler = b.new_sampler(SamplingParams(grammar="".join(text), temperature=1.0))
            except NativeError:
                outcomes[False] += 1
                continue
            outcomes[True] += 1
            try:
                for index in range(8):
                    token = b.sample_from(logits, sampler, index)
                    sampler.accept(token)
                    if token in b.info.eog_tokens:
                        break
            except NativeError:
                pass
        print(json.dumps(list(outcomes.values())))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        input=json.dumps([str(tiny_gguf), 3000]),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert min(json.loads(ran.stdout)) > 200, "some of either kind"
