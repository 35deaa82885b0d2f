"""The stand-in for llama-server reads its options; the runner of its tests compares outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.clients import llama_server_tests as runner
from tests.support.llama_server import kind_of, parse, settings_of

LINE = (
    "--port 8080 --temp 0.8 --seed 42 --host 127.0.0.1,::1 --offline --hf-repo some/stories "
    "-c 512 --batch-size 32 -np 2 --no-slots --alias tiny -fa on --jinja --api-key k --odd -1 -x"
)


def test_options_are_read_with_their_values() -> None:
    options = parse(LINE.split())
    assert options.hosts == ["127.0.0.1", "::1"]
    assert options.port == 8080
    assert options.given["--ctx-size"] == "512"
    assert options.given["--offline"] is True
    assert options.unknown == ("-fa", "--odd", "-x")


def test_each_place_of_llama_server_has_a_share_of_the_context() -> None:
    settings = settings_of(parse(LINE.split()))
    assert (settings["n_ctx"], settings["n_seq_max"], settings["n_batch"]) == (256, 2, 32)
    assert (settings["slots"], settings["metrics"]) == (False, False)
    assert settings["origins"] == ["*"]
    whole = settings_of(parse([*LINE.split(), "--kv-unified"]))
    assert whole["n_ctx"] == 512


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("--hf-repo a/stories260K", "story"),
        ("--hf-repo a/stories260K-infill", "infill"),
        ("--hf-repo m --hf-file bert-bge-small/x.gguf --embedding", "embedding"),
        ("--hf-repo m --hf-file jina-reranker/x.gguf --reranking", "ranking"),
        ("--models-max 2", None),
    ],
)
def test_a_small_model_stands_for_each_that_is_named(line: str, kind: str | None) -> None:
    assert kind_of(parse(line.split())) == kind


def test_without_a_model_one_has_the_name_that_is_asked_for() -> None:
    settings = settings_of(parse(["--ctx-size", "1024"]))
    assert (settings["kind"], settings["other_names"]) == (
        "story", ["ggml-org/tinygemma3-GGUF:Q8_0"]
    )  # fmt: skip
    assert settings_of(parse(LINE.split()))["other_names"] == []


def test_thinking_is_a_variable_of_the_template(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ enable_thinking }}", encoding="utf-8")
    line = ["--chat-template-file", str(file)]
    assert "enable_thinking = true" in settings_of(parse(line))["template"]
    off = settings_of(parse([*line, "--reasoning", "off"]))["template"]
    assert "enable_thinking = false" in off
    assert off.endswith("{{ enable_thinking }}")


def outcome(test: str, result: str) -> dict[str, Any]:
    return {"test": test, "outcome": result, "why": ["assert 1 == 2"]}


def test_a_listed_failure_is_right_and_every_other_is_wrong() -> None:
    known = runner.expected("# they say other words\na::x\na::y\n\n# no images\nb::z\n")
    assert known == {
        "a::x": "they say other words",
        "a::y": "they say other words",
        "b::z": "no images",
    }
    found = [outcome("a::x", "failed"), outcome("a::y", "passed"), outcome("c::c", "failed")]
    counts, wrong = runner.verdict(found, known)
    assert counts == {"failed": 2, "passed": 1}
    assert wrong == [
        "passes, and is listed: a::y",
        "failed, and is not listed: c::c: assert 1 == 2",
        "is listed, and was not run: b::z",
    ]
    assert runner.verdict(found[:1], known, is_whole=False, floor=9)[1] == []
    assert runner.verdict(found, known, floor=1)[1] == wrong
    assert runner.verdict(found, known, floor=2)[1] == [*wrong, "1 pass, and 2 should"]


def test_every_listed_failure_has_a_reason() -> None:
    listed = runner.expected(runner.EXPECTED.read_text(encoding="utf-8"))
    assert listed
    assert all(listed.values())
    assert {one.partition("::")[0].removesuffix(".py") for one in listed} <= set(runner.FILES)


def test_all_files_have_a_process() -> None:
    assert runner.shares(["a", "b", "c"], 2) == [["a", "c"], ["b"]]
    assert runner.shares(["a"], 2) == [["a"]]
