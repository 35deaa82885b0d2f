"""What inflight knows of one request, what its timers carry, and the words with which it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.journal import JournalKeeper, Noted
from actors.requests.crash_attribution import POISON_CRASHES
from actors.requests.questions import is_repeatable
from cache.answers import Miss, MissReason

if TYPE_CHECKING:
    from supervision import Address, Entry

UNLOADED = "model {model!r} was unloaded during this request; load it again"
NOT_BACK = (
    "model {model!r} died during this request ({why}) and did not come back within {within_s:.0f} s"
)
TOO_OFTEN = "model {model!r} died {runs} times during this request (last: {why})"
POISONOUS = (
    f"model {{model!r}} died {POISON_CRASHES} times while it ran this request, at last as the only "
    "suspect: it hits a fault in llama.cpp or in the model file, and is refused for some minutes. "
    "Change the request or the model, or report the fault with the log"
)
POISONOUS_PART = (
    "model {model!r} died of a text in this request when it was asked to tokenise it: it hits a "
    "fault in llama.cpp or in the model file, and is refused for some minutes. Change the text or "
    "the model, or report the fault with the log"
)
INTERRUPTED = "model {model!r} died while it answered this question; ask again"
NOT_REPEATED = (
    "model {model!r} died during this change, which is not made twice; look whether it was done"
)
POISONOUS_KILLED = (
    "the process of model {model!r} ended each time it ran this request, at last alone: {why}. The "
    "request is refused for some minutes. If memory was short: shorten the prompt, lower n_ctx or "
    "cache_ram, or raise the memory limit of the node"
)
HELD_TOO_LONG = (
    "not started within its time limit, because a request that may have crashed the model runs "
    "alone; raise timeout_s"
)
AWAY_TOO_LONG = "its time limit is over while its model is being started again; raise timeout_s"
_STOPPED = (
    "model {model!r} crashed so often that it was stopped (last: {why}); see the log, then load it "
    "again"
)


@dataclass(slots=True)
class InFlight:
    """One request or question, from its arrival to its end. Times are monotonic seconds."""

    request: m.Complete | m.Ask
    reply_to: Address
    deadline: float | None = None
    incarnation: int | None = None
    """Of the model that runs it; ``None`` while it is held."""
    waits_since: float | None = None
    """Its model is not up: it waits for the next incarnation. Else it is in the model's lane."""
    waits_under: int = 0
    """Incarnation of the models' supervisor at that time."""
    runs: int = 0
    """How often it was sent to its model."""
    proved_at: int = 1
    """Accepted tokens by which it has gone beyond what it did when a model died."""
    journal: JournalKeeper | None = None
    is_abandoned: bool = False
    """Its caller is gone, and it is being cancelled."""
    is_direct: bool = False
    """It was sent to the model itself: its caller may know nothing of what inflight sends."""

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def wants_pings(self) -> bool:
        """Whether its caller gets ``StillRunning``; not while a model answers a question."""
        is_question = isinstance(self.request, m.Ask)
        return not is_question or (self.incarnation is None and not self.is_direct)

    def noted(self) -> Noted:
        """What is known of its reply."""
        return Noted() if self.journal is None else self.journal.read()

    def n_accepted(self) -> int:
        return 0 if self.journal is None else self.journal.n_accepted()

    def open_journal(self) -> str | None:
        """Path of its journal; None when this process may open no more files."""
        if self.journal is None:
            try:
                self.journal = JournalKeeper()
            except OSError:
                return None
        return self.journal.path

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()
            self.journal = None


@dataclass(frozen=True, slots=True)
class LookStopping:
    """Timer: does the model still stop?"""

    model: str
    incarnation: int
    requests: frozenset[str]
    """What it had, or what waited for it: another model of this name may be loaded meanwhile."""
    looks: int = 1


@dataclass(frozen=True, slots=True)
class LookWaiting:
    """Timer: what has become of the model that requests wait for?"""

    model: str


@dataclass(frozen=True, slots=True)
class LaneDue:
    """Timer: a suspect's time alone, or its wait for it, may be over."""

    model: str


@dataclass(frozen=True, slots=True)
class Deadline:
    """Timer: a held request's time limit is over."""

    request_id: str


@dataclass(frozen=True, slots=True)
class AskCallers:
    """Timer: are they still there?"""


def why_interrupted(ask: m.Ask) -> tuple[m.FailReason, str]:
    """Why a question whose model died has no answer.

    It is not put to the next process from here: pages of its answer may have arrived.
    """
    if is_repeatable(ask.question):
        return m.FailReason.INTERRUPTED, INTERRUPTED.format(model=ask.model)
    return m.FailReason.MODEL_DOWN, NOT_REPEATED.format(model=ask.model)


def poisonous(model: str, why_killed: str) -> str:
    """The end of a request that its model dies of.

    ``why_killed``: how the process ended, if a SIGKILL ended it; otherwise empty, and the fault is
    in the model's process itself.
    """
    words = POISONOUS_KILLED if why_killed else POISONOUS
    return words.format(model=model, why=why_killed)


def is_coming(entry: Entry | None) -> bool:
    """Whether a model is up, or will be by itself."""
    return entry is not None and entry.state not in ("down", "stopping")


def why_absent(model: str, entry: Entry | None) -> tuple[m.FailReason, str]:
    """Why nobody can answer for a model that is not coming."""
    if entry is None:
        return (
            m.FailReason.MODEL_UNKNOWN,
            f"no model {model!r} is loaded; load it first (`load {model}=PATH`)",
        )
    if entry.state == "down":
        return m.FailReason.MODEL_STOPPED, _STOPPED.format(model=model, why=entry.last_exit)
    return (
        m.FailReason.MODEL_UNLOADED,
        f"model {model!r} is {entry.state}; load it again to ask it",
    )


def cancelled(request_id: str, one: InFlight) -> m.Completed:
    """The end of a request that was cancelled while no model had it."""
    noted = one.noted()
    return m.Completed(
        ref=one.request.ref,
        request_id=request_id,
        finish_reason=m.FinishReason.CANCELLED,
        finish_key=None,
        stop_sequence=None,
        usage=m.Usage(len(noted.prompt), 0, len(noted.accepted)),
        cache=m.CacheReport(m.HitKind.COLD, "none", 0.0, Miss(MissReason.NOT_STARTED)),
        timings=m.Timings(0.0, 0.0, 0.0, 0.0, 0.0),
    )
