"""The form in which a chat template expects conversations: found out by rendering probes.

An API's message that only calls tools has ``null`` for its content, or none, or an empty text, and
its arguments are JSON in a text or an object. Templates are written for one of these; given another
they fail, or print the message without its calls. So each template is tried once with short
conversations of marked words, and what it prints decides. A template that prints everything gets
what the field sends most: an empty text, arguments as an object, one message.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from actors.messages.markers import Markers
from actors.text.chat_continuation import common_length
from actors.text.chat_form import Shape
from actors.text.chat_messages import REASONING
from actors.text.chat_request import Chat, chat_from
from actors.text.chat_template import ChatTemplate, TemplateFailed, TemplateStopped
from actors.text.chat_thinking import BUDGET, EFFORTS, LEVELS, SWITCHES, thinking_variables
from actors.text.own_calls import beginning_for
from actors.text.template_limits import MAX_RENDER_S

_NAME, _KEY, _VALUE, _RESULT = "zqcall", "zqkey", "zqvalue", "zqresult"
_BESIDE, _RULE, _ORDER, _THOUGHT = "zqbeside", "zqrule", "zqorder", "zqthought"
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
        text = self.text(chat, {})
        if text is None or f"'{_THOUGHT}'" in text or f'"{_THOUGHT}"' in text:
            return _FAILED
        # An object as Python writes it, JSON inside of JSON, a null printed as a word.
        is_bad = f"'{_KEY}'" in text or f'\\"{_VALUE}' in text or "None" in text
        return 2 * sum(word in text for word in words) - is_bad

    def text(self, chat: Chat, more: Mapping[str, object]) -> str | None:
        """What the template prints, with more variables; None: it refuses."""
        if time.thread_time() > self.until:
            raise TemplateStopped("the chat template is too slow to be probed")
        try:
            return self.template.render({**chat.variables(), **more})
        except TemplateStopped:
            raise
        except TemplateFailed:
            return None


def fitted(template: ChatTemplate, chat: Chat) -> Chat:
    """The conversation as this template expects it. The first call of a template probes it."""
    if template.shape is None:
        template.shape = shape_of(template)
    return chat.shaped(template.shape)


def completed(template: ChatTemplate) -> ChatTemplate:
    """The same, which prints tools and calls now, if it did not: with a beginning of ours.

    See ``actors.text.own_calls``. A template that prints none with one either stays as it is.
    """
    template.shape = kept = shape_of(template)
    own = template.source, template.variables
    with contextlib.suppress(TemplateFailed):
        tools, calls = _prints(template)
        if tools and calls:
            return template
        ends = _ends_calls(template)
        template.begin_with(beginning_for(*own, tools=tools, calls=calls, ends_calls=ends))
        template.shape = shape_of(template)
        if all(_prints(template)):
            return template
    template.begin_with("")
    template.shape = kept
    return template


def _prints(template: ChatTemplate) -> tuple[bool, bool]:
    """Whether the template prints tools, and whether it prints calls."""
    tools = _printed(template, _chat(_USER, tools=[_TOOL]))
    calls = _printed(template, _called(None))
    return "zqtool" in tools and _KEY in tools, _NAME in calls and _VALUE in calls


def _ends_calls(template: ChatTemplate) -> bool:
    """Whether what is printed after the last call is the same for one call and for two."""
    texts = [_printed(template, one) for one in (_called(None), _TWO_CALLS)]
    one, two = (text.partition(_RESULT)[0].rpartition("}")[2] for text in texts)
    return one == two


def _printed(template: ChatTemplate, chat: Chat) -> str:
    """Empty where the template refuses this; TemplateStopped."""
    try:
        return template.render(fitted(template, chat).variables())
    except TemplateStopped:
        raise
    except TemplateFailed:
        return ""


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
    """The shape as far as it is known, after each of the questions."""
    shape = Shape()
    for ask in (_variables, _tools, _calls, _roles, _turns, _thoughts, _efforts):
        shape = ask(probe, shape)
        yield shape


def _variables(probe: _Probe, shape: Shape) -> Shape:
    names = probe.template.variables
    switch = next((one for one in SWITCHES if one in names and _switches(probe, one)), None)
    if switch is None:  # one that acts only in some conversations
        switch = next((one for one in ("enable_thinking", "thinking") if one in names), None)
    shape = replace(shape, thinking=switch or "enable_thinking")
    plain = [_chat(_USER)]
    if "documents" in names:
        plain.append(_chat(_USER, documents=[{"title": "zqtitle", "text": "zqdocument"}]))
    shape = probe.best(plain, [shape, replace(shape, no_tools="empty")], ())
    return probe.best([_chat(_USER)], [shape, replace(shape, typed_content=True)], ("zquser",))


def _switches(probe: _Probe, name: str) -> bool:
    on, off = (probe.text(_chat(_USER), {name: value}) for value in SWITCHES[name])
    return on != off and on is not None and off is not None


def _tools(probe: _Probe, shape: Shape) -> Shape:
    forms = [
        replace(shape, describes_all=described, flat_tools=flat)
        for described in (False, True)
        for flat in (False, True)
    ]
    return probe.best([_chat(_USER, tools=[_TOOL])], forms, ("zqtool", _KEY))


def _calls(probe: _Probe, shape: Shape) -> Shape:
    constants = probe.template.constants
    if "tool_responses" in constants and "tool_call_id" not in constants:
        shape = replace(shape, results_in_call=True)
    kinds = [
        replace(shape, no_text=no_text, text_arguments=text)
        for text in (False, True)
        for no_text in ("empty", "null", "absent")
    ]
    words = (_NAME, _VALUE, _RESULT)
    shape = probe.best([_called(None)], kinds, words)
    usual = [_called(None, call_id="call_zqid0123456789")]
    shape = probe.best(usual, [shape, replace(shape, short_ids=True)], words)
    # Some leave out by design the text before calls of earlier turns; so first without one.
    beside, all_words = _called(_BESIDE), (_BESIDE, *words)
    latest = _called(_BESIDE, ends=True)
    if not _in_order(probe.text(latest.shaped(shape), {}), (_BESIDE, _NAME)):
        forms = [shape, replace(shape, splits_calls=True)]
        places = [_in_order(probe.text(latest.shaped(one), {}), (_BESIDE, _NAME)) for one in forms]
        shape = forms[1] if places[1] else probe.best([beside], forms, all_words)
        if probe.text(beside.shaped(shape), {}) is None:
            shape = probe.best([beside], [shape, replace(shape, one_text=True)], all_words)
    forms = [shape, replace(shape, one_call=True)]
    return probe.best([_TWO_CALLS], forms, (_NAME, _RESULT, _SECOND))


def _roles(probe: _Probe, shape: Shape) -> Shape:
    """A template that prints any role as it comes has no developer: it names those it has."""
    rule = _chat(_said("developer", _RULE), _USER)
    is_named = "developer" in probe.template.constants
    forms = [replace(shape, developer_is_system=True)]
    shape = probe.best([rule], [shape, *forms] if is_named else [*forms, shape], (_RULE,))
    alone = _chat(_said("system", _RULE), _USER)
    forms = [shape, replace(shape, system_in_user=True)]
    shape = probe.best([alone], forms, (_RULE, "zquser"))
    called = replace(_CALLED_PLAIN, sent=[_said("system", _RULE), *_CALLED_PLAIN.sent])
    forms = [shape, replace(shape, system_needs_user=True)]
    shape = probe.best([called], forms, (_RULE, "zquser", _RESULT))
    several = _chat(_said("system", _RULE), _said("system", _ORDER), _USER)
    forms = [shape, replace(shape, joins_systems=True)]
    return probe.best([several], forms, (_RULE, _ORDER, "zquser"))


def _turns(probe: _Probe, shape: Shape) -> Shape:
    reply, more = _said("assistant", "zqreply"), _said("user", "zqmore")
    two = _chat(_USER, more)
    shape = probe.best([two], [shape, replace(shape, joins_turns=True)], ("zquser", "zqmore"))
    answered = _called(None, ends=True, then=(more,))
    forms = [shape, replace(shape, user_in_result=True)]
    shape = probe.best([answered], forms, (_RESULT, "zqmore"))
    order, rules = _said("system", _ORDER), [_said(one, _RULE) for one in ("system", "developer")]
    middle = [_chat(order, _USER, reply, rule, more) for rule in rules]
    middle += [_chat(order, _USER, reply, rule) for rule in rules]
    words = (_ORDER, "zquser", "zqreply", _RULE)
    if all(_in_order(probe.text(one.shaped(shape), {}), words) for one in middle):
        return shape
    return probe.best(middle, [replace(shape, folds_systems=True), shape], words)


def _in_order(text: str | None, words: tuple[str, ...]) -> bool:
    """Whether all are printed, each after the one before it."""
    places = [-1 if text is None else text.find(word) for word in words]
    return -1 not in places and places == sorted(places)


def _thoughts(probe: _Probe, shape: Shape) -> Shape:
    """Where thoughts go, and what the template prints around them."""
    known = Markers().for_template(probe.template.source).thinking or ()
    words = (_THOUGHT, "zqreply", _NAME)
    keys = [REASONING, "reasoning", "thinking", "thought", "parts"]
    forms = [replace(shape, reasoning=key) for key in keys]
    if len(known) == 2 and known[1] in probe.template.constants:
        forms += _inline(probe, shape, known)
    shape = probe.best([_LAST, _CALLED], forms, words)
    shape = replace(shape, marks=shape.marks or _marks(probe, shape, known))
    text = probe.text(_LAST.shaped(shape), {}) or ""
    n_opened = text.rpartition("zquser")[2].count(shape.marks[0].strip()) if shape.marks else 1
    return replace(shape, keeps_thought=_THOUGHT in text and n_opened == 1)


def _inline(probe: _Probe, shape: Shape, known: tuple[str, ...]) -> list[Shape]:
    """The form with thoughts in the content, if the template cuts them out of earlier turns."""
    marks = _around(probe.text(_chat(_USER, enable_thinking=True).shaped(shape), {}), known)
    form = replace(shape, reasoning="inline", marks=marks)
    earlier = _chat(_USER, _SAID, _said("user", "zqmore"), enable_thinking=True)
    text = probe.text(earlier.shaped(form), {})
    return [form] if text is not None and _THOUGHT not in text else []


def _marks(probe: _Probe, shape: Shape, known: tuple[str, ...]) -> tuple[str, ...]:
    """What starts and ends thoughts, with the white space that belongs to them."""
    texts = [probe.text(one.shaped(shape), {}) or "" for one in (_LAST, _CALLED)]
    if len(known) == 2:
        around = rf"({re.escape(known[0])}\s*){_THOUGHT}(\s*{re.escape(known[1])}\s*)"
        found = next(filter(None, (re.search(around, text) for text in texts)), None)
        if found is not None:
            return found[1], found[2]
        return _around(probe.text(_chat(_USER, enable_thinking=True).shaped(shape), {}), known)
    without = (probe.text(one.shaped(shape), {}) or "" for one in (_LAST_PLAIN, _CALLED_PLAIN))
    for text, plain in zip(texts, without, strict=True):
        start, word, end = _inserted(text, plain).partition(_THOUGHT)
        if word and start.strip() and end.strip():
            return start, end
    return ()


def _around(prompt: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Marks as the beginning of a reply shows them: in lines of their own, or not."""
    start, end = known
    if prompt is not None and prompt.endswith(start):
        return start, end
    return f"{start}\n", f"\n{end}\n\n"


