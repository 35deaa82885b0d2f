"""Names of OpenTelemetry's conventions for generative AI, in one place: they may still change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runtime.gateway.trace import Trace

SERVICE: Final = "llama_actors"
CHAT, TEXT, EMBEDDINGS = "chat", "text_completion", "embeddings"
ASKED: Final[Mapping[str, str]] = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "session": "gen_ai.conversation.id",
}
"""Options of a request, and the attribute that shows each."""
KIND, NAMED, N = "kind", "model", "n"
"""Further keys of ``Trace.asked``."""
DURATION_S: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip
FIRST_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
EACH_S: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
Attribute = str | int | float | bool | tuple[str, ...]


def operation_of(trace: Trace) -> str:
    """What kind of work it is."""
    if "embed" in trace.route:
        return EMBEDDINGS
    return CHAT if trace.asked.get(KIND) == "chat" else TEXT


def span_name(trace: Trace) -> str:
    """Of the span of a request that has asked a model."""
    return f"{operation_of(trace)} {trace.model}"


def labels_of(trace: Trace) -> dict[str, Attribute]:
    """Few values each: for metrics, and for spans."""
    found: dict[str, Attribute] = {
        "gen_ai.operation.name": operation_of(trace),
        "gen_ai.provider.name": SERVICE,
        "gen_ai.request.model": trace.model or "",
        "gen_ai.response.model": trace.model or "",
    }
    if trace.error is not None:
        found["error.type"] = trace.error
    return found


def attributes_of(trace: Trace) -> dict[str, Attribute]:
    """Of the span of a request."""
    found = labels_of(trace)
    found |= {
        "http.request.method": trace.method,
        "http.route": trace.route,
        "http.response.status_code": trace.status,
        "llama_actors.request_id": trace.id,
    }
    if trace.asked.get(NAMED):
        found["gen_ai.request.model"] = str(trace.asked[NAMED])
    if trace.answer_id:
        found["gen_ai.response.id"] = trace.answer_id
    for option, name in ASKED.items():
        value = trace.asked.get(option)
        if isinstance(value, str | int | float):
            found[name] = value
    if trace.asked.get(N, 1) != 1:
        found["gen_ai.request.choice.count"] = int(str(trace.asked[N]))
    replies = list(trace.replies.values())
    done = [one.done for one in replies if one.done is not None]
    if done:
        found["gen_ai.response.finish_reasons"] = tuple(one.finish_reason for one in done)
    if replies:
        read = sum(one.n_prompt for one in replies)
        reused = sum(one.n_reused for one in replies)
        found |= {
            "gen_ai.usage.input_tokens": read,
            "gen_ai.usage.output_tokens": sum(one.n_generated for one in replies),
            "gen_ai.usage.cache_read.input_tokens": reused,
            "gen_ai.usage.cache_creation.input_tokens": read - reused,
        }
    return found
