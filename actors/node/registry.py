"""The registry: where actors are, and which models should be loaded.

Owns: the table of models to load. Answers: ``WhereIs``, ``ListDirectory``, ``LoadModel``,
``UnloadModel``. Asks: the models supervisor. A process of its own so that callers never wait behind
a supervisor that is busy restarting a child; and because a dynamic supervisor that dies forgets its
children: this actor asks the new one for the models that were loaded. A model that crashes so often
that its supervisor stops restarting it is removed from the table, until a caller loads it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.actor_ids import model_actor_id, model_of
from actors.messages.exact import EXACT_NAMES
from actors.messages.model_table import ModelTable
from actors.model.args import LoadError, ModelArgs
from cache.policy import SAVE_ALL, SavePolicy
from native.fingerprint import Fingerprints
from supervision import ExitKind, Worker
from supervision.messages import (
    ChildNotFound,
    ChildStarted,
    ChildStartFailed,
    ChildStartProgress,
    ChildTerminated,
    DirectoryListing,
    ListDirectory,
    Located,
    NotLocated,
    StartChild,
    StartFailure,
    TerminateChild,
    WhereIs,
)

if TYPE_CHECKING:
    from supervision import Address, Entry

HEALING = "healing"  # prefix of the refs of starts that no caller waits for
HEAL_TRIES = 5  # a file that was loaded before is good; a process that dies while loading is not
UNSENT_S = 10.0  # that a load waits for a supervisor of models that is being restarted
HEAL_PAUSE_S = 0.2  # times the number of tries so far
LOOK_EVERY_S = 1.0  # there is no message that a model which restarts is stopped for good
_BAD_EXITS = (ExitKind.ABNORMAL, ExitKind.KILLED)
_REASONS = {
    StartFailure.ALREADY_STARTED: m.LoadFailure.ALREADY_LOADED,
    StartFailure.INIT_FAILED: m.LoadFailure.REFUSED,
    StartFailure.DIED_IN_INIT: m.LoadFailure.CRASHED,
    StartFailure.INIT_TIMEOUT: m.LoadFailure.REFUSED,
    StartFailure.STOPPED: m.LoadFailure.REFUSED,
}


@dataclass(frozen=True, slots=True)
class RegistryArgs:
    """What every model of this node is started with, and where the table of models lies."""

    wanted_path: str
    arena_path: str | None
    tier_dirs: tuple[tuple[str, str], ...]
    cache_salt: str
    fingerprints: Fingerprints | None = None
    save: SavePolicy = SAVE_ALL
    signing_key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class _Asker:
    """A caller that waits for the end of a load or an unload."""

    address: Address
    model: str
    request: m.LoadModel | None
    """``None``: to unload it."""
    added: bool = False
    """The request put the model into the table; if it fails, the model is removed again."""


@dataclass(frozen=True, slots=True)
class _HealAgain:
    """Timer: try once more to bring back a model."""

    model: str


@dataclass(frozen=True, slots=True)
class _UnsentTooLong:
    """Timer: is this load still waiting for a supervisor of models?"""

    ref: str


@dataclass(frozen=True, slots=True)
class _DrainedLongEnough:
    """Timer: unload now, whatever still runs."""

    ref: str


class RegistryActor(Worker):
    """Answers where actors are; loads, unloads and reloads models."""

    def init(self, args: object) -> None:
        if not isinstance(args, RegistryArgs):
            raise TypeError(f"the registry is started with RegistryArgs, not {args!r}")
        self._facts = args
        self._wanted = ModelTable(args.wanted_path)
        self._askers: dict[str, _Asker] = {}
        self._draining: set[str] = set()
        self._unsent: set[str] = set()
        """Loads that wait for a supervisor of models."""
        self._healed: int | None = None
        self._tries: dict[str, int] = {}
        self._heal()
        self.after(LOOK_EVERY_S, None)

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case WhereIs() | ListDirectory() | m.ListWantedModels():
                self.tell(sender, self._found(message))
            case m.LoadModel():
                self._load(message, sender)
            case m.UnloadModel():
                self._unload(message, sender)
            case m.Drained(ref):
                self._terminate(ref)
            case m.AdaptersInUse(model, lora):
                self._wanted.set_adapters(model, lora)
            case ChildStartProgress(ref, _, float(share)):
                self._answer(ref, m.ModelLoading(ref, share), ended=False)
            case ChildStarted(ref, entry):
                self._tries.pop(model_of(entry.id) or "", None)
                self._answer(ref, m.ModelLoaded(ref, entry))
            case ChildStartFailed():
                self._not_loaded(message)
            case ChildTerminated(ref, _):
                self._answer(ref, m.ModelUnloaded(ref, was_loaded=True))
            case ChildNotFound(ref, _):
                self._answer(ref, m.ModelUnloaded(ref, was_loaded=False))
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def _found(self, question: WhereIs | ListDirectory | m.ListWantedModels) -> object:
        """The answer to a question about what there is."""
        match question:
            case WhereIs(ref, wanted):
                entry = self.directory.get(wanted)
                return Located(ref, entry) if entry else NotLocated(ref, wanted)
            case ListDirectory(ref):
                return DirectoryListing(ref, tuple(self.directory.values()))
            case m.ListWantedModels(ref):
                return m.WantedModelsListed(ref, tuple(one.model for one in self._wanted.all()))

    # ── loading ──────────────────────────────────────────────────────────────────────────────

    def _load(self, wanted: m.LoadModel, sender: Address) -> None:
        if not isinstance(wanted.exact, m.Exact):
            detail = f"exact is {wanted.exact!r}; load it with one of {', '.join(EXACT_NAMES)}"
            refused = m.LoadFailure.REFUSED
            self.tell(sender, m.ModelNotLoaded(wanted.ref, refused, "InvalidParam", detail))
            return
        self._forget_stopped()
        already = wanted.model in self._wanted
        self._askers[wanted.ref] = _Asker(sender, wanted.model, wanted, added=not already)
        if not already:
            self._wanted.add(wanted)
        if not self._start(wanted, wanted.ref):
            self._unsent.add(wanted.ref)  # the next supervisor of models is asked, see _heal
            self.after(UNSENT_S, _UnsentTooLong(wanted.ref))

    def _unsent_too_long(self, ref: str) -> None:
        """There is still no supervisor of models that could load it."""
        asker = self._askers.get(ref)
        if ref not in self._unsent or asker is None:
            return
        self._unsent.discard(ref)
        if asker.added:
            self._wanted.remove(asker.model)
        detail = "the supervisor of models is restarting; try again in a moment"
        self._answer(ref, m.ModelNotLoaded(ref, m.LoadFailure.UNAVAILABLE, "Unavailable", detail))

    def _start(self, wanted: m.LoadModel, ref: str) -> bool:
        args = ModelArgs(
            model=wanted.model,
            path=wanted.path,
            backend=wanted.backend,
            params=wanted.params,
            arena_path=self._facts.arena_path,
            tier_dirs=self._facts.tier_dirs,
            cache_salt=self._facts.cache_salt,
            fingerprints=self._facts.fingerprints or Fingerprints(),
            save=self._facts.save,
            markers=wanted.markers,
            chat_template=wanted.chat_template,
            exact=wanted.exact,
            signing_key=self._facts.signing_key,
            wanted_path=self._facts.wanted_path,
        )
        return self.tell(
            "models", StartChild(ref, model_actor_id(wanted.model), args, progress=True)
        )

    def _not_loaded(self, failed: ChildStartFailed) -> None:
        if failed.ref.startswith(HEALING):
            self._not_healed(failed)
            return
        asker = self._askers.get(failed.ref)
        is_new = failed.reason is not StartFailure.ALREADY_STARTED
        if asker is not None and asker.added and is_new:
            self._wanted.remove(asker.model)
        reason = _REASONS.get(failed.reason, m.LoadFailure.UNAVAILABLE)
        kind, detail = failed.reason.name, failed.detail
        if isinstance(failed.error, LoadError):
            kind, detail = failed.error.kind, failed.error.detail
        self._answer(failed.ref, m.ModelNotLoaded(failed.ref, reason, kind, detail))

    def _unload(self, asked: m.UnloadModel, sender: Address) -> None:
        self._wanted.remove(asked.model)
        self._askers[asked.ref] = _Asker(sender, asked.model, None)
        self._draining.add(asked.ref)
        if asked.drain_s > 0 and self.tell(model_actor_id(asked.model), m.Drain(asked.ref)):
            self.after(asked.drain_s, _DrainedLongEnough(asked.ref))
        else:
            self._terminate(asked.ref)

    def _terminate(self, ref: str) -> None:
        """Its requests have ended, or their time is over."""
        if ref not in self._draining:
            return
        self._draining.remove(ref)
        model = self._askers[ref].model
        if not self.tell("models", TerminateChild(ref, model_actor_id(model))):
            self._answer(ref, m.ModelUnloaded(ref, was_loaded=False))

    def _answer(self, ref: str, answer: object, *, ended: bool = True) -> None:
        asker = self._askers.get(ref)
        if asker is not None:
            self.tell(asker.address, answer)
            if ended:
                del self._askers[ref]

    # ── healing ──────────────────────────────────────────────────────────────────────────────

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        del changed
        self._forget_stopped()
        self._heal()

    def handle_timer(self, payload: object) -> None:
        match payload:
            case _HealAgain(model):
                for wanted in self._wanted.all():
                    if wanted.model == model and model_actor_id(model) not in self.directory:
                        self._start(wanted, f"{HEALING}:{model}")
            case _DrainedLongEnough(ref):
                self._terminate(ref)
            case _UnsentTooLong(ref):
                self._unsent_too_long(ref)
            case _:
                self._forget_stopped()
                self.after(LOOK_EVERY_S, None)

    def _heal(self) -> None:
        """A new models supervisor has no models: ask it for those that should be loaded."""
        entry = self.directory.get("models")
        if entry is None or not entry.is_up or entry.incarnation == self._healed:
            return
        self._healed = entry.incarnation
        self._unsent.clear()
        asked_for: set[str] = set()
        for ref, asker in list(self._askers.items()):  # their answers died with the supervisor
            if asker.request is None:
                self._draining.discard(ref)
                self._answer(ref, m.ModelUnloaded(ref, was_loaded=True))
            else:
                asked_for.add(asker.model)
                self._start(asker.request, ref)
        for wanted in self._wanted.all():
            if wanted.model not in asked_for:
                self._start(wanted, f"{HEALING}:{wanted.model}")

    def _not_healed(self, failed: ChildStartFailed) -> None:
        model = model_of(failed.child_id) or ""
        tries = self._tries[model] = self._tries.get(model, 0) + 1
        match failed.reason:
            case StartFailure.DIED_IN_INIT if tries < HEAL_TRIES:
                self.after(HEAL_PAUSE_S * tries, _HealAgain(model))
            case StartFailure.DIED_IN_INIT | StartFailure.INIT_FAILED:
                self.log.error("model %s was not loaded again: %s", model, failed.detail)
                self._wanted.remove(model)
            case _:
                pass  # it is up already, or its supervisor stops and the next one will be asked

    def _forget_stopped(self) -> None:
        """A model that its supervisor does not restart stays down until a caller loads it.

        Not so while the supervisor itself stops: then its models are down too, and come back.
        """
        models = self.directory.get("models")
        if models is None or not models.is_up:
            return
        for wanted in self._wanted.all():
            entry = self.directory.get(model_actor_id(wanted.model))
            if entry is not None and entry.state == "down" and _failed(entry):
                self.log.error("model %s stays down: %s", wanted.model, entry.last_exit)
                self._wanted.remove(wanted.model)

    def status(self) -> dict[str, object]:
        return {
            "entries": len(self.directory),
            "wanted_models": [wanted.model for wanted in self._wanted.all()],
        }


def _failed(entry: Entry) -> bool:
    return entry.last_exit is not None and entry.last_exit.kind in _BAD_EXITS
