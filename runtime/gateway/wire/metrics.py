"""Counts of replies as Prometheus text, by llama-server's names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from runtime.client.results import Completion

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_MS: Final = 1e-3


@dataclass(slots=True)
class Counts:
    """What requests have cost: those of one worker since it started, or of several together."""

    prompt_tokens: int = 0
    """Computed; those that were reused are ``cached_tokens``."""
    cached_tokens: int = 0
    prompt_s: float = 0.0
    predicted_tokens: int = 0
    predicted_s: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    n_drafted: int = 0
    """Replies with drafted tokens."""
    longest: int = 0
    """Tokens of the longest prompt and its reply."""
    n_steps: int = 0
    """One for each prompt and one for each token of a reply but its first."""

    def note(self, done: Completion) -> None:
        """A reply has ended."""
        usage = done.usage
        self.prompt_tokens += usage.prompt_tokens - usage.cached_tokens
        self.cached_tokens += usage.cached_tokens
        self.prompt_s += done.timings.prefill_ms * _MS
        self.predicted_tokens += usage.completion_tokens
        self.predicted_s += done.timings.decode_ms * _MS
        self.drafted_tokens += usage.drafted_tokens
        self.accepted_tokens += usage.accepted_tokens
        self.n_drafted += bool(usage.drafted_tokens)
        self.longest = max(self.longest, usage.prompt_tokens + usage.completion_tokens)
        self.n_steps += max(1, usage.completion_tokens)

    def note_cut(self, n_cached: int, n_computed: int, n_generated: int) -> None:
        """A reply was left before its end, after so many tokens.

        The model's times of it are not known.
        """
        self.cached_tokens += n_cached
        self.prompt_tokens += n_computed
        self.predicted_tokens += n_generated
        self.longest = max(self.longest, n_cached + n_computed + n_generated)
        self.n_steps += max(1, n_generated)

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        names = (one.name for one in fields(self))
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Counts(**{**sums, "longest": max(self.longest, other.longest)})

    def note_read(self, n_tokens: int, n_texts: int) -> None:
        """Texts were read for their vectors or scores."""
        self.prompt_tokens += n_tokens
        self.n_steps += n_texts


def metrics_text(counts: Counts, running: int, waiting: int) -> bytes:
    """The whole page. ``running`` and ``waiting``: requests now."""
    counters: dict[str, tuple[str, float]] = {
        "prompt_tokens_total": ("Prompt tokens that were computed.", counts.prompt_tokens),
        "prompt_tokens_cached_total": ("Prompt tokens that were reused.", counts.cached_tokens),
        "prompt_seconds_total": ("Seconds of computing prompts.", counts.prompt_s),
        "tokens_predicted_total": ("Generated tokens.", counts.predicted_tokens),
        "tokens_predicted_seconds_total": ("Seconds of generating.", counts.predicted_s),
        "n_decode_total": (
            "Steps, counted by request: one for a prompt and one for each token after the first.",
            counts.n_steps,
        ),
        "n_tokens_max": ("Tokens of the longest prompt with its reply.", counts.longest),
        "spec_decode_num_draft_tokens_total": ("Guessed tokens.", counts.drafted_tokens),
        "spec_decode_num_accepted_tokens_total": (
            "Guessed tokens that were right.",
            counts.accepted_tokens,
        ),
        "spec_decode_num_drafts_total": ("Replies with guessed tokens.", counts.n_drafted),
    }
    gauges: dict[str, tuple[str, float]] = {
        "prompt_tokens_seconds": (
            "Mean prompt tokens a second.",
            _rate(counts.prompt_tokens, counts.prompt_s),
        ),
        "predicted_tokens_seconds": (
            "Mean generated tokens a second.",
            _rate(counts.predicted_tokens, counts.predicted_s),
        ),
        "requests_processing": ("Requests that run.", running),
        "requests_deferred": ("Requests that wait.", waiting),
        "n_busy_slots_per_decode": ("Requests that share a step now.", running),
    }
    lines = []
    for kind, found in (("counter", counters), ("gauge", gauges)):
        for name, (words, value) in found.items():
            lines += [
                f"# HELP llamacpp:{name} {words}",
                f"# TYPE llamacpp:{name} {kind}",
                f"llamacpp:{name} {value:.10g}",
            ]
    return ("\n".join(lines) + "\n").encode()


def _rate(n: float, seconds: float) -> float:
    return n / seconds if seconds else 0.0
