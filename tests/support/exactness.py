"""Ways to compute one reply, and how far their logits agree with a cold run's: byte by byte.

The tokens of the replies are imposed: whatever the sampler draws, the engine receives the next
token of a reply that is fixed beforehand. So every position is compared, also behind one whose bits
differ, and in models that would repeat themselves or end their texts. Everything else is as it is
in a node: engine, batch plan, cache index, rows in the arena and in files.

``Lab`` has one subject (a model with its parameters), a prompt and a reply, and makes engines.
``WAYS`` are the ways, each of one level of exactness (``docs/exactness.md``). A way that did not
happen, for instance because nothing was restored, raises ``WayNotTaken``.
"""

from __future__ import annotations

import itertools
import math
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from actors import messages as m
from cache import tokens as token_bytes
from cache.policy import LivePolicy, LogitsPolicy, SavePolicy
from native import load_backend
from native.backend import Backend, Sampler
from native.params import ModelParams, SamplingParams
from native.sampling_params import ReplyGrammar
from runtime.embedded.prompts import long_prompt
from tests.support.cached_engine import CALLER, Cache, CachedEngine

Level = Literal["repeat", "prefix", "always"]
Prompt = tuple[int, ...]
Trace = dict[int, bytes]
"""All logits of a reply's positions, as the bytes of float32 numbers."""
Deltas = dict[int, float]
"""The largest difference of a logit, by position; 0 means that all bytes are the same."""

MAIN: Final = "main"
KEEPS_ALL: Final = SavePolicy(min_tokens=1, min_tail_tokens=1, tail_delay_ms=0, tail_disk_delay_s=0)
KEEPS_BLOCKS: Final = replace(KEEPS_ALL, save_prompt_tail=False, save_finish_tail=False)
"""What a process leaves that is killed: no end of a sequence."""
NO_LOGITS: Final = LogitsPolicy(memory_bytes=0, row_share=0.0)
LOGITS_IN_ROWS: Final = LogitsPolicy(memory_bytes=0, row_share=1.0)
STAYS: Final = LivePolicy(
    max_idle=6,
    max_idle_share=0.9,
    idle_steps_stored=1 << 40,
    idle_steps_unstored=1 << 40,
    idle_s=1e9,
)
"""Idle sequences stay until their cells are needed."""
N_SEQ: Final = 8
_COPIED: Final = 20  # tokens of the reply that repeat its prompt, so that guesses find something
_NEW: Final = 10  # and tokens between them
_FIRST_STATE: Final = 256
"""Where memory that cannot be cut has surely been saved once, in tokens."""
_ANSWER_S: Final = 900.0


