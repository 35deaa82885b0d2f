"""Keywords and flags become one request; what makes no sense is named before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from actors import messages as m
from cache import tokens as token_bytes
from native.sampling_params import SamplingParams
from runtime import errors
from runtime.cli.request_options import options_from, request_options
from runtime.client.request_options import chat_request, prompt_request

pytestmark = pytest.mark.pure

KEY = "ab" * 32


def test_without_options_it_is_a_plain_greedy_request() -> None:
    wanted = prompt_request("x", "some text")
    assert wanted.request == m.Complete("", "x", m.TextPrompt(b""))
    assert wanted.prompt == b"some text"
    assert not wanted.resumed_events


def test_every_option_finds_its_place() -> None:
    wanted = prompt_request(
        "x",
        [1, 2],
        max_tokens=0,
        stop="end",
        parent_key=KEY,
        parse_special=True,
        timeout_s=2.5,
        session="s",
        continues=True,
        speculation="ngram",
        exact="prefix",
        priority="background",
        thinking_budget_tokens=9,
        tool_calls=True,
        resumed_events=True,
        salt=b"one tenant",
        queue_events=True,
        drop_live=True,
        temperature=0.5,
        seed=3,
        repeat_penalty=1.2,
        logprobs=True,
        top_logprobs=2,
    )
    assert wanted.request == m.Complete(
        "",
        "x",
        m.Continuation(m.TokenPrompt(b"")),
        max_tokens=0,
        sampling=SamplingParams(temperature=0.5, seed=3, repetition_penalty=1.2, n_logprobs=2),
        stop=("end",),
        parent_key=bytes.fromhex(KEY),
        timeout_s=2.5,
        session="s",
        speculation=m.Speculation.NGRAM,
        exact=m.Exact.PREFIX,
        priority=m.Priority.BACKGROUND,
        thinking=True,
        thinking_budget_tokens=9,
        tool_calls=True,
        salt=b"one tenant",
        queue_events=True,
        drop_live=True,
    )
    assert wanted.prompt == token_bytes.pack([1, 2])
    assert wanted.resumed_events


def test_sampling_may_be_given_ready_made() -> None:
    ready = SamplingParams(temperature=0.9)
    assert prompt_request("x", "y", sampling=ready).request.sampling is ready
    with pytest.raises(errors.InvalidRequest, match="top_k beside it"):
        prompt_request("x", "y", sampling=ready, top_k=4)


def test_a_chat_is_the_json_that_a_model_reads() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    said = [{"role": "user", "content": "Grüße"}]
    wanted = chat_request(
        "x", said, tools=tools, enable_thinking=False, documents=None, max_tokens=3
    )
    assert wanted.request == m.Complete("", "x", m.ConversationPrompt(b""), max_tokens=3)
    assert json.loads(wanted.prompt) == {
        "messages": said,
        "tools": tools,
        "enable_thinking": False,
    }


@pytest.mark.parametrize(
    ("prompt", "options", "says"),
    [
        ("", {}, "empty"),
        ([], {}, "no tokens"),
        ([-1], {}, "token ids"),
        (["a"], {}, "token ids"),
        ("x", {"max_tokens": -1}, "max_tokens is -1"),
        ("x", {"max_tokens": True}, "whole number"),
        ("x", {"timeout_s": 0}, "timeout_s is 0"),
        ("x", {"timeout_s": float("nan")}, "timeout_s"),
        ("x", {"stop": ["a", ""]}, "empty stop"),
        ("x", {"stop": ["a" * 3000]}, "2048 bytes"),
        ("x", {"parent_key": "zz"}, "64 hex digits"),
        ("x", {"salt": "a text"}, "salt is of type str; expected bytes"),
        ("x", {"salt": b"s" * 65}, "salt has 65 bytes; at most 64"),
        ("x", {"session": ""}, "1 to 256"),
        ("x", {"session": "s" * 300}, "1 to 256"),
        ("x", {"continues": True}, "give a session or a parent_key"),
        ("x", {"speculation": "magic"}, "off, ngram, draft"),
        ("x", {"exact": "sometimes"}, "exact is 'sometimes' .*repeat, prefix, always"),
        ("x", {"exact": True}, "repeat, prefix, always"),
        ("x", {"priority": "urgent"}, "interactive, background"),
        ("x", {"thinking_budget_tokens": -2}, "thinking_budget_tokens"),
        ("x", {"temprature": 1}, "did you mean temperature"),
        ("x", {"grammar": "root ::= x", "json_schema": "{}"}, "not together"),
    ],
)
def test_a_wrong_option_is_named(prompt: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=says):
        prompt_request("x", prompt, **options)


@pytest.mark.parametrize("messages", ["hello", [], {"role": "user", "content": "x"}, [{1j}]])
def test_what_is_no_conversation_is_named(messages: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"messages is .*expected a list|no JSON"):
        chat_request("x", messages)


def test_an_empty_text_may_continue_a_session() -> None:
    assert prompt_request("x", "", session="s", continues=True).prompt == b""


# ── flags ────────────────────────────────────────────────────────────────────────────────────────


def flags(*words: str) -> dict[str, Any]:
    return command.main(list(words), standalone_mode=False)


@click.command()
@request_options
def command(**given: Any) -> dict[str, Any]:
    return options_from(given)


def test_flags_that_are_not_given_change_nothing() -> None:
    assert prompt_request("x", "y", **flags()) == prompt_request("x", "y")


def test_flags_are_the_options_of_the_same_names(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}', encoding="utf-8")
    words = (
        "--max-tokens 7 --stop a --stop b --timeout 3 --speculation draft --thinking-budget 4 "
        "--priority background "
        "--temperature 0.5 --top-k 3 --seed 9 --repetition-window -1 --mirostat 2 --logprobs 2 "
        "--logit-bias 5=-1.5 --logit-bias 6=never --tool-calls --dry-multiplier 0.8 --exact always "
        "--logit-bias a=b=2 --ignore-eos --samplers kt --top-n-sigma 1.5 --dynatemp-range 0.5 "
        "--dynatemp-exponent 2 --min-keep 3"
    )
    assert flags(*words.split(), "--json-schema", str(schema)) == {
        "max_tokens": 7,
        "stop": ["a", "b"],
        "timeout_s": 3.0,
        "speculation": "draft",
        "exact": "always",
        "priority": "background",
        "thinking_budget_tokens": 4,
        "temperature": 0.5,
        "top_k": 3,
        "seed": 9,
        "repeat_last_n": -1,
        "mirostat": 2,
        "logprobs": 2,
        "logit_bias": [(5, -1.5), (6, False), ("a=b", 2.0)],
        "ignore_eos": True,
        "samplers": "kt",
        "top_n_sigma": 1.5,
        "dynatemp_range": 0.5,
        "dynatemp_exponent": 2.0,
        "min_keep": 3,
        "tool_calls": True,
        "dry_multiplier": 0.8,
        "json_schema": '{"type": "integer"}',
    }


def test_every_number_that_decides_about_tokens_has_a_flag() -> None:
    there = {parameter.name for parameter in command.params}
    # DRY's breakers are texts with line breaks, unfit for a flag; logprobs has its short name.
    assert set(SamplingParams.__dataclass_fields__) - there == {"dry_breakers", "n_logprobs"}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="--grammar: cannot read"):
        flags("--grammar", str(tmp_path / "none.gbnf"))
    for wrong in ("word", "=1", "word=much"):
        with pytest.raises(click.BadParameter, match="TOKEN=NUMBER"):
            flags("--logit-bias", wrong)
