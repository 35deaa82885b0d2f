"""Failures in Anthropic's words."""

from __future__ import annotations

from typing import Any, Final

from runtime.gateway.wire.failure import Failure, Fault

_TYPES: Final = {
    Fault.NO_KEY: "authentication_error",
    Fault.FORBIDDEN: "permission_error",
    Fault.NO_MODEL: "not_found_error",
    Fault.NOT_FOUND: "not_found_error",
    Fault.NO_METHOD: "not_found_error",
    Fault.TOO_LARGE: "request_too_large",
    Fault.RATE: "rate_limit_error",
    Fault.INTERNAL: "api_error",
    Fault.OVERLOADED: "overloaded_error",
    Fault.UNAVAILABLE: "overloaded_error",
    Fault.DEADLINE: "timeout_error",
}
THREAD_NOT_FOUND: Final = "thread_not_found"
"""With this in ``details`` Anthropic's SDKs send the whole conversation again."""


def error_object(failure: Failure, request_id: str = "") -> dict[str, Any]:
    """``{"type": "error", …}``, in a body and in a stream."""
    kind = _TYPES.get(failure.fault, "invalid_request_error")
    found: dict[str, Any] = {
        "type": "error",
        "error": {"type": kind, "message": failure.message},
    }
    if failure.code == THREAD_NOT_FOUND:
        found["error"]["details"] = {"error_code": failure.code}
    if request_id:
        found["request_id"] = request_id
    return found
