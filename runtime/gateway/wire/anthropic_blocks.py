"""The blocks of a streamed message: at most one is open, and their numbers only increase.

Clients fail, or lose text, where a block begins before the last one has ended. So every event of a
reply passes here, and what begins another block first ends the one that is open.
"""

from __future__ import annotations

import base64
from typing import Final, Literal

from runtime.client.results import SpanEvent, ToolCallEvent
from runtime.gateway.wire import sse
from runtime.gateway.wire.bodies import encode, text_json

Kind = Literal["text", "thinking"]
_STARTS: Final[dict[Kind, bytes]] = {
    "text": b'{"type":"text","text":""}',
    "thinking": b'{"type":"thinking","thinking":"","signature":""}',
}
_DELTAS: Final[dict[Kind, tuple[bytes, bytes]]] = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
}


def signature_text(signature: bytes) -> str:
    """A signature as clients send it back."""
    return base64.b64encode(signature).decode("ascii")


class Blocks:
    """Makes the frames of one message's blocks."""

    def __init__(self) -> None:
        self._index = -1
        self._open: Kind | int | None = None
        """A call is open by its number."""
        self._held: tuple[Kind, str] = ("text", "")
        """Blanks, which begin a block only if something follows: clients refuse a blank one."""
        self._begun: set[int] = set()
        self._n_calls = 0
        self._n_call_spans = 0

    def text(self, kind: Kind, text: str) -> bytes:
        """More text, or more of a thought."""
        if not text:
            return b""
        if self._open == kind:
            return self._delta(*_DELTAS[kind], text)
        before = self._held[1] if self._held[0] == kind else ""
        if not (before + text).strip():
            self._held = (kind, before + text)
            return b""
        self._held = (kind, "")
        return self._start(kind, _STARTS[kind]) + self._delta(*_DELTAS[kind], before + text)

    def call(self, event: ToolCallEvent) -> bytes:
        """More of a tool call. A call whose block has ended gets no more."""
        frames = b""
        if event.index not in self._begun:
            self._begun.add(event.index)
            self._n_calls = max(self._n_calls, event.index + 1)
            block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            frames = self._start(event.index, encode(block))
        elif self._open != event.index:
            return b""
        if event.arguments:
            frames += self._delta(b"input_json_delta", b"partial_json", event.arguments)
        return frames + self.close() if event.is_end else frames

    def span(self, event: SpanEvent) -> bytes:
        """A thought has ended, or a call; one that came without a value is shown as text."""
        if event.kind == "thinking":
            return self.close(event.signature) if self._open == "thinking" else b""
        self._n_call_spans += 1
        return self.text("text", event.text) if self._n_call_spans > self._n_calls else b""

    def close(self, signature: bytes = b"") -> bytes:
        """End what is open; a thought with its signature."""
        frames = b""
        if self._open is None:
            return frames
        if self._open == "thinking":
            frames = self._delta(b"signature_delta", b"signature", signature_text(signature))
        self._open = None
        payload = b'{"type":"content_block_stop","index":%d}' % self._index
        return frames + sse.named(b"content_block_stop", payload)

    def _start(self, what: Kind | int, block: bytes) -> bytes:
        frames = self.close()
        self._open = what
        self._index += 1
        payload = b'{"type":"content_block_start","index":%d,"content_block":%b}'
        return frames + sse.named(b"content_block_start", payload % (self._index, block))

    def _delta(self, kind: bytes, name: bytes, text: str) -> bytes:
        payload = b'{"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":%b}}'
        filled = payload % (self._index, kind, name, text_json(text))
        return sse.named(b"content_block_delta", filled)