def _inserted(text: str, plain: str) -> str:
    """What ``text`` has more than ``plain``, in one place; the leftmost of equal ones."""
    n_more, at = len(text) - len(plain), common_length(text, plain)
    while n_more > 0 and at > 0 and text[at - 1] == text[at - 1 + n_more]:
        at -= 1
    found = text[at : at + n_more]
    return found if n_more > 0 and plain == text[:at] + text[at + n_more :] else ""


def _efforts(probe: _Probe, shape: Shape) -> Shape:
    template = probe.template
    name = next((one for one in LEVELS if one in template.variables), "")
    if not name:
        return replace(shape, effort=BUDGET if BUDGET in template.variables else "")
    user = _chat(_USER).shaped(shape)
    on = thinking_variables(True, None, shape)

    def printed(level: str) -> str | None:
        return probe.text(user, {**on, name: level})

    usual = ("low", "medium", "high")
    offered = [one for one in EFFORTS[1:] if one in usual or one in template.constants]
    levels = tuple(one for one in offered if printed(one) is not None)
    most = printed(levels[-1]) if levels else None
    off = next(
        (
            one
            for one in ("none", "no_think")
            if one in template.constants and printed(one) not in (None, most)
        ),
        "",
    )
    return replace(shape, effort=name, efforts=levels, no_effort=off)


