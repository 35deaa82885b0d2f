"""Options as keywords and as frozen values are the same, and a user's type checker finds them."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from native.params import ModelParams
from native.sampling_params import SamplingParams
from runtime import ChatOptions, LoadOptions, RequestOptions, errors
from runtime.client import options
from runtime.client.request_options import (
    _CHAT_KEYS,
    chat_request,
    prompt_request,
    with_options,
)
from runtime.client.sampling_options import _SAME, _WINDOWS
from runtime.settings import markers, template_settings

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]


# ── one set of options ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("keywords", "value"),
    [
        (options.RequestOptionsDict, RequestOptions),
        (options.ChatOptionsDict, ChatOptions),
        (options.LoadOptionsDict, LoadOptions),
    ],
    ids=lambda kind: kind.__name__,
)
def test_keywords_and_value_have_the_same_names_and_types(keywords: type, value: type) -> None:
    assert typing.get_type_hints(keywords) == typing.get_type_hints(value)
    assert set(typing.get_type_hints(value)) == {one.name for one in dataclasses.fields(value)}
    assert not keywords.__required_keys__  # type: ignore[attr-defined]
    assert all(one.default is None for one in dataclasses.fields(value))


def test_every_option_that_is_understood_is_typed() -> None:
    sampling = {*SamplingParams.__dataclass_fields__, *_SAME, *_WINDOWS}
    sampling |= {"logprobs", "top_logprobs", "response_format", "sampling"}
    assert set(options.SamplingOptionsDict.__annotations__) == sampling
    load = {*ModelParams.__dataclass_fields__, *markers.KEYS, *template_settings.KEYS}
    load |= {"backend", "exact", "keep_alive", "pin"}
    assert set(options.LoadOptionsDict.__annotations__) == load
    chat = set(typing.get_type_hints(options.ChatOptionsDict))
    assert chat - set(typing.get_type_hints(options.RequestOptionsDict)) == set(_CHAT_KEYS)


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(RequestOptions)])
def test_every_typed_option_is_understood(name: str) -> None:
    assert prompt_request("x", "y", **{name: None}).request.model == "x"


def test_a_value_is_its_keywords_and_a_keyword_replaces_its_field() -> None:
    value = RequestOptions(max_tokens=3, temperature=0.5, stop="end")
    given = with_options("options", value, "RequestOptions", {"max_tokens": 9})
    assert given == {"max_tokens": 9, "temperature": 0.5, "stop": "end"}
    chat = ChatOptions(max_tokens=3, tools=[{"type": "function"}])
    assert chat_request("x", [{"role": "user"}], **with_options("o", chat, "ChatOptions", {}))
    assert with_options("o", value, "ChatOptions", {})["max_tokens"] == 3
    assert with_options("o", None, "ChatOptions", {"seed": 1}) == {"seed": 1}


@pytest.mark.parametrize("wrong", [{"max_tokens": 3}, 5, LoadOptions(n_ctx=512), RequestOptions])
def test_another_value_than_the_options_is_named(wrong: Any) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"options is .*expected RequestOptions"):
        with_options("options", wrong, "RequestOptions", {})


def test_values_are_frozen_and_taken_by_keyword_only() -> None:
    value = RequestOptions(max_tokens=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.max_tokens = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        RequestOptions(3)  # type: ignore[misc]
    assert dataclasses.replace(value, seed=1) == RequestOptions(max_tokens=3, seed=1)


# ── a user's type checker ────────────────────────────────────────────────────────────────────────

GOOD = """
from pathlib import Path
from typing import assert_type

from runtime import (
    AsyncNode, AsyncStream, ChatOptions, Completion, CompletionEvent, CompletionStream, Event,
    LoadEvent, LoadOptions, ModelStatus, Node, PrefillEvent, QueuedEvent, RequestOptions,
    ResumedEvent, SpanEvent, TokenEvent, ToolCallEvent,
)

careful = RequestOptions(max_tokens=40, temperature=0.2, stop=["a", "b"], speculation="ngram")
small = LoadOptions(n_ctx=512, exact="prefix", lora=["a.gguf", (Path("b.gguf"), 0.5)])


