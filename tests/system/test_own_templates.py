"""Chat templates of one's own, by model and by request, through a whole node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime import Node, errors
from tests.support.runtime_nodes import cli, kill, pid_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

TALK = [{"role": "user", "content": "hi"}]
OURS = "{% for one in messages %}[{{ one.role }}] {{ one.content }}{% endfor %}"
THEIRS = "{% for one in messages %}{{ one.content | upper }}{% endfor %}"


def test_templates_of_a_model_and_of_a_request(stub_node: Node, tmp_path: Path) -> None:
    with pytest.raises(errors.NotSupported, match="or a chat_template"):
        stub_node.apply_chat_template("stub", TALK)
    assert stub_node.apply_chat_template("stub", TALK, chat_template=THEIRS).text == "HI"
    assert stub_node.chat("stub", TALK, chat_template=THEIRS, max_tokens=2).tokens
    file = tmp_path / "ours.jinja"
    file.write_text(OURS)
    stub_node.load("own", "stub", backend="stub", chat_template_file=file)
    try:
        assert stub_node.apply_chat_template("own", TALK).text == "[user] hi"
        assert stub_node.apply_chat_template("own", TALK, chat_template=THEIRS).text == "HI"
        assert stub_node.apply_chat_template("own", TALK).text == "[user] hi"
        for broken, words in (
            ("{% if %}", "line 1"),
            ("{{ messages.__class__.__mro__ }}", "unsafe|failed|says"),
            ("{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
             "stopped"),
        ):  # fmt: skip
            with pytest.raises(errors.InvalidRequest, match=words):
                stub_node.chat("own", TALK, chat_template=broken, max_tokens=2)
        kill(pid_of(stub_node, "model:own"))
        eventually(
            lambda: stub_node.apply_chat_template("own", TALK).text == "[user] hi",
            within_s=30,
            what="the model is back with its template",
        )
    finally:
        stub_node.unload("own")
    with pytest.raises(errors.ConfigError, match=r"load\('bad'\).chat_template"):
        stub_node.load("bad", "stub", backend="stub", chat_template="{{")


def test_chat_takes_a_template_on_the_command_line(stub_node: Node, tmp_path: Path) -> None:
    file = tmp_path / "theirs.jinja"
    file.write_text(THEIRS)
    place = {"port": stub_node.port, "runtime_dir": tmp_path / "run", "input": "hi\n"}
    chat = ("chat", "stub", "--max-tokens", "3")
    own = ("--chat-template-file", str(file))
    told = cli(*chat, *own, **place)
    assert told.returncode == 0, told.stderr
    without = cli(*chat, **place)
    assert without.returncode == 1
    assert "chat_template" in without.stderr
    file.write_text("{{")
    broken = cli(*chat, *own, **place)
    assert broken.returncode == 2
    assert "chat.chat_template_file: the chat template raised" in broken.stderr


CLOSED = OURS.replace("{{ one.content }}", "{{ one.content }}</{{ one.role }}>")


def test_a_continued_message_is_a_prompt_without_its_end(stub_node: Node) -> None:
    """The reply is what the model writes after the message, and nothing of the message."""
    begun = [*TALK, {"role": "assistant", "content": "Once upon"}]
    options = {"chat_template": CLOSED, "continue_final_message": True}
    prompt = stub_node.apply_chat_template("stub", begun, **options)  # type: ignore[arg-type]
    assert prompt.text == "[user] hi</user>[assistant] Once upon"
    reply = stub_node.chat("stub", begun, max_tokens=6, **options)  # type: ignore[arg-type]
    same = stub_node.complete("stub", prompt.tokens, max_tokens=6)
    assert (reply.text, reply.tokens) == (same.text, same.tokens)
    thought = {**begun[1], "reasoning": "Hm."}
    with pytest.raises(errors.NotSupported, match="does not print the thought"):
        stub_node.chat("stub", [*TALK, thought], **options)  # type: ignore[arg-type]


def test_what_agents_send_reaches_a_model(stub_node: Node) -> None:
    """Other names of variables, messages of the system in the middle, results without names."""
    template = (
        "{{ mood }}|" + OURS + "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}"
    )
    template += "{% for m in messages if m.tool_calls %}{{ m.tool_calls | tojson }}{% endfor %}"
    talk: list[dict[str, Any]] = [
        *TALK,
        {"role": "assistant", "content": None, "reasoning_content": "Hm."},
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
    ]
    shown = stub_node.apply_chat_template(
        "stub",
        talk,
        chat_template=template,
        chat_template_kwargs={"mood": "glad"},
        tools=[{"name": "look_up", "input_schema": {}}],
    )
    start, _, tool = shown.text.partition("{")
    assert start == "glad|[user] hi[assistant] [system] Be brief.[user] Why?"
    assert '"name": "look_up"' in tool
