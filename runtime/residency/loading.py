"""Models that are to be loaded: who waits for them, in what order, how it ends, and what failed.

A model is wished for, weighed, chosen by the policy, loaded by the registry, and then those who
wait are answered. One that did not load is not tried again for a while.
"""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from actors import messages as m
from runtime.residency.failures import Failures, unknown
from runtime.residency.leaving import Leaving
from runtime.residency.memory import Need, settled
from runtime.residency.moves import Load, Pending, loading
from runtime.residency.outside import AGAIN_S, Outside
from runtime.residency.policy import Limits, Resident, Wish
from runtime.residency.readings import Readings
from runtime.residency.sleeping import SOONEST_S
from supervision.messages import new_ref

if TYPE_CHECKING:
    from supervision import Address, Entry

CRASHES: Final = 2
"""Of a process that loads a model; then its error is reported."""
SHARE_STEP: Final = 0.05


class Loading:
    """Wishes, loads, and those who wait for them."""

    def __init__(self, outside: Outside, readings: Readings, leaving: Leaving) -> None:
        """``leaving``: begins for a model that did not fit, though it was expected to."""
        self._outside = outside
        self._readings = readings
        self._leaving = leaving
        self._askers: dict[str, dict[tuple[Address, str], None]] = {}
        self._wishes: dict[str, Pending] = {}
        self._loads: dict[str, Load] = {}
        self.failures = Failures()

    def __contains__(self, model: object) -> bool:
        """Whether the model is wished for, or is being loaded."""
        return model in self._wishes or model in self._loads

    def wished(self) -> set[str]:
        return set(self._wishes)

    def loads(self) -> set[str]:
        return set(self._loads)

    # ── wishes ──────────────────────────────────────────────────────────────────────────────────

    def needed(self, asked: m.NeedModel, sender: Address) -> None:
        """A model is needed: answered at once, or when it is loaded or cannot be."""
        model, entry = asked.model, self._readings.entry(asked.model)
        is_staying = model not in self._leaving
        if entry is not None and entry.is_up and is_staying:
            self._outside.tell(sender, m.ModelLoaded(asked.ref, entry))
            return
        spec = self._readings.known.spec(model) or self._leaving.spec(model)
        is_coming = entry is not None and entry.state in ("starting", "restarting", "up")
        if spec is None and not is_coming and model not in self._loads:
            self._readings.refresh()
            if model not in self._readings.wanted:  # else the registry brings it back
                self._outside.tell(sender, replace(unknown(model), ref=asked.ref))
                return
        failed = None if model in self else self.failures.answer(model, time.monotonic())
        if failed is not None:
            self._outside.tell(sender, replace(failed, ref=asked.ref))
            return
        self._outside.tell(sender, m.ModelAwaited(asked.ref))
        self._askers.setdefault(model, {})[sender, asked.ref] = None
        if spec is not None and (not is_coming or not is_staying):
            self.wish(spec, asked.since)
        self._outside.look()

    def wish(self, spec: m.LoadModel, since: float) -> None:
        """Have it loaded in its turn, unless it is being loaded."""
        if spec.model in self._loads:
            return
        wish = self._wishes.get(spec.model)
        if wish is None:
            self._wishes[spec.model] = Pending(spec, since)
            self._outside.weigh(spec)
        else:
            wish.since = min(wish.since, since)

    def wish_if_asked(self, spec: m.LoadModel) -> None:
        """It has left; what has come for it meanwhile wakes it, in its turn."""
        if self._askers.get(spec.model):
            self.wish(spec, time.monotonic())

    def weighed(self, spec: m.LoadModel, need: Need) -> None:
        """It is known what it needs."""
        wish = self._wishes.get(spec.model)
        if wish is not None and wish.spec is spec:
            wish.need = self._corrected(spec, need)
            self._outside.look()

    def ripe(self, there: Set[str], room: int | None) -> list[Wish]:
        """The wishes that can be decided now: none before an older one.

        ``there``: models in the tree, or being loaded. ``room``: bytes of the host.
        """
        pids = {entry.pid for _, entry in self._readings.models()}
        found = []
        for model, wish in sorted(self._wishes.items(), key=lambda one: one[1].since):
            if wish.need is None or model in there or wish.after & pids:
                break
            host = wish.need.host_bytes
            if wish.need.is_upper_bound and room is not None:
                host = min(host, room)
            found.append(Wish(model, wish.need.n_bytes, host, wish.since))
        return found

    def refuse(self, model: str, detail: str) -> None:
        """There is no room for it, and will be none."""
        del self._wishes[model]
        answer = m.ModelNotLoaded("", m.LoadFailure.NO_ROOM, "NotEnoughMemory", detail)
        self._fail(model, answer)

    def _corrected(self, spec: m.LoadModel, need: Need) -> Need:
        """The need by what the model took when it ran last, where that is known."""
        taken = self._readings.measured(spec)
        if taken is not None:
            return replace(need, n_bytes=taken.total, host_bytes=taken.host)
        return need if spec.params.check_memory else replace(need, host_bytes=0)

    # ── loads ───────────────────────────────────────────────────────────────────────────────────

    def need(self, model: str) -> Need:
        """What a model that is being loaded is expected to take."""
        load = self._loads.get(model)
        return Need() if load is None or load.wish.need is None else load.wish.need

    def residents_beside(self, there: Set[str]) -> list[Resident]:
        """Models that are being loaded and are not in the tree yet."""
        return [loading(load) for model, load in self._loads.items() if model not in there]

    def load(self, model: str, residents: list[Resident], limits: Limits) -> None:
        """Its turn has come; its context is one that fits beside these."""
        wish = self._wishes.pop(model)
        if wish.need is not None:
            params = settled(wish.spec.params, wish.need.headers, limits.left_beside(residents))
            wish.spec = replace(wish.spec, params=params)
            wish.need = replace(wish.need, headers=())
        self._loads[model] = load = Load(new_ref(), wish.spec, wish)
        self._send(load)

    def progressed(self, ref: str, share: float) -> None:
        load = self._load_of(ref)
        if load is not None and (share - load.share >= SHARE_STEP or share >= 1.0):
            load.share = share
            self._answer(load.spec.model, m.ModelLoading("", share))

    def ended(self, ended: m.ModelLoaded | m.ModelNotLoaded) -> Entry | None:
        """The registry has answered; returns the entry of a model that came up."""
        load = self._load_of(ended.ref)
        if load is None:
            return None
        model = load.spec.model
        if isinstance(ended, m.ModelLoaded):
            return ended.entry
        is_taken = ended.reason is m.LoadFailure.ALREADY_LOADED
        entry = self._readings.entry(model)
        if is_taken and entry is not None and entry.state != "down":
            if entry.is_up:
                return entry
            load.is_others = True
            self._outside.look_in(AGAIN_S)
            return None
        del self._loads[model]
        load.wish.tries += 1
        if is_taken or self._is_tried_again(ended, load.wish):
            self._wish_again(load.wish)
        else:
            self._fail(model, ended)
            self._outside.look()
        return None

    def came_up(self, model: str, entry: Entry) -> None:
        """It is loaded, by whomever: those who wait are answered."""
        self._loads.pop(model, None)
        self._wishes.pop(model, None)
        self.failures.forget(model)
        self._answer(model, m.ModelLoaded("", entry))

    def registry_is_new(self) -> None:
        """It has the table of what is to be loaded, and does not know who waits for it."""
        for load in self._loads.values():
            self._send(load)

    def follow_others(self) -> None:
        """Models that others load: there is no message that one of them did not come up."""
        for model, load in list(self._loads.items()):
            if load.is_others and self._readings.is_absent(model):
                del self._loads[model]
                self._wish_again(load.wish)
        waits = self._askers.keys() - self._loads.keys() - self._wishes.keys()
        waits -= self._leaving.names()
        for model in waits:
            self._follow(model)
        if waits or any(load.is_others for load in self._loads.values()):
            self._outside.look_in(SOONEST_S)

    def _follow(self, model: str) -> None:
        entry, spec = self._readings.entry(model), self._readings.known.spec(model)
        if entry is not None and entry.is_up:
            self._answer(model, m.ModelLoaded("", entry))
        elif self._readings.is_absent(model) and spec is not None:
            self.wish(spec, time.monotonic())
        elif self._readings.is_absent(model) and model not in self._readings.wanted:
            self._answer(model, unknown(model))

    def _send(self, load: Load) -> None:
        # If there is no registry, the next one is asked, see ``registry_is_new``.
        self._outside.tell("registry", replace(load.spec, ref=load.ref))

    def _load_of(self, ref: str) -> Load | None:
        return next((one for one in self._loads.values() if one.ref == ref), None)

    # ── when one does not come up ───────────────────────────────────────────────────────────────

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
        self._outside.look_in(AGAIN_S)

    def _make_room(self, wish: Pending) -> bool:
        """It took more than was expected, as on a GPU: whether another model leaves for it."""
        readings = self._readings
        may_leave = [
            (readings.n_requests(model) > 0, readings.last_use(model, entry), model, entry.pid)
            for model, entry in readings.models()
            if entry.is_up and not readings.is_pinned(model) and model not in self._leaving
        ]
        if not may_leave:
            return False
        _, _, model, pid = min(may_leave, key=lambda one: one[:2])
        self._leaving.begin(model, if_idle=False)
        wish.after = frozenset(() if pid is None else (pid,))
        return model in self._leaving

    def _fail(self, model: str, failed: m.ModelNotLoaded) -> None:
        """Those who wait get the reason, and for some time those who come."""
        self._answer(model, self.failures.note(model, failed, time.monotonic()))

    def _answer(
        self, model: str, answer: m.ModelLoading | m.ModelLoaded | m.ModelNotLoaded
    ) -> None:
        """Tell all who wait for the model."""
        for target, ref in list(self._askers.get(model, ())):
            self._outside.tell(target, replace(answer, ref=ref))
        if not isinstance(answer, m.ModelLoading):
            self._askers.pop(model, None)
