"""Grammars and schemas larger than a message: those of real tool sets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from bench.tool_sets import call_schema, tool_set
from runtime import AsyncNode, CompletionEvent, Node, ResumedEvent, TokenEvent, errors
from tests.support.runtime_nodes import LeakCheck, kill, pid_of, started

pytestmark = pytest.mark.system

SCHEMA = call_schema(tool_set(n_bytes=80_000))
JUDGE = Draft202012Validator(SCHEMA)
HOW: dict[str, Any] = {"json_schema": SCHEMA, "max_tokens": 900, "temperature": 0.7}
ASKED = [{"role": "user", "content": "Call a tool."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grammars")


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[Node]:
    with LeakCheck() as leaks, started(folder) as node:
        node.load("demo", n_threads=1)
        leaks.watch(node)
        yield node
        leaks.watch(node)


def is_call(text: str, finish_reason: str) -> bool:
    """A reply that is cut begins as a call; one that is complete is one."""
    if finish_reason == "length":
        return text.startswith("{")
    return JUDGE.is_valid(json.loads(text))


def test_a_tool_set_of_80_kilobytes_binds_a_reply(host: Node) -> None:
    assert len(json.dumps(SCHEMA)) > 75_000
    ends = []
    for seed in range(3):
        done = host.complete("demo", "As JSON: ", seed=seed, **HOW)
        assert is_call(done.text, done.finish_reason), done.text
        ends.append(done.finish_reason)
    done = host.chat("demo", ASKED, seed=3, **HOW)
    assert is_call(done.text, done.finish_reason), done.text
    assert "stop" in (*ends, done.finish_reason)


def test_a_large_grammar_binds_a_reply_and_a_bad_one_is_named(host: Node) -> None:
    words = "\n".join(f'word-{n} ::= "w{n:05d}"' for n in range(20_000))
    grammar = f'root ::= word-777 " " word-19999\n{words}\n'
    assert len(grammar) > 400_000
    assert host.complete("demo", "Say: ", grammar=grammar).text == "w00777 w19999"
    with pytest.raises(errors.InvalidRequest, match=r"grammar cannot be used: .*word-777"):
        host.complete("demo", "Say: ", grammar=grammar.replace("word-777 ::=", "word-778 ::="))
    with pytest.raises(errors.InvalidRequest, match=r"grammar='.*' is not allowed: 1 to 4,194,304"):
        host.complete("demo", "Say: ", grammar=grammar * 12)
    bad = {"anyOf": [*SCHEMA["anyOf"], {"type": "array", "uniqueItems": True}]}
    with pytest.raises(errors.InvalidRequest, match=r"'#/anyOf/\d+/uniqueItems'"):
        host.complete("demo", "Say: ", json_schema=bad)


def test_a_reply_continues_by_its_large_schema_when_its_model_dies(host: Node) -> None:
    for seed in range(5, 15):  # a short reply may be complete before the kill
        with host.stream("demo", "As JSON: ", seed=seed, resumed_events=True, **HOW) as stream:
            events, killed = [], False
            for event in stream:
                events.append(event)
                if isinstance(event, TokenEvent) and not killed:
                    killed = True
                    kill(pid_of(host, "model:demo"))
        if any(isinstance(event, ResumedEvent) for event in events):
            break
    assert any(isinstance(event, ResumedEvent) for event in events)
    done = events[-1]
    assert isinstance(done, CompletionEvent)
    completion = done.completion
    assert is_call(completion.text, completion.finish_reason), completion.text


def test_asyncio_code_converts_a_large_schema_beside_its_loop(host: Node, folder: Path) -> None:
    async def ask() -> tuple[str, str]:
        async with AsyncNode.attach(host.port, runtime_dir=folder / "run") as node:
            done = await node.complete("demo", "As JSON: ", seed=6, **HOW)
            return done.text, done.finish_reason

    assert is_call(*asyncio.run(ask()))
