"""Checks of arguments of the public API: each is converted, or refused with ``InvalidRequest``.

The error names the argument, what was given and what is expected. ``None`` for an optional argument
means that it is not given. Whole numbers may be of any integer type, numpy's too; a sequence of
token ids may be a list, tuple, range or array of those. Bytes where a text is expected are UTF-8,
and are never read as ids.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final, SupportsFloat, TypeGuard

from cache import tokens as token_bytes
from runtime.errors import InvalidRequest

MAX_TOKENS: Final = 1 << 24
"""No context holds more."""
MAX_WHOLE: Final = (1 << 63) - 1
MAX_SECONDS: Final = 1e9
"""Thirty years; more means no limit."""
_SHOWN: Final = 60


def wrong(name: str, value: object, wanted: str) -> InvalidRequest:
    """The error for a value; raise it."""
    return InvalidRequest(f"{name} is {shown(value)}; expected {wanted}")


def shown(value: object) -> str:
    """A value and its type, short."""
    return "None" if value is None else f"{short(value)} ({type(value).__name__})"


def short(value: object) -> str:
    """A value as Python writes it, cut after some characters."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a repr of the caller's
        return "an object"
    return f"{text[:_SHOWN]}…" if len(text) > _SHOWN else text


def plain(value: Any) -> Any:
    """A scalar of numpy or of another array library as Python's own; all else as it is."""
    if isinstance(value, int | float | str | bytes) or getattr(value, "shape", None) != ():
        return value
    try:
        return value.item()
    except Exception:  # noqa: BLE001 - not such a scalar
        return value


# ── texts ───────────────────────────────────────────────────────────────────────────────────────


def is_text(value: object) -> bool:
    """Whether it is a text, and not a sequence of ids."""
    return isinstance(value, str | bytes | bytearray | memoryview)


def text(name: str, value: object) -> str:
    """A text; bytes are UTF-8."""
    if not isinstance(value, str | bytes | bytearray | memoryview):
        raise wrong(name, value, "a text")
    try:
        if not isinstance(value, str):
            return bytes(value).decode("utf-8")
        value.encode("utf-8")
    except UnicodeError as error:
        raise InvalidRequest(f"{name} {_no_character(error)}") from None
    return value


def _no_character(error: UnicodeError) -> str:
    if isinstance(error, UnicodeEncodeError):
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte that it could not decode
            return (
                f"holds the byte 0x{code - 0xDC00:02x} at character {error.start}, which is not "
                "UTF-8; decode it with its own encoding first"
            )
        return (
            f"holds half a character (U+{code:04X}) at character {error.start}: a text that was "
            "cut inside a surrogate pair; leave it out"
        )
    at = error.start if isinstance(error, UnicodeDecodeError) else 0
    return f"is bytes that are not UTF-8 at byte {at}; decode them with their own encoding first"


def model_name(value: object) -> str:
    """The id of a model."""
    if not isinstance(value, str):
        raise wrong("model", value, "the id of a model, such as 'demo'")
    return text("model", value)


def data(name: str, value: object) -> bytes:
    """Exact bytes."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise wrong(name, value, "bytes")
    return bytes(value)


def path(name: str, value: object) -> str:
    """The path of a file or a folder, as a text."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise wrong(name, value, "a path")
    try:
        where = os.fsdecode(value)
        is_possible = bool(where) and b"\0" not in os.fsencode(where)
    except (UnicodeError, TypeError):
        is_possible = False
    if not is_possible:
        raise wrong(name, value, "a path, which is not empty and holds no null character")
    return where


def table(name: str, value: object, wanted: str) -> dict[str, Any]:
    """A mapping with texts, or paths, as its keys."""
    if not isinstance(value, Mapping):
        raise wrong(name, value, wanted)
    for key in value:
        if not isinstance(key, str | os.PathLike):
            raise wrong(f"a key of {name}", key, "a text")
    return {os.fspath(key): one for key, one in value.items()}


def size(name: str, value: object) -> str | int | float:
    """Bytes, or a text such as ``512MiB``."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong(name, value, "bytes, or a text such as '512MiB' or '25%'")
    return value


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────


def flag(name: str, value: object, default: bool = False) -> bool:
    """True or False; None is the default."""
    if value is None:
        return default
    value = plain(value)
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")
    return value


def whole(name: str, value: object, least: int, most: int = MAX_WHOLE) -> int:
    """A whole number of any integer type."""
    value = plain(value)
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        limit = "" if most >= MAX_WHOLE else f" to {most}"
        raise wrong(name, value, f"a whole number from {least}{limit}")
    return number


def real(name: str, value: object) -> float:
    """A number, not NaN."""
    value = plain(value)
    if isinstance(value, bool) or not (isinstance(value, float | int) or _is_real(value)):
        raise wrong(name, value, "a number")
    try:
        number = float(value)
    except (OverflowError, ValueError):
        raise wrong(name, value, "a number of a usual size") from None
    if math.isnan(number):
        raise wrong(name, value, "a number")
    return number


def _is_real(value: object) -> TypeGuard[SupportsFloat]:
    from decimal import Decimal  # here: few callers have such a number, and a command has none
    from numbers import Real

    return isinstance(value, Real | Decimal)


def seconds(name: str, value: object, default: float | None = None) -> float | None:
    """Seconds above 0; None is the default, and infinity is None: no limit."""
    if value is None:
        return default
    number = real(name, value)
    if number <= 0:
        raise wrong(name, value, "seconds above 0, or None")
    return None if number > MAX_SECONDS else number


def pause(name: str, value: object) -> float:
    """Seconds from 0; None is 0."""
    number = 0.0 if value is None else real(name, value)
    if not 0 <= number <= MAX_SECONDS:
        raise wrong(name, value, f"seconds from 0 to {MAX_SECONDS:g}")
    return number


# ── sequences ───────────────────────────────────────────────────────────────────────────────────


def items(name: str, value: Any, wanted: str, most: int = MAX_TOKENS) -> list[Any]:
    """The elements of a list, tuple, array or another sized sequence."""
    is_one = is_text(value) or isinstance(value, Mapping | Set)
    if is_one or not isinstance(value, Iterable):
        raise wrong(name, value, wanted)
    try:
        length = len(value)  # type: ignore[arg-type]
        if length <= most:
            return list(value)
    except Exception:  # noqa: BLE001 - a generator, an array without a dimension: not a sequence
        raise wrong(name, value, wanted) from None
    raise InvalidRequest(f"{name} has {length} elements; at most {most} are taken")


def is_whole(value: object) -> bool:
    """Whether it is a number of an integer type, and not a bool."""
    if isinstance(plain(value), bool):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def token_list(name: str, value: object) -> list[int]:
    """Token ids, perhaps none."""
    ids = items(name, value, "token ids: a list of whole numbers")
    if set(map(type, ids)) == {int}:  # nearly always; there may be a million
        return ids
    for at, one in enumerate(ids):
        if type(one) is int:
            continue
        if not is_whole(one):
            raise wrong(f"{name}[{at}]", one, "token ids, which are whole numbers")
        ids[at] = operator.index(one)
    return ids


def packed_tokens(name: str, value: object, *, may_be_empty: bool = False) -> bytes:
    """Token ids as u32-le."""
    ids = token_list(name, value)
    if not ids and not may_be_empty:
        raise InvalidRequest(f"{name} has no tokens; send at least one")
    try:
        return token_bytes.pack(ids)
    except ValueError:
        at, bad = next((at, one) for at, one in enumerate(ids) if not 0 <= one < 1 << 32)
        raise wrong(f"{name}[{at}]", bad, "token ids, which are from 0 to 2**32-1") from None
