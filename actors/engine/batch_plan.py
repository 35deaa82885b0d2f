"""What a model does next, as functions of values: admission and the plan of one step.

No clock, no thread, no native code: the engine owns those and asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

ROWS_ALONE: Final = 32
"""Rows of a step that computes each row alone, where nothing else is to be done. Such a row takes
as long as a step of its own; more of them only make a step longer."""
ROWS_ALONE_BESIDE: Final = 4
"""The same where other requests wait for their turn."""


class Demand(NamedTuple):
    """What one request needs of a step. A tuple, since each step makes one for each request."""

    n_pending: int
    """Tokens that are known and not in the context; at least one."""
    is_generating: bool = False
    """Whether its prompt is in the context, so that it decodes one token at a time."""
    must_be_alone: bool = False
    """Whether it computes its reply again, each row alone: see ``engine.exactness``."""
    stop_after: int | None = None
    """Rows after which its slice of this step ends."""
    may_guess: bool = False
    """Whether guesses may follow its last token, if that is part of the step."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How many rows a step may have."""

    n_batch: int
    prefill_share: int
    """Rows of prompts while other requests generate; and the most guesses of a step."""


@dataclass(frozen=True, slots=True)
class Slice:
    """``n_tokens`` of one request's pending tokens that go into this step."""

    index: int
    """Position of the request in the list that was planned."""
    n_tokens: int
    reaches_end: bool
    """Whether the request's last known token is among them, so that its next one can be sampled."""
    n_guesses: int = 0
    """Draft tokens behind the known ones; ``engine.speculative_decoding`` verifies them."""


@dataclass(frozen=True, slots=True)
class Guessable:
    """A step without guesses: the requests that may guess, and how many rows are left for that."""

    indexes: tuple[int, ...]
    """Requests, by position, whose last token is part of the step."""
    rows: int
    n_sampled: int
    """Requests that sample a token from this step."""
    room: int


Choose = Callable[[Guessable], Sequence[int]]
"""Returns how many guesses each of ``Guessable.indexes`` has."""


def plan_step(
    demands: Sequence[Demand],
    budget: Budget,
    choose: Choose | None = None,
    *,
    after_alone: bool = False,
) -> list[Slice]:
    """Share one batch: generating requests first, then prompts, then guesses.

    While a request generates, prompts get at most ``prefill_share`` tokens of a step, so that a
    long prompt of one caller does not stop the stream of another; and so much times more as there
    are more prompts than streams, since small steps delay the waiting ones (on a 1.1B model and two
    cores, 128 tokens a step instead of 512 made eight callers wait a fifth longer). The oldest
    prompt gets half of what prompts get, the others share the rest evenly: so a short prompt does
    not wait for a long one before it, and the oldest still comes first among equals.

    Rows that must be computed alone take turns with all others, which ``after_alone`` come first:
    one slow row then costs each stream no more than one token's time, however many streams there
    are. ``choose`` is called where guesses are possible; they are extra: what is planned without
    them stays.
    """
    generating: list[int] = []
    prompts: list[int] = []
    again: list[int] = []
    may_guess = False
    for index, one in enumerate(demands):
        kind = generating if one.is_generating else again if one.must_be_alone else prompts
        kind.append(index)
        may_guess = may_guess or one.may_guess
    others = bool(generating or prompts)
    if again and not (after_alone and others):
        room = min(budget.n_batch, ROWS_ALONE_BESIDE if others else ROWS_ALONE)
        return _shared(room, again, demands)
    slices = [_slice(index, demands[index], 1) for index in generating[: budget.n_batch]]
    if prompts:
        left = budget.n_batch - len(slices)
        if slices:
            share = budget.prefill_share * max(1, len(prompts) // len(generating))
            left = min(left, share)
        slices += _shared(left, prompts, demands)
    if choose is None or not may_guess:
        return slices
    return _with_guesses(slices, demands, budget, choose)


def _shared(room: int, indexes: Sequence[int], demands: Sequence[Demand]) -> list[Slice]:
    shares = _share_fairly(room, [demands[i].n_pending for i in indexes])
    return [_slice(i, demands[i], n) for i, n in zip(indexes, shares, strict=True) if n]


def _slice(index: int, demand: Demand, n_tokens: int) -> Slice:
    if demand.stop_after is not None:
        n_tokens = min(n_tokens, demand.stop_after)
    return Slice(index, n_tokens, reaches_end=n_tokens == demand.n_pending)


def _share_fairly(room: int, pending: Sequence[int]) -> list[int]:
    """Tokens for each prompt, oldest first: half for the oldest, the rest in even parts.

    What one cannot use goes to the others; together all of ``room`` or all that is pending.
    """
    if not pending:
        return []
    shares = [min(pending[0], room - room // 2 if len(pending) > 1 else room)]
    left = room - shares[0]
    others = sorted(range(1, len(pending)), key=lambda i: pending[i])
    granted = dict.fromkeys(others, 0)
    for done, i in enumerate(others):  # the smallest first, so that what it leaves is shared on
        granted[i] = min(pending[i], -(-left // (len(others) - done)))
        left -= granted[i]
    shares[0] += min(left, pending[0] - shares[0])
    return shares + [granted[i] for i in range(1, len(pending))]


def _with_guesses(
    slices: list[Slice], demands: Sequence[Demand], budget: Budget, choose: Choose
) -> list[Slice]:
    ends = tuple(one.index for one in slices if one.reaches_end and demands[one.index].may_guess)
    if not ends:
        return slices
    rows = sum(one.n_tokens for one in slices)
    room = min(budget.n_batch - rows, budget.prefill_share)
    n_sampled = sum(one.reaches_end for one in slices)
    counts = dict(zip(ends, choose(Guessable(ends, rows, n_sampled, room)), strict=True))
    planned: list[Slice] = []
    for one in slices:
        n_guesses = min(counts.get(one.index, 0), room)
        room -= n_guesses
        planned.append(
            Slice(one.index, one.n_tokens, one.reaches_end, n_guesses) if n_guesses else one
        )
    return planned


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a prompt fits, and how many tokens it may generate."""

    fits: bool
    max_tokens: int
    n_cells: int


def admit(n_prompt: int, max_tokens: int, n_ctx: int) -> Admission:
    """Fit a request into a context of ``n_ctx`` tokens.

    The whole reply is reserved from the start, so a stream that was begun can always be ended. A
    request for more than fits is shortened, as llama-server does; its finish reason is ``length``.
    One that asks for no token needs room for its prompt alone.
    """
    room = n_ctx - n_prompt
    if room < min(1, max_tokens):
        return Admission(fits=False, max_tokens=0, n_cells=0)
    granted = min(max_tokens, room)
    return Admission(fits=True, max_tokens=granted, n_cells=n_prompt + granted)
