"""What every API reports of a finished reply: the cache object and llama.cpp's timings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.client.results import Completion


def n_reasoning(done: Completion) -> int:
    """Tokens of thinking."""
    return sum(len(span.tokens) for span in done.spans if span.kind == "thinking")


def timings(done: Completion) -> dict[str, Any]:
    """As llama-server has them: ``n`` tokens, milliseconds, and tokens a second."""
    usage, took = done.usage, done.timings
    n_prompt, n_reply = usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
    found = timing_facts(usage.cached_tokens, n_prompt, took.prefill_ms, n_reply, took.decode_ms)
    if usage.drafted_tokens:
        found |= {"draft_n": usage.drafted_tokens, "draft_n_accepted": usage.accepted_tokens}
    return found


def timing_facts(
    n_cached: int, n_prompt: int, prompt_ms: float, n_reply: int, reply_ms: float
) -> dict[str, Any]:
    """The same of counts and milliseconds; ``n_prompt`` without those that were cached."""
    found: dict[str, Any] = {"cache_n": n_cached}
    # The first token comes from the prompt's own step, and costs none.
    for name, n, steps, ms in (
        ("prompt", n_prompt, n_prompt, prompt_ms),
        ("predicted", n_reply, max(0, n_reply - 1), reply_ms),
    ):
        found |= {
            f"{name}_n": n,
            f"{name}_ms": ms,
            f"{name}_per_token_ms": ms / steps if steps else 0.0,
            f"{name}_per_second": 1e3 * steps / ms if ms else 0.0,
        }
    return found


def cache(
    done: Completion, remarks: Sequence[str] = (), rules: Sequence[str] = ()
) -> dict[str, Any]:
    """The explanation: what was reused, from where, how long it took, and why no more was.

    A value that is not known is ``null``, never 0.
    """
    report, usage = done.cache, done.usage
    notes = [note for note in (report.note, done.note, *remarks) if note]
    return {
        "hit": report.hit.value,
        "source": report.source,
        "reused_tokens": usage.cached_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "restore_ms": round(report.restore_ms, 3),
        "lookup_ms": round(report.lookup_ms, 3),
        "queue_ms": round(done.timings.queue_ms, 3),
        "prefill_ms": round(done.timings.prefill_ms, 3),
        "ttft_ms": round(done.timings.ttft_ms, 3),
        "saved_ms_estimate": saved_ms(done),
        "miss_reason": report.miss_reason,
        "miss_at": done.miss_at,
        "diverged": report.diverged and report.diverged.to_dict(),
        "exact": report.exact.value,
        "finish_key": done.finish_key,
        "rules": list(rules),
        "note": "; ".join(notes) or None,
    }


def saved_ms(done: Completion) -> float | None:
    """What computing the reused tokens would have taken, by the speed of those that were computed.

    ``None`` where too few were computed to know.
    """
    computed = done.usage.prompt_tokens - done.usage.cached_tokens
    if computed < 16 or not done.usage.cached_tokens or not done.timings.prefill_ms:
        return None
    per_token = done.timings.prefill_ms / computed
    return round(per_token * done.usage.cached_tokens - done.cache.restore_ms, 1)
