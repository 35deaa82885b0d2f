"""A chat as the model's template rendered it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from actors.text.chat_prompt import ControlTokens, Prompt
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
