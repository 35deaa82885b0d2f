"""What a chat template means, found out by llama.cpp: tool calls, thinking, how replies are read.

A template is analysed by llama.cpp's ``common/`` (a template analyser and about 15 formats of its
own), which makes a parser and a grammar of it. Rendering of prompts is not from here
(``actors.text``). Only in a model's process: a template is a program from a file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgpack

from native import _faults
from native._llama import ffi, lib
from native.chat_reply import CallRead, FormatFacts, PartRead, ReplyRead
from native.errors import NativeError


class ChatFormatError(NativeError):
    """llama.cpp cannot use the template, or not for this request; the text has its reason."""


class ReplyReader:
    """Reads replies to requests of one kind. Any thread may use it; calls wait for each other."""

    __slots__ = ("_handle", "_lock", "facts")

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        length = ffi.new("size_t *")
        text = lib.la_chat_reader_facts(handle, length)
        self.facts = _facts(json.loads(ffi.unpack(text, length[0])))

    def read(self, text: bytes, *, is_partial: bool) -> ReplyRead:
        """Take the bytes of a reply apart; ChatFormatError where it is nested too deeply."""
        out, n_out = ffi.new("uint8_t **"), ffi.new("size_t *")
        with self._lock:
            status = lib.la_chat_read(self._handle, text, len(text), is_partial, out, n_out)
        if status:
            _raise(status)
        try:
            packed = msgpack.unpackb(ffi.buffer(out[0], n_out[0]), use_list=False)
        finally:
            lib.la_bytes_free(out[0])
        state, end, reasoning, content, calls, parts = packed
        return ReplyRead(
            state,
            end,
            reasoning,
            content,
            tuple(CallRead(*one) for one in calls),
            tuple(PartRead(*one) for one in parts),
        )


class ChatFormat:
    """One template. ``ChatFormatError`` where llama.cpp cannot parse it."""

    __slots__ = ("_handle",)

    def __init__(self, template: str, bos: str = "", eos: str = "") -> None:
        out = ffi.new("la_chat **")
        status = lib.la_chat_new(_text(template), _text(bos), _text(eos), out)
        if status:
            _raise(status)
        self._handle = ffi.gc(out[0], lib.la_chat_free)

    def reader(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        tool_choice: str = "auto",
        parallel_tool_calls: bool | None = None,
        enable_thinking: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> ReplyReader:
        """How replies to a request are read. Takes milliseconds to tenths of a second.

        ``messages`` and ``tools`` as OpenAI's API has them; ``tool_choice`` is auto, none or
        required. ``parallel_tool_calls``: None for what the template can.
        """
        asked: dict[str, Any] = {
            "messages": messages,
            "tool_choice": tool_choice,
            "enable_thinking": enable_thinking,
            "add_generation_prompt": add_generation_prompt,
            "kwargs": kwargs or {},
        }
        if parallel_tool_calls is not None:
            asked["parallel_tool_calls"] = parallel_tool_calls
        if tools:
            asked["tools"] = tools
        if continue_final_message is not None:
            asked["continue_final_message"] = continue_final_message
        try:
            raw = json.dumps(asked, ensure_ascii=True).encode()
        except (RecursionError, TypeError, ValueError) as error:
            raise ChatFormatError(f"the request is no JSON: {error}") from None
        out = ffi.new("la_chat_reader **")
        status = lib.la_chat_reader_new(self._handle, raw, len(raw), out)
        if status:
            _raise(status)
        return ReplyReader(ffi.gc(out[0], lib.la_chat_reader_free))


_TEXT_LIMIT: Final = 400


def _raise(status: int) -> None:
    if status != lib.LA_CHAT:
        _faults.raise_status(status)
    text = " ".join(_faults.last_text().split())
    raise ChatFormatError(text if len(text) <= _TEXT_LIMIT else text[:_TEXT_LIMIT] + "…")


def _text(text: str) -> bytes:
    if "\0" in text:
        raise ChatFormatError("a text with a NUL character")
    return text.encode("utf-8", "replace")


def _facts(plain: dict[str, Any]) -> FormatFacts:
    return FormatFacts(
        format=plain["format"],
        prompt=plain["prompt"],
        generation_prompt=plain["generation_prompt"],
        grammar=plain["grammar"],
        grammar_is_lazy=plain["grammar_is_lazy"],
        triggers=tuple((kind, text) for kind, text in plain["triggers"]),
        can_think=plain["can_think"],
        thinking_start=plain["thinking_start"],
        thinking_ends=tuple(plain["thinking_ends"]),
        markers=tuple(plain["markers"]),
        stops=tuple(plain["stops"]),
        delimiters=tuple((one["role"], one["delimiter"]) for one in plain["delimiters"]),
    )
