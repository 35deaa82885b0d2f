"""Failures in the words of the API that was called."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Literal

from runtime.gateway.wire import anthropic_errors, ollama_errors, openai_errors
from runtime.gateway.wire.bodies import encode
from runtime.gateway.wire.failure import Failure, Fault

Api = Literal["openai", "anthropic", "ollama", "native", "own"]

_NATIVE: Final = frozenset(
    {
        "completion", "completions", "tokenize", "detokenize", "apply-template", "infill", "rerank",
        "reranking", "embedding", "embeddings", "props", "slots", "metrics", "lora-adapters",
    }
)  # fmt: skip
_OWN: Final = ["llama", "v1"]
_NATIVE_V1: Final = frozenset({("v1", "stream"), ("v1", "streams")})
JSON: Final = "application/json"


def api_of(path: str, *, has_version: bool = False) -> Api:
    """The API that a path belongs to; ``has_version``: the request has ``anthropic-version``."""
    parts = path.partition("?")[0].strip("/").split("/")
    if parts[:2] == _OWN:
        return "own"
    if parts[0] == "api":
        return "ollama"
    if "messages" in parts or has_version:
        return "anthropic"
    is_native = parts[0] in _NATIVE or tuple(parts[:2]) in _NATIVE_V1
    return "native" if is_native else "openai"


def error_body(failure: Failure, api: Api, request_id: str = "") -> bytes:
    """The body of an answer that states a failure."""
    return encode(_object(failure, api, request_id))


def _object(failure: Failure, api: Api, request_id: str) -> dict[str, Any]:
    match api:
        case "anthropic":
            return anthropic_errors.error_object(failure, request_id)
        case "ollama":
            return ollama_errors.error_object(failure)
        case "native":
            return openai_errors.native_error_object(failure)
        case "own":
            return openai_errors.own_error_object(failure)
        case _:
            return openai_errors.error_object(failure)


def status_of(failure: Failure, api: Api) -> int:
    """The status of the answer: Anthropic has one of its own for overload, llama-server for 501."""
    if api == "anthropic" and failure.fault is Fault.OVERLOADED:
        return 529
    if api == "native" and failure.fault is Fault.UNSUPPORTED:
        return 501
    return failure.status


def error_response(status: int, failure: Failure, path: str) -> bytes:
    """A whole answer as bytes, for a connection that is closed after it."""
    body = error_body(failure, api_of(path))
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    head = (
        f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n"
    )
    if failure.retry_after is not None:
        head += f"retry-after: {failure.retry_after}\r\n"
    head += "\r\n"
    return head.encode("ascii") + body
