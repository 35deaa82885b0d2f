"""Models that load, leave and sleep: each part of the actor alone, with a tree of words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from actors import messages as m
from actors.messages.actor_ids import model_actor_id
from actors.messages.model_table import ModelTable
from runtime.residency.failures import MAX_PAUSE_S, Failures, unknown, why_no_room
from runtime.residency.known import KnownModels
from runtime.residency.leaving import DRAIN_S, Leaving
from runtime.residency.loading import Loading
from runtime.residency.memory import Measured, Need
from runtime.residency.policy import Limits, Refusal, Resident, Why, Wish
from runtime.residency.readings import Readings
from runtime.residency.settings import ResidencyArgs
from runtime.residency.sleeping import SOONEST_S, Sleeping
from runtime.residency.table import ResidencyTable
from supervision import Address, ChildKind, Entry

pytestmark = pytest.mark.pure

CALLER, OTHER = Address("127.0.0.1", 1), Address("127.0.0.1", 2)


def entry(model: str, state: str = "up", incarnation: int = 1, pid: int = 1 << 30) -> Entry:
    """Of a model whose process is none of this machine."""
    actor = model_actor_id(model)
    return Entry(
        actor, ChildKind.WORKER, "models", "x.Y", CALLER, pid, incarnation, state, 0, 0.0, None
    )


class World:
    """A tree, a registry's table, and what the parts have done; no process."""

    def __init__(self, folder: Path, *known: m.LoadModel, keep_alive_s: float | None = None):
        for name in ("wanted", "table"):
            (folder / name).touch()
        self.directory: dict[str, Entry] = {}
        self.wanted = ModelTable(str(folder / "wanted"))
        self.sent: list[tuple[Address | str, object]] = []
        self.weighed: list[m.LoadModel] = []
        self.looks: list[float] = []
        """0: at once."""
        self.up = {"inflight", "registry"}
        args = ResidencyArgs(str(folder / "wanted"), str(folder / "table"), known=known)
        self.table = ResidencyTable(args.table_path)
        self.readings = Readings(
            lambda: self.directory,
            args.wanted_path,
            KnownModels(args, self.table),
            Measured(None),
        )
        self.sleeping = Sleeping(keep_alive_s, self.readings, self.table)
        self.leaving = Leaving(self, self.readings, self.table)
        self.loading = Loading(self, self.readings, self.leaving)

    def tell(self, target: Address | str, message: object) -> bool:
        self.sent.append((target, message))
        return not isinstance(target, str) or target in self.up

    def weigh(self, spec: m.LoadModel) -> None:
        self.weighed.append(spec)

    def look(self) -> None:
        self.looks.append(0.0)

    def look_in(self, seconds: float) -> None:
        self.looks.append(seconds)

    def loaded(self, *specs: m.LoadModel) -> None:
        """These are up, as the registry has loaded them."""
        for spec in specs:
            self.wanted.add(spec)
            self.directory[model_actor_id(spec.model)] = entry(spec.model)
        self.readings.refresh()

    def taken(self) -> list[tuple[Address | str, object]]:
        """What was sent since the last call."""
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    return lambda *known, **options: World(tmp_path, *known, **options)


def spec(model: str, **options: object) -> m.LoadModel:
    return m.LoadModel("", model, f"/{model}.gguf", **options)  # type: ignore[arg-type]


def need(model: str, ref: str = "n", since: float = 1.0) -> m.NeedModel:
    return m.NeedModel(ref, model, since)


# ── failures ────────────────────────────────────────────────────────────────────────────────────


def test_a_failure_is_repeated_until_its_pause_is_over_and_each_pause_is_twice_the_last() -> None:
    failures = Failures()
    failed = m.ModelNotLoaded("", m.LoadFailure.REFUSED, "TruncatedGguf", "half a file")
    assert failures.answer("a", 0.0) is None
    assert failures.note("a", failed, 10.0).retry_after_s == 1.0
    again = failures.answer("a", 10.25)
    assert again is not None
    assert (again.detail, again.retry_after_s) == ("half a file", 0.75)
    assert failures.answer("a", 11.0) is None
    assert failures.detail("a") == "half a file"  # it is listed until it loads
    assert failures.note("a", failed, 20.0).retry_after_s == 2.0
    for _ in range(12):
        last = failures.note("a", failed, 30.0)
    assert last.retry_after_s == MAX_PAUSE_S
    failures.forget("a")
    assert failures.detail("a") is None
    assert failures.note("a", failed, 40.0).retry_after_s == 1.0


def test_why_there_is_no_room_names_what_to_do() -> None:
    wish = Wish("big", 4 << 30, 4 << 30, 1.0)
    pinned = why_no_room(Refusal(wish, Why.PINNED, ("a", "b")), Limits())
    assert "(a, b)" in pinned
    assert "unpin" in pinned
    assert "1.0 GiB may be used" in why_no_room(
        Refusal(wish, Why.TOO_BIG), Limits(max_bytes=1 << 30, room=2 << 30)
    )


