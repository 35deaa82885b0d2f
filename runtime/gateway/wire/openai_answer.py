"""What answers of OpenAI's chats and of its older completions have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import msgspec

from runtime.client.results import Completion
from runtime.gateway.wire import report, sse
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Failure, invalid
from runtime.gateway.wire.openai_errors import error_object
from runtime.gateway.wire.usage import usage_of
from runtime.gateway.wire.wanted import Answer, Head, Wanted

FINISH: Final = {"stop": "stop", "length": "length", "prefilled": "length", "cancelled": "stop"}
SYSTEM_FINGERPRINT: Final = "llama-actors"


class StreamOptions(msgspec.Struct, kw_only=True):
    """Of OpenAI's streams."""

    include_usage: bool | None = None


def n_of(given: int | None, most: int) -> int:
    """How many replies."""
    n = 1 if given is None else given
    if not 1 <= n <= most:
        raise invalid(f"n is {n}; it is 1 to {most}", "n")
    return n


def explained(head: Head, wanted: Wanted, done: Completion) -> dict[str, Any]:
    """The ``cache`` object, where answers have one."""
    return {"cache": report.cache(done, wanted.remarks, wanted.rules)} if head.explains else {}


class OpenAIAnswer(Answer):
    """An answer in chunks or as one object, each with ``choices``; see ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE
    id_prefix: ClassVar[str]
    chunk_object: ClassVar[str]
    """The field ``object`` of a chunk."""
    whole_object: ClassVar[str]
    """The same of an answer that is no stream."""

    def __init__(self, head: Head, wanted: Wanted, stream_options: StreamOptions | None) -> None:
        self._head = head
        self._wanted = wanted
        self._shows_usage = bool(stream_options and stream_options.include_usage)
        self._open = encode(self._facts(self.chunk_object))[:-1]

    def _facts(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.id_prefix}{self._head.id}",
            "object": kind,
            "created": self._head.created,
            "model": self._head.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }

    # ── a stream ────────────────────────────────────────────────────────────────────────────────

    def failed(self, failure: Failure) -> bytes:
        return sse.data(encode(error_object(failure)))

    def keepalive(self) -> bytes:
        return sse.COMMENT

    def _choice(self, choice: bytes, more: bytes = b"") -> bytes:
        """A chunk with this choice; ``more``: fields behind it, each after a comma."""
        return sse.data(self._open + b',"choices":[' + choice + b"]" + more + b"}")

    def _last_choice(self, choice: bytes, done: Completion, **more: Any) -> bytes:
        """The chunk that ends a reply."""
        facts = {
            "timings": report.timings(done),
            **explained(self._head, self._wanted, done),
            **more,
        }
        return sse.data(self._open + b',"choices":[' + choice + b"]," + encode(facts)[1:])

    def _without_choice(self, **facts: Any) -> bytes:
        """A chunk about the whole answer."""
        return sse.data(self._open + b',"choices":[],' + encode(facts)[1:])

    # ── one object ──────────────────────────────────────────────────────────────────────────────

    def _object(
        self, choices: list[dict[str, Any]], done: Sequence[Completion], **more: Any
    ) -> bytes:
        return encode(
            {
                **self._facts(self.whole_object),
                "choices": choices,
                "usage": usage_of(done, self._wanted.n),
                "timings": report.timings(done[0]),
                **explained(self._head, self._wanted, done[0]),
                **more,
            }
        )
