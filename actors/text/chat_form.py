"""A conversation in the form that one template expects: roles, contents, thoughts, calls, tools.

Pure, and decided by a ``Shape``, which ``actors.text.chat_shape`` finds out for each template.
Nothing is left out: what has no place of its own in a template is put into a neighbouring text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeGuard

from actors.text.chat_messages import REASONING

Continuing = Literal["content", "reasoning"]
CONTINUED: Final = "zqcontinuedhere"
"""Ends the text of a message that is continued; the prompt is cut before it."""
_ORIGINS: Final = "\0origins"
"""Key, while the form is made, of the numbers of the sent messages that are in a message."""
_RULES: Final = ("system", "developer")
_SHORT_ID: Final = re.compile(r"[A-Za-z0-9]{9}")
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"

_PYTHON_TYPES: Final = {
    "string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "List",
    "object": "Dict",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """The form in which one template expects conversations; see ``text.chat_shape``."""

    no_text: Literal["empty", "null", "absent"] = "empty"
    """The content of a message that only calls tools."""
    splits_calls: bool = False
    """A message with text and calls is given as two, the text first."""
    one_text: bool = False
    """A turn of an assistant has one text; texts beside its earlier calls are given with its last.
    """
    text_arguments: bool = False
    """Arguments of calls are JSON in a text instead of an object."""
    one_call: bool = False
    """A message calls one tool; several calls are given one by one, each with its result."""
    results_in_call: bool = False
    """Results are in ``tool_responses`` of the message with the calls, as Gemma has them."""
    short_ids: bool = False
    """Ids of calls have nine letters or digits; others are replaced by a digest."""
    no_tools: Literal["null", "empty"] = "null"
    """``tools`` where there are none."""
    describes_all: bool = False
    """Each parameter of a tool has a description, if only an empty one."""
    flat_tools: bool = False
    """A tool is its function's object alone, with ``parameter_definitions``, as Cohere has it."""
    typed_content: bool = False
    """Contents are lists of parts."""
    developer_is_system: bool = False
    """The role ``developer`` is given as ``system``."""
    joins_systems: bool = False
    """Several system messages at the beginning are given as one."""
    system_in_user: bool = False
    """There is no system message: its text begins the first user's."""
    system_needs_user: bool = False
    """The same where a conversation does not end with a user's message."""
    folds_systems: bool = False
    """System messages after the beginning are given as text of users."""
    joins_turns: bool = False
    """Two messages of a user or an assistant in a row are given as one."""
    user_in_result: bool = False
    """A user's message after a tool's result is given as text of that result."""
    reasoning: str = REASONING
    """The key of a message's thoughts; ``parts``: of the content; ``inline``: text in it."""
    marks: tuple[str, ...] = ()
    """What starts and ends thoughts in the template's texts."""
    keeps_thought: bool = False
    """The thoughts of a last message are printed before its content."""
    thinking: str = "enable_thinking"
    """The variable that ``enable_thinking`` sets."""
    effort: str = ""
    """The variable that ``reasoning_effort`` sets."""
    efforts: tuple[str, ...] = ()
    """The values that it may have, from the least to the most."""
    no_effort: str = ""
    """The value that switches thinking off."""


def in_form(
    sent: list[dict[str, Any]],
    shape: Shape,
    continuing: Continuing | None = None,
) -> tuple[list[dict[str, Any]], list[tuple[int, ...]]]:
    """Checked messages as a template of this shape gets them.

    And of each, which of those sent it is made of: their numbers, in the order of their texts.
    """
    messages = [{**one, _ORIGINS: [number]} for number, one in enumerate(sent)]
    made = list(_formed(messages, shape, continuing))
    return made, [tuple(one.pop(_ORIGINS)) for one in made]


