"""Where a reply thinks and where it calls tools: markers found in its bytes.

Pure: bytes in, pieces out, and the pieces are the same however the bytes were cut into tokens. A
marker may be one token, several, or part of one that also holds its neighbours; so what is matched
is the text of tokens, that of control tokens included, and bytes are held back while they may still
be the beginning of a marker.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from actors.messages.text_kind import TextKind


class Part(Enum):
    """What a piece is to its span."""

    BODY = "body"
    START = "start"
    END = "end"
    PAYLOAD_START = "payload_start"
    PAYLOAD_END = "payload_end"


class Piece(NamedTuple):
    """Bytes of one kind. Markers belong to the span that they open or close."""

    kind: TextKind
    part: Part
    data: bytes


def is_open(prompt_tail: bytes, start: str) -> bool:
    """Whether a prompt ends with a start marker, so that the reply begins inside the span.

    Templates of models that always think write the marker themselves, and a line break after it.
    """
    return prompt_tail.rstrip().endswith(start.strip().encode())


class MarkerScanner:
    """Cuts a reply's bytes into pieces of text, thinking and tool calls."""

    def __init__(
        self,
        thinking: tuple[str, ...] = (),
        tool_call: tuple[str, ...] = (),
        *,
        opened: TextKind = TextKind.TEXT,
    ) -> None:
        """``opened``: the prompt has begun such a span already."""
        thought = [one.encode() for one in thinking]
        call = [one.encode() for one in tool_call]
        self._starts = [
            (marker, kind)
            for marker, kind in ((thought, TextKind.THINKING), (call, TextKind.TOOL_CALL))
            if marker
        ]
        self._targets: dict[tuple[TextKind, bool], tuple[tuple[bytes, Part], ...]] = {
            (TextKind.TEXT, False): tuple((marker[0], Part.START) for marker, _ in self._starts),
            (TextKind.THINKING, False): ((thought[1], Part.END),) if thought else (),
            (TextKind.TOOL_CALL, False): tuple(
                (marker, part)
                for marker, part in zip(call[1:3], (Part.END, Part.PAYLOAD_START), strict=False)
            ),
            # A payload may hold anything, the end of the call included; only its own end ends it.
            (TextKind.TOOL_CALL, True): ((call[3], Part.PAYLOAD_END),) if len(call) == 4 else (),
        }
        self._held = b""
        self.kind = opened
        self.in_payload = False

    @property
    def holds_back(self) -> bool:
        """Whether the last bytes may be the beginning of a marker."""
        return bool(self._held)

    @property
    def end_marker(self) -> bytes:
        """What would end the present span; empty outside of spans and in a payload."""
        targets = self._targets[self.kind, self.in_payload]
        return next((marker for marker, part in targets if part is Part.END), b"")

    def feed(self, data: bytes) -> list[Piece]:
        """Add bytes; the pieces that are certain now, in order."""
        self._held += data
        return self._scan(final=False)

    def finish(self) -> list[Piece]:
        """No more bytes: what was held back is no marker."""
        return self._scan(final=True)

    def _scan(self, *, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while self._held:
            targets = self._targets[self.kind, self.in_payload]
            if not any(marker[:1] in self._held for marker, _ in targets):
                self._take(pieces, len(self._held), Part.BODY)
                break
            partial = len(self._held) if final else self._earliest_partial(targets)
            hits = [
                (at, -len(marker), part)
                for marker, part in targets
                if (at := self._held.find(marker)) >= 0
            ]
            # The one that starts first counts, the longest of those; one that started earlier may
            # still be completed by what comes.
            at, size, part = min(hits, key=lambda hit: hit[:2]) if hits else (partial, 0, Part.BODY)
            if (
                not hits
                or partial < at
                or (partial == at and self._may_be_longer(targets, at, size))
            ):
                self._take(pieces, partial, Part.BODY)
                break
            self._take(pieces, at, Part.BODY)
            self._pass(pieces, -size, part)
        return pieces

    def _may_be_longer(self, targets: tuple[tuple[bytes, Part], ...], at: int, size: int) -> bool:
        """Whether a longer marker at the same place may still be completed."""
        rest = self._held[at:]
        return any(len(marker) > -size and marker.startswith(rest) for marker, _ in targets)

    def _earliest_partial(self, targets: tuple[tuple[bytes, Part], ...]) -> int:
        longest = max((len(marker) for marker, _ in targets), default=0)
        for at in range(max(0, len(self._held) - longest + 1), len(self._held)):
            rest = self._held[at:]
            if any(len(rest) < len(marker) and marker.startswith(rest) for marker, _ in targets):
                return at
        return len(self._held)

    def _pass(self, pieces: list[Piece], size: int, part: Part) -> None:
        """Take a marker, and continue behind it."""
        if part is Part.START:
            marker = self._held[:size]
            self.kind = next(kind for markers, kind in self._starts if markers[0] == marker)
        self._take(pieces, size, part)
        if part is Part.END:
            self.kind = TextKind.TEXT
        self.in_payload = part is Part.PAYLOAD_START

    def _take(self, pieces: list[Piece], size: int, part: Part) -> None:
        data, self._held = self._held[:size], self._held[size:]
        if data:
            pieces.append(Piece(self.kind, part, data))
