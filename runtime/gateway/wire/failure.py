"""Why a request has no answer, as one value; each API has its own words for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from native.errors import InvalidParam
from runtime import errors
from runtime.gateway.wire.rates import Rates


class Fault(Enum):
    """What kind of failure it is."""

    INVALID = "invalid"
    TOO_LONG = "too_long"
    """The prompt is longer than the context."""
    NO_KEY = "no_key"
    FORBIDDEN = "forbidden"
    NO_MODEL = "no_model"
    NOT_FOUND = "not_found"
    NO_METHOD = "no_method"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    """The body."""
    POISONED = "poisoned"
    RATE = "rate"
    INTERNAL = "internal"
    UNSUPPORTED = "unsupported"
    NOT_DONE = "not_done"
    """An endpoint of an API that this gateway has for its words alone."""
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"


STATUS: Final = {
    Fault.INVALID: 400,
    Fault.TOO_LONG: 400,
    Fault.NO_KEY: 401,
    Fault.FORBIDDEN: 403,
    Fault.NO_MODEL: 404,
    Fault.NOT_FOUND: 404,
    Fault.NO_METHOD: 405,
    Fault.CONFLICT: 409,
    Fault.TOO_LARGE: 413,
    # Not 422: agents repeat that without end, and never a 400.
    Fault.POISONED: 400,
    Fault.RATE: 429,
    Fault.INTERNAL: 500,
    Fault.UNSUPPORTED: 400,
    Fault.NOT_DONE: 501,
    Fault.OVERLOADED: 503,
    Fault.UNAVAILABLE: 503,
    Fault.DEADLINE: 504,
}
_FAULTS: Final[tuple[tuple[type[errors.LlamaActorsError], Fault], ...]] = (
    (errors.InvalidRequest, Fault.INVALID),
    (errors.NotSupported, Fault.UNSUPPORTED),
    (errors.ModelUnknown, Fault.NO_MODEL),
    (errors.ModelUnloaded, Fault.NO_MODEL),
    (errors.SessionBusy, Fault.CONFLICT),
    (errors.RequestPoisoned, Fault.POISONED),
    (errors.Overloaded, Fault.OVERLOADED),
    (errors.DeadlineExceeded, Fault.DEADLINE),
    (errors.EngineFailed, Fault.INTERNAL),
    (errors.ModelError, Fault.UNAVAILABLE),
    (errors.NodeError, Fault.UNAVAILABLE),
)
"""The first that an error is."""
_RETRY_S: Final = {Fault.OVERLOADED: 1.0, Fault.UNAVAILABLE: 2.0, Fault.RATE: 1.0}


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure. The message names what to do."""

    fault: Fault
    message: str
    param: str | None = None
    """The field of the body that is wrong."""
    retry_after_s: float | None = None
    n_prompt: int | None = None
    n_ctx: int | None = None
    allow: str | None = None
    """Methods that the path has."""
    code: str | None = None
    """In OpenAI's words, where it is not the one of the fault."""
    rates: Rates | None = None
    """What is left to the key, where it has limits."""
    kind: str | None = field(default=None, compare=False)
    """The class of the runtime's error that it comes from, for clients of our own API."""
    said: str | None = field(default=None, compare=False)
    """Its text, where ``message`` has others words."""

    @property
    def status(self) -> int:
        return STATUS[self.fault]

    @property
    def retry_after(self) -> str | None:
        """The value of a ``retry-after`` header: whole seconds."""
        seconds = self.retry_after_s or _RETRY_S.get(self.fault)
        return None if seconds is None else str(max(1, math.ceil(seconds)))


class Refused(Exception):
    """A request that is answered by a failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def invalid(message: str, param: str | None = None) -> Refused:
    """A body that is wrong; raise it."""
    return Refused(Failure(Fault.INVALID, message, param))


def unsupported(message: str, param: str | None = None) -> Refused:
    """Something that this gateway does not do; raise it."""
    return Refused(Failure(Fault.UNSUPPORTED, message, param))


def failure_of(error: BaseException) -> Failure:
    """The failure that an error of the runtime is, or an unexpected one."""
    if isinstance(error, Refused):
        return error.failure
    if isinstance(error, errors.PromptTooLong):
        return _too_long(error)
    cause = error.__cause__
    is_setting = isinstance(cause, errors.ConfigError | errors.ModelLoadFailed)
    origin = cause if is_setting and isinstance(error, errors.InvalidRequest) else error
    for kind, fault in _FAULTS:
        if isinstance(error, kind):
            param = cause.name if isinstance(cause, InvalidParam) else None
            retry = error.retry_after_s if isinstance(error, errors.Overloaded) else None
            return Failure(
                fault, str(error), param, retry, kind=type(origin).__name__, said=str(origin)
            )
    detail = f"{type(error).__name__} in the gateway; the log has the details"
    return Failure(Fault.INTERNAL, detail)


def _too_long(error: errors.PromptTooLong) -> Failure:
    """In the words by which every agent recognises it, and shortens the conversation."""
    n_prompt, n_ctx = error.n_prompt, error.n_ctx
    message = str(error)
    if n_prompt is not None and n_ctx is not None:
        most = min(n_ctx, n_prompt - 1)  # a prompt that fills the context leaves no room to reply
        message = (
            f"prompt is too long: {n_prompt} tokens > {most} maximum; this model's maximum "
            f"context length is {n_ctx} tokens. Shorten the conversation, or load the model with a "
            "larger n_ctx"
        )
    return Failure(
        Fault.TOO_LONG,
        message,
        n_prompt=n_prompt,
        n_ctx=n_ctx,
        kind=type(error).__name__,
        said=str(error),
    )
