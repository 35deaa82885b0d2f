"""Options of a request, as keywords, become one checked ``Complete``. Nothing is sent from here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from actors import messages as m
from actors.messages.completion import MAX_SALT_BYTES
from cache.keys import KEY_BYTES
from native.sampling_params import SamplingParams
from runtime import errors
from runtime.client.sampling_options import sampling_from_options
from runtime.settings import arguments
from supervision.frozen import frozen

if TYPE_CHECKING:
    from runtime.client.grammar import GrammarSource

_CHAT_KEYS: Final = (
    "tools", "deferred_tools", "tool_choice", "parallel_tool_calls", "documents",
    "template_kwargs", "chat_template_kwargs", "enable_thinking", "reasoning_effort",
    "continue_final_message", "chat_template",
)  # fmt: skip
_CONVERSATION: Final = (
    'a list of at least one {"role": …, "content": …}; complete() takes a plain text'
)
MAX_SESSION_CHARS: Final = 256
_STOPS: Final = "a text or a list of texts"
_PROMPTS: Final = (
    "a text, token ids, or a list of at least one and at most 2048 texts or lists of token ids"
)
MAX_PROMPTS: Final = 2048
MAX_REPLIES: Final = 128
"""Of one prompt in one call."""
MAX_STOP_BYTES: Final = 2048  # a request travels in one message of 64 KiB

E = TypeVar("E", bound=Enum)

Prompt = str | Sequence[int]
"""A text, or token ids of any integer type. Bytes are a text, in UTF-8."""
Prompts = Prompt | Sequence[str] | Sequence[Sequence[int]] | Sequence[Prompt]
"""One prompt, or a list of them."""
Messages = Sequence[Mapping[str, Any]]


@frozen
class PreparedRequest:
    """A request without its prompt and grammar, which may be big; which events its caller gets."""

    request: m.Complete
    prompt: bytes
    resumed_events: bool = False
    echo: bool = False
    grammar: GrammarSource | None = None

    def reply(self, number: int) -> PreparedRequest:
        """The request for another reply to the same prompt; 0 is this one.

        Its seed is that of the first reply plus its number, modulo 2 to the power of 64.
        """
        if number == 0:
            return self
        sampling = self.request.sampling.with_seed_of(number)
        return replace(self, request=replace(self.request, sampling=sampling))


def with_options(
    name: str, options: object, kind: str, keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """A ready value of options and keywords, as keywords; ``kind`` is the value's class."""
    if options is None:
        return {**keywords}
    from runtime.client import options as values

    if not isinstance(options, getattr(values, kind)) and not (
        kind == "ChatOptions" and isinstance(options, values.RequestOptions)
    ):
        raise arguments.wrong(name, options, kind)
    return values.given(options, keywords)


def prompt_request(model: str, prompt: Prompt, **options: Any) -> PreparedRequest:
    """Of a text or of token ids; options as for ``build``."""
    may_be_empty = arguments.flag("continues", options.get("continues"))
    encoded = encoded_prompt(prompt, may_be_empty=may_be_empty)
    return build(model, encoded, tokens=not arguments.is_text(prompt), **options)


def chat_request(model: str, messages: Messages, **options: Any) -> PreparedRequest:
    """Of a conversation, which the model's own template makes a prompt of; see ``chat_json``."""
    chat = {key: options.pop(key) for key in _CHAT_KEYS if key in options}
    return build(model, chat_json(messages, **chat), chat=True, **options)


def several_of_prompts(
    model: str, prompts: object, n: object, **options: Any
) -> list[list[PreparedRequest]]:
    """``n`` requests for each prompt: of one, or of a list of them; in this order."""
    ones = _prompts(prompts)
    n_replies = _n_replies(n, options, several=len(ones) > 1)
    return [_replies_of(prompt_request(model, one, **options), n_replies) for one in ones]


def several_of_chat(
    model: str, messages: Messages, n: object, **options: Any
) -> list[PreparedRequest]:
    """``n`` requests for one conversation."""
    n_replies = _n_replies(n, options, several=False)
    return _replies_of(chat_request(model, messages, **options), n_replies)


def _replies_of(first: PreparedRequest, n: int) -> list[PreparedRequest]:
    return [first.reply(number) for number in range(n)]


def _prompts(prompts: object) -> list[Any]:
    if arguments.is_text(prompts):
        return [prompts]
    ones = arguments.items("prompts", prompts, _PROMPTS)
    if ones and all(map(arguments.is_whole, ones)):
        return [ones]
    if not 1 <= len(ones) <= MAX_PROMPTS:
        raise arguments.wrong("prompts", prompts, _PROMPTS)
    return ones


def _n_replies(n: object, options: Mapping[str, Any], *, several: bool) -> int:
    n_replies = 1 if n is None else arguments.whole("n", n, 1, MAX_REPLIES)
    if (n_replies > 1 or several) and options.get("session") is not None:
        raise errors.InvalidRequest(
            "a session has one reply at a time; leave session out, or ask for one reply to one "
            "prompt"
        )
    return n_replies


