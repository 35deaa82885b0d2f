"""Guessing the next tokens from earlier ones, and how many guesses are worth a step.

Pure: no clock, no thread, no native code. ``engine.speculative_decoding`` owns those and asks here.

Two things decide. *How likely* is a guess: of a copied passage each request learns it by the length
of the agreement so far, from every sampled token, whether a guess was computed for it or not; so
learning costs nothing, and a text without copies is not slowed down. *What it costs*: one more row
in a step is nearly free on a GPU and half a step on a CPU, so seconds by rows are learned, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

NGRAMS = (4, 3, 2)
"""Lengths of what must agree before something is guessed, the longest first."""


@dataclass(frozen=True, slots=True)
class SpeculationPolicy:
    """How far guessing goes. ``row_cost`` is one more row over a whole step; None learns it."""

    max_guesses: int = 31
    """Of one request in one step; 32 rows are a full tile of most matrix kernels."""
    min_gain: float = 0.08
    """Share of tokens a second that guessing must promise to win."""
    row_cost: float | None = None


# ── prompt lookup ───────────────────────────────────────────────────────────────────────────────


class PromptLookup:
    """What followed the last tokens when they occurred before. A token costs O(1) to add."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        """n-gram → where its most recent occurrence ended, exclusive."""
        self._source: int | None = None
        """Position of the token that is expected next, in an earlier copy of the present text."""
        self.agreed = 0
        """Tokens before ``source`` that are known to equal the last tokens."""

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def expected(self) -> int | None:
        """The token that follows if this is a copy."""
        return None if self._source is None else self._tokens[self._source]

    def extend(self, tokens: Iterable[int]) -> None:
        """More of the text, prompt or reply."""
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token; the hot path of every step."""
        tokens, ends, source = self._tokens, self._ends, self._source
        if source is not None and tokens[source] == token:
            self.agreed += 1
            source += 1
        else:
            source, self.agreed = None, 0
        tokens.append(token)
        end = len(tokens)
        tail = tuple(tokens[-NGRAMS[0] :])
        for n in NGRAMS:
            if end < n:
                continue
            gram = tail[-n:]
            # A copy that continues is not looked up again: it agreed one token ago, too.
            if source is None and (found := ends.get(gram)) is not None:
                source, self.agreed = found, n
            ends[gram] = end
        self._source = source

    def guess(self, limit: int) -> list[int]:
        """At most ``limit`` tokens; a copy that reaches the end continues with its own guesses."""
        at, guessed = self._source, list[int]()
        while at is not None and len(guessed) < limit:
            behind = at - len(self._tokens)
            guessed.append(self._tokens[at] if behind < 0 else guessed[behind])
            at += 1
        return guessed


_ENDS = (3, 4, 5, 8, 16, 32)
"""Classes of agreements: up to the first, the second … of these lengths, exclusive, and beyond."""
_PRIOR = (0.15, 0.25, 0.4, 0.6, 0.8, 0.9, 0.95)
"""Low: a copied passage soon shows, and a wrong guess costs more than a late one."""
_PRIOR_WEIGHT = 6.0
_HOPELESS = 0.02
_MEMORY = 0.97  # what an observation weighs after one more


class CopyOdds:
    """How often a copy continues, by how long it has agreed; learned per request."""

    def __init__(self) -> None:
        self._right = [p * _PRIOR_WEIGHT for p in _PRIOR]
        self._seen = [_PRIOR_WEIGHT] * len(_PRIOR)

    def record(self, agreed: int, is_right: bool) -> None:
        """What was expected after ``agreed`` tokens came, or did not."""
        at = _class_of(agreed)
        self._right[at] = self._right[at] * _MEMORY + is_right
        self._seen[at] = self._seen[at] * _MEMORY + 1

    def of(self, agreed: int, n: int) -> list[float]:
        """For each of the next ``n`` tokens: the chance that it and all before it are right.

        Fewer where the chance becomes too small to matter.
        """
        chances, chance = [], 1.0
        for length in range(agreed, agreed + n):
            at = _class_of(length)
            chance *= self._right[at] / self._seen[at]
            if chance < _HOPELESS:
                break
            chances.append(chance)
        return chances


_CLASSES = [sum(length >= end for end in _ENDS) for length in range(_ENDS[-1] + 1)]


def _class_of(agreed: int) -> int:
    return _CLASSES[min(agreed, _ENDS[-1])]


