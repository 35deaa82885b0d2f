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
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from actors import messages as m
from actors.messages.actor_ids import model_actor_id, model_of
from actors.messages.model_table import ModelTable
from runtime.residency.folder import Folder, Offered
from runtime.residency.known import KnownModels
from runtime.residency.listing import page, state_of
from runtime.residency.memory import (
    Measured,
    Need,
    Taken,
    file_bytes,
    has_gpu,
    need_of,
    room_without,
    settled,
    taken_by,
)
from runtime.residency.moves import (
    Failed,
    Leave,
    Load,
    Pending,
    loading,
    unknown,
    why_no_room,
)
from runtime.residency.policy import Idle, Limits, Refusal, Resident, Wish, decide, expired
from runtime.residency.settings import ResidencyArgs
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
AGAIN_S: Final = 0.1
"""Until something is tried again that another process could not do."""
DRAIN_S: Final = 10.0
"""For requests that inflight does not know of, as it was being restarted."""
CRASHES: Final = 2
"""Of a process that loads a model; then its error is reported."""
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 60.0
"""Until a model that did not load is tried again; the pause doubles from the first to this."""
SOONEST_S: Final = 0.25
"""Between two looks at models that have requests."""
LATEST_S: Final = 3600.0
"""Until it is looked at again what sleeps in a year."""
ENDLESS_S: Final = 1e9
"""So long, or longer, is without end."""
SHARE_STEP: Final = 0.05


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
        self._table = ResidencyTable(args.table_path)
        self._known = KnownModels(args, self._table)
        self._measured = Measured(args.measured_path)
        self._on_gpu = has_gpu()
        self._askers: dict[str, dict[tuple[Address, str], None]] = {}
        self._wishes: dict[str, Pending] = {}
        self._loads: dict[str, Load] = {}
        self._leaves: dict[str, Leave] = {}
        self._failures: dict[str, Failed] = {}
        self._devices: dict[str, int] = {}
        """Bytes on GPUs, by model."""
        self._up: dict[str, int] = {}
        """Incarnations of models that are up."""
        self._uses: dict[str, m.ModelUse] = {}
        self._uses_ref: str | None = None
        self._lists: list[tuple[Address, m.ListModels]] = []
        self._has_looked = args.folder is None
        self._early: list[tuple[m.NeedModel | m.ListModels, Address]] = []
        """What was asked before it was known what the folder has."""
        self._next_look = float("inf")
        self._processes = self._incarnations()
        self._wanted = ModelTable(args.wanted_path)
        for model, _ in list(self._models()):
            self._model_changed(model)
        self.start_engine(self._work)
        self.after(FIRST_LOOK_S, _FIRST_LOOK)
        self._look()

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
                    wish = self._wishes.get(spec.model)
                    if wish is not None and wish.spec is spec:
                        wish.need = self._corrected(spec, need)
                        self._look()
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
                self._needed(message, sender)
            case m.ListModels():
                self._lists.append((sender, message))
                self._ask_uses()
            case m.SetKeepAlive(ref, model, seconds):
                self.tell(sender, m.KeepAliveSet(ref, self._set_keep_alive(model, seconds)))
            case m.UnloadModel(ref, model):
                self.tell(sender, m.ModelUnloaded(ref, was_loaded=self._table.forget(model)))
            case m.ModelUseListed():
                self._uses_listed(message)
            case m.ModelHeld():
                self._held(message)
            case m.ModelLoading(ref, share):
                self._progressed(ref, share)
            case m.ModelLoaded() | m.ModelNotLoaded():
                self._load_ended(message)
            case m.ModelUnloaded(ref):
                self._unloaded(ref)
            case StatusReported():
                self._reported(message.id, message.status)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def handle_timer(self, payload: object) -> None:
        if payload == _FIRST_LOOK:
            self._looked()
        elif isinstance(payload, _Again):
            if payload.at == self._next_look:
                self._next_look = float("inf")
            self._look()

    def _uses_listed(self, listed: m.ModelUseListed) -> None:
        if listed.ref != self._uses_ref:
            return  # of a question that is not waited for any more
        self._uses_ref = None
        self._uses = {one.model: one for one in listed.models}
        self._answer_lists()
        self._decide()

    # ── what is known ───────────────────────────────────────────────────────────────────────────

    def _found(self, models: dict[str, Offered]) -> None:
        """The folder has changed."""
        for model in self._known.found(models):
            self._failures.pop(model, None)  # of another file
            if model in self._args_given.at_start and model not in self._started:
                self._started.add(model)
                self._wish(self._known.of_file(models[model]), time.monotonic())
        self._looked()
        self._look()

    def _looked(self) -> None:
        """It is known what the folder has, or that takes too long."""
        self._has_looked = True
        early, self._early = self._early, []
        for message, sender in early:
            self.handle(message, sender)

    def _entry(self, model: str) -> Entry | None:
        return self.directory.get(model_actor_id(model))

    def _models(self) -> Iterator[tuple[str, Entry]]:
        """Those in the tree that are loaded, or on their way."""
        for one in self.directory.values():
            model = model_of(one.id)
            if model is not None and one.state != "down":
                yield model, one

    # ── wishes ──────────────────────────────────────────────────────────────────────────────────

    def _needed(self, asked: m.NeedModel, sender: Address) -> None:
        model, entry = asked.model, self._entry(asked.model)
        is_staying = model not in self._leaves
        if entry is not None and entry.is_up and is_staying:
            self.tell(sender, m.ModelLoaded(asked.ref, entry))
            return
        spec = self._known.spec(model) or (None if is_staying else self._leaves[model].spec)
        is_coming = entry is not None and entry.state in ("starting", "restarting", "up")
        if spec is None and not is_coming and model not in self._loads:
            self._read_wanted()
            if model not in self._wanted:  # else the registry brings it back
                self.tell(sender, replace(unknown(model), ref=asked.ref))
                return
        failed = self._failures.get(model)
        left_s = 0.0 if failed is None else failed.until - time.monotonic()
        if failed is not None and left_s > 0 and model not in self._wishes.keys() | self._loads:
            self.tell(sender, replace(failed.answer, ref=asked.ref, retry_after_s=left_s))
            return
        self.tell(sender, m.ModelAwaited(asked.ref))
        self._askers.setdefault(model, {})[sender, asked.ref] = None
        if spec is not None and (not is_coming or not is_staying):
            self._wish(spec, asked.since)
        self._look()

    def _wish(self, spec: m.LoadModel, since: float) -> None:
        if spec.model in self._loads:
            return
        wish = self._wishes.get(spec.model)
        if wish is None:
            self._wishes[spec.model] = Pending(spec, since)
            self.commands.put(_Weigh(spec))
        else:
            wish.since = min(wish.since, since)

    def _corrected(self, spec: m.LoadModel, need: Need) -> Need:
        """The need by what the model took when it ran last, where that is known."""
        taken = self._measured.get(spec)
        if taken is not None:
            return replace(need, n_bytes=taken.total, host_bytes=taken.host)
        return need if spec.params.check_memory else replace(need, host_bytes=0)

    def _answer(
        self, model: str, answer: m.ModelLoading | m.ModelLoaded | m.ModelNotLoaded
    ) -> None:
        """Tell all who wait for the model."""
        ends = not isinstance(answer, m.ModelLoading)
        for target, ref in list(self._askers.get(model, ())):
            self.tell(target, replace(answer, ref=ref))
        if ends:
            self._askers.pop(model, None)

    def _fail(self, model: str, failed: m.ModelNotLoaded) -> None:
        """It is not loaded: those who wait get the reason, and for some time those who come."""
        before = self._failures.get(model)
        times = 1 if before is None else before.times + 1
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 10))
        answer = replace(failed, retry_after_s=pause_s)
        self._failures[model] = Failed(answer, time.monotonic() + pause_s, times)
        self._answer(model, answer)

    # ── deciding ────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """Decide, with a fresh list of requests, if there is anything to decide."""
        self._read_wanted()
        self._follow_others()
        if self._wishes or self._is_limited() or self._keeps_some_alive():
            self._ask_uses()

    def _follow_others(self) -> None:
        """Models that others load: there is no message that one of them did not come up."""
        for model, load in list(self._loads.items()):
            if load.is_others and self._is_absent(model):
                del self._loads[model]
                self._wish_again(load.wish)
        waits = self._askers.keys() - self._loads.keys() - self._wishes.keys() - self._leaves.keys()
        for model in waits:
            entry, spec = self._entry(model), self._known.spec(model)
            if entry is not None and entry.is_up:
                self._answer(model, m.ModelLoaded("", entry))
            elif self._is_absent(model) and spec is not None:
                self._wish(spec, time.monotonic())
            elif self._is_absent(model) and model not in self._wanted:
                self._answer(model, unknown(model))
        if waits or any(load.is_others for load in self._loads.values()):
            self._look_in(SOONEST_S)

    def _is_absent(self, model: str) -> bool:
        entry = self._entry(model)
        return entry is None or entry.state in ("down", "stopping")

    def _is_limited(self) -> bool:
        args = self._args_given
        return args.max_models is not None or args.max_bytes is not None

    def _keeps_some_alive(self) -> bool:
        return any(self._keep_alive_s(model) is not None for model, _ in self._models())

    def _ask_uses(self) -> None:
        if self._uses_ref is not None:
            return
        ref = new_ref()
        if self.tell("inflight", m.ListModelUse(ref)):
            self._uses_ref = ref
        else:
            self._look_in(AGAIN_S)

    def _look_in(self, seconds: float) -> None:
        seconds = min(max(seconds, 0.0), LATEST_S)
        at = time.monotonic() + seconds
        if at < self._next_look:
            self._next_look = at
            self.after(seconds, _Again(at))

    def _decide(self) -> None:
        self._read_wanted()
        taken = self._taken()
        residents = [self._resident(*one, taken) for one in self._models()]
        there = {one.model for one in residents}
        residents += [loading(load) for model, load in self._loads.items() if model not in there]
        room = room_without(list(taken.values()))
        limits = Limits(self._args_given.max_models, self._args_given.max_bytes, room)
        wishes = self._ripe({one.model for one in residents}, room)
        plan = decide(residents, wishes, limits)
        for refusal in plan.refused:
            self._cannot_be(refusal, limits)
        for model in plan.loads:
            self._load(model, residents, limits)
        for one in plan.leaves:
            self._begin_to_leave(one.model, if_idle=not one.is_busy)
        self._let_sleep(residents)

    def _taken(self) -> dict[str, Taken]:
        """What the processes of loaded models take; noted for when they are loaded again."""
        found: dict[str, Taken] = {}
        for model, entry in self._models():
            taken = None if entry.pid is None else taken_by(entry.pid)
            if taken is None:
                continue
            found[model] = replace(taken, device=self._devices.get(model, 0))
            spec = self._wanted.get(model)
            if entry.is_up and spec is not None:
                self._measured.note(spec, found[model])
        return found

    def _read_wanted(self) -> None:
        """What the registry has loaded, and how."""
        self._wanted = ModelTable(self._args_given.wanted_path)

    def _resident(self, model: str, entry: Entry, taken: dict[str, Taken]) -> Resident:
        now = taken.get(model, Taken(0, 0))
        load = self._loads.get(model)
        need = Need() if load is None or load.wish.need is None else load.wish.need
        is_up = entry.is_up
        return Resident(
            model,
            max(now.total, need.n_bytes) if not is_up else now.total,
            max(now.host, need.host_bytes) if not is_up else now.host,
            self._last_use(model, entry),
            self._is_pinned(model),
            is_busy=self._n_requests(model) > 0,
            is_loading=not is_up and entry.state != "stopping",
            is_leaving=model in self._leaves or entry.state == "stopping",
        )

    def _last_use(self, model: str, entry: Entry) -> float:
        """Monotonic seconds: of its last request, or when it was loaded."""
        loaded = time.monotonic() - max(0.0, time.time() - entry.started_at)
        use = self._uses.get(model)
        return loaded if use is None else max(use.last_use, loaded)

    def _n_requests(self, model: str) -> int:
        use = self._uses.get(model)
        return 0 if use is None else use.n_requests

    def _is_pinned(self, model: str) -> bool:
        spec = self._wanted.get(model) or self._known.spec(model)
        return spec is not None and spec.pin

    def _ripe(self, there: set[str], room: int | None) -> list[Wish]:
        """The wishes that can be decided now: none before an older one."""
        pids = {entry.pid for _, entry in self._models()}
        found = []
        for model, wish in sorted(self._wishes.items(), key=lambda one: one[1].since):
            if wish.need is None or model in there or wish.after & pids:
                break
            host = wish.need.host_bytes
            if wish.need.is_upper_bound and room is not None:
                host = min(host, room)
            found.append(Wish(model, wish.need.n_bytes, host, wish.since))
        return found

    def _cannot_be(self, refusal: Refusal, limits: Limits) -> None:
        model = refusal.wish.model
        del self._wishes[model]
        detail = why_no_room(refusal, limits)
        answer = m.ModelNotLoaded("", m.LoadFailure.NO_ROOM, "NotEnoughMemory", detail)
        self._fail(model, answer)

    # ── loading ─────────────────────────────────────────────────────────────────────────────────

    def _load(self, model: str, residents: list[Resident], limits: Limits) -> None:
        wish = self._wishes.pop(model)
        spec = wish.spec
        if wish.need is not None:
            left = []
            if limits.max_bytes is not None:
                left.append(limits.max_bytes - sum(one.n_bytes for one in residents))
            if limits.room is not None:
                left.append(limits.room - sum(one.host_bytes for one in residents))
            headers = wish.need.headers
            params = settled(spec.params, headers, min(left, default=None))
            spec = replace(spec, params=params)
            wish.need = replace(wish.need, headers=())
        wish.spec = spec
        self._loads[model] = load = Load(new_ref(), spec, wish)
        self._send_load(load)

    def _send_load(self, load: Load) -> None:
        # If there is no registry, the next one is asked, see ``directory_changed``.
        self.tell("registry", replace(load.spec, ref=load.ref))

    def _load_of(self, ref: str) -> Load | None:
        return next((one for one in self._loads.values() if one.ref == ref), None)

    def _progressed(self, ref: str, share: float) -> None:
        load = self._load_of(ref)
        if load is not None and (share - load.share >= SHARE_STEP or share >= 1.0):
            load.share = share
            self._answer(load.spec.model, m.ModelLoading("", share))

    def _load_ended(self, ended: m.ModelLoaded | m.ModelNotLoaded) -> None:
        load = self._load_of(ended.ref)
        if load is None:
            return
        model = load.spec.model
        if isinstance(ended, m.ModelLoaded):
            self._came_up(model, ended.entry)
            return
        is_taken = ended.reason is m.LoadFailure.ALREADY_LOADED
        entry = self._entry(model)
        if is_taken and entry is not None and entry.state != "down":
            if entry.is_up:
                self._came_up(model, entry)
            else:
                load.is_others = True
                self._look_in(AGAIN_S)
            return
        del self._loads[model]
        wish = load.wish
        wish.tries += 1
        if is_taken or self._is_tried_again(ended, wish):
            self._wish_again(wish)
        else:
            self._fail(model, ended)
            self._look()

    def _is_tried_again(self, ended: m.ModelNotLoaded, wish: Pending) -> bool:
        """Whether another attempt may end otherwise."""
        match ended.reason:
            case m.LoadFailure.CRASHED:
                return wish.tries < CRASHES
            case m.LoadFailure.UNAVAILABLE:
                return True
            case _:
                return ended.kind == "NotEnoughMemory" and self._make_room(wish)

    def _wish_again(self, wish: Pending) -> None:
        wish.need = wish.need or Need()
        self._wishes[wish.spec.model] = wish
        self._look_in(AGAIN_S)

    def _make_room(self, wish: Pending) -> bool:
        """It took more than was expected, as on a GPU: whether another model leaves for it."""
        idle = [
            (self._last_use(model, entry), model, entry.pid)
            for model, entry in self._models()
            if entry.is_up and not self._is_pinned(model) and model not in self._leaves
        ]
        if not idle:
            return False
        _, model, pid = min(idle, key=lambda one: (self._n_requests(one[1]) > 0, one[0]))
        self._begin_to_leave(model, if_idle=False)
        wish.after = frozenset(() if pid is None else (pid,))
        return model in self._leaves

    def _came_up(self, model: str, entry: Entry) -> None:
        self._loads.pop(model, None)
        self._wishes.pop(model, None)
        self._failures.pop(model, None)
        self._table.forget(model)
        self._answer(model, m.ModelLoaded("", entry))
        if self._up.get(model) != entry.incarnation:
            self._up[model] = entry.incarnation
            self.tell(entry.id, ReportStatus(new_ref()))
        self._look()

    def _reported(self, actor: str, status: dict[str, object]) -> None:
        """A model reports what it takes on GPUs."""
        model, taken = model_of(actor), status.get("memory_taken")
        if model is not None and isinstance(taken, dict):
            self._devices[model] = sum(
                n for name, n in taken.items() if name.startswith("device_") and isinstance(n, int)
            )

    # ── leaving ─────────────────────────────────────────────────────────────────────────────────

    def _begin_to_leave(self, model: str, *, if_idle: bool) -> None:
        """Begin to unload it; first nothing new may begin in it."""
        spec, entry = self._wanted.get(model), self._entry(model)
        if spec is None or entry is None or model in self._leaves:
            return  # a caller unloads it
        ref = new_ref()
        if self.tell("inflight", m.HoldModel(ref, model, entry.incarnation, if_idle)):
            self._leaves[model] = Leave(ref, spec, if_idle)
        else:
            self._look_in(AGAIN_S)

    def _held(self, held: m.ModelHeld) -> None:
        leave = self._leaves.get(held.model)
        if leave is None or leave.ref != held.ref or leave.is_unloading:
            return
        if not held.is_held:
            del self._leaves[held.model]
            self._look_in(AGAIN_S)
            return
        self._read_wanted()
        entry, spec = self._entry(held.model), self._wanted.get(held.model)
        if entry is None or spec is None:  # a caller has unloaded it meanwhile
            del self._leaves[held.model]
            self.tell("inflight", m.ReleaseModel(held.model))
            return
        leave.is_unloading = True
        self._table.put_to_sleep(spec, self._last_use(held.model, entry))
        self._unload(held.model, leave)

    def _unload(self, model: str, leave: Leave) -> None:
        self.tell("registry", m.UnloadModel(leave.ref, model, DRAIN_S))

    def _unloaded(self, ref: str) -> None:
        for model, leave in list(self._leaves.items()):
            if leave.ref == ref:
                self._left(model)

    def _left(self, model: str) -> None:
        """Its process is gone. What has come for it meanwhile wakes it, in its turn."""
        leave = self._leaves.pop(model)
        if self._askers.get(model):
            self._wish(leave.spec, time.monotonic())
        self._up.pop(model, None)
        self._devices.pop(model, None)
        self._table.set_keep_alive(model, None)
        self.tell("inflight", m.ReleaseModel(model))
        self._look()

    # ── sleeping ────────────────────────────────────────────────────────────────────────────────

    def _keep_alive_s(self, model: str) -> float | None:
        """None: without end."""
        spec = self._wanted.get(model) or self._known.spec(model)
        if spec is not None and spec.pin:
            return None
        found = self._table.keep_alive(model)
        if found is None and spec is not None:
            found = spec.keep_alive_s
        if found is None:
            found = self._args_given.keep_alive_s
        return None if found is None or not 0 <= found <= ENDLESS_S else found

    def _set_keep_alive(self, model: str, seconds: float | None) -> bool:
        if (
            self._entry(model) is None
            and self._known.spec(model) is None
            and model not in self._loads
        ):
            return False
        self._table.set_keep_alive(model, seconds)
        self._look()
        return True

    def _let_sleep(self, residents: list[Resident]) -> None:
        """Those whose time is over leave; look again when the next one's is."""
        now = time.monotonic()
        up = [one for one in residents if not (one.is_loading or one.is_leaving)]
        idle, soonest = [], float("inf")
        for one in up:
            keep_s = self._keep_alive_s(one.model)
            if keep_s is None or one.model in self._leaves:
                continue
            if one.is_busy:
                soonest = min(soonest, max(keep_s, SOONEST_S))
            else:
                idle.append(Idle(one.model, one.last_use, keep_s))
        due, next_at = expired(idle, now)
        for model in due:
            self._begin_to_leave(model, if_idle=True)
        if next_at is not None:
            soonest = min(soonest, next_at - now)
        if soonest < float("inf"):
            self._look_in(soonest)

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
            self._registry_is_new()
        self._look()

    def directory_removed(self, removed: tuple[Entry, ...]) -> None:
        """The process of a model that has left is gone: there is room for another one."""
        models = [model for one in removed if (model := model_of(one.id)) is not None]
        for model in models:
            self._model_changed(model)
        if models:
            self._look()

    def _model_changed(self, model: str) -> None:
        entry = self._entry(model)
        if entry is not None and entry.is_up:
            # A caller may have loaded it, or it was started again after a crash.
            is_known = self._up.get(model) == entry.incarnation and model not in self._loads
            if model not in self._leaves and not is_known:
                self._came_up(model, entry)
        elif self._is_absent(model) and model not in self._leaves:  # a caller has unloaded it
            self._up.pop(model, None)
            self._devices.pop(model, None)
            self._table.set_keep_alive(model, None)

    def _inflight_is_new(self) -> None:
        """It knows of no question and of no hold."""
        self._uses_ref = None
        for model, leave in list(self._leaves.items()):
            entry = self._entry(model)
            if not leave.is_unloading and entry is not None:
                leave.ref = new_ref()
                hold = m.HoldModel(leave.ref, model, entry.incarnation, leave.if_idle)
                self.tell("inflight", hold)
        if self._lists:
            self._ask_uses()

    def _registry_is_new(self) -> None:
        """It has the table of what is to be loaded, and does not know who waits for it."""
        for load in self._loads.values():
            self._send_load(load)
        for model, leave in self._leaves.items():
            if leave.is_unloading:
                self._unload(model, leave)

    # ── what is shown ───────────────────────────────────────────────────────────────────────────

    def _answer_lists(self) -> None:
        lists, self._lists = self._lists, []
        if not lists:
            return
        self._read_wanted()
        names = {*self._known.names(), *self._loads, *(model for model, _ in self._models())}
        taken = self._taken()
        models = [self._shown(name, taken.get(name)) for name in sorted(names)]
        for target, asked in lists:
            self.tell(target, page(models, asked))

    def _shown(self, model: str, taken: Taken | None) -> m.KnownModel:
        entry, asleep = self._entry(model), self._table.get(model)
        spec = self._wanted.get(model) or self._known.spec(model) or m.LoadModel("", model, "")
        failed = self._failures.get(model)
        state, failure = state_of(
            entry,
            is_coming=model in self._loads or model in self._wishes,
            is_leaving=model in self._leaves,
            failure=None if failed is None else failed.answer.detail,
            is_asleep=asleep is not None,
        )
        last = asleep.last_use if asleep is not None else None
        keep_s = self._keep_alive_s(model)
        expires = None
        unix = time.time() - time.monotonic()
        if entry is not None and entry.is_up:
            last = self._last_use(model, entry)
            if keep_s is not None:
                begins = time.monotonic() if self._n_requests(model) else last
                expires = unix + begins + keep_s
        measured = taken or self._measured.get(spec)
        offered = self._known.offered.get(model)
        return m.KnownModel(
            model,
            state,
            spec.path,
            file_bytes(spec.path) if offered is None else offered.n_bytes,
            None if measured is None else measured.total,
            spec.pin,
            keep_s,
            None if last is None else unix + last,
            expires,
            failure[:512],
        )

    def status(self) -> dict[str, object]:
        return {
            "known": len(self._known),
            "asleep": sorted(self._table.asleep),
            "wanted": sorted(self._wishes),
            "loading": sorted(self._loads),
            "leaving": sorted(self._leaves),
            "folder": self._args_given.folder,
        }
