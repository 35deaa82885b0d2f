"""How often and how much a key may ask: minutes as buckets that refill. Pure; seconds come in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from runtime.gateway.keys import Key
from runtime.gateway.wire.failure import Failure, Fault, Refused
from runtime.gateway.wire.rates import Rate, Rates

MINUTE_S = 60.0
_ROUNDING = 1e-6


@dataclass(slots=True)
class Bucket:
    """An amount a minute: as much may be used at once, and it comes back evenly."""

    per_minute: float
    level: float = 0.0
    """Of what was used and has not come back; above ``per_minute``: nothing may be used."""
    at: float = 0.0
    """When ``level`` was right, in seconds."""

    def settle(self, now: float) -> None:
        """Let come back what has since."""
        back = (now - self.at) * self.per_minute / MINUTE_S
        self.level, self.at = max(0.0, self.level - back), now

    def wait_s(self, now: float, amount: float = 1.0) -> float:
        """Seconds until so much may be used; 0: now. More than a minute's worth counts as that."""
        self.settle(now)
        over = self.level + min(amount, self.per_minute) - self.per_minute
        return max(0.0, over * MINUTE_S / self.per_minute)

    def use(self, now: float, amount: float) -> None:
        self.settle(now)
        self.level += amount

    def rate(self, now: float) -> Rate:
        """What is left of it."""
        self.settle(now)
        left = max(0, math.floor(self.per_minute - self.level + _ROUNDING))
        return Rate(round(self.per_minute), left, self.level * MINUTE_S / self.per_minute)


@dataclass(slots=True)
class Use:
    """What one key has used."""

    amounts: tuple[int | None, int | None]
    """Requests and tokens of a minute."""
    requests: Bucket | None = None
    tokens: Bucket | None = None
    running: int = 0


@dataclass(slots=True)
class Limits:
    """The use of every key."""

    uses: dict[str, Use] = field(default_factory=dict)
    """By the names of keys."""

    def begin(self, key: Key, now: float, *, is_checked: bool = True) -> None:
        """A request of this key begins; Refused where it may not yet."""
        use = self._use(key)
        if is_checked:
            _check(key, use, now)
        if use.requests is not None:
            use.requests.use(now, 1.0)
        use.running += 1

    def end(self, key: Key, now: float, n_tokens: int = 0) -> None:
        """It has ended, after so many tokens of prompt and reply that were computed."""
        use = self._use(key)
        use.running -= 1
        if use.tokens is not None:
            use.tokens.use(now, n_tokens)

    def is_busy(self, key: Key) -> bool:
        """Whether so many of its requests run as may."""
        return key.running is not None and self._use(key).running >= key.running

    def continues(self, key: Key) -> None:
        """A request that was counted before runs still."""
        self._use(key).running += 1

    def rates(self, key: Key, now: float) -> Rates:
        """What is left to this key."""
        use = self._use(key)
        requests, tokens = (
            None if one is None else one.rate(now) for one in (use.requests, use.tokens)
        )
        return Rates(requests, tokens)

    def _use(self, key: Key) -> Use:
        amounts = (key.requests_per_min, key.tokens_per_min)
        use = self.uses.get(key.name)
        if use is None or use.amounts != amounts:  # its file may have changed
            requests, tokens = (None if one is None else Bucket(one) for one in amounts)
            running = 0 if use is None else use.running
            use = self.uses[key.name] = Use(amounts, requests, tokens, running)
        return use


def _check(key: Key, use: Use, now: float) -> None:
    if key.running is not None and use.running >= key.running:
        raise Refused(
            Failure(
                Fault.RATE,
                f"{use.running} requests of the key {key.name!r} run already, which is its "
                "limit; wait for one of them",
                retry_after_s=1.0,
            )
        )
    for what, bucket in (("requests", use.requests), ("tokens", use.tokens)):
        wait_s = bucket.wait_s(now) if bucket is not None else 0.0
        if wait_s > 0:
            raise Refused(
                Failure(
                    Fault.RATE,
                    f"the key {key.name!r} has used its {what} of this minute; try again in "
                    f"{wait_s:.0f} s",
                    retry_after_s=wait_s,
                )
            )