class CopyGuesser:
    """Prompt lookup for one request: what it expects, and how likely that is."""

    def __init__(self) -> None:
        self._lookup = PromptLookup()
        self._odds = CopyOdds()

    def catch_up(self, tokens: Sequence[int], *, n_prompt: int, limit: int) -> bool:
        """Read at most ``limit`` more of the request's tokens; whether that was all.

        A reply's tokens are compared with what was expected, which teaches the odds.
        """
        lookup = self._lookup
        start, n_tokens = len(lookup), len(tokens)
        for at in range(start, min(n_tokens, start + limit)):
            token = tokens[at]
            if at >= n_prompt and (expected := lookup.expected) is not None:
                self._odds.record(lookup.agreed, token == expected)
            lookup.add(token)
        return start + limit >= n_tokens

    @property
    def is_expecting(self) -> bool:
        """Whether the last tokens occurred before."""
        return self._lookup.expected is not None

    def chances(self, n: int) -> list[float]:
        """For each of the next ``n`` guesses: that it and those before it are right."""
        return self._odds.of(self._lookup.agreed, n)

    def guess(self, n: int) -> list[int]:
        return self._lookup.guess(n)


# ── what a step costs ───────────────────────────────────────────────────────────────────────────

_EXACT_ROWS = 32  # beyond, sizes are rounded up to multiples of it
_FORGET_AFTER = 512
_FIRST_GUESS = 0.25  # of a step, for one row more, before anything was seen


@dataclass(slots=True)
class _Seen:
    seconds: float  # over the drift at that time
    at: int