def infill_request(
    model: str,
    prefix: str,
    suffix: str,
    *,
    extra: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
    repository: str | None = None,
    file: str | None = None,
    suffix_first: bool | None = None,
    **options: Any,
) -> PreparedRequest:
    """Of what surrounds a gap; see ``Client.infill``."""
    parts: dict[str, Any] = {
        "prefix": arguments.text("prefix", prefix),
        "suffix": arguments.text("suffix", suffix),
        "suffix_first": arguments.flag("suffix_first", suffix_first),
    }
    if not parts["prefix"] and not parts["suffix"]:
        raise errors.InvalidRequest("prefix and suffix are both empty; send some text")
    for name, value in (("repository", repository), ("file", file)):
        if value is not None:
            parts[name] = arguments.text(name, value)
    if extra is not None:
        parts["extra"] = _extra_files(extra)
    return build(model, json.dumps(parts, ensure_ascii=False).encode(), infill=True, **options)


def _extra_files(extra: object) -> list[dict[str, str]]:
    wanted = "names and texts of other files: a mapping, or pairs"
    pairs = extra.items() if isinstance(extra, Mapping) else arguments.items("extra", extra, wanted)
    found = []
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise arguments.wrong("extra", pair, wanted)
        name = arguments.text("the name of an extra file", pair[0])
        found.append({"name": name, "text": arguments.text(f"extra[{name}]", pair[1])})
    return found


