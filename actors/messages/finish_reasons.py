"""How a request ends: why generation ended, or why there is no result."""

from __future__ import annotations

from enum import Enum

from supervision.frozen import frozen


class FinishReason(Enum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"
    """It has as many tokens as it may have; ``Limit`` tells why no more."""
    CANCELLED = "cancelled"
    PREFILLED = "prefilled"
    """The request asked for no token (``prefill_only``); its prompt is in the cache."""


class Limit(Enum):
    """Why a reply that ended by ``length`` could not be longer."""

    MAX_TOKENS = "max_tokens"
    """It was not to be longer."""
    CONTEXT = "context"
    """Prompt and reply fill the context."""


class FailReason(Enum):
    """Why a request has no result."""

    INVALID_REQUEST = "invalid_request"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_DOWN = "model_down"
    INTERRUPTED = "interrupted"
    """The model died while it answered this question, which may be asked again."""
    MODEL_UNLOADED = "model_unloaded"
    MODEL_STOPPED = "model_stopped"
    """It crashed so often that its supervisor does not start it again."""
    LOAD_FAILED = "load_failed"
    """It was to be loaded for this request, and was not."""
    POISONOUS = "poisonous"
    """The model died each time it ran this request; see ``actors.requests.crash_attribution``."""
    PROMPT_TOO_LONG = "prompt_too_long"
    OVERLOADED = "overloaded"
    DEADLINE = "deadline"
    SESSION_BUSY = "session_busy"
    """A request of the same session is running."""
    NOT_SUPPORTED = "not_supported"
    """This model cannot do that: no chat template, no embeddings, no draft model."""
    ENGINE_ERROR = "engine_error"


@frozen
class FailureFacts:
    """What is known of a failure besides its reason, for programs.

    What does not apply, or is not known, is ``None``.
    """

    n_prompt: int | None = None
    """Tokens of the prompt that is too long. Of a text above 1 MiB, which is not tokenised to be
    refused, and of what only continues a session: so many at least."""
    n_ctx: int | None = None
    """Tokens that fit. A prompt may have as many and still be too long: a reply that is asked for
    needs room for a token."""
    retry_after_s: float | None = None
    """Seconds after which a place in the queue that was full is likely to be free, or a model that
    did not load is tried again."""
    kind: str | None = None
    """Of a model that did not load: the name of the error in ``native.errors``."""