def text_of(event: Event) -> str:
    match event:
        case TokenEvent(text=text) | SpanEvent(text=text):
            return text
        case CompletionEvent(completion):
            return completion.text
        case QueuedEvent() | LoadEvent() | PrefillEvent() | ResumedEvent() | ToolCallEvent():
            return ""


def threads(node: Node) -> None:
    assert_type(node.complete("demo", "x", exact="always", logit_bias={5: False}), Completion)
    assert_type(node.client.complete("demo", [1, 2], options=careful, top_k=3), Completion)
    assert_type(node.stream("demo", "x", json_schema={"type": "object"}), CompletionStream)
    talk = [{"role": "user", "content": "Hi"}]
    node.chat("demo", talk, options=ChatOptions(tools=[{"type": "function"}]), session="s")
    node.chat("demo", talk, options=careful)
    node.continue_session("demo", "s", "more", max_tokens=3)
    assert_type(node.load("x", "x.gguf", options=small, n_threads=2), ModelStatus)
    assert_type([text_of(event) for event in node.stream("demo", "x")], list[str])


async def loop(port: int) -> None:
    async with AsyncNode.start({"demo": None}, cache_ram="64MiB") as node:
        assert_type(await node.complete("demo", "x", options=careful), Completion)
        assert_type(node.stream("demo", "x", thinking=True), AsyncStream)
        async for event in node.stream_chat("demo", [{"role": "user", "content": "x"}]):
            text_of(event)
        await node.load("x", "x.gguf", backend="stub", options=small)
        await (await AsyncNode.attach(port)).close()
"""

WRONG = {
    'node.complete("m", "x", max_token=4)': "max_token",
    'node.complete("m", "x", max_tokens="4")': "max_tokens",
    'node.stream("m", "x", temperature="hot")': "temperature",
    'node.complete("m", "x", speculation="magic")': "speculation",
    'node.complete("m", "x", exact="sometimes")': "exact",
    'node.load("m", "x.gguf", exact="sometimes")': "exact",
    'node.complete("m", "x", tools=[])': "tools",
    'node.chat("m", [], enable_thinking="yes")': "enable_thinking",
    'node.continue_session("m", "s", "x", continues=True)': "continues",
    'node.complete("m", "x", options={"max_tokens": 4})': "options",
    'node.client.prefill_only("m", "x", sede=4)': "sede",
    'node.load("m", "x.gguf", n_cxt=4)': "n_cxt",
    'node.load("m", "x.gguf", split_mode="rows")': "split_mode",
    "RequestOptions(max_tokns=4)": "max_tokns",
    "RequestOptions(stop=4)": "stop",
    "careful.max_tokens = 4": "max_tokens",
    'Node.start(models={"m": 4})': "models|Dict entry",
    "Node.start(cache_rm=4)": "cache_rm",
    'twin.stream("m", "x", stop=4)': "stop",
    "AsyncNode.start(cache_rm=4)": "cache_rm",
}
"""Each of these lines is an error that names what is wrong."""
HEAD = """
from runtime import AsyncNode, Node, RequestOptions


def wrong(node: Node, twin: AsyncNode, careful: RequestOptions) -> None:
"""


def test_a_users_type_checker_accepts_what_is_right_and_names_what_is_wrong(
    tmp_path: Path,
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(GOOD, encoding="utf-8")
    bad.write_text(HEAD + "".join(f"    {line}\n" for line in WRONG), encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = True\nfollow_imports = silent\n", encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "mypy.ini"),
         "--cache-dir", str(ROOT / ".mypy_cache" / "user_code"), "--no-error-summary",
         "--hide-error-context", "--no-color-output", str(good), str(bad)],
        env={**os.environ, "MYPYPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    found = done.stdout.splitlines()
    assert not done.stderr, done.stderr
    assert not [line for line in found if "bad.py" not in line], found
    first = HEAD.count("\n") + 1
    for number, (line, named) in enumerate(WRONG.items(), first):
        reported = [one for one in found if one.startswith(f"bad.py:{number}: error")]
        assert reported, f"{line} passes"
        assert any(re.search(named, one) for one in reported), reported


def test_every_package_carries_its_types() -> None:
    for package in ("actors", "cache", "native", "runtime", "supervision"):
        assert (ROOT / package / "py.typed").is_file(), package
