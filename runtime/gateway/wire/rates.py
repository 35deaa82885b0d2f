"""What is left to a key of its amounts a minute, and the header lines that state it."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Rate:
    """One amount of a minute."""

    limit: int
    remaining: int
    reset_s: float
    """Seconds until all of it is there again."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Those that a key has; None: no limit."""

    requests: Rate | None = None
    tokens: Rate | None = None


def rate_headers(rates: Rates, api: str, now: float) -> Headers:
    """In the words of the API that was called; ``now``: Unix time, which Anthropic's count from."""
    found: Headers = []
    for what, rate in ((b"requests", rates.requests), (b"tokens", rates.tokens)):
        if rate is None:
            continue
        if api == "anthropic":
            names = (b"anthropic-ratelimit-%b-%b" % (what, one) for one in _PARTS)
            reset = _date(now + rate.reset_s)
        else:
            names = (b"x-ratelimit-%b-%b" % (one, what) for one in _PARTS)
            reset = duration(rate.reset_s)
        values = (str(rate.limit), str(rate.remaining), reset)
        found += [(name, value.encode()) for name, value in zip(names, values, strict=True)]
    return found


_PARTS = (b"limit", b"remaining", b"reset")


def duration(seconds: float) -> str:
    """As OpenAI writes it: ``120ms``, ``8.64s``, ``6m0s``."""
    ms = max(0, math.ceil(1000 * seconds - 1e-6))
    if not ms:
        return "0s"
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    text = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{text}" if minutes else text


def _date(at: float) -> str:
    """RFC 3339, in whole seconds."""
    found = datetime.datetime.fromtimestamp(math.ceil(at), datetime.UTC)
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")
