"""What an HTTP request asks for, whichever API it came by; and what an answer is made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from runtime.client.results import Completion, Event
from runtime.gateway.wire.failure import Failure

Kind = Literal["chat", "prompt", "infill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Replies of one model to one or several inputs."""

    model: str
    """As the client named it; empty: it named none."""
    kind: Kind
    inputs: tuple[Any, ...]
    """Conversations (lists of messages), prompts (texts or lists of ids), or parts of infills."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of ``AsyncClient.stream_chat``, ``stream`` or ``stream_infill``."""
    n: int = 1
    """Replies to each input."""
    is_stream: bool = False
    needs_pieces: bool = False
    """The answer shows tokens as texts."""
    remarks: tuple[str, ...] = ()
    """What of the request has no effect, for the answer's ``cache.note``."""
    fails_late: bool = False
    """A stream that is late (``timeout_s``) fails, and does not end with what there is."""
    rules: tuple[str, ...] = ()
    """Canonical rules that changed something."""

    @property
    def n_replies(self) -> int:
        return len(self.inputs) * self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is fixed before an answer begins."""

    id: str
    """128 random bits as text, without the prefix that an API has."""
    created: int
    """Unix time in seconds."""
    model: str
    """Id of the model that answers."""
    pieces: Mapping[int, bytes] = field(default_factory=dict)
    """Tokens as bytes, where the answer shows tokens; filled before each event that needs them."""
    seed: int = 0
    """Of the replies of a request that names none."""
    explains: bool = True
    """Whether the answer has a ``cache`` object."""


class Answer(Protocol):
    """Makes one answer of one API. Events of several replies come in any order."""

    content_type: str
    """Of a stream."""
    needs_events: ClassVar[bool] = False
    """Whether ``whole`` is made of all events too, and not of the results alone."""
    shows_load: bool = False
    """Whether a stream shows how far the model is loaded."""
    failure_ends: ClassVar[bool] = False
    """Whether ``failed`` is an end of a stream in this API. Else the connection breaks after it."""

    def begin(self) -> bytes:
        """The first bytes of a stream; may be empty."""

    def event(self, number: int, event: Event) -> bytes:
        """What a stream shows of an event of the reply with this number; may be empty."""

    def end(self) -> bytes:
        """The last bytes of a stream, when all replies have ended."""

    def failed(self, failure: Failure) -> bytes:
        """The last bytes of a stream that fails after it has begun."""

    def keepalive(self) -> bytes:
        """What shows that the stream lives, and nothing else."""

    def whole(self, done: Sequence[Completion]) -> bytes:
        """The body of an answer that is no stream."""