class WayNotTaken(AssertionError):
    """What a way is about did not happen, so its result means nothing."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model file, its parameters, and whether its prompts are text or random tokens."""

    name: str
    path: Path
    params: ModelParams = field(default_factory=ModelParams)
    reads_text: bool = False
    backend: str = "llama"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one way agrees with its reference."""

    positions: int
    same: int
    """Positions of which all bytes of all logits are the same."""
    first: int | None
    """The first position that differs."""
    largest: float
    """The largest difference of a logit."""

    @classmethod
    def of(cls, *found: Deltas) -> Agreement:
        """Of one reply or of several."""
        every = [delta for one in found for delta in one.values()]
        differ = [at for one in found for at, delta in one.items() if delta]
        first = min(differ, default=None)
        return cls(len(every), len(every) - len(differ), first, max(every, default=0.0))

    @property
    def is_exact(self) -> bool:
        return self.positions == self.same > 0

    def __str__(self) -> str:
        if self.is_exact:
            return f"{self.same} of {self.positions}"
        at = f"first at {self.first}, up to {self.largest:.3g}"
        return f"{self.same} of {self.positions}, {at}"


def delta(one: bytes, other: bytes) -> float:
    """The largest difference of two lists of float32; never 0 where a byte differs."""
    if one == other:
        return 0.0
    numbers = np.frombuffer(one, np.float32) - np.frombuffer(other, np.float32)
    largest = float(np.max(np.abs(numbers)))
    return math.inf if math.isnan(largest) else max(largest, math.ulp(0.0))


class Recorder:
    """Takes the place of a backend's sampling: imposes replies, and notes or compares logits.

    ``replies`` by prompt. Requests whose prompt is in ``against`` are compared with it, so that
    their logits need not be kept; of the others in ``watched`` all logits are kept.
    """

    def __init__(
        self,
        backend: Backend,
        replies: Mapping[Prompt, Sequence[int]],
        watched: Sequence[Prompt],
        against: Mapping[Prompt, Trace],
    ) -> None:
        self._backend = backend
        self._replies = replies
        self._against = against
        self.traces: dict[Prompt, Trace] = {prompt: {} for prompt in watched}
        self.deltas: dict[Prompt, Deltas] = {prompt: {} for prompt in against}
        self._actions: dict[tuple[Prompt, int], list[Callable[[], None]]] = defaultdict(list)
        self._samplers: dict[int, tuple[Sampler, Prompt]] = {}
        self._sample, self._sample_from = backend.sample, backend.sample_from
        self._new_sampler = backend.new_sampler
        backend.sample = self.sample  # type: ignore[method-assign]
        backend.sample_from = self.sample_from  # type: ignore[method-assign]
        backend.new_sampler = self.new_sampler  # type: ignore[method-assign]

    def when(self, prompt: Prompt, index: int, action: Callable[[], None]) -> None:
        """Do this when a position of a reply is sampled: it comes before the next step."""
        self._actions[prompt, index].append(action)

    def new_sampler(
        self,
        params: SamplingParams,
        history: Sequence[int] = (),
        bound_by: ReplyGrammar | None = None,
    ) -> Sampler:
        sampler = self._new_sampler(params, history, bound_by)
        said = tuple(history)
        begun = [prompt for prompt in self._replies if said[: len(prompt)] == prompt]
        if begun:
            self._samplers[id(sampler)] = (sampler, max(begun, key=len))
        return sampler

    def sample(self, row: int, sampler: Sampler, index: int) -> int:
        if id(sampler) not in self._samplers:
            return self._sample(row, sampler, index)
        self._sample(row, sampler, index)  # refuses logits that are not finite
        return self._next(sampler, index, lambda: self._backend.logits(row).tobytes())

    def sample_from(self, logits: Any, sampler: Sampler, index: int) -> int:
        if id(sampler) not in self._samplers:
            return self._sample_from(logits, sampler, index)
        return self._next(sampler, index, logits.tobytes)

    def _next(self, sampler: Sampler, index: int, logits: Callable[[], bytes]) -> int:
        prompt = self._samplers[id(sampler)][1]
        if prompt in self._against:
            if index in self._against[prompt]:
                self.deltas[prompt][index] = delta(self._against[prompt][index], logits())
        elif prompt in self.traces:
            self.traces[prompt][index] = logits()
        for action in self._actions.pop((prompt, index), ()):
            action()
        return self._replies[prompt][index]


class Desk:
    """One engine with its recorder; requests are put and waited for."""

    def __init__(self, engine: CachedEngine, recorder: Recorder, level: Level) -> None:
        self._engine = engine
        self.recorder = recorder
        self._level = level

    def put(
        self,
        name: str,
        prompt: Prompt,
        max_tokens: int,
        journal: str | None = None,
        **fields: Any,
    ) -> None:
        complete = m.Complete(
            name,
            "m",
            m.TokenPrompt(token_bytes.pack(prompt)),
            max_tokens=max_tokens,
            exact=m.Exact(self._level),
            **fields,
        )
        self._engine.commands.put(m.Run(name, CALLER, complete, journal))

    def wait(self) -> m.Completed:
        """For the next request that ends."""
        done = self._engine.ended.get(timeout=_ANSWER_S)
        if not isinstance(done, m.Completed):
            raise WayNotTaken(f"a request failed: {done}")
        return done

    def ask(self, name: str, prompt: Prompt, max_tokens: int, **fields: Any) -> m.Completed:
        """Run one request to its end."""
        self.put(name, prompt, max_tokens, **fields)
        return self.wait()


class Lab:
    """One subject, its prompt and its reply; see the module docstring.

    ``home`` is a folder for arenas and row files, best in memory. ``n_prompt`` and ``n_reply``
    count tokens, and every way computes the whole reply.
    """

    def __init__(
        self, subject: Subject, home: Path, *, n_prompt: int = 701, n_reply: int = 200
    ) -> None:
        self.subject = subject
        self._home = self._folder = home
        self.n_reply = n_reply
        self._numbers = itertools.count()
        self._replies: dict[Prompt, tuple[int, ...]] = {}
        self._cold: dict[tuple[Prompt, Level], Trace] = {}
        with self._loaded() as backend:
            self.can_cut = backend.info.can_cut
            self.ends = backend.info.eog_tokens
            self._source = self._read(backend)
        self.prompt = self.text(0, n_prompt)
        self.reply = self._replies[self.prompt]

    # ── texts ───────────────────────────────────────────────────────────────────────────────────

    def _read(self, backend: Backend) -> list[int]:
        """Ordinary tokens that all texts are made of: those of a book, or random ones."""
        rng, info = random.Random(5), backend.info
        if self.subject.reads_text:
            return backend.tokenize(long_prompt(4000, seed=1), add_special=False)
        usable = [
            token
            for token in range(info.n_vocab)
            if token not in info.eog_tokens and token != info.bos_token
        ]
        return rng.choices(usable, k=6000)

    def text(self, number: int, n_tokens: int) -> Prompt:
        """A prompt of so many tokens, which shares its beginning with no other number's."""
        rng = random.Random(f"{number}")
        shift = rng.randrange(len(self._source))
        turned = self._source[shift:] + self._source[:shift]
        return self.with_reply(tuple(turned[:n_tokens]), number)

    def with_reply(self, prompt: Prompt, number: int) -> Prompt:
        """Fix the reply of a prompt: new tokens, and repetitions of the prompt by turns."""
        rng, reply = random.Random(f"reply {number}"), []
        while len(reply) < max(self.n_reply, self.N_TURN) + 1:
            at = rng.randrange(len(self._source) - _NEW)
            reply += self._source[at : at + _NEW]
            at = rng.randrange(max(1, len(prompt) - _COPIED))
            reply += prompt[at : at + _COPIED]
        self._replies[prompt] = tuple(reply)
        return prompt

    # ── engines ─────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _loaded(self, **params: Any) -> Iterator[Backend]:
        known = replace(self.subject.params, n_seq_max=N_SEQ)
        backend = load_backend(self.subject.backend, self.subject.path, replace(known, **params))
        try:
            yield backend
        finally:
            backend.close()

    def cache(self, disk: Path | None = None) -> Cache:
        """An empty arena with its index; ``disk``: and a directory of rows beside it."""
        return Cache(self._path("arena"), 512 << 20, disk)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{next(self._numbers)}"

    @contextmanager
    def folder(self) -> Iterator[None]:
        """Room for the files of one way, which are removed when it has ended."""
        with tempfile.TemporaryDirectory(prefix="way-", dir=self._home) as folder:
            self._folder = Path(folder)
            yield

    def on_disk(self, cache: Cache) -> Cache:
        """The rows of an arena as files, and a new arena without rows."""
        folder = self._path("rows")
        folder.mkdir()
        cache.write_files(folder)
        return self.cache(folder)

    @contextmanager
    def desk(
        self,
        level: Level,
        *,
        cache: Cache | None = None,
        watched: Sequence[Prompt] = (),
        against: Mapping[Prompt, Trace] | None = None,
        save: SavePolicy = KEEPS_ALL,
        live: LivePolicy = STAYS,
        logits: LogitsPolicy | None = None,
        **params: Any,
    ) -> Iterator[Desk]:
        """An engine of this model, as a process would have it, with the model loaded again."""
        if logits is not None:
            save = replace(save, logits=logits)
        with self._loaded(**params) as backend:
            recorder = Recorder(backend, self._replies, watched, against or {})
            with CachedEngine(
                cache or self.cache(),
                save=save,
                live=live,
                backend=backend,
                incarnation=next(self._numbers),
            ) as engine:
                yield Desk(engine, recorder, level)

    def cold(self, level: Level, prompt: Prompt | None = None) -> Mapping[Prompt, Trace]:
        """The reference: alone in a new process, which has nothing stored."""
        prompt = prompt or self.prompt
        if (prompt, level) not in self._cold:
            with self.desk(level, watched=(prompt,)) as desk:
                desk.ask(MAIN, prompt, self.n_reply)
                self._cold[prompt, level] = desk.recorder.traces[prompt]
        trace = self._cold[prompt, level]
        if len(trace) != self.n_reply:
            raise WayNotTaken(f"the cold run has logits of {len(trace)} positions")
        return {prompt: trace}

    def forget(self, prompt: Prompt, level: Level) -> None:
        """Free the memory of a reference."""
        self._cold.pop((prompt, level), None)

    def agreement(self, desk: Desk, prompt: Prompt | None = None, first: int = 0) -> Agreement:
        """Of the request with this prompt, from position ``first`` on: every one of them."""
        deltas = desk.recorder.deltas[prompt or self.prompt]
        if sorted(deltas) != list(range(first, self.n_reply)):
            raise WayNotTaken(
                f"{len(deltas)} positions were compared, from {min(deltas, default=0)}"
            )
        return Agreement.of(deltas)

    # ── the next turn ───────────────────────────────────────────────────────────────────────────

    N_TURN: Final = 120
    """Tokens of the first reply: it ends behind the middle of a block."""

    @cached_property
    def turn(self) -> Prompt:
        """The prompt, the beginning of its reply, and 41 new tokens."""
        more = self.text(77, 41)
        return self.with_reply((*self.prompt, *self.reply[: self.N_TURN], *more), 78)

    @property
    def conversation(self) -> dict[str, Any]:
        """Fields of requests that continue the live sequence; without them memory that cannot be
        cut is restored from states."""
        return {} if self.can_cut else {"session": "conversation"}

    @cached_property
    def live_turn(self) -> Mapping[Prompt, Trace]:
        """The reference of next turns: in the process that computed the first one."""
        with self.desk("repeat", watched=(self.turn,)) as desk:
            desk.ask("first", self.prompt, self.N_TURN, **self.conversation)
            done = desk.ask(MAIN, self.turn, self.n_reply, **self.conversation)
            came_from(done, "live", len(self.prompt) + 1)
            return {self.turn: desk.recorder.traces[self.turn]}


def came_from(done: m.Completed, source: str, at_least: int) -> None:
    """Check that a request was as warm as its way supposes."""
    cached = done.usage.cached_tokens
    if done.cache.source != source or cached < at_least:
        raise WayNotTaken(
            f"{cached} tokens came from {done.cache.source} ({done.cache.miss_reason}); "
            f"{at_least} were expected, from {source}"
        )
