"""Run a model's engine without any process: every step is started by the test.

The engine runs on the caller's thread. A script is a generator that yields lists of commands; it is
resumed with the outcomes of the requests when all of them have ended. Commands may also be sent in
reply to events, so "cancel it while it reads" is exact and needs no clock.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors import messages as m
from actors.engine.commands import Close
from actors.engine.engine import build_engine
from actors.kv.open_store import open_store
from cache import tokens as token_bytes
from cache.policy import LivePolicy, LogitsPolicy, SavePolicy
from native.backend import Backend, Batch, Rows
from native.params import SamplingParams
from supervision import Address
from tests.support.prompts import prompt_of

HOST = Address("127.0.0.1", 1)
Script = Generator[Sequence[object], "dict[str, Outcome]", None]


@dataclass
class Outcome:
    """What a caller received."""

    done: m.Completed | None = None
    verified: m.Verified | None = None
    failed: m.CompletionFailed | None = None
    tokens: list[int] = field(default_factory=list)
    progress: list[m.PrefillProgress] = field(default_factory=list)

    @property
    def cache(self) -> m.CacheReport:
        assert self.done is not None, self.failed
        return self.done.cache

    @property
    def reused(self) -> int:
        assert self.done is not None, self.failed
        return self.done.usage.cached_tokens


def ask(
    name: str,
    prompt: Sequence[int],
    max_tokens: int = 4,
    timeout_s: float | None = None,
    **sampling: float,
) -> m.Run:
    return run(
        name,
        prompt,
        max_tokens=max_tokens,
        timeout_s=timeout_s,
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
    )


def run(name: str, prompt: Sequence[int] | str, **fields: Any) -> m.Run:
    """Any request, by the fields of ``Complete`` and the keywords of ``prompt_of``."""
    kind = {key: fields.pop(key) for key in ("chat", "continues", "parse_special") if key in fields}
    return m.Run(name, HOST, m.Complete(name, "model", prompt_of(prompt, **kind), **fields))


class EngineRun:
    """One engine over ``backend``, without a cache unless ``store`` makes one."""

    def __init__(
        self,
        backend: Backend,
        *,
        policy: LivePolicy | None = None,
        logits: LogitsPolicy | None = None,
        on_event: Callable[[EngineRun, object], None] | None = None,
        **engine: Any,
    ) -> None:
        self.backend = backend
        self.outcomes: dict[str, Outcome] = {}
        self.answers: dict[str, Any] = {}
        """What came for a ref that no request has."""
        self.commands: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.rows_decoded = self.steps = 0
        self.batches: list[Rows] = []
        """How the rows of each step were computed."""
        self.placed: list[list[tuple[int, int]]] = []
        """Sequence and position of each row of each step."""
        self._on_event = on_event
        self._open: set[str] = set()
        self._count(backend)
        store = open_store(
            backend,
            root=b"r" * 32,
            holder="model#1",
            label="model",
            arena_path=None,
            tier_dirs={},
            granted_by=lambda: 1,
            policy=SavePolicy(logits=logits or LogitsPolicy()),
        )
        self.engine = build_engine(
            backend, store, self.commands, self._send, max_queue=1000, live=policy, **engine
        )

    def _count(self, backend: Backend) -> None:
        decode = backend.decode

        def counted(batch: Batch) -> None:
            decode(batch)
            self.rows_decoded += len(batch)
            self.steps += 1
            self.batches.append(batch.rows)
            self.placed.append(list(zip(batch.seqs, batch.positions, strict=True)))

        backend.decode = counted  # type: ignore[method-assign]

    def play(self, script: Script) -> dict[str, Outcome]:
        """Run to the end of the script, then close the engine."""
        self._script = script
        self._advance(next(script))
        self.engine.run()
        return self.outcomes

    def _advance(self, commands: Sequence[object]) -> None:
        for command in commands:
            if isinstance(command, m.Run):
                self.outcomes[command.request_id] = Outcome()
                self._open.add(command.request_id)
            self.commands.put(command)

    def _send(self, target: object, message: object) -> None:
        del target
        ref = getattr(message, "ref", None)
        outcome = self.outcomes.get(ref or "")
        match message:
            case m.PrefillProgress() if outcome:
                outcome.progress.append(message)
            case m.TokensDelivered(tokens=packed) if outcome:
                outcome.tokens += token_bytes.unpack(packed)
            case m.Verified() if outcome:
                outcome.verified = message
            case m.Completed() if outcome:
                outcome.done = message
            case m.CompletionFailed() if outcome:
                outcome.failed = message
            case m.RequestEnded(
                request_id
            ):  # the final message of a request; its cells are freed next
                self._open.discard(request_id)
            case _ if ref is not None and outcome is None:
                self.answers[ref] = message
        if self._on_event is not None:
            self._on_event(self, message)
        if isinstance(message, m.RequestEnded) and not self._open:
            try:
                self._advance(self._script.send(self.outcomes))
            except StopIteration:
                self.commands.put(Close(m.FailReason.MODEL_UNLOADED, "the script has ended"))
