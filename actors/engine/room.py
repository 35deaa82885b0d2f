"""Cells for requests that grow, and room for those that start: who steps aside is carried out here.

``engine.room_policy`` decides. Runs on the engine thread, between two steps; times are seconds on
its clock, passed in.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.engine.lifecycle import Lifecycle
from actors.engine.live_sequences import LiveSequences
from actors.engine.request import Request
from actors.engine.room_policy import Admission, Claim, grown, make_way, spare_cells, steps_aside


class Room:
    """The cells and sequences of one engine's context."""

    def __init__(self, live: LiveSequences, requests: Lifecycle) -> None:
        self._live = live
        self._requests = requests

    def owe(self, now: float) -> None:
        """Background requests that have waited for very long are interactive for a quantum."""
        for request in self._requests.all():
            if request.turn.is_owed(now) and not request.is_finished:
                request.turn.owe(request.line.n_pending)

    def start(self, request: Request, admission: Admission, now: float, *, lookup: bool) -> bool:
        """Give a waiting request a sequence and its first cells; False: not yet.

        Then background requests may have begun to step aside for it.
        """
        running = self._requests.running
        at_once = request.guessing.candidates is not None
        n_cells = admission.cells_for(len(request.line.tokens), at_once=at_once)
        spare = _spare(running)
        if self._live.place(request, n_cells, running, now, spare=spare, lookup=lookup):
            return True

        def fits(gone: Sequence[int]) -> bool:
            kept = [one for at, one in enumerate(running) if at not in gone]
            return self._live.would_fit(request, n_cells, kept, len(gone), spare=_spare(kept))

        gone = make_way(request.turn.is_background, [_claim(one) for one in running], fits)
        for one in [running[at] for at in gone]:
            self._requests.step_aside(one)
        return False

    def grow(self) -> None:
        """Give running requests cells for their next tokens, the most urgent first."""
        running = self._requests.running
        wanting = [
            (one.turn.rank, n_cells, one)
            for one in running
            if (n_cells := grown(len(one.line.tokens), one.line.n_cells, one.n_cells_most))
            > one.line.n_cells
            and not one.is_going
        ]
        if not wanting:
            return
        first = self._requests.waiting.first()
        is_asked = first is not None and not first.turn.is_background
        for _, n_cells, request in sorted(wanting, key=lambda one: one[0]):
            if request.is_going or request.line.seq is None:
                continue  # it has just stepped aside
            if is_asked and request.turn.is_background:
                continue  # what is free is for the request that waits
            if len(running) == 1:
                self._live.grow_alone(request, n_cells)
            elif not self._live.grow(request, n_cells, running) and request.must_grow:
                self._ask_for_cells(request)

    def give_up_cells(self) -> bool:
        """The context had fewer cells than were counted: the least urgent steps aside.

        False where a request has the context to itself already.
        """
        running = self._requests.running
        if len(running) < 2:
            return False
        last = max(running, key=lambda one: one.turn.rank)
        if not last.is_going:
            self._requests.step_aside(last)
        return True

    def _ask_for_cells(self, request: Request) -> None:
        running = self._requests.running
        claims = [_claim(one) for one in running]
        at = steps_aside(running.index(request), claims)
        if at is not None:
            self._requests.step_aside(running[at])


def _claim(request: Request) -> Claim:
    turn = request.turn
    return Claim(turn.is_background, turn.number, turn.n_rows, request.is_going)


def _spare(running: Sequence[Request]) -> int:
    growing = [one for one in running if not one.is_going]
    return spare_cells((one.line.n_cells, one.n_cells_most) for one in growing)
