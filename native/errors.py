"""The errors of this package.

::

    NativeError
    ├── ModelFileError          .path
    │   ├── ModelNotFound       no readable regular file there
    │   ├── NotAGguf            another kind of file, or a damaged header
    │   ├── NotAModel           a GGUF file of another kind            .kind
    │   ├── TruncatedGguf       shorter than its header announces  .expected .actual
    │   ├── ModelLoadFailed     llama.cpp refused it               .detail
    │   ├── AdapterRefused      not a LoRA adapter of this model   .reason
    │   └── ControlVectorRefused  not one for this model           .reason
    ├── NotEnoughMemory         the model would not fit            .needed .available
    ├── ContextCreateFailed     no context with these parameters   .detail
    ├── NotSupported            this model or build cannot do that .what
    ├── InvalidParam            a value outside its range          .name .value .allowed
    ├── InvalidToken            not in the vocabulary              .token .n_vocab
    ├── PromptTooLong           more tokens than the context holds .n_tokens .n_ctx
    ├── TextTooLong             it, or a run in it, cannot be tokenised .n_chars .limit
    ├── NoTokenLeft             bias or grammar allow no token
    ├── NoKvSpace               no free KV cells now
    ├── DecodeAborted           request_abort() was called
    ├── DecodeFailed            llama_decode failed                .code
    ├── StateRefused            a KV payload is not acceptable     .reason
    └── BackendClosed           close() was called before

Not an exception: ``GGML_ABORT`` ends the process at once. A model therefore has a process of its
own, and its supervisor is notified of the exit.
"""

from __future__ import annotations

from pathlib import Path


class NativeError(Exception):
    """The base of all errors that this package raises on purpose.

    Errors cross process borders, so they pickle with their fields: ``args`` are the constructor's.
    """


class ModelFileError(NativeError):
    """The model file cannot be used.

    The cause is the file or the path; llama.cpp has not read it (except in ``ModelLoadFailed``).
    Loading it again without changing the file fails again.
    """

    remedy = "check the file"
    """What the user can do, as the end of the sentence."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}; {self.remedy}"


class ModelNotFound(ModelFileError):
    """There is no readable regular file at the path. Check spelling, mount and permissions."""

    remedy = "name a GGUF file that exists and that this user may read"


class NotAGguf(ModelFileError):
    """The file is not GGUF version 2 or 3, or its header contradicts itself.

    Fetch it again, or convert the model to GGUF.
    """

    remedy = "name a GGUF model; other formats must be converted to it first"


class NotAModel(ModelFileError):
    """A GGUF file that goes with a model was given as one: an adapter, a projector, an imatrix.

    ``kind`` names it, ``remedy`` is how to use it instead.
    """

    def __init__(self, path: str | Path, kind: str, remedy: str) -> None:
        super().__init__(path, f"this is {kind}, not a model")
        self.args = (path, kind, remedy)
        self.kind = kind
        self.remedy = remedy


class TruncatedGguf(ModelFileError):
    """The file ends before what its header announces, typically an interrupted download or copy.

    ``expected`` and ``actual`` are bytes. Fetch it again.
    """

    remedy = "the copy or download was cut short, fetch it again"

    def __init__(self, path: str | Path, expected: int, actual: int) -> None:
        super().__init__(path, f"the header announces {expected} bytes, the file has {actual}")
        self.args = (path, expected, actual)
        self.expected = expected
        self.actual = actual


class ModelLoadFailed(ModelFileError):
    """llama.cpp refused the file: an unknown architecture, wrong tensors, not enough memory.

    ``detail`` is the end of its own log; it usually names the cause.
    """

    remedy = "convert it again with a llama.cpp like the one in native/llama.lock, or free memory"

    def __init__(self, path: str | Path, detail: str) -> None:
        super().__init__(path, f"llama.cpp could not load the model: {detail or 'no reason given'}")
        self.args = (path, detail)
        self.detail = detail


class AdapterRefused(ModelFileError):
    """The file is no LoRA adapter of this model, or changed while it was read.

    The model is as it was before. ``reason`` is what does not fit.
    """

    remedy = "use an adapter that was made for this base model and converted to GGUF"


class ControlVectorRefused(ModelFileError):
    """The file is no control vector for this model; nothing was loaded."""

    remedy = "use a control vector that was made for this model, as a GGUF file"


class NotEnoughMemory(NativeError):
    """The model would not fit into the memory that is free; nothing was loaded.

    ``needed`` and ``available`` are bytes, estimated from the file's header.
    """

    def __init__(self, needed: int, available: int, where: str = "memory") -> None:
        super().__init__(needed, available, where)
        self.needed = needed
        self.available = available
        self.where = where

    def __str__(self) -> str:
        return (
            f"the model needs about {self.needed / 2**30:.1f} GiB of {self.where}, "
            f"{self.available / 2**30:.1f} GiB are available; lower n_ctx, use smaller type_k and "
            "type_v or a smaller model, unload another, or load it all the same with "
            "check_memory=False"
        )


class NotSupported(NativeError):
    """This model, or this build of llama.cpp, does not support the operation; nothing was done."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class ContextCreateFailed(NativeError):
    """There is no context for this model with these parameters.

    The cause is mostly memory: lower ``n_ctx`` or the KV types. Or the first decode failed: this
    build does not fit this CPU. ``detail`` is the end of llama.cpp's own log.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return (
            f"llama.cpp could not create a context: {self.detail}. "
            "Lower n_ctx, or use another type_k/type_v/flash_attn"
        )


class InvalidParam(NativeError):
    """The caller passed a value outside its range; nothing was done. ``allowed`` is the range."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(name, value, allowed)
        self.name = name
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        try:
            shown = repr(self.value)
        except Exception:  # noqa: BLE001 - of the caller's, or nested too deeply
            shown = f"<{type(self.value).__name__}>"
        shown = shown if len(shown) <= 120 else f"{shown[:120]}…"
        return f"{self.name}={shown} is not allowed: {self.allowed}"


