"""What a prompt has in common with earlier ones of its model, part by part.

Of each earlier conversation the digests and positions of its parts are kept, and no text. Two of
them are compared by their digests, which are of all the text up to the end of a part: so the number
of parts in common is found by halving.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final

from actors.messages.completion import Divergence
from actors.text.part_places import Pieces, Places, digests_of, token_ends
from actors.text.parts import REPLY, TOOLS, Part, Parts
from cache import tokens as token_bytes

MAX_CONVERSATIONS: Final = 128
MAX_PARTS: Final = 16_384
"""Of all that are kept: about 2 MB."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a prompt has in common with the nearest earlier one."""

    n_parts: int
    """Leading parts of the prompt that the earlier one has too."""
    n_tokens: int
    """Tokens of the earlier prompt."""
    n_chars: int
    is_continued: bool
    """Whether the earlier one ended there, but for what begins its reply."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """An earlier conversation."""

    ends: tuple[int, ...]
    """Characters up to the end of each part."""
    tokens: tuple[int | None, ...]
    token_digests: tuple[int, ...]
    """Of the tokens up to the end of each part, as far as those are known; of this process only."""
    digests: tuple[bytes, ...]
    n_tokens: int
    ends_with_reply: bool
    salt: bytes

    @property
    def key(self) -> tuple[bytes, bytes]:
        return self.salt, self.digests[-1]

    def n_same(self, digests: Sequence[bytes]) -> int:
        """How many leading parts are the same."""
        most = min(len(self.digests), len(digests))
        return bisect_left(range(most), 1, key=lambda at: self.digests[at] != digests[at])


class RecentConversations:
    """The latest conversations of one model."""

    def __init__(
        self, max_conversations: int = MAX_CONVERSATIONS, max_parts: int = MAX_PARTS
    ) -> None:
        self._max = max_conversations
        self._max_parts = max_parts
        self._kept: OrderedDict[tuple[bytes, bytes], _Kept] = OrderedDict()
        self._n_parts = 0

    def __len__(self) -> int:
        return len(self._kept)

    def place(
        self,
        parts: Parts,
        text: str,
        ids: Sequence[int],
        packed: bytes,
        pieces: Pieces,
        salt: bytes = b"",
    ) -> tuple[Places, Earlier | None]:
        """Where the parts of a new prompt end, and what it shares with the nearest earlier one.

        ``ids``, and the same ``packed``, are the prompt's tokens. The prompt is kept, and compared
        with those of the same salt only.
        """
        found = parts.found
        digests = digests_of(found, text)
        ends = tuple(part.end for part in found)
        near, n_same = self._nearest(digests, salt)
        known = () if near is None else _still_there(near, n_same, packed)
        tokens = (*known, *_ends_behind(known, text, ends, ids, pieces))
        places = Places(parts, tokens, digests, len(ids))
        earlier = None
        if near is not None:
            n_left = len(near.digests) - n_same
            is_continued = n_left == 0 or (n_left == 1 and near.ends_with_reply)
            earlier = Earlier(n_same, near.n_tokens, near.ends[-1], is_continued)
            if is_continued:
                self._drop(near.key)
        ends_with_reply = found[-1].name == REPLY
        self._keep(
            _Kept(ends, tokens, _digests(tokens, packed), digests, len(ids), ends_with_reply, salt)
        )
        return places, earlier

    def _nearest(self, digests: Sequence[bytes], salt: bytes) -> tuple[_Kept | None, int]:
        """The latest of those that share the most parts, and how many, which may be none."""
        best: _Kept | None = None
        most = 0
        for one in reversed(self._kept.values()):
            if one.salt != salt:
                continue
            best = best or one
            if len(one.digests) <= most or one.digests[most] != digests[most]:
                continue
            n_same = one.n_same(digests)
            if n_same > most:
                best, most = one, n_same
            if most == len(digests):
                break
        return best, most

    def _keep(self, one: _Kept) -> None:
        self._drop(one.key)
        self._kept[one.key] = one
        self._n_parts += len(one.digests)
        while len(self._kept) > 1 and (
            len(self._kept) > self._max or self._n_parts > self._max_parts
        ):
            self._drop(next(iter(self._kept)))

    def _drop(self, key: tuple[bytes, bytes]) -> None:
        gone = self._kept.pop(key, None)
        self._n_parts -= 0 if gone is None else len(gone.digests)


def _digests(tokens: Sequence[int | None], packed: bytes) -> tuple[int, ...]:
    """Of the tokens up to each end, until one is not known."""
    known = [0]
    for at in tokens:
        if at is None:
            break
        known.append(at)
    slices = (hash(token_bytes.cut(packed, start, end)) for start, end in pairwise(known))
    return tuple(accumulate(slices, lambda before, one: hash((before, one))))


def _still_there(near: _Kept, n_same: int, packed: bytes) -> tuple[int | None, ...]:
    """The ends of parts in common, if the tokens up to them are the same as well."""
    n_known = min(n_same, len(near.token_digests))
    tokens = near.tokens[:n_known]
    same = _digests(tokens, packed)
    return tokens if same == near.token_digests[:n_known] else ()


def _ends_behind(
    known: Sequence[int | None],
    text: str,
    ends: Sequence[int],
    ids: Sequence[int],
    pieces: Pieces,
) -> list[int | None]:
    """The ends of the parts behind those that are known."""
    if len(known) == len(ends):
        return []
    last = known[-1] if known else None
    if last is None:
        return token_ends(text, ends, ids, pieces)
    n_chars = ends[len(known) - 1]
    rest = text[n_chars:]
    more = token_ends(rest, [at - n_chars for at in ends[len(known) :]], ids[last:], pieces)
    return [None if at is None else last + at for at in more]


# ── where a prompt parted from what was there ───────────────────────────────────────────────────


def divergence(
    places: Places, text: str, earlier: Earlier | None, pieces: Sequence[bytes], miss_at: int | None
) -> Divergence | None:
    """Which part of a prompt differs from an earlier one; None if it only continues one.

    ``miss_at`` is the token at which the prompt parted from what is stored, if it did. ``pieces``
    are those of the prompt's tokens from the beginning of its part up to there, see ``part_at``.
    """
    number = _number(places, earlier, miss_at)
    if number is None:
        return None
    part, start = places.parts.found[number], places.start_of(number)
    at, at_token = part.start, start
    is_exact = miss_at is not None and part_at(places, miss_at) == number
    if is_exact:
        n_bytes = sum(map(len, pieces))
        before = text[part.start : part.end].encode("utf-8", "replace")[:n_bytes]
        at, at_token = part.start + len(before.decode("utf-8", "ignore")), miss_at
        if part.content is not None and text[at : part.content[0]].isspace():
            at = part.content[0]  # the token that differs begins with the blank before
    lost_tokens = lost_chars = None
    if earlier is not None and not earlier.is_continued:
        if at_token is not None:
            lost_tokens = max(0, min(earlier.n_tokens, places.n_tokens) - at_token)
        lost_chars = max(0, min(earlier.n_chars, len(text)) - at)
    name, begins = _named(places.parts, part, text, at) if is_exact else (part.name, at)
    return Divergence(
        part=name,
        at_char=at - begins if is_exact else None,
        prompt_char=at,
        prompt_token=at_token,
        lost_tokens=lost_tokens,
        lost_chars=lost_chars,
    )


def part_at(places: Places, token: int) -> int | None:
    """The number of the part that a token of the prompt belongs to, if that is known."""
    for number, end in enumerate(places.tokens):
        if end is None:
            return None
        if token < end:
            return number
    return None


def _number(places: Places, earlier: Earlier | None, miss_at: int | None) -> int | None:
    """The first part that differs: from the nearest earlier prompt, or else from what is stored."""
    stored = None if miss_at is None else part_at(places, miss_at)
    if earlier is None:
        return None
    found = places.parts.found
    if earlier.n_parts >= len(found) - (found[-1].name == REPLY):
        return None  # it is an earlier one, or the beginning of one
    if not earlier.is_continued:
        return max(earlier.n_parts, stored or 0)
    # It continues an earlier prompt; the reply in it may still be another one than was generated.
    return stored if stored is not None and stored >= earlier.n_parts else None


def _named(parts: Parts, part: Part, text: str, at: int) -> tuple[str, int]:
    """The name of what is at a position, more exactly than its part, and where that begins."""
    if part.content is not None and part.content[0] <= at <= part.content[1]:
        return f"{part.name}.content", part.content[0]
    if part.name != TOOLS:
        return part.name, part.start
    found, begins = None, part.start
    start = part.start
    for number, name in enumerate(parts.tools):
        start = text.find(name, start, part.end)
        if start < 0 or start > at:
            break
        found, begins = number, start
        start += len(name)
    return (TOOLS, part.start) if found is None else (f"{TOOLS}[{found}]", begins)
