"""Anthropic's messages: bodies in. What comes out is in ``anthropic_answer``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from runtime.gateway.wire.anthropic_errors import THREAD_NOT_FOUND
from runtime.gateway.wire.anthropic_messages import (
    Breakpoint,
    Converted,
    Message,
    breakpoint_of,
    converted,
    is_deferred,
    tools_of,
)
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import Failure, Fault, Refused, invalid, unsupported
from runtime.gateway.wire.sampling import Options, max_tokens_of, options_of
from runtime.gateway.wire.wanted import Wanted

DEFAULT_MAX_TOKENS: Final = 4096
"""Anthropic's API requires the field; llama-server takes so many where it is missing."""
_EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_CHOICES: Final = ("auto", "any", "tool", "none")
_KEYWORDS: Final = frozenset(
    {
        "type", "properties", "items", "prefixItems", "enum", "const", "anyOf", "oneOf", "allOf",
        "not", "$ref", "required", "additionalProperties", "pattern", "format", "minimum",
        "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength",
        "minItems", "maxItems", "uniqueItems", "contains", "patternProperties", "propertyNames",
        "minProperties", "maxProperties", "if", "dependentRequired", "dependentSchemas",
    }
)  # fmt: skip
"""Of JSON Schema: an object with none of them describes any JSON."""
_NO_THREADS: Final = "thread: conversations are not held here; send all messages in each request"
COUNTED: Final = (
    "tools", "documents", "chat_template_kwargs", "enable_thinking", "reasoning_effort",
    "continue_final_message",
)  # fmt: skip
"""Options that change the prompt, by the names that ``apply_chat_template`` has for them."""


class Thinking(msgspec.Struct, kw_only=True):
    """Whether the model thinks, and how long."""

    type: str
    budget_tokens: int | None = None


class OutputConfig(msgspec.Struct, kw_only=True):
    """The form of the reply."""

    effort: str | None = None
    format: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct, kw_only=True):
    """Which tools may or must be called."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thread(msgspec.Struct, kw_only=True):
    """A conversation that the server holds: begun, or continued with new messages alone."""

    type: str


class Diagnostics(msgspec.Struct, kw_only=True):
    """What this request is compared with."""

    previous_message_id: str | None = None


class MessagesBody(Options, kw_only=True):
    """The body of ``POST /v1/messages``, and of ``/v1/messages/count_tokens``."""

    messages: list[Message]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    max_tokens: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    diagnostics: Diagnostics | None = None
    thread: Thread | None = None
    chat_template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What of a body concerns its answer."""

    breakpoint: Breakpoint | None = None
    previous: str | None = None
    """The id of the answer with whose request this one is compared."""
    signed: tuple[tuple[str, str], ...] = ()
    """Thoughts in it that came with a signature, and that."""


def read_messages(body: bytes, defaults: Mapping[str, float]) -> tuple[Wanted, Asked]:
    """What a body asks for; Refused names the field that is wrong."""
    given = read(body, MessagesBody)
    if not given.messages:
        raise invalid("messages is empty; send at least one message", "messages")
    if given.thread is not None and given.thread.type != "create":
        raise Refused(Failure(Fault.NOT_FOUND, _NO_THREADS, "thread", code=THREAD_NOT_FOUND))
    options = options_of(given, defaults)
    chat = converted(given.system, given.messages, given.tools or ())
    remarks = (
        _put_tools(given, chat.referred, options)
        + _put_thinking(given, options)
        + _put_form(given, options)
    )
    if given.chat_template_kwargs is not None:
        options["chat_template_kwargs"] = given.chat_template_kwargs
    stops = [one for one in given.stop_sequences or () if one]
    if stops:
        options["stop"] = stops
    if given.thread is not None:
        remarks += (_NO_THREADS,)
    _put_continuation(chat, options)
    n = max_tokens_of(given.max_tokens)
    no_limit = given.max_tokens is not None and n is None
    options["max_tokens"] = DEFAULT_MAX_TOKENS if n is None and not no_limit else n
    options["thinking"] = "auto"
    wanted = Wanted(
        model=given.model or "",
        kind="chat",
        inputs=(chat.messages,),
        options=options,
        is_stream=bool(given.stream),
        remarks=remarks,
    )
    asked = Asked(
        breakpoint=breakpoint_of(
            given.tools or (), given.system, given.messages, given.cache_control
        ),
        previous=None if given.diagnostics is None else given.diagnostics.previous_message_id,
        signed=tuple(chat.signed),
    )
    return wanted, asked


