"""Why a request or a question has no result: its reason, and a sentence that names what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from actors import messages as m
from actors.requests.crash_attribution import POISON_CRASHES
from actors.requests.questions import is_repeatable, refusal

if TYPE_CHECKING:
    from supervision import Entry, ExitReason


class Failure(NamedTuple):
    """Why there is no result."""

    reason: m.FailReason
    detail: str
    """For people."""
    facts: m.FailureFacts | None = None
    """For programs."""


_POISONOUS_PART: Final = (
    "model {model!r} died of a text in this request when it was asked to tokenise it: it hits a "
    "fault in llama.cpp or in the model file, and is refused for some minutes. Change the text or "
    "the model, or report the fault with the log"
)
_POISONOUS: Final = (
    f"model {{model!r}} died {POISON_CRASHES} times while it ran this request, at last as the only "
    "suspect: it hits a fault in llama.cpp or in the model file, and is refused for some minutes. "
    "Change the request or the model, or report the fault with the log"
)
_POISONOUS_KILLED: Final = (
    "the process of model {model!r} ended each time it ran this request, at last alone: {why}. The "
    "request is refused for some minutes. If memory was short: shorten the prompt, lower n_ctx or "
    "cache_ram, or raise the memory limit of the node"
)
_STOPPED: Final = (
    "model {model!r} crashed so often that it was stopped (last: {why}); see the log, then load it "
    "again"
)
_HELD_TOO_LONG: Final = (
    "not started within its time limit, because a request that may have crashed the model runs "
    "alone; raise timeout_s"
)
_AWAY_TOO_LONG: Final = (
    "its time limit is over while its model is loaded, or started again; raise timeout_s"
)


def failed(request: m.Complete | m.Ask, failure: Failure) -> object:
    """The answer to a request or a question that has no result."""
    if isinstance(request, m.Ask):
        return refusal(request.question, *failure)
    return m.CompletionFailed(request.ref, *failure)


def is_coming(entry: Entry | None) -> bool:
    """Whether a model is up, or will be by itself."""
    return entry is not None and entry.state not in ("down", "stopping")


def absent(model: str, entry: Entry | None) -> Failure:
    """The model is not there, and is not coming."""
    if entry is None:
        return Failure(
            m.FailReason.MODEL_UNKNOWN,
            f"no model {model!r} is loaded; load it first (`load {model}=PATH`)",
        )
    if entry.state == "down":
        return Failure(
            m.FailReason.MODEL_STOPPED, _STOPPED.format(model=model, why=entry.last_exit)
        )
    return Failure(
        m.FailReason.MODEL_UNLOADED,
        f"model {model!r} is {entry.state}; load it again to ask it",
    )


def unloaded(model: str) -> Failure:
    """The model was unloaded while it had the request."""
    detail = f"model {model!r} was unloaded during this request; load it again"
    return Failure(m.FailReason.MODEL_UNLOADED, detail)


def not_loaded(failed: m.ModelNotLoaded) -> Failure | None:
    """The model was to be loaded for the request, and was not; None: there is no such model."""
    if failed.reason is m.LoadFailure.UNKNOWN:
        return None
    facts = m.FailureFacts(retry_after_s=failed.retry_after_s, kind=failed.kind)
    return Failure(m.FailReason.LOAD_FAILED, failed.detail, facts)


def not_back(model: str, why: ExitReason | None, within_s: float) -> Failure:
    """The model died, and nothing started it again in time."""
    detail = (
        f"model {model!r} died during this request ({why or 'see the log'}) and did not come back "
        f"within {within_s:.0f} s"
    )
    return Failure(m.FailReason.MODEL_DOWN, detail)


def died_too_often(model: str, runs: int, why: ExitReason | None) -> Failure:
    """The model died each time it had the request, though no charge holds against it."""
    return Failure(
        m.FailReason.MODEL_DOWN,
        f"model {model!r} died {runs} times during this request (last: {why or 'see the log'})",
    )


def interrupted(ask: m.Ask) -> Failure:
    """The model died while it answered a question.

    It is not put to the next process from here: pages of its answer may have arrived.
    """
    model = ask.model
    if is_repeatable(ask.question):
        detail = f"model {model!r} died while it answered this question; ask again"
        return Failure(m.FailReason.INTERRUPTED, detail)
    detail = (
        f"model {model!r} died during this change, which is not made twice; look whether it was "
        "done"
    )
    return Failure(m.FailReason.MODEL_DOWN, detail)


def poisonous(model: str, why_killed: str) -> Failure:
    """The model dies of this request.

    ``why_killed``: how the process ended, if a SIGKILL ended it; otherwise empty, and the fault is
    in the model's process itself.
    """
    text = _POISONOUS_KILLED if why_killed else _POISONOUS
    return Failure(m.FailReason.POISONOUS, text.format(model=model, why=why_killed))


def poisonous_part(model: str) -> Failure:
    """The model dies of a text in this request."""
    return Failure(m.FailReason.POISONOUS, _POISONOUS_PART.format(model=model))


def overloaded(n_waiting: int, facts: m.FailureFacts) -> Failure:
    """Too many requests wait for the model already; ``facts``: when to try again."""
    detail = f"{n_waiting} requests already wait for this model; try again later"
    return Failure(m.FailReason.OVERLOADED, detail, facts)


def out_of_time(*, is_held: bool) -> Failure:
    """The time limit of a request that no model has is over."""
    return Failure(m.FailReason.DEADLINE, _HELD_TOO_LONG if is_held else _AWAY_TOO_LONG)
