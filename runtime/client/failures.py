"""Failures as exceptions: those that travel between processes as values, and those of supervision.

The only module that constructs the errors of models and requests from what a node answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from actors import messages as m
from runtime import errors
from supervision.errors import (
    ForkedProcess,
    MachineUnfit,
    NodeNotRunning,
    SupervisionError,
    TransportRefused,
)

_FAILURES: Final[Mapping[m.FailReason, Callable[[str, str], errors.LlamaActorsError]]] = {
    m.FailReason.MODEL_UNKNOWN: errors.ModelUnknown,
    m.FailReason.MODEL_DOWN: errors.ModelDown,
    m.FailReason.INTERRUPTED: errors.ModelDown,
    m.FailReason.MODEL_UNLOADED: errors.ModelUnloaded,
    m.FailReason.MODEL_STOPPED: errors.ModelStopped,
    m.FailReason.POISONOUS: errors.RequestPoisoned,
    m.FailReason.INVALID_REQUEST: lambda _, detail: errors.InvalidRequest(detail),
    m.FailReason.DEADLINE: lambda _, detail: errors.DeadlineExceeded(detail),
    m.FailReason.SESSION_BUSY: lambda _, detail: errors.SessionBusy(detail),
    m.FailReason.NOT_SUPPORTED: lambda _, detail: errors.NotSupported(detail),
    m.FailReason.ENGINE_ERROR: lambda _, detail: errors.EngineFailed(detail),
}
"""Without those that have facts."""


def failure(
    model: str, reason: m.FailReason, detail: str, facts: m.FailureFacts | None = None
) -> errors.LlamaActorsError:
    """The exception for a failure that came as a value."""
    known = facts or m.FailureFacts()
    match reason:
        case m.FailReason.PROMPT_TOO_LONG:
            return errors.PromptTooLong(detail, known.n_prompt, known.n_ctx)
        case m.FailReason.OVERLOADED:
            return errors.Overloaded(detail, known.retry_after_s)
        case m.FailReason.LOAD_FAILED:
            return errors.ModelLoadFailed(model, known.kind or "ModelNotLoaded", detail)
        case _:
            return _FAILURES[reason](model, detail)


def load_failure(model: str, failed: m.ModelNotLoaded) -> errors.ModelError:
    """The same for a model that was not loaded."""
    if failed.reason is m.LoadFailure.ALREADY_LOADED:
        return errors.ModelAlreadyLoaded(
            model, f"model {model!r} is already loaded; unload it first, or choose another id"
        )
    if failed.reason is m.LoadFailure.UNKNOWN:
        return errors.ModelUnknown(model, failed.detail)
    if failed.reason is m.LoadFailure.CRASHED:
        return errors.ModelLoadFailed(
            model,
            "ModelLoadCrashed",
            f"llama.cpp ended the loading process ({failed.detail}); the file is probably "
            "malformed: check it, or convert it again",
        )
    return errors.ModelLoadFailed(model, failed.kind, failed.detail)


def connection_failure(error: SupervisionError, port: int) -> errors.LlamaActorsError:
    """The exception for an error of the connection to the node on this admin port."""
    if isinstance(error, TransportRefused):
        return errors.InvalidRequest(f"this cannot be sent to the node: {error}")
    if isinstance(error, NodeNotRunning):
        return errors.NodeNotRunning(port, str(error))
    if isinstance(error, MachineUnfit):
        return errors.MachineUnfit(str(error))
    if isinstance(error, ForkedProcess):
        return errors.ForkedProcess(str(error))
    return errors.NoReply(str(error))
