"""llama-server's own completions and infills: bodies in, events or one object out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    LoadEvent,
    PrefillEvent,
    TokenEvent,
)
from runtime.gateway.wire import report, sse
from runtime.gateway.wire.bodies import encode, read
from runtime.gateway.wire.failure import Failure, invalid, unsupported
from runtime.gateway.wire.native_prompts import extra_files, native_prompts
from runtime.gateway.wire.native_settings import generation_settings, sampling_of
from runtime.gateway.wire.openai_answer import explained
from runtime.gateway.wire.openai_errors import native_error_object
from runtime.gateway.wire.pace import Clock, Pace
from runtime.gateway.wire.progress import Progress, computed, load_report, timed
from runtime.gateway.wire.sampling import Options, options_of
from runtime.gateway.wire.tokens import chat_logprobs
from runtime.gateway.wire.wanted import Answer, Head, Wanted

NO_SLOT: Final = -1
"""Replies have no slot of their own: cells of the context are shared."""


class _ReplyBody(Options, kw_only=True):
    """What both bodies have."""

    model: str | None = None
    n_predict: int | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    n_probs: int | None = None
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    response_fields: list[str] | None = None
    lora: list[Any] | None = None
    image_data: list[Any] | None = None


class NativeBody(_ReplyBody, kw_only=True):
    """The body of ``POST /completion``."""

    prompt: Any = None


class InfillBody(_ReplyBody, kw_only=True):
    """The body of ``POST /infill``."""

    input_prefix: str | None = None
    input_suffix: str | None = None
    input_extra: Any = None
    prompt: str | None = None


def read_native(body: bytes, defaults: Mapping[str, float]) -> tuple[Wanted, NativeBody]:
    """What a body asks for; Refused names the field that is wrong.

    Inputs are in the forms of ``native_prompts``.
    """
    asked = read(body, NativeBody)
    prompts = native_prompts(asked.prompt)
    return Wanted(
        model=asked.model or "",
        kind="prompt",
        inputs=tuple(prompts),
        options=_options(asked, defaults),
        is_stream=bool(asked.stream),
        needs_pieces=bool(asked.n_probs),
    ), asked


def read_infill(body: bytes, defaults: Mapping[str, float]) -> tuple[Wanted, InfillBody]:
    """What a body asks for: the text before the gap is ``input_prefix`` and then ``prompt``."""
    asked = read(body, InfillBody)
    for name in ("input_prefix", "input_suffix"):
        if getattr(asked, name) is None:
            raise invalid(f"{name} is missing", name)
    part: dict[str, Any] = {
        "prefix": f"{asked.input_prefix}{asked.prompt or ''}",
        "suffix": asked.input_suffix,
    }
    if asked.input_extra is not None:
        part["extra"] = extra_files(asked.input_extra)
    return Wanted(
        model=asked.model or "",
        kind="infill",
        inputs=(part,),
        options=_options(asked, defaults),
        is_stream=bool(asked.stream),
        needs_pieces=bool(asked.n_probs),
    ), asked


def _options(asked: _ReplyBody, defaults: Mapping[str, float]) -> dict[str, Any]:
    if asked.post_sampling_probs:
        raise unsupported(
            "post_sampling_probs: this node reports the model's own probabilities, before "
            "sampling; leave it out",
            "post_sampling_probs",
        )
    if asked.lora:
        raise unsupported(
            "lora: adapters are set for the whole model here, by POST /lora-adapters", "lora"
        )
    if asked.image_data:
        raise unsupported("image_data: this node reads text only", "image_data")
    options = options_of(asked, defaults)
    options["max_tokens"] = _n_predict(asked)
    if asked.n_probs:
        options["n_logprobs"] = asked.n_probs
    sampling_of(options)  # refuses what is wrong before a stream begins
    return options


def _n_predict(asked: _ReplyBody) -> int | None:
    """None: as many as fit, which -1 and -2 both mean here."""
    given = asked.n_predict if asked.n_predict is not None else asked.max_tokens
    if given is None or given in (-1, -2):
        return None
    if given < 0:
        raise invalid(f"n_predict is {given}; it is 0 or more, or -1 for all that fit", "n_predict")
    return given


class NativeAnswer(Answer):
    """The answer to one completion or infill; see ``wanted.Answer``."""

    content_type = sse.CONTENT_TYPE

    def __init__(
        self,
        head: Head,
        asked: NativeBody | InfillBody,
        wanted: Wanted,
        clock: Clock | None = None,
    ) -> None:
        """``clock``: of the times that a stream shows as it comes; None: it shows none."""
        self._head = head
        self._clock = clock if asked.timings_per_token or asked.return_progress else None
        self._shows_times = bool(asked.timings_per_token)
        self._paces: dict[int, Pace] = {}
        self._wanted = wanted
        self._fields = asked.response_fields or []
        self._shows_tokens = bool(asked.return_tokens)
        self._shows_progress = self.shows_load = bool(asked.return_progress)
        self._texts: dict[int, str] = {}
        """Text that came without a token of its own; the next event has it."""
        self._n_tokens: dict[int, int] = {}
        self._n_prompt: dict[int, int] = {}
        self._read: dict[int, Progress] = {}

    # ── a stream ────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> bytes:
        return b""

    def event(self, number: int, event: Event) -> bytes:
        if self._clock is not None:
            self._paces.setdefault(number, Pace(self._clock)).note(event)
        match event:
            case LoadEvent():
                return self._partial(number, "", (), load_progress=load_report(event))
            case PrefillEvent():
                self._n_prompt[number] = event.total
                return self._progress(number, event)
            case TokenEvent(tokens=()):
                self._texts[number] = self._texts.get(number, "") + event.text
                return b""
            case TokenEvent():
                return self._progress(number, event) + self._tokens(number, event)
            case CompletionEvent(done):
                rest = self._texts.pop(number, "")
                last = self._partial(number, rest, ()) if rest else b""
                final = self._final(number, done) | {"content": "", "tokens": []}
                return last + sse.data(encode(_chosen(self._fields, final)))
            case _:
                return b""

    def end(self) -> bytes:
        return b""

    def failed(self, failure: Failure) -> bytes:
        return sse.data(encode(native_error_object(failure)))

    def keepalive(self) -> bytes:
        return sse.COMMENT

    def _progress(self, number: int, event: Event) -> bytes:
        if not self._shows_progress:
            return b""
        reports = self._read.setdefault(number, Progress()).reports(event)
        pace = self._paces.get(number)
        return b"".join(
            self._partial(
                number,
                "",
                (),
                prompt_progress=timed(one, pace),
                **self._times(number, computed(one)),
            )
            for one in reports
        )

    def _times(self, number: int, n_read: int | None = None) -> dict[str, Any]:
        pace = self._paces.get(number)
        return {} if pace is None or not self._shows_times else {"timings": pace.timings(n_read)}

    def _tokens(self, number: int, event: TokenEvent) -> bytes:
        text = self._texts.pop(number, "") + event.text
        self._n_tokens[number] = self._n_tokens.get(number, 0) + len(event.tokens)
        if not event.logprobs:
            return self._partial(number, text, event.tokens, **self._times(number))
        found = chat_logprobs(event.tokens, event.logprobs, self._head.pieces)
        last = len(found) - 1
        return b"".join(
            self._partial(
                number,
                text if at == last else "",
                event.tokens[at : at + 1],
                completion_probabilities=[one],
                **self._times(number),
            )
            for at, one in enumerate(found)
        )

    def _partial(self, number: int, text: str, tokens: Sequence[int], **more: Any) -> bytes:
        facts: dict[str, Any] = {
            "index": number,
            "content": text,
            "tokens": list(tokens),
            "stop": False,
            "id_slot": NO_SLOT,
            "tokens_predicted": self._n_tokens.get(number, 0),
        }
        if number in self._n_prompt:
            facts["tokens_evaluated"] = self._n_prompt[number]
        return sse.data(encode(facts | more))

    # ── one object ──────────────────────────────────────────────────────────────────────────────

    def whole(self, done: Sequence[Completion]) -> bytes:
        found = [_chosen(self._fields, self._final(number, one)) for number, one in enumerate(done)]
        return encode(found[0] if len(found) == 1 else found)

    def _final(self, number: int, done: Completion) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "index": number,
            "content": done.text,
            "tokens": list(done.tokens) if self._shows_tokens else [],
            "id_slot": NO_SLOT,
            "stop": True,
            "model": self._head.model,
            "tokens_predicted": done.usage.completion_tokens,
            "tokens_evaluated": done.usage.prompt_tokens,
            "generation_settings": generation_settings(
                self._wanted.options, is_stream=self._wanted.is_stream
            ),
            "prompt": self._shown_prompt(number),
            "has_new_line": "\n" in done.text,
            "truncated": done.limit == "context",
            "stop_type": _stop_type(done),
            "stopping_word": done.stop_sequence or "",
            "tokens_cached": done.usage.cached_tokens,
            "timings": report.timings(done),
            **explained(self._head, self._wanted, done),
        }
        if not self._wanted.is_stream and done.logprobs is not None and self._wanted.needs_pieces:
            facts["completion_probabilities"] = chat_logprobs(
                done.tokens, done.logprobs, self._head.pieces
            )
        return facts

    def _shown_prompt(self, number: int) -> Any:
        """As it was sent; what surrounds a gap as one text."""
        given = self._wanted.inputs[number]
        return given if self._wanted.kind == "prompt" else f"{given['prefix']}{given['suffix']}"


def _stop_type(done: Completion) -> str:
    if done.finish_reason in ("length", "prefilled"):
        return "limit"
    if done.finish_reason != "stop":
        return "none"
    return "word" if done.stop_sequence else "eos"


def _chosen(fields: Sequence[str], facts: dict[str, Any]) -> dict[str, Any]:
    """Only these fields, ``outer/inner`` by that name; what there is not is left out."""
    if not fields:
        return facts
    found = {}
    for path in fields:
        value: Any = facts
        for name in path.split("/"):
            if not isinstance(value, dict) or name not in value:
                break
            value = value[name]
        else:
            found[path] = value
    return found
