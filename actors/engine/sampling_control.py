"""What chooses the next token of one reply, where it is not just its sampler.

Three cases, all seen from the reply so far, so that a resumed reply continues alike:

- The thinking budget is used up: the tokens of the end marker come, as if they had been sampled.
- Inside a tool call, outside its payload: the likeliest token that the grammar allows. A second
  sampler follows the reply for that, greedy and otherwise the same.
- A grammar does not bind a thought that the prompt has begun: it begins where the thought ends.
- A grammar of the chat template's format binds the whole reply where a tool must be called, and
  otherwise a tool call once it has begun.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from actors.text.format_parser import FormatParser
from actors.text.reply_parser import ReplyParser
from native.backend import Backend, Sampler
from native.errors import InvalidParam
from native.params import SamplingParams
from native.sampling_params import ReplyGrammar


@dataclass(slots=True)
class SamplingControl:
    """The samplers of one request, once it has started."""

    end_of_thought: tuple[int, ...] = ()
    forced: list[int] = field(default_factory=list)
    """Tokens that come next, whatever the logits are."""
    _params: SamplingParams = field(default_factory=SamplingParams)
    _history: list[int] = field(default_factory=list)
    """Prompt tokens, and those of a thought that no grammar bound."""
    _bound: list[int] = field(default_factory=list)
    """Reply tokens after them."""
    _main: Sampler | None = None
    _greedy: Sampler | None = None
    _is_free: bool = False
    """In a thought that no grammar binds."""
    _bound_by: ReplyGrammar | None = None

    @classmethod
    def of(
        cls,
        end_of_thought: tuple[int, ...],
        stream: ReplyParser | FormatParser,
        bound_by: ReplyGrammar | None = None,
    ) -> SamplingControl:
        """For a reply without tokens yet; it may have to stop thinking at once."""
        forced = list(end_of_thought) if stream.must_stop_thinking else []
        return cls(end_of_thought, forced, _bound_by=bound_by)

    def begin(
        self,
        backend: Backend,
        params: SamplingParams,
        prompt: Sequence[int],
        reply: Sequence[int],
        stream: ReplyParser | FormatParser,
    ) -> None:
        """Make the samplers, as they are after the tokens of ``reply``."""
        n_free = 0
        self._params, self._greedy, self._is_free = params, None, False
        if params.is_constrained and stream.was_opened:
            n_free = len(reply) if stream.opened_tokens is None else stream.opened_tokens
            self._is_free = stream.opened_tokens is None
            backend.new_sampler(params)  # a grammar that cannot be used is refused now
        if stream.bound is not None:
            n_free, self._bound_by = stream.bound
        self._history, self._bound = [*prompt, *reply[:n_free]], []
        self._main = backend.new_sampler(
            self._unbound() if self._is_free else params, self._history, self._bound_by
        )
        for token in reply[n_free:]:
            self._main.accept(token)
            self._bound.append(token)

    def choose(
        self, backend: Backend, row: int, index: int, stream: ReplyParser | FormatParser
    ) -> int:
        """The next token, from the logits of ``row``; accepted already."""
        if self.forced:
            token = self.forced[0]
        elif stream.is_structure:
            token = backend.sample(row, self._greedy_sampler(backend), index)
        else:
            token = backend.sample(row, self.main, index)
        self.accept(token)
        return token

    def choose_from(self, backend: Backend, logits: array[float], index: int) -> int:
        """The first token, from logits that were kept; accepted already."""
        token = self.forced[0] if self.forced else backend.sample_from(logits, self.main, index)
        self.accept(token)
        return token

    @property
    def has_begun(self) -> bool:
        return self._main is not None

    @property
    def main(self) -> Sampler:
        if self._main is None:
            raise RuntimeError("a request samples before it has started: a bug in the engine")
        return self._main

    def accept(self, token: int) -> None:
        """A token was chosen; all samplers follow."""
        self.main.accept(token)
        if self._greedy is not None:
            self._greedy.accept(token)
        self._bound.append(token)

    def appended(self, token: int, backend: Backend, stream: ReplyParser | FormatParser) -> None:
        """The token is part of the reply, and ``stream`` has seen it: what follows from that?"""
        if self.forced and self.forced[0] == token:
            del self.forced[0]
        if not self.forced and stream.must_stop_thinking:
            self.forced = list(self.end_of_thought)
        if stream.bound is not None and self._bound_by is None and self._main is not None:
            self._bind(backend, stream.bound.grammar)
        if self._is_free and self._main is not None and stream.opened_tokens is not None:
            self._is_free = False
            self._history += self._bound
            self._bound, self._greedy = [], None
            self._main = backend.new_sampler(self._params, self._history)

    def _bind(self, backend: Backend, grammar: ReplyGrammar) -> None:
        """A tool call has begun, and from here on the grammar holds it."""
        history = [*self._history, *self._bound]
        try:
            main = backend.new_sampler(self._params, history, grammar)
        except InvalidParam:
            return  # the call has begun as none of its grammar: it will come as text
        self._main, self._bound_by = main, grammar
        self._history, self._bound, self._greedy = history, [], None

    def _greedy_sampler(self, backend: Backend) -> Sampler:
        if self._greedy is None:
            params = self._unbound() if self._is_free else self._params
            self._greedy = backend.new_sampler(params.greedy(), self._history, self._bound_by)
            for token in self._bound:
                self._greedy.accept(token)
        return self._greedy

    def _unbound(self) -> SamplingParams:
        return replace(self._params, grammar=None, json_schema=None)
