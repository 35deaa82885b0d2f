"""How a chat template wants what callers may send in several ways: found out by rendering probes.

An API's message that only calls tools has ``null`` for its content, or none, or an empty text, and
its arguments are JSON in a text or an object. Templates are written for one of these; given another
they fail, or print the message without its calls. So each template is tried once with short
conversations of marked words, and what it prints decides. A template that prints everything gets
what the field sends most: an empty text, arguments as an object, one message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from actors.chat_messages import Chat, Shape, chat_from
from actors.chat_template import ChatTemplate, TemplateFailed, TemplateStopped

_NAME, _KEY, _VALUE, _RESULT = "zqcall", "zqkey", "zqvalue", "zqresult"
_BESIDE, _RULE = "zqbeside", "zqrule"
_FAILED: Final = -1


def fitted(template: ChatTemplate, chat: Chat) -> Chat:
    """The conversation as this template wants it. The first call of a template probes it."""
    if template.shape is None:
        template.shape = shape_of(template)
    return chat.shaped(template.shape)


def shape_of(template: ChatTemplate) -> Shape:
    """Probe. A template that is stopped for using too much gets what was found until then."""
    shape = Shape()
    try:
        for shape in _steps(template):  # noqa: B007 - the last one counts
            pass
    except TemplateStopped:
        pass
    return shape


def _steps(template: ChatTemplate) -> Iterator[Shape]:
    names = template.variables
    is_other = "thinking" in names and "enable_thinking" not in names
    shape = Shape(thinking="thinking" if is_other else "enable_thinking")
    user = {"role": "user", "content": "zquser"}
    plain = [_chat(user)]
    if "documents" in template.variables:
        plain.append(_chat(user, documents=[{"title": "zqtitle", "text": "zqdocument"}]))
    shape = _best(template, plain, [shape, replace(shape, no_tools="empty")], ())
    yield shape
    offer = _chat(user, tools=[_TOOL])
    shape = _best(template, [offer], [shape, replace(shape, flat_tools=True)], ("zqtool",))
    yield shape
    kinds = [
        replace(shape, no_text=no_text, text_arguments=text)
        for text in (False, True)
        for no_text in ("empty", "null", "absent")
    ]
    shape = _best(template, [_called(None)], kinds, (_NAME, _VALUE, _RESULT))
    yield shape
    # Some leave out by design what was said before calls of earlier turns; so first without one.
    beside, words = _called(_BESIDE), (_NAME, _VALUE, _RESULT, _BESIDE)
    latest = _called(_BESIDE, ends=True)
    if _score(template, latest.shaped(shape), words) < 2 * len(words):
        shape = _best(template, [beside], [shape, replace(shape, splits_calls=True)], words)
        yield shape
    rule = _chat({"role": "developer", "content": _RULE}, user)
    yield _best(template, [rule], [shape, replace(shape, developer_is_system=True)], (_RULE,))


def _best(
    template: ChatTemplate, chats: list[Chat], shapes: list[Shape], words: tuple[str, ...]
) -> Shape:
    """The first of the shapes in which the template prints most of the words, and well."""
    scores = [sum(_score(template, one.shaped(shape), words) for one in chats) for shape in shapes]
    return shapes[scores.index(max(scores))]


def _score(template: ChatTemplate, chat: Chat, words: tuple[str, ...]) -> int:
    try:
        text = template.render(chat.variables())
    except TemplateStopped:
        raise
    except TemplateFailed:
        return _FAILED
    # An object printed as Python writes it, JSON inside of JSON, and a null printed as a word are
    # forms that no model was trained on.
    is_bad = f"'{_KEY}'" in text or f'\\"{_VALUE}' in text or "None" in text
    return 2 * sum(word in text for word in words) - is_bad


def _called(content: str | None, *, ends: bool = False) -> Chat:
    """A conversation with a call; it ends with the call's result, or goes on."""
    function = {"name": _NAME, "arguments": {_KEY: _VALUE}}
    later = [{"role": "assistant", "content": "zqreply"}, {"role": "user", "content": "zqmore"}]
    return _chat(
        {"role": "user", "content": "zquser"},
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"id": "zqid00001", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "zqid00001", "name": _NAME, "content": _RESULT},
        *([] if ends else later),
        tools=[_TOOL],
    )


def _chat(*messages: dict[str, Any], **more: Any) -> Chat:
    return chat_from(json.dumps({"messages": messages, **more}))


_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "zqdescription",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "zqdescription"}},
            "required": [_KEY],
        },
    },
}
