"""A prompt as its parts, and what of it differs from an earlier one: for administrators.

The model renders the prompt again when it is looked at; nothing is kept for that of requests which
are not. A worker that does not have the prompt asks the others. Only with ``gateway.prompts``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Final

import msgspec

from actors.messages.payload import INLINE_LIMIT_BYTES
from runtime.client.async_client import AsyncClient
from runtime.gateway.explained import Explained
from runtime.gateway.ledger_client import LedgerGone
from runtime.gateway.prompts import KeptPrompt, Prompts
from runtime.gateway.response_runs import WORKER
from runtime.gateway.service import Service
from runtime.gateway.stream_log import content
from runtime.gateway.watch_messages import ReadWhy, WhyRead
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.openai_chat import template_options
from runtime.gateway.wire.saving import saving_rules

AROUND: Final = 40
"""Characters that are shown before and after the place where a prompt differs."""
MAX_SHOWN: Final = 400
"""Characters that are shown of a part."""
ASK_S: Final = 5.0
"""How long another worker may take."""


async def why(service: Service, name: str) -> bytes | None:
    """The prompt of a request to any worker, explained, as JSON; None: no worker has it."""
    found = await why_here(service, name)
    others = [one for one in range(service.settings.workers) if one != service.number]
    for number in others if found is None else ():
        found = await _asked(service, number, name)
        if found is not None:
            return found
    return found


async def why_here(service: Service, name: str) -> bytes | None:
    """The same of this worker alone."""
    prompts = service.own(Prompts)
    kept = prompts.find(name)
    if kept is None:
        return None
    explained = service.own(Explained).find_any(name)
    replies = [] if explained is None else msgspec.json.decode(explained)["replies"]
    diverged = replies[0]["cache"]["diverged"] if replies else None
    at_char = diverged["prompt_char"] if diverged else None
    client = await service.client()
    found = await why_of(client, kept, prompts.earlier(kept), at_char)
    return encode(found | {"replies": replies})


async def _asked(service: Service, number: int, name: str) -> bytes | None:
    fd = os.memfd_create("llama-actors-why", os.MFD_CLOEXEC)
    try:
        room = f"/proc/{os.getpid()}/fd/{fd}"
        with contextlib.suppress(LedgerGone):
            answer = await service.ledger.ask(
                lambda ref: ReadWhy(ref, name, room), ASK_S, f"{WORKER}{number}"
            )
            if isinstance(answer, WhyRead) and answer.n_bytes:
                return answer.body or content(fd)[: answer.n_bytes]
        return None
    finally:
        os.close(fd)


def answer_to(asked: ReadWhy, found: bytes | None) -> WhyRead:
    """The answer to another worker."""
    if found is None or len(found) <= INLINE_LIMIT_BYTES:
        return WhyRead(asked.ref, found or b"", len(found or b""))
    try:
        with open(asked.room, "wb") as room:
            room.write(found)
    except OSError:  # the asker has ended, or there is no memory
        return WhyRead(asked.ref, b"", 0)
    return WhyRead(asked.ref, b"", len(found))


async def why_of(
    client: AsyncClient,
    kept: KeptPrompt,
    earlier: list[KeptPrompt],
    at_char: int | None,
) -> dict[str, Any]:
    """The parts of a prompt with their tokens and beginnings; the texts around a place of it.

    ``at_char``: where the prompt differs from an earlier one.
    """
    if kept.wanted.kind == "chat":
        found = await _chat(client, kept)
    else:
        text = _text_of(kept.wanted.inputs[0])
        found = {"text": text, "parts": [_part("prompt", text, None, None)]}
    text = str(found.pop("text"))
    asked = [one.asked for one in earlier]
    rules = await asyncio.to_thread(saving_rules, kept.asked, asked, kept.rules)
    return {
        "request": kept.request,
        "model": kept.model,
        **found,
        "around": None if at_char is None else _around(text, at_char),
        "saving_rules": rules,
    }


async def _chat(client: AsyncClient, kept: KeptPrompt) -> dict[str, Any]:
    options, messages = template_options(kept.wanted.options), kept.wanted.inputs[0]
    prompt = await client.apply_chat_template(kept.model, messages, **options)
    parts = [
        _part(
            one.name,
            prompt.text[one.start : one.end],
            one.start_token,
            one.end_token,
            _role_of(one.name, messages),
        )
        for one in prompt.parts
    ]
    return {"text": prompt.text, "n_tokens": len(prompt.tokens), "parts": parts}


def _part(
    name: str, text: str, start: int | None, end: int | None, role: str | None = None
) -> dict[str, Any]:
    is_cut = len(text) > MAX_SHOWN
    return {
        "name": name,
        "role": role,
        "start_token": start,
        "end_token": end,
        "n_chars": len(text),
        "text": text[:MAX_SHOWN] + ("…" if is_cut else ""),
    }


def _role_of(name: str, messages: Any) -> str | None:
    """Of a part ``messages[3]``."""
    number = name.removeprefix("messages[").partition("]")[0]
    if not (name.startswith("messages[") and number.isdigit() and int(number) < len(messages)):
        return None
    one = messages[int(number)]
    return str(one.get("role")) if isinstance(one, dict) else None


def _text_of(given: Any) -> str:
    return given if isinstance(given, str) else ""


def _around(text: str, at: int) -> dict[str, str]:
    return {"before": text[max(0, at - AROUND) : at], "after": text[at : at + AROUND]}