class InvalidToken(NativeError):
    """A token id outside the vocabulary.

    Nothing was decoded. Ids are valid in ``range(n_vocab)``: tokenise with the same model that
    decodes.
    """

    def __init__(self, token: int, n_vocab: int) -> None:
        super().__init__(token, n_vocab)
        self.token = token
        self.n_vocab = n_vocab

    def __str__(self) -> str:
        return f"token {self.token} is not in the vocabulary of {self.n_vocab} tokens"


class PromptTooLong(NativeError):
    """The sequence would hold ``n_tokens`` but the context has room for ``n_ctx``.

    Shorten the prompt, lower max_tokens, or load the model with a larger ``n_ctx``.
    """

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(n_tokens, n_ctx)
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx

    def __str__(self) -> str:
        return f"{self.n_tokens} tokens do not fit a context of {self.n_ctx}"


class TextTooLong(NativeError):
    """A text, or a run of one kind of character in it, is too long to be tokenised.

    ``n_chars`` is its length and ``limit`` the longest possible one, both 0 where this process
    lacks memory or a thread. Shorten the text, or break the run.
    """

    def __init__(self, reason: str, n_chars: int = 0, limit: int = 0) -> None:
        super().__init__(reason, n_chars, limit)
        self.reason = reason
        self.n_chars = n_chars
        self.limit = limit

    def __str__(self) -> str:
        numbers = f" ({self.n_chars}, at most {self.limit})" if self.limit else ""
        return f"text too long to tokenise: {self.reason}{numbers}"


class NoTokenLeft(NativeError):
    """Logit bias, penalties or the grammar leave no token to choose.

    Ban fewer tokens, or use a grammar that the model's tokens can spell.
    """


class NoKvSpace(NativeError):
    """The shared pool of KV cells is full.

    The memory is as it was before the call. Remove or shorten a sequence and try again.
    """


class DecodeAborted(NativeError):
    """``request_abort`` stopped a decode.

    Some tokens of the batch may be in the memory already: trim each sequence with
    ``seq_remove`` to its length before the call, then ``clear_abort``.
    """


class DecodeFailed(NativeError):
    """llama.cpp could not compute the batch.

    ``code`` is the result of ``llama_decode``, or 0 when the logits were not finite. The state of
    the context is undefined then: ``rebuild`` it, or restart the process.
    """

    def __init__(self, code: int, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"decode failed with code {self.code}: {self.detail or 'no reason given'}"


class StateRefused(NativeError):
    """A KV payload (or the request for one) is not acceptable here.

    The destination sequence is as it was. Treat the stored row as corrupt, and compute the
    tokens instead.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"KV state refused: {self.reason}"


class BackendClosed(NativeError):
    """The backend was closed before; load a new one."""
