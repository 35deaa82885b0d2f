"""How a request ends: why generation ended, or why there is no result."""

from __future__ import annotations

from enum import Enum


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
