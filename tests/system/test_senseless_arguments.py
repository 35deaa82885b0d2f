"""Every public method × senseless values of each argument: it works, or raises an error of ours."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest

from runtime import AsyncNode, Node, errors
from tests.support.runtime_nodes import LeakCheck, started
from tests.support.senseless import (
    NODE_METHODS,
    SENSELESS,
    covered,
    public_methods,
)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with LeakCheck() as leaks, started(tmp_path_factory.mktemp("senseless")) as node:
        node.load("stub", "stub", backend="stub", n_seq_max=8)
        leaks.watch(node)
        yield node
        leaks.watch(node)


Call = tuple[str, Callable[[], Any]]


def calls(
    target: Any, name: str, positional: dict[str, Any], keywords: dict[str, Any]
) -> list[Call]:
    """The method once with all that makes sense, and with each argument wrong in each way."""
    method = getattr(target, name)
    made: list[Call] = [(name, lambda: _drain(method(*positional.values())))]
    for argument in (*positional, *keywords):
        for label, value in SENSELESS.items():
            given = {**positional, argument: value}
            places = [given[one] for one in positional]
            named = {argument: value} if argument in keywords else {}
            if "max_tokens" in keywords and argument != "max_tokens":
                named["max_tokens"] = 1
            elif argument == "max_tokens":
                named["stop"] = " "
                named["timeout_s"] = 0.5  # some of these numbers are many tokens
            made.append(
                (
                    f"{name}({argument}={label})",
                    lambda method=method, places=places, named=named: _drain(
                        method(*places, **named)
                    ),
                )
            )
    return made


def _drain(result: Any) -> Any:
    return list(result) if inspect.isgenerator(result) or hasattr(result, "request_id") else result


def untyped(made: list[Call]) -> list[str]:
    """What raised anything but an error of ours."""

    def play(one: Call) -> str | None:
        try:
            one[1]()
        except errors.LlamaActorsError:
            return None
        except BaseException as error:  # noqa: BLE001 - that is what is looked for
            return f"{one[0]}: {type(error).__name__}: {str(error)[:90]}"
        return None

    with ThreadPoolExecutor(8) as threads:
        return [found for found in threads.map(play, made) if found]


def test_the_tables_name_every_public_method() -> None:
    for cls, names in covered().items():
        assert public_methods(cls) == names, cls


@pytest.mark.parametrize("name", sorted(NODE_METHODS))
def test_a_node_takes_it_or_names_it(node: Node, name: str) -> None:
    pid = node.model_info("stub").pid
    assert untyped(calls(node, name, *NODE_METHODS[name])) == []
    assert node.model_info("stub").pid == pid


def test_an_async_node_takes_it_or_names_it(node: Node) -> None:
    """Its methods are those of ``Node``; a few values show that they get there."""
    values = ("None", "5", "bytes", "numpy ids", "surrogate", "hostile")

    async def whole() -> list[str]:
        found = []
        directory = node.connection._router.folder.path.parent
        async with AsyncNode.attach(node.port, runtime_dir=directory) as twin:
            for name, (positional, keywords) in NODE_METHODS.items():
                for argument in (*positional, *keywords):
                    for label in values:
                        places = [
                            SENSELESS[label] if one == argument else given
                            for one, given in positional.items()
                        ]
                        named = {argument: SENSELESS[label]} if argument in keywords else {}
                        if "max_tokens" in keywords:
                            named.setdefault("max_tokens", 1)
                        try:
                            result = getattr(twin, name)(*places, **named)
                            if hasattr(result, "aclose"):
                                async for _ in result:
                                    pass
                            else:
                                await result
                        except errors.LlamaActorsError:
                            pass
                        except Exception as error:  # noqa: BLE001
                            found.append(f"{name}({argument}={label}): {error!r}")
        return found

    assert asyncio.run(whole()) == []


@pytest.mark.parametrize("argument", [
    "models", "cache_dir", "cache_ram", "cache_ram_file", "cache_disk", "cache_disks", "port",
    "runtime_dir", "log_file", "config",
])  # fmt: skip
def test_a_start_with_a_senseless_setting_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    """Without the launcher: what this process must refuse before it starts one."""
    started: list[object] = []

    def spawn(config: object) -> None:
        started.append(config)
        raise errors.NodeStartFailed("not in this test")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runtime.launch.start.spawn", spawn)
    made: list[Call] = [
        (f"start({argument}={label})", lambda value=value: Node.start(**{argument: value}))
        for label, value in SENSELESS.items()
    ]
    assert untyped(made) == []


@pytest.mark.parametrize("argument", ["port", "runtime_dir"])
def test_an_attach_with_a_senseless_setting_names_it(tmp_path: Path, argument: str) -> None:
    made: list[Call] = [
        (
            f"attach({argument}={label})",
            lambda value=value: Node.attach(
                **{"port": 1, "runtime_dir": tmp_path, argument: value}
            ).close(),
        )
        for label, value in SENSELESS.items()
        if (argument, label) not in {("port", "None"), ("runtime_dir", "None")}
    ]
    assert untyped(made) == []


# ── the right values ────────────────────────────────────────────────────────────────────────────


def test_none_is_not_given(node: Node) -> None:
    plain = node.complete("stub", "Once", max_tokens=3)
    nones: dict[str, Any] = dict.fromkeys(
        ("stop", "parent_key", "parse_special", "timeout_s", "session", "continues", "speculation",
         "exact",
         "thinking", "thinking_budget_tokens", "tool_calls", "resumed_events", "salt", "sampling",
         "temperature", "seed", "json_schema", "logit_bias", "logprobs", "response_format")
    )  # fmt: skip
    assert node.complete("stub", "Once", max_tokens=3, **nones).text == plain.text
    assert node.complete("stub", "\x04", max_tokens=None).finish_reason == "stop"
    assert node.tokenize("stub", "a", add_special=None, parse_special=None) == [256, 97]


@pytest.mark.parametrize(
    "ids",
    [
        numpy.array([65, 66, 67]),
        numpy.array([65, 66, 67], dtype=numpy.uint8),
        (65, 66, 67),
        range(65, 68),
        [numpy.int32(65), numpy.uint64(66), 67],
    ],
    ids=["array", "uint8", "tuple", "range", "scalars"],
)
def test_ids_may_be_of_any_integer_type(node: Node, ids: Any) -> None:
    expected = node.complete("stub", [65, 66, 67], max_tokens=4).tokens
    assert node.complete("stub", ids, max_tokens=4).tokens == expected
    assert node.detokenize("stub", ids) == "ABC"
    assert node.match_prefix("stub", ids).n_tokens == 3
    assert node.verify("stub", ids, numpy.array(expected[:2])).accepted == 2
    assert node.embed("stub", ids).vectors == node.embed("stub", [[65, 66, 67]]).vectors
    settings = {"max_tokens": numpy.int64(2), "timeout_s": numpy.float32(20), "seed": numpy.int8(1)}
    assert len(node.complete("stub", ids, **settings).tokens) == 2


def test_bytes_are_a_text_and_never_ids(node: Node) -> None:
    text = "Größe"
    assert node.tokenize("stub", text.encode()) == node.tokenize("stub", text)
    for prompt in (text.encode(), bytearray(text.encode()), memoryview(text.encode())):
        done = node.complete("stub", prompt, max_tokens=3)
        assert done.text == node.complete("stub", text, max_tokens=3).text
    assert node.embed("stub", text.encode()).vectors == node.embed("stub", text).vectors
    for call in (
        lambda: node.complete("stub", b"\xff"),
        lambda: node.detokenize("stub", b"ABC"),  # type: ignore[arg-type]
        lambda: node.verify("stub", b"AB", [1]),  # type: ignore[arg-type]
    ):
        with pytest.raises(errors.InvalidRequest):
            call()


@pytest.mark.parametrize("half", [f"a{chr(0xD83D)}", f"a{chr(0xDCFF)}"], ids=["surrogate", "byte"])
def test_what_is_no_character_is_refused_and_never_replaced(node: Node, half: str) -> None:
    calls = (
        lambda: node.complete("stub", half),
        lambda: node.tokenize("stub", half),
        lambda: node.embed("stub", ["x", half]),
        lambda: node.match_prefix("stub", half),
        lambda: node.chat("stub", [{"role": "user", "content": half}]),
        lambda: node.complete("stub", "x", stop=[half]),
        lambda: node.complete("stub", "x", session=half),
    )
    for call in calls:
        with pytest.raises(errors.InvalidRequest, match="at character"):
            call()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stop": 5}, r"stop is 5 \(int\); expected a text or a list of texts"),
        ({"stop": [None]}, "stop is None; expected a text"),
        ({"timeout_s": "5"}, r"timeout_s is '5' \(str\); expected a number"),
        ({"session": 7}, r"session is 7 \(int\); expected a name"),
        ({"max_tokens": 2.0}, r"max_tokens is 2.0 \(float\); expected a whole number"),
        ({"json_schema": {"enum": {1}}}, "json_schema=.*JSON"),
        ({"parent_key": 5}, "parent_key is 5"),
        ({"thinking": "yes"}, "thinking is 'yes'.*True or False"),
        ({"sampling": 5}, "sampling is 5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named_with_what_is_expected(
    node: Node, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(errors.InvalidRequest, match=says):
        node.complete("stub", "x", **options)


def test_a_closed_node_raises_that_it_is_closed(node: Node) -> None:
    directory = node.connection._router.folder.path.parent
    with Node.attach(node.port, runtime_dir=directory) as closed:
        stream = closed.stream("stub", "x", max_tokens=2)
    calls = (closed.models, closed.status, lambda: closed.tokenize("stub", "x"), stream.__next__)
    for call in calls:
        with pytest.raises(errors.NodeNotRunning, match="closed"):
            call()
