"""What a gateway refuses, and what is in its way, as the errors of the runtime."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from runtime import errors
from runtime.remote.address import GatewayAddress
from supervision.frozen import frozen

_WITH_MODEL: Final = frozenset(
    {
        "ModelError", "ModelUnknown", "ModelAlreadyLoaded", "ModelDown", "ModelUnloaded",
        "ModelStopped", "RequestPoisoned",
    }
)  # fmt: skip
_PLAIN: Final = frozenset(
    {
        "NoReply", "InvalidRequest", "PromptTooLong", "DeadlineExceeded", "SessionBusy",
        "NotSupported", "EngineFailed", "NodeError",
    }
)  # fmt: skip
_SAID_CHARS: Final = 500
_NOTHING: Final = (
    "nothing listens there; start a gateway with `llama-actors serve --gateway HOST:PORT`, or "
    "correct --url"
)
_CLOSED: Final = (
    "the connection was closed without an answer; where the gateway has a certificate write "
    "https://, and else see its log"
)
NO_KEY: Final = (
    "name one with --key-file FILE or LLAMA_ACTORS_KEY; `llama-actors gateway key` makes one"
)


@frozen
class _Refusal:
    """An answer that is no success."""

    address: GatewayAddress
    status: int
    headers: Mapping[str, str]
    error: Mapping[str, Any]
    """The object ``error`` of its body; empty: it has none."""

    @property
    def said(self) -> str:
        return str(self.error.get("message") or "")[:_SAID_CHARS]

    @property
    def reason(self) -> str:
        return self.said or f"status {self.status}, and no reason"

    @property
    def again(self) -> str:
        after = self.headers.get("retry-after", "")
        return f"try again after {after} s" if after.isdigit() else "try again later"


def refusal(
    address: GatewayAddress, status: int, headers: Mapping[str, str], body: bytes
) -> errors.LlamaActorsError:
    """The error that an answer with this status is. ``headers``: by names in lower case."""
    error = error_in(body) or {}
    refused = _Refusal(address, status, headers, error)
    return error_of(error) or _BY_STATUS.get(status, _other)(refused)


def _no_key(it: _Refusal) -> errors.LlamaActorsError:
    if not it.address.key:
        return errors.GatewayRefused(f"the gateway at {it.address.url} wants a key: {NO_KEY}")
    return errors.GatewayRefused(
        f"the gateway at {it.address.url} does not take this key ({it.reason}); check it, and that "
        "it is for this gateway"
    )


def _forbidden(it: _Refusal) -> errors.LlamaActorsError:
    return errors.GatewayRefused(f"the gateway at {it.address.url} refused this: {it.reason}")


def _invalid(it: _Refusal) -> errors.LlamaActorsError:
    return errors.InvalidRequest(it.said) if it.said else _other(it)


def _missing(it: _Refusal) -> errors.LlamaActorsError:
    if it.error.get("code") == "model_not_found":
        return errors.ModelUnknown("", it.said)
    if not (it.said and is_ours(it.headers)):
        return _other(it)
    return errors.NotAGateway(
        f"the gateway at {it.address.url} has no such request ({it.said}); it is another version "
        "of llama-actors than this one: use the same on both sides"
    )


def _limited(it: _Refusal) -> errors.LlamaActorsError:
    return errors.GatewayRefused(
        f"the limit of this key at {it.address.url} is reached ({it.reason}); {it.again}"
    )


def _late(it: _Refusal) -> errors.LlamaActorsError:
    return errors.GatewayUnreachable(f"{it.address.url} timed out ({it.reason}); {it.again}")


def _unavailable(it: _Refusal) -> errors.LlamaActorsError:
    who = "the gateway" if it.said else "a proxy before the gateway"
    return errors.GatewayUnreachable(
        f"{who} at {it.address.url} cannot answer now ({it.reason}); {it.again}"
    )


def _other(it: _Refusal) -> errors.LlamaActorsError:
    url = it.address.url
    if 300 <= it.status < 400:
        where = it.headers.get("location", "another address")
        return errors.NotAGateway(f"{url} redirects to {where}; give that address as --url")
    if it.said and is_ours(it.headers):
        return errors.GatewayRefused(f"the gateway at {url} refused this: {it.said}")
    return not_ours(it.address, f"it answered {it.status}")


_BY_STATUS: Final[dict[int, Callable[[_Refusal], errors.LlamaActorsError]]] = {
    400: _invalid,
    401: _no_key,
    403: _forbidden,
    404: _missing,
    405: _missing,
    408: _late,
    413: _invalid,
    429: _limited,
    431: _invalid,
    502: _unavailable,
    503: _unavailable,
    504: _late,
}


def not_ours(address: GatewayAddress, what: str) -> errors.NotAGateway:
    """Something answers, and it is no gateway of this program."""
    return errors.NotAGateway(
        f"what answers at {address.url} is no llama-actors gateway ({what}); check --url, and that "
        "both sides are the same version"
    )


def is_ours(headers: Mapping[str, str]) -> bool:
    """Whether an answer has the ids that ours have."""
    return headers.get("x-request-id", "").startswith("req_") and "request-id" in headers


def error_in(body: bytes) -> dict[str, Any] | None:
    """The object ``error`` of a body, if that is one."""
    with contextlib.suppress(ValueError, RecursionError):
        plain = json.loads(body)
        if isinstance(plain, dict) and isinstance(plain.get("error"), dict):
            found: dict[str, Any] = plain["error"]
            return found
    return None


def error_of(error: Mapping[str, Any]) -> errors.LlamaActorsError | None:
    """The runtime's own error, if the gateway has named one that it may name."""
    kind, text = error.get("kind"), str(error.get("message") or "")
    if kind == "ConfigError":
        key, _, detail = text.partition(": ")
        return errors.ConfigError(key, detail)
    if kind == "ModelLoadFailed":
        return errors.ModelLoadFailed("", "", text)
    if kind == "Overloaded":
        return errors.Overloaded(text)
    found: type[errors.LlamaActorsError] = getattr(errors, str(kind), errors.LlamaActorsError)
    if kind in _WITH_MODEL:
        return found("", text)
    return found(text) if kind in _PLAIN else None


