"""The exact tokens of a request's prompt, known ids kept where its text continues them."""

from __future__ import annotations

from actors import messages as m
from actors.engine.request import Request
from actors.messages.errors import RequestRefused
from actors.text.chat_prompt import has_bos
from cache.tokens import TokenIds
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
    """Turn the text into tokens, keeping the exact ids of the parent where the text continues it.

    Tokenising the whole text again may cut it differently from how it was generated, and the
    stored rows would never match.
    """
    prompt = request.prompt
    if prompt.follows_parent:
        _join(request, backend)
        return
    if prompt.text is None or request.line.tokens:
        return
    special = request.spec.parse_special
    known = request.cache.parent_tokens or TokenIds()
    before = backend.detokenize(known, special=special).decode("utf-8", "replace")
    try:
        if known and prompt.text.startswith(before):
            rest = prompt.text[len(before) :]
            more = backend.tokenize(rest, add_special=False, parse_special=special) if rest else []
            request.line.prompt_is(known + TokenIds(more))
        else:
            if known and request.spec.parent_key is not None:
                prompt.note = (
                    "the prompt does not begin with the text of parent_key; "
                    "it was matched by its tokens"
                )
            add_special = not (special and has_bos(backend, prompt.text))
            ids = backend.tokenize(prompt.text, add_special=add_special, parse_special=special)
            request.line.prompt_is(TokenIds(ids))
    except NativeError as error:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error
    if not request.line.tokens:
        raise RequestRefused(
            m.FailReason.INVALID_REQUEST, "the prompt has no tokens; send some text"
        )


def _join(request: Request, backend: Backend) -> None:
    """Put the parent's tokens before the prompt; RequestRefused where they are not known."""
    parent, prompt = request.cache.parent_tokens, request.prompt
    if not parent:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, PARENT_GONE)
    more = request.line.prompt
    if prompt.text:
        try:
            special = request.spec.parse_special
            ids = backend.tokenize(prompt.text, add_special=False, parse_special=special)
            more = TokenIds(ids)
        except NativeError as error:
            raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error
    request.line.prompt_is(parent + more)
    prompt.is_joined()
    if request.journal is not None:  # the session's tokens are nowhere else
        request.journal.begin(request.line.tokens, ())