def prompt_options(wanted: Wanted) -> dict[str, Any]:
    """The keywords of ``AsyncClient.apply_chat_template`` for the same prompt."""
    return {name: wanted.options[name] for name in COUNTED if name in wanted.options}


def _put_tools(
    given: MessagesBody, referred: Collection[str], options: dict[str, Any]
) -> tuple[str, ...]:
    """``referred``: the deferred tools that the messages describe."""
    choice = given.tool_choice
    if choice is not None and choice.type not in _CHOICES:
        raise invalid(
            f"tool_choice.type is {choice.type[:40]!r}; it is one of {', '.join(_CHOICES)}",
            "tool_choice.type",
        )
    if not given.tools:
        if choice is not None and choice.type in ("any", "tool"):
            raise invalid("tool_choice requires a call, and there are no tools", "tool_choice")
        return ()
    tools, remarks = tools_of(given.tools)
    pairs = list(zip(given.tools, tools, strict=True))
    options["tools"] = [tool for one, tool in pairs if not is_deferred(one)]
    deferred = [tool for one, tool in pairs if is_deferred(one) and one.get("name") in referred]
    if deferred:
        options["deferred_tools"] = deferred
    if choice is None:
        return remarks
    if choice.type == "tool":
        if not choice.name:
            raise invalid("tool_choice.name is missing: the tool to call", "tool_choice.name")
        function = {"name": choice.name}
        options["tool_choice"] = {"type": "function", "function": function}
    else:
        options["tool_choice"] = "required" if choice.type == "any" else choice.type
    if choice.disable_parallel_tool_use:
        options["parallel_tool_calls"] = False
    return remarks


def _put_thinking(given: MessagesBody, options: dict[str, Any]) -> tuple[str, ...]:
    """Adaptive thinking, and no word about it, leave it to the template."""
    kind = "" if given.thinking is None else given.thinking.type
    effort = None if given.output_config is None else given.output_config.effort
    if kind == "disabled":
        options["enable_thinking"] = False
        return ()
    if given.thinking is not None and kind == "enabled":
        options["enable_thinking"] = True
        if given.thinking.budget_tokens is not None:
            options["thinking_budget_tokens"] = given.thinking.budget_tokens
    if effort in _EFFORTS:
        if effort != "none" or "enable_thinking" not in options:
            options["reasoning_effort"] = effort
    elif effort is not None:
        return (f"output_config.effort: {effort[:40]!r} is not known here",)
    return ()


def _put_form(given: MessagesBody, options: dict[str, Any]) -> tuple[str, ...]:
    form = (given.output_config and given.output_config.format) or given.output_format
    if form is None:
        return ()
    if form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise invalid(
            'output_config.format is {"type": "json_schema", "schema": {…}}', "output_config.format"
        )
    if "grammar" in options or "json_schema" in options or "response_format" in options:
        raise invalid("output_config.format: the reply has another form already; give one of them")
    schema = form["schema"]
    options["json_schema"] = schema if _KEYWORDS & schema.keys() else {}
    if options.get("tool_choice", "auto") not in ("auto", "none"):
        raise unsupported(
            "output_config.format and a tool_choice that requires a call exclude each other",
            "output_config.format",
        )
    return ("output_config.format: the reply calls no tools",) if given.tools else ()


def _put_continuation(chat: Converted, options: dict[str, Any]) -> None:
    """A last message of the assistant is continued."""
    last = chat.messages[-1]
    is_begun = last["content"] or last.get("reasoning_content")
    if last["role"] == "assistant" and is_begun and not last.get("tool_calls"):
        options["continue_final_message"] = True
