"""Laws of sharing a context: what a request may have, who steps aside, and that all of them end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine.room_policy import (
    GROWTH_TOKENS,
    QUANTUM_ROWS,
    REST_STEPS,
    Admission,
    Claim,
    Part,
    admit,
    grown,
    make_way,
    must_grow,
    must_rest,
    rested,
    spare_cells,
    steps_aside,
)

pytestmark = pytest.mark.pure

INTERACTIVE, BACKGROUND = False, True


@given(
    st.integers(1, 10_000), st.none() | st.integers(0, 10_000), st.integers(1, 8192), st.booleans()
)
def test_an_admitted_request_fits_the_context(
    n_prompt: int, max_tokens: int | None, n_ctx: int, at_once: bool
) -> None:
    admission = admit(n_prompt, max_tokens, n_ctx)
    if not admission.fits:
        assert n_prompt >= n_ctx
        return
    assert admission.n_most == n_prompt + admission.max_tokens <= n_ctx
    assert admission.is_cut == (max_tokens is None or admission.max_tokens < max_tokens)
    n_cells = admission.cells_for(n_prompt, at_once=at_once)
    assert n_prompt <= n_cells <= admission.n_most
    assert at_once or n_cells <= n_prompt + GROWTH_TOKENS


def test_what_is_absent_is_what_fits() -> None:
    assert admit(100, None, 512) == Admission(True, 412, 512, is_cut=True)
    assert admit(100, 32_000, 512) == Admission(True, 412, 512, is_cut=True)
    assert admit(100, 412, 512) == Admission(True, 412, 512, is_cut=False)
    assert not admit(512, None, 512).fits
    assert admit(512, 0, 512).fits


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(0, 3000))
def test_cells_grow_by_blocks_and_never_beyond_the_most(
    n_tokens: int, n_cells: int, n_most: int
) -> None:
    n_cells = min(n_cells, n_most)
    n_tokens = min(n_tokens, n_most, n_cells + 1)
    more = grown(n_tokens, n_cells, n_most)
    assert n_cells <= more <= n_most
    assert more <= max(n_cells, n_tokens) + GROWTH_TOKENS
    assert not must_grow(n_tokens, more)


# ── who steps aside ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asker", "running", "goes"),
    [
        (0, [Claim(INTERACTIVE, 1), Claim(INTERACTIVE, 2), Claim(INTERACTIVE, 3)], 2),
        (2, [Claim(INTERACTIVE, 1), Claim(INTERACTIVE, 2), Claim(INTERACTIVE, 3)], 2),
        (1, [Claim(INTERACTIVE, 1), Claim(INTERACTIVE, 5), Claim(BACKGROUND, 2)], 2),
        (1, [Claim(INTERACTIVE, 9), Claim(BACKGROUND, 1), Claim(BACKGROUND, 2)], 2),
        # The quantum holds within a class only.
        (0, [Claim(INTERACTIVE, 1), Claim(INTERACTIVE, 2), Claim(INTERACTIVE, 3, 9)], 1),
        (0, [Claim(INTERACTIVE, 1), Claim(INTERACTIVE, 2, 9), Claim(INTERACTIVE, 3, 9)], None),
        (0, [Claim(INTERACTIVE, 1), Claim(INTERACTIVE, 2), Claim(BACKGROUND, 3, 9)], 2),
        # Cells that become free in a moment are waited for.
        (0, [Claim(INTERACTIVE, 1), Claim(INTERACTIVE, 2), Claim(BACKGROUND, 3, 9, True)], None),
        (0, [Claim(INTERACTIVE, 1)], None),
    ],
)
def test_the_least_urgent_steps_aside(asker: int, running: list[Claim], goes: int | None) -> None:
    assert steps_aside(asker, running) == goes


def test_background_makes_way_for_an_interactive_request_and_no_more_than_it_takes() -> None:
    running = [
        Claim(BACKGROUND, 1),
        Claim(INTERACTIVE, 2),
        Claim(BACKGROUND, 3, 0),
        Claim(BACKGROUND, 4),
    ]
    assert make_way(INTERACTIVE, running, lambda gone: len(gone) >= 2) == (3, 2)
    assert make_way(INTERACTIVE, running, lambda gone: False) == ()
    assert make_way(BACKGROUND, running, lambda gone: True) == ()
    going = [*running, Claim(INTERACTIVE, 5, is_going=True)]
    assert make_way(INTERACTIVE, going, lambda gone: True) == ()


def test_background_rests_while_an_interactive_prompt_is_read_and_not_for_ever() -> None:
    reader, writer = Part(INTERACTIVE, is_reading=True), Part(INTERACTIVE, is_reading=False)
    other = Part(BACKGROUND, is_reading=True)
    assert must_rest([reader, other], 0)
    assert not must_rest([writer, other], 0)
    assert must_rest([reader, other], REST_STEPS - 1)
    assert not must_rest([reader, other], REST_STEPS)


def test_a_wait_for_the_cache_between_two_prompts_does_not_begin_the_rest_anew() -> None:
    n_rested = 0
    for _ in range(REST_STEPS):
        n_rested = rested(n_rested, 0, 4)  # the interactive request waits, the others rest
        n_rested = rested(n_rested, 1, 5)
    assert not must_rest([Part(INTERACTIVE, is_reading=True)], n_rested)
    assert rested(n_rested, 0, 0) == n_rested
    assert rested(n_rested, 5, 5) == 0


# ── all of them end ──────────────────────────────────────────────────────────────────────────────


@dataclass
class Job:
    """A request of the simulation, with sizes in tokens."""

    number: int
    is_background: bool
    n_prompt: int
    n_reply: int
    arrives: int
    n_done: int = 0
    n_cells: int = 0
    n_rows: int = 0
    times_aside: list[int] = field(default_factory=list)
    """Rows it had had each time."""
    asked_by_urgent: int = 0
    ended: int | None = None

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_done

    @property
    def n_most(self) -> int:
        return self.n_prompt + self.n_reply

    @property
    def claim(self) -> Claim:
        return Claim(self.is_background, self.number, self.n_rows)


class World:
    """A context without tokens: who runs, who waits, step by step, as the engine does it."""

    def __init__(self, jobs: Sequence[Job], n_ctx: int, n_seq: int) -> None:
        self.jobs, self.n_ctx, self.n_seq = jobs, n_ctx, n_seq
        self.running: list[Job] = []
        self.now = 0

    @property
    def waiting(self) -> list[Job]:
        there = [job for job in self.jobs if job.arrives <= self.now and job.ended is None]
        return sorted((job for job in there if job not in self.running), key=lambda j: j.claim.rank)

    def fits(self, job: Job, n_cells: int, gone: Sequence[int] = ()) -> bool:
        kept = [one for at, one in enumerate(self.running) if at not in gone]
        spare = spare_cells((one.n_cells, one.n_most) for one in kept)
        used = sum(one.n_cells for one in kept)
        return len(kept) < self.n_seq and used + n_cells + spare <= self.n_ctx

    def leave(self, job: Job) -> None:
        self.running.remove(job)
        job.times_aside.append(job.n_rows)
        job.n_cells = 0

    def step(self) -> None:
        self.now += 1
        self.admit()
        self.grow()
        assert sum(one.n_cells for one in self.running) <= self.n_ctx
        assert len(self.running) <= self.n_seq
        for job in list(self.running):
            if must_grow(job.n_tokens, job.n_cells):
                continue
            job.n_rows += 1
            job.n_done += 1
            if job.n_done >= job.n_reply:
                job.ended = self.now
                self.running.remove(job)

    def admit(self) -> None:
        while self.waiting:
            job = self.waiting[0]
            admission = admit(job.n_prompt, job.n_reply, self.n_ctx)
            n_cells = admission.cells_for(job.n_tokens)
            if not self.fits(job, n_cells):
                claims = [one.claim for one in self.running]
                gone = make_way(
                    job.is_background, claims, lambda g, j=job, n=n_cells: self.fits(j, n, g)
                )
                for one in [self.running[at] for at in gone]:
                    one.asked_by_urgent += 1
                    self.leave(one)
                if not gone:
                    break
                continue
            job.n_cells, job.n_rows = n_cells, 0
            self.running.append(job)

    def grow(self) -> None:
        for job in sorted(self.running, key=lambda one: one.claim.rank):
            if job not in self.running:
                continue
            more = grown(job.n_tokens, job.n_cells, job.n_most)
            used = sum(one.n_cells for one in self.running)
            if used - job.n_cells + more <= self.n_ctx:
                job.n_cells = more
            elif must_grow(job.n_tokens, job.n_cells):
                at = steps_aside(self.running.index(job), [one.claim for one in self.running])
                if at is not None:
                    self.running[at].asked_by_urgent += self.running[at].is_background
                    self.leave(self.running[at])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n_ctx = draw(st.integers(150, 400))
    sizes = st.tuples(
        st.booleans(), st.integers(1, n_ctx // 2), st.integers(1, n_ctx), st.integers(0, 300)
    )
    jobs = [
        Job(number, is_background, n_prompt, min(n_reply, n_ctx - n_prompt), arrives)
        for number, (is_background, n_prompt, n_reply, arrives) in enumerate(
            sorted(draw(st.lists(sizes, min_size=1, max_size=6)), key=lambda one: one[3])
        )
    ]
    return World(jobs, n_ctx, draw(st.integers(1, 8)))


@given(worlds())
def test_every_request_ends_and_the_first_of_all_never_stands_still(world: World) -> None:
    # Stepping aside may take a step in which no request has a token.
    n_tokens = sum(job.n_reply for job in world.jobs)
    n_done = n_idle = 0
    while any(job.ended is None for job in world.jobs):
        is_asked = any(one.ended is None and one.arrives <= world.now + 1 for one in world.jobs)
        world.step()
        before, n_done = n_done, sum(job.n_done for job in world.jobs)
        n_idle = n_idle + 1 if is_asked and n_done == before else 0
        assert n_idle <= 1, "two steps without a token"
        assert world.now <= 300 + 2 * n_tokens, "a request starves"


@given(worlds())
def test_nobody_steps_aside_for_its_own_class_before_it_has_had_a_quantum(world: World) -> None:
    while any(job.ended is None for job in world.jobs):
        world.step()
    for job in world.jobs:
        if job.is_background and job.asked_by_urgent:
            continue
        early = [n for n in job.times_aside if n < QUANTUM_ROWS]
        assert not early, (job, early)


def test_the_oldest_of_the_most_urgent_class_is_never_put_aside() -> None:
    jobs = [Job(n, n % 2 == 0, 40, 400, 0) for n in range(8)]
    world = World(jobs, 512, 8)
    while any(job.ended is None for job in jobs):
        world.step()
    assert not jobs[1].times_aside
    ends = [job.ended or 0 for job in jobs if not job.is_background]
    assert ends == sorted(ends)
