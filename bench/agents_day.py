"""A day of agents (``bench.workload``) through the gateway, beside llama-server at its best.

Each agent is a thread that asks in turn: turns, sub-agents, side requests with other tools, edits
in the middle. Both servers have the same context and as many sequences: one for each agent and some
for sub-agents and side requests. What is counted comes from their own answers (``cache_n``,
``prompt_n``), what was distinct from the prompts and replies of the same run.

Variants: the whole day; a restart at noon; SIGKILL to everything at a random turn; a RAM tier of
half of the KV that the day produces. llama-server begins cold after a restart, since nothing saves
its slots by itself. Prompts are token ids, so no server knows where a message begins.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import peers
from bench.bare import BareModel
from bench.day_places import PEER_FLAGS, Kept, OurNode, Peer, Place
from bench.day_rows import StoredRows
from bench.day_run import Asked, Interruption, Outcome, spend
from bench.report import Figure
from bench.subjects import CACHE_RAM, Subject, hybrid, subjects, windowed
from bench.workload import Day, Scale, generate, longest
from runtime.cli.progress import ProgressLine

NAME = "agents_day"
SEED = 2
_ROOM = 64
"""Cells of a sequence beyond its longest prompt and reply."""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Goals:
    """Of one kind of model."""

    computed: float
    reused: float


_ATTENTION, _STATES = _Goals(1.02, 0.99), _Goals(1.10, 0.95)
_TOTAL_GOALS = {4: "goal 0.25", 16: "goal 0.2"}


@dataclass(frozen=True, slots=True)
class _Case:
    """One model, so many agents, and how the day is spent beside the plain one."""

    subject: Subject
    n_agents: int
    scale: Scale
    interrupted: bool = False
    small_ram: bool = False

    @property
    def name(self) -> str:
        scale = f"{self.scale.n_turns} turns to {self.scale.n_tokens} tokens"
        agents = f"{self.n_agents} agents" if self.n_agents > 1 else "1 agent"
        return f"{self.subject.name}, {agents}, {scale}"

    @property
    def n_seq(self) -> int:
        """Sequences of both servers."""
        return self.n_agents + max(2, self.n_agents // 4)


def main(quick: bool, model: Path | None = None) -> list[Figure]:
    """Every case; without llama-server only what is measured of ours."""
    lacking = peers.missing(peers.SERVER)
    if lacking:
        print(f"{NAME} beside llama-server is skipped: {lacking}")
    figures: list[Figure] = []
    for case in _cases(quick, model):
        figures += _measure(case, with_peer=not lacking)
    return figures


def _cases(quick: bool, model: Path | None) -> list[_Case]:
    """The longer days are those of the models that two cores compute in minutes."""
    attention = subjects(quick=quick, model=model)
    if quick:
        day = Scale(4, 300)
        return [
            _Case(attention[0], 2, day, interrupted=True, small_ram=True),
            _Case(windowed(quick=True), 1, day),
        ]
    if model is not None:
        return [_Case(attention[0], 4, Scale(20, 1500), interrupted=True, small_ram=True)]
    small, big = attention[0], attention[-1]
    full, half, short = Scale(43, 3000), Scale(20, 1500), Scale(8, 900)
    return [
        _Case(small, 1, full),
        _Case(small, 4, full),
        _Case(small, 16, half),
        _Case(small, 4, half, interrupted=True, small_ram=True),
        _Case(big, 1, short),
        _Case(big, 4, short),
        _Case(windowed(quick=False), 4, half, interrupted=True),
        _Case(hybrid(), 4, half, interrupted=True),
    ]


# --- one case -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Ours:
    """One day on a node: what was asked, what it has stored, what a killed one had in its files."""

    outcome: Outcome
    kept: Kept
    load_s: float
    stored: list[StoredRows] = field(default_factory=list)

    @property
    def computed_again(self) -> int:
        """Tokens that were in a file at the interruption and were computed after it."""
        (stored,) = self.stored
        return sum(
            max(0, stored.usable(one.request.prompt) - one.answer.n_cached)
            for one in self.outcome.after
        )


class _Days:
    """Spends the same day in several ways."""

    def __init__(self, case: _Case) -> None:
        with BareModel(case.subject.path, replace(case.subject.params, n_ctx=512)) as bare:
            facts, self._banned = bare.facts, bare.parts_of_characters()
        usable = [token for token in range(facts.n_vocab) if token not in facts.eog_tokens]
        self.day: Day = generate(SEED, case.n_agents, case.scale, usable)
        n_ctx = 256 * -(-case.n_seq * (longest(self.day) + _ROOM) // 256)
        params = replace(case.subject.params, n_seq_max=case.n_seq, n_ctx=n_ctx)
        self._subject = replace(case.subject, params=params)
        self._can_cut = facts.can_cut
        self.goals = _ATTENTION if facts.can_cut else _STATES

    def ours(
        self, interruption: Interruption | None = None, cache_ram: str | int = CACHE_RAM
    ) -> _Ours:
        stored: list[StoredRows] = []
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            node = OurNode(self._subject, Path(folder), cache_ram)

            def look() -> None:
                stored.append(StoredRows(node.cache, can_cut=self._can_cut))

            outcome = self._spent(node, interruption, look)
            return _Ours(outcome, node.kept, node.load_s, stored)

    def theirs(self, interruption: Interruption | None = None) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            return self._spent(Peer(self._subject, Path(folder)), interruption)

    def _spent(
        self,
        place: Place,
        interruption: Interruption | None,
        look: Callable[[], None] = lambda: None,
    ) -> Outcome:
        place.start()
        try:
            return spend(self.day, place, self._banned, interruption, look)
        finally:
            place.stop()


def _measure(case: _Case, *, with_peer: bool) -> list[Figure]:
    with ProgressLine(f"{NAME} {case.name}") as progress:
        days = _Days(case)
        n = days.day.n_requests
        ours = days.ours()
        progress.share(0.2)
        theirs = days.theirs() if with_peer else None
        found = _whole(case, days.goals, ours, theirs)
        if case.interrupted:
            turn = random.Random(SEED).randrange(n // 4, 3 * n // 4)
            for at, one in enumerate((Interruption("restart", n // 2), Interruption("kill", turn))):
                progress.share(0.4 + 0.2 * at)
                found += _interrupted(
                    case, one, days.ours(one), days.theirs(one) if with_peer else None
                )
        if case.small_ram:
            progress.share(0.8)
            found += _small_ram(case, ours, days)
    return found


def _whole(case: _Case, goals: _Goals, ours: _Ours, theirs: Outcome | None) -> list[Figure]:
    found = _Table(case.name)
    found.beside(ours.outcome, theirs, case, goals)
    written = ours.kept.to_files
    found.add("files_written_mib", written / _MIB, "MiB", "llama-server writes no files")
    found.add("ram_written_mib", ours.kept.to_ram / _MIB, "MiB")
    if goals is _ATTENTION:
        asked = ours.outcome.asked
        n_tokens = _distinct(asked) + sum(len(one.answer.reply) - 1 for one in asked)
        kv = n_tokens * ours.kept.per_token
        found.add("files_over_kv", written / kv, "x", "of distinct prompt tokens and replies")
    return found.figures


def _interrupted(
    case: _Case, interruption: Interruption, ours: _Ours, theirs: Outcome | None
) -> list[Figure]:
    words = {"restart": "restart at noon", "kill": "kill -9 of everything"}
    n = len(ours.outcome.asked)
    found = _Table(f"{case.name}, {words[interruption.how]} after {interruption.after} of {n}")
    found.beside(ours.outcome, theirs, case)
    rows = f"goal 0; {ours.stored[0].n_rows} rows were in files"
    found.add("stored_computed_again", ours.computed_again, "tokens", rows)
    pause = ours.outcome.pause_s
    found.add("pause_s", pause, "s", "to the first token of any agent, start of the node included")
    found.add("load_s", ours.load_s, "s", "of the model alone")
    found.add("pause_above_load_s", pause - ours.load_s, "s", "goal 1")
    if theirs is not None:
        found.add("server_pause_s", theirs.pause_s, "s", "it begins cold: no slot is saved")
    return found.figures


def _small_ram(case: _Case, plenty: _Ours, days: _Days) -> list[Figure]:
    size = plenty.kept.to_ram // 2
    tight = days.ours(cache_ram=size)
    found = _Table(f"{case.name}, RAM tier of {size / _MIB:.3g} MiB, half of the KV")
    found.beside(tight.outcome, None, case, days.goals)
    ratio = tight.outcome.seconds / plenty.outcome.seconds
    found.add("total_over_enough_ram", ratio, "x", "goal 1.15; one run of each")
    return found.figures


# --- figures --------------------------------------------------------------------------------------


class _Table:
    """The figures of one variant, one run of each."""

    def __init__(self, variant: str) -> None:
        self._variant = variant
        self.figures: list[Figure] = []

    def add(self, metric: str, value: float, unit: str, note: str = "") -> None:
        self.figures.append(Figure(NAME, self._variant, metric, value, unit, 1, note))

    def beside(
        self, ours: Outcome, theirs: Outcome | None, case: _Case, goals: _Goals | None = None
    ) -> None:
        """The counts and times of ours, of llama-server, and of both; no goals for a broken day."""
        n = f"{len(ours.asked)} requests"
        if any(one.last_try > one.answer.began for one in ours.asked):
            n += "; without what killed tries computed"
        computed = f"goal {goals.computed}; {n}" if goals else n
        reused = f"goal {goals.reused}" if goals else ""
        self.add("computed_over_distinct", _computed(ours), "x", computed)
        self.add("reuse_over_reusable", _reused(ours), "x", reused)
        self._times("", ours)
        if theirs is None:
            return
        flags = f"-np {case.n_seq} {' '.join(PEER_FLAGS)}"
        self.add("server_computed_over_distinct", _computed(theirs), "x", flags)
        self.add("server_reuse_over_reusable", _reused(theirs), "x")
        self._times("server_", theirs)
        goal = _TOTAL_GOALS.get(case.n_agents, "") if goals else ""
        self.add("total_over_server", ours.seconds / theirs.seconds, "x", goal)

    def _times(self, side: str, outcome: Outcome) -> None:
        self.add(f"{side}first_token_p50_ms", _percentile(outcome, 0.5), "ms")
        self.add(f"{side}first_token_p99_ms", _percentile(outcome, 0.99), "ms")
        self.add(f"{side}total_s", outcome.seconds, "s")


def _distinct(asked: Sequence[Asked]) -> int:
    return sum(len(one.request.prompt) - one.n_known for one in asked)


def _computed(outcome: Outcome) -> float:
    """Prompt tokens that were computed, over those of no earlier prompt or reply."""
    return sum(one.answer.n_computed for one in outcome.asked) / _distinct(outcome.asked)


def _reused(outcome: Outcome) -> float:
    cached = sum(one.answer.n_cached for one in outcome.asked)
    return cached / sum(one.n_known for one in outcome.asked)


def _percentile(outcome: Outcome, share: float) -> float:
    times = sorted(one.answer.first_ms for one in outcome.asked)
    return times[min(len(times) - 1, int(share * len(times)))]