@dataclass(slots=True)
class StepCost:
    """Seconds of a step by its rows, learned while running; only ratios are used.

    What makes all steps slower, such as a longer context or a busy machine, moves all estimates; a
    size that was not seen for long is forgotten, since one bad measurement would be kept forever
    otherwise. A step of another size than the last one also costs the planning of its graph,
    which is nothing for a big model and half a step for a tiny one.
    """

    row_cost: float | None = None
    change: float = 0.0
    """Seconds that a step of another size than the last one takes longer."""
    _by_rows: dict[int, _Seen] = field(default_factory=dict)
    _drift: float = 1.0
    _n: int = 0
    _last: int = 0
    _estimates: dict[int, float] = field(default_factory=dict)
    """Results of ``of`` since the last 16 steps; it is called for 30 sizes a step."""

    def record(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if self.row_cost is not None or seconds <= 0:
            return
        self._n += 1
        is_change, self._last = rows != self._last, rows
        rows = _size(rows)
        known = self._by_rows.get(rows)
        if self._n % 16 == 0 or known is None:
            self._estimates.clear()
        if known is None:
            # The first step of a size also plans its memory and graph: its time is too long.
            likely = 1.5 * self._estimate(rows) if self._by_rows else seconds
            self._by_rows[rows] = _Seen(min(seconds, likely) / self._drift, self._n)
            return
        expected = known.seconds * self._drift
        known.at = self._n
        if is_change:
            extra = max(0.0, min(seconds - expected, 4 * expected))
            self.change += (extra - self.change) * 0.05
            # How much of it the size itself takes shows when it stays; it is not more, at least.
            seconds = min(seconds, expected)
        ratio = max(0.5, min(2.0, seconds / expected))
        known.seconds *= ratio**0.15
        self._drift *= ratio**0.1
        if self._n % 64 == 0:
            self._forget()

    def of(self, rows: int) -> float:
        """Estimate for so many rows; 1.0 a step when nothing was seen yet."""
        if self.row_cost is not None:
            return 1.0 + self.row_cost * (rows - 1)
        found = self._estimates.get(rows)
        if found is None:
            found = self._estimates[rows] = self._estimate(_size(rows))
        return found

    def with_guesses(self, rows: int, n: int) -> float:
        """The same for ``n`` rows more, after the last step, and on the way back to ``rows``."""
        n_changes = (rows + n != self._last) + (n > 0 and rows == self._last)
        return self.of(rows + n) + n_changes * self.change

    def _estimate(self, rows: int) -> float:
        if not self._by_rows:
            return 1.0 + _FIRST_GUESS * (rows - 1)
        if (known := self._by_rows.get(rows)) is not None:
            return known.seconds * self._drift
        sizes = sorted(self._by_rows)
        below = max((size for size in sizes if size < rows), default=None)
        above = min((size for size in sizes if size > rows), default=None)
        if below is None:
            above = sizes[0]
            whole = self._by_rows[above].seconds * self._drift
            return whole * (1 + _FIRST_GUESS * (rows - 1)) / (1 + _FIRST_GUESS * (above - 1))
        low = self._by_rows[below].seconds
        if above is not None:
            slope = (self._by_rows[above].seconds - low) / (above - below)
        elif below != sizes[0]:
            slope = (low - self._by_rows[sizes[0]].seconds) / (below - sizes[0])
        else:
            slope = low * _FIRST_GUESS / (1 + _FIRST_GUESS * (below - 1))
        return (low + max(0.0, slope) * (rows - below)) * self._drift

    def _forget(self) -> None:
        least = min(self._by_rows)
        for rows in [r for r, one in self._by_rows.items() if self._n - one.at > _FORGET_AFTER]:
            if rows != least:
                del self._by_rows[rows]


def _size(rows: int) -> int:
    return rows if rows <= _EXACT_ROWS else -(-rows // _EXACT_ROWS) * _EXACT_ROWS


# ── how many guesses ────────────────────────────────────────────────────────────────────────────


def share_guesses(
    chances: Sequence[Sequence[float]],
    *,
    rows: int,
    n_sampled: int,
    room: int,
    cost: StepCost,
    min_gain: float = 0.0,
) -> list[int]:
    """How many guesses of each request go into a step that has ``rows`` rows without them.

    ``chances`` are never increasing, one list per request; ``n_sampled`` tokens come out of the
    step anyway. Chosen is what promises the most tokens a second of all requests together, so that
    the guesses of one never slow the others down by more than they win; none if that is less than
    ``min_gain``.
    """
    ranked = [(chance, index) for index, odds in enumerate(chances) for chance in odds]
    if len(chances) > 1:
        ranked.sort(key=lambda one: -one[0])  # stable, so a request's own keep their order
    least = n_sampled / cost.with_guesses(rows, 0) * (1 + min_gain)
    best_n, best_rate, expected = 0, least, float(n_sampled)
    if expected + sum(chance for chance, _ in ranked) <= least * cost.of(rows + 1):
        return [0] * len(chances)  # not even if all of them cost no more than one
    for n, (chance, _) in enumerate(ranked[:room], start=1):
        expected += chance
        rate = expected / cost.with_guesses(rows, n)
        if rate > best_rate:
            best_n, best_rate = n, rate
    counts = [0] * len(chances)
    for _, index in ranked[:best_n]:
        counts[index] += 1
    return counts


# ── drafts ──────────────────────────────────────────────────────────────────────────────────────

_PAUSE, _LONGEST_PAUSE = 16, 512


@dataclass(slots=True)
class DraftPace:
    """How many tokens a draft model should guess for one request: its guesses cost time, too.

    Where it does not gain time, it is tried again after a pause, which doubles each time.
    """

    right: float = 2.0
    seen: float = 3.0
    _pause: int = _PAUSE
    _rests_until: int = 0

    @property
    def chance(self) -> float:
        """That the next guess is right."""
        return min(0.99, self.right / self.seen)

    def record(self, guessed: int, accepted: int) -> None:
        """Of ``guessed`` tokens the first ``accepted`` were right."""
        judged = accepted + (accepted < guessed)
        self.right = self.right * _MEMORY**judged + accepted
        self.seen = self.seen * _MEMORY**judged + judged

    def length(
        self,
        n_reply: int,
        *,
        rows: int,
        draft_step: float,
        cost: StepCost,
        policy: SpeculationPolicy,
    ) -> int:
        """Guesses to draft now, after ``n_reply`` tokens. ``draft_step``: one guess, as a cost."""
        if n_reply < self._rests_until:
            return 0
        chance, expected, weight = self.chance, 1.0, 1.0
        alone = cost.with_guesses(rows, 0)
        best, best_rate = 0, (1 + policy.min_gain) / alone
        for n in range(1, policy.max_guesses + 1):
            weight *= chance
            expected += weight
            rate = expected / (cost.with_guesses(rows, n) + n * draft_step)
            if rate > best_rate:
                best, best_rate = n, rate
        if best:
            self._pause = _PAUSE
            return best
        self._rests_until = n_reply + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return 1  # the last look before the pause: it may have become better


def chances_of(chance: float, n: int) -> list[float]:
    """For ``n`` guesses of equal chance: that each and all before it are right."""
    return [chance**at for at in range(1, n + 1)]