def _called(
    content: str | None,
    *,
    ends: bool = False,
    then: tuple[dict[str, Any], ...] = (),
    call_id: str = "zqid00001",
    thought: str | None = None,
    **more: Any,
) -> Chat:
    """A conversation with a call; it ends with the call's result, or continues."""
    function = {"name": _NAME, "arguments": {_KEY: _VALUE}}
    later = (_said("assistant", "zqreply"), _said("user", "zqmore"))
    call = {"id": call_id, "type": "function", "function": function}
    return _chat(
        _USER,
        _said("assistant", content, tool_calls=[call], **{REASONING: thought}),
        _said("tool", _RESULT, tool_call_id=call_id, name=_NAME),
        *(then if ends else later),
        tools=[_TOOL],
        **more,
    )


def _chat(*messages: dict[str, Any], asks: bool = True, **more: Any) -> Chat:
    plain = {"messages": messages, "add_generation_prompt": asks, **more}
    return chat_from(json.dumps(plain))


def _said(role: str, content: str | None, **more: object) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


_USER: Final = _said("user", "zquser")
_SAID: Final = _said("assistant", "zqreply", **{REASONING: _THOUGHT})
_LAST: Final = _chat(_USER, _SAID, asks=False, enable_thinking=True)
_LAST_PLAIN: Final = _chat(_USER, {**_SAID, REASONING: None}, asks=False, enable_thinking=True)
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "zqdescription",
        "parameters": {
            "type": "object",
            "properties": {
                "zqfirst": {"type": "string", "description": "zqdescription"},
                _KEY: {"type": "integer"},
            },
            "required": [_KEY],
        },
    },
}

_SECOND: Final = "zqsecond"
_TWO_CALLS: Final = _chat(
    _USER,
    _said(
        "assistant",
        None,
        tool_calls=[
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": {}}}
            for call_id, name in (("zqid00001", _NAME), ("zqid00002", _SECOND))
        ],
    ),
    _said("tool", _RESULT, tool_call_id="zqid00001", name=_NAME),
    _said("tool", "zqother", tool_call_id="zqid00002", name=_SECOND),
    tools=[_TOOL],
)
_CALLED: Final = _called(None, ends=True, thought=_THOUGHT, enable_thinking=True)
_CALLED_PLAIN: Final = _called(None, ends=True, enable_thinking=True)
