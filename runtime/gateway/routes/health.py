"""Whether the gateway runs, for probes, balancers and clients that ask before they begin."""

from __future__ import annotations

from typing import Final

from runtime.gateway.call import Call
from runtime.gateway.wire.failure import Failure, Fault, Refused

LOADING: Final = {
    "error": {"code": 503, "message": "Loading model", "type": "unavailable_error"},
}
"""llama-server's body, by which its clients wait."""


async def health(call: Call) -> None:
    """Whether a model can be asked. 503 while models are loaded, and none is there yet."""
    if await call.service.is_loading():
        await call.answer_json(LOADING, status=503)
    else:
        await call.answer_json({"status": "ok"})


async def ready(call: Call) -> None:
    """The same; and 503 once the gateway is being stopped, though it still answers."""
    if call.service.is_draining:
        raise Refused(Failure(Fault.UNAVAILABLE, "this gateway is being stopped"))
    await health(call)


ROUTES: Final = (
    ("GET", "/health", health),
    ("GET", "/v1/health", health),
    ("GET", "/readyz", ready),
)
