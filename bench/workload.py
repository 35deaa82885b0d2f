"""A day of agents as prompts of token ids, from a seed; and the fewest tokens that it must compute.

The shape is that of published agent traffic, scaled: a conversation has 43 turns in the median and
more than 96 % of what it sends was sent or generated before. Each prompt is the one before, the
model's reply as it was generated, and the result of a tool. Some conversations have sub-agents,
with a beginning of their own; side requests (a title, summaries) have other tools and the end of
the conversation; now and then a result in the middle is replaced.

No clock, no server: replies come from the caller.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["turn", "sub-agent", "side"]
Tokens = tuple[int, ...]

SUB_AGENTS = 0.44
"""Of the conversations."""
_SCAFFOLD, _SUB_SCAFFOLD, _SIDE_SCAFFOLD, _TASK, _END = 0.22, 0.04, 0.02, 0.02, 0.02
"""System prompt and tools, those of sub-agents and of side requests; the task; what a side request
has of the conversation's end: shares of the tokens of a whole conversation."""
_REPLY = 0.25
"""Of the tokens that a turn adds."""
_SUB_TURNS = 7
"""A conversation has so many times the turns of its sub-agents."""
_SIDE_EVERY = 14
"""Turns."""
_EDIT_BACK = 3
"""Turns: so far back lies a result that is replaced."""
_BYTES = 4
"""Of a token id where sequences are compared."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Turns of a conversation in the median, and the tokens of its last prompt and reply."""

    n_turns: int = 43
    n_tokens: int = 142_000


@dataclass(frozen=True, slots=True)
class Edit:
    """The new tokens of the result that an earlier turn added."""

    turn: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """What one request adds: the reply of a sub-agent, if there is one, and a tool's result."""

    result: Tokens
    n_reply: int
    edit: Edit | None = None
    """Made before this turn."""
    sub_agent: Conversation | None = None
    """It answers before this turn."""
    side: Side | None = None
    """Asked after this turn."""


