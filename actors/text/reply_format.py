"""The format of a chat's reply: what reads it, and the grammar that holds it.

``ReplyFormats`` asks llama.cpp what a template means for one set of tools (``native.chat_format``),
which takes milliseconds; the answer is kept by what it depends on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from actors.messages.errors import UnsupportedRequest
from actors.text.chat_prompt import ControlTokens
from actors.text.chat_request import Chat
from actors.text.tool_schemas import with_own_schemas
from native.chat_reply import FormatFacts, PartRead, Reader, ReplyRead
from native.errors import NativeError
from native.sampling_params import ReplyGrammar

if TYPE_CHECKING:
    from native.backend import Backend
    from native.chat_format import ChatFormat

KEPT_FORMATS: Final = 64
KEPT_TEMPLATES: Final = 8
_TEXT_BEFORE: Final = re.compile(r"(?<=^root ::= )(.*?) until-\d+\?(?= )", re.MULTILINE)
"""Text of any length, which llama.cpp's grammar permits before a call that must be made."""
_BLANKS: Final = re.compile(r"^((?:own\d+-)?space) ::= .*$", re.MULTILINE)
"""Blanks between the parts of a call: llama.cpp permits 22, which weak models use up."""
_OPTIONAL: Final = re.compile(r"\((\S+)\? space\)\+")
"""Any number of calls, in a form that repeats an empty one without end."""
_SEVERAL: Final = re.compile(
    r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]'
    r"|\(([\w-]*tool-[\w-]+(?: \| [\w-]*tool-[\w-]+)*(?: space)?)\)\+"
)
"""Any number of calls; llama.cpp has this in some formats although one is asked for."""
_NOT_VARIABLES: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "enable_thinking"}
)


@dataclass(frozen=True, slots=True)
class LazyGrammar:
    """A grammar that holds from the first of some words on."""

    words: tuple[bytes, ...]
    grammar: ReplyGrammar


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """How the reply of one request is read, and what it must be."""

    reader: Reader
    grammar: ReplyGrammar | None = None
    """Of the whole reply, where a tool must be called."""
    lazy: LazyGrammar | None = None
    """Of a tool call, once it has begun."""
    end_of_thought: tuple[int, ...] = ()
    """The tokens that are forced when a thinking budget is used up."""
    in_thought: bool | None = None
    """Whether the reply begins inside a thought; None: as the generation prompt has it."""


class ReplyFormats:
    """The formats of one model's templates. Used by one thread."""

    def __init__(
        self, backend: Backend, open_template: Callable[[str], ChatFormat] | None = None
    ) -> None:
        """``open_template`` makes a ``ChatFormat`` of a template."""
        self._backend = backend
        self._open = open_template or _open_template
        self._templates: dict[str, ChatFormat | None] = {}
        self._formats: dict[bytes, tuple[ReplyFormat, ...]] = {}
        """By what they depend on: one for each way that a prompt may end."""

    def of(self, source: str, chat: Chat, text: str, control: ControlTokens) -> ReplyFormat | None:
        """How the reply to a conversation is read; None where its template has no known format.

        ``text`` is the prompt. UnsupportedRequest where a call is required and the template has
        none.
        """
        tools = [one for one in chat.callable_tools if "function" in one]
        may_call = chat.tool_choice.among(tools)
        role = chat.sent[-1]["role"]
        about = [
            source, may_call, chat.tool_choice.kind, chat.tool_choice.is_parallel, role == "tool",
            variables_of(chat), chat.extras.get("enable_thinking"), sorted(chat.strict),
        ]  # fmt: skip
        key = blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=16)
        digest = key.digest()
        if digest in self._formats:
            known = self._formats[digest] = self._formats.pop(digest)
        else:
            known = self._formats[digest] = self._made(source, chat, may_call, control)
            while len(self._formats) > KEPT_FORMATS:
                del self._formats[next(iter(self._formats))]
        found = _fitting(known, chat, text)
        if chat.tool_choice.must_call and (found is None or found.grammar is None):
            raise UnsupportedRequest(
                "tool_choice requires a call, and this model's chat template has no known form for "
                "one; leave tool_choice out, or load the model with a chat template that has one"
            )
        return found

    def _made(
        self,
        source: str,
        chat: Chat,
        tools: list[dict[str, Any]],
        control: ControlTokens,
    ) -> tuple[ReplyFormat, ...]:
        template = self._template(source)
        if template is None:
            return ()
        made: dict[str, ReplyFormat] = {}
        for messages in _examples(chat, tools):
            for thinks in _may_think(chat):
                try:
                    reader = template.reader(
                        messages,
                        tools,
                        tool_choice=chat.tool_choice.kind if tools else "none",
                        parallel_tool_calls=chat.tool_choice.is_parallel,
                        enable_thinking=thinks,
                        kwargs=variables_of(chat),
                    )
                except NativeError:
                    continue
                if reader.facts.generation_prompt not in made:
                    one = self._format(reader, chat, control, tools)
                    made[reader.facts.generation_prompt] = one
            if made:
                break
        return tuple(made.values())

    def _format(
        self, reader: Reader, chat: Chat, control: ControlTokens, tools: list[dict[str, Any]]
    ) -> ReplyFormat:
        facts = reader.facts
        markers = {one.strip() for one in facts.markers}
        shown = tuple(sorted(control.ids[one] for one in markers if one in control.ids))
        grammar = lazy = None
        text = with_own_schemas(facts.grammar, tools, chat.strict) if facts.grammar else ""
        text = _OPTIONAL.sub(r"(\1 space)+", text)
        if chat.tool_choice.is_parallel is False:
            text = _SEVERAL.sub(lambda hit: f"({hit[1]})" if hit[1] else hit[0], text)
        text = _BLANKS.sub(lambda hit: f'{hit[1]} ::= | " " | "\\n"', text)
        if text and chat.tool_choice.must_call:
            before = facts.generation_prompt.encode()
            grammar = ReplyGrammar(_TEXT_BEFORE.sub(r"\1", text), before, shown)
        elif text and facts.grammar_is_lazy:
            words = tuple(word.encode() for kind, word in facts.triggers if kind == "word")
            lazy = LazyGrammar(words, ReplyGrammar(text, b"", shown)) if words else None
        try:
            for one in (grammar, None if lazy is None else lazy.grammar):
                if one is not None:
                    self._backend.compile_grammar(one)  # here, and not on the engine's thread
        except NativeError:
            grammar = lazy = None  # a call is read, and not held
        marker = next((one for one in facts.thinking_ends if one == one.strip()), "")
        tokenize = self._backend.tokenize
        end = tokenize(marker, add_special=False, parse_special=True) if marker else []
        return ReplyFormat(reader, grammar, lazy, tuple(end))

    def _template(self, source: str) -> ChatFormat | None:
        if source not in self._templates:
            try:
                self._templates[source] = self._open(source)
            except NativeError:
                self._templates[source] = None
            while len(self._templates) > KEPT_TEMPLATES:
                del self._templates[next(iter(self._templates))]
        return self._templates[source]


