"""From token bytes to text a caller may see: whole characters only, and never a stop string.

Pure: bytes in, text out. A token may end inside a UTF-8 character, and a stop string may be spread
over several tokens; so text is held back while it could still turn out to be the start of a stop.
"""

from __future__ import annotations

import codecs


class IncrementalText:
    """The visible text of one reply.

    ``stops`` are tried at every position; the one that starts first ends the text, the longest of
    those that start at the same place. The stop itself is never visible.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(sorted((stop for stop in stops if stop), key=len, reverse=True))
        self._held = ""
        self._released = 0
        self.released_bytes = 0
        self._token_ends: list[int] = []
        self._n_fed = 0
        self.stopped_by: str | None = None

    def feed(self, piece: bytes) -> str:
        """Add one token's bytes; the text that became visible with it."""
        if self.stopped_by is not None:
            return ""
        if not self._stops:  # nothing to look for
            self._n_fed += 1
            return self._decoder.decode(piece)
        self._held += self._decoder.decode(piece)
        self._token_ends.append(self._released + len(self._held))
        return self._scan(final=False)

    def finish(self) -> str:
        """No more tokens: release what was held back, an unfinished character as U+FFFD."""
        if self.stopped_by is not None:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._scan(final=True)

    def visible_tokens(self) -> int:
        """How many of the fed tokens lie wholly inside the visible text.

        A finish row is saved at this boundary: what the caller cannot see cannot be part of the
        next prompt, so a row beyond it would never be found again.
        """
        if self.stopped_by is None:
            return len(self._token_ends) or self._n_fed
        return sum(1 for end in self._token_ends if end <= self._released)

    def _scan(self, *, final: bool) -> str:
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda hit: (hit[0], -len(hit[1])))
            # A longer stop that starts earlier may still be incomplete; it wins if it completes,
            # so wait for it unless the text ends here.
            if final or not self._may_start_before(at):
                self.stopped_by = stop
                return self._release(at)
            return self._release(self._earliest_partial())
        return self._release(len(self._held) if final else self._earliest_partial())

    def _earliest_partial(self) -> int:
        """The first position from which a stop could still grow; all before it is safe to show."""
        longest = max((len(stop) for stop in self._stops), default=0)
        for at in range(max(0, len(self._held) - longest + 1), len(self._held)):
            if any(stop.startswith(self._held[at:]) for stop in self._stops):
                return at
        return len(self._held)

    def _may_start_before(self, at: int) -> bool:
        return self._earliest_partial() < at

    def _release(self, n_chars: int) -> str:
        text, self._held = self._held[:n_chars], self._held[n_chars:]
        self._released += n_chars
        self.released_bytes += len(text.encode())
        return text
