"""What a caller asks for, as keywords, becomes one ``Complete``. Nothing is sent from here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from actors import messages as m
from cache import tokens as token_bytes
from cache.keys import KEY_BYTES
from native.sampling_params import SamplingParams
from runtime import errors
from runtime.sampling_options import sampling_from_options
from supervision.frozen import frozen

_CHAT_KEYS: Final = (
    "tools", "documents", "template_kwargs", "enable_thinking", "chat_template",
)  # fmt: skip
MAX_SESSION_CHARS: Final = 256
MAX_STOP_BYTES: Final = 2048  # a request travels in one message of 64 KiB

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


@frozen
class Wanted:
    """A request but for its prompt, which may be big, and what its caller wants to hear of it."""

    request: m.Complete
    prompt: bytes
    resumed_events: bool = False


def prompt_request(model: str, prompt: Prompt, **options: Any) -> Wanted:
    """Of a text or of token ids; options as for ``build``."""
    is_text = isinstance(prompt, str)
    encoded = encoded_prompt(prompt, may_be_empty=bool(options.get("continues")))
    return build(model, encoded, tokens=not is_text, **options)


def chat_request(model: str, messages: Messages, **options: Any) -> Wanted:
    """Of a conversation, which the model's own template makes a prompt of; see ``chat_json``."""
    chat = {key: options.pop(key) for key in _CHAT_KEYS if key in options}
    return build(model, chat_json(messages, **chat), chat=True, **options)


def chat_json(messages: Messages, **keys: Any) -> bytes:
    """A conversation as ``ApplyChatTemplate`` wants it.

    ``keys``: ``tools``, ``documents``, ``template_kwargs``, ``enable_thinking``,
    ``add_generation_prompt``, ``chat_template``; what is ``None`` is left out.
    """
    if isinstance(messages, str | Mapping) or not messages:
        raise errors.InvalidRequest(
            'messages is a list of at least one {"role": …, "content": …}; '
            "send a plain text with complete()"
        )
    given = {key: value for key, value in keys.items() if value is not None}
    try:
        return json.dumps({"messages": list(messages), **given}, ensure_ascii=False).encode(
            "utf-8", "replace"
        )
    except (TypeError, ValueError) as error:
        raise errors.InvalidRequest(f"the conversation is no JSON: {error}") from None


def build(  # noqa: PLR0913  # keyword-only, by the names users know
    model: str,
    prompt: bytes,
    *,
    tokens: bool = False,
    chat: bool = False,
    max_tokens: int = 256,
    stop: str | Sequence[str] = (),
    parent_key: str | None = None,
    parse_special: bool = False,
    timeout_s: float | None = None,
    session: str | None = None,
    continues: bool = False,
    speculation: str | m.Speculation = m.Speculation.OFF,
    thinking: bool = False,
    thinking_budget_tokens: int | None = None,
    tool_calls: bool = False,
    resumed_events: bool = False,
    sampling: SamplingParams | None = None,
    **sampling_options: Any,
) -> Wanted:
    """The request for these options; what makes no sense is an ``InvalidRequest`` that says why.

    What is not named here is a sampling option, see ``runtime.sampling_options``; ``sampling``
    takes them ready-made.
    """
    if sampling is not None and sampling_options:
        raise errors.InvalidRequest(
            f"sampling is given, and {next(iter(sampling_options))} beside it; use one of the two"
        )
    request = m.Complete(
        ref="",
        model=model,
        prompt=b"",
        tokens=tokens,
        max_tokens=_whole("max_tokens", max_tokens, least=0),
        sampling=sampling or sampling_from_options(**sampling_options),
        stop=_stops(stop),
        parent_key=parsed_key(parent_key),
        parse_special=parse_special,
        timeout_s=_seconds(timeout_s),
        session=_session(session),
        continues=_continues(continues, session, parent_key),
        speculation=_speculation(speculation),
        chat=chat,
        thinking=thinking or thinking_budget_tokens is not None,
        thinking_budget_tokens=None
        if thinking_budget_tokens is None
        else _whole("thinking_budget_tokens", thinking_budget_tokens, least=0),
        tool_calls=tool_calls,
    )
    return Wanted(request, prompt, resumed_events)


def encoded_prompt(prompt: Prompt, *, may_be_empty: bool = False) -> bytes:
    """UTF-8, or u32-le token ids."""
    if not prompt and may_be_empty:
        return b""
    if isinstance(prompt, str):
        if not prompt:
            raise errors.InvalidRequest("the prompt is empty; send some text")
        return prompt.encode("utf-8", "replace")
    return packed_tokens(prompt, "the prompt")


def packed_tokens(tokens: Sequence[int], what: str) -> bytes:
    """u32-le ids, at least one."""
    if not tokens:
        raise errors.InvalidRequest(f"{what} has no tokens; send at least one")
    try:
        return token_bytes.pack(tokens)
    except (TypeError, ValueError) as error:
        raise errors.InvalidRequest(f"{what} is not a list of token ids: {error}") from error


def parsed_key(text: str | None) -> bytes | None:
    """The bytes of a ``finish_key``."""
    if text is None:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise errors.InvalidRequest(
            f"parent_key {text[:16]!r}… is not a finish_key, which is {2 * KEY_BYTES} hex digits; "
            "copy it from the finish_key of an earlier completion, or leave it out"
        )
    return key


def _whole(name: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise errors.InvalidRequest(f"{name} is {value!r}; it must be a whole number from {least}")
    return value


def _seconds(timeout_s: float | None) -> float | None:
    if timeout_s is not None and not timeout_s > 0:
        raise errors.InvalidRequest(f"timeout_s is {timeout_s!r}; give seconds above 0, or None")
    return timeout_s


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in stops:
        raise errors.InvalidRequest(
            "an empty stop text would stop before the first token; leave it out"
        )
    if sum(len(one.encode("utf-8", "replace")) for one in stops) > MAX_STOP_BYTES:
        raise errors.InvalidRequest(f"all stop texts together may have {MAX_STOP_BYTES} bytes")
    return stops


def _session(session: str | None) -> str | None:
    if session is not None and not 1 <= len(session) <= MAX_SESSION_CHARS:
        raise errors.InvalidRequest(f"a session's name has 1 to {MAX_SESSION_CHARS} characters")
    return session


def _continues(continues: bool, session: str | None, parent_key: str | None) -> bool:
    if continues and session is None and parent_key is None:
        raise errors.InvalidRequest(
            "continues needs to know what it continues: give a session or a parent_key"
        )
    return continues


def _speculation(wanted: str | m.Speculation) -> m.Speculation:
    try:
        return m.Speculation(wanted)
    except ValueError:
        names = ", ".join(one.value for one in m.Speculation)
        raise errors.InvalidRequest(f"speculation is {wanted!r}; it is one of {names}") from None
