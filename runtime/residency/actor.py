"""Which models are in memory: the actor that has them loaded and unloaded.

Owns: the list of models that are known, and of those that sleep. Answers: ``NeedModel``,
``ListModels``, ``SetKeepAlive``, ``UnloadModel`` of a model that sleeps. Asks: inflight, which
requests there are and to hold them; the registry, to load and unload. What is done is decided in
``residency.policy``; files and headers are read on the engine thread, as a disk may be slow.

A model leaves memory in three steps: inflight holds what comes for it, and reports when nothing
runs there; its spec is noted; the registry unloads it, and the model's process saves what is in its
context as it ends. When this actor dies, inflight releases what was held, and asks its successor
again for each model that requests wait for.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actors import messages as m
from actors.messages.actor_ids import model_of
from runtime.residency.failures import why_no_room
from runtime.residency.folder import Folder, Offered
from runtime.residency.known import KnownModels
from runtime.residency.leaving import Leaving
from runtime.residency.lists import Lists
from runtime.residency.loading import Loading
from runtime.residency.memory import Measured, Need, Taken, has_gpu, need_of, room_without
from runtime.residency.outside import AGAIN_S
from runtime.residency.policy import Limits, Resident, decide
from runtime.residency.readings import Readings
from runtime.residency.settings import ResidencyArgs
from runtime.residency.sleeping import Sleeping
from runtime.residency.table import ResidencyTable
from supervision import EngineWorker
from supervision.messages import ReportStatus, StatusReported, new_ref

if TYPE_CHECKING:
    from supervision import Address, Entry

LOOK_EVERY_S: Final = 1.0
"""At the folder."""
FIRST_LOOK_S: Final = 4.0
"""After which a folder that cannot be read in time counts as empty."""
_FIRST_LOOK: Final = "first look"
LATEST_S: Final = 3600.0
"""Until it is looked at again what sleeps in a year."""


@dataclass(frozen=True, slots=True)
class _Again:
    """Timer: decide again."""

    at: float


@dataclass(frozen=True, slots=True)
class _Weigh:
    """Mailbox → thread: what does this model need?"""

    spec: m.LoadModel


@dataclass(frozen=True, slots=True)
class _Weighed:
    """Thread → mailbox."""

    spec: m.LoadModel
    need: Need


@dataclass(frozen=True, slots=True)
class _Found:
    """Thread → mailbox: the models of the folder, all of them."""

    models: dict[str, Offered] = field(repr=False)


class ResidencyActor(EngineWorker):
    """Carries readings and wishes to the policy, and its decisions to inflight and the registry."""

    def init(self, args: object) -> None:
        if not isinstance(args, ResidencyArgs):
            raise TypeError(f"residency is started with ResidencyArgs, not {args!r}")
        self._args_given = args
        self._started: set[str] = set()
        self._on_gpu = has_gpu()
        self._table = ResidencyTable(args.table_path)
        self._known = KnownModels(args, self._table)
        self._readings = Readings(
            lambda: self.directory, args.wanted_path, self._known, Measured(args.measured_path)
        )
        self._sleeping = Sleeping(args.keep_alive_s, self._readings, self._table)
        self._leaving = Leaving(self, self._readings, self._table)
        self._loading = Loading(self, self._readings, self._leaving)
        self._lists = Lists(
            self, self._readings, self._table, self._loading, self._leaving, self._sleeping
        )
        self._uses_ref: str | None = None
        self._has_looked = args.folder is None
        self._early: list[tuple[m.NeedModel | m.ListModels, Address]] = []
        """What was asked before it was known what the folder has."""
        self._next_look = float("inf")
        self._processes = self._incarnations()
        for model, _ in list(self._readings.models()):
            self._model_changed(model)
        self.start_engine(self._work)
        self.after(FIRST_LOOK_S, _FIRST_LOOK)
        self.look()

    # ── engine thread ───────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        path = self._args_given.folder
        folder = None if path is None else Folder(Path(path), self.post)
        found: dict[str, Offered] | None = None
        while True:
            if folder is not None and (now := folder.look()) != found:
                found = now
                self.post(_Found(now))
            try:
                command = self.commands.get(timeout=None if folder is None else LOOK_EVERY_S)
            except queue.Empty:
                continue
            if isinstance(command, _Weigh):
                self.post(_Weighed(command.spec, need_of(command.spec, on_gpu=self._on_gpu)))

    # ── mailbox ─────────────────────────────────────────────────────────────────────────────────

    def handle_events(self, events: list[object]) -> None:
        for event in events:
            match event:
                case _Found(models):
                    self._found(models)
                case _Weighed(spec, need):
                    self._loading.weighed(spec, need)
                case str(text):
                    self.log.warning("%s", text)
                case _:
                    raise TypeError(f"the thread posted {event!r}: a bug in it")

    def handle(self, message: object, sender: Address) -> None:
        if isinstance(message, m.NeedModel | m.ListModels) and not self._has_looked:
            self._early.append((message, sender))
            return
        match message:
            case m.NeedModel():
                self._loading.needed(message, sender)
            case m.ListModels():
                self._lists.ask(message, sender)
                self._ask_uses()
            case m.SetKeepAlive(ref, model, seconds):
                self.tell(sender, m.KeepAliveSet(ref, self._set_keep_alive(model, seconds)))
            case m.UnloadModel(ref, model):
                self.tell(sender, m.ModelUnloaded(ref, was_loaded=self._table.forget(model)))
            case m.ModelUseListed():
                self._uses_listed(message)
            case m.ModelHeld():
                self._leaving.held(message)
            case m.ModelLoading(ref, share):
                self._loading.progressed(ref, share)
            case m.ModelLoaded() | m.ModelNotLoaded():
                self._load_ended(message)
            case m.ModelUnloaded(ref):
                self._unloaded(ref)
            case StatusReported():
                self._readings.note_status(model_of(message.id), message.status)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def handle_timer(self, payload: object) -> None:
        if payload == _FIRST_LOOK:
            self._looked()
        elif isinstance(payload, _Again):
            if payload.at == self._next_look:
                self._next_look = float("inf")
            self.look()

    # ── what comes in ───────────────────────────────────────────────────────────────────────────

    def _found(self, models: dict[str, Offered]) -> None:
        """The folder has changed."""
        for model in self._known.found(models):
            self._loading.failures.forget(model)  # of another file
            if model in self._args_given.at_start and model not in self._started:
                self._started.add(model)
                self._loading.wish(self._known.of_file(models[model]), time.monotonic())
        self._looked()
        self.look()

    def _looked(self) -> None:
        """It is known what the folder has, or that takes too long."""
        self._has_looked = True
        early, self._early = self._early, []
        for message, sender in early:
            self.handle(message, sender)

    def _uses_listed(self, listed: m.ModelUseListed) -> None:
        if listed.ref != self._uses_ref:
            return  # of a question that is not waited for any more
        self._uses_ref = None
        self._readings.uses = {one.model: one for one in listed.models}
        self._lists.answer()
        self._decide()

    def _load_ended(self, ended: m.ModelLoaded | m.ModelNotLoaded) -> None:
        entry = self._loading.ended(ended)
        if entry is not None:
            self._came_up(entry)

    def _came_up(self, entry: Entry) -> None:
        """A model is up: loaded by us or a caller, or started again after a crash."""
        model = model_of(entry.id) or ""
        self._table.forget(model)
        self._loading.came_up(model, entry)
        if not self._readings.is_noted(model, entry):
            self._readings.note_up(model, entry)
            self.tell(entry.id, ReportStatus(new_ref()))
        self.look()

    def _unloaded(self, ref: str) -> None:
        """The registry has unloaded a model; what has come for it is asked for, in its turn."""
        spec = self._leaving.ended(ref)
        if spec is None:
            return
        self._loading.wish_if_asked(spec)
        self._gone(spec.model)
        self._leaving.release(spec.model)
        self.look()

    def _gone(self, model: str) -> None:
        """Its process is, and what a caller has set for it with it."""
        self._readings.forget(model)
        self._sleeping.set(model, None)

    def _set_keep_alive(self, model: str, seconds: float | None) -> bool:
        """Whether there is such a model."""
        is_there = self._readings.entry(model) is not None or model in self._loading.loads()
        if not is_there and self._known.spec(model) is None:
            return False
        self._sleeping.set(model, seconds)
        self.look()
        return True

    # ── deciding ────────────────────────────────────────────────────────────────────────────────

    def weigh(self, spec: m.LoadModel) -> None:
        """Have its headers read."""
        self.commands.put(_Weigh(spec))

    def look(self) -> None:
        """Decide, with a fresh list of requests, if there is anything to decide."""
        self._readings.refresh()
        self._loading.follow_others()
        args = self._args_given
        is_limited = args.max_models is not None or args.max_bytes is not None
        if self._loading.wished() or is_limited or self._sleeping.keeps_some_alive():
            self._ask_uses()

    def look_in(self, seconds: float) -> None:
        """The same in so many seconds."""
        seconds = min(max(seconds, 0.0), LATEST_S)
        at = time.monotonic() + seconds
        if at < self._next_look:
            self._next_look = at
            self.after(seconds, _Again(at))

    def _ask_uses(self) -> None:
        if self._uses_ref is not None:
            return
        ref = new_ref()
        if self.tell("inflight", m.ListModelUse(ref)):
            self._uses_ref = ref
        else:
            self.look_in(AGAIN_S)

    def _decide(self) -> None:
        self._readings.refresh()
        taken = self._readings.taken()
        residents = [self._resident(*one, taken) for one in self._readings.models()]
        residents += self._loading.residents_beside({one.model for one in residents})
        room = room_without(list(taken.values()))
        limits = Limits(self._args_given.max_models, self._args_given.max_bytes, room)
        wishes = self._loading.ripe({one.model for one in residents}, room)
        plan = decide(residents, wishes, limits)
        for refusal in plan.refused:
            self._loading.refuse(refusal.wish.model, why_no_room(refusal, limits))
        for model in plan.loads:
            self._loading.load(model, residents, limits)
        for one in plan.leaves:
            self._leaving.begin(one.model, if_idle=not one.is_busy)
        self._let_sleep(residents)

    def _resident(self, model: str, entry: Entry, taken: dict[str, Taken]) -> Resident:
        now, need = taken.get(model, Taken(0, 0)), self._loading.need(model)
        is_up = entry.is_up
        return Resident(
            model,
            max(now.total, need.n_bytes) if not is_up else now.total,
            max(now.host, need.host_bytes) if not is_up else now.host,
            self._readings.last_use(model, entry),
            self._readings.is_pinned(model),
            is_busy=self._readings.n_requests(model) > 0,
            is_loading=not is_up and entry.state != "stopping",
            is_leaving=model in self._leaving or entry.state == "stopping",
        )

    def _let_sleep(self, residents: list[Resident]) -> None:
        """Those whose time is over leave; look again when the next one's is."""
        staying = [one for one in residents if one.model not in self._leaving]
        due, next_s = self._sleeping.due(staying, time.monotonic())
        for model in due:
            self._leaving.begin(model, if_idle=True)
        if next_s is not None:
            self.look_in(next_s)

    # ── the tree ────────────────────────────────────────────────────────────────────────────────

    def _incarnations(self) -> dict[str, int | None]:
        """Of those that are asked, while they are up."""
        entries = {one: self.directory.get(one) for one in ("inflight", "registry")}
        return {
            name: entry.incarnation if entry is not None and entry.is_up else None
            for name, entry in entries.items()
        }

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        for one in changed:
            model = model_of(one.id)
            if model is not None:
                self._model_changed(model)
        now, before = self._incarnations(), self._processes
        self._processes = now
        if now["inflight"] is not None and now["inflight"] != before["inflight"]:
            self._inflight_is_new()
        if now["registry"] is not None and now["registry"] != before["registry"]:
            self._loading.registry_is_new()
            self._leaving.registry_is_new()
        self.look()

    def directory_removed(self, removed: tuple[Entry, ...]) -> None:
        """The process of a model that has left is gone: there is room for another one."""
        models = [model for one in removed if (model := model_of(one.id)) is not None]
        for model in models:
            self._model_changed(model)
        if models:
            self.look()

    def _model_changed(self, model: str) -> None:
        entry = self._readings.entry(model)
        if model in self._leaving:
            return
        if entry is not None and entry.is_up:
            # A caller may have loaded it, or it was started again after a crash.
            is_expected = model in self._loading.loads()
            if is_expected or not self._readings.is_noted(model, entry):
                self._came_up(entry)
        elif self._readings.is_absent(model):  # a caller has unloaded it
            self._gone(model)

    def _inflight_is_new(self) -> None:
        """It knows of no question and of no hold."""
        self._uses_ref = None
        self._leaving.inflight_is_new()
        if len(self._lists):
            self._ask_uses()

    # ── what is shown ───────────────────────────────────────────────────────────────────────────

    def status(self) -> dict[str, object]:
        return {
            "known": len(self._known),
            "asleep": sorted(self._table.asleep),
            "wanted": sorted(self._loading.wished()),
            "loading": sorted(self._loading.loads()),
            "leaving": sorted(self._leaving.names()),
            "folder": self._args_given.folder,
        }
