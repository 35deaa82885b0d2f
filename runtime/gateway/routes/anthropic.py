"""Anthropic's API: messages, and how many tokens they are."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections import OrderedDict
from dataclasses import replace
from hashlib import blake2b
from typing import Final

from runtime import errors
from runtime.client.async_client import AsyncClient
from runtime.gateway.answered import Answered
from runtime.gateway.call import Call
from runtime.gateway.keys import Key
from runtime.gateway.thinking import possible
from runtime.gateway.wire.anthropic import Asked, MessagesBody, prompt_options, read_messages
from runtime.gateway.wire.anthropic_answer import MessagesAnswer, diagnosis
from runtime.gateway.wire.diagnose import parts_of_chat
from runtime.gateway.wire.wanted import Head, Wanted

KEPT_COUNTS: Final = 256
COUNT_S: Final = 60.0
"""How long a count is kept: another file may be loaded under the model's name."""
MAX_VERIFIED: Final = 4
"""Signatures that are verified for one request: the last ones, each once."""
VERIFY_S: Final = 0.05
KEPT_VERDICTS: Final = 4096
SIGNATURE_BYTES: Final = 32
FOREIGN: Final = "some thoughts were signed by another node or provider; they are read all the same"


async def messages(call: Call) -> None:
    """A message, streamed or whole."""
    service, key = call.service, call.key
    wanted, asked = read_messages(await call.body(), service.defaults)
    model = await call.model(wanted.model)
    wanted = await _possible(call, model, wanted)
    answered = service.own(Answered)
    parts = parts_of_chat(wanted, model)
    found = None
    if asked.previous is not None:
        known = answered.find(key, asked.previous)
        if known is None:  # another worker may have answered it
            known = await service.ledger.parts_of(key, asked.previous)
        found = diagnosis(known, parts)
    remarks = await _remarks(call, model, asked)
    made: list[MessagesAnswer] = []

    def make(head: Head, what: Wanted) -> MessagesAnswer:
        answer = MessagesAnswer(head, what, asked, found)
        answered.put(key, answer.id, parts)
        made.append(answer)
        return answer

    try:
        await call.generate(replace(wanted, remarks=wanted.remarks + remarks), make, model)
    finally:
        for answer in made:
            answered.set_tokens(key, answer.id, answer.n_prompt)
            whole = replace(parts, n_tokens=answer.n_prompt)
            await service.ledger.note_parts(key, answer.id, whole)


async def count_tokens(call: Call) -> None:
    """How many tokens the prompt of such a request has."""
    body = await call.body()
    service, key = call.service, call.key
    wanted, _ = read_messages(body, service.defaults)
    model = await call.model(wanted.model)
    client = await service.client()
    wanted = await _possible(call, model, wanted)
    n = await service.own(Counts).of(client, model, wanted, key, body)
    await call.answer_json({"input_tokens": n})


async def _possible(call: Call, model: str, wanted: Wanted) -> Wanted:
    """The request as this model can answer it, by the canonical rules."""
    return call.canonical(await possible(call, model, wanted))


class Counts:
    """Sizes of prompts. One is counted at a time for each key: editors ask for 50 at once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._locks: dict[str, asyncio.Lock] = {}

    async def of(
        self, client: AsyncClient, model: str, wanted: Wanted, key: Key, body: bytes
    ) -> int:
        """Tokens of the prompt, exactly; ``body`` is what is looked up."""
        # By key too: how long a count takes would tell what others have counted.
        about = b"\0".join((model.encode(), key.name.encode(), body))
        digest = blake2b(about, digest_size=16).digest()
        async with self._locks.setdefault(key.name, asyncio.Lock()):
            now = time.monotonic()
            at, n = self._kept.get(digest, (now - COUNT_S, 0))
            if now - at < COUNT_S:
                return n
            options = prompt_options(wanted)
            prompt = await client.apply_chat_template(model, wanted.inputs[0], **options)
            self._kept[digest] = time.monotonic(), len(prompt.tokens)
            self._kept.move_to_end(digest)
            while len(self._kept) > KEPT_COUNTS:
                self._kept.popitem(last=False)
            return len(prompt.tokens)


# ── thoughts that come back ─────────────────────────────────────────────────────────────────────


class Verdicts:
    """Which signatures are this node's, by digests of what they sign."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, bool] = OrderedDict()

    def get(self, digest: bytes) -> bool | None:
        return self._kept.get(digest)

    def put(self, digest: bytes, *, is_ours: bool) -> None:
        self._kept[digest] = is_ours
        while len(self._kept) > KEPT_VERDICTS:
            self._kept.popitem(last=False)


async def _remarks(call: Call, model: str, asked: Asked) -> tuple[str, ...]:
    """Whether thoughts in the history are not this node's. They are read in any case."""
    if not asked.signed:
        return ()
    verdicts = call.service.own(Verdicts)
    client = await call.service.client()
    last = asked.signed[-MAX_VERIFIED:]
    try:
        async with asyncio.timeout(VERIFY_S):
            ours = [await _is_ours(client, verdicts, model, *one) for one in last]
    except (TimeoutError, errors.LlamaActorsError):
        return ()  # it is a remark, and no more
    return () if all(ours) else (FOREIGN,)


async def _is_ours(
    client: AsyncClient, verdicts: Verdicts, model: str, thought: str, signature: str
) -> bool:
    try:
        signed = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    if len(signed) != SIGNATURE_BYTES:
        return False
    content = thought.encode("utf-8", "replace")
    digest = blake2b(b"\0".join((model.encode(), signed, content)), digest_size=16).digest()
    known = verdicts.get(digest)
    if known is None:
        known = await client.verify_thinking(model, content, signed)
        verdicts.put(digest, is_ours=known)
    return known


BODIES: Final = dict.fromkeys(
    (f"{root}/messages{path}" for root in ("/v1", "") for path in ("", "/count_tokens")),
    MessagesBody,
)
ROUTES: Final = (
    ("POST", "/v1/messages", messages),
    ("POST", "/messages", messages),
    ("POST", "/v1/messages/count_tokens", count_tokens),
    ("POST", "/messages/count_tokens", count_tokens),
)
