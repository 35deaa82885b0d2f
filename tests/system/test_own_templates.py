"""Chat templates of one's own, by model and by request, through a whole node."""

from __future__ import annotations

from pathlib import Path

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
