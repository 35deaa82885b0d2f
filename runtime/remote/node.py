"""A node elsewhere: the questions that commands ask a ``Node``, answered by its gateway."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from runtime import errors
from runtime.client.answers import ChatPrompt, Embeddings, Ranked, Ranking
from runtime.client.results import Completion, CompletionEvent, ModelStatus
from runtime.remote.address import GatewayAddress
from runtime.remote.connection import EventStream, Requests
from runtime.remote.failures import error_of, not_ours
from runtime.remote.stream import RemoteStream, replies, unless_busy
from runtime.settings import arguments

if TYPE_CHECKING:
    from actors.messages import AdapterStatus, KnownModel
    from runtime.client.tree import TreeNode
    from runtime.settings.config import ModelConfig

OURS = "/llama/v1"
T = TypeVar("T")


class RemoteNode:
    """The methods of ``Node`` that commands use; see there. A connection for each request.

    Raises what ``Node`` raises, and ``GatewayError``.
    """

    def __init__(self, address: GatewayAddress) -> None:
        self.requests = Requests(address)
        self._address = address
        self._has_cancelled: set[str] = set()
        """Sessions whose last reply was cancelled."""

    def close(self) -> None:
        """Nothing is open between requests."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ── the node and its models ─────────────────────────────────────────────────────────────────

    def status(self) -> dict[str, Any]:
        """As ``Client.status``."""
        found = self._ask("status")
        if not isinstance(found.get("node"), dict) or not isinstance(found.get("actors"), dict):
            raise self._unread("the status")
        return found

    def tree(self, *, vitals: bool | None = False) -> TreeNode:
        """As ``Client.tree``."""
        from runtime.client.tree import tree_of

        found = self._ask("tree", vitals="true" if vitals else "false")
        return self._read("the tree", lambda: tree_of(found))

    def models(self) -> list[ModelStatus]:
        """As ``Client.models``."""
        found = self._ask("models")
        return self._read("the models", lambda: [_model(one) for one in found["models"]])

    def known_models(self) -> list[KnownModel]:
        """As ``Client.known_models``."""
        import msgspec

        from actors.messages import KnownModel

        found = self._ask("models").get("known", [])
        return self._read("the models", lambda: msgspec.convert(found, list[KnownModel]))

    def load(
        self,
        model: str,
        path: ModelConfig,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> ModelStatus:
        """As ``Client.load``; the path is one of the gateway's machine."""
        from runtime.remote.load_request import load_body

        result = self._work("models/load", load_body(model, path), progress)
        return self._read("the model", lambda: _model(result))

    def unload(self, model: str, *, drain_s: float | None = 0.0) -> None:
        """As ``Client.unload``."""
        self._tell("models/unload", model=model, drain_s=drain_s)

    def end_session(self, model: str, session: str) -> bool:
        """As ``Client.end_session``."""
        found = self._tell("sessions/end", model=model, session=session)
        return bool(found.get("was_known"))

    # ── adapters ────────────────────────────────────────────────────────────────────────────────

    def list_adapters(self, model: str) -> tuple[AdapterStatus, ...]:
        """As ``Client.list_adapters``."""
        from actors.messages import AdapterStatus

        found = self._ask("adapters", model=model)
        return self._read(
            "the adapters", lambda: tuple(AdapterStatus(**one) for one in found["adapters"])
        )

    def load_adapter(self, model: str, path: str, *, scale: float | None = 1.0) -> None:
        """As ``Client.load_adapter``; the path is one of the gateway's machine."""
        self.requests.post(f"{OURS}/adapters/load", {"model": model, "path": path, "scale": scale})

    def set_adapter_scale(self, model: str, adapter: int, scale: float) -> None:
        """As ``Client.set_adapter_scale``."""
        self._tell("adapters/set", model=model, id=adapter, scale=scale)

    def unload_adapter(self, model: str, adapter: int) -> None:
        """As ``Client.unload_adapter``."""
        self._tell("adapters/unload", model=model, id=adapter)

    # ── replies ─────────────────────────────────────────────────────────────────────────────────

    def stream(self, model: str, prompt: str, **options: Any) -> RemoteStream:
        """As ``Client.stream``."""
        return self._stream("complete", model, {"prompts": [prompt]}, options)

    def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> RemoteStream:
        """As ``Client.stream_chat``."""
        return self._stream("chat", model, {"messages": list(messages)}, options)

    def stream_infill(
        self,
        model: str,
        prefix: str,
        suffix: str,
        *,
        extra: Sequence[tuple[str, str]] | None = None,
        repository: str | None = None,
        file: str | None = None,
        suffix_first: bool | None = None,
        **options: Any,
    ) -> RemoteStream:
        """As ``Client.stream_infill``."""
        part = {
            "prefix": prefix,
            "suffix": suffix,
            "extra": extra,
            "repository": repository,
            "file": file,
            "suffix_first": suffix_first,
        }
        return self._stream("infill", model, part, options)

    def complete_many(
        self, model: str, prompts: Sequence[str], *, n: int | None = None, **options: Any
    ) -> list[Completion]:
        """As ``Client.complete_many``."""
        if options.get("session") is not None and len(prompts) * (n or 1) > 1:
            raise errors.InvalidRequest(
                "a session has one reply at a time; leave session out, or ask for one reply to one "
                "prompt"
            )
        body = {"model": model, "prompts": list(prompts), "n": n, "options": _given(options)}
        done: dict[int, Completion] = {}
        stream = self._open("complete", body)
        try:
            for number, event in replies(stream):
                if isinstance(event, CompletionEvent):
                    done[number] = event.completion
        finally:
            stream.close()
        return [done[number] for number in sorted(done)]

    def _stream(
        self, path: str, model: str, part: Mapping[str, Any], options: Mapping[str, Any]
    ) -> RemoteStream:
        body = {"model": model, **part, "options": _given(options)}
        session = str(options.get("session"))
        open_it = partial(self._open, path, body)
        return RemoteStream(
            lambda: unless_busy(open_it, may_wait=session in self._has_cancelled),
            lambda: self._has_cancelled.add(session),
        )

    def _open(self, path: str, body: Mapping[str, Any]) -> EventStream:
        return self.requests.events(f"{OURS}/{path}", body)

    # ── texts and tokens ────────────────────────────────────────────────────────────────────────

    def tokenize(
        self,
        model: str,
        text: str,
        *,
        add_special: bool | None = True,
        parse_special: bool | None = False,
    ) -> list[int]:
        """As ``Client.tokenize``."""
        found = self._tell(
            "tokenize",
            model=model,
            text=arguments.text("the text", text),
            add_special=add_special,
            parse_special=parse_special,
        )
        return self._read("the tokens", lambda: list(map(int, found["tokens"])))

    def apply_chat_template(self, model: str, messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
        """As ``Client.apply_chat_template``; the answer has tokens alone."""
        found = self._tell("tokenize", model=model, messages=list(messages))
        return self._read("the tokens", lambda: ChatPrompt("", tuple(map(int, found["tokens"]))))

    def token_pieces(self, model: str, tokens: Sequence[int]) -> list[bytes]:
        """As ``Client.token_pieces``."""
        import base64

        found = self._tell("tokenize", model=model, tokens=list(tokens))
        return self._read("the tokens", lambda: [base64.b64decode(one) for one in found["pieces"]])

    def embed(
        self,
        model: str,
        inputs: Sequence[str],
        *,
        pooling: str | None = "model",
        normalise: bool | None = True,
    ) -> Embeddings:
        """As ``Client.embed``."""
        found = self._tell(
            "embed", model=model, inputs=list(inputs), pooling=pooling, normalise=normalise
        )
        return self._read(
            "the vectors",
            lambda: Embeddings(
                tuple(array("f", one) for one in found["vectors"]),
                tuple(found["rows"]),
                found["n_embd"],
                found["n_tokens"],
            ),
        )

    def rerank(
        self, model: str, query: str, documents: Sequence[str], *, top_n: int | None = None
    ) -> Ranking:
        """As ``Client.rerank``."""
        found = self._tell(
            "rerank", model=model, query=query, documents=list(documents), top_n=top_n
        )
        return self._read(
            "the ranks",
            lambda: Ranking(
                tuple(Ranked(one["index"], one["score"]) for one in found["results"]),
                found["n_tokens"],
            ),
        )

    # ── requests ────────────────────────────────────────────────────────────────────────────────

    def _ask(self, path: str, **query: str | int | None) -> dict[str, Any]:
        return self._object(self.requests.get(f"{OURS}/{path}", **query))

    def _tell(self, path: str, **fields: Any) -> dict[str, Any]:
        given = {name: value for name, value in fields.items() if value is not None}
        return self._object(self.requests.post(f"{OURS}/{path}", given))

    def _work(
        self, path: str, body: Mapping[str, Any], progress: Callable[[float], None] | None
    ) -> dict[str, Any]:
        return self._object(work_of(self.requests, f"{OURS}/{path}", body, progress))

    def _object(self, found: Any) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise self._unread("its answer")
        return found

    def _read(self, what: str, make: Callable[[], T]) -> T:
        try:
            return make()
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._unread(what) from None

    def _unread(self, what: str) -> errors.NotAGateway:
        return not_ours(self._address, f"{what} cannot be read")


def work_of(
    requests: Requests,
    path: str,
    body: Mapping[str, Any],
    progress: Callable[[float], None] | None = None,
) -> Any:
    """The result of work that takes its time; ``progress`` is called with shares from 0 to 1."""
    stream = requests.events(path, body)
    try:
        for name, plain in stream:
            if name == "progress" and progress is not None and isinstance(plain, dict):
                progress(float(plain.get("share", 0.0)))
            elif name == "result":
                return plain
            elif name == "error":
                error = plain.get("error", {}) if isinstance(plain, dict) else {}
                raise error_of(error) or errors.GatewayRefused(str(error.get("message", "")))
        raise stream.cut_off()
    finally:
        stream.close()


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are given; what is off by default is left out."""
    return {name: value for name, value in options.items() if value is not None}


def _model(plain: Mapping[str, Any]) -> ModelStatus:
    known = {one.name for one in dataclasses.fields(ModelStatus)}
    return ModelStatus(**{name: value for name, value in plain.items() if name in known})
