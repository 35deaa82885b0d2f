"""Where the bytes of each token of a reply lie, counted in two ways.

*Written* bytes are those that markers are looked for in: the text of every token, that of control
tokens included. *Visible* bytes are those that a caller may see: control tokens have none. A token
that is no control token has the same bytes in both; so the two counts differ by the text of the
control tokens before a position.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import NewType

Written = NewType("Written", int)
"""A position among the written bytes of a reply."""
Visible = NewType("Visible", int)
"""A position among its visible bytes."""


class Positions:
    """The tokens of one reply, in order; how many of them were taken, to be delivered."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._written_ends: list[Written] = []
        self._visible_ends: list[Visible] = []
        self._unseen: deque[tuple[Written, Written]] = deque()
        """Where the text of control tokens lies that ``visible_part`` has not passed yet."""
        self._n_taken = 0
        self._taken_end = Written(0)
        self._end = Written(0), Visible(0)

    def __len__(self) -> int:
        """How many tokens there are."""
        return len(self._tokens)

    def add(self, token: int, visible: bytes, written: bytes) -> None:
        """A token: its visible bytes, or none and what stands for it."""
        start, seen = self._end
        end = Written(start + len(visible or written))
        self._end = end, Visible(seen + len(visible))
        self._tokens.append(token)
        self._written_ends.append(end)
        self._visible_ends.append(self._end[1])
        if written and not visible:
            self._unseen.append((start, end))

    # ── asked by position ───────────────────────────────────────────────────────────────────────

    def visible_at(self, at: Written) -> Visible:
        """How many visible bytes lie before a written position."""
        index = bisect_right(self._written_ends, at)
        before = self._visible_ends[index - 1] if index else Visible(0)
        is_shown = index < len(self._tokens) and self._visible_ends[index] > before
        return Visible(before + at - self._start(index)) if is_shown else before

    def ending_by(self, seen: Visible) -> int:
        """How many tokens end at this visible position or before it."""
        return bisect_right(self._visible_ends, seen)

    def holding(self, start: Written, end: Written) -> tuple[int, ...]:
        """The tokens from the first that holds a byte between two written positions to the last."""
        if start >= end:
            return ()
        first = bisect_right(self._written_ends, start)
        last = bisect_right(self._written_ends, Written(end - 1)) + 1
        return tuple(self._tokens[first:last])

    def visible_part(self, at: Written, data: bytes) -> bytes:
        """The written bytes from ``at`` on without the text of control tokens.

        Ask in order of position: what was asked for once is not kept.
        """
        if not self._unseen:
            return data
        end = at + len(data)
        shown, done = b"", int(at)
        while self._unseen and self._unseen[0][0] < end:
            first, last = self._unseen[0]
            shown += data[done - at : max(done, first) - at]
            done = min(last, end)
            if last > end:
                break
            self._unseen.popleft()
        return shown + data[done - at :]

    # ── delivering ──────────────────────────────────────────────────────────────────────────────

    def take_before(self, at: Written) -> tuple[int, ...]:
        """The tokens not taken yet that begin before a written position."""
        ends, upto, start = self._written_ends, self._n_taken, self._taken_end
        while upto < len(ends) and start < at:
            start = ends[upto]
            upto += 1
        return self._take(upto)

    def take_empty(self, at: Written) -> tuple[int, ...]:
        """The tokens without any bytes that come next, as far as this written position."""
        ends, upto, start = self._written_ends, self._n_taken, self._taken_end
        while upto < len(ends) and start == ends[upto] <= at:
            upto += 1
        return self._take(upto)

    def take_all(self) -> tuple[int, ...]:
        """All tokens that were not taken yet."""
        return self._take(len(self._tokens))

    def _take(self, upto: int) -> tuple[int, ...]:
        if upto == self._n_taken:
            return ()
        taken = tuple(self._tokens[self._n_taken : upto])
        self._n_taken, self._taken_end = upto, self._written_ends[upto - 1]
        return taken

    def _start(self, index: int) -> Written:
        return self._written_ends[index - 1] if index else Written(0)
