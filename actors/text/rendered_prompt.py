"""A chat as the model's template rendered it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.messages.completion import Divergence
from actors.text.chat_prompt import ControlTokens, Prompt
from actors.text.divergence import Earlier, divergence, part_at
from actors.text.part_places import Places
from actors.text.reply_format import ReplyFormat
from actors.text.reply_marks import SPECIAL, SentText


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as text, with what is known of its control tokens."""

    prompt: Prompt
    control: ControlTokens
    has_replies: bool
    format: ReplyFormat | None = None
    """How the reply is read; None: by the markers of the model."""
    again: Callable[[Mapping[str, Any]], str | None] | None = None
    """Render the conversation with one more message; from the engine's thread."""
    packed: bytes = b""
    """The tokens of the prompt."""
    places: Places | None = None
    """Where its parts are among them."""
    earlier: Earlier | None = None
    """What it shares with the nearest earlier conversation; ``None``: there is none."""
    pieces: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    """What tokens stand for."""

    def diverged(
        self, places: Places, ids: Sequence[int], miss_at: int | None
    ) -> Divergence | None:
        """Which part differs from the nearest earlier conversation.

        ``places`` are those among ``ids``, the tokens that the prompt has in the end; ``miss_at``
        is the token at which it parted from what is stored, if it did.
        """
        number = None if miss_at is None else part_at(places, miss_at)
        start = None if number is None else places.start_of(number)
        between = () if start is None else ids[start:miss_at]
        pieces = [self.pieces[token] for token in between]
        return divergence(places, self.prompt.text, self.earlier, pieces, miss_at)

    def sent(self) -> SentText:
        """The text in UTF-8, and where a caller's text looks like a control token."""
        text = self.prompt.text
        forged: list[int] = []
        n_bytes = at = 0
        for start, _ in self.prompt.forged:  # ascending, in characters
            n_bytes += len(text[at:start].encode("utf-8", "replace"))
            at = start
            forged.append(n_bytes)
        data = text.encode("utf-8", "replace")
        return SentText(data, SPECIAL, tuple(dict.fromkeys(forged)), self.has_replies)
