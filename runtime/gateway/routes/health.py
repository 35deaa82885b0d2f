"""Whether the gateway runs, for probes, balancers and clients that ask before they begin."""

from __future__ import annotations

from typing import Final

from runtime.gateway.call import Call
from runtime.gateway.wire.failure import Failure, Fault, Refused

OLLAMA_RUNS: Final = b"Ollama is running"
"""Clients of Ollama compare this text."""


async def health(call: Call) -> None:
    """It accepts requests. 503 while no model is there, as llama-server has it while it loads."""
    if call.service.is_draining:
        raise Refused(Failure(Fault.UNAVAILABLE, "this gateway is being stopped"))
    await call.service.client()
    await call.answer_json({"status": "ok"})


async def root(call: Call) -> None:
    await call.answer(OLLAMA_RUNS, content_type=b"text/plain; charset=utf-8")


ROUTES: Final = (
    ("GET", "/health", health),
    ("GET", "/v1/health", health),
    ("GET", "/readyz", health),
    ("GET", "/", root),
)
