"""The metrics of the gateway: names, labels, buckets. Bounds of the times are vLLM's, and finer."""

from __future__ import annotations

from typing import Final

from runtime.gateway.wire.series import MODEL, Family

PREFIX: Final = "llama_actors_"
MOST_MODELS: Final = 16
_MODEL: Final = (MODEL,)

FIRST_TOKEN_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
GAP_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_S: Final = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
RESTORE_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
TOKENS: Final = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))


def _times(name: str, words: str, bounds: tuple[float, ...] = REQUEST_S) -> Family:
    return Family(name, "histogram", words, _MODEL, bounds, MOST_MODELS)


def _of_models(name: str, words: str) -> Family:
    return Family(name, "counter", words, _MODEL, most=MOST_MODELS)


# ── replies ─────────────────────────────────────────────────────────────────────────────────────

FIRST_TOKEN: Final = _times(
    "time_to_first_token_seconds", "From a request's arrival to its first token.", FIRST_TOKEN_S
)
GAP: Final = _times(
    "inter_token_latency_seconds", "From one token of a reply to its next one.", GAP_S
)
REQUEST: Final = _times("e2e_request_latency_seconds", "From a request's arrival to its end.")
QUEUE: Final = _times("request_queue_time_seconds", "Waiting for a place in the model.")
PREFILL: Final = _times("request_prefill_time_seconds", "Reading the prompt.")
DECODE: Final = _times("request_decode_time_seconds", "From the first token to the last.")
PROMPT_SIZE: Final = _times("request_prompt_tokens", "Prompt tokens of a reply.", TOKENS)
REPLY_SIZE: Final = _times("request_generation_tokens", "Generated tokens of a reply.", TOKENS)
PROMPT_TOKENS: Final = _of_models(
    "prompt_tokens_total", "Prompt tokens, those that were reused included."
)
GENERATED: Final = _of_models("generation_tokens_total", "Generated tokens.")
SUCCESS: Final = Family(
    "request_success_total",
    "counter",
    "Replies, by why they ended: abort where the client left, error where it failed.",
    (MODEL, "finished_reason"),
    most=4 * MOST_MODELS,
)
LOOKED_UP: Final = _of_models(
    "prefix_cache_queries_total", "Prompt tokens that were looked for in the cache."
)
FOUND: Final = _of_models("prefix_cache_hits_total", "Prompt tokens that were reused.")
CACHED: Final = Family(
    "cached_tokens_total",
    "counter",
    "Prompt tokens that were reused, by the slowest tier that something was read from.",
    (MODEL, "cache_source"),
    most=4 * MOST_MODELS,
)
MISSES: Final = Family(
    "prefix_miss_total",
    "counter",
    "Prompts that were not wholly warm: why, and which part of the conversation differs.",
    ("reason", "part"),
    most=64,
)
RESTORE: Final = Family(
    "kv_restore_seconds",
    "histogram",
    "Restoring rows for a prompt, by the slowest tier that something was read from.",
    ("tier",),
    RESTORE_S,
)
RESUMES: Final = Family(
    "stream_resumes_total",
    "counter",
    "Replies that continued after a process had ended: node, or an HTTP worker.",
    ("cause",),
)

# ── HTTP ────────────────────────────────────────────────────────────────────────────────────────

HTTP: Final = Family(
    "http_requests_total",
    "counter",
    "HTTP requests that have ended; status 0: nothing was sent.",
    ("route", "status", "api"),
    most=192,
)
NO_KEY: Final = Family("auth_failures_total", "counter", "Requests without a valid key.")
CANONICAL: Final = Family(
    "canonicalised_total", "counter", "Requests that a canonical rule has changed.", ("rule",)
)
COUNTED: Final = (
    FIRST_TOKEN, GAP, REQUEST, QUEUE, PREFILL, DECODE, PROMPT_SIZE, REPLY_SIZE, PROMPT_TOKENS,
    GENERATED, SUCCESS, LOOKED_UP, FOUND, CACHED, MISSES, RESTORE, RESUMES, HTTP, NO_KEY, CANONICAL,
)  # fmt: skip
"""What workers count."""

# ── the node ────────────────────────────────────────────────────────────────────────────────────


def _now(name: str, words: str, *labels: str) -> Family:
    return Family(name, "gauge", words, labels)


RESTARTS: Final = Family(
    "worker_restarts_total",
    "counter",
    "Restarts of the node's processes, and why each had ended.",
    ("actor", "reason"),
    most=256,
)
CONNECTIONS: Final = _now("http_connections", "Open HTTP connections.")
HTTP_RUNNING: Final = _now("http_requests_running", "HTTP requests for replies that run.")
MODELS_UP: Final = _now("models_up", "Models that can answer.")
MODEL_UP: Final = _now("model_up", "Whether a model that is loaded can answer: 1 or 0.", MODEL)
RUNNING: Final = _now("num_requests_running", "Requests in the model's steps.", MODEL)
WAITING: Final = _now("num_requests_waiting", "Requests that wait for a place in it.", MODEL)
KV_USE: Final = _now(
    "kv_cache_usage_perc", "Share of its context that running requests hold, 0 to 1.", MODEL
)
ENGINE_TOKENS: Final = Family(
    "engine_generated_tokens_total",
    "counter",
    "Tokens that the model's process has generated, for all callers, as they come; from 0 again "
    "when it is restarted.",
    _MODEL,
)
KV_BYTES: Final = _now("kv_bytes", "Bytes of stored rows.", "tier")
KV_BUDGET: Final = _now("kv_budget_bytes", "Bytes that a tier may hold.", "tier")
TIER_UP: Final = _now("kv_tier_up", "Whether rows are written to a tier: 1 or 0.", "tier")
TIER_ERRORS: Final = Family(
    "kv_tier_errors_total",
    "counter",
    "Copies of rows that could not be written to a tier of files.",
    ("tier",),
)
EVICTIONS: Final = Family(
    "kv_evictions_total",
    "counter",
    "Copies of rows that were removed: for the room of others, or because memory was asked for. "
    "From 0 again when the index is restarted.",
    ("tier", "reason"),
)
OF_NODE: Final = (
    RESTARTS, CONNECTIONS, HTTP_RUNNING, MODELS_UP, MODEL_UP, RUNNING, WAITING, KV_USE,
    ENGINE_TOKENS, KV_BYTES, KV_BUDGET, TIER_UP, TIER_ERRORS, EVICTIONS,
)  # fmt: skip
"""What is looked up when the page is asked for."""

# ── vLLM's names ────────────────────────────────────────────────────────────────────────────────

ENGINE: Final = "engine"
"""Label that vLLM's series have; there is one engine to a model here."""
VLLM_PREFIX: Final = "vllm:"
VLLM_BOUNDS: Final = {
    FIRST_TOKEN.name: tuple(one for one in FIRST_TOKEN_S if one != 0.0025),
    GAP.name: tuple(one for one in GAP_S if one >= 0.01),
    **{
        one.name: tuple(bound for bound in REQUEST_S if bound >= 0.3)
        for one in (REQUEST, QUEUE, PREFILL, DECODE)
    },
}
VLLM: Final = (
    FIRST_TOKEN, GAP, REQUEST, QUEUE, PREFILL, DECODE, PROMPT_SIZE, REPLY_SIZE, PROMPT_TOKENS,
    GENERATED, SUCCESS, LOOKED_UP, FOUND, RUNNING, WAITING, KV_USE,
)  # fmt: skip
