"""Log-probabilities on their way to a caller: one record of fixed size for each token of a reply.

A record is the chosen token's logarithm and, for each of the likeliest tokens, its id and its
logarithm: ``<f`` and n times ``<If``. All of one reply have the same size, so records of several
tokens are just joined, and the size of one follows from their number. Pure.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from native.backend import Logprobs

_NONE = 0xFFFFFFFF  # no token; fewer are left than were asked for


@dataclass(slots=True)
class LogprobsLog:
    """Those of one reply that were not sent yet. ``n`` None: the caller did not ask for any."""

    n: int | None = None
    _untold: list[bytes] = field(default_factory=list)
    _n_noted: int = 0

    def note(self, found: Logprobs) -> None:
        """The next token's."""
        self._untold.append(_pack(found, self.n or 0))
        self._n_noted += 1

    def reach(self, n_tokens: int) -> None:
        """The reply has so many tokens; one that was not sampled here has an empty record."""
        while self.n is not None and self._n_noted < n_tokens:
            self.note(Logprobs(math.nan, ()))

    def take(self, n_tokens: int) -> bytes:
        """The records of the next tokens to be sent; empty when the caller did not ask."""
        taken, self._untold = self._untold[:n_tokens], self._untold[n_tokens:]
        return b"".join(taken)


def _pack(found: Logprobs, n: int) -> bytes:
    pairs = [*found.top[:n], *[(_NONE, 0.0)] * (n - len(found.top))]
    flat = [part for pair in pairs for part in pair]
    return struct.pack("<f" + n * "If", found.chosen, *flat)


def unpack(records: bytes, n_tokens: int) -> tuple[Logprobs | None, ...]:
    """One for each token, None where its record is empty; empty when there are no records."""
    if not records or not n_tokens:
        return ()
    size = len(records) // n_tokens
    layout = struct.Struct("<f" + (size - 4) // 8 * "If")
    return tuple(_one(layout.unpack_from(records, at)) for at in range(0, len(records), size))


def _one(parts: tuple[float, ...]) -> Logprobs | None:
    chosen, *rest = parts
    if math.isnan(chosen):
        return None
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return Logprobs(chosen, tuple((int(token), value) for token, value in pairs if token != _NONE))
