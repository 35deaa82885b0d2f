"""The value of a stored row per byte: decayed hits x recompute cost / bytes. Pure arithmetic.

Hits decay with one half-life for every row, so the *order* of two rows never changes by waiting.
Heat is therefore kept as ``log2(decayed hits) + now / half_life``: a number that stays valid until
the row is used again, so that a heap can hold it without rescoring.
"""

from __future__ import annotations

import math
from typing import Final

HALF_LIFE_S: Final = 3600.0  # agents return to a prefix within minutes; older use predicts little
ATTENTION_KNEE_TOKENS: Final = 32768  # attention costs about as much as the weights from here on
WORTHLESS: Final = -math.inf  # a tail that a longer sibling contains, a row nothing can reach


def first_heat(now: float, half_life_s: float = HALF_LIFE_S) -> float:
    """Heat of a row used once, now (its save counts as a use)."""
    return now / half_life_s


def touched(heat: float, now: float, half_life_s: float = HALF_LIFE_S) -> float:
    """Heat after one more use at ``now``: log2 of the sum of both, without overflow."""
    fresh = now / half_life_s
    high, low = (heat, fresh) if heat > fresh else (fresh, heat)
    return high + math.log2(1.0 + 2.0 ** (low - high))


def last_used(heat: float, now: float, half_life_s: float = HALF_LIFE_S) -> float:
    """When a row of this heat was used last: exact after one use, too late after several."""
    return min(now, heat * half_life_s)


def recompute_tokens(start: int, n_tokens: int) -> float:
    """Cost of computing these tokens again, in tokens of an empty context."""
    return n_tokens * (1.0 + (start + n_tokens / 2) / ATTENTION_KNEE_TOKENS)


def rank(heat: float, start: int, n_tokens: int, row_bytes: int) -> float:
    """Log2 of value per byte (same offset for all rows); the lowest is evicted first."""
    return heat + math.log2(recompute_tokens(start, n_tokens) / max(1, row_bytes))
