"""What a request is generated from: a text, token ids, a conversation, or what surrounds a gap.

Or only what follows one of them.
"""

from __future__ import annotations

from dataclasses import replace

from actors.messages.payload import Payload
from supervision.frozen import frozen


@frozen
class TextPrompt:
    """A text, which the model tokenises."""

    text: Payload | str
    """``str``, or UTF-8 bytes."""
    parse_special: bool = False
    """Read control tokens such as ``<|user|>`` in the text as tokens; for rendered templates."""


@frozen
class TokenPrompt:
    """The exact tokens."""

    tokens: Payload
    """u32-le token ids."""


@frozen
class ConversationPrompt:
    """A conversation, which the model's own chat template makes a prompt of."""

    conversation: Payload | str
    """JSON, see ``ApplyChatTemplate``."""


@frozen
class InfillPrompt:
    """What comes before and after a text that is to be written, for models that can do that."""

    parts: Payload | str
    """JSON: ``{"prefix": "…", "suffix": "…", "extra": [{"name": "…", "text": "…"}, …],
    "repository": "…", "file": "…", "suffix_first": false}``; all but the first two may be left
    out."""


@frozen
class Continuation:
    """Only what follows what the session, or the tokens of ``parent_key``, already hold."""

    more: TextPrompt | TokenPrompt


Prompt = TextPrompt | TokenPrompt | ConversationPrompt | InfillPrompt | Continuation


def payload_of(prompt: Prompt) -> Payload | str:
    """The part of a prompt that may be big."""
    match prompt:
        case TextPrompt(text):
            return text
        case TokenPrompt(tokens):
            return tokens
        case ConversationPrompt(conversation):
            return conversation
        case InfillPrompt(parts):
            return parts
        case Continuation(more):
            return payload_of(more)


def with_payload(prompt: Prompt, payload: Payload) -> Prompt:
    """The same prompt with that part in another place."""
    match prompt:
        case TextPrompt():
            return replace(prompt, text=payload)
        case TokenPrompt():
            return TokenPrompt(payload)
        case ConversationPrompt():
            return ConversationPrompt(payload)
        case InfillPrompt():
            return InfillPrompt(payload)
        case Continuation(TextPrompt() as text):
            return Continuation(replace(text, text=payload))
        case Continuation():
            return Continuation(TokenPrompt(payload))
