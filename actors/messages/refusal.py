"""What the caller of a request is answered whose work ended with an exception: one table."""

from __future__ import annotations

from typing import Final

from actors.messages.errors import RequestRefused
from actors.messages.finish_reasons import FailReason, FailureFacts
from actors.messages.payload import PayloadGone
from native.errors import (
    BackendClosed,
    DecodeAborted,
    InvalidParam,
    InvalidToken,
    NativeError,
    NotSupported,
    PromptTooLong,
    TextTooLong,
)

_REASONS: Final[tuple[tuple[type[Exception], FailReason, str], ...]] = (
    (PayloadGone, FailReason.INVALID_REQUEST, "what was sent is gone: {error}"),
    (PromptTooLong, FailReason.PROMPT_TOO_LONG, "{error}"),
    (NotSupported, FailReason.NOT_SUPPORTED, "{error}"),
    (InvalidParam, FailReason.INVALID_REQUEST, "{error}"),
    (InvalidToken, FailReason.INVALID_REQUEST, "{error}"),
    (TextTooLong, FailReason.INVALID_REQUEST, "{error}"),
    (BackendClosed, FailReason.MODEL_UNLOADED, "the model was unloaded"),
    (DecodeAborted, FailReason.MODEL_UNLOADED, "the model was unloaded"),
    (NativeError, FailReason.ENGINE_ERROR, "{error}"),
    (
        RecursionError,
        FailReason.INVALID_REQUEST,
        "what was sent is nested too deeply; flatten it",
    ),
)
"""The first row that fits counts."""


def refusal_of(error: Exception) -> RequestRefused:
    """What the caller of a request is answered whose work ended with this exception."""
    if isinstance(error, RequestRefused):
        return error
    for kind, reason, detail in _REASONS:
        if isinstance(error, kind):
            return RequestRefused(reason, detail.format(error=error), _facts(error))
    return RequestRefused(FailReason.ENGINE_ERROR, f"{type(error).__name__}: {error}")


def _facts(error: Exception) -> FailureFacts | None:
    if isinstance(error, PromptTooLong):
        return FailureFacts(n_prompt=error.n_tokens, n_ctx=error.n_ctx)
    return None
