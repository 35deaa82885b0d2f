"""Decodes that other threads abort: for a cancelled request, and for one that is more urgent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest

from actors.engine import abortable_decode
from actors.engine.abortable_decode import AbortableDecoder
from native.backend import Batch
from native.errors import DecodeAborted
from native.params import ModelParams
from native.stub import UNCUTTABLE, StubBackend

pytestmark = pytest.mark.pure


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Decodes:
    """A decoder whose decodes take a given time, on a clock that stands still."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.backend = StubBackend.load(name, ModelParams(n_ctx=256, n_seq_max=4))
        self.clock = clock
        self.during: Callable[[], None] = lambda: None
        self.decoder = AbortableDecoder(self.backend, self._guard)
        self._position = 0

    @contextmanager
    def _guard(self) -> Iterator[None]:
        self.during()
        yield

    def run(
        self, seconds: float, *, gives_way: bool, asked_after: float | None = None, n_rows: int = 1
    ) -> bool:
        """One decode; whether it was computed to its end."""

        def during() -> None:
            if asked_after is not None:
                self.clock.now += asked_after
                for _ in range(2):  # two requests, and one decode is given up
                    asking = threading.Thread(target=self.decoder.give_way)
                    asking.start()
                    asking.join()
            self.clock.now += seconds - (asked_after or 0.0)

        self.during = during
        self.decoder.looked()
        batch = Batch()
        for row in range(n_rows):
            batch.add(40, self._position + row, 0, want_logits=True)
        if not self.decoder.may_begin(["a"], len(batch), gives_way=gives_way):
            return False
        error = self.decoder.run(batch)
        if error is None:
            self._position += n_rows
            return True
        assert isinstance(error, DecodeAborted)
        return False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(abortable_decode, "time", clock)
    return clock


def test_background_is_aborted_while_less_than_half_of_it_is_done(clock: Clock) -> None:
    decodes = Decodes("stub", clock)
    assert decodes.run(8.0, gives_way=True)
    assert not decodes.run(8.0, gives_way=True, asked_after=3.9)
    assert decodes.run(8.0, gives_way=True, asked_after=4.1), "more is lost than is saved"
    assert decodes.decoder.aborted_for_others == 1


def test_a_decode_of_a_size_that_was_not_seen_is_not_aborted(clock: Clock) -> None:
    decodes = Decodes("stub", clock)
    assert decodes.run(8.0, gives_way=True, asked_after=0.1)


def test_interactive_work_is_not_aborted_for_another_request(clock: Clock) -> None:
    decodes = Decodes("stub", clock)
    assert decodes.run(8.0, gives_way=True)
    assert decodes.run(8.0, gives_way=False, asked_after=0.1)


def test_memory_that_cannot_be_cut_is_not_computed_again_for_this(clock: Clock) -> None:
    decodes = Decodes(UNCUTTABLE, clock)
    assert decodes.run(8.0, gives_way=True)
    assert decodes.run(8.0, gives_way=True, asked_after=0.1)


def test_a_sliding_window_gives_up_single_tokens_and_no_prompt(clock: Clock) -> None:
    decodes = Decodes("stub", clock)
    decodes.backend.info = replace(decodes.backend.info, can_cut=False)
    decodes.decoder = AbortableDecoder(decodes.backend, decodes._guard)
    assert decodes.run(8.0, gives_way=True)
    assert not decodes.run(8.0, gives_way=True, asked_after=3.9)
    assert decodes.run(8.0, gives_way=True, n_rows=5)
    assert decodes.run(8.0, gives_way=True, asked_after=3.9, n_rows=5)


def test_background_does_not_begin_while_an_interactive_request_is_in_the_queue() -> None:
    decoder = AbortableDecoder(StubBackend.load("stub", ModelParams(n_ctx=64)), nullcontext)
    decoder.give_way()
    assert not decoder.may_begin(["a"], 1, gives_way=True)
    assert decoder.may_begin(["b"], 1, gives_way=False)
    decoder.looked()
    assert decoder.may_begin(["a"], 1, gives_way=True)