# ── loading ─────────────────────────────────────────────────────────────────────────────────────


def test_a_model_that_is_needed_is_weighed_and_loaded_and_all_who_wait_are_answered(
    world: Callable[..., World],
) -> None:
    one = world(spec("a"))
    one.loading.needed(need("a", "first", since=5.0), CALLER)
    one.loading.needed(need("a", "second", since=3.0), OTHER)
    assert one.taken() == [(CALLER, m.ModelAwaited("first")), (OTHER, m.ModelAwaited("second"))]
    assert one.weighed == [spec("a")]  # once
    assert one.loading.ripe(set(), None) == []  # before it is weighed
    one.loading.weighed(one.weighed[0], Need(7, 7))
    assert one.loading.ripe(set(), None) == [Wish("a", 7, 7, 3.0)]  # the oldest asker counts
    one.loading.load("a", [], Limits())
    ((target, sent),) = one.taken()
    assert target == "registry"
    assert isinstance(sent, m.LoadModel)
    one.loading.progressed(sent.ref, 0.5)
    one.loading.progressed(sent.ref, 0.51)  # too little to be sent
    assert one.taken() == [
        (CALLER, m.ModelLoading("first", 0.5)),
        (OTHER, m.ModelLoading("second", 0.5)),
    ]
    up = entry("a")
    assert one.loading.ended(m.ModelLoaded(sent.ref, up)) == up
    one.loading.came_up("a", up)
    assert one.taken() == [
        (CALLER, m.ModelLoaded("first", up)),
        (OTHER, m.ModelLoaded("second", up)),
    ]
    assert "a" not in one.loading


def test_nobody_goes_before_an_older_wish_that_is_not_weighed(world: Callable[..., World]) -> None:
    one = world(spec("a"), spec("b"))
    one.loading.wish(spec("a"), 1.0)
    one.loading.wish(spec("b"), 2.0)
    one.loading.weighed(one.weighed[1], Need(1, 1))
    assert one.loading.ripe(set(), None) == []
    one.loading.weighed(one.weighed[0], Need(1, 1))
    assert [wish.model for wish in one.loading.ripe(set(), None)] == ["a", "b"]


def test_a_model_that_is_loaded_is_answered_at_once_and_one_that_is_unknown_refused(
    world: Callable[..., World],
) -> None:
    one = world()
    one.loaded(spec("a"))
    one.loading.needed(need("a"), CALLER)
    assert one.taken() == [(CALLER, m.ModelLoaded("n", entry("a")))]
    one.loading.needed(need("b", ""), CALLER)
    assert one.taken() == [(CALLER, unknown("b"))]


def test_a_process_that_crashes_as_it_loads_is_started_twice_and_then_its_error_counts(
    world: Callable[..., World],
) -> None:
    one = world(spec("a"))
    one.loading.needed(need("a"), CALLER)
    one.loading.weighed(one.weighed[0], Need(1, 1))
    crashed = m.ModelNotLoaded("", m.LoadFailure.CRASHED, "SIGSEGV", "it crashed")
    for _ in range(2):
        one.taken()
        one.loading.load("a", [], Limits())
        ((_, sent),) = one.taken()
        assert isinstance(sent, m.LoadModel)
        one.loading.ended(m.ModelNotLoaded(sent.ref, crashed.reason, crashed.kind, crashed.detail))
    ((target, answer),) = one.taken()
    assert target == CALLER
    assert isinstance(answer, m.ModelNotLoaded)
    assert (answer.ref, answer.detail) == ("n", "it crashed")
    one.loading.needed(need("a", "later"), CALLER)
    ((_, answer),) = one.taken()
    assert isinstance(answer, m.ModelNotLoaded)
    assert answer.retry_after_s


def test_a_model_that_did_not_fit_after_all_waits_until_the_one_that_leaves_is_gone(
    world: Callable[..., World],
) -> None:
    one = world(spec("a"), spec("b"))
    one.loaded(spec("b"))
    one.loading.needed(need("a"), CALLER)
    one.loading.weighed(one.weighed[0], Need(1, 1))
    one.taken()
    one.loading.load("a", [], Limits())
    ((_, sent),) = one.taken()
    assert isinstance(sent, m.LoadModel)
    full = m.ModelNotLoaded(sent.ref, m.LoadFailure.REFUSED, "NotEnoughMemory", "full")
    assert one.loading.ended(full) is None
    assert "b" in one.leaving
    assert one.loading.ripe(set(), None) == []
    del one.directory[model_actor_id("b")]
    assert [wish.model for wish in one.loading.ripe(set(), None)] == ["a"]


