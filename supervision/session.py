"""One connection, as bytes: each side authenticates first, and no frame can be repeated.

Without sockets: bytes that arrived go in, events and bytes to send come out.

::

    connects   →  "LA1" ‖ nonce (16)
               ←  nonce (16) ‖ proof (16)            it has the cookie, and it is this port
               →  frame: IDENT own port              the same; sealed with a session key
    then both  ↔  frames: MESSAGE, ACK; BYE is the last one of a process that ends in order

A frame is ``length (4) ‖ mac (16) ‖ kind (1) ‖ body``; the length counts what follows it. The mac
is BLAKE3, keyed for this session and direction, over the number of the frame and its content: a
frame that is altered, repeated, left out or taken from another connection does not open. The keys
come from the node's cookie and both nonces. A process that listens on the port of one that has died
learns nothing: without the proof nothing is sent to it.

Acknowledgements count messages: ACK carries how many messages have arrived on this connection. They
are sent at once for a message that asks for it, together with other traffic otherwise.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from blake3 import blake3

from supervision.codec import FrameRefused
from supervision.frozen import frozen
from supervision.secret_bytes import random_bytes, same_bytes

__all__ = ["FrameRefused"]

COOKIE_BYTES: Final = 32
MAC_BYTES: Final = 16
NONCE_BYTES: Final = 16
MAX_FRAME_BYTES: Final = 16 << 20
"""Control messages stay below 64 KiB; a long prompt as a tuple of ints needs a few MiB."""
MAX_IDENT_BYTES: Final = 64
"""Until the other side has proved itself, no frame may be longer than this."""

_MAGIC: Final = b"LA1"
_HELLO_BYTES: Final = len(_MAGIC) + NONCE_BYTES
_ANSWER_BYTES: Final = NONCE_BYTES + MAC_BYTES
_LENGTH: Final = struct.Struct(">I")
_COUNT: Final = struct.Struct(">Q")
_PORT: Final = struct.Struct(">H")
_OVERHEAD: Final = _LENGTH.size + MAC_BYTES + 1


@frozen
class Secret:
    """What the endpoints of one node share."""

    cookie: bytes
    packages: tuple[str, ...] = ()
    """Top-level packages whose values may travel, beside this one."""

    def __post_init__(self) -> None:
        if len(self.cookie) != COOKIE_BYTES:
            raise ValueError(f"the cookie must have {COOKIE_BYTES} bytes, not {len(self.cookie)}")


class Kind(enum.IntEnum):
    """What a frame is."""

    IDENT = 1
    MESSAGE = 2
    MESSAGE_TO_ACK = 3
    """A message whose sender waits for the acknowledgement."""
    ACK = 4
    BYE = 5
    """The last frame: like ACK, and nothing later is read on this connection."""


# ── events ───────────────────────────────────────────────────────────────────


@frozen
class Proved:
    """The other side has the cookie. ``port`` is where it listens; messages may be sent now."""

    port: int


@frozen
class Arrived:
    """A message: its packed bytes, and whether its sender waits for the acknowledgement."""

    payload: bytes
    wants_ack: bool


@frozen
class Acked:
    """So many of our messages have arrived over there."""

    count: int


@frozen
class Left:
    """So many of our messages were read over there, and no later one will be: the process ends."""

    count: int


Event = Proved | Arrived | Acked | Left


class _Stage(enum.Enum):
    HELLO = "the other side's hello"
    ANSWER = "the other side's proof"
    IDENT = "the other side's first frame"
    OPEN = "frames"


class Session:
    """One end of one connection. Raises FrameRefused where it must be closed."""

    def __init__(self, secret: Secret, own_port: int, peer_port: int | None) -> None:
        """``peer_port``: the port we connected to, or None where the other side connected."""
        self._cookie = secret.cookie
        self._own_port = own_port
        self._peer_port = peer_port
        self._nonce = random_bytes(NONCE_BYTES)
        self._stage = _Stage.HELLO if peer_port is None else _Stage.ANSWER
        self._input = bytearray()
        self._output = bytearray()
        self._key_out = self._key_in = b""
        self._sent = self._received = 0
        self.arrived = 0
        """Messages that have come in on this connection."""
        if peer_port is not None:
            self._output += _MAGIC + self._nonce

    @property
    def is_open(self) -> bool:
        """Whether messages may be sent."""
        return self._stage is _Stage.OPEN

    @property
    def has_spoken(self) -> bool:
        """Whether anything valid or not has come from a side that is not proved yet."""
        return bool(self._input) or self._stage is not _Stage.HELLO

    def take_output(self) -> bytes:
        """Bytes to send now: parts of the handshake, and what ``seal`` was not asked for."""
        out = bytes(self._output)
        self._output.clear()
        return out

    # ── frames out ───────────────────────────────────────────────────────────

    def seal(self, kind: Kind, body: bytes) -> bytes:
        """One frame; must be sent in the order of the calls."""
        if not self._key_out:
            raise FrameRefused("the other side has not proved itself yet")
        if len(body) + MAC_BYTES + 1 > MAX_FRAME_BYTES:
            raise FrameRefused(f"a frame of {len(body)} bytes is too large")
        mark = bytes((kind,))
        mac = self._mac(self._key_out, self._sent, mark, body)
        self._sent += 1
        return b"".join((_LENGTH.pack(MAC_BYTES + 1 + len(body)), mac, mark, body))

    def seal_ack(self) -> bytes:
        """The acknowledgement of everything that has arrived."""
        return self.seal(Kind.ACK, _COUNT.pack(self.arrived))

    def seal_bye(self) -> bytes:
        """The last frame: what has arrived, and that nothing later is read."""
        return self.seal(Kind.BYE, _COUNT.pack(self.arrived))

    # ── bytes in ─────────────────────────────────────────────────────────────

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes that came; what they mean."""
        self._input += data
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def _step(self, events: list[Event]) -> bool:
        """Consume one unit of input. False: more bytes are needed."""
        match self._stage:
            case _Stage.HELLO:
                return self._take_hello()
            case _Stage.ANSWER:
                return self._take_answer(events)
            case _:
                return self._take_frame(events)

    def _take_hello(self) -> bool:
        start = bytes(self._input[: len(_MAGIC)])
        if not _MAGIC.startswith(start):
            raise FrameRefused("no hello")
        hello = self._take(_HELLO_BYTES)
        if hello is None:
            return False
        theirs = hello[len(_MAGIC) :]
        self._derive(theirs, self._nonce, connected=False)
        self._output += self._nonce + self._proof(theirs, self._nonce, self._own_port)
        self._stage = _Stage.IDENT
        return True

    def _take_answer(self, events: list[Event]) -> bool:
        answer = self._take(_ANSWER_BYTES)
        if answer is None or self._peer_port is None:
            return False
        theirs = answer[:NONCE_BYTES]
        wanted = self._proof(self._nonce, theirs, self._peer_port)
        if not same_bytes(wanted, answer[NONCE_BYTES:]):
            raise FrameRefused("the listener does not have the cookie")
        self._derive(self._nonce, theirs, connected=True)
        self._stage = _Stage.OPEN
        self._output += self.seal(Kind.IDENT, _PORT.pack(self._own_port))
        events.append(Proved(self._peer_port))
        return True

    def _take_frame(self, events: list[Event]) -> bool:
        if len(self._input) < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._input)
        most = MAX_FRAME_BYTES if self._stage is _Stage.OPEN else MAX_IDENT_BYTES
        if not MAC_BYTES < length <= most:
            raise FrameRefused(f"a frame of {length} bytes")
        if len(self._input) < _LENGTH.size + length:
            return False
        with memoryview(self._input) as view:
            mac = bytes(view[_LENGTH.size : _LENGTH.size + MAC_BYTES])
            mark = bytes(view[_OVERHEAD - 1 : _OVERHEAD])
            body = bytes(view[_OVERHEAD : _LENGTH.size + length])
        del self._input[: _LENGTH.size + length]
        if not same_bytes(self._mac(self._key_in, self._received, mark, body), mac):
            raise FrameRefused("a wrong mac: altered, repeated, or of another node")
        self._received += 1
        events.append(self._event(mark[0], body))
        return True

    def _event(self, kind: int, body: bytes) -> Event:
        if self._stage is _Stage.IDENT:
            if kind != Kind.IDENT or len(body) != _PORT.size:
                raise FrameRefused("the first frame is no IDENT")
            self._stage = _Stage.OPEN
            return Proved(int(_PORT.unpack(body)[0]))
        if kind in (Kind.MESSAGE, Kind.MESSAGE_TO_ACK):
            self.arrived += 1
            return Arrived(body, kind == Kind.MESSAGE_TO_ACK)
        if kind == Kind.ACK and len(body) == _COUNT.size:
            return Acked(int(_COUNT.unpack(body)[0]))
        if kind == Kind.BYE and len(body) == _COUNT.size:
            return Left(int(_COUNT.unpack(body)[0]))
        raise FrameRefused(f"a frame of kind {kind}")

    # ── keys ─────────────────────────────────────────────────────────────────

    def _derive(self, connector: bytes, listener: bytes, *, connected: bool) -> None:
        to_listener = blake3(b"to listener" + connector + listener, key=self._cookie).digest()
        to_connector = blake3(b"to connector" + connector + listener, key=self._cookie).digest()
        self._key_out = to_listener if connected else to_connector
        self._key_in = to_connector if connected else to_listener

    def _proof(self, connector: bytes, listener: bytes, port: int) -> bytes:
        content = b"proof" + connector + listener + _PORT.pack(port)
        return blake3(content, key=self._cookie).digest(MAC_BYTES)

    @staticmethod
    def _mac(key: bytes, number: int, mark: bytes, body: bytes) -> bytes:
        mac = blake3(_COUNT.pack(number) + mark, key=key)
        mac.update(body)
        return mac.digest(MAC_BYTES)

    def _take(self, size: int) -> bytes | None:
        if len(self._input) < size:
            return None
        taken = bytes(self._input[:size])
        del self._input[:size]
        return taken
