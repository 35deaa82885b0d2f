"""Our own API: replies with every option of the runtime, and all of its events.

``llama-actors --url`` reads these. Options have the runtime's own defaults, not those of
``gateway.sampling``: the same command gives the same text here and there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from runtime.client.event_json import NAMES, event_json
from runtime.client.results import Completion, Event
from runtime.gateway.wire import sse
from runtime.gateway.wire.bodies import are_token_ids, encode, read
from runtime.gateway.wire.failure import Failure, Fault, Refused, invalid
from runtime.gateway.wire.openai_errors import own_error_object
from runtime.gateway.wire.wanted import Answer, Head, Wanted

MAX_PROMPTS: Final = 2048
MAX_N: Final = 128
_OPTIONS: Final = frozenset(
    {
        "max_tokens", "stop", "timeout_s", "parent_key", "session", "continues", "parse_special",
        "speculation", "exact", "priority", "thinking", "thinking_budget_tokens", "tool_calls",
        "echo", "temperature", "top_k", "top_p", "min_p", "typical_p", "typ_p", "seed",
        "repetition_penalty", "repeat_penalty", "repetition_window", "repeat_last_n",
        "frequency_penalty", "presence_penalty", "dry_multiplier", "dry_base",
        "dry_allowed_length", "dry_window", "dry_penalty_last_n", "dry_breakers",
        "dry_sequence_breakers", "xtc_probability", "xtc_threshold", "mirostat", "mirostat_tau",
        "mirostat_eta", "logit_bias", "ignore_eos", "samplers", "top_n_sigma", "dynatemp_range",
        "dynatemp_exponent", "min_keep", "grammar", "json_schema", "response_format", "logprobs",
        "top_logprobs", "n_logprobs", "n_probs",
    }
)  # fmt: skip
_OF_CHATS: Final = frozenset(
    {
        "tools", "deferred_tools", "tool_choice", "parallel_tool_calls", "documents",
        "template_kwargs", "chat_template_kwargs", "enable_thinking", "reasoning_effort",
        "continue_final_message", "chat_template",
    }
)  # fmt: skip


class _RepliesBody(msgspec.Struct, kw_only=True):
    """What all three bodies have."""

    model: str
    options: dict[str, Any] | None = None
    """By the names of ``RequestOptions``, for a conversation those of ``ChatOptions``."""
    cache_salt: str | None = None
    stream: bool | None = None


class CompleteBody(_RepliesBody, kw_only=True):
    """The body of ``POST /llama/v1/complete``."""

    prompts: list[str | list[Any]]
    """Texts, or lists of token ids."""
    n: int | None = None
    """Replies to each."""


class ChatBody(_RepliesBody, kw_only=True):
    """The body of ``POST /llama/v1/chat``."""

    messages: list[dict[str, Any]]
    n: int | None = None


class InfillBody(_RepliesBody, kw_only=True):
    """The body of ``POST /llama/v1/infill``."""

    prefix: str
    suffix: str
    extra: list[tuple[str, str]] | None = None
    """Names and texts of other files."""
    repository: str | None = None
    file: str | None = None
    suffix_first: bool | None = None


def read_complete(body: bytes) -> Wanted:
    """What a body asks for; Refused names the field that is wrong."""
    asked = read(body, CompleteBody)
    if not 1 <= len(asked.prompts) <= MAX_PROMPTS:
        raise invalid(f"{len(asked.prompts)} prompts; send 1 to {MAX_PROMPTS}", "prompts")
    for at, one in enumerate(asked.prompts):
        if isinstance(one, list) and not are_token_ids(one):
            raise invalid(f"prompts[{at}] is neither a text nor a list of token ids", "prompts")
    options = {"parse_special": False, **_options(asked, _OPTIONS)}
    return _wanted(asked, "prompt", tuple(asked.prompts), options, _n(asked.n))


def read_chat(body: bytes, *, is_admin: bool) -> Wanted:
    """The same. A chat template is a program, and only administrators send one."""
    asked = read(body, ChatBody)
    options = _options(asked, _OPTIONS | _OF_CHATS)
    if options.get("chat_template") is not None and not is_admin:
        raise Refused(
            Failure(
                Fault.FORBIDDEN,
                "only a key with admin = true may send a chat template",
                "options.chat_template",
            )
        )
    return _wanted(asked, "chat", (asked.messages,), options, _n(asked.n))


def read_infill(body: bytes) -> Wanted:
    """The same."""
    asked = read(body, InfillBody)
    names = ("prefix", "suffix", "extra", "repository", "file", "suffix_first")
    part = {name: value for name in names if (value := getattr(asked, name)) is not None}
    return _wanted(asked, "infill", (part,), _options(asked, _OPTIONS), 1)


def _n(given: int | None) -> int:
    n = 1 if given is None else given
    if not 1 <= n <= MAX_N:
        raise invalid(f"n is {n}; it is 1 to {MAX_N}", "n")
    return n


def _options(asked: _RepliesBody, known: frozenset[str]) -> dict[str, Any]:
    given = {name: value for name, value in (asked.options or {}).items() if value is not None}
    for name in given:
        if name not in known:
            raise invalid(f"there is no option {name!r}", f"options.{name}")
    biases = given.get("logit_bias")
    if isinstance(biases, list) and all(isinstance(one, list) for one in biases):
        given["logit_bias"] = [tuple(one) for one in biases]
    if asked.cache_salt:
        given["cache_salt"] = asked.cache_salt
    return {"seed": 0, **given}


def _wanted(
    asked: _RepliesBody, kind: Any, inputs: tuple[Any, ...], options: dict[str, Any], n: int
) -> Wanted:
    return Wanted(
        model=asked.model,
        kind=kind,
        inputs=inputs,
        options=options,
        n=n,
        is_stream=bool(asked.stream),
        fails_late=True,
    )


class EventsAnswer(Answer):
    """Replies as the runtime's events, or as its completions; see ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE
    failure_ends = True

    def __init__(self, head: Head, wanted: Wanted) -> None:
        self._head = head
        self._wanted = wanted

    def begin(self) -> bytes:
        return sse.named(b"begin", encode(self._facts()))

    def event(self, number: int, event: Event) -> bytes:
        name = NAMES.get(type(event))
        return b"" if name is None else sse.named(name, event_json(number, event))

    def end(self) -> bytes:
        return sse.named(b"end", b"{}")

    def failed(self, failure: Failure) -> bytes:
        return sse.named(b"error", encode(own_error_object(failure)))

    def keepalive(self) -> bytes:
        return sse.COMMENT

    def whole(self, done: Sequence[Completion]) -> bytes:
        return encode(self._facts() | {"replies": list(done)})

    def _facts(self) -> dict[str, Any]:
        head = self._head
        n = self._wanted.n_replies
        return {"id": head.id, "created": head.created, "model": head.model, "n_replies": n}
