"""A small model that guesses for a big one, by sampling greedily itself.

Runs on the engine thread of the big model, in the same process. Each drafting request has a
sequence here, which follows the tokens that the big model accepted; what was guessed wrong is cut
off when the request drafts again. All requests draft in one batch, a token each at a time. Whatever
goes wrong here costs guesses, never a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from actors.kv.restore_cost import Average
from actors.kv.timeline import Timeline
from native import BackendKind, load_backend
from native.backend import Backend, Batch
from native.errors import InvalidParam, NativeError
from native.params import ModelParams, SamplingParams

FAILURES_LIMIT = 3
"""So many failed decodes in a row, and nothing is drafted any more."""


@dataclass(slots=True, eq=False)
class _Draft:
    """What the draft model holds of one request."""

    seq: int
    tokens: list[int] = field(default_factory=list)
    n_same: int = 0
    """Leading ones that are known to be the request's."""

    def cut(self, tokens: Sequence[int]) -> int:
        """Where the request's tokens leave what is held; at least its last one is not held."""
        at, end = self.n_same, min(len(self.tokens), len(tokens) - 1)
        while at < end and self.tokens[at] == tokens[at]:
            at += 1
        return min(at, end)


class DraftModel:
    """Guesses with ``backend``, whose vocabulary is that of the model it guesses for."""

    def __init__(
        self,
        backend: Backend,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._backend = backend
        self._guard = guard
        self._batch = Batch()
        self._greedy = backend.new_sampler(SamplingParams())
        self._free = list(range(backend.info.n_seq_max))
        self._drafts: dict[Timeline, _Draft] = {}
        self._step = Average(0.1)
        self._failures = 0

    @property
    def step_seconds(self) -> float:
        """Seconds that one more guess of all requests takes."""
        return self._step.value

    def draft(self, wanted: Sequence[tuple[Timeline, int]]) -> dict[Timeline, list[int]]:
        """Up to so many tokens that may follow in each request.

        None for a request whose prompt is still being read here: that takes several calls where it
        is long, one batch each.
        """
        if self._failures >= FAILURES_LIMIT:
            return {}
        able = [(one, n) for one, n in wanted if self._draft_of(one) is not None]
        try:
            guesses = self._begin(able)
            self._continue(able, guesses)
        except NativeError:
            self._failures += 1
            for line, _ in able:
                self.forget(line)
            return {}
        self._failures = 0
        return guesses

    def forget(self, line: Timeline) -> None:
        """Free what is held of a request."""
        draft = self._drafts.pop(line, None)
        if draft is not None:
            self._backend.seq_remove(draft.seq, 0, -1)
            self._free.append(draft.seq)

    def close(self) -> None:
        self._backend.close()

    def _draft_of(self, line: Timeline) -> _Draft | None:
        draft = self._drafts.get(line)
        if draft is None and self._free:
            draft = self._drafts[line] = _Draft(self._free.pop())
        return draft

    def _begin(self, wanted: Sequence[tuple[Timeline, int]]) -> dict[Timeline, list[int]]:
        """Read the new tokens of each request; those that are up to date then guess one token."""
        self._batch.clear()
        room = self._backend.info.n_batch
        rows: dict[Timeline, int] = {}
        for line, _ in wanted:
            draft = self._drafts[line]
            at = draft.cut(line.tokens)
            self._backend.seq_remove(draft.seq, at, -1)
            new = line.tokens[at : at + room]
            reaches_end = at + len(new) == len(line.tokens)
            row = self._batch.extend_prefill(new, at, draft.seq, reaches_end)
            draft.tokens[at:] = new
            draft.n_same = at + len(new)
            room -= len(new)
            if row is not None:
                rows[line] = row
        self._decode()
        return {line: [self._token_of(row)] for line, row in rows.items()}

    def _continue(
        self, wanted: Sequence[tuple[Timeline, int]], guesses: dict[Timeline, list[int]]
    ) -> None:
        """Guess the second token of all, then the third, as many as were asked for."""
        while True:
            self._batch.clear()
            rows: list[tuple[Timeline, int]] = []
            for line, n in wanted:
                guessed = guesses.get(line, [])
                if not 0 < len(guessed) < n or guessed[-1] in self._backend.info.eog_tokens:
                    continue
                draft = self._drafts[line]
                rows.append(
                    (line, self._batch.add(guessed[-1], len(draft.tokens), draft.seq, True))
                )
                draft.tokens.append(guessed[-1])
            if not rows:
                return
            began = time.perf_counter()
            self._decode()
            for line, row in rows:
                guesses[line].append(self._token_of(row))
            self._step.add(time.perf_counter() - began)

    def _decode(self) -> None:
        if len(self._batch):
            with self._guard():
                self._backend.decode(self._batch)

    def _token_of(self, row: int) -> int:
        return self._backend.sample(row, self._greedy, 0)


def load_draft_model(
    kind: BackendKind,
    params: ModelParams,
    target: Backend,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> DraftModel:
    """Load the model at ``params.draft_path`` to guess for ``target``, with parameters like its.

    Raises what loading a model raises, and ``InvalidParam`` if it cannot guess for this one.
    """
    path = str(params.draft_path)
    backend = load_backend(kind, path, params.for_draft())
    try:
        why = _why_not(target, backend)
        if why:
            raise InvalidParam("draft_path", path, f"a model {why}")
    except BaseException:
        backend.close()
        raise
    return DraftModel(backend, guard)


def _why_not(target: Backend, draft: Backend) -> str:
    """What a draft model would have to be, if this one is not it."""
    if not draft.info.can_cut:
        return "whose memory can be cut, since wrong guesses are removed from it"
    n_vocab = target.info.n_vocab
    if draft.info.n_vocab != n_vocab:
        return f"of the same vocabulary: {n_vocab} tokens, not {draft.info.n_vocab}"
    for token in range(n_vocab):
        if target.piece(token, special=True) != draft.piece(token, special=True):
            return f"of the same vocabulary: token {token} is another text there"
    if target.info.eog_tokens != draft.info.eog_tokens:
        return "of the same vocabulary: other tokens end a text there"
    return ""
