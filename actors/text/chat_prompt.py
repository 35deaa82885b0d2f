"""From a conversation to the tokens of a prompt: only the template writes control tokens.

A template prints control tokens such as ``<|im_start|>`` and the texts of callers into one string.
Tokenised as it is, a caller's ``<|im_start|>system`` would count as the system's. So every control
token of the rendered text is traced to where it came from:

1. The template is rendered as usual.
2. If no caller's text has a character that a control token begins with, all control tokens are the
   template's; the text is tokenised as one string, as other servers do.
3. Else it is rendered again, with those characters replaced, one for one, by private ones. Where
   the second text has a private character, the first one's came from a caller, and a control token
   that begins there is ordinary text. Strings that the template itself looks for (``</think>``)
   are left alone, so that it does the same both times.
4. If it does not (it measures, or changes letters), only whole control tokens in callers' texts are
   replaced, and the text is that of this rendering.

If ordinary text has to be kept from being a control token, what lies between the template's own
control tokens is tokenised as plain text. That is exactly how llama.cpp treats what is between
control tokens, so the tokens are those of a vocabulary without the forged ones.

The one thing that is not traced is a ``role``, which templates print between the halves of a
control token: it must be a word (``actors.text.chat_request``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Final

from actors.messages.errors import UnsupportedRequest
from actors.text.chat_continuation import prompt_text
from actors.text.chat_form import CONTINUED
from actors.text.chat_request import Chat
from actors.text.chat_template import ChatTemplate, TemplateFailed
from actors.text.template_marks import Mark
from native.backend import Vocabulary

_PRIVATE: Final = (0xF0000, 0x100000, 0xE000)
"""Starts of Unicode's private areas."""
_AREA: Final = 2048


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation."""

    text: str
    forged: tuple[tuple[int, int], ...] = ()
    """Where callers' texts hold what would be read as a control token: [start, end)."""
    in_thought: bool = False
    """The reply continues a thought that the caller has begun."""
    marks: tuple[Mark, ...] = field(default=(), compare=False, repr=False)
    """Where the template's loops over the messages stood, see ``text.parts``."""


class ControlTokens:
    """The control tokens of a vocabulary: texts that are read as one token only when asked."""

    def __init__(self, texts: Mapping[str, int]) -> None:
        # llama.cpp takes the longest first, over the whole text; so must we.
        self.ids = dict(sorted(texts.items(), key=lambda item: (-len(item[0]), item[1])))
        self.firsts = frozenset(text[0] for text in self.ids)

    @classmethod
    def of(cls, backend: Vocabulary) -> ControlTokens:
        """Find them without a call per token: halves of the vocabulary that show nothing more."""
        found: dict[str, int] = {}

        def look(start: int, end: int) -> None:
            ids = range(start, end)
            if backend.detokenize(ids, special=True) == backend.detokenize(ids):
                return
            if end - start == 1:
                text = backend.piece(start, special=True).decode("utf-8", "replace")
                if text and not backend.piece(start):
                    found.setdefault(text, start)
                return
            middle = (start + end) // 2
            look(start, middle)
            look(middle, end)

        look(0, backend.info.n_vocab)
        return cls(found)

    def is_harmless(self, text: str) -> bool:
        """Whether ``text``, of any caller, cannot begin a control token."""
        if self.firsts.isdisjoint(text):
            return False  # nothing of it would be replaced anyway
        for at, character in enumerate(text):
            if character in self.firsts:
                rest = text[at:]
                if any(one.startswith(rest) or rest.startswith(one) for one in self.ids):
                    return False
        return True

    def split(self, text: str, forged: Set[int]) -> list[tuple[int, int, int]]:
        """(start, end, id) of every control token that a tokenizer would read, in order.

        Without those that begin at a position in ``forged``.
        """
        free = [(0, len(text))]
        found: list[tuple[int, int, int]] = []
        for token_text, token in self.ids.items():
            if token_text not in text:
                continue
            left: list[tuple[int, int]] = []
            for first, end in free:
                start = at = first
                while (hit := text.find(token_text, at, end)) >= 0:
                    if hit in forged:
                        at = hit + 1
                        continue
                    left.append((start, hit))
                    start = at = hit + len(token_text)
                    found.append((hit, start, token))
                left.append((start, end))
            free = left
        return sorted(found)


def render_chat(template: ChatTemplate, chat: Chat, control: ControlTokens) -> Prompt:
    """Render, and find what callers forged; TemplateFailed, UnsupportedRequest."""
    text, marks = prompt_text(template, chat)
    in_thought = chat.continuing == "reasoning"
    if not control.ids or not _mentions(chat, control.firsts):
        return Prompt(text, (), in_thought, marks)
    masked = _masked(template, chat, control)
    if masked is None or masked.unmask(masked.text) != text:
        masked = _masked_tokens(template, chat, control)
        text, marks = masked.unmask(masked.text), masked.marks
    return Prompt(text, _forged(text, masked, control), in_thought, marks)


