"""The embedded model: small, whole, and it tells stories in English words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from examples.train_demo_model.calls import examined
from examples.train_demo_model.corpus import documents
from native.gguf_header import check_gguf
from runtime import Node
from runtime.embedded import path
from runtime.embedded.prompts import long_prompt
from tests.support.nodes import free_port
from tests.support.runtime_nodes import cli

pytestmark = pytest.mark.model


@pytest.fixture
def node(emptied_node: Node) -> Node:
    return emptied_node


WORD = re.compile(r"[A-Za-z']+")


@pytest.fixture(scope="module")
def vocabulary() -> set[str]:
    """Every word of a stretch of the training text."""
    return {word.lower() for text in documents(1, 1500) for word in WORD.findall(text)}


def judge(text: str, vocabulary: set[str]) -> None:
    """Sentences of known words, with ends, that do not go round in circles."""
    words = [word.lower() for word in WORD.findall(text)]
    assert len(words) >= 25, text
    unknown = [word for word in words if word not in vocabulary]
    assert len(unknown) <= len(words) // 50, (unknown, text)
    sentences = [part for part in re.split(r"(?<=[.!?])\s", text) if part.strip()]
    assert len(sentences) >= 3, text
    assert len(set(sentences)) >= len(sentences) * 0.7, text
    grams = [tuple(words[at : at + 5]) for at in range(len(words) - 4)]
    assert len(set(grams)) >= len(grams) * 0.6, text
    for sentence in sentences[:-1]:
        first = re.search(r"[A-Za-z]", sentence)
        assert first is not None
        assert first[0].isupper() or sentence[0].islower(), sentence


def test_the_file_is_small_and_describes_itself() -> None:
    assert path().stat().st_size <= 8 * 1024 * 1024
    check_gguf(path())


def test_stories_at_temperature_0_and_above(node: Node, vocabulary: set[str]) -> None:
    greedy = node.complete("demo", "Once upon a time", max_tokens=140)
    judge("Once upon a time" + greedy.text, vocabulary)
    for seed in range(3):
        warm = node.complete("demo", "Once upon a time", max_tokens=140, temperature=0.8, seed=seed)
        judge("Once upon a time" + warm.text, vocabulary)


def test_it_carries_a_chat_template_and_a_long_context(node: Node) -> None:
    status = node.load("demo")
    assert status.details["chat_template"]
    assert status.details["n_ctx_train"] >= 4096
    assert status.details["architecture"] == "llama"


def test_it_answers_a_turn_and_stops(node: Node, vocabulary: set[str]) -> None:
    done = node.complete(
        "demo",
        "<|user|>\nTell me a story about a dragon.<|end|>\n<|assistant|>\n",
        max_tokens=400,
        parse_special=True,
    )
    assert "dragon" in done.text.lower()
    assert done.finish_reason == "stop"
    judge(done.text, vocabulary)


def tool(name: str, description: str, **types: str) -> dict[str, Any]:
    keys = {key: {"type": one} for key, one in types.items()}
    schema = {"type": "object", "properties": keys, "required": list(keys)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    tool("weather", "The weather in a town", town="string"),
    tool("add", "The sum of two numbers", a="integer", b="integer"),
]


def reply(node: Node, talk: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    """The greedy reply as it was sampled, calls and markers included."""
    prompt = node.apply_chat_template("demo", talk, tools=tools)
    done = node.complete("demo", prompt.tokens, max_tokens=400)
    assert done.finish_reason == "stop", done.text
    return done.text


def called(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of each call; the text must be calls and nothing else."""
    made = re.findall(r"<tool_call>\n(.+)\n</tool_call>", text)
    assert "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in made) == text
    calls = [json.loads(one) for one in made]
    assert all(list(one) == ["name", "arguments"] for one in calls)
    return [(one["name"], one["arguments"]) for one in calls]


@pytest.mark.parametrize(
    ("question", "calls", "results", "answer"),
    [
        (
            "Is it raining in Oslo?",
            [("weather", {"town": "Oslo"})],
            ['{"rain": true}'],
            "It is raining in Oslo.",
        ),
        ("What is 17 plus 25?", [("add", {"a": 17, "b": 25})], ["42"], "17 plus 25 is 42."),
        (
            "What is the weather in Oslo and Rome?",
            [("weather", {"town": "Oslo"}), ("weather", {"town": "Rome"})],
            ["snow, -3 degrees", "sunny, 24 degrees"],
            "In Oslo, the weather is snow, -3 degrees. In Rome, the weather is sunny, 24 degrees.",
        ),
    ],
)
def test_it_calls_tools_and_answers_with_their_results(
    node: Node, question: str, calls: list[object], results: list[str], answer: str
) -> None:
    talk: list[dict[str, Any]] = [{"role": "user", "content": question}]
    made = called(reply(node, talk, TOOLS))
    assert made == calls
    functions = [{"function": {"name": name, "arguments": given}} for name, given in made]
    talk.append({"role": "assistant", "content": "", "tool_calls": functions})
    talk += [{"role": "tool", "content": one} for one in results]
    assert reply(node, talk, TOOLS) == answer


def test_it_calls_no_tool_that_is_not_there_or_not_needed(node: Node, vocabulary: set[str]) -> None:
    hello = reply(node, [{"role": "user", "content": "Who are you?"}], TOOLS)
    assert "storyteller" in hello
    story = [{"role": "user", "content": "Tell me a story about a fox."}]
    judge(reply(node, story, TOOLS), vocabulary)
    judge(reply(node, story), vocabulary)
    for question in ("What is 17 plus 25?", "What is the weather in Oslo?"):
        assert "tool_call" not in reply(node, [{"role": "user", "content": question}])


def test_it_copies_towns_and_numbers_that_no_training_text_names(node: Node) -> None:
    right = 0
    for head, question in examined(40):
        prompt = f"{head}<|user|>\n{question.text}<|end|>\n<|assistant|>\n"
        done = node.complete("demo", prompt, max_tokens=120, parse_special=True)
        right += done.text == question.calls[0]
    assert right >= 34


def test_a_prompt_of_three_thousand_tokens_is_continued_in_english(
    node: Node, vocabulary: set[str]
) -> None:
    done = node.complete("demo", long_prompt(2300, seed=9), max_tokens=120)
    assert done.usage.prompt_tokens > 2800
    words = [word.lower() for word in WORD.findall(done.text)]
    assert sum(word in vocabulary for word in words) >= len(words) * 0.95, done.text


def test_the_demo_keeps_every_promise(tmp_path: Path) -> None:
    ran = cli("demo", "--json", port=free_port(), runtime_dir=tmp_path, timeout=280)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    report = json.loads(ran.stdout)
    assert report["troubles"] == []
    assert [row["hit"] for row in report["rows"]] == [
        "cold", "exact", "partial", "partial", "exact", "exact",
    ]  # fmt: skip
    tiers = [row["tier"] for row in report["rows"]]
    assert {*tiers[1:4]} <= {
        "live",
        "ram",
    }  # where a step is slow, idle cells cost more than they save
    assert [tiers[0], *tiers[4:]] == ["none", "ram", "disk"]
    assert ran.stderr == ""  # quiet in a pipe


def test_the_demo_takes_a_file_of_ones_own(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.gguf")
    ran = cli("demo", "--model", missing, port=free_port(), runtime_dir=tmp_path, timeout=110)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert missing in ran.stderr
    assert "Traceback" not in ran.stderr
