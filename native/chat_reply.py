"""A reply as llama.cpp's parsers of chat formats take it apart. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

FAILED, WHOLE, PARTIAL = 0, 1, 2
REASONING, CONTENT, CALL = 0, 1, 2


class CallRead(NamedTuple):
    """A tool call as far as it has been read."""

    id: bytes
    """As the model wrote it; empty in formats that have none before the arguments."""
    name: bytes
    arguments: bytes
    """JSON, in which the last value may be unfinished."""


class PartRead(NamedTuple):
    """A part of a reply: bytes ``start`` to ``end`` are its text, without markers around it."""

    kind: int
    """``REASONING``, ``CONTENT`` or ``CALL``."""
    start: int
    end: int


class ReplyRead(NamedTuple):
    """A reply, or the beginning of one, taken apart."""

    status: int
    """``FAILED``: it is not in the format from ``end`` on; ``PARTIAL``: more may follow."""
    end: int
    reasoning: bytes
    content: bytes
    calls: tuple[CallRead, ...]
    parts: tuple[PartRead, ...]
    """In order; positions are bytes of the reply."""


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """What is known of replies to one kind of request."""

    format: str
    """llama.cpp's name of the way it parses them."""
    prompt: str
    """The request's conversation as llama.cpp renders it; for comparison."""
    generation_prompt: str
    """What the template adds for the reply to begin."""
    grammar: str
    """GBNF of ``generation_prompt`` and reply, or of a call where it is lazy; empty: none."""
    grammar_is_lazy: bool
    """It holds from a trigger on."""
    triggers: tuple[tuple[str, str], ...]
    """Kinds (word, pattern, whole, token) and texts."""
    can_think: bool
    thinking_start: str
    thinking_ends: tuple[str, ...]
    markers: tuple[str, ...]
    """Control tokens and texts that the format consists of."""
    stops: tuple[str, ...]
    delimiters: tuple[tuple[str, str], ...]
    """Roles, and the text that begins a message of it."""


class Reader(Protocol):
    """What reads replies to requests of one kind."""

    @property
    def facts(self) -> FormatFacts: ...

    def read(self, text: bytes, *, is_partial: bool) -> ReplyRead:
        """Take apart the bytes of a reply, or of its beginning; NativeError if it refuses them."""
