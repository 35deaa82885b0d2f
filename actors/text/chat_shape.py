"""The form in which a chat template expects conversations: found out by rendering probes.

An API's message that only calls tools has ``null`` for its content, or none, or an empty text, and
its arguments are JSON in a text or an object. Templates are written for one of these; given another
they fail, or print the message without its calls. So each template is tried once with short
conversations of marked words, and what it prints decides. A template that prints everything gets
what the field sends most: an empty text, arguments as an object, one message.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from actors.text.chat_request import Chat, Shape, chat_from
from actors.text.chat_template import ChatTemplate, TemplateFailed, TemplateStopped
from actors.text.template_limits import MAX_RENDER_S

_NAME, _KEY, _VALUE, _RESULT = "zqcall", "zqkey", "zqvalue", "zqresult"
_BESIDE, _RULE = "zqbeside", "zqrule"
_FAILED: Final = -1


@dataclass(frozen=True, slots=True)
class _Probe:
    """Renders conversations of marked words, for a few seconds in all."""

    template: ChatTemplate
    until: float = field(default_factory=lambda: time.thread_time() + MAX_RENDER_S)
    """Seconds of this thread's own work: what a template gets may not depend on a busy machine."""

    def best(self, chats: list[Chat], shapes: list[Shape], words: tuple[str, ...]) -> Shape:
        """The first of the shapes in which the template prints most of the words, and well."""
        scores = [sum(self.score(one.shaped(shape), words) for one in chats) for shape in shapes]
        return shapes[scores.index(max(scores))]

    def score(self, chat: Chat, words: tuple[str, ...]) -> int:
        """Two for each word that is printed, less for a form that no model was trained on."""
        if time.thread_time() > self.until:
            raise TemplateStopped("the chat template is too slow to be probed")
        try:
            text = self.template.render(chat.variables())
        except TemplateStopped:
            raise
        except TemplateFailed:
            return _FAILED
        # An object as Python writes it, JSON inside of JSON, a null printed as a word.
        is_bad = f"'{_KEY}'" in text or f'\\"{_VALUE}' in text or "None" in text
        return 2 * sum(word in text for word in words) - is_bad


def fitted(template: ChatTemplate, chat: Chat) -> Chat:
    """The conversation as this template expects it. The first call of a template probes it."""
    if template.shape is None:
        template.shape = shape_of(template)
    return chat.shaped(template.shape)


def shape_of(template: ChatTemplate) -> Shape:
    """Probe. A template that takes too long or too much gets what was found until then."""
    shape = Shape()
    try:
        for shape in _steps(_Probe(template)):  # noqa: B007 - the last one counts
            pass
    except TemplateStopped:
        pass
    return shape


def _steps(probe: _Probe) -> Iterator[Shape]:
    names = probe.template.variables
    is_other = "thinking" in names and "enable_thinking" not in names
    shape = Shape(thinking="thinking" if is_other else "enable_thinking")
    user = {"role": "user", "content": "zquser"}
    plain = [_chat(user)]
    if "documents" in names:
        plain.append(_chat(user, documents=[{"title": "zqtitle", "text": "zqdocument"}]))
    shape = probe.best(plain, [shape, replace(shape, no_tools="empty")], ())
    yield shape
    offer = _chat(user, tools=[_TOOL])
    shape = probe.best([offer], [shape, replace(shape, flat_tools=True)], ("zqtool",))
    yield shape
    kinds = [
        replace(shape, no_text=no_text, text_arguments=text)
        for text in (False, True)
        for no_text in ("empty", "null", "absent")
    ]
    shape = probe.best([_called(None)], kinds, (_NAME, _VALUE, _RESULT))
    yield shape
    # Some leave out by design the text before calls of earlier turns; so first without one.
    beside, words = _called(_BESIDE), (_NAME, _VALUE, _RESULT, _BESIDE)
    latest = _called(_BESIDE, ends=True)
    if probe.score(latest.shaped(shape), words) < 2 * len(words):
        shape = probe.best([beside], [shape, replace(shape, splits_calls=True)], words)
        yield shape
    rule = _chat({"role": "developer", "content": _RULE}, user)
    yield probe.best([rule], [shape, replace(shape, developer_is_system=True)], (_RULE,))


def _called(content: str | None, *, ends: bool = False) -> Chat:
    """A conversation with a call; it ends with the call's result, or continues."""
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
