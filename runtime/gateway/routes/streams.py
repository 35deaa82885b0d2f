"""llama-server's resumable streams, and ours by the request's id; see ``conversation_streams``."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from runtime.gateway.call import Call
from runtime.gateway.conversation_streams import (
    Conversations,
    ConversationStream,
    NumberedReplay,
    Replay,
    Replayed,
)
from runtime.gateway.wire.bodies import read
from runtime.gateway.wire.failure import Failure, Fault, Refused, invalid

MAX_DIGITS: Final = 15


class LookupBody(msgspec.Struct, kw_only=True):
    """The body of ``POST /v1/streams/lookup``."""

    conversation_ids: list[Any] | None = None


async def again(call: Call) -> None:
    """The bytes of a conversation's stream from one on, and what follows as it comes."""
    stream = call.service.own(Conversations).find(_conversation(call), call.key)
    if stream is None:
        raise _missing("stream not found or expired: this conversation has none here")
    place = _whole(call.request.query_params.get("from", ""), 0, "from")
    if place < stream.ring.first:
        raise invalid(
            f"stream offset lost: bytes before {stream.ring.first} are kept no more; send the "
            "request again",
            "from",
        )
    await call.show(Replayed(call, Replay(stream, place)))


async def stop(call: Call) -> None:
    """Cancel what runs in a conversation, and keep nothing of it; fine where nothing is."""
    call.service.own(Conversations).stop(_conversation(call), call.key)
    await call.answer_nothing()


async def lookup(call: Call) -> None:
    """Which of these conversations have a stream; others are not listed."""
    asked = read(await call.body(), LookupBody)
    names = [one for one in asked.conversation_ids or () if isinstance(one, str) and one]
    found = call.service.own(Conversations).named(names, call.key)
    await call.answer_json([one.facts() for one in found])


async def events(call: Call) -> None:
    """The numbered events of a stream by its request's id, after the one in Last-Event-ID."""
    stream = _of_request(call)
    last = call.headers.get(b"last-event-id", b"").decode("latin-1")
    after = _whole(last.removeprefix(f"{stream.request_id}:"), -1, "Last-Event-ID")
    if after + 1 < stream.ring.first_event:
        raise invalid(
            f"the events before {stream.ring.first_event} are kept no more; send the request again",
            "Last-Event-ID",
        )
    if after >= stream.ring.next_event:
        raise invalid(
            f"there was no event {after} yet; the last one was {stream.ring.next_event - 1}",
            "Last-Event-ID",
        )
    await call.show(Replayed(call, NumberedReplay(stream, after)))


def _of_request(call: Call) -> ConversationStream:
    name = str(call.request.path_params["name"])
    stream = call.service.own(Conversations).of_request(name, call.key)
    if stream is None:
        raise _missing(
            f"there is no stream of the request {name!r}: a stream is kept for some minutes if its "
            "request had X-Conversation-Id"
        )
    return stream


def _missing(message: str) -> Refused:
    return Refused(Failure(Fault.NOT_FOUND, message))


def _conversation(call: Call) -> str:
    name = call.request.query_params.get("conv_id", "").strip()
    if not name:
        raise invalid("conv_id is missing: the conversation's id, as in X-Conversation-Id")
    return name


def _whole(given: str, default: int, name: str) -> int:
    if not given:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= MAX_DIGITS):
        raise invalid(f"{name} is {given!r}; it is a whole number", name)
    return int(given)


BODIES: Final = {"/v1/streams/lookup": LookupBody}
ROUTES: Final = (
    ("GET", "/v1/stream", again),
    ("DELETE", "/v1/stream", stop),
    ("POST", "/v1/streams/lookup", lookup),
    ("GET", "/llama/v1/streams/{name}", events),
)
