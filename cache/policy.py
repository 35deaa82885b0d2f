"""When to save what: a small validated configuration and pure functions of positions.

Blocks make this simple: a full block is saved once, when it is complete, whoever completed it; only
the end of a sequence, the tail, needs a decision. Positions and sizes are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.errors import InvalidPolicy
from cache.keys import BLOCK_TOKENS
from cache.rows import SaveReason


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` up to ``start + n_tokens`` are to be saved as one row."""

    start: int
    n_tokens: int
    reason: SaveReason


@dataclass(frozen=True, slots=True)
class SavePolicy:
    """Gates in tokens; refuses nonsense at construction (InvalidPolicy), so that the boot stops."""

    block_tokens: int = BLOCK_TOKENS  # see keys.BLOCK_TOKENS
    min_tokens: int = 32  # shorter prompts are pings; their rows would push out useful ones
    min_tail_tokens: int = 8  # a shorter tail is one small step to compute again
    save_prompt_tail: bool = True  # an identical prompt then hits to its last token
    save_while_generating: bool = True  # a crash or a fork then finds all but the last block
    save_finish_tail: bool = True  # the next turn continues exactly where this one ended

    def __post_init__(self) -> None:
        if not 1 <= self.block_tokens <= 4096:
            raise InvalidPolicy(f"block_tokens must be 1 .. 4096, not {self.block_tokens}")
        if self.min_tokens < 0:
            raise InvalidPolicy(f"min_tokens must not be negative, is {self.min_tokens}")
        if self.min_tail_tokens < 1:
            raise InvalidPolicy(f"min_tail_tokens must be at least 1, is {self.min_tail_tokens}")


def at_prompt_end(policy: SavePolicy, prompt_tokens: int, saved_tokens: int) -> list[Span]:
    """Rows to save when the prompt is computed; ``saved_tokens`` of it are stored already."""
    return _spans(
        policy, prompt_tokens, saved_tokens, SaveReason.COLD, with_tail=policy.save_prompt_tail
    )


def while_generating(policy: SavePolicy, live_tokens: int, saved_tokens: int) -> list[Span]:
    """Full blocks completed since; ``live_tokens`` counts prompt and output in the context."""
    if not policy.save_while_generating:
        return []
    return _spans(policy, live_tokens, saved_tokens, SaveReason.CONTINUED, with_tail=False)


def at_finish(
    policy: SavePolicy,
    live_tokens: int,
    saved_tokens: int,
    reason: SaveReason = SaveReason.FINISH,
) -> list[Span]:
    """Everything not stored yet when a sequence ends, for any reason, or is evicted."""
    return _spans(policy, live_tokens, saved_tokens, reason, with_tail=policy.save_finish_tail)


def _spans(
    policy: SavePolicy, live: int, saved: int, reason: SaveReason, *, with_tail: bool
) -> list[Span]:
    """Full blocks from the block that ``saved`` ends in, then the tail if it is worth a row.

    A position inside a block means that its beginning is stored as a tail only; the full block is
    saved from its start, and the index lets the tail go first when room is needed.
    """
    if live < policy.min_tokens:
        return []
    block = policy.block_tokens
    first, full = saved // block * block, live // block * block
    spans = [Span(at, block, reason) for at in range(first, full, block)]
    tail = live - full
    if with_tail and tail >= policy.min_tail_tokens and live > saved:
        spans.append(Span(full, tail, reason))
    return spans
