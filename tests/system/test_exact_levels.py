"""How exact replies are: chosen by model and by request, at every door, and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.messages.exact import Exact
from runtime import Node, RequestOptions, errors
from tests.support.runtime_nodes import cli, kill, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

PROMPT = "x" * 200


def level(node: Node, model: str, **options: Any) -> str:
    """The level that a reply had."""
    return node.complete(model, PROMPT, max_tokens=3, **options).cache.exact.value


def test_a_request_chooses_how_exact_it_is(stub_node: Node) -> None:
    for name in ("repeat", "prefix", "always"):
        assert level(stub_node, "stub", exact=name) == name
    assert level(stub_node, "stub", exact=Exact.ALWAYS) == "always"
    assert level(stub_node, "stub", options=RequestOptions(exact="always")) == "always"
    assert level(stub_node, "stub") in ("repeat", "prefix")  # the latter where it costs nothing
    done = stub_node.complete("stub", PROMPT, max_tokens=3, exact="always")
    assert done.to_dict()["cache"]["exact"] == "always"
    assert done.usage.cached_tokens >= len(PROMPT)
    with pytest.raises(errors.InvalidRequest, match=r"exact is 'sometimes'.*always"):
        stub_node.complete("stub", PROMPT, exact="sometimes")  # type: ignore[arg-type]


def test_requests_that_are_always_exact_use_rows_of_their_own(stub_node: Node) -> None:
    prompt = "apart" * 60
    assert stub_node.prefill_only("stub", prompt, exact="repeat").usage.cached_tokens == 0
    first = stub_node.prefill_only("stub", prompt, exact="always")
    assert first.usage.cached_tokens == 0
    again = stub_node.prefill_only("stub", prompt, exact="always")
    assert again.usage.cached_tokens == again.usage.prompt_tokens
    assert stub_node.prefill_only("stub", prompt).usage.cached_tokens > 0


def test_a_model_is_always_exact_also_after_a_crash(stub_node: Node) -> None:
    status = stub_node.load("sure", "stub", backend="stub", exact="always")
    try:
        assert status.details["exact"] == "always"
        assert level(stub_node, "sure") == "always"
        assert level(stub_node, "sure", exact="repeat") == "always"
        assert stub_node.match_prefix("sure", PROMPT).n_tokens > len(PROMPT)
        kill(pid_of(stub_node, "model:sure"))
        eventually(
            lambda: level(stub_node, "sure") == "always",
            within_s=30,
            what="the model is back as it was loaded",
        )
    finally:
        stub_node.unload("sure")
    with pytest.raises(errors.ConfigError, match=r"load\('bad'\).exact: 'sometimes' is not one of"):
        stub_node.load("bad", "stub", backend="stub", exact="sometimes")  # type: ignore[arg-type]


def test_levels_on_the_command_line(stub_node: Node, tmp_path: Path) -> None:
    place = {"port": stub_node.port, "runtime_dir": tmp_path / "run"}
    done = cli(
        "complete", "stub", "hi", "--max-tokens", "3", "--exact", "always", "--json", **place
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cache"]["exact"] == "always"
    loaded = cli("load", "demo", "--exact", "always", **place)
    assert loaded.returncode == 0, loaded.stderr
    assert level(stub_node, "demo") == "always"
    talk = cli("chat", "stub", "--exact", "sometimes", **place, input="hi\n")
    for wrong in (talk, cli("load", "demo", "--exact", "sometimes", **place)):
        assert wrong.returncode == 2
        assert "'repeat', 'prefix', 'always'" in wrong.stderr