def chat_json(messages: Messages, **keys: Any) -> bytes:
    """A conversation in the form of ``ApplyChatTemplate``.

    ``keys``: ``tools``, ``documents``, ``template_kwargs``, ``chat_template_kwargs``,
    ``enable_thinking``, ``reasoning_effort``, ``continue_final_message``,
    ``add_generation_prompt``, ``chat_template``; what is ``None`` is left out.
    """
    conversation = arguments.items("messages", messages, _CONVERSATION)
    if not conversation:
        raise arguments.wrong("messages", messages, _CONVERSATION)
    given = {key: value for key, value in keys.items() if value is not None}
    try:
        raw = json.dumps({"messages": conversation, **given}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.InvalidRequest(f"the conversation is no JSON: {error}") from None
    return arguments.text("the conversation", raw).encode()


def build(  # noqa: PLR0913  # keyword-only, by the names of the options
    model: str,
    prompt: bytes,
    *,
    tokens: bool = False,
    chat: bool = False,
    infill: bool = False,
    max_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    parent_key: str | None = None,
    parse_special: bool | None = None,
    timeout_s: float | None = None,
    session: str | None = None,
    continues: bool | None = None,
    speculation: str | m.Speculation | None = None,
    exact: str | m.Exact | None = None,
    priority: str | m.Priority | None = None,
    thinking: bool | str | None = None,
    thinking_budget_tokens: int | None = None,
    tool_calls: bool | None = None,
    resumed_events: bool | None = None,
    salt: bytes | None = None,
    queue_events: bool | None = None,
    load_events: bool | None = None,
    drop_live: bool | None = None,
    traceparent: str | None = None,
    echo: bool | None = None,
    sampling: SamplingParams | None = None,
    **sampling_options: Any,
) -> PreparedRequest:
    """The request for these options; ``InvalidRequest`` names what is wrong, and what is expected.

    None is the default: as many ``max_tokens`` as fit, off for the others.

    What is not named here is a sampling option, see ``client.sampling_options``; ``sampling``
    takes them ready-made.
    """
    if "n" in sampling_options:
        raise errors.InvalidRequest(
            "this returns one reply; for n of them use complete_many or chat_many"
        )
    if sampling is not None and sampling_options:
        raise errors.InvalidRequest(
            f"sampling is given, and {next(iter(sampling_options))} beside it; use one of the two"
        )
    if sampling is not None and not isinstance(sampling, SamplingParams):
        raise arguments.wrong("sampling", sampling, "SamplingParams")
    is_optional = isinstance(thinking, str) and thinking == "auto"
    thinks = True if is_optional else arguments.flag("thinking", thinking)
    budget = thinking_budget_tokens
    if budget is not None:
        budget = arguments.whole("thinking_budget_tokens", budget, 0)
    chosen = sampling or sampling_from_options(**sampling_options)
    source: GrammarSource | None = None
    if chosen.is_constrained:
        from runtime.client.grammar import split  # here: few requests have a grammar

        chosen, source = split(chosen)
    request = m.Complete(
        ref="",
        model=arguments.model_name(model),
        prompt=_kind_of_prompt(
            tokens=tokens,
            chat=chat,
            infill=infill,
            parse_special=arguments.flag("parse_special", parse_special),
            continues=_continues(arguments.flag("continues", continues), session, parent_key),
        ),
        max_tokens=None if max_tokens is None else arguments.whole("max_tokens", max_tokens, 0),
        sampling=chosen,
        stop=_stops(stop),
        parent_key=parsed_key(parent_key),
        timeout_s=arguments.seconds("timeout_s", timeout_s),
        session=None if session is None else session_name(session),
        speculation=_one_of("speculation", m.Speculation, speculation) or m.Speculation.OFF,
        exact=_one_of("exact", m.Exact, exact),
        priority=_one_of("priority", m.Priority, priority) or m.Priority.INTERACTIVE,
        thinking=thinks or budget is not None,
        thinking_budget_tokens=budget,
        tool_calls=arguments.flag("tool_calls", tool_calls),
        thinking_is_optional=is_optional,
        salt=salt_of(salt),
        queue_events=arguments.flag("queue_events", queue_events),
        load_events=arguments.flag("load_events", load_events),
        drop_live=arguments.flag("drop_live", drop_live),
        traceparent=_checked_trace(traceparent),
    )
    shows_resumed = arguments.flag("resumed_events", resumed_events)
    echoes = _echoes(arguments.flag("echo", echo), request.prompt)
    return PreparedRequest(request, prompt, shows_resumed, echoes, source)


def _checked_trace(traceparent: str | None) -> str:
    if traceparent is None:
        return ""
    from actors.messages.traceparent import checked  # here: commands start without it

    return checked(traceparent)


def _echoes(echo: bool, prompt: m.Prompt) -> bool:
    if echo and isinstance(prompt, m.ConversationPrompt):
        raise errors.InvalidRequest(
            "a conversation is not echoed; apply_chat_template returns its prompt"
        )
    if echo and isinstance(prompt, m.Continuation):
        raise errors.InvalidRequest(
            "echo shows a whole prompt, and with continues this is a part of one; leave one out"
        )
    return echo


def _kind_of_prompt(
    *, tokens: bool, chat: bool, infill: bool, parse_special: bool, continues: bool
) -> m.Prompt:
    """The prompt without its bytes, which each attempt sends."""
    if chat and continues:
        raise errors.InvalidRequest("a conversation continues nothing; send all its messages")
    if chat:
        return m.ConversationPrompt(b"")
    if infill and (continues or parse_special):
        name = "continues" if continues else "parse_special"
        raise errors.InvalidRequest(f"{name} is no option of infill: leave it out")
    if infill:
        return m.InfillPrompt(b"")
    prompt = m.TokenPrompt(b"") if tokens else m.TextPrompt(b"", parse_special)
    return m.Continuation(prompt) if continues else prompt


def encoded_prompt(prompt: object, *, may_be_empty: bool = False) -> bytes:
    """UTF-8 of a text, or u32-le token ids."""
    if not arguments.is_text(prompt):
        if prompt is None or isinstance(prompt, Mapping) or not isinstance(prompt, Iterable):
            raise arguments.wrong("the prompt", prompt, "a text or a list of token ids")
        return arguments.packed_tokens("the prompt", prompt, may_be_empty=may_be_empty)
    text = arguments.text("the prompt", prompt)
    if not text and not may_be_empty:
        raise errors.InvalidRequest("the prompt is empty; send some text")
    return text.encode()


def parsed_key(text: object) -> bytes | None:
    """The bytes of a ``finish_key``."""
    if text is None:
        return None
    try:
        key = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise arguments.wrong(
            "parent_key",
            text,
            f"a finish_key, which is {2 * KEY_BYTES} hex digits; "
            "copy it from the finish_key of an earlier completion, or leave it out",
        )
    return key


def _stops(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    given = [stop] if arguments.is_text(stop) else arguments.items("stop", stop, _STOPS)
    stops = tuple(arguments.text("stop", one) for one in given)
    if "" in stops:
        raise errors.InvalidRequest(
            "an empty stop text would stop before the first token; leave it out"
        )
    if sum(len(one.encode()) for one in stops) > MAX_STOP_BYTES:
        raise errors.InvalidRequest(f"all stop texts together may have {MAX_STOP_BYTES} bytes")
    return stops


def session_name(session: object) -> str:
    """The name of a session."""
    wanted = f"a name of 1 to {MAX_SESSION_CHARS} characters"
    if not isinstance(session, str) or not 1 <= len(session) <= MAX_SESSION_CHARS:
        raise arguments.wrong("session", session, wanted)
    return arguments.text("session", session)


def salt_of(salt: object) -> bytes:
    """What separates the cache of a caller from that of others; empty: nothing does.

    Errors do not show it.
    """
    if salt is None:
        return b""
    if not isinstance(salt, bytes | bytearray | memoryview):
        raise errors.InvalidRequest(f"salt is of type {type(salt).__name__}; expected bytes")
    found = bytes(salt)
    if len(found) > MAX_SALT_BYTES:
        raise errors.InvalidRequest(
            f"salt has {len(found)} bytes; at most {MAX_SALT_BYTES} are taken, so send a digest"
        )
    return found


def _continues(continues: bool, session: str | None, parent_key: str | None) -> bool:
    if continues and session is None and parent_key is None:
        raise errors.InvalidRequest(
            "continues needs something to continue: give a session or a parent_key"
        )
    return continues


def _one_of(name: str, kind: type[E], wanted: object) -> E | None:
    """A member of ``kind``, given as such or by its value; InvalidRequest names the values."""
    if wanted is None:
        return None
    try:
        if isinstance(wanted, str | kind):
            return kind(wanted)
    except ValueError:
        pass
    raise arguments.wrong(name, wanted, f"one of {', '.join(one.value for one in kind)}")