def broken(address: GatewayAddress, error: Exception) -> errors.LlamaActorsError:
    """The error of a connection that could not be made, or has ended too early."""
    if isinstance(error, http.client.IncompleteRead):
        return errors.GatewayUnreachable(cut_off(address))
    certificate = getattr(error, "verify_message", None)
    if certificate is not None:
        return errors.GatewayUnreachable(
            f"the certificate of {address.url} is not trusted ({certificate}); name the file of "
            "the authority that signed it with --ca FILE, and use the name that it is for"
        )
    if type(error).__module__ == "ssl":
        return errors.GatewayUnreachable(
            f"{address.url} speaks no TLS that this machine accepts ({error}); where the gateway "
            "has no certificate, write http:// in place of https://"
        )
    for kind, words in _BROKEN:
        if isinstance(error, kind):
            return errors.GatewayUnreachable(f"{address.url}: {words}")
    if isinstance(error, http.client.HTTPException):
        return not_ours(address, "its answer is no HTTP")
    return errors.GatewayUnreachable(f"{address.url} cannot be reached: {error}")


_BROKEN: Final[tuple[tuple[type[Exception], str], ...]] = (
    (socket.gaierror, "no address is known for that name; check --url"),
    (ConnectionRefusedError, _NOTHING),
    (FileNotFoundError, "there is no such socket; correct --url"),
    (PermissionError, "this user may not use that socket; its owner can change that"),
    (TimeoutError, "no answer came in time; check that it runs, and what is between"),
    (ConnectionError, _CLOSED),  # RemoteDisconnected is one
)
"""The first that an error is."""


def cut_off(address: GatewayAddress) -> str:
    """What to tell where an answer ends in its middle."""
    return (
        f"the connection to {address.url} broke in the middle of the answer; what came is "
        "incomplete. Send it again, and see the log of the gateway or of the proxy before it"
    )
