"""Where the states of models that cannot be cut are taken, and under which tokens they are stored.

A model whose memory cannot be cut into blocks is saved as a whole, at a few positions. Its rows
form the same tree of blocks as those of any other model, but most are *links*: tokens without
payload, which record that this prefix was computed. A *checkpoint* is a row whose payload is the
state of the whole sequence up to the row's end. See docs/kv-cache-format.md.

Two kinds of rows carry one:

- a full block. It lies on the path of every prompt that begins with these tokens, so a lookup finds
  all of them at once;
- a *tip*: the state behind any token: the last but one of a prompt, for its exact repeat, and the
  last of a reply, for the next turn. Its tokens are ``TIP`` and those of its block up to there.
  ``TIP`` is no token of any model, so a tip is never mistaken for a block, never contained in one,
  and its key never belongs to a link.

Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cache.tokens import TIP

FIRST_RUNG_BLOCKS: Final = 4  # 256 tokens are computed again in the time that a state takes
BYTES_PER_GENERATED_BLOCK: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Stops:
    """Where a prompt of ``n_prompt`` tokens is interrupted to take a checkpoint."""

    n_prompt: int
    block_tokens: int
    grows: bool
    """Whether a state is larger for more tokens."""
    n_stored_blocks: int
    """Leading blocks that are stored: what they are, link or checkpoint, cannot be changed."""
    has_tip: bool
    """Whether the prompt's tip is stored."""
    restarts: frozenset[int] = frozenset()
    """Blocks at whose end, or soon behind it, another prompt is likely to part from this one."""

    def is_stop(self, position: int) -> bool:
        """Whether the state after ``position`` tokens of the prompt is worth a row."""
        if not 1 <= position < self.n_prompt:
            return False
        if position == self.n_prompt - 1 and not self.has_tip:
            return True
        blocks, rest = divmod(position, self.block_tokens)
        if rest or blocks <= self.n_stored_blocks:
            return False
        is_last = blocks == (self.n_prompt - 1) // self.block_tokens
        return is_last or blocks in self.restarts or is_rung(blocks, self.grows)

    def after(self, position: int) -> int | None:
        """The first stop behind ``position``, if any."""
        boundary = (position // self.block_tokens + 1) * self.block_tokens
        for at in range(boundary, self.n_prompt, self.block_tokens):
            if self.is_stop(at):
                return at
        last = self.n_prompt - 1
        return last if last > position and self.is_stop(last) else None


def is_rung(blocks: int, grows: bool) -> bool:
    """Whether every sequence that passes ``blocks`` full blocks leaves a checkpoint there.

    Powers of two: a prompt that shares only a beginning gets at least half of it, and all rungs
    together are at most twice the last one, although a state grows with its tokens. Where it does
    not, every fourth block: that costs less than the KV of a model that can be cut.
    """
    if blocks < FIRST_RUNG_BLOCKS:
        return False
    return blocks & (blocks - 1) == 0 or (not grows and blocks % FIRST_RUNG_BLOCKS == 0)


def blocks_between(state_bytes: int) -> int:
    """Every how many blocks a sequence that generates keeps a state, in case it ends soon.

    The copy holds up the next token, so its time is spread over the blocks: 8 MiB take about two
    milliseconds, and a block takes a model with such states a second.
    """
    return max(1, state_bytes // BYTES_PER_GENERATED_BLOCK)


def query(tokens: Sequence[int], block_tokens: int) -> list[int]:
    """What to look up for a prompt: its blocks, and then its tip instead of its tail."""
    at = (len(tokens) - 1) // block_tokens * block_tokens
    return [*tokens[:at], *tip(tokens, block_tokens)]


def tip(tokens: Sequence[int], block_tokens: int) -> list[int]:
    """The tokens of the row that holds a prompt's state one token before its end."""
    at = (len(tokens) - 1) // block_tokens * block_tokens
    return [TIP, *tokens[at : len(tokens) - 1]]
