"""OpenAI's Responses API: bodies in. What goes out is made in ``responses_answer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import invalid, unsupported
from runtime.gateway.wire.responses_items import Item, messages_of
from runtime.gateway.wire.sampling import Options, max_tokens_of, options_of
from runtime.gateway.wire.wanted import Wanted

LOGPROBS: Final = "message.output_text.logprobs"
_INSTRUCTING: Final = ("system", "developer")
_WORDS: Final = ("auto", "none", "required")


class TextConfig(msgspec.Struct, kw_only=True):
    """The form of the reply's text."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """How much is thought."""

    effort: str | None = None
    summary: str | None = None


class CacheOptions(msgspec.Struct, kw_only=True):
    """What is asked of the prompt cache."""

    prewarm: bool | None = None
    comparison_response_id: str | None = None


class ResponseBody(Options, kw_only=True):
    """The body of ``POST /v1/responses``, and of the count of its tokens."""

    input: str | list[dict[str, Any]] | None = None
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    truncation: str | None = None
    conversation: Any = None
    prompt: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_budget_tokens: int | None = None
    return_progress: bool | None = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def shows_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    @property
    def is_prewarm(self) -> bool:
        """Whether only the prompt is read."""
        return bool(self.prompt_cache_options and self.prompt_cache_options.prewarm)

    @property
    def compares_with(self) -> str | None:
        """The response with which the use of the cache is compared."""
        options = self.prompt_cache_options
        return options.comparison_response_id if options else None


def read_response(body: bytes) -> ResponseBody:
    """What a body asks for; Refused names the field that is wrong."""
    asked = read(body, ResponseBody)
    if asked.conversation is not None:
        raise unsupported(
            "conversation: this node keeps no conversations; send previous_response_id, or all "
            "items as input",
            "conversation",
        )
    if asked.prompt is not None:
        raise unsupported("prompt: this node keeps no prompts; send their text as input", "prompt")
    if asked.truncation not in (None, "disabled"):
        raise unsupported(
            "truncation: this node leaves nothing of a conversation out; send disabled, and "
            "shorten the input",
            "truncation",
        )
    if asked.background and not asked.is_stored:
        raise invalid("background: true needs store: true, by which its answer is read", "store")
    return asked


def wanted_of(
    asked: ResponseBody,
    items: Sequence[Item],
    defaults: Mapping[str, float],
    remarks: tuple[str, ...] = (),
) -> Wanted:
    """The reply to ``items``, which are those of earlier responses and of this one's input."""
    options = options_of(asked, defaults)
    tools, notes = tools_of(asked)
    notes += _put_choice(asked, tools, options)
    if tools:
        options["tools"] = tools
        if asked.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = asked.parallel_tool_calls
    options.update(thinking_of(asked))
    _put_format(asked, options)
    if asked.shows_logprobs:
        options["n_logprobs"] = asked.top_logprobs or 0
    limit = max_tokens_of(asked.max_output_tokens, names=("max_output_tokens",))
    options["max_tokens"] = 0 if asked.is_prewarm else limit
    options["thinking"] = "auto"
    return Wanted(
        model=asked.model or "",
        kind="chat",
        inputs=(conversation_of(asked, items),),
        options=options,
        is_stream=bool(asked.stream),
        needs_pieces=asked.shows_logprobs,
        remarks=(*remarks, *notes),
    )


def conversation_of(asked: ResponseBody, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The messages. Clients probe with an empty input: that is an empty message of a user."""
    found = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    found += messages_of(items)
    if all(one["role"] in _INSTRUCTING for one in found):
        found.append({"role": "user", "content": ""})
    return found


def thinking_of(asked: ResponseBody) -> dict[str, Any]:
    """Options that a template reads."""
    found = {
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
        "chat_template_kwargs": asked.chat_template_kwargs,
        "enable_thinking": asked.enable_thinking,
        "thinking_budget_tokens": asked.thinking_budget_tokens,
    }
    return {name: value for name, value in found.items() if value is not None}


def _put_format(asked: ResponseBody, options: dict[str, Any]) -> None:
    given = asked.text.format if asked.text else None
    if given is None:
        return
    match given.get("type"):
        case "text":
            pass
        case "json_object":
            options["response_format"] = {"type": "json_object"}
        case "json_schema":
            if not isinstance(given.get("schema"), dict):
                raise invalid("text.format.schema must be a JSON Schema", "text.format.schema")
            schema = {key: value for key, value in given.items() if key != "type"}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        case kind:
            raise unsupported(
                f"text.format.type is {kind!r}; there are text, json_object and json_schema",
                "text.format",
            )


# ── tools ───────────────────────────────────────────────────────────────────────────────────────


def tools_of(asked: ResponseBody) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The functions in the form of chat completions, and a remark on what else was sent."""
    found, skipped = list[dict[str, Any]](), set[str]()
    for at, tool in enumerate(asked.tools or ()):
        if tool.get("type") not in (None, "function"):
            skipped.add(str(tool["type"]))
            continue
        if not isinstance(tool.get("name"), str) or not tool["name"]:
            raise invalid(f"tools[{at}] has no name", f"tools[{at}].name")
        facts = ((key, tool.get(key)) for key in ("name", "description", "parameters", "strict"))
        function = {key: value for key, value in facts if value is not None}
        found.append({"type": "function", "function": function})
    names = ", ".join(sorted(skipped))
    return found, (f"tools: {names}: left out, this node runs none",) if names else ()


def _put_choice(
    asked: ResponseBody, tools: Sequence[Mapping[str, Any]], options: dict[str, Any]
) -> tuple[str, ...]:
    choice, remarks = _choice(asked.tool_choice)
    if tools:
        if choice is not None:
            options["tool_choice"] = choice
    elif choice not in (None, "auto", "none"):
        raise invalid("tool_choice requires a call, and there are no functions", "tool_choice")
    return remarks


def _choice(
    given: str | dict[str, Any] | None,
) -> tuple[str | dict[str, Any] | None, tuple[str, ...]]:
    if given is None or given in _WORDS:
        return given, ()
    kind = given.get("type") if isinstance(given, dict) else given
    if isinstance(given, dict) and kind == "function" and isinstance(given.get("name"), str):
        return {"type": "function", "function": {"name": given["name"]}}, ()
    if isinstance(given, dict) and kind == "allowed_tools":
        named = [one for one in given.get("tools") or () if isinstance(one, dict)]
        mode = "required" if given.get("mode") == "required" else "auto"
        if mode == "required" and len(named) == 1:
            return _choice(named[0])
        return mode, (f"tool_choice: allowed_tools: read as {mode}, among all tools",)
    raise unsupported(
        f'tool_choice is {kind!r}; it is auto, none, required or {{"type": "function", "name": …}}',
        "tool_choice",
    )
