"""The ways in which a reply may be computed that a level of exactness promises to agree.

Each way takes a ``Lab`` and returns how far it agrees with its reference: a cold run of the same
request alone, or, at level repeat, a next turn in the live sequence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from actors import messages as m
from actors.messages.journal import JournalKeeper, JournalWriter
from cache.keys import BLOCK_TOKENS
from cache.policy import LivePolicy, LogitsPolicy
from tests.support.exactness import (
    KEEPS_BLOCKS,
    LOGITS_IN_ROWS,
    MAIN,
    N_SEQ,
    NO_LOGITS,
    STAYS,
    Agreement,
    Lab,
    Level,
    Prompt,
    Trace,
    WayNotTaken,
    came_from,
)

_FIRST_STATE: Final = 256
"""Where memory that cannot be cut has surely been saved once, in tokens."""

# ── ways of level repeat ────────────────────────────────────────────────────────────────────────


def cold_again(lab: Lab, **params: Any) -> Agreement:
    with lab.desk("repeat", against=lab.cold("repeat"), **params) as desk:
        desk.ask(MAIN, lab.prompt, lab.n_reply)
        return lab.agreement(desk)


def repeated_live(lab: Lab, logits: LogitsPolicy | None = None) -> Agreement:
    with lab.desk("repeat", against=lab.cold("repeat"), logits=logits) as desk:
        desk.ask("first", lab.prompt, 5)
        desk.recorder.deltas[lab.prompt].clear()
        came_from(desk.ask(MAIN, lab.prompt, lab.n_reply), _near(lab), _exact(lab))
        return lab.agreement(desk)


def _near(lab: Lab) -> str:
    """Where an earlier prompt of the same process is found."""
    return "live" if lab.can_cut else "ram"


def _blocks(lab: Lab) -> int:
    """Tokens of the prompt in whole blocks."""
    return len(lab.prompt) // BLOCK_TOKENS * BLOCK_TOKENS


def _exact(lab: Lab) -> int:
    """Tokens of an exact repeat that come from the cache, at least."""
    return len(lab.prompt) - 1


def repeated_from(
    lab: Lab, tier: str, logits: LogitsPolicy = NO_LOGITS, *, parent: bool = False, **params: Any
) -> Agreement:
    """In another process, from the rows of the first one."""
    cache = lab.cache()
    with lab.desk("repeat", cache=cache, logits=logits) as desk:
        done = desk.ask("first", lab.prompt, 0 if parent else 5)
    fields = {"parent_key": done.finish_key} if parent else {}
    cache = cache if tier == "ram" else lab.on_disk(cache)
    against = lab.cold("repeat")
    with lab.desk("repeat", cache=cache, against=against, logits=logits, **params) as desk:
        done = desk.ask(MAIN, lab.prompt, lab.n_reply, **fields)
        came_from(done, tier, _exact(lab))
        return lab.agreement(desk)


def stored_in_company(lab: Lab, tier: str) -> Agreement:
    """Alone in another process, from rows that were computed beside three other requests."""
    others = [lab.text(80 + n, 50 + 90 * n) for n in range(3)]
    cache = lab.cache()
    with lab.desk("repeat", cache=cache, logits=NO_LOGITS) as desk:
        desk.recorder.when(others[0], 3, partial(desk.put, "first", lab.prompt, 5))
        for n, other in enumerate(others):
            desk.put(f"other-{n}", other, lab.n_reply)
        for _ in range(4):
            desk.wait()
    cache = cache if tier == "ram" else lab.on_disk(cache)
    against = lab.cold("repeat")
    with lab.desk("repeat", cache=cache, against=against, logits=NO_LOGITS) as desk:
        came_from(desk.ask(MAIN, lab.prompt, lab.n_reply), tier, _exact(lab))
        return lab.agreement(desk)


def turn_repeated(lab: Lab, tier: str) -> Agreement:
    """The next turn once more, in another process, after a first one in the live sequence."""
    cache = lab.cache()
    with lab.desk("repeat", cache=cache, logits=NO_LOGITS) as desk:
        desk.ask("first", lab.prompt, lab.N_TURN, **lab.conversation)
        came_from(desk.ask("turn", lab.turn, 3, **lab.conversation), "live", len(lab.prompt))
    cache = cache if tier == "ram" else lab.on_disk(cache)
    with lab.desk("repeat", cache=cache, against=lab.live_turn, logits=NO_LOGITS) as desk:
        came_from(desk.ask(MAIN, lab.turn, lab.n_reply), tier, len(lab.turn) - 1)
        return lab.agreement(desk, lab.turn)


def next_turn(lab: Lab, tier: str, *, parent: bool = False) -> Agreement:
    """The next turn, compared with the live one."""
    cache = lab.cache()
    with lab.desk("repeat", cache=cache) as desk:
        done = desk.ask("first", lab.prompt, lab.N_TURN)
        fields = {"parent_key": done.finish_key} if parent else {}
    cache = cache if tier == "ram" else lab.on_disk(cache)
    with lab.desk("repeat", cache=cache, against=lab.live_turn) as desk:
        came_from(desk.ask(MAIN, lab.turn, lab.n_reply, **fields), tier, _blocks(lab))
        return lab.agreement(desk, lab.turn)


# ── ways of level prefix ────────────────────────────────────────────────────────────────────────


def shared_beginning(lab: Lab, n_shared: int, tier: str) -> Agreement:
    """Behind another prompt that has only so many first tokens in common."""
    other = (*lab.prompt[:n_shared], *lab.text(31, len(lab.prompt) - n_shared + 37))
    lab.with_reply(other, 32)
    cache = lab.cache()
    expected = n_shared if lab.can_cut else int(n_shared > _FIRST_STATE)
    with lab.desk("prefix", cache=cache, against=lab.cold("prefix")) as desk:
        desk.ask("first", other, 5)
        if tier == "live":
            near = _near(lab) if expected else "none"
            came_from(desk.ask(MAIN, lab.prompt, lab.n_reply), near, expected)
            return lab.agreement(desk)
    cache = cache if tier == "ram" else lab.on_disk(cache)
    with lab.desk("prefix", cache=cache, against=lab.cold("prefix")) as desk:
        came_from(desk.ask(MAIN, lab.prompt, lab.n_reply), tier if expected else "none", expected)
        return lab.agreement(desk)


def resumed(lab: Lab, share: float, *, stored: bool) -> Agreement:
    """A reply that goes on in another process, behind this share of its tokens."""
    cache, k = lab.cache(), max(1, int(share * lab.n_reply))
    if stored:
        with lab.desk("prefix", cache=cache, save=KEEPS_BLOCKS) as desk:
            desk.ask(MAIN, lab.prompt, lab.n_reply)
    keeper = JournalKeeper()
    try:
        writer = JournalWriter.open(keeper.path)
        writer.begin(lab.prompt, lab.reply[:k])
        writer.close()
        with lab.desk("prefix", cache=cache, against=lab.cold("prefix")) as desk:
            done = desk.ask(MAIN, lab.prompt, lab.n_reply, journal=keeper.path)
            if stored:
                came_from(done, "ram", BLOCK_TOKENS)
            return lab.agreement(desk, first=k)
    finally:
        keeper.close()


def beside_idle(lab: Lab, lengths: Sequence[int], live: LivePolicy = STAYS) -> Agreement:
    """Idle sequences of these lengths lie in the pool, some of which were dropped."""
    with lab.desk("prefix", against=lab.cold("prefix"), live=live) as desk:
        for number, length in enumerate(lengths, start=40):
            desk.ask(f"idle-{number}", lab.text(number, length), 5)
        desk.ask(MAIN, lab.prompt, lab.n_reply)
        return lab.agreement(desk)


def behind_dropped(lab: Lab) -> Agreement:
    """Two idle sequences remain of six, so the cells between them are used out of order."""
    return beside_idle(lab, (37, 150, 33, 241, 18, 90), replace(STAYS, max_idle=2))


def idle_between(lab: Lab) -> Agreement:
    """The cells of an idle sequence lie between those of the prompt and those of the reply."""
    with lab.desk("prefix", against=lab.cold("prefix")) as desk:
        desk.ask("before", lab.text(61, 99), 5)
        desk.ask("first", lab.prompt, 3)
        desk.ask("between", lab.text(62, 171), 5)
        desk.recorder.deltas[lab.prompt].clear()
        came_from(desk.ask(MAIN, lab.prompt, lab.n_reply), _near(lab), _exact(lab))
        return lab.agreement(desk)


# ── ways of level always ────────────────────────────────────────────────────────────────────────


def in_company(lab: Lab, n_others: int) -> Agreement:
    """Others begin before this request, with it, and while its reply is computed."""
    others = [lab.text(90 + n, 60 + 83 * n % 400) for n in range(n_others)]
    with lab.desk("always", against=lab.cold("always")) as desk:
        phases = [(others[0], 7, (MAIN, lab.prompt, lab.n_reply))]
        for n, other in enumerate(others[1:], start=1):
            start = (f"other-{n}", other, 3 * lab.n_reply // 4)
            phases.append((lab.prompt, lab.n_reply * (n - 1) // n_others, start))
        for prompt, index, start in phases:
            desk.recorder.when(prompt, index, partial(desk.put, *start))
        desk.put("other-0", others[0], lab.n_reply)
        for _ in range(n_others + 1):
            desk.wait()
        return lab.agreement(desk)


def with_guesses(lab: Lab) -> Agreement:
    with lab.desk("always", against=lab.cold("always")) as desk:
        done = desk.ask(MAIN, lab.prompt, lab.n_reply, speculation=m.Speculation.NGRAM)
        if not done.usage.accepted_tokens:
            raise WayNotTaken("no guess was accepted")
        return lab.agreement(desk)


def turn_as_cold(lab: Lab, tier: str) -> Agreement:
    """The next turn, compared with the same conversation read cold."""
    cache = lab.cache()
    against = lab.cold("always", lab.turn)
    least = _blocks(lab)
    with lab.desk("always", cache=cache, against=against) as desk:
        desk.ask("first", lab.prompt, lab.N_TURN, **lab.conversation)
        if tier == "live":
            done = desk.ask(MAIN, lab.turn, lab.n_reply, **lab.conversation)
            came_from(done, tier, least)
            return lab.agreement(desk, lab.turn)
    cache = cache if tier == "ram" else lab.on_disk(cache)
    with lab.desk("always", cache=cache, against=against) as desk:
        came_from(desk.ask(MAIN, lab.turn, lab.n_reply), tier, least)
        return lab.agreement(desk, lab.turn)


def eight_at_once(lab: Lab) -> Agreement:
    """Eight different requests, put together, and each of them alone."""
    prompts = [lab.text(200 + n, 20 + 71 * n % 500) for n in range(N_SEQ)]
    alone: dict[Prompt, Trace] = {}
    for prompt in prompts:
        alone |= lab.cold("always", prompt)
        lab.forget(prompt, "always")
    with lab.desk("always", against=alone) as desk:
        for n, prompt in enumerate(prompts):
            desk.put(f"r{n}", prompt, lab.n_reply)
        for _ in prompts:
            desk.wait()
        found = [desk.recorder.deltas[prompt] for prompt in prompts]
    if any(len(one) != lab.n_reply for one in found):
        raise WayNotTaken(f"{[len(one) for one in found]} positions were compared")
    return Agreement.of(*found)


# ── the ways ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Way:
    """One way, and the level of exactness that promises it to agree."""

    level: Level
    name: str
    computed: Callable[[Lab], Agreement]
    needs_cut: bool = False
    """Whether it does not exist for memory that cannot be cut."""

    def run(self, lab: Lab) -> Agreement:
        """Compute the reply in this way, and compare it."""
        with lab.folder():
            return self.computed(lab)

    @property
    def id(self) -> str:
        """For the name of a test."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def _ways() -> Iterator[Way]:
    for n_batch in (512, 64, 77, 200):
        yield Way("repeat", f"cold, n_batch {n_batch}", partial(cold_again, n_batch=n_batch))
    yield Way("repeat", "cold, n_ubatch 96", partial(cold_again, n_ubatch=96))
    for n in (1, 3):
        yield Way("repeat", f"cold, {n} thread{'s' * (n > 1)}", partial(cold_again, n_threads=n))
    yield Way("repeat", "repeat, live, logits kept", repeated_live)
    yield Way("repeat", "repeat, live, logits not kept", partial(repeated_live, logits=NO_LOGITS))
    for tier in ("ram", "disk"):
        once = partial(repeated_from, tier=tier)
        yield Way("repeat", f"repeat, {tier}", once)
        yield Way("repeat", f"repeat, {tier}, logits in rows", partial(once, logits=LOGITS_IN_ROWS))
        yield Way("repeat", f"repeat, {tier}, by parent_key", partial(once, parent=True))
        company = partial(stored_in_company, tier=tier)
        yield Way("repeat", f"repeat, {tier}, stored in company", company)
        yield Way("repeat", f"next turn, {tier}", partial(next_turn, tier=tier))
        yield Way("repeat", f"next turn repeated, {tier}", partial(turn_repeated, tier=tier))
        yield Way(
            "repeat", f"next turn, {tier}, parent_key", partial(next_turn, tier=tier, parent=True)
        )
    for n_shared in (64, 333, 576, 700):
        for tier in ("live", "ram"):
            run = partial(shared_beginning, n_shared=n_shared, tier=tier)
            yield Way("prefix", f"{n_shared} tokens shared, {tier}", run)
    yield Way(
        "prefix", "500 tokens shared, disk", partial(shared_beginning, n_shared=500, tier="disk")
    )
    for share in (0.0, 0.35, 0.5, 0.97):
        name = f"resumed at {share:.0%}" if share else "resumed after one token"
        for stored in (False, True):
            what = "blocks stored" if stored else "nothing stored"
            yield Way("prefix", f"{name}, {what}", partial(resumed, share=share, stored=stored))
    yield Way("prefix", "one idle sequence before it", partial(beside_idle, lengths=(300,)))
    yield Way("prefix", "five idle sequences", partial(beside_idle, lengths=(37, 150, 33, 241, 90)))
    yield Way("prefix", "cells of dropped sequences", behind_dropped)
    yield Way("prefix", "an idle sequence between prompt and reply", idle_between)
    for n_others in (1, 3, 7):
        yield Way("always", f"{n_others} in company", partial(in_company, n_others=n_others))
    yield Way("always", "guesses", with_guesses, needs_cut=True)
    for tier in ("live", "ram", "disk"):
        yield Way("always", f"next turn as cold, {tier}", partial(turn_as_cold, tier=tier))
    yield Way("always", "eight at once", eight_at_once)


WAYS: Final = tuple(_ways())