def variables_of(chat: Chat) -> dict[str, Any]:
    """What the template reads beside messages and tools: it may change how a reply begins."""
    return {name: one for name, one in chat.variables().items() if name not in _NOT_VARIABLES}


def _may_think(chat: Chat) -> tuple[bool, ...]:
    """With thinking, or without: where nothing was asked for, a template may do either."""
    asked = chat.extras.get("enable_thinking")
    if asked is None and chat.effort is not None:
        asked = chat.effort != "none"
    return (True, False) if asked is None else (bool(asked),)


def _fitting(known: tuple[ReplyFormat, ...], chat: Chat, text: str) -> ReplyFormat | None:
    """The format in which the prompt ends; None where the template ends it in another way."""
    if chat.continuing is not None:
        in_thought = chat.continuing == "reasoning"
        continued = (_continued(one, text, in_thought=in_thought) for one in known)
        return next((one for one in continued if one is not None), None)
    ends = text.rstrip()
    fitting = [one for one in known if ends.endswith(one.reader.facts.generation_prompt.rstrip())]
    return max(fitting, key=lambda one: len(one.reader.facts.generation_prompt), default=None)


class _ContinuedReader:
    """Reads a reply that continues a message: what there is of the message comes before it."""

    def __init__(self, reader: Reader, before: bytes) -> None:
        self._reader = reader
        self._before = before

    @property
    def facts(self) -> FormatFacts:
        return self._reader.facts

    def read(self, text: bytes, *, is_partial: bool) -> ReplyRead:
        found, n = self._reader.read(self._before + text, is_partial=is_partial), len(self._before)
        parts = tuple(
            PartRead(part.kind, max(0, part.start - n), part.end - n)
            for part in found.parts
            if part.end > n
        )
        return found._replace(end=max(0, found.end - n), parts=parts)


def _continued(found: ReplyFormat, text: str, *, in_thought: bool) -> ReplyFormat | None:
    """The format of a reply to a prompt that ends inside a message; None if it does not show."""
    facts = found.reader.facts
    begins, closes = facts.generation_prompt, ""
    if begins not in text and facts.thinking_start and not in_thought:
        # The message has no thought, and the format expects one: an empty one is read.
        begins = begins.partition(facts.thinking_start)[0]
        closes = next(iter(facts.thinking_ends), "")
    at = text.rfind(begins)
    if not begins or at < 0:
        return None
    before = (closes + text[at + len(begins) :]).encode()
    grammar = found.grammar and replace(found.grammar, before=found.grammar.before + before)
    reader = _ContinuedReader(found.reader, before)
    return replace(found, reader=reader, grammar=grammar, in_thought=in_thought)


def _examples(chat: Chat, tools: list[dict[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Short conversations that end as this one does: a reply's beginning may depend on that."""
    asked: list[Mapping[str, Any]] = [{"role": "user", "content": "Hello"}]
    if chat.sent[-1]["role"] != "tool" or not tools:
        return [asked]
    name = tools[0]["function"].get("name", "tool")
    call = {"id": "call00000", "type": "function", "function": {"name": name, "arguments": "{}"}}
    answered = [
        *asked,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00000", "name": name, "content": "{}"},
    ]
    return [answered, asked]


def _open_template(source: str) -> ChatFormat:
    from native.chat_format import ChatFormat  # here: it needs the native library

    # Without the tokens that begin and end texts: they would be taken for a part of the format.
    return ChatFormat(source)
