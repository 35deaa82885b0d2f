"""Values as bytes: msgpack with an allow-list, and no pickle anywhere.

What a message may hold: None, booleans, integers, floats, text, bytes, tuples, lists, dicts, sets,
frozensets, paths, and enums and dataclasses of this package and of those that the node names. A
dataclass is rebuilt by calling its class, so what it checks in ``__post_init__`` is checked on
arrival too. Everything else is refused on both sides, by name.

What msgpack has no type for travels as an array that starts with a mark, an extension value that
no message can hold: ``[mark of class, field, field, …]``, ``[mark of tuple, item, …]``.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import operator
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Final

import msgpack

from supervision.errors import TransportRefused
from supervision.frozen import frozen

_OWN_PACKAGE: Final = __name__.partition(".")[0]
"""Its dataclasses and enums may always travel; those of other packages where a node names them."""

_CLASS: Final = 1
"""Extension: the name of a dataclass or an enum, ``module:Class``."""
_PLAIN: Final = 2
"""Extension: the name of one of the types below."""


class FrameRefused(Exception):
    """Bytes that this node did not send: unauthenticated, repeated, too large or malformed."""


@frozen
class _Mark:
    """First item of an array that stands for something else; ``build`` takes the other items."""

    build: Callable[[list[Any]], Any]


class ValueCodec:
    """Packs and unpacks the values of one node. For one thread at a time."""

    def __init__(self, packages: tuple[str, ...] = ()) -> None:
        """``packages``: top-level packages whose dataclasses and enums may travel as well."""
        self._packages = frozenset((_OWN_PACKAGE, *packages))
        self._packer = msgpack.Packer(
            default=self._encode, strict_types=True, use_bin_type=True, autoreset=True
        )
        self._encoders: dict[type, Callable[[Any], list[Any]]] = {}
        self._marks: dict[tuple[int, bytes], _Mark] = {}
        self.register(tuple, list, tuple)
        self.register(set, list, set)
        self.register(frozenset, list, frozenset)
        self.register(int, lambda value: [hex(value)], lambda items: int(items[0], 16))
        self.register(Path, lambda value: [bytes(value)], lambda items: _path(*items))
        self._encoders[type(Path())] = self._encoders[Path]

    def register(
        self,
        cls: type,
        encode: Callable[[Any], list[Any]],
        build: Callable[[list[Any]], Any],
    ) -> None:
        """Let a class travel as the items that ``encode`` makes of a value of it."""
        name = cls.__name__.encode()
        mark = msgpack.ExtType(_PLAIN, name)
        self._encoders[cls] = lambda value: [mark, *encode(value)]
        self._marks[_PLAIN, name] = _Mark(build)

    def pack(self, value: object) -> bytes:
        """The bytes of a value; raises TransportRefused naming the type that cannot travel."""
        try:
            packed: bytes = self._packer.pack(value)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            self._packer.reset()
            name = type(value).__name__
            raise TransportRefused(f"a {name} cannot travel in a message: {error}") from error
        except BaseException:
            self._packer.reset()
            raise
        return packed

    def unpack(self, data: bytes | memoryview) -> Any:
        """The value inside; raises FrameRefused on anything that ``pack`` would not have made."""
        try:
            value = msgpack.unpackb(
                data,
                ext_hook=self._read_mark,
                list_hook=_build,
                strict_map_key=False,
            )
        except FrameRefused:
            raise
        except Exception as error:
            raise FrameRefused(f"not a message: {type(error).__name__}: {error}") from error
        if isinstance(value, _Mark):
            raise FrameRefused("a mark where a value belongs")
        return value

    # ── out ──────────────────────────────────────────────────────────────────

    def _encode(self, value: Any) -> list[Any]:
        cls = type(value)
        encode = self._encoders.get(cls)
        if encode is None:
            encode = self._encoders[cls] = self._encoder_of(cls)
        return encode(value)

    def _encoder_of(self, cls: type) -> Callable[[Any], list[Any]]:
        mark = msgpack.ExtType(_CLASS, f"{cls.__module__}:{cls.__qualname__}".encode())
        if cls.__module__.partition(".")[0] in self._packages:
            if issubclass(cls, enum.Enum):
                return lambda value: [mark, value.name]
            if dataclasses.is_dataclass(cls):
                return _fields_encoder(mark, [one.name for one in _init_fields(cls)])
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} is not on the allow-list")

    # ── in ───────────────────────────────────────────────────────────────────

    def _read_mark(self, code: int, data: bytes) -> _Mark:
        mark = self._marks.get((code, data))
        if mark is None:
            if code != _CLASS:
                raise FrameRefused(f"unknown extension {code}")
            mark = self._marks[code, data] = _Mark(self._builder_of(data.decode()))
        return mark

    def _builder_of(self, name: str) -> Callable[[list[Any]], Any]:
        cls = self._look_up(name)
        if issubclass(cls, enum.Enum):
            return lambda items: cls[items[0]]
        if not dataclasses.is_dataclass(cls):
            raise FrameRefused(f"{name} is neither a dataclass nor an enum")
        init = _init_fields(cls)
        if any(field.kw_only for field in init):
            names = tuple(field.name for field in init)
            return lambda items: cls(**dict(zip(names, items, strict=True)))
        return lambda items: cls(*items)

    def _look_up(self, name: str) -> type:
        module, _, path = name.partition(":")
        if module.partition(".")[0] not in self._packages:
            raise FrameRefused(f"{name} is not on the allow-list")
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        if not isinstance(found, type) or found.__module__ != module:
            raise FrameRefused(f"{name} is not a class of that module")
        return found


def _build(items: list[Any]) -> Any:
    """What an array stands for: itself, unless it starts with a mark."""
    if items and type(items[0]) is _Mark:
        mark = items[0]
        del items[0]
        return mark.build(items)
    return items


def _init_fields(cls: type) -> list[dataclasses.Field[Any]]:
    return [one for one in dataclasses.fields(cls) if one.init]


def _fields_encoder(mark: msgpack.ExtType, names: list[str]) -> Callable[[Any], list[Any]]:
    if not names:
        return lambda _value: [mark]
    if len(names) == 1:
        only = operator.attrgetter(names[0])
        return lambda value: [mark, only(value)]
    several = operator.attrgetter(*names)
    return lambda value: [mark, *several(value)]


def _path(encoded: bytes) -> PurePath:
    return Path(encoded.decode("utf-8", "surrogateescape"))
