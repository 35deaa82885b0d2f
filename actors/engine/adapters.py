"""LoRA adapters of one model: when they change, and what must be forgotten then.

Runs on the engine thread. A change is a barrier: it waits until no request runs or talks to the
cache, and nothing starts while one waits. Then whatever the old weights computed leaves the
context, the adapters change, and so does the root of the namespace: rows of one set of adapters are
never found by another, and are found again when the same files are applied at the same scales.
Otherwise KV of the new weights would be stored under keys of the old ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from actors import messages as m
from cache.keys import namespace_key
from native.adapters import LoadedAdapter, adapters_identity
from native.backend import Backend
from native.errors import InvalidParam, ModelFileError, NotSupported

Change = m.LoadAdapter | m.UnloadAdapter | m.SetAdapterScale
Question = Change | m.ListAdapters


class Namespace(Protocol):
    """What ``actors.kv.store`` does for this module."""

    @property
    def root(self) -> bytes: ...

    def change_root(self, root: bytes) -> None: ...


def root_with(root: bytes, adapters: tuple[LoadedAdapter, ...]) -> bytes:
    """The namespace of the model ``root`` with these adapters; its own if none is applied."""
    identity = adapters_identity(adapters)
    return namespace_key([("model", root), ("lora", identity)]) if identity else root


class AdapterManager:
    """Changes the adapters of one engine, and lists them."""

    def __init__(
        self,
        backend: Backend,
        namespace: Namespace,
        send: Callable[[object, object], None],
        forget: Callable[[], None],
    ) -> None:
        """``forget`` empties the context, and drops what is kept of the present weights."""
        self._backend = backend
        self._namespace = namespace
        self._send = send
        self._forget = forget
        self._waiting: list[tuple[Change, object]] = []
        self._plain_root = namespace.root
        namespace.change_root(root_with(self._plain_root, backend.adapters))

    @property
    def blocks(self) -> bool:
        """Whether a change waits; no request may start until it is done."""
        return bool(self._waiting)

    def handle(self, question: Question, reply_to: object) -> None:
        if isinstance(question, m.ListAdapters):
            listed = m.AdaptersListed(question.ref, self._statuses(), len(self._waiting))
            self._send(reply_to, listed)
        else:
            self._waiting.append((question, reply_to))

    def change(self, *, busy: bool) -> None:
        """Make the changes that wait, unless requests are ``busy`` with the present weights."""
        if busy or not self._waiting:
            return
        self._forget()
        asked, self._waiting = self._waiting, []
        for question, reply_to in asked:
            try:
                self._apply(question)
            except Exception as error:  # noqa: BLE001 - it ends this change, not the model
                self._send(reply_to, _not_changed(question.ref, error))
            else:
                self._send(reply_to, m.AdaptersChanged(question.ref, self._statuses()))
        self._namespace.change_root(root_with(self._plain_root, self._backend.adapters))

    def close(self, reason: m.FailReason, detail: str) -> None:
        """The model ends; changes that wait are not made."""
        for question, reply_to in self._waiting:
            self._send(reply_to, m.AdapterNotChanged(question.ref, reason, "BackendClosed", detail))
        self._waiting.clear()

    def _apply(self, question: Change) -> None:
        match question:
            case m.LoadAdapter(_, path, scale):
                self._backend.load_adapter(path, scale)
            case m.UnloadAdapter(_, adapter):
                self._backend.remove_adapter(adapter)
            case m.SetAdapterScale(_, adapter, scale):
                self._backend.scale_adapter(adapter, scale)

    def _statuses(self) -> tuple[m.AdapterStatus, ...]:
        return tuple(
            m.AdapterStatus(one.id, one.path, one.fingerprint.hex(), one.scale, one.n_bytes)
            for one in self._backend.adapters
        )


def _not_changed(ref: str, error: Exception) -> m.AdapterNotChanged:
    reason = m.FailReason.ENGINE_ERROR
    if isinstance(error, NotSupported):
        reason = m.FailReason.NOT_SUPPORTED
    elif isinstance(error, InvalidParam | ModelFileError | TypeError):
        reason = m.FailReason.INVALID_REQUEST
    return m.AdapterNotChanged(ref, reason, type(error).__name__, str(error))
