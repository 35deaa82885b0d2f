"""Token counts as OpenAI's completions and chats have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.client.results import Completion
from runtime.gateway.wire.report import n_reasoning


def usage_of(done: Sequence[Completion], n: int = 1) -> dict[str, Any]:
    """Counts of all replies. The prompt of each input counts once, however many replies it has.

    ``n``: replies to each input, which stand together in ``done``.
    """
    firsts = done[::n]
    prompt = sum(one.usage.prompt_tokens for one in firsts)
    cached = sum(one.usage.cached_tokens for one in firsts)
    generated = sum(one.usage.completion_tokens for one in done)
    accepted = sum(one.usage.accepted_tokens for one in done)
    drafted = sum(one.usage.drafted_tokens for one in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {
            "cached_tokens": cached,
            "cache_write_tokens": prompt - cached,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(map(n_reasoning, done)),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
            "audio_tokens": 0,
        },
    }