def _formed(
    messages: list[dict[str, Any]], shape: Shape, continuing: Continuing | None = None
) -> Iterator[dict[str, Any]]:
    """Messages with their origins, in this form. Those given are changed."""
    if continuing is not None:
        key = REASONING if continuing == "reasoning" else "content"
        messages[-1][key] = (messages[-1].get(key) or "") + CONTINUED
        if not shape.keeps_thought and _in_content(shape):
            yield from _formed(messages[:-1], shape)
            yield from _shaped(messages[-1], replace(shape, reasoning=REASONING))
            return
    messages = _with_roles(messages, shape)
    if shape.one_text:
        messages = _one_text_by_turn(messages)
    if shape.one_call:
        messages = list(_one_by_call(messages))
    if shape.results_in_call:
        messages = _with_responses(messages)
    for one in messages:
        yield from _shaped(one, shape)


def _same_origins(message: dict[str, Any]) -> dict[str, list[int]]:
    """For another message that is made of the same ones; a list of its own, which may grow."""
    return {_ORIGINS: [*message[_ORIGINS]]}


# ── roles ───────────────────────────────────────────────────────────────────────────────────────


def _with_roles(messages: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    if shape.developer_is_system:
        for one in messages:
            one["role"] = "system" if one["role"] == "developer" else one["role"]
    is_asked = bool(messages) and messages[-1]["role"] == "user"
    in_user = shape.system_in_user or (shape.system_needs_user and not is_asked)
    n_lead = next((at for at, one in enumerate(messages) if one["role"] not in _RULES), None)
    n_lead = len(messages) if n_lead is None else n_lead
    lead, rest = messages[:n_lead], messages[n_lead:]
    if len(lead) > 1 and (shape.joins_systems or in_user):
        texts = [one["content"] for one in lead if one["content"]]
        origins = [number for one in lead for number in one[_ORIGINS]]
        lead = [{**lead[0], "content": "\n\n".join(texts), _ORIGINS: origins}]
    if lead and in_user:
        lead, rest = [], _begun(lead[0], rest)
    if shape.folds_systems or shape.user_in_result or shape.joins_turns:
        rest = _with_turns(rest, shape)
    return lead + rest


def _begun(system: dict[str, Any], rest: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first user's message begins with the system's text, as llama.cpp has it."""
    text = system["content"] or ""
    if not rest or rest[0]["role"] != "user":
        return [{"role": "user", "content": text, **_same_origins(system)}, *rest]
    first = {**rest[0], "content": f"{text}\n{rest[0]['content'] or ''}"}
    return [{**first, _ORIGINS: system[_ORIGINS] + first[_ORIGINS]}, *rest[1:]]


def _with_turns(messages: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    for one in messages:  # lists of texts, so that many can be added
        one["content"] = [one["content"]] if one["content"] else []
    if shape.folds_systems:
        messages = _folded(messages, shape)
    if shape.user_in_result:
        messages = list(_users_in_results(messages))
    if shape.joins_turns:
        messages = list(_one_by_turn(messages))
    for one in messages:
        one["content"] = "\n\n".join(one["content"])
    return messages


def _folded(messages: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    """System messages become text of the user's next message, else of the one before, else one."""
    done: list[dict[str, Any]] = []
    waiting: list[str] = []
    origins: list[int] = []
    places = ("user", "tool") if shape.user_in_result else ("user",)

    def settle(following: dict[str, Any] | None) -> None:
        before = done[-1] if done else None
        if _takes_before(following, before):
            following["content"][:0] = waiting
            following[_ORIGINS][:0] = origins
        elif before is not None and before["role"] in places:
            before["content"] += waiting
            before[_ORIGINS] += origins
        else:
            done.append({"role": "user", "content": [*waiting], _ORIGINS: [*origins]})
        waiting.clear()
        origins.clear()

    for one in messages:
        if one["role"] in _RULES:
            waiting.append(f"<system>\n{''.join(one['content'])}\n</system>")
            origins += one[_ORIGINS]
            continue
        if waiting:
            settle(one)
        done.append(one)
    if waiting:
        settle(None)
    return done


def _takes_before(
    following: dict[str, Any] | None, before: dict[str, Any] | None
) -> TypeGuard[dict[str, Any]]:
    """Whether text is put before this message's: a user's, or a result among those of calls."""
    if following is None:
        return False
    is_among = before is not None and (before.get("tool_calls") or before["role"] == "tool")
    return following["role"] == "user" or (following["role"] == "tool" and bool(is_among))


def _users_in_results(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    last: dict[str, Any] | None = None
    for one in messages:
        if one["role"] == "user" and last is not None and last["role"] == "tool":
            last["content"] += one["content"]
            last[_ORIGINS] += one[_ORIGINS]
            continue
        last = one
        yield one


def _one_by_turn(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    last: dict[str, Any] | None = None
    for one in messages:
        is_turn = one["role"] in ("user", "assistant") and not _is_more(one)
        if last is not None and last["role"] == one["role"] and is_turn and not _is_more(last):
            last["content"] += one["content"]
            last[_ORIGINS] += one[_ORIGINS]
            continue
        last = one
        yield one


def _one_text_by_turn(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last text of each turn has those before it as well, which stood beside calls."""
    turn: list[dict[str, Any]] = []
    emptied: set[int] = set()

    def settle() -> None:
        if len(turn) > 1:
            text = "\n\n".join(one["content"] for one in turn)
            origins = [number for one in turn for number in one[_ORIGINS]]
            for one in turn[:-1]:
                one["content"] = None
                if not _is_more(one):
                    emptied.add(id(one))
            turn[-1].update({"content": text, _ORIGINS: origins})
        turn.clear()

    for one in messages:
        if one["role"] not in ("assistant", "tool"):
            settle()
        elif one["role"] == "assistant" and one["content"]:
            turn.append(one)
    settle()
    return [one for one in messages if id(one) not in emptied]


def _is_more(message: dict[str, Any]) -> bool:
    """Whether there is more in a message than its content."""
    return bool(message.get("tool_calls") or message.get(REASONING))


# ── calls and results ───────────────────────────────────────────────────────────────────────────


def _one_by_call(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each call in a message of its own, followed by its result."""
    waiting: list[dict[str, Any]] = []
    results: dict[Any, list[dict[str, Any]]] = {}

    def settled() -> Iterator[dict[str, Any]]:
        for message in waiting:
            yield message
            yield from results.pop(message["tool_calls"][0]["id"], ())
        for others in results.values():
            yield from others
        waiting.clear()
        results.clear()

    for message in messages:
        if waiting and message["role"] == "tool":
            results.setdefault(str(message.get("tool_call_id")), []).append(message)
            continue
        yield from settled()
        calls = message.get("tool_calls") or []
        if len(calls) < 2:
            yield message
            continue
        waiting.append({**message, "tool_calls": calls[:1]})
        for call in calls[1:]:
            other = {"role": message["role"], "content": None, "tool_calls": [call]}
            waiting.append({**other, **_same_origins(message)})
    yield from settled()


def _with_responses(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results, and the text that follows them, in the message with the calls.

    Text beside the calls stands before them, in a message of its own.
    """
    done: list[dict[str, Any]] = []
    for message in messages:
        last = done[-1] if done else {}
        responses = last.get("tool_responses")
        if message["role"] == "tool" and last.get("tool_calls") and not last["content"]:
            response = {"name": message.get("name") or "", "response": _value(message["content"])}
            last.setdefault("tool_responses", []).append(response)
            last[_ORIGINS] += message[_ORIGINS]
        elif message["role"] == "assistant" and message.get("tool_calls"):
            if message["content"]:
                before = {"role": "assistant", "content": message["content"]}
                done.append({**before, **_same_origins(message)})
            done.append({**message, "content": None})
        elif responses and not last["content"] and _is_text(message):
            last["content"] = message["content"]
            last[_ORIGINS] += message[_ORIGINS]
        else:
            done.append(message)
    return done


def _is_text(message: dict[str, Any]) -> bool:
    """Whether this is the text with which the turn of these calls ends, and nothing else."""
    return message["role"] == "assistant" and not _is_more(message)


def _value(text: str | None) -> object:
    """A result as the JSON that it is, else as text."""
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return text or ""


# ── one message ─────────────────────────────────────────────────────────────────────────────────


def _shaped(message: dict[str, Any], shape: Shape) -> list[dict[str, Any]]:
    message = dict(message)
    if shape.reasoning == "inline" and message.get("tool_calls"):
        message.pop(REASONING, None)  # the template cuts it out, and a line break stays
    if shape.short_ids and message.get("tool_call_id") is not None:
        message["tool_call_id"] = _short_id(message["tool_call_id"])
    calls = message.pop("tool_calls", None)
    shaped = [_shaped_call(call, shape) for call in calls or ()]
    if not shaped:
        none = {} if calls is None else {"tool_calls": calls}
        return [_with_thought({**message, **none}, shape)]
    if not message["content"]:
        return [_only_calls(_with_thought(message, shape), shaped, shape)]
    if not shape.splits_calls or message.get("tool_responses"):
        return [{**_with_thought(message, shape), "tool_calls": shaped}]
    thought = {} if shape.keeps_thought else {REASONING: message.pop(REASONING, None)}
    calling = {"role": message["role"], "content": None, **thought, **_same_origins(message)}
    calling = _with_thought(calling, shape)
    return [_with_thought(message, shape), _only_calls(calling, shaped, shape)]


def _in_content(shape: Shape) -> bool:
    return shape.reasoning in ("inline", "parts")


def _with_thought(message: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The message with its thoughts where the template reads them, and its content as it does."""
    content = message["content"] or ""
    thought = message.pop(REASONING, None)
    message["content"] = content
    if thought and shape.reasoning == "parts":
        parts = [{"type": "thinking", "thinking": thought}]
        return {**message, "content": parts + _parts(content)}
    if thought and shape.reasoning == "inline":
        start, end = shape.marks
        return {**message, "content": f"{start}{thought}{end}{content}"}
    if shape.typed_content:
        message["content"] = [{"type": "text", "text": content}]
    if thought:
        message[shape.reasoning if not _in_content(shape) else REASONING] = thought
    return message


def _parts(content: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if content else []


def _only_calls(
    message: dict[str, Any], calls: list[dict[str, Any]], shape: Shape
) -> dict[str, Any]:
    message = {**message, "content": message["content"] or "", "tool_calls": calls}
    if message["content"]:
        return message
    if shape.no_text == "null":
        message["content"] = None
    elif shape.no_text == "absent":
        del message["content"]
    return message


def _shaped_call(call: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """APIs send arguments as JSON in a text; most templates expect an object."""
    function = call["function"]
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and not arguments.strip():
        arguments = {}
    if shape.text_arguments and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not shape.text_arguments and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = arguments  # what a model generated may be no JSON; it must come back as it was
        arguments = parsed if isinstance(parsed, dict | list) else arguments
    shaped = {**call, "function": {**function, "arguments": arguments}}
    return {**shaped, "id": _short_id(call["id"])} if shape.short_ids else shaped


def _short_id(call_id: object) -> str:
    """The same for the same id, in every turn; one that is short enough stays."""
    text = str(call_id)
    if _SHORT_ID.fullmatch(text):
        return text
    number = int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    )
    digits = []
    for _ in range(9):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(digits)


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


def described_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with a description of each parameter."""
    function = tool["function"]
    schema = function["parameters"]
    properties = schema.get("properties")
    described = {
        name: {"description": "", **one} if isinstance(one, dict) else one
        for name, one in (properties.items() if isinstance(properties, dict) else ())
    }
    schema = {**schema, "properties": described}
    return {**tool, "function": {**function, "parameters": schema}}


def flat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in Cohere's older form."""
    function = tool["function"]
    schema = function["parameters"]
    listed, properties = schema.get("required"), schema.get("properties")
    required = listed if isinstance(listed, list) else []
    definitions = {
        name: {
            "description": one.get("description", ""),
            "type": _PYTHON_TYPES.get(str(one.get("type")), "Any"),
            "required": name in required,
        }
        for name, one in (properties.items() if isinstance(properties, dict) else ())
        if isinstance(one, dict)
    }
    return {**function, "parameter_definitions": definitions}
