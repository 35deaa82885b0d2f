"""Text and tokens: between callers and the text service of a model.

What is asked may be big and travels as a payload; answers come in pages under 64 KiB, in order, the
last with ``last=True``. What cannot be done is answered by one ``TextRefused``.
"""

from __future__ import annotations

from actors.messages.finish_reasons import FailReason, FailureFacts
from actors.messages.payload import Payload
from supervision.frozen import frozen


@frozen
class Tokenize:
    """Anyone → model: which tokens is this text?"""

    ref: str
    text: Payload | str
    """``str``, or UTF-8 bytes."""
    add_special: bool = True
    """Add the tokens that the model expects around a text, mostly one that begins it."""
    parse_special: bool = False
    """Read control tokens written in the text; not for text from outside."""
    as_prompt: bool = False
    """Refuse a text that does not fit the context."""


@frozen
class Tokenized:
    """Model → asker: the next page of tokens, u32-le."""

    ref: str
    tokens: bytes
    last: bool


@frozen
class Detokenize:
    """Anyone → model: which bytes are these tokens (u32-le)?"""

    ref: str
    tokens: Payload
    special: bool = False
    """Show control tokens, which are nothing otherwise."""
    by_token: bool = False
    """Each token by itself, as it stands in a vocabulary: with ``lengths`` in the answer."""


@frozen
class Detokenized:
    """Model → asker: the next page. Bytes, because a token may end inside a character."""

    ref: str
    data: bytes
    last: bool
    lengths: tuple[int, ...] = ()
    """Bytes of each token of this page, if that was asked for."""


@frozen
class ApplyChatTemplate:
    """Anyone → model: what does this conversation look like to the model?

    ``chat`` is JSON: ``{"messages": […], "tools": […], "documents": […], "template_kwargs": {…},
    "add_generation_prompt": true, "enable_thinking": true, "reasoning_effort": "low",
    "continue_final_message": false, "chat_template": "…"}``; all but the messages may be left out.
    ``chat_template_kwargs`` is another name of ``template_kwargs``.
    """

    ref: str
    chat: Payload | str


@frozen
class ChatPart:
    """A stretch of a prompt that one part of the conversation has written."""

    name: str
    """``messages[3]``, numbered as they were sent; ``tools[0]`` and so on, where each is written as
    JSON; ``tools`` and ``documents``: what introduces them, or all of them; ``template``: what the
    template writes by itself; ``reply``: what begins the reply. A message that the template writes
    in two places has two parts."""
    start: int
    """Characters of the text before it."""
    end: int
    start_token: int | None
    """Whole tokens before it; ``None``: not known."""
    end_token: int | None
    content_start: int | None = None
    """Of a message: where its content is in the text, if that is there once, as it was sent."""
    content_end: int | None = None


@frozen
class ChatTemplateApplied:
    """Model → asker: the next page of the prompt's text, of its tokens (u32-le), and its parts.

    They are cut independently: join all texts, all tokens and all parts. Tokenising the text again
    may give other tokens, where a caller's text holds what looks like a control token.
    """

    ref: str
    text: str
    tokens: bytes
    last: bool
    parts: tuple[ChatPart, ...] = ()
    """In order and without gaps, of all of the text."""
    unknown: tuple[str, ...] = ()
    """Names of what was sent and has no part."""


@frozen
class VerifyThinking:
    """Anyone → model: was this thinking signed so by this node?"""

    ref: str
    content: Payload
    """The thinking's exact bytes, without its markers."""
    signature: bytes


@frozen
class ThinkingVerified:
    """Model → asker."""

    ref: str
    valid: bool


@frozen
class TextRefused:
    """Model → asker: it cannot be done, and why."""

    ref: str
    reason: FailReason
    detail: str
    facts: FailureFacts | None = None
