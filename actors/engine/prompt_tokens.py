"""The exact tokens of a request's prompt, known ids kept where its text continues them.

And whether they fit: a refusal has their number, exactly where that is affordable.
"""

from __future__ import annotations

from typing import Final

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


COUNTED_BYTES: Final = 1 << 20
"""A text up to this size is tokenised beside the engine, which takes some tenths of a second, even
if its bytes prove that it does not fit: its refusal then has the exact number of its tokens."""


def is_countable(text: str) -> bool:
    """Whether a text is tokenised beside the engine, however long its prompt may be."""
    return len(text) <= COUNTED_BYTES and len(text.encode("utf-8", "replace")) <= COUNTED_BYTES


def least_tokens(text: str, info: ModelInfo) -> int:
    """How many tokens a text has at least, by its bytes alone; 0 where that is not known."""
    if not info.max_token_bytes:
        return 0
    return -(-len(text.encode("utf-8", "replace")) // info.max_token_bytes)


def too_long(n_prompt: int, n_ctx: int, *, at_least: bool = False) -> RequestRefused:
    """The refusal of a prompt that does not fit; ``at_least``: it may have more tokens."""
    least = "at least " if at_least else ""
    return RequestRefused(
        m.FailReason.PROMPT_TOO_LONG,
        f"the prompt has {least}{n_prompt} tokens and the context holds {n_ctx}, the reply "
        "included; shorten the prompt or load the model with a larger n_ctx",
        m.FailureFacts(n_prompt=n_prompt, n_ctx=n_ctx),
    )


def check_bytes(text: str, info: ModelInfo) -> None:
    """RequestRefused if its bytes prove that a text cannot be a prompt.

    Tokenising megabytes takes seconds.
    """
    n_least = least_tokens(text, info)
    if n_least > info.n_ctx and info.can_generate:
        raise too_long(n_least, info.n_ctx, at_least=True)


def check_tokens(n_tokens: int, info: ModelInfo) -> None:
    """RequestRefused if so many tokens cannot be a prompt, even if no reply is asked for."""
    if n_tokens > info.n_ctx and info.can_generate:
        raise too_long(n_tokens, info.n_ctx)


def whole_text(backend: Backend, text: str, *, special: bool) -> TokenIds:
    """The tokens of a text that is all of a prompt; raises NativeError."""
    add_special = not (special and has_bos(backend, text))
    return TokenIds(backend.tokenize(text, add_special=add_special, parse_special=special))


def is_known(request: Request) -> bool:
    """Whether ``fix_prompt`` has nothing to tokenise, and no answer would change what it does."""
    prompt, cache = request.prompt, request.cache
    if cache.wait_until is not None:
        return False
    if prompt.follows_parent:
        return bool(cache.parent_tokens) and not prompt.text
    return bool(request.line.tokens) or (prompt.ids is not None and not cache.parent_tokens)


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
            ids = prompt.ids
            if ids is None:
                ids = whole_text(backend, prompt.text, special=special)
            request.line.prompt_is(ids)
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
