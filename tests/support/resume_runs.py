"""Interrupt a reply after each of its tokens and resume it, in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from actors import messages as m
from actors.messages.journal import JournalKeeper, JournalWriter, Noted
from native.backend import Backend
from native.params import SamplingParams
from runtime.client.received import Received
from tests.support.engine_runs import HOST, EngineRun, Script
from tests.support.prompts import prompt_of


@dataclass
class Reply:
    """What the caller of one run received."""

    received: Received = field(default_factory=Received)
    done: m.Completed | None = None
    failed: m.CompletionFailed | None = None
    resumed: list[m.Resumed] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    noted: Noted = field(default_factory=Noted)

    @property
    def facts(self) -> tuple[object, ...]:
        """Everything that an interruption must not change."""
        assert self.done is not None, self.failed
        done = self.done
        usage = (done.usage.prompt_tokens, done.usage.completion_tokens)
        received = self.received
        return received.tokens, received.text, done.finish_reason, done.stop_sequence, usage


def request(prompt: Sequence[int] | str, **options: object) -> m.Complete:
    sampling = options.pop("sampling", {})
    assert isinstance(sampling, dict)
    options.setdefault("max_tokens", 256)
    return m.Complete(
        "r",
        "model",
        prompt_of(prompt),
        sampling=SamplingParams(**sampling),
        **options,  # type: ignore[arg-type]
    )


@contextmanager
def journals(left: Sequence[Noted]) -> Iterator[list[JournalKeeper]]:
    """Journals that processes left behind when they were killed."""
    keepers = [JournalKeeper() for _ in left]
    try:
        for keeper, noted in zip(keepers, left, strict=True):
            if noted.prompt:
                writer = JournalWriter.open(keeper.path)
                writer.begin(noted.prompt, noted.accepted)
                writer.close()
        yield keepers
    finally:
        for keeper in keepers:
            keeper.close()


def run(backend: Backend, asked: m.Complete, before: Noted | None = None) -> Reply:
    """One run in a fresh engine; ``before``: what an earlier one had recorded."""
    return runs(backend, [(asked, before)])[0]


def runs(backend: Backend, asked: Sequence[tuple[m.Complete, Noted | None]]) -> list[Reply]:
    """Several requests at once in a fresh engine."""
    replies = {f"r{n}": Reply() for n in range(len(asked))}

    def on_event(_: EngineRun, message: object) -> None:
        reply = replies.get(getattr(message, "ref", ""))
        match message:
            case m.TokensDelivered() if reply:
                reply.received.take(message)
                reply.sizes.append(len(message.tokens) + len(message.text.encode()))
            case m.Resumed() if reply:
                assert not reply.received, "notified too late"
                reply.resumed.append(message)
            case m.Completed() if reply:
                assert reply.done is None
                reply.done = message
            case m.CompletionFailed() if reply:
                reply.failed = message

    def script(keepers: Sequence[JournalKeeper]) -> Script:
        yield [
            m.Run(ref, HOST, replace(one, ref=ref), keeper.path)
            for (ref, (one, _), keeper) in zip(replies, asked, keepers, strict=True)
        ]

    with journals([before or Noted() for _, before in asked]) as keepers:
        EngineRun(backend, on_event=on_event).play(script(keepers))
        for keeper, reply in zip(keepers, replies.values(), strict=True):
            reply.noted = keeper.read()
    return list(replies.values())
