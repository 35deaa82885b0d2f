"""When to save what: a small validated configuration and pure functions of positions.

A full block is saved once, when it is complete; only the end of a sequence, the tail, needs a
decision. Positions and sizes are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

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
class LogitsPolicy:
    """When the logits of a prompt's last position are kept, in bytes and shares.

    They save one decode of an identical prompt, and cost 4 bytes per token of the vocabulary: 128
    KB for 32,000, 600 KB for 150,000. In memory they are free until the limit. In a row they are
    stored only where they add at most ``row_share`` to the KV bytes that this request stores
    anyway, so a conversation never writes noticeably more for them: from 190 new tokens on the
    1.1B shape (22 KB a token), from 130 on an 8B with a vocabulary of 128,000 (128 KB a token).
    """

    memory_bytes: int = 16 << 20
    row_share: float = 1 / 32

    def __post_init__(self) -> None:
        if self.memory_bytes < 0:
            raise InvalidPolicy(f"memory_bytes must not be negative, is {self.memory_bytes}")
        if not 0.0 <= self.row_share <= 1.0:
            raise InvalidPolicy(f"row_share must be 0 .. 1, is {self.row_share}")

    def stores(self, logits_bytes: int, new_kv_bytes: int) -> bool:
        """Whether a tip row carries them, beside ``new_kv_bytes`` of KV stored with it."""
        return logits_bytes <= self.row_share * new_kv_bytes


@dataclass(frozen=True, slots=True)
class RestorePolicy:
    """When stored rows are computed instead of restored, because that is faster.

    Each model process measures the speeds. A restore is only refused after ``min_samples``
    measurements of its tier, and only if computing saves at least ``min_saved_s``.
    """

    min_samples: int = 3
    min_saved_s: float = 0.005
    probe_every: int = 16  # one of so many refusals restores all the same, to measure again
    weight: float = 0.2  # of the newest value in an average
    min_prefill_tokens: int = 32  # smaller steps do not measure prompts
    min_tokens: int = 64  # smaller restores are mostly overhead
    prefetch: bool = True  # rows of queued requests come from files to RAM while they wait

    def __post_init__(self) -> None:
        for name in ("min_samples", "probe_every", "min_prefill_tokens", "min_tokens"):
            if getattr(self, name) < 1:
                raise InvalidPolicy(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.min_saved_s < 0:
            raise InvalidPolicy(f"min_saved_s must not be negative, is {self.min_saved_s}")
        if not 0.0 < self.weight <= 1.0:
            raise InvalidPolicy(f"weight must be above 0 and at most 1, is {self.weight}")


@dataclass(frozen=True, slots=True)
class LivePolicy:
    """How long sequences of ended requests stay in the context, and when one is worth sharing.

    Idle cells are not free: attention reads up to the highest used cell, so on the 1.1B shape each
    idle cell costs every decode step 3 to 4 microseconds, about what restoring that cell from RAM
    costs once. A stored sequence is therefore kept for few steps, one that would have to be
    computed again (10,000 microseconds a token) for many; while nothing runs, keeping is free.
    """

    min_tokens: int = 16  # sharing less saves less than a step
    max_idle: int = 4  # sequences
    max_idle_share: float = 0.5  # of the context's cells
    idle_steps_stored: int = 32  # decode steps beside it; a few times the cost of restoring it
    idle_steps_unstored: int = 2000
    idle_s: float = 300.0  # few conversations continue after five minutes

    def __post_init__(self) -> None:
        for name, low in (
            ("min_tokens", 1),
            ("max_idle", 0),
            ("idle_steps_stored", 0),
            ("idle_steps_unstored", 0),
            ("idle_s", 0),
        ):
            if getattr(self, name) < low:
                raise InvalidPolicy(
                    f"{name} must be at least {low}, is {getattr(self, name)}; "
                    "max_idle 0 keeps no idle sequences"
                )
        if not 0.0 <= self.max_idle_share <= 1.0:
            raise InvalidPolicy(f"max_idle_share must be 0 .. 1, is {self.max_idle_share}")


@dataclass(frozen=True, slots=True)
class SavePolicy:
    """Which rows are saved, and when. Values out of range raise InvalidPolicy at construction."""

    block_tokens: int = BLOCK_TOKENS  # see keys.BLOCK_TOKENS
    min_tokens: int = 32  # shorter prompts are mostly pings; their rows would displace useful ones
    min_tail_tokens: int = 8  # a shorter tail is one small step to compute again
    save_prompt_tail: bool = True  # an identical prompt then hits to its last token
    save_while_generating: bool = True  # a crash or a fork then finds all but the last block
    save_finish_tail: bool = True  # the next turn continues exactly where this one ended
    tail_delay_ms: int = 1000  # a tail is stored when nothing has extended it for so long
    tail_disk_delay_s: int = 30  # and copied to files after so long; 0: at once
    session_resume_wait_ms: int = 500  # for rows that another process is saving at present; 0: none
    logits: LogitsPolicy = field(default_factory=LogitsPolicy)
    restore: RestorePolicy = field(default_factory=RestorePolicy)
    live: LivePolicy = field(default_factory=LivePolicy)

    def __post_init__(self) -> None:
        if not 1 <= self.block_tokens <= 4096:
            raise InvalidPolicy(f"block_tokens must be 1 .. 4096, not {self.block_tokens}")
        if self.min_tokens < 0:
            raise InvalidPolicy(f"min_tokens must not be negative, is {self.min_tokens}")
        if self.min_tail_tokens < 1:
            raise InvalidPolicy(f"min_tail_tokens must be at least 1, is {self.min_tail_tokens}")
        if not 0 <= self.session_resume_wait_ms <= 60_000:
            raise InvalidPolicy(
                "session_resume_wait_ms must be 0 .. 60000 (0 does not wait), "
                f"is {self.session_resume_wait_ms}"
            )
        if not 0 <= self.tail_delay_ms <= 30_000:
            raise InvalidPolicy(
                f"tail_delay_ms must be 0 .. 30000 (0 stores at once), is {self.tail_delay_ms}"
            )
        if not 0 <= self.tail_disk_delay_s <= 3600:
            raise InvalidPolicy(
                "tail_disk_delay_s must be 0 .. 3600 (0 copies at once), "
                f"is {self.tail_disk_delay_s}"
            )


SAVE_ALL: Final = SavePolicy(min_tokens=1, min_tail_tokens=1)
"""The default of nodes: even a short prompt that is repeated hits to its last token, and the index
evicts the least valuable rows first when room is needed."""


def at_prompt_end(policy: SavePolicy, prompt_tokens: int, saved_tokens: int) -> list[Span]:
    """Rows to save when the prompt is computed; ``saved_tokens`` of it are stored already.

    Its tail becomes part of the row that also holds the beginning of the reply, if there is one.
    """
    with_tail = policy.save_prompt_tail and not policy.save_finish_tail
    return _spans(policy, prompt_tokens, saved_tokens, SaveReason.COLD, with_tail=with_tail)


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
    """Rows to save when a sequence ends, for any reason, or is evicted."""
    return _spans(policy, live_tokens, saved_tokens, reason, with_tail=policy.save_finish_tail)


def when_aside(policy: SavePolicy, live_tokens: int, saved_tokens: int) -> list[Span]:
    """Rows to save when a sequence that is continued later is freed: all of it, however short."""
    whole = replace(policy, min_tokens=0, min_tail_tokens=1)
    return _spans(whole, live_tokens, saved_tokens, SaveReason.EVICT, with_tail=True)


def _spans(
    policy: SavePolicy, live: int, saved: int, reason: SaveReason, *, with_tail: bool
) -> list[Span]:
    """Full blocks from the block that ``saved`` ends in, then the tail if it is long enough.

    A position inside a block means that its beginning is stored as a tail only; the full block is
    saved from its start, and the index evicts the tail first when room is needed.
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
