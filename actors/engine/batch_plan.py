"""What a model does next, as functions of values: admission and the plan of one step.

No clock, no thread, no native code: the engine owns those and asks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol


class Timeline(Protocol):
    """What planning needs to know of a request."""

    @property
    def n_pending(self) -> int:
        """Tokens that are known but not yet in the context; at least one while it runs."""
        ...

    @property
    def is_generating(self) -> bool:
        """Whether its prompt is already in the context."""
        ...


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


def plan_step(timelines: Sequence[Timeline], *, n_batch: int, prefill_share: int) -> list[Slice]:
    """Share one batch of ``n_batch`` tokens: generating requests first, then prompts.

    While anyone generates, prompts get at most ``prefill_share`` tokens of a step, so that a
    long prompt of one caller does not stop the stream of another; and so much times more as there
    are more prompts than streams, since small steps cost those who wait (on a 1.1B model and two
    cores, 128 tokens a step instead of 512 made eight callers wait a fifth longer). The oldest
    prompt gets half of what prompts get, the others share the rest evenly: so a short prompt does
    not wait for a long one before it, and the oldest still comes first among equals.
    """
    slices: list[Slice] = []
    left = n_batch
    generating = [i for i, line in enumerate(timelines) if line.is_generating]
    for index in generating[:left]:
        slices.append(Slice(index, 1, reaches_end=timelines[index].n_pending == 1))
    left -= len(slices)
    prompts = [i for i, line in enumerate(timelines) if not line.is_generating]
    if slices:
        left = min(left, prefill_share * max(1, len(prompts) // len(generating)))
    shares = _share_fairly(left, [timelines[i].n_pending for i in prompts])
    for index, n_tokens in zip(prompts, shares, strict=True):
        if n_tokens:
            ends = n_tokens == timelines[index].n_pending
            slices.append(Slice(index, n_tokens, reaches_end=ends))
    return slices


def _share_fairly(room: int, pending: Sequence[int]) -> list[int]:
    """Tokens for each prompt, oldest first: half for the oldest, the rest in even parts.

    What somebody cannot use goes to the others; together all of ``room`` or all that is pending.
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


def add_guesses(plan: Sequence[Slice], wanted: Sequence[int], *, room: int) -> list[Slice]:
    """Put guesses behind planned tokens, ``wanted`` by request and ``room`` of them at most.

    They are extra: what was planned stays, and only who can sample its next token has any.
    """
    slices: list[Slice] = []
    for part in plan:
        n_guesses = min(wanted[part.index], room) if part.reaches_end else 0
        room -= n_guesses
        slices.append(replace(part, n_guesses=n_guesses) if n_guesses else part)
    return slices


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
