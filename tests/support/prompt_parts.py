"""What must hold of the parts of any prompt."""

from __future__ import annotations

from actors.text.chat_request import Chat
from actors.text.parts import Parts


def check(chat: Chat, text: str, parts: Parts) -> None:
    """They cover the text in order, name all that was sent, and hold the texts of messages."""
    found = parts.found
    ends = [0, *(part.end for part in found)]
    assert [part.start for part in found] == ends[:-1], found
    assert ends[-1] == len(text)
    assert all(part.start < part.end for part in found) or not text, found
    names = {part.name for part in found}
    for at, message in enumerate(chat.sent):
        name = f"messages[{at}]"
        assert (name in names) != (name in parts.unknown), (name, parts)
        content = (message["content"] or "").strip()
        own = [text[part.start : part.end] for part in found if part.name == name]
        rest = [text[part.start : part.end] for part in found if part.name != name]
        if own and content:
            line = max(content.splitlines(), key=len).strip()
            is_elsewhere = any(line in one for one in rest)
            assert any(line in one for one in own) or not is_elsewhere, (name, parts)
    for part in found:
        if part.content is not None:
            start, end = part.content
            number = int(part.name.removeprefix("messages[").removesuffix("]"))
            assert part.start <= start <= end <= part.end
            assert text[start:end] == (chat.sent[number]["content"] or "").strip()
    written = [text[one.start : one.end] for one in found if one.name.startswith("tools")]
    tools = "".join(written) if written else None
    if chat.has_tools:
        assert (tools is not None) != ("tools" in parts.unknown)
    if tools is not None:
        assert all(name in tools for name in parts.tools)
    assert list(parts.restarts) == sorted(set(parts.restarts))
