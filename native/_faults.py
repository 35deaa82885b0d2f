"""Turns statuses of the shim into named errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from native._llama import ffi, lib
from native.errors import (
    ContextCreateFailed,
    DecodeAborted,
    DecodeFailed,
    InvalidParam,
    InvalidToken,
    NativeError,
    NoKvSpace,
    NoTokenLeft,
    NotSupported,
    PromptTooLong,
    StateRefused,
    TextTooLong,
)

_LOG_BYTES = 4096


def log_tail() -> str:
    """Return the last warnings and errors llama.cpp logged, joined by ``; ``."""
    out = ffi.new("char[]", _LOG_BYTES)
    used = lib.la_log_tail(out, _LOG_BYTES)
    text = bytes(ffi.buffer(out, used)).decode("utf-8", errors="replace")
    return "; ".join(line for line in text.splitlines()[-6:] if line.strip())


def last_text() -> str:
    text: bytes = ffi.string(lib.la_error_text())
    return text.decode("utf-8", errors="replace")


def raise_status(status: int) -> NoReturn:
    """Raise the named error for ``status``, with the numbers that the shim kept for this thread."""
    value, limit = int(lib.la_error_value()), int(lib.la_error_limit())
    make = _NAMED.get(status)
    if make is None:
        raise NativeError(f"unexpected failure inside the native shim: {last_text()}")
    raise make(last_text(), value, limit)


def _with_log(text: str) -> str:
    return "; ".join(part for part in (text, log_tail()) if part)


def _state(text: str, value: int, limit: int) -> StateRefused:
    return StateRefused(text if value == limit == 0 else f"{text} ({value} against {limit})")


_NAMED: dict[int, Callable[[str, int, int], NativeError]] = {
    lib.LA_CONTEXT: lambda text, _value, _limit: ContextCreateFailed(_with_log(text)),
    lib.LA_TOKEN: lambda _text, value, limit: InvalidToken(value, limit),
    lib.LA_POSITION: lambda text, v, limit: InvalidParam("position", v, f"{limit}: {text}"),
    lib.LA_SEQ: lambda _text, value, limit: InvalidParam("seq", value, f"0 to {limit - 1}"),
    lib.LA_ROW: lambda text, v, limit: InvalidParam("row", v, f"{text}; it had {limit} rows"),
    lib.LA_BATCH: lambda text, value, limit: InvalidParam("batch", value, f"{text}: {limit}"),
    lib.LA_BUFFER: lambda _text, v, limit: InvalidParam("into", v, f"at least {limit} bytes"),
    lib.LA_RANGE: lambda text, v, limit: InvalidParam("range", v, f"{text}; it ends at {limit}"),
    lib.LA_TOO_LONG: lambda _text, value, limit: PromptTooLong(value, limit),
    lib.LA_NO_SPACE: lambda text, _value, _limit: NoKvSpace(f"{text}: remove a sequence first"),
    lib.LA_ABORTED: lambda _text, _value, _limit: DecodeAborted("request_abort() was called"),
    lib.LA_DECODE: lambda text, value, _limit: DecodeFailed(value, _with_log(text)),
    lib.LA_STUCK: lambda text, _value, _limit: NoTokenLeft(text),
    lib.LA_STATE: _state,
    lib.LA_CANNOT_CUT: _state,
    lib.LA_TEXT: TextTooLong,
    lib.LA_NO_VOCABULARY: lambda text, _value, _limit: NotSupported(text),
    lib.LA_NO_MEMORY: lambda text, _value, _limit: NotSupported(text),
    lib.LA_ADAPTER: lambda text, _value, _limit: NativeError(_with_log(text)),
}


def fill_block(entry: Any, start: int, n_tokens: int, data: Any, size: int) -> None:
    """Write one line of the table of blocks; numbers that do not fit are refused, not wrapped."""
    try:
        entry.start, entry.n_tokens = start, n_tokens
    except (OverflowError, TypeError):
        raise StateRefused(f"start {start!r} or n_tokens {n_tokens!r} is no position") from None
    entry.payload, entry.size = data, size
