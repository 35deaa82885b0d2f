"""What goes over the wire: authenticated first, then unpickled, and only from an allow-list.

A frame's payload is ``mac (32 bytes) ‖ pickle``, the mac being BLAKE3 keyed with the node's
cookie over the pickle. Thespian frames it as ``<decimal length>>payload`` and answers with one
of two constant acknowledgements, which are compared byte by byte and never unpickled.

The allow-list is the second wall: a peer that knows the cookie is of our own family, but a
corrupt or crafted pickle still cannot name ``os.system``. It admits dataclasses and enums of
the node's own packages, Thespian's own messages, and a few plain standard types.
"""

from __future__ import annotations

import dataclasses
import enum
import hmac
import importlib
import io
import pickle
from collections.abc import Callable
from typing import Any, Final

from blake3 import blake3

COOKIE_BYTES: Final = 32
MAC_BYTES: Final = 32
MAX_FRAME_BYTES: Final = 16 << 20
"""Control messages stay below 64 KiB; a long prompt as a tuple of ints needs a few MiB."""
PACKAGES: Final = ("supervision", "actors", "cache", "native", "runtime")
"""Packages whose dataclasses and enums may arrive."""

_PLAIN: Final = frozenset(
    {
        ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "bytearray"),
        ("builtins", "complex"), ("builtins", "range"), ("builtins", "slice"),
        ("collections", "deque"), ("collections", "OrderedDict"), ("collections", "Counter"),
        ("datetime", "datetime"), ("datetime", "date"), ("datetime", "time"),
        ("datetime", "timedelta"), ("datetime", "timezone"),
        ("pathlib", "PosixPath"), ("pathlib", "PurePosixPath"), ("uuid", "UUID"),
    }
)  # fmt: skip
_LIBRARY: Final = frozenset(
    {
        ("thespian.actors", "ActorAddress"),
        ("supervision._wire", "LoopbackAddress"),
        ("logging", "LogRecord"),
    }
)
_LIBRARY_MESSAGES: Final = ("thespian.actors", "thespian.system.messages.")
"""Modules whose ActorSystemMessage subclasses may arrive."""
_LIBRARY_LOG: Final = "thespian.system.logdirector"


class FrameRefused(Exception):
    """Bytes that this node did not send: unauthenticated, too large or not an envelope."""


def _enum_member(cls: object, name: str) -> object:
    """What ``getattr`` may do in a pickle: Python 3.11 pickles an enum member that way."""
    if isinstance(cls, type) and issubclass(cls, enum.Enum):
        return cls[name]
    raise FrameRefused(f"getattr({cls!r}, {name!r}) in a pickle")


class FrameCodec:
    """Seals and opens the payloads of one node."""

    def __init__(self, cookie: bytes, packages: tuple[str, ...] = PACKAGES) -> None:
        if len(cookie) != COOKIE_BYTES:
            raise ValueError(f"the cookie must have {COOKIE_BYTES} bytes, not {len(cookie)}")
        self._cookie = cookie
        self._packages = frozenset((*PACKAGES, *packages))
        self._constants: dict[bytes, object] = {}
        self._resolved: dict[tuple[str, str], Any] = {("builtins", "getattr"): _enum_member}

    def accept_constant(self, payload: bytes, value: object) -> None:
        """Open exactly these bytes as ``value`` without a mac (the acknowledgements)."""
        self._constants[payload] = value

    def seal(self, envelope: object) -> bytes:
        """``mac ‖ pickle`` of one envelope."""
        body = pickle.dumps(envelope, 5)
        return self._mac(body) + body

    def open(self, payload: bytes) -> Any:
        """The envelope inside, or FrameRefused. Nothing is unpickled before the mac is right."""
        constant = self._constants.get(bytes(payload))
        if constant is not None:
            return constant
        view = memoryview(payload)
        if len(view) <= MAC_BYTES:
            raise FrameRefused("too short for a mac")
        body = view[MAC_BYTES:]
        if not hmac.compare_digest(self._mac(body), view[:MAC_BYTES]):
            raise FrameRefused("wrong mac")
        envelope = _Unpickler(io.BytesIO(body), self._resolve).load()
        if not (isinstance(envelope, tuple) and len(envelope) == 2):
            raise FrameRefused("not an envelope")
        return envelope

    def _mac(self, body: bytes | memoryview) -> bytes:
        return blake3(body, key=self._cookie).digest()

    def _resolve(self, module: str, name: str) -> Any:
        found = self._resolved.get((module, name))
        if found is None:
            found = self._resolved[module, name] = self._look_up(module, name)
        return found

    def _look_up(self, module: str, name: str) -> Any:
        ours = module.partition(".")[0] in self._packages
        library = module.startswith(_LIBRARY_MESSAGES) or module == _LIBRARY_LOG
        if ours or library or (module, name) in _PLAIN or (module, name) in _LIBRARY:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
            if (module, name) in _PLAIN or (module, name) in _LIBRARY:
                return found
            if isinstance(found, type) and (_is_value(found) if ours else _is_message(found)):
                return found
        raise FrameRefused(f"{module}.{name} is not on the allow-list")


def _is_value(cls: type) -> bool:
    return dataclasses.is_dataclass(cls) or issubclass(cls, enum.Enum)


def _is_message(cls: type) -> bool:
    return any(base.__name__ == "ActorSystemMessage" for base in cls.__mro__)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, resolve: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._resolve = resolve

    def find_class(self, module: str, name: str, /) -> Any:
        return self._resolve(module, name)
