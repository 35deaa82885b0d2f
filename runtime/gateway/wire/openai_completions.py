"""OpenAI's older text completions: prompts as texts or tokens in, chunks or one object out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from runtime.client.results import (
    Completion,
    CompletionEvent,
    Event,
    PrefillEvent,
    TokenEvent,
)
from runtime.gateway.wire import sse
from runtime.gateway.wire.bodies import are_token_ids, encode, read, text_json
from runtime.gateway.wire.failure import invalid, unsupported
from runtime.gateway.wire.openai_answer import (
    FINISH,
    OpenAIAnswer,
    StreamOptions,
    n_of,
)
from runtime.gateway.wire.sampling import Options, max_tokens_of, options_of
from runtime.gateway.wire.tokens import text_logprobs
from runtime.gateway.wire.usage import usage_of
from runtime.gateway.wire.wanted import Head, Kind, Wanted

MAX_N: Final = 128
MAX_PROMPTS: Final = 256
DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's own; its clients rely on a short reply where they name no length."""


class CompletionBody(Options, kw_only=True):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[Any] = ""
    """A text, token ids, or a list of texts or of lists of ids."""
    model: str | None = None
    suffix: str | None = None
    max_tokens: int | None = None
    n_predict: int | None = None
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | bool | None = None
    return_progress: bool | None = None


def read_completion(body: bytes, defaults: Mapping[str, float]) -> tuple[Wanted, CompletionBody]:
    """What a body asks for; Refused names the field that is wrong."""
    asked = read(body, CompletionBody)
    n = n_of(asked.n, MAX_N)
    if (asked.best_of or 0) > n:
        raise unsupported(
            "best_of: this node returns every reply that it generates; ask for n of them", "best_of"
        )
    prompts = prompts_of(asked.prompt)
    options = options_of(asked, defaults)
    given = max_tokens_of(asked.max_tokens, asked.n_predict, names=("max_tokens", "n_predict"))
    unlimited = given is None and -1 in (asked.max_tokens, asked.n_predict)
    options["max_tokens"] = None if unlimited else DEFAULT_MAX_TOKENS if given is None else given
    if asked.logprobs is not None and asked.logprobs is not False:
        options["n_logprobs"] = 1 if asked.logprobs is True else asked.logprobs
    kind: Kind = "prompt"
    inputs = tuple(prompts)
    if asked.suffix:
        if not all(isinstance(one, str) for one in prompts):
            raise invalid("suffix needs a prompt that is a text", "suffix")
        kind = "infill"
        inputs = tuple({"prefix": one, "suffix": asked.suffix} for one in prompts)
    if asked.echo:
        options["echo"] = True
    return Wanted(
        model=asked.model or "",
        kind=kind,
        inputs=inputs,
        options=options,
        n=n,
        is_stream=bool(asked.stream),
        needs_pieces="n_logprobs" in options,
    ), asked


def prompts_of(given: str | list[Any], name: str = "prompt") -> list[Any]:
    """One or several prompts: texts, or lists of token ids."""
    is_one = isinstance(given, str) or (bool(given) and are_token_ids(given))
    prompts = [given] if is_one else list(given)
    for at, one in enumerate(prompts):
        is_ids = isinstance(one, list) and are_token_ids(one)
        if not (isinstance(one, str) or is_ids):
            raise invalid(f"{name}[{at}] is neither a text nor a list of token ids", name)
    if not prompts or not all(prompts):
        raise invalid(f"{name} is empty; send some text", name)
    if len(prompts) > MAX_PROMPTS:
        raise invalid(f"{len(prompts)} prompts; at most {MAX_PROMPTS} are taken", name)
    return prompts


class CompletionAnswer(OpenAIAnswer):
    """The answer to one text completion; see ``wanted.Answer``."""

    id_prefix = "cmpl-"
    chunk_object = whole_object = "text_completion"

    def __init__(self, head: Head, asked: CompletionBody, wanted: Wanted) -> None:
        super().__init__(head, wanted, asked.stream_options)
        self._shows_progress = bool(asked.return_progress)
        self._n_chars: dict[int, int] = {}
        self._done: dict[int, Completion] = {}

    def begin(self) -> bytes:
        return b""

    def event(self, number: int, event: Event) -> bytes:
        match event:
            case PrefillEvent() if self._shows_progress:
                facts = {"total": event.total, "cache": event.reused, "processed": event.done}
                return self._without_choice(prompt_progress=facts)
            case TokenEvent() if event.text or event.logprobs:
                return self._tokens(number, event)
            case CompletionEvent(done):
                self._done[number] = done
                return self._finish(number, done)
            case _:
                return b""

    def end(self) -> bytes:
        usage = b""
        if self._shows_usage:
            counts = usage_of([self._done[n] for n in sorted(self._done)], self._wanted.n)
            usage = self._without_choice(usage=counts)
        return usage + sse.DONE

    def _tokens(self, number: int, event: TokenEvent) -> bytes:
        logprobs = b"null"
        if event.logprobs:
            before = self._n_chars.get(number, 0)
            found = text_logprobs(event.tokens, event.logprobs, self._head.pieces, before)
            logprobs = encode(found)
        self._n_chars[number] = self._n_chars.get(number, 0) + len(event.text)
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}' % (
            number,
            text_json(event.text),
            logprobs,
        )
        return self._choice(choice)

    def _finish(self, number: int, done: Completion) -> bytes:
        choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":%b}' % (
            number,
            text_json(FINISH.get(done.finish_reason, "stop")),
        )
        return self._last_choice(choice, done)

    def whole(self, done: Sequence[Completion]) -> bytes:
        choices = [
            {
                "index": number,
                "text": one.text,
                "logprobs": self._logprobs(one),
                "finish_reason": FINISH.get(one.finish_reason, "stop"),
            }
            for number, one in enumerate(done)
        ]
        return self._object(choices, done)

    def _logprobs(self, done: Completion) -> dict[str, Any] | None:
        if done.logprobs is None or not self._wanted.needs_pieces:
            return None
        return text_logprobs(done.tokens, done.logprobs, self._head.pieces, 0)
