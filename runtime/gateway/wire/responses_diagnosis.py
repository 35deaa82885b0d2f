"""Why a prompt was not warm, compared with that of an earlier response, in OpenAI's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.client.results import Completion


@dataclass(frozen=True, slots=True)
class Compared:
    """What a request has in common with an earlier one."""

    is_found: bool = False
    """Whether the earlier response is stored."""
    n_prompt: int | None = None
    """Tokens of its prompt; None: it has none, because it failed."""
    reason: str | None = None
    """The first thing that differs, of those that are written before others; None: the new prompt
    begins as the old one."""


def compared(
    old: Mapping[str, Any],
    old_messages: Sequence[Mapping[str, Any]],
    new: Mapping[str, Any],
    new_messages: Sequence[Mapping[str, Any]],
) -> Compared:
    """Compare two responses, as far as a prompt is made of them, and their conversations."""
    usage = old.get("usage")
    n_prompt = usage["input_tokens"] if usage else None
    reason: str | None = None
    if old["model"] != new["model"]:
        reason = "model_changed"
    elif old["tools"] != new["tools"]:
        reason = "tools_changed"
    elif old["reasoning"]["effort"] != new["reasoning"]["effort"]:
        reason = "reasoning_effort_changed"
    elif list(old_messages) != list(new_messages[: len(old_messages)]):
        reason = "input_changed"
    return Compared(True, n_prompt, reason)


def diagnosis(found: Compared, done: Completion | None) -> dict[str, Any]:
    """``prompt_cache_diagnostics`` of a response."""
    if not found.is_found:
        return {"type": "comparison_response_not_found"}
    if done is None or found.n_prompt is None:
        return {"type": "unavailable"}
    cached = done.usage.cached_tokens
    if cached >= found.n_prompt:
        return {"type": "cache_hit"}
    if found.reason is None:
        return {"type": "unavailable"}  # equal, but kept no more
    return {
        "type": "cache_miss",
        "reason": found.reason,
        "cache_missed_tokens": done.usage.prompt_tokens - cached,
        "comparison_reusable_tokens": cached,
    }