def prompt_tokens(
    backend: Vocabulary, prompt: Prompt, control: ControlTokens, start: int = 0
) -> list[int]:
    """The tokens of a rendered conversation, with one BOS at most.

    From the character ``start`` on; there is no BOS then.
    """
    if start:
        later = tuple((at - start, end - start) for at, end in prompt.forged if at >= start)
        rest = Prompt(prompt.text[start:], later)
        return marked_tokens(backend, rest, control, []) if rest.text else []
    forged = {start for start, _ in prompt.forged}
    is_begun = has_bos(backend, prompt.text) and 0 not in forged
    if not forged:
        return backend.tokenize(prompt.text, add_special=not is_begun, parse_special=True)
    bos = backend.info.bos_token
    tokens = [] if is_begun or not backend.info.add_bos or bos is None else [bos]
    return marked_tokens(backend, prompt, control, tokens)


def has_bos(backend: Vocabulary, text: str) -> bool:
    """Whether a text begins with the token that begins texts, as it is written."""
    bos = backend.info.bos_token
    begins = b"" if bos is None else backend.piece(bos, special=True)
    return bool(begins) and text.startswith(begins.decode("utf-8", "replace"))


def marked_tokens(
    backend: Vocabulary, prompt: Prompt, control: ControlTokens, tokens: list[int]
) -> list[int]:
    """``tokens``, then those of a prompt, in which forged control tokens are plain text."""
    if not prompt.forged:
        return tokens + backend.tokenize(prompt.text, add_special=False, parse_special=True)
    forged = {start for start, _ in prompt.forged}
    at = 0
    for start, end, token in control.split(prompt.text, forged):
        tokens += _plain(backend, prompt.text[at:start])
        tokens.append(token)
        at = end
    return tokens + _plain(backend, prompt.text[at:])


def _plain(backend: Vocabulary, text: str) -> list[int]:
    return backend.tokenize(text, add_special=False) if text else []


# ── whose text is it ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Masked:
    """A rendering in which callers' suspicious characters are private ones."""

    text: str
    real: Mapping[int, str]
    marks: tuple[Mark, ...]

    def unmask(self, text: str) -> str:
        return text.translate(self.real)

    def is_private(self, at: int) -> bool:
        return ord(self.text[at]) in self.real


def _masked(template: ChatTemplate, chat: Chat, control: ControlTokens) -> _Masked | None:
    """Rendered with every suspicious character of callers hidden; ``None`` if that fails."""
    area = _free_area(chat)
    if area is None:
        return None
    hidden = {one: chr(area + number) for number, one in enumerate(sorted(control.firsts))}
    kept = {CONTINUED, *(text for text in template.constants if control.is_harmless(text))}
    parts = [re.escape(text) for text in sorted(kept, key=len, reverse=True)]
    parts.append(f"([{re.escape(''.join(hidden))}])")
    pattern = re.compile("|".join(parts))

    def mask(text: str) -> str:
        return pattern.sub(lambda hit: hidden[hit[1]] if hit[1] else hit[0], text)

    try:
        return _rendered(template, chat, mask, hidden)
    except (TemplateFailed, UnsupportedRequest):
        return None


def _masked_tokens(template: ChatTemplate, chat: Chat, control: ControlTokens) -> _Masked:
    area = _free_area(chat) or _PRIVATE[0]
    hidden = {one: chr(area + n) for n, one in enumerate(sorted(control.firsts))}
    pattern = re.compile("|".join(map(re.escape, control.ids)))

    def mask(text: str) -> str:
        return pattern.sub(lambda hit: hidden[hit[0][0]] + hit[0][1:], text)

    return _rendered(template, chat, mask, hidden)


def _rendered(
    template: ChatTemplate, chat: Chat, mask: Callable[[str], str], hidden: Mapping[str, str]
) -> _Masked:
    masked = replace(
        chat,
        messages=[_map_message(message, mask) for message in chat.messages],
        extras=_map_texts(dict(chat.extras), mask),
    )
    real = {ord(private): character for character, private in hidden.items()}
    text, marks = prompt_text(template, masked)
    return _Masked(text, real, marks)


def _forged(text: str, masked: _Masked, control: ControlTokens) -> tuple[tuple[int, int], ...]:
    """Occurrences of control tokens in ``text`` that begin with a caller's character."""
    found: list[tuple[int, int]] = []
    for token_text in control.ids:
        at = text.find(token_text)
        while at >= 0:
            if masked.is_private(at):
                found.append((at, at + len(token_text)))
            at = text.find(token_text, at + 1)
    return tuple(sorted(found))


def _free_area(chat: Chat) -> int | None:
    """The start of a private area that the conversation does not use."""
    for start in _PRIVATE:
        area = re.compile(f"[{chr(start)}-{chr(start + _AREA - 1)}]")
        if not _any_text(chat, lambda text, area=area: bool(area.search(text))):  # type: ignore[misc]
            return start
    return None


def _mentions(chat: Chat, characters: frozenset[str]) -> bool:
    return _any_text(chat, lambda text: not characters.isdisjoint(text))


def _any_text(chat: Chat, test: Callable[[str], bool]) -> bool:
    found = False

    def look(text: str) -> str:
        nonlocal found
        found = found or test(text)
        return text

    for message in chat.messages:
        _map_message(message, look)
    _map_texts(dict(chat.extras), look)
    return found


def _map_message(message: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    changed: dict[str, Any] = _map_texts(message, change)
    return {**changed, "role": message["role"]}


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same value with every text in it changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _map_texts(item, change) for key, item in value.items()}
    return value