@dataclass(frozen=True, slots=True)
class Side:
    """A request with other tools about the last ``n_end`` tokens of the conversation."""

    scaffold: Tokens
    n_end: int
    n_reply: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """The beginning (system prompt, tools, task) and the turns in order."""

    kind: Kind
    beginning: Tokens
    turns: tuple[Turn, ...]

    @property
    def n_requests(self) -> int:
        """With those of sub-agents and side requests."""
        subs = sum(turn.sub_agent.n_requests for turn in self.turns if turn.sub_agent)
        return len(self.turns) + subs + sum(turn.side is not None for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Day:
    """One conversation for each agent; all agents work at the same time."""

    conversations: tuple[Conversation, ...]

    @property
    def n_requests(self) -> int:
        """Of all agents."""
        return sum(one.n_requests for one in self.conversations)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, and how many tokens its reply has."""

    kind: Kind
    prompt: Tokens
    n_reply: int


# --- generating -----------------------------------------------------------------------------------


def generate(seed: int, n_agents: int, scale: Scale, usable: Sequence[int]) -> Day:
    """Equal arguments give equal days; ``usable`` are the token ids that prompts may have."""
    return Day(tuple(_Writer(seed, number, scale, usable).main() for number in range(n_agents)))


class _Writer:
    """The text of one agent. What agents share has generators of its own."""

    def __init__(self, seed: int, number: int, scale: Scale, usable: Sequence[int]) -> None:
        self._seed, self._number, self._scale, self._usable = seed, number, scale, usable
        self._rng = random.Random(f"{seed} agent {number}")

    def main(self) -> Conversation:
        n_turns = max(2, round(self._scale.n_turns * self._rng.lognormvariate(0, 0.15)))
        growth = (1 - _SCAFFOLD - _TASK) * self._scale.n_tokens / n_turns
        task = self._own(_TASK)
        subs = {n_turns // 3} if self._has_sub_agents() else set()
        edits = {n_turns // 2, n_turns * 5 // 6} if n_turns > 2 * _EDIT_BACK else {n_turns // 2}
        turns = tuple(
            Turn(
                *self._step(growth),
                edit=self._edit(at, growth) if at in edits and at else None,
                sub_agent=self._sub_agent(task, n_turns, growth) if at in subs else None,
                side=self._side() if at == 0 or (at + 1) % _SIDE_EVERY == 0 else None,
            )
            for at in range(n_turns)
        )
        return Conversation("turn", self._shared("system", _SCAFFOLD) + task, turns)

    def _has_sub_agents(self) -> bool:
        """Of the first n agents a share of 0.44, rounded up."""
        before, after = (math.ceil(n * SUB_AGENTS) for n in (self._number, self._number + 1))
        return after > before

    def _sub_agent(self, task: Tokens, n_turns: int, growth: float) -> Conversation:
        turns = tuple(Turn(*self._step(growth)) for _ in range(max(1, n_turns // _SUB_TURNS)))
        part = task[: max(1, len(task) // 2)]
        own = self._tokens(self._rng, max(1, len(task) // 2))
        scaffold = self._shared("system of sub-agents", _SUB_SCAFFOLD)
        return Conversation("sub-agent", scaffold + part + own, turns)

    def _side(self) -> Side:
        scaffold = self._shared("system of side requests", _SIDE_SCAFFOLD)
        return Side(scaffold, self._count(_END), max(2, self._count(_END) // 6))

    def _edit(self, at: int, growth: float) -> Edit:
        return Edit(max(0, at - _EDIT_BACK), self._result(growth))

    def _step(self, growth: float) -> tuple[Tokens, int]:
        """The result and the length of the reply of one turn."""
        n_reply = round(growth * _REPLY * self._rng.uniform(0.5, 1.5))
        return self._result(growth), max(2, n_reply)

    def _result(self, growth: float) -> Tokens:
        """Most results are short, a few are many times as long."""
        sigma = 0.8
        mean = growth * (1 - _REPLY)
        drawn = self._rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)
        return self._tokens(self._rng, max(1, min(round(drawn), round(6 * mean))))

    def _shared(self, what: str, share: float) -> Tokens:
        return self._tokens(random.Random(f"{self._seed} {what}"), self._count(share))

    def _own(self, share: float) -> Tokens:
        return self._tokens(self._rng, self._count(share))

    def _count(self, share: float) -> int:
        return max(4, round(share * self._scale.n_tokens))

    def _tokens(self, rng: random.Random, n: int) -> Tokens:
        return tuple(rng.choices(self._usable, k=n))


# --- playing --------------------------------------------------------------------------------------


def play(conversation: Conversation) -> Generator[Request, Tokens, Tokens]:
    """Yields each request and is sent its reply; returns the last one."""
    parts: list[Tokens] = [conversation.beginning]
    results: list[int] = []
    reply: Tokens = ()
    for turn in conversation.turns:
        if turn.edit is not None:
            parts[results[turn.edit.turn]] = turn.edit.tokens
        if turn.sub_agent is not None:
            parts.append((yield from play(turn.sub_agent)))
        results.append(len(parts))
        parts.append(turn.result)
        prompt = tuple(token for part in parts for token in part)
        reply = yield Request(conversation.kind, prompt, turn.n_reply)
        parts.append(reply)
        if turn.side is not None:
            said = (prompt + reply)[-turn.side.n_end :]
            yield Request("side", turn.side.scaffold + said, turn.side.n_reply)
    return reply


def longest(day: Day) -> int:
    """Tokens of the longest prompt with its reply, for the size of a context."""
    return max(_longest(one) for one in day.conversations)


def _longest(conversation: Conversation) -> int:
    requests, found = play(conversation), 0
    request = next(requests)
    while True:
        found = max(found, len(request.prompt) + request.n_reply)
        try:
            request = requests.send((0,) * request.n_reply)
        except StopIteration:
            return found


# --- counting -------------------------------------------------------------------------------------


class Sequences:
    """Sequences of tokens, and how much of another one is the beginning of one of them.

    They are kept sorted: the longest common beginning is that with a neighbour.
    """

    def __init__(self) -> None:
        self._sorted: list[bytes] = []

    def add(self, tokens: Sequence[int]) -> None:
        """Every beginning of ``tokens`` is known from now on."""
        packed = _packed(tokens)
        at = bisect.bisect_left(self._sorted, packed)
        if at == len(self._sorted) or not self._sorted[at].startswith(packed):
            self._sorted.insert(at, packed)

    def known(self, tokens: Sequence[int]) -> int:
        """Tokens of the longest beginning of ``tokens`` that is known."""
        packed = _packed(tokens)
        at = bisect.bisect_left(self._sorted, packed)
        near = self._sorted[max(0, at - 1) : at + 1]
        return max((_common(packed, one) for one in near), default=0) // _BYTES


class Ledger:
    """What was sent and generated in a day so far. The caller serialises the calls."""

    def __init__(self) -> None:
        self._seen = Sequences()

    def sent(self, prompt: Sequence[int]) -> int:
        """Tokens of the prompt whose KV an earlier prompt or reply has needed: all may be reused.

        The others are distinct tokens, which any server must compute.
        """
        known = self._seen.known(prompt)
        self._seen.add(prompt)
        return known

    def answered(self, prompt: Sequence[int], reply: Sequence[int]) -> None:
        """Nothing was computed from the reply's last token."""
        self._seen.add([*prompt, *reply[:-1]])


def _packed(tokens: Sequence[int]) -> bytes:
    """Bytes in the order of the tokens."""
    return b"".join(token.to_bytes(_BYTES, "big") for token in tokens)


def _common(a: bytes, b: bytes) -> int:
    """Bytes of the common beginning, by halving."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
