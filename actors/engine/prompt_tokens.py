"""The exact tokens of a request's prompt, known ids kept where its text goes on from them."""

from __future__ import annotations

from actors import messages as m
from actors.engine.request import Request, RequestRefused
from actors.text.chat_prompt import has_bos
from native.backend import Backend, ModelInfo
from native.errors import NativeError

PARENT_GONE = (
    "there is nothing to continue: the parent_key is not in the cache (evicted, or of another "
    "model or build); send the whole prompt instead"
)


def least_tokens(text: str, info: ModelInfo) -> int:
    """How many tokens a text has at least, by its bytes alone; 0 where that is not known."""
    if not info.max_token_bytes:
        return 0
    return -(-len(text.encode("utf-8", "replace")) // info.max_token_bytes)


def why_too_long(text: str, info: ModelInfo) -> str | None:
    """Why a text cannot be a prompt, if its bytes prove it: tokenising megabytes takes seconds."""
    n_tokens = least_tokens(text, info)
    if n_tokens <= info.n_ctx or not info.can_generate:
        return None
    return (
        f"the prompt has at least {n_tokens} tokens and the context holds {info.n_ctx}, the reply "
        "included; shorten the prompt or load the model with a larger n_ctx"
    )


def fix_prompt(request: Request, backend: Backend) -> None:
    """Turn the text into tokens, keeping the exact ids of the parent where the text goes on.

    Tokenising the whole text again may cut it differently from how it was generated, and the
    stored rows would never match (a known fault of the system this one re-creates).
    """
    if request.continues:
        _continue(request, backend)
        return
    if request.text is None or request.tokens:
        return
    known = request.parent_tokens or []
    said = backend.detokenize(known, special=request.parse_special).decode("utf-8", "replace")
    try:
        if known and request.text.startswith(said):
            rest = request.text[len(said) :]
            more = (
                backend.tokenize(rest, add_special=False, parse_special=request.parse_special)
                if rest
                else []
            )
            request.tokens = known + more
        else:
            if known and request.parent_key is not None:
                request.note = (
                    "the prompt does not begin with the text of parent_key; "
                    "it was matched by its tokens"
                )
            add_special = not (request.parse_special and has_bos(backend, request.text))
            request.tokens = backend.tokenize(
                request.text, add_special=add_special, parse_special=request.parse_special
            )
    except NativeError as error:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error
    if not request.tokens:
        raise RequestRefused(
            m.FailReason.INVALID_REQUEST, "the prompt has no tokens; send some text"
        )


def _continue(request: Request, backend: Backend) -> None:
    """Join the prompt to what came before it, whose exact ids are known or nothing is."""
    if not request.parent_tokens:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, PARENT_GONE)
    more = request.tokens
    if request.text:
        try:
            more = backend.tokenize(
                request.text, add_special=False, parse_special=request.parse_special
            )
        except NativeError as error:
            raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error
    request.tokens = [*request.parent_tokens, *more]
    request.continues = False
    if request.journal is not None:  # a session is known only here; its request outlives it so
        request.journal.begin(request.tokens, ())
