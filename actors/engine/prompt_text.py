"""A prompt that came as text, until it is tokens."""

from __future__ import annotations

from dataclasses import dataclass

from actors.text.part_places import Places
from actors.text.rendered_prompt import Rendered
from actors.text.reply_marks import SentText
from cache.tokens import TokenIds


@dataclass(slots=True)
class PromptText:
    """What the caller sent, and what is still to be made of it."""

    text: str | None
    """To be tokenised; ``None`` where the tokens are known."""
    ids: TokenIds | None = None
    """What the text is by itself, where it was tokenised beside the engine."""
    follows_parent: bool = False
    """Whether the prompt is only what follows its parent's tokens; False once they are joined."""
    sent: SentText | None = None
    """The text that was sent, if that is all of the prompt; see ``text.reply_marks``."""
    rendered: Rendered | None = None
    """The same for a chat."""
    places: Places | None = None
    """Where the parts of the chat are among the tokens that its prompt has."""
    note: str | None = None
    """Something to report to its caller."""

    def is_replaced(self) -> None:
        """The tokens were found without tokenising the text."""
        self.text = None

    def is_joined(self) -> None:
        """The parent's tokens are part of the prompt now."""
        self.follows_parent = False