# ── leaving ─────────────────────────────────────────────────────────────────────────────────────


def test_a_model_leaves_in_three_steps_and_is_noted_before_it_is_unloaded(
    world: Callable[..., World],
) -> None:
    one = world()
    one.loaded(spec("a"))
    one.leaving.begin("a", if_idle=True)
    one.leaving.begin("a", if_idle=False)  # it leaves already
    ((target, hold),) = one.taken()
    assert target == "inflight"
    assert isinstance(hold, m.HoldModel)
    assert hold.if_idle
    assert one.table.get("a") is None
    one.leaving.held(m.ModelHeld("another question", "a", is_held=True))
    assert one.taken() == []
    one.leaving.held(m.ModelHeld(hold.ref, "a", is_held=True))
    assert one.table.get("a") is not None
    assert one.taken() == [("registry", m.UnloadModel(hold.ref, "a", DRAIN_S))]
    assert one.leaving.ended("another") is None
    assert one.leaving.ended(hold.ref) == spec("a")
    assert "a" not in one.leaving


def test_a_model_that_is_not_idle_stays(world: Callable[..., World]) -> None:
    one = world()
    one.loaded(spec("a"))
    one.leaving.begin("a", if_idle=True)
    ((_, hold),) = one.taken()
    assert isinstance(hold, m.HoldModel)
    one.leaving.held(m.ModelHeld(hold.ref, "a", is_held=False))
    assert "a" not in one.leaving
    assert one.table.get("a") is None
    assert one.taken() == []
    assert one.looks


def test_what_a_caller_unloads_meanwhile_is_released(world: Callable[..., World]) -> None:
    one = world()
    one.loaded(spec("a"))
    one.leaving.begin("a", if_idle=False)
    ((_, hold),) = one.taken()
    assert isinstance(hold, m.HoldModel)
    one.wanted.remove("a")
    one.leaving.held(m.ModelHeld(hold.ref, "a", is_held=True))
    assert one.taken() == [("inflight", m.ReleaseModel("a"))]
    assert one.table.get("a") is None


def test_those_that_are_new_are_asked_again(world: Callable[..., World]) -> None:
    one = world()
    one.loaded(spec("a"), spec("b"))
    one.up.remove("inflight")
    one.leaving.begin("a", if_idle=False)
    assert "a" not in one.leaving  # nothing is held; it is looked at again
    one.up.add("inflight")
    for model in ("a", "b"):
        one.leaving.begin(model, if_idle=False)
    holds = [sent for _, sent in one.taken() if isinstance(sent, m.HoldModel)]
    one.leaving.held(m.ModelHeld(holds[-1].ref, "b", is_held=True))
    one.taken()
    one.leaving.inflight_is_new()
    ((_, hold),) = one.taken()
    assert isinstance(hold, m.HoldModel)
    assert hold.model == "a"
    assert hold.ref not in [one.ref for one in holds]
    one.leaving.registry_is_new()
    assert one.taken() == [("registry", m.UnloadModel(holds[-1].ref, "b", DRAIN_S))]


# ── sleeping ────────────────────────────────────────────────────────────────────────────────────


def test_a_callers_number_counts_before_the_models_and_that_before_the_nodes(
    world: Callable[..., World],
) -> None:
    one = world(spec("a"), spec("b", keep_alive_s=20.0), spec("c", pin=True), keep_alive_s=10.0)
    keeps = one.sleeping.keep_alive_s
    assert (keeps("a"), keeps("b"), keeps("c")) == (10.0, 20.0, None)
    one.sleeping.set("b", 30.0)
    one.sleeping.set("c", 30.0)
    one.sleeping.set("a", -1.0)
    assert (keeps("a"), keeps("b"), keeps("c")) == (None, 30.0, None)
    one.sleeping.set("b", None)
    assert keeps("b") == 20.0
    assert not one.sleeping.keeps_some_alive()  # nothing is loaded
    one.loaded(spec("b", keep_alive_s=20.0))
    assert one.sleeping.keeps_some_alive()


def test_idle_models_are_due_in_their_time_and_busy_ones_are_looked_at_again(
    world: Callable[..., World],
) -> None:
    one = world(keep_alive_s=10.0)
    idle, later = Resident("idle", last_use=1.0), Resident("later", last_use=5.0)
    busy = Resident("busy", last_use=0.0, is_busy=True)
    moving = [Resident("x", is_loading=True), Resident("y", is_leaving=True)]
    assert one.sleeping.due([idle, later, *moving], 11.0) == (["idle"], 4.0)
    assert one.sleeping.due(moving, 99.0) == ([], None)
    one.sleeping.set("busy", 0.0)
    assert one.sleeping.due([busy], 99.0) == ([], SOONEST_S)
