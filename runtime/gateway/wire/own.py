"""Our own API, below ``/llama/v1``: bodies, queries and explanations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from runtime.client.answers import WarmPrefix
from runtime.client.cache.filters import RowFilter
from runtime.client.results import Completion
from runtime.gateway.wire import report
from runtime.gateway.wire.bodies import are_token_ids, read
from runtime.gateway.wire.failure import invalid
from runtime.gateway.wire.native_bodies import TemplateBody
from runtime.gateway.wire.wanted import Head, Wanted

ROWS_SHOWN: Final = 50
MAX_ROWS_SHOWN: Final = 1000
MAX_CURSOR: Final = (1 << 63) - 1
MIN_DIGITS: Final = 4
MAX_FLUSH_S: Final = 300.0
MAX_AGE_S: Final = 1e10

# ── bodies ──────────────────────────────────────────────────────────────────────────────────────


class MatchBody(TemplateBody, kw_only=True):
    """The body of ``POST /llama/v1/cache/match``: a conversation, or a prompt."""

    messages: list[dict[str, Any]] = msgspec.field(default_factory=list)
    prompt: str | list[Any] | None = None
    """A text, or token ids."""
    cache_salt: str | None = None


class VerifyBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/cache/verify``; may be empty."""

    repair: bool | None = None
    """Quarantine what is damaged."""
    stream: bool | None = None


class ClearBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/cache/gc``; may be empty."""

    quarantine_age_s: float | None = None
    """Younger quarantined files stay; default 7 days."""


class FlushBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/cache/flush``; may be empty."""

    timeout_s: float | None = None


class RemoveBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/cache/rm``."""

    key: str
    """Hex, or the beginning of it."""


class WipeBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/cache/wipe``: a model, or ``all``."""

    model: str | None = None
    all: bool | None = None


class LoadBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/models/load``."""

    model: str
    """The id that it will have."""
    path: str | None = None
    """Of a file on the node's machine; ``demo`` needs none."""
    options: dict[str, Any] | None = None
    """As in a table of ``[models]``: ``n_ctx`` and so on."""
    stream: bool | None = None


class PullBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/models/pull``."""

    model: str
    """``ORG/REPO``, or ``ORG/REPO:TAG``."""
    stream: bool | None = None


class UnloadBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/models/unload``."""

    model: str
    drain_s: float | None = None
    """Seconds that its running requests may continue; default: ``gateway.drain_s``."""


class LoadAdapterBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/adapters/load``."""

    path: str
    model: str | None = None
    scale: float | None = None


class UnloadAdapterBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/adapters/unload``."""

    id: int
    model: str | None = None


class SetAdapterBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/adapters/set``."""

    id: int
    scale: float
    model: str | None = None


class EndSessionBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /llama/v1/sessions/end``."""

    session: str
    model: str | None = None
    cache_salt: str | None = None


def read_match(body: bytes) -> MatchBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body, MatchBody)
    if bool(asked.messages) == bool(asked.prompt):
        raise invalid("send messages, or a prompt: one of the two, and not empty", "messages")
    if isinstance(asked.prompt, list) and not are_token_ids(asked.prompt):
        raise invalid("prompt is neither a text nor a list of token ids", "prompt")
    return asked


def match_object(model: str, found: WarmPrefix) -> dict[str, Any]:
    """How warm a prompt is."""
    return {
        "model": model,
        "prompt_tokens": found.n_prompt,
        "warm_tokens": found.n_tokens,
        "live": found.live,
        "stored": found.stored,
    }


def read_clear(body: bytes) -> ClearBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body.strip() or b"{}", ClearBody)
    _in_range(asked.quarantine_age_s, MAX_AGE_S, "quarantine_age_s")
    return asked


def read_flush(body: bytes) -> FlushBody:
    """The body; Refused names the field that is wrong."""
    asked = read(body.strip() or b"{}", FlushBody)
    _in_range(asked.timeout_s, MAX_FLUSH_S, "timeout_s")
    return asked


def read_remove(body: bytes) -> str:
    """The digits of a key; Refused names what is wrong with them."""
    return digits_of(read(body, RemoveBody).key)


def digits_of(key: str) -> str:
    """Hex digits that a key begins with; Refused where they are too few to mean one row."""
    digits = key.strip().lower()
    if not MIN_DIGITS <= len(digits) <= 64:
        raise invalid(
            f"key: give {MIN_DIGITS} to 64 hex digits of a key, as /llama/v1/cache/ls has them",
            "key",
        )
    return digits


def read_wipe(body: bytes) -> str | None:
    """The model whose rows are meant; None: those of all. Refused where neither is named."""
    asked = read(body, WipeBody)
    if bool(asked.model) == bool(asked.all):
        raise invalid("name a model, or send all: true; one of the two", "model")
    return asked.model or None


def _in_range(given: float | None, most: float, name: str) -> None:
    if given is not None and not 0.0 <= given <= most:
        raise invalid(f"{name} is {given:g}; it is 0 to {most:g} seconds", name)


# ── queries ─────────────────────────────────────────────────────────────────────────────────────


def filter_of(query: Mapping[str, str]) -> RowFilter:
    """Which rows a query wants; ages in seconds. Refused names the parameter that is wrong."""
    given = {name: query.get(name) or None for name in ("model", "namespace", "tier")}
    return RowFilter(
        **given,
        older_than=_age(query, "older_than"),
        newer_than=_age(query, "newer_than"),
        limit=_whole(query, "limit", ROWS_SHOWN, 1, MAX_ROWS_SHOWN),
        cursor=_whole(query, "cursor", 0, 0, MAX_CURSOR),
    )


def flag_of(query: Mapping[str, str], name: str) -> bool:
    """A switch in a query."""
    text = query.get(name, "").lower()
    if text not in ("", "0", "1", "false", "true"):
        raise invalid(f"{name} is {text!r}; it is true or false", name)
    return text in ("1", "true")


def _whole(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most:
        return int(text)
    raise invalid(f"{name} is {text!r}; it is a whole number from {least} to {most}", name)


def _age(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= MAX_AGE_S:
        raise invalid(f"{name} is {text!r}; it is an age in seconds", name)
    return seconds


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


def explanation(
    request: str, head: Head, wanted: Wanted, done: Mapping[int, Completion]
) -> dict[str, Any]:
    """What was reused for each reply of an answer, from where, and why no more. No texts."""
    return {
        "request": request or None,
        "id": head.id,
        "created": head.created,
        "model": head.model,
        "replies": [
            {
                "index": number,
                "finish_reason": one.finish_reason,
                "usage": dataclasses.asdict(one.usage),
                "timings": dataclasses.asdict(one.timings),
                "cache": report.cache(one, wanted.remarks, wanted.rules),
            }
            for number, one in sorted(done.items())
        ],
    }


def plain_json(value: object) -> bytes:
    """Any result of the runtime as JSON; what has no form there as its text."""
    return msgspec.json.encode(value, enc_hook=str)
