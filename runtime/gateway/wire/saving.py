"""Which canonical rule would have kept a prompt the same as an earlier one for longer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from runtime.gateway.wire.canonical import RULES, canonical
from runtime.gateway.wire.wanted import Wanted


def saving_rules(asked: Wanted, earlier: Sequence[Wanted], used: Collection[str]) -> list[str]:
    """Names of rules that were not used, the one that would have saved most first.

    A rule saves if less of the conversation comes after the first difference from any of the
    earlier ones, had it been used for all of them.
    """
    if asked.kind != "chat" or not earlier:
        return []
    before = [canonical(one, used) for one in earlier]
    now = canonical(asked, used)
    least = _lost(now, before)
    saved: dict[str, int] = {}
    for rule in RULES:
        if rule in used:
            continue
        changed = canonical(now, [rule])
        if rule in changed.rules:
            lost = _lost(changed, [canonical(one, [rule]) for one in before])
            if lost < least:
                saved[rule] = least - lost
    return sorted(saved, key=lambda rule: -saved[rule])


def _lost(now: Wanted, earlier: Sequence[Wanted]) -> int:
    """Characters from the first difference on, to the nearest of the earlier ones."""
    text = _written(now)
    return min(len(text) - _in_common(text, _written(one)) for one in earlier)


def _in_common(one: bytes, other: bytes) -> int:
    """Bytes with which both begin."""
    most = min(len(one), len(other))
    return bisect_left(range(1, most + 1), 1, key=lambda n: one[:n] != other[:n])


def _written(wanted: Wanted) -> bytes:
    """A conversation in the order in which templates write it."""
    messages: Any = wanted.inputs[0]
    rest = list(messages) if isinstance(messages, list | tuple) else [messages]
    tools = list(wanted.options.get("tools") or [])
    rules = [one for one in rest[:1] if isinstance(one, dict) and one.get("role") == "system"]
    return msgspec.json.encode([rules, tools, rest[len(rules) :]], enc_hook=str)
