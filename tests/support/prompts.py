"""Prompts of requests, by what they are."""

from __future__ import annotations

from collections.abc import Sequence

from actors import messages as m
from cache import tokens as token_bytes


def prompt_of(
    prompt: Sequence[int] | str,
    *,
    chat: bool = False,
    continues: bool = False,
    parse_special: bool = False,
) -> m.Prompt:
    """A text, a conversation as JSON, or token ids; with ``continues``, what follows a parent."""
    if chat:
        assert isinstance(prompt, str)
        return m.ConversationPrompt(prompt)
    own = (
        m.TextPrompt(prompt, parse_special)
        if isinstance(prompt, str)
        else m.TokenPrompt(token_bytes.pack(prompt))
    )
    return m.Continuation(own) if continues else own
