"""One attempt at a completion: who is watched while nothing comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

import pytest

from actors import messages as m
from runtime import errors
from runtime.attempt import Attempt
from supervision import Address, ChildKind, Connection, Entry

pytestmark = pytest.mark.pure


def entry(actor: str, **changes: object) -> Entry:
    up = Entry(
        id=actor,
        kind=ChildKind.WORKER,
        parent="root",
        actor="a.B",
        address=Address("127.0.0.1", 1),
        pid=1,
        incarnation=1,
        state="up",
        restarts=0,
        started_at=1.0,
    )
    return replace(up, **changes)  # type: ignore[arg-type]


@dataclass
class Line:
    """A connection that says what it is told to; between two replies nothing comes for a while."""

    replies: list[object]
    entries: dict[str, Entry]
    told: list[tuple[str, object]] = field(default_factory=list)

    def stream(
        self, target: str, message: object, *, idle_timeout_s: float, on_quiet: Callable[[], None]
    ) -> Iterator[object]:
        assert target == "inflight"
        for reply in self.replies:
            yield reply
            on_quiet()
        on_quiet()

    def where(self, actor: str) -> Entry | None:
        return self.entries.get(actor)

    def tell(self, target: str, message: object) -> None:
        self.told.append((target, message))


def attempt(replies: list[object], **later: dict[str, object]) -> tuple[Attempt, Line]:
    """An attempt at ``x``; ``later`` changes the entries of ``model`` and ``inflight``."""
    line = Line(
        replies,
        {
            "model:x": entry("model:x", **later.get("model", {})),
            "inflight": entry("inflight", **later.get("inflight", {})),
        },
    )
    return Attempt(cast(Connection, line), m.Complete("r", "x", "prompt")), line


ACCEPTED = m.Accepted("r", "id", inflight=1, model=1)
ANOTHER: dict[str, object] = {"incarnation": 2, "started_at": time.time() + 1e6}
TOKENS = m.TokensDelivered("r", 0, b"\1\0\0\0", "a")


def test_while_everybody_lives_nothing_happens() -> None:
    running, _ = attempt([ACCEPTED, TOKENS])
    assert len(list(running.events())) == 1


@pytest.mark.parametrize("replies", [[], [ACCEPTED]])
def test_an_inflight_that_is_another_may_have_lost_the_request(replies: list[object]) -> None:
    running, line = attempt(replies, inflight=ANOTHER)
    with pytest.raises(errors.ModelDown, match="inflight went away"):
        list(running.events())
    assert not running.delivered
    # In case the model did get it: nobody waits for its answer.
    assert (("model:x", m.CancelRun("id")) in line.told) == bool(replies)


def test_once_the_model_answers_inflight_may_die() -> None:
    running, _ = attempt([TOKENS, ACCEPTED], inflight=ANOTHER)
    assert len(list(running.events())) == 1


def test_a_clock_that_was_set_back_alarms_nobody_who_knows_the_incarnation() -> None:
    later: dict[str, object] = {"started_at": time.time() + 1e6}
    running, _ = attempt([ACCEPTED, TOKENS], model=later, inflight=later)
    assert len(list(running.events())) == 1


@pytest.mark.parametrize("change", [ANOTHER, {"state": "restarting", "address": None}])
def test_a_model_that_is_another_ends_the_attempt(change: dict[str, object]) -> None:
    running, _ = attempt([ACCEPTED, TOKENS], model=change)
    with pytest.raises(errors.ModelDown, match="model:x went away"):
        list(running.events())


def test_an_attempt_that_is_left_is_cancelled() -> None:
    running, line = attempt([ACCEPTED, TOKENS])
    events = running.events()
    next(iter(events))
    events.close()  # type: ignore[attr-defined]
    assert line.told == [("inflight", m.Cancel("id"))]
