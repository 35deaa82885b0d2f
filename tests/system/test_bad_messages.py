"""Messages that make no sense, sent raw: each is answered, and no process dies of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors import messages as m
from actors.messages.payload import Spilled
from runtime import Node
from supervision.messages import new_ref

pytestmark = pytest.mark.system
ONE_TOKEN = {"prompt": m.TokenPrompt(b"\1\0\0\0")}
REFUSED: list[dict[str, Any]] = [
    {"prompt": m.TokenPrompt(b"abc")},
    {"prompt": m.TokenPrompt(b"\xff\xff\xff\x7f")},
    {"prompt": m.TextPrompt("")},
    {"max_tokens": -1},
    {"candidates": b"abc", **ONE_TOKEN},
    {"delivered": b"abc"},
    {"prompt": m.ConversationPrompt("{")},
    {"prompt": m.ConversationPrompt("[]")},
    {"timeout_s": -1.0},
    {"prompt": m.Continuation(m.TextPrompt("more"))},
    {"thinking": True, "thinking_budget_tokens": -5},
    {"prompt": "a text that is no prompt"},
    {"prompt": None},
    {"exact": "sometimes"},
    {"salt": b"s" * 65},
    {"salt": "a text"},
    {"salt": [], "prompt": m.ConversationPrompt('[{"role": "user", "content": "x"}]')},
    {"prompt": m.TextPrompt(5)},  # type: ignore[arg-type]
    {"prompt": m.Continuation(5), "session": "s"},  # type: ignore[arg-type]
]
ANSWERED: list[dict[str, Any]] = [
    {"parent_key": b"abc"},
    {"parent_key": b"abc", "salt": b"s" * 64},
    {"parent_key": 5, "salt": b"s"},
    {"stop": ("",)},
    {"session": ""},
    {"prompt": m.TextPrompt(b"\xff\xfe")},
    {"max_tokens": 10**12},
]


def end_of(node: Node, fields: dict[str, Any]) -> object:
    request = replace(
        m.Complete(new_ref(), "stub", m.TextPrompt("hello there"), max_tokens=2), **fields
    )
    ends = (m.Completed, m.CompletionFailed)
    replies = node.connection.stream("inflight", request, idle_timeout_s=30, until_down=True)
    return next(reply for reply in replies if isinstance(reply, ends))


def test_every_message_is_answered_and_none_ends_a_process(stub_node: Node) -> None:
    before = {entry.id: entry.incarnation for entry in stub_node.client.directory()}
    for fields in REFUSED:
        assert isinstance(end_of(stub_node, fields), m.CompletionFailed), fields
    for fields in ANSWERED:
        assert isinstance(end_of(stub_node, fields), m.Completed), fields
    for question, refusal in (
        (m.Tokenize(new_ref(), b"\xff"), m.TextRefused),
        (m.Detokenize(new_ref(), b"abc"), m.TextRefused),
        (m.MatchPrefix(new_ref(), b"abc"), m.TextRefused),
        (m.Embed(new_ref(), b"{"), m.EmbedFailed),
        (m.LoadAdapter(new_ref(), "/nowhere"), m.AdapterNotChanged),
        (m.SetAdapterScale(new_ref(), 7, 1.0), m.AdapterNotChanged),
        (m.Tokenize(new_ref(), 5), m.TextRefused),  # type: ignore[arg-type]
        (m.ApplyChatTemplate(new_ref(), 5), m.TextRefused),  # type: ignore[arg-type]
        (m.Detokenize(new_ref(), None), m.TextRefused),  # type: ignore[arg-type]
        (m.VerifyThinking(new_ref(), "", None), m.TextRefused),  # type: ignore[arg-type]
        (m.Embed(new_ref(), 5), m.EmbedFailed),  # type: ignore[arg-type]
        (m.Embed(new_ref(), b"[" * 50_000), m.EmbedFailed),
        (m.Embed(new_ref(), b'["x"]', pooling=5), m.EmbedFailed),  # type: ignore[arg-type]
        (m.MatchPrefix(new_ref(), 5), m.TextRefused),  # type: ignore[arg-type]
        (m.MatchPrefix(new_ref(), Spilled("/proc/0/fd/9", 4)), m.TextRefused),
        (m.EndSession(new_ref(), []), m.TextRefused),  # type: ignore[arg-type]
        (m.EndSession(new_ref(), "s", b"s" * 65), m.TextRefused),
        (m.MatchPrefix(new_ref(), b"\1\0\0\0", "s"), m.TextRefused),  # type: ignore[arg-type]
        (m.LoadAdapter(new_ref(), 5), m.AdapterNotChanged),  # type: ignore[arg-type]
        (m.LoadAdapter(new_ref(), "/nowhere", "x"), m.AdapterNotChanged),  # type: ignore[arg-type]
        (m.UnloadAdapter(new_ref(), []), m.AdapterNotChanged),  # type: ignore[arg-type]
    ):
        answer = stub_node.connection.ask("model:stub", question, timeout_s=30)
        assert isinstance(answer, refusal), answer
        asked = m.Ask("stub", replace(question, ref=new_ref()))
        answer = stub_node.connection.ask("inflight", asked, timeout_s=10)
        assert isinstance(answer, refusal), answer
    vague = m.LoadModel(new_ref(), "vague", "stub", "stub", exact="x")  # type: ignore[arg-type]
    answer = stub_node.connection.ask("registry", vague, timeout_s=30)
    assert isinstance(answer, m.ModelNotLoaded)
    assert "exact is 'x'" in answer.detail
    stub_node.connection.tell("inflight", m.Ask("stub", 5))  # type: ignore[arg-type]
    after = {entry.id: entry.incarnation for entry in stub_node.client.directory()}
    assert after == before
